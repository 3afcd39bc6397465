//! The bytes that the kernels load and store in a step of B0, counted access by access by the harness's `race` build, next
//! to the minimum that the passes need: each activation that a pass names, once.
//!
//! Counts are an upper bound of the traffic of memory. A narrow tensor that neighbours in the grid read again, for the
//! next slice of the wide side, comes from the second-level cache of a GPU: its factor is printed, and it counts once
//! when compared with the plan. Rows that strips and tiles read from their neighbours count in full.
//!
//! ```sh
//! EFFNET_HARNESS=race cargo test --test network traffic -- --ignored --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::common::formula::Formula;
use crate::common::host_gpu::HostGpu;
use crate::common::network::{architecture, training};
use effnet::model::{ParamTable, Variant, initialise};
use effnet::network::Network;
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision, masks};
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

#[derive(Default)]
struct Traffic {
    passes: BTreeMap<&'static str, Bytes>,
    /// Of the activations, those that are [`narrow`]: each once a pass, and as counted.
    narrow: (u64, u64),
}

/// The tensors that are as narrow as the blocks' ends. The pointwise products read such again for every slice of the wide
/// side.
fn narrow(passes: &[Pass]) -> BTreeSet<u32> {
    let mut narrow = BTreeSet::new();
    for pass in passes {
        match pass {
            Pass::ResidualForward(p) => narrow.extend([p.y.id, p.out.id]),
            Pass::ProjectBackward(p) => narrow.extend([p.dout.id]),
            _ => {}
        }
    }
    narrow
}

/// One training step without the update, pass by pass, on one batch of B0.
fn count(images: usize, side: usize, device: CudaDevice) -> Traffic {
    assert_eq!(BUILD, Build::Race, "traffic is counted by the race build: EFFNET_HARNESS=race");
    let arch = architecture(Variant::B0, 1000, side);
    let table = ParamTable::new(&arch);
    let network = Network::new(&arch, &table, training(images));
    let plan = network.plan(&device);
    let gpu = HostGpu::new(Options::default());
    let state = StateSize::new(table.trainable(), table.total());
    let mut ops = CudaOps::new(gpu, state, &[&plan], device.precision).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &initialise::initialise(&table, 3)).unwrap();
    ops.set_step(StepParams { seed: 5, ..StepParams::default() }).unwrap();
    let image = Formula::of("image").values(network.image.elements, -2.0, 2.0);
    ops.upload(network.image, &image).unwrap();
    ops.upload_labels(network.labels, &(&vec![1; images]).into()).unwrap();
    ops.begin_step().unwrap();

    let mut traffic = Traffic::default();
    let passes = network.itinerary(&device).passes();
    let narrow = narrow(&passes);
    passes.iter().for_each(|pass| traffic.count(&mut ops, &network, pass, &narrow));
    traffic
}

impl Traffic {
    /// Runs a pass and adds its bytes. `again` are the tensors that are [`narrow`].
    fn count(&mut self, ops: &mut CudaOps<HostGpu>, network: &Network, pass: &Pass, again: &BTreeSet<u32>) {
        let device = CudaDevice::new(ops.context().precision);
        let arena = (ops.context().arena, ops.context().arena_bytes);
        ops.gpu().describe(arena.0, arena.1, "arena");
        let mut row = Bytes::default();
        let mut named = BTreeMap::new();
        pass.tensors(&mut |tensor, _| {
            // What a pass writes for itself it names twice, and moves twice.
            let bytes = tensor.elements * device.element_bytes(tensor.kind);
            let label = network.tensors.label(tensor).to_string();
            let at = ops.context().tensor(tensor);
            ops.gpu().describe(at, bytes, &label);
            if tensor.kind == Kind::Activation {
                row.floor += bytes as u64;
            }
            named.insert(label, (tensor.id, tensor.kind, bytes as u64));
        });
        ops.gpu().reset_counts();
        ops.run(pass).unwrap();
        // Masks wait for those that follow; here each pass is counted alone.
        if masks::waits(pass) {
            masks::draw_waiting(ops.context()).unwrap();
        }
        for count in ops.gpu().counts() {
            let bytes = count.loaded + count.stored;
            assert_ne!(count.label, "arena", "{}: a tensor that it does not name", pass.name());
            match named.get(&count.label) {
                Some((id, Kind::Activation, once)) => {
                    row.activations += bytes;
                    if again.contains(id) {
                        self.narrow.0 += once;
                        self.narrow.1 += bytes;
                    }
                }
                Some(_) => row.small += bytes,
                None if count.label == "workspace" => row.workspace += bytes,
                None => row.state += bytes,
            }
        }
        *self.passes.entry(pass.name()).or_default() += row;
    }
}

/// Bytes of an image's step in plan A with the expand backward of wide layers in blocks apart (data, weights), each of
/// which reads the wide gradient and the wide output: 89.7 MB and 3.6 MB.
const PLAN: f64 = 93.3e6;

/// The expanded tensors of B0's first three expansions, of an image in a half type; and the narrow tensors that they are of.
const EXPANDED: f64 = 2.0 * (96.0 * 112.0 * 112.0 + 2.0 * 144.0 * 56.0 * 56.0);
const NARROW: f64 = 2.0 * (16.0 * 112.0 * 112.0 + 2.0 * 24.0 * 56.0 * 56.0);

#[test]
#[ignore = "needs the harness's race build"]
fn step_moves_the_planned_bytes() {
    expect(CudaDevice::new(Precision::Fp16), PLAN, 2.2);
}

/// Where the first three expanded tensors are computed again, none of them is written or read, four times in all; instead the
/// depthwise passes read the narrow tensors, once for each slice of 32 of the 96 and 144 channels:
/// (3 · 0.40 + 2 · 5 · 0.15) MB a pass more, half of the 11.3 MB of narrow tensors.
#[test]
#[ignore = "needs the harness's race build"]
fn step_that_recomputes_moves_the_planned_bytes() {
    expect(CudaDevice::recomputing(Precision::Fp16), PLAN - 4.0 * EXPANDED + 2.0 * NARROW, 2.6);
}

/// `most`: how often narrow tensors are touched.
fn expect(device: CudaDevice, plan: f64, most: f64) {
    let images = 2;
    let traffic = count(images, 224, device);
    let mut sum = Bytes::default();
    let per_image = |bytes: u64| bytes as f64 / images as f64;
    let line = |name: &str, row: &Bytes| {
        let columns = [row.floor, row.activations, row.small, row.workspace, row.state];
        let [floor, activations, small, workspace, state] = columns.map(|bytes| per_image(bytes) / 1e6);
        println!("| {name} | {floor:.2} | {activations:.2} | {small:.2} | {workspace:.2} | {state:.2} |");
    };
    println!(
        "| MB an image | floor | activations | small | workspace | state |\n|---|---:|---:|---:|---:|---:|"
    );
    for (name, row) in &traffic.passes {
        line(name, row);
        sum += *row;
    }
    line("all", &sum);
    let (once, counted) = traffic.narrow;
    let moved = per_image(sum.activations - (counted - once));
    let (narrow, again) = (per_image(once) / 1e6, counted as f64 / once as f64);
    println!("\nNarrow tensors are {narrow:.1} MB of it and touched {again:.2} times; with these");
    println!("counted once, an image moves {:.1} MB.", moved / 1e6);
    assert!((0.95..1.15).contains(&(moved / plan)), "{moved} bytes an image, planned {plan}");
    assert!(again < most, "narrow tensors are touched {again:.2} times");
}
