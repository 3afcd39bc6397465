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
    /// Of the activations and their gradients that its passes name, each once a pass.
    floor: u64,
    /// Of those, as counted.
    activations: u64,
    /// Of sums, coefficients, gates and masks: a few values a channel, or a channel of an image, that every tile
    /// reads again, out of the first cache.
    small: u64,
    /// Of the workspace: partial sums on their way to the second stage, whose number does not grow with the batch.
    workspace: u64,
    /// Of weights, their gradients and the rest of the state, which does not either.
    state: u64,
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        self.floor += other.floor;
        self.activations += other.activations;
        self.small += other.small;
        self.workspace += other.workspace;
        self.state += other.state;
    }
}

struct Traffic {
    passes: BTreeMap<&'static str, Bytes>,
    /// Each activation of each pass: pass, its number in the step, label, bytes once, bytes as counted.
    activations: Vec<(&'static str, usize, String, u64, u64)>,
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

    let mut traffic = Traffic { passes: BTreeMap::new(), activations: Vec::new() };
    let recorder = network.record(&device);
    for (number, pass) in recorder.passes.iter().enumerate() {
        let arena = (ops.context().arena, ops.context().arena_bytes);
        ops.gpu().describe(arena.0, arena.1, "arena");
        let mut row = Bytes::default();
        let mut named = BTreeMap::new();
        pass.tensors(&mut |tensor, _| {
            let bytes = tensor.elements * device.element_bytes(tensor.kind);
            let label = network.tensors.label(tensor).to_string();
            let at = ops.context().tensor(tensor);
            ops.gpu().describe(at, bytes, &label);
            if tensor.kind == Kind::Activation {
                row.floor += bytes as u64;
            }
            named.insert(label, (tensor.kind, bytes as u64));
        });
        ops.gpu().reset_counts();
        pass.run(&mut ops).unwrap();
        for count in ops.gpu().counts() {
            let bytes = count.loaded + count.stored;
            assert_ne!(count.label, "arena", "{}: a tensor that it does not name", pass.name());
            match named.get(&count.label) {
                Some((Kind::Activation, once)) => {
                    row.activations += bytes;
                    traffic.activations.push((pass.name(), number, count.label, *once, bytes));
                }
                Some(_) => row.small += bytes,
                None if count.label == "workspace" => row.workspace += bytes,
                None => row.state += bytes,
            }
        }
        *traffic.passes.entry(pass.name()).or_default() += row;
    }
    traffic
}

#[test]
#[ignore = "needs the race build"]
fn a_step_moves_little_more_than_its_activations() {
    let images = 1;
    let traffic = count(images, 224, Precision::Fp16);
    let mut sum = Bytes::default();
    let line = |name: &str, row: &Bytes| {
        let megabytes = |bytes: u64| bytes as f64 / 1e6 / images as f64;
        let columns = [row.floor, row.activations, row.small, row.workspace, row.state].map(megabytes);
        let [floor, activations, small, workspace, state] = columns;
        let factor = activations / floor;
        println!(
            "{name:<22} {floor:>7.2} {activations:>12.2} {factor:>7.2} {small:>7.2} {workspace:>10.2} {state:>7.2}"
        );
    };
    println!("MB an image              floor  activations  factor   small  workspace   state");
    for (name, row) in &traffic.passes {
        line(name, row);
        sum += *row;
    }
    line("all", &sum);
    let mut again = traffic.activations;
    again.sort_by_key(|t| std::cmp::Reverse(t.4 - t.3));
    for (pass, number, label, once, bytes) in again.iter().take(60) {
        println!(
            "{number:>4} {pass:<20} {label:<40} {once:>10} {bytes:>10} {:.2}",
            *bytes as f64 / *once as f64
        );
    }
}
