//! Ranks as processes on NVIDIA GPUs, through NCCL: they train the same network as one process that accumulates.
//!
//! Two ranks share one GPU, which NCCL allows from 2.30 on if this is enabled. A sum of two numbers does not depend on their
//! order. So with two ranks, and not with more, the result of NCCL equals accumulation bit by bit.
//!
//! The program is the one built with this test, or the one that `EFFNET_TRAIN` names.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::data;
use crate::common::programs::run;
use crate::common::training::*;
use effnet::model::ParamTable;
use effnet::ops::cuda::Precision;
use tempfile::TempDir;

/// Ten steps with all masks. Without the average of the weights, which would contain running statistics.
const MORE: &str = "--ema 0 --max-steps 10 --eval-every 100 --device cuda --watchdog 120";

struct Trials {
    folder: TempDir,
    precision: Precision,
}

impl Trials {
    fn new(precision: Precision) -> Trials {
        Trials { folder: data::packed(), precision }
    }

    /// Trains on the first GPU, which all ranks share. Returns the run's folder.
    fn run(&self, name: &str, arguments: &str) -> PathBuf {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        let first = visible.split(',').next().filter(|gpu| !gpu.is_empty()).unwrap_or("0");
        let [data, out] = ["data", name].map(|name| self.folder.path().join(name));
        let own = train_program(&data, &out, MORE);
        let mut command = Command::new(std::env::var_os("EFFNET_TRAIN").unwrap_or(own.get_program().into()));
        command.args(own.get_args()).args(arguments.split_whitespace());
        command.args(["--precision", &self.precision.to_string()]);
        run(command.env("CUDA_VISIBLE_DEVICES", first).env("NCCL_MULTI_RANK_GPU_ENABLE", "1")).good();
        out
    }
}

/// Asserts that two runs without evaluations are equal byte by byte.
fn expect_same(one: &Path, other: &Path) {
    assert_same_file(one, other, "checkpoint.bin");
    assert_eq!(timeless_log(one), timeless_log(other));
}

fn two_ranks_are_two_accumulated_micro_batches(precision: Precision) {
    let trials = Trials::new(precision);
    let one = trials.run("one", "--gpus 1 --micro-batch 4");
    let two = trials.run("two", "--gpus 2 --micro-batch 4");
    expect_same(&two, &trials.run("again", "--gpus 2 --micro-batch 4"));
    let bits = |out| figures(out).into_iter().map(|(step, a, b)| (step, a.to_bits(), b.to_bits()));
    assert_eq!(bits(&one).count(), 10);
    assert!(bits(&one).eq(bits(&two)), "{:?}\n{:?}", figures(&one), figures(&two));
    let [one, two] = [one, two].map(|out| saved(&out));
    let trainable = ParamTable::new(&one.architecture).trainable();
    for (name, one, two) in [
        ("parameters", &one.state.parameters[..trainable], &two.state.parameters[..trainable]),
        ("mean square", &one.state.slots[0].values[..], &two.state.slots[0].values[..]),
        ("momentum", &one.state.slots[1].values[..], &two.state.slots[1].values[..]),
    ] {
        assert_eq!((one.len(), two.len()), (trainable, trainable));
        let different = one.iter().zip(two).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{precision}, {name}");
    }
    // Accumulation updates running statistics more often.
    assert!(one.state.parameters[trainable..] != two.state.parameters[trainable..]);
}

#[test]
#[cfg_attr(not(all(effnet_gpu, effnet_nccl)), ignore = "needs an NVIDIA GPU, and NCCL named by NCCL_LIBRARY")]
fn two_ranks_in_fp32_are_accumulation_on_a_gpu() {
    two_ranks_are_two_accumulated_micro_batches(Precision::Fp32);
}

#[test]
#[cfg_attr(not(all(effnet_gpu, effnet_nccl)), ignore = "needs an NVIDIA GPU, and NCCL named by NCCL_LIBRARY")]
fn two_ranks_in_fp16_are_accumulation_on_a_gpu() {
    two_ranks_are_two_accumulated_micro_batches(Precision::Fp16);
}

/// The loss of the first step, before any update, equals that of the whole batch on one rank. Without `--sync-bn` it
/// differs.
#[test]
#[cfg_attr(not(all(effnet_gpu, effnet_nccl)), ignore = "needs an NVIDIA GPU, and NCCL named by NCCL_LIBRARY")]
fn statistics_are_those_of_the_whole_batch_on_a_gpu() {
    let trials = Trials::new(Precision::Fp32);
    let whole = trials.run("whole", "--gpus 1 --micro-batch 8");
    let together = trials.run("together", "--gpus 2 --micro-batch 4 --sync-bn");
    expect_same(&together, &trials.run("again", "--gpus 2 --micro-batch 4 --sync-bn"));
    let own = trials.run("own", "--gpus 2 --micro-batch 4");
    let loss = |out| figures(out)[0].1;
    let error = |out| (loss(out) / loss(&whole) - 1.0).abs();
    assert!(error(&together) <= 1e-5, "{} of {}", loss(&together), loss(&whole));
    assert!(error(&own) > 1e-3, "{} of {}", loss(&own), loss(&whole));
}
