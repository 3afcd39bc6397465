//! Runs on the CPU with activations stored in bf16: the same bytes however the work is divided, close to fp32, in little more
//! than half of its memory.

use std::path::Path;

use effnet::model::{ParamTable, Variant};
use effnet::network::Network;
use effnet::ops::Precision;
use effnet::ops::cpu::CpuDevice;
use effnet::train::{Recipe, RunOptions};

use crate::common::programs;
use crate::common::training::{assert_same_run, figures, options, recipe, run, saved};

fn in_bf16(options: RunOptions) -> RunOptions {
    RunOptions { precision: Some(Precision::Bf16), ..options }
}

#[test]
fn threads_change_nothing_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    run(&recipe(), &in_bf16(options(&a))).unwrap();
    run(&recipe(), &in_bf16(RunOptions { threads: 1, loader_threads: 3, ..options(&b) })).unwrap();
    run(&recipe(), &in_bf16(RunOptions { threads: 3, ..options(&c) })).unwrap();
    assert_same_run(&a, &b);
    assert_same_run(&a, &c);
}

/// Without evaluations, and with a rate so low that runs which differ only in rounding stay close.
fn slow() -> Recipe {
    Recipe { lr: 1e-5, batch_size: 16, resolution: 64, eval_every: 100.0, ..recipe() }
}

#[test]
fn checkpoint_moves_between_storage_types() {
    let dir = tempfile::tempdir().unwrap();
    let [mixed, alone] = ["mixed", "alone"].map(|name| dir.path().join(name));
    let steps = |out: &Path, steps, precision| {
        let resume = out.join("checkpoint.bin").exists();
        let options = RunOptions { max_steps: Some(steps), precision, resume, ..options(out) };
        run(&slow(), &options).unwrap();
    };
    for (number, precision) in
        [(1, None), (2, Some(Precision::Bf16)), (3, Some(Precision::Fp32)), (4, Some(Precision::Bf16))]
    {
        steps(&mixed, number, precision);
    }
    steps(&alone, 4, None);
    let (mixed_steps, alone_steps) = (figures(&mixed), figures(&alone));
    assert_eq!((mixed_steps.len(), alone_steps.len()), (4, 4));
    for ((step, loss, _), (_, expected, _)) in mixed_steps.iter().zip(&alone_steps) {
        // bf16 rounds by 2⁻⁸ at most, and an untrained network amplifies it; the loss is a mean over 16 images.
        assert!((loss / expected - 1.0).abs() < 0.05, "step {step}: {loss} beside {expected}");
    }
    assert_ne!(mixed_steps[1].1, alone_steps[1].1, "the second step was not made in bf16");
    assert_eq!(saved(&mixed).metadata.loss_scale, None);
}

/// What a step's plan takes: all of the arena, and the workspace.
#[test]
fn plan_takes_at_most_six_tenths() {
    for (variant, resolution, batch) in [(Variant::B0, 224, 16), (Variant::B4, 380, 4)] {
        let recipe = Recipe { resolution, ..Recipe::reference(variant, batch) };
        let arch = recipe.architecture(1000).unwrap();
        let network = Network::new(&arch, &ParamTable::new(&arch), recipe.network_config(1));
        let [half, whole] = [Precision::Bf16, Precision::Fp32].map(|precision| {
            let plan = network.plan(&CpuDevice::new(2, precision));
            plan.tensor_bytes + plan.workspace_bytes()
        });
        assert!(10 * half <= 6 * whole, "{variant} at {resolution}: {half} bytes of {whole}");
    }
}

#[test]
fn cpu_refuses_fp16() {
    let mut command = programs::program("effnet-train");
    command.args(["--device", "cpu", "--precision", "fp16", "--data", "synthetic"]);
    programs::run(command).refused(2, &["--precision fp16", "the CPU computes in fp32 and bf16"]);
}
