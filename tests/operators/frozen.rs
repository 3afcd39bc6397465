//! Backward passes of batch norms that keep their running statistics in training: dy = γ·r·du, and the gradients of β and γ
//! as always. And backward passes of a first trained layer, which make no gradient at its input.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices, on_every_device};
use crate::common::host_gpu::HostGpu;
use crate::{depthwise, expand, expand_depthwise, head, project, stem};
use effnet::ops::cuda::Precision;
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

/// The case without a gradient at the layer's input; none if its pass cannot be the last one.
fn first_trained(mut case: Case) -> Option<Case> {
    match &mut case.pass {
        Pass::HeadBackward(p) => p.du = None,
        Pass::ExpandBackward(p) => p.narrow = None,
        Pass::DepthwiseBackward(p) => match &mut p.input {
            DepthwiseInput::Normalised { du, .. } => *du = None,
            DepthwiseInput::Identity(_) => return None,
        },
        _ => return None,
    }
    case.fixture.name += " as the last pass";
    Some(case)
}

/// Beside the cases above, all widths of the family.
fn last_passes() -> impl Iterator<Item = Case> {
    // Of each shape one case: what the four differ in is not there.
    let expand = expand::backward_cases().into_iter().step_by(4).chain(expand::every_tile());
    let head = head::backward_cases(&[(2, 4, 24, 3), (3, 9, 40, 7), (4, 49, 112, 100)]);
    expand.chain(head).chain(depthwises(true)).filter_map(first_trained)
}

/// Depthwise convolutions of a network's `first` window, or of the others.
fn depthwises(first: bool) -> impl Iterator<Item = Case> {
    let cases = depthwise::backward_cases(&DEPTHWISE, &depthwise::INPUTS[..1]);
    cases.into_iter().filter(move |case| match &case.pass {
        Pass::DepthwiseBackward(p) => first == ((p.window.kernel, p.window.stride) == (3, 1)),
        _ => false,
    })
}

/// On the CPU any window can be the last; the kernels of the others refuse, because no network has them there.
#[test]
fn last_pass_of_other_windows_agrees_with_the_oracle_or_is_refused() {
    check_on_cpu(depthwises(false).filter_map(first_trained));
    let refused = depthwises(false).filter_map(first_trained).all(|Case { fixture, pass, .. }| {
        let said = fixture.check_cuda_in::<HostGpu>(Precision::Fp32, pass, 1.0);
        said.len() == 1 && said[0].contains("its kernel makes the gradient at its input")
    });
    assert!(refused);
}
on_every_device!(last_pass_agrees_with_the_oracle, last_passes());

/// Batch statistics and kept ones: the first trained layer may have either. The classifier alone has no batch norm.
fn last_passes_with_kept_statistics() -> impl Iterator<Item = Case> {
    last_passes().filter(|case| !matches!(case.pass, Pass::HeadBackward(_))).step_by(3).map(kept)
}
on_every_device!(last_pass_with_kept_statistics_agrees_with_the_oracle, last_passes_with_kept_statistics());

fn recomputed() -> impl Iterator<Item = Case> {
    expand_depthwise::backward_cases().into_iter().step_by(2).map(kept)
}
on_cuda_devices!(backward_of_a_recomputed_tensor_agrees_with_the_oracle, recomputed());

/// The two sums have no influence on dy: a pass that is given others gives the same bits.
#[test]
fn sums_are_not_passed_back() {
    let mut f = Fixture::new("other sums");
    let pass = expand::backward(&mut f, [2, 9, 8, 24], true, true);
    let narrow = pass.narrow.expect("a gradient at the input");
    let other = f.input_noise("other sums", pass.bn.sums.elements, -50.0, 50.0);
    let dx = |statistics| {
        [pass.bn.sums, other].map(|sums| {
            let bn = BatchNorm { sums, statistics, ..pass.bn };
            f.output_on_cpu(ExpandBackward { bn, ..pass }.into(), narrow.dx)
        })
    };
    let [own, others] = dx(Statistics::Running);
    assert_eq!(own, others);
    let [own, others] = dx(Statistics::Batch);
    assert_ne!(own, others);
}
