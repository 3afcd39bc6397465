//! Ranks: how they meet, exchange, are watched and end, as threads and as processes.

#[path = "../common/data_support.rs"]
mod data_support;
mod gpu_ranks;
mod launch;
mod nccl;
mod processes;
mod rendezvous;
#[path = "../common/train_support.rs"]
mod train_support;
