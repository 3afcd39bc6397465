//! Ranks as threads and as processes: how they form a group, exchange data, are watched, and end.

#[path = "../common/mod.rs"]
mod common;
mod gpu_ranks;
mod launch;
mod nccl;
mod processes;
mod rendezvous;
