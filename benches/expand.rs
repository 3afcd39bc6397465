//! The pointwise passes `expand`, forward and backward, for each layer shape: GFLOP/s (criterion prints Gelem/s; a
//! multiply-add is two) and GB/s of the tensors that the pass names, on all cores.
//!
//! `cargo bench --bench expand -- 'B0 224'` measures one network's layers.

mod gpu;
mod pointwise;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use effnet::model::Block;
use effnet::ops::Pass;
use effnet::ops::{ExpandBackward, ExpandForward, Ops, PreviousBlock};
use pointwise::{Case, Layer, NETWORKS, Setup, layers};
use std::time::Duration;

fn expand_layer(block: &Block) -> Option<Layer> {
    let pixels = block.window.input_pixels();
    block.expands.then_some(Layer { images: 0, pixels, wide: block.expanded, narrow: block.input })
}

fn expand_forward(layer: Layer) -> Case {
    let mut s = Setup::default();
    let (rows, inputs, outputs) = (layer.rows(), layer.narrow, layer.wide);
    let pass = ExpandForward {
        rows,
        inputs,
        outputs,
        x: s.tensor(rows * inputs),
        weight: s.param(outputs * inputs),
        y: s.tensor(rows * outputs),
        bn: s.batch_norm(rows, outputs),
    };
    let run = move |ops: &mut dyn Ops| ops.expand_forward(&pass).expect("runs");
    Case::new("expand forward", layer, s, run, 1, layer.bytes(1, 1))
}

fn expand_backward(layer: Layer) -> Case {
    let mut s = Setup::default();
    let (rows, inputs, outputs) = (layer.rows(), layer.narrow, layer.wide);
    let pass = ExpandBackward {
        rows,
        inputs,
        outputs,
        x: s.tensor(rows * inputs),
        weight: s.param(outputs * inputs),
        y: s.tensor(rows * outputs),
        bn: s.batch_norm(rows, outputs),
        du: s.tensor(rows * outputs),
        dx: s.tensor(rows * inputs),
        shortcut: Some(s.tensor(rows * inputs)),
        previous: PreviousBlock {
            y: s.tensor(rows * inputs),
            bn: s.batch_norm(rows, inputs),
            keep: Some(s.tensor(layer.images)),
            pixels: layer.pixels,
        },
    };
    let run = move |ops: &mut dyn Ops| ops.expand_backward(&pass).expect("runs");
    Case::new("expand backward", layer, s, run, 2, layer.bytes(2, 4))
}

fn expand(criterion: &mut Criterion) {
    for (variant, resolution, images) in NETWORKS {
        let mut group = criterion.benchmark_group(format!("{variant} {resolution}"));
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
        for layer in layers((variant, resolution, images), expand_layer) {
            for make in [expand_forward, expand_backward] {
                let mut case = make(layer);
                group.throughput(Throughput::ElementsAndBytes {
                    elements: case.operations,
                    bytes: case.bytes,
                });
                let id = BenchmarkId::from_parameter(&case.name);
                group.bench_function(id, |b| b.iter(|| (case.run)(&mut case.ops)));
            }
        }
    }
}

criterion_group!(benches, expand);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::ExpandForward(_) | Pass::ExpandBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
