//! The stem: bytes to floats, the convolution, its weight gradient, at B0's and B4's shapes.
//!
//! `cargo bench --bench stem`. Throughput is in GB/s of the tensors that the pass must touch; the number of
//! operations is printed for GFLOP/s.

mod gpu;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group};
use effnet::model::{Padding, Window};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

/// (name, resolution, batch, channels).
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("b0-32", 32, 128, 32), ("b0-224", 224, 16, 32), ("b4-380", 380, 2, 48)];

fn stem(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, resolution, images, channels) in SHAPES {
        let window = Window::new(3, 2, resolution, Padding::Symmetric);
        let (pixels, rows) = (images * window.input_pixels() * 3, images * window.output_pixels());
        let mut tensors = Tensors::default();
        let mut tensor = |elements| tensors.new_tensor("", elements, Kind::Activation);
        let (image, y, du) = (tensor(pixels), tensor(rows * channels), tensor(rows * channels));
        let param = |at: usize| Param { offset: (27 + at) * channels, elements: channels };
        let bn = BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: param(0),
            bias: param(1),
            running_mean: param(2),
            running_var: param(3),
            momentum: 0.1,
            eps: 1e-5,
            statistics: Statistics::Batch,
            coefficients: tensor(4 * channels),
            sums: tensor(2 * channels),
        };
        let weight = Param { offset: 0, elements: 27 * channels };
        let forward = StemForward { images, window, channels, image, weight, y, bn };
        let backward = StemBackward { images, window, channels, image, weight, y, bn, du };
        let device = CpuDevice { threads };
        let mut recorder = Recorder::new(&device);
        recorder.stem_forward(&forward).unwrap();
        recorder.stem_backward(&backward).unwrap();
        let plan = recorder.plan(&tensors, &[y]);
        let mut ops = CpuOps::new(31 * channels, 31 * channels, &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        let bytes: Vec<u8> = (0..pixels).map(|i| (i * 37 % 251) as u8).collect();
        ops.upload(du, &vec![0.5; du.elements]).unwrap();

        let mut group = criterion.benchmark_group(format!("stem {name} batch {images}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        println!("{name}: {} operations a pass", 2 * 27 * rows * channels);
        group.throughput(Throughput::Bytes(5 * pixels as u64));
        group.bench_function("prepare", |b| {
            b.iter(|| ops.upload_pixels(image, &bytes, [0.5; 3], [0.25; 3]).unwrap())
        });
        group.throughput(Throughput::Bytes(4 * (pixels + y.elements) as u64));
        group.bench_function("forward", |b| b.iter(|| ops.stem_forward(&forward).unwrap()));
        group.throughput(Throughput::Bytes(4 * (pixels + 2 * y.elements) as u64));
        group.bench_function("backward", |b| b.iter(|| ops.stem_backward(&backward).unwrap()));
        group.finish();
    }
}

criterion_group!(benches, stem);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::StemForward(_) | Pass::StemBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
