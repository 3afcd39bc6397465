//! Squeeze-excite, forward and backward: each shape of the networks, then all layers in turn.

mod common;
mod gpu;

use common::{Setup, cases, group, measure};
use criterion::{Criterion, criterion_group};
use effnet::model::Block;
use effnet::ops::Pass;
use effnet::ops::{Ops, SqueezeBackward, SqueezeForward};

fn layer(s: &mut Setup, images: usize, block: &Block) -> (SqueezeForward, SqueezeBackward) {
    let (pixels, channels, width) = (block.window.output_pixels(), block.expanded, block.squeeze);
    let bn = s.batch_norm(channels, images * pixels);
    let (reduce, expand) = (s.dense(channels, width), s.dense(width, channels));
    let y = s.tensor(images * pixels * channels);
    let (squeezed, hidden) = (s.tensor(images * channels), s.tensor(images * width));
    let (gate, five_sums) = (s.tensor(images * channels), s.tensor(5 * images * channels));
    let squeeze_gradient = s.tensor(images * channels);
    (
        SqueezeForward { images, pixels, channels, y, bn, squeezed, reduce, hidden, expand, gate },
        SqueezeBackward {
            images,
            pixels,
            channels,
            bn,
            squeezed,
            reduce,
            hidden,
            expand,
            gate,
            five_sums,
            squeeze_gradient,
        },
    )
}

fn squeeze_excite(c: &mut Criterion) {
    for case in cases() {
        let mut forward = group(c, &format!("squeeze forward, {}", case.name));
        let mut seen = Vec::new();
        for block in &case.net.blocks {
            let shape = format!("{}² x {}", block.window.output, block.expanded);
            if !seen.contains(&shape) {
                let mut s = Setup::default();
                let (pass, _) = layer(&mut s, case.images, block);
                measure(&mut forward, &shape, &s, |ops: &mut dyn Ops| ops.squeeze_forward(&pass));
                seen.push(shape);
            }
        }
        let mut s = Setup::default();
        let layers: Vec<_> = case.net.blocks.iter().map(|b| layer(&mut s, case.images, b)).collect();
        measure(&mut forward, "all layers", &s, |ops: &mut dyn Ops| {
            layers.iter().try_for_each(|(pass, _)| ops.squeeze_forward(pass))
        });
        forward.finish();
        let mut backward = group(c, &format!("squeeze backward, {}", case.name));
        measure(&mut backward, "all layers", &s, |ops: &mut dyn Ops| {
            layers.iter().rev().try_for_each(|(_, pass)| ops.squeeze_backward(pass))
        });
        backward.finish();
    }
}

criterion_group!(benches, squeeze_excite);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::SqueezeForward(_) | Pass::SqueezeBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
