//! Residual: each shape of the networks, with factors and shortcut where the block has them, then all layers
//! in turn.

mod common;
mod gpu;

use common::{Setup, cases, group, measure};
use criterion::{Criterion, criterion_group};
use effnet::model::Block;
use effnet::ops::Pass;
use effnet::ops::{Ops, ResidualForward};

fn layer(s: &mut Setup, images: usize, block: &Block) -> ResidualForward {
    let (pixels, channels) = (block.window.output_pixels(), block.output);
    let elements = images * pixels * channels;
    ResidualForward {
        images,
        pixels,
        channels,
        y: s.tensor(elements),
        bn: s.batch_norm(channels, images * pixels),
        keep: block.residual().then(|| s.input(vec![1.25; images])),
        shortcut: block.residual().then(|| s.tensor(elements)),
        out: s.tensor(elements),
    }
}

fn residual(c: &mut Criterion) {
    for case in cases() {
        let mut group = group(c, &format!("residual forward, {}", case.name));
        let mut seen = Vec::new();
        for block in &case.net.blocks {
            let form = if block.residual() { ", shortcut" } else { "" };
            let shape = format!("{}² x {}{form}", block.window.output, block.output);
            if !seen.contains(&shape) {
                let mut s = Setup::default();
                let pass = layer(&mut s, case.images, block);
                measure(&mut group, &shape, &s, |ops: &mut dyn Ops| ops.residual_forward(&pass));
                seen.push(shape);
            }
        }
        let mut s = Setup::default();
        let layers: Vec<_> = case.net.blocks.iter().map(|b| layer(&mut s, case.images, b)).collect();
        measure(&mut group, "all layers", &s, |ops: &mut dyn Ops| {
            layers.iter().try_for_each(|pass| ops.residual_forward(pass))
        });
        group.finish();
    }
}

criterion_group!(benches, residual);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::ResidualForward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
