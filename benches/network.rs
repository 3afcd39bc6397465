//! A whole training step (masks, forward, loss, backward, update) and where its time goes.
//!
//! Not a criterion benchmark: what is wanted is a table. `cargo bench --bench network -- [RESOLUTION BATCH]`.

use std::time::Instant;

use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant, initialise};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cpu::{CpuDevice, CpuOps, simd};
use effnet::ops::{Buffer, Ops, RmsPropForm, Rule, Statistics, StepParams, Update};

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("B0 training step, {threads} threads, {}", simd::level().name());
    match numbers.as_slice() {
        [side, batch] => measure(*side, *batch, threads),
        _ => [(32, 128), (224, 16)].into_iter().for_each(|(side, batch)| measure(side, batch, threads)),
    }
}

fn measure(side: usize, images: usize, threads: usize) {
    let arch =
        Architecture::new(Variant::B0, 10, side, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let params = ParamTable::new(&arch);
    let config = NetworkConfig {
        statistics: Statistics::Batch,
        drop_path: 0.2,
        dropout: 0.2,
        label_smoothing: 0.1,
        ..NetworkConfig::inference(images)
    };
    let network = Network::new(&arch, &params, config);
    let plan = network.plan(&CpuDevice { threads });
    let mut ops = CpuOps::new(params.trainable(), params.total(), &[&plan], threads).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &initialise::initialise(&params, 1)).unwrap();
    let pixels: Vec<u8> =
        (0..images * side * side * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let labels: Vec<u32> = (0..images).map(|i| i as u32 % 10).collect();
    let rule = Rule::RmsProp { form: RmsPropForm::PyTorch, alpha: 0.9, momentum: 0.9, eps: 0.01 };
    let step = |ops: &mut CpuOps, number: u64| {
        ops.set_step(StepParams { step: number, learning_rate: 1e-4, ..StepParams::default() }).unwrap();
        ops.zero_gradients().unwrap();
        ops.upload_pixels(network.image, &pixels, [0.5; 3], [0.25; 3]).unwrap();
        ops.upload_labels(network.labels, &labels).unwrap();
        network.draw_masks(ops).unwrap();
        network.forward(ops).unwrap();
        network.loss(ops).unwrap();
        network.backward(ops).unwrap();
        ops.update(&Update { rule, weight_decay: 1e-5, ema: false }).unwrap();
    };
    step(&mut ops, 0);
    let steps = if side < 100 { 12 } else { 4 };
    let mut times = Vec::new();
    ops.start_profile().unwrap();
    for number in 1..=steps {
        let start = Instant::now();
        step(&mut ops, number);
        times.push(start.elapsed().as_secs_f64());
    }
    let mut rows = ops.take_profile().unwrap().rows;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "\n{side}x{side}, batch {images}: {:.1} ms a step, {:.0} images/s",
        median * 1e3,
        images as f64 / median
    );
    let all: f64 = times.iter().sum();
    rows.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
    for row in rows {
        let (calls, share) = (row.calls / steps, row.microseconds / 1e4 / all);
        let per_step = row.microseconds / 1e3 / steps as f64;
        println!("  {:22} {calls:4} calls {per_step:9.2} ms {share:5.1} %", row.pass);
    }
}
