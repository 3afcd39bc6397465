//! The pointwise passes `expand`, forward and backward, for each layer shape: GFLOP/s (criterion prints Gelem/s; a
//! multiply-add is two) and GB/s of the tensors that the pass names, on all cores.
//!
//! `cargo bench --bench expand -- 'B0 224'` measures one network's layers.

mod pointwise;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pointwise::{NETWORKS, expand_backward, expand_forward, expand_layer, layers};
use std::time::Duration;

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
criterion_main!(benches);
