//! Matrix products of a block of rows.
