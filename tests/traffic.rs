//! The bytes that the kernels really load and store, counted access by access by the harness's `race` build, beside
//! the fewest that the passes need: each tensor that a pass names, once.
//!
//! What a kernel reads again (a neighbour's tile, a narrow tensor once per slice of a wide one) comes from a cache on a
//! GPU, so counts are an upper bound of what goes through memory; the re-read factor is said by pass.
//!
//! ```sh
//! EFFNET_HARNESS=race cargo test --test traffic -- --ignored --nocapture
//! ```
#![cfg(target_arch = "x86_64")] // the harness's; elsewhere this file has no tests

mod common;

use std::collections::BTreeMap;

use common::formula::Formula;
use common::host_gpu::HostGpu;
use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant, initialise};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;
use effnet_kernel_host::{BUILD, Build, Options};

/// Bytes of one kind of pass.
#[derive(Clone, Copy, Default)]
struct Bytes {
    /// Of the tensors that its passes name, each once a pass.
    floor: u64,
    /// Of those tensors, as counted.
    tensors: u64,
    /// Of the workspace: partial sums on their way to the second stage.
    workspace: u64,
    /// Of weights, their gradients and the rest of the state, which do not grow with the batch.
    state: u64,
}

struct Traffic {
    /// By pass, in the order of their names.
    passes: BTreeMap<&'static str, Bytes>,
    /// Bytes of each tensor of each pass, once and as counted: (pass, its number in the step, tensor's label).
    tensors: Vec<(&'static str, usize, String, u64, u64)>,
}

/// One training step without the update, pass by pass, on one batch of B0.
fn count(images: usize, side: usize, precision: Precision) -> Traffic {
    assert_eq!(BUILD, Build::Race, "traffic is counted by the race build: EFFNET_HARNESS=race");
    let arch =
        Architecture::new(Variant::B0, 1000, side, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let table = ParamTable::new(&arch);
    let config = NetworkConfig {
        statistics: Statistics::Batch,
        drop_path: 0.2,
        dropout: 0.2,
        label_smoothing: 0.1,
        ..NetworkConfig::inference(images)
    };
    let network = Network::new(&arch, &table, config);
    let device = CudaDevice { precision };
    let plan = network.plan(&device);
    let gpu = HostGpu::new(Options::default());
    let mut ops = CudaOps::new(gpu, table.trainable(), table.total(), &[&plan], precision).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &initialise::initialise(&table, 3)).unwrap();
    ops.set_step(StepParams { seed: 5, ..StepParams::default() }).unwrap();
    let image = Formula::of("image").values(network.image.elements, -2.0, 2.0);
    ops.upload(network.image, &image).unwrap();
    ops.upload_labels(network.labels, &vec![1; images]).unwrap();
    ops.begin_step().unwrap();

    let mut traffic = Traffic { passes: BTreeMap::new(), tensors: Vec::new() };
    let recorder = network.record(&device);
    for (number, pass) in recorder.passes.iter().enumerate() {
        let arena = (ops.context().arena, ops.context().arena_bytes);
        ops.gpu().describe(arena.0, arena.1, "arena");
        let mut named = BTreeMap::new();
        pass.tensors(&mut |tensor, _| {
            let bytes = tensor.elements * device.element_bytes(tensor.kind);
            named.insert(network.tensors.label(tensor).to_string(), bytes as u64);
            let at = ops.context().tensor(tensor);
            ops.gpu().describe(at, bytes, network.tensors.label(tensor));
        });
        ops.gpu().reset_counts();
        pass.run(&mut ops).unwrap();
        let row = traffic.passes.entry(pass.name()).or_default();
        row.floor += pass.bytes(&device);
        for count in ops.gpu().counts() {
            let bytes = count.loaded + count.stored;
            assert_ne!(count.label, "arena", "{}: a tensor that it does not name", pass.name());
            match (named.get(&count.label), &count.label[..]) {
                (Some(once), _) => {
                    row.tensors += bytes;
                    traffic.tensors.push((pass.name(), number, count.label, *once, bytes));
                }
                (None, "workspace") => row.workspace += bytes,
                (None, _) => row.state += bytes,
            }
        }
    }
    traffic
}

#[test]
#[ignore = "needs the race build"]
fn a_step_moves_little_more_than_its_tensors() {
    let images = 1;
    let traffic = count(images, 224, Precision::Fp16);
    let per_image = |bytes: u64| bytes as f64 / 1e6 / images as f64;
    let mut sum = Bytes::default();
    println!("MB an image           floor  counted  factor  workspace  state");
    for (name, row) in &traffic.passes {
        println!(
            "{name:<20} {:>6.2} {:>8.2} {:>7.2} {:>10.2} {:>6.2}",
            per_image(row.floor),
            per_image(row.tensors),
            row.tensors as f64 / row.floor as f64,
            per_image(row.workspace),
            per_image(row.state),
        );
        sum.floor += row.floor;
        sum.tensors += row.tensors;
        sum.workspace += row.workspace;
        sum.state += row.state;
    }
    println!(
        "sum {:.2} {:.2} {:.2} {:.2}",
        per_image(sum.floor),
        per_image(sum.tensors),
        per_image(sum.workspace),
        per_image(sum.state)
    );
    let mut again: Vec<_> = traffic.tensors.iter().filter(|t| t.4 > t.3 + 100_000).collect();
    again.sort_by_key(|t| std::cmp::Reverse(t.4 - t.3));
    for (pass, number, label, once, bytes) in again.iter().take(60) {
        println!(
            "{number:>4} {pass:<20} {label:<40} {once:>10} {bytes:>10} {:.2}",
            *bytes as f64 / *once as f64
        );
    }
}
