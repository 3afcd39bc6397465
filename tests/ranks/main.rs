//! Ranks as threads and as processes: how they form a group, exchange data, are watched, and end.

#[path = "../common/data_support.rs"]
mod data_support;
mod gpu_ranks;
mod launch;
mod nccl;
mod processes;
mod rendezvous;
#[path = "../common/train_support.rs"]
mod train_support;
