//! The head: pooling and classifier, loss, backward, for ten and a thousand classes. Throughput counts
//! activations, not weights.

mod common;
mod gpu;

use common::{Setup, cases, group, measure};
use criterion::{Criterion, criterion_group};
use effnet::ops::Pass;
use effnet::ops::{HeadBackward, HeadForward, Loss, Ops};

fn head(c: &mut Criterion) {
    for case in cases() {
        let (images, channels) = (case.images, case.net.head_channels);
        let pixels = case.net.final_side() * case.net.final_side();
        let mut group = group(c, &format!("head, {}", case.name));
        for classes in [10, 1000] {
            let mut s = Setup::default();
            let bn = s.batch_norm(channels, images * pixels);
            let classifier = s.dense(channels, classes);
            let y = s.tensor(images * pixels * channels);
            let pooled = s.tensor(images * channels);
            let dropout = Some(s.input(vec![1.25; images * channels]));
            let (logits, dlogits) = (s.tensor(images * classes), s.tensor(images * classes));
            let labels = s.input(vec![0.0; images]);
            let losses = s.tensor(images);
            let du = s.tensor(images * pixels * channels);
            let forward =
                HeadForward { images, pixels, channels, classes, y, bn, pooled, dropout, classifier, logits };
            let (smoothing, scale) = (0.1, 1.0 / images as f32);
            let loss = Loss { images, classes, logits, labels, smoothing, scale, losses, dlogits };
            let backward = HeadBackward {
                images,
                pixels,
                channels,
                classes,
                y,
                bn,
                pooled,
                dropout,
                classifier,
                dlogits,
                du,
            };
            let name = |pass: &str| format!("{pass}, {classes} classes");
            measure(&mut group, &name("forward"), &s, |ops: &mut dyn Ops| ops.head_forward(&forward));
            measure(&mut group, &name("loss"), &s, |ops: &mut dyn Ops| ops.loss(&loss));
            measure(&mut group, &name("backward"), &s, |ops: &mut dyn Ops| ops.head_backward(&backward));
        }
        group.finish();
    }
}

criterion_group!(benches, head);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::HeadForward(_) | Pass::Loss(_) | Pass::HeadBackward(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}
