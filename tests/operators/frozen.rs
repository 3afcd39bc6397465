//! Backward passes of batch norms that keep their running statistics in training: dy = γ·r·du, and the gradients of β and γ
//! as always.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, on_cuda_devices, on_every_device};
use crate::{depthwise, expand, expand_depthwise, head, project, stem};
use effnet::ops::*;

/// The case with running statistics in every batch norm. They are those of other values than the batch's: coefficients are
/// inputs of a backward pass.
fn kept(mut case: Case) -> Case {
    let mut norms = 0;
    case.pass.parts_mut(&mut |part| {
        if let Part::Norm { bn, .. } = part {
            bn.statistics = Statistics::Running;
            norms += 1;
        }
    });
    assert!(norms > 0);
    case.fixture.name += " with running statistics";
    case
}

const DEPTHWISE: [(usize, usize, usize); 3] = [(5, 3, 24), (3, 7, 40), (3, 15, 16)];

fn cases() -> impl Iterator<Item = Case> {
    let shapes = [(2, 4, 24, 3), (3, 9, 40, 7), (4, 49, 112, 100)];
    let head = head::backward_cases(&shapes);
    let stem = stem::backward_cases(&[(1, 32, 32), (3, 33, 40)]);
    let depthwise = depthwise::backward_cases(&DEPTHWISE, &depthwise::INPUTS[..2]);
    let pointwise = expand::backward_cases().into_iter().chain(project::backward_cases());
    head.into_iter().chain(stem).chain(depthwise).chain(pointwise).map(kept)
}
on_every_device!(backward_agrees_with_the_oracle, cases());

fn recomputed() -> impl Iterator<Item = Case> {
    expand_depthwise::backward_cases().into_iter().step_by(2).map(kept)
}
on_cuda_devices!(backward_of_a_recomputed_tensor_agrees_with_the_oracle, recomputed());

/// The two sums have no influence on dy: a pass that is given others gives the same bits.
#[test]
fn sums_are_not_passed_back() {
    let mut f = Fixture::new("other sums");
    let pass = expand::backward(&mut f, [2, 9, 8, 24], true, true);
    let other = f.input_noise("other sums", pass.bn.sums.elements, -50.0, 50.0);
    let dx = |statistics| {
        [pass.bn.sums, other].map(|sums| {
            let bn = BatchNorm { sums, statistics, ..pass.bn };
            f.output_on_cpu(ExpandBackward { bn, ..pass }.into(), pass.dx)
        })
    };
    let [own, others] = dx(Statistics::Running);
    assert_eq!(own, others);
    let [own, others] = dx(Statistics::Batch);
    assert_ne!(own, others);
}
