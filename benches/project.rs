//! The pointwise passes `project`, forward and backward, for each layer shape: GFLOP/s (criterion prints Gelem/s; a
//! multiply-add is two) and GB/s of the tensors that the pass names, on all cores.
//!
//! `cargo bench --bench project -- 'B0 224'` measures one network's layers.

mod gpu;
mod pointwise;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use effnet::model::Block;
use effnet::ops::Pass;
use effnet::ops::{Ops, ProjectBackward, ProjectForward};
use pointwise::{Case, Layer, NETWORKS, Setup, layers};
use std::time::Duration;

fn project_layer(block: &Block) -> Option<Layer> {
    let pixels = block.window.output_pixels();
    Some(Layer { images: 0, pixels, wide: block.expanded, narrow: block.output })
}

fn project_forward(layer: Layer) -> Case {
    let mut s = Setup::default();
    let (rows, inputs, outputs) = (layer.rows(), layer.wide, layer.narrow);
    let pass = ProjectForward {
        images: layer.images,
        pixels: layer.pixels,
        inputs,
        outputs,
        x: s.tensor(rows * inputs),
        input_bn: s.batch_norm(rows, inputs),
        gate: s.tensor(layer.images * inputs),
        weight: s.param(outputs * inputs),
        y: s.tensor(rows * outputs),
        bn: s.batch_norm(rows, outputs),
    };
    let run = move |ops: &mut dyn Ops| ops.project_forward(&pass).expect("runs");
    Case::new("project forward", layer, s, run, 1, layer.bytes(1, 1))
}

fn project_backward(layer: Layer) -> Case {
    let mut s = Setup::default();
    let (rows, inputs, outputs) = (layer.rows(), layer.wide, layer.narrow);
    let pass = ProjectBackward {
        images: layer.images,
        pixels: layer.pixels,
        inputs,
        outputs,
        x: s.tensor(rows * inputs),
        input_bn: s.batch_norm(rows, inputs),
        gate: s.tensor(layer.images * inputs),
        weight: s.param(outputs * inputs),
        y: s.tensor(rows * outputs),
        bn: s.batch_norm(rows, outputs),
        dout: s.tensor(rows * outputs),
        keep: Some(s.tensor(layer.images)),
        da: s.tensor(rows * inputs),
        five_sums: s.tensor(5 * layer.images * inputs),
    };
    let run = move |ops: &mut dyn Ops| ops.project_backward(&pass).expect("runs");
    Case::new("project backward", layer, s, run, 2, layer.bytes(2, 2))
}

fn project(criterion: &mut Criterion) {
    for (variant, resolution, images) in NETWORKS {
        let mut group = criterion.benchmark_group(format!("{variant} {resolution}"));
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
        for layer in layers((variant, resolution, images), project_layer) {
            for make in [project_forward, project_backward] {
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

criterion_group!(benches, project);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::ProjectForward(_) | Pass::ProjectBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
