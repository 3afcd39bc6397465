//! Depthwise convolution, forward and backward, over the layers of B0 at 32×32 and 224×224 and of B4.
//!
//! `cargo bench --bench depthwise`. Each case is reported in GB/s (every tensor the pass must touch, once) and,
//! printed beside it, GFLOP/s (products that meet the map, two operations each).

mod gpu;

use criterion::{Criterion, Throughput, criterion_group};
use effnet::model::{Architecture, BatchNormConfig, Padding, Variant, Window};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

/// (variant, resolution, batch).
const NETWORKS: [(Variant, usize, usize); 3] =
    [(Variant::B0, 32, 128), (Variant::B0, 224, 16), (Variant::B4, 380, 2)];

/// One layer's passes on tensors of their own.
struct Layer {
    ops: CpuOps,
    forward: DepthwiseForward,
    backward: DepthwiseBackward,
}

fn batch_norm(tensors: &mut Tensors, parameters: &mut usize, channels: usize, rows: usize) -> BatchNorm {
    let mut param = || {
        *parameters += channels;
        Param { offset: *parameters - channels, elements: channels }
    };
    BatchNorm {
        channels,
        ranks: 1,
        rows,
        weight: param(),
        bias: param(),
        running_mean: param(),
        running_var: param(),
        momentum: 0.1,
        eps: 1e-5,
        statistics: Statistics::Batch,
        coefficients: tensors.new_tensor("coefficients", 4 * channels, Kind::Float),
        sums: tensors.new_tensor("sums", 2 * channels, Kind::Float),
    }
}

impl Layer {
    fn new(images: usize, channels: usize, window: Window, threads: usize) -> Layer {
        let (mut tensors, mut parameters) = (Tensors::default(), 0);
        let inputs = images * window.input_pixels() * channels;
        let outputs = images * window.output_pixels() * channels;
        let input_bn = batch_norm(&mut tensors, &mut parameters, channels, inputs / channels);
        let bn = batch_norm(&mut tensors, &mut parameters, channels, outputs / channels);
        let elements = channels * window.kernel * window.kernel;
        let weight = Param { offset: parameters, elements };
        let total = parameters + elements;
        let mut tensor = |elements| tensors.new_tensor("", elements, Kind::Activation);
        let (x, dx, y, da) = (tensor(inputs), tensor(inputs), tensor(outputs), tensor(outputs));
        let (gate, squeeze_gradient) = (tensor(images * channels), tensor(images * channels));
        let forward =
            DepthwiseForward { images, window, channels, x, input_bn: Some(input_bn), weight, y, bn };
        let input = DepthwiseInput::Normalised(input_bn);
        let backward = DepthwiseBackward {
            images,
            window,
            channels,
            x,
            input,
            weight,
            y,
            bn,
            da,
            gate,
            squeeze_gradient,
            dx,
        };
        let device = CpuDevice { threads };
        let mut recorder = Recorder::new(&device);
        recorder.depthwise_forward(&forward).unwrap();
        recorder.depthwise_backward(&backward).unwrap();
        let plan = recorder.plan(&tensors, &[y, dx]);
        let mut ops = CpuOps::new(total, total, &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        let numbers = |count: usize| -> Vec<f32> {
            (0..count).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
        };
        ops.write_state(Buffer::Parameters, &numbers(total)).unwrap();
        for tensor in [x, da, gate, squeeze_gradient, input_bn.coefficients, bn.sums] {
            ops.upload(tensor, &numbers(tensor.elements)).unwrap();
        }
        Layer { ops, forward, backward }
    }
}

/// Pairs of tap and output, in one direction, that meet the map.
fn meetings(window: &Window) -> usize {
    let Window { kernel, stride, input, output, pad } = *window;
    let pairs = (0..output).flat_map(|o| (0..kernel).map(move |k| o * stride + k));
    pairs.filter(|at| (pad..pad + input).contains(at)).count()
}

fn layers(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (variant, resolution, images) in NETWORKS {
        let net =
            Architecture::new(variant, 1000, resolution, Padding::Symmetric, BatchNormConfig::default());
        let mut seen = Vec::new();
        for block in net.unwrap().blocks {
            let (window, channels) = (block.window, block.expanded);
            if seen.contains(&(window, channels)) {
                continue;
            }
            seen.push((window, channels));
            let mut layer = Layer::new(images, channels, window, threads);
            let Window { kernel, stride, input, .. } = window;
            let name = format!(
                "{variant}-{resolution} batch {images}/{input}x{input}x{channels} k{kernel} s{stride}"
            );
            let values = (images * channels * (window.input_pixels() + window.output_pixels())) as u64;
            let operations = 2 * (images * channels * meetings(&window).pow(2)) as u64;
            let mut group = criterion.benchmark_group("depthwise");
            group.sample_size(10).warm_up_time(std::time::Duration::from_millis(200));
            group.measurement_time(std::time::Duration::from_millis(800));
            println!("{name}: {operations} operations forward, {} backward", 2 * operations);
            group.throughput(Throughput::Bytes(4 * values));
            let pass = layer.forward;
            group.bench_function(format!("forward {name}"), |b| {
                b.iter(|| layer.ops.depthwise_forward(&pass).unwrap())
            });
            group.throughput(Throughput::Bytes(8 * values));
            let pass = layer.backward;
            group.bench_function(format!("backward {name}"), |b| {
                b.iter(|| layer.ops.depthwise_backward(&pass).unwrap())
            });
            group.finish();
        }
    }
}

criterion_group!(benches, layers);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::DepthwiseForward(_) | Pass::DepthwiseBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
