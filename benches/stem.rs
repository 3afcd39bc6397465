//! The stem; see [`common`]. And what the CPU takes to make an image of bytes.

mod common;

use std::time::Instant;

use common::{Options, cores, median};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::{Kind, Ops, Pass, Recorder, Tensors};

fn main() {
    common::main(|pass| matches!(pass, Pass::StemForward(_) | Pass::StemBackward(_)), &[]);
    let options = Options::parse();
    for (name, side, images) in [("b0 at 32", 32, 128), ("b0 at 224", 224, 16), ("b4 at 380", 380, 2)] {
        if options.wants(name) {
            println!(
                "{name}, batch {images}: {:.1} GB/s from bytes to floats",
                prepare(&options, images, side)
            );
        }
    }
}

/// GB/s of bytes read and floats written.
fn prepare(options: &Options, images: usize, side: usize) -> f64 {
    let mut tensors = Tensors::default();
    let image = tensors.new_tensor("image", images * side * side * 3, Kind::Activation);
    let plan = Recorder::new(&CpuDevice { threads: cores() }).plan(&tensors, &[image]);
    let mut ops = CpuOps::new(0, 0, &[&plan], cores()).expect("operators");
    ops.bind(&plan).expect("a plan that fits");
    let bytes: Vec<u8> = (0..image.elements).map(|i| (i * 37 % 251) as u8).collect();
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let began = Instant::now();
        ops.upload_pixels(image, &bytes, [0.5; 3], [0.25; 3]).expect("an image of this size");
        times.push(began.elapsed().as_secs_f64());
    }
    5.0 * image.elements as f64 / median(&mut times) / 1e9
}
