//! The layer table that `--summary` prints.
