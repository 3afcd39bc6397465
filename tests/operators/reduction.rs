//! The second stage of a backward pass: partial sums of a GPU's blocks, added up in a fixed order. Sums of batch norms alone
//! are tested in `batch_norm.rs`.

use crate::common::buffers;
use crate::common::fixture::{Fixture, UNIT, doubles, equal_bits};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use effnet::ops::cuda::reduction::{
    DEPTHWISE, PROJECT, Partials, WeightGradient, finish_gradients, finish_later,
};
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision, step};
use effnet::ops::*;

/// Elements of the buffer before and after the parameter.
const BESIDE: usize = 5;

/// The gradient buffer after adding `partials` [parts, elements] to it, and whether the step's flag is raised.
fn add<G: TestGpu>(partials: &[f32], before: &[f32], elements: usize, way: G::Way) -> (Vec<f32>, bool) {
    let parts = partials.len() / elements;
    let total = before.len();
    let mut ops = engine::<G>(way, total, total, &[], Precision::Fp32).unwrap();
    ops.write_state(Buffer::Gradients, before).unwrap();
    let at = buffers::on_device(&mut ops, bytemuck::cast_slice(partials));
    let cx = ops.context();
    let weight = Param { offset: BESIDE, elements };
    finish_gradients(cx, None, Some(WeightGradient { weight, partials: Partials { at, parts } })).unwrap();
    let raised = step::read(cx).unwrap().not_finite;
    (buffers::state(&mut ops, Buffer::Gradients, total).unwrap(), raised)
}

/// Shapes of every kernel: few parts, many, few elements and many. Elements come in fours.
const SHAPES: [(usize, usize); 9] =
    [(1, 4), (1, 776), (8, 300), (9, 72), (32, 36), (33, 16_400), (257, 4), (300, 100), (1000, 72)];

/// The fixed order must not lose digits: where terms cancel to a thousandth, the error is the rounding of the result plus
/// 2⁻⁴⁵ of the terms for the two-sums.
fn sums_are_right_to_their_own_rounding<G: TestGpu>() {
    for (parts, elements) in SHAPES {
        let what = format!("{parts} parts of {elements}");
        let noise = Formula::of(&what);
        let mut partials = noise.values(parts * elements, -1.0, 1.0);
        for pair in partials.chunks_exact_mut(2 * elements) {
            let (one, other) = pair.split_at_mut(elements);
            one.iter().zip(other).for_each(|(one, other)| *other = *other * 1e-3 - one);
        }
        let before = Formula::of("before").values(elements + 2 * BESIDE, -1e-3, 1e-3);
        let (after, raised) = add::<G>(&partials, &before, elements, G::WAYS[0]);
        assert!(!raised, "{what}: the flag is raised");
        for (at, (got, before)) in after.iter().zip(&before).enumerate() {
            let inside = (BESIDE..BESIDE + elements).contains(&at);
            if !inside {
                assert_eq!(got.to_bits(), before.to_bits(), "{what}: a neighbour at {at} was changed");
                continue;
            }
            let terms = || partials[at - BESIDE..].iter().step_by(elements).map(|&v| v as f64);
            // The part is rounded before it is added, as the parts of other ranks are, and then the sum is rounded.
            let part = terms().sum::<f64>();
            let expected = *before as f64 + part;
            let size = terms().map(f64::abs).sum::<f64>();
            let bound = UNIT * (expected.abs() + part.abs()) * 1.001 + size / (1u64 << 45) as f64;
            let error = (*got as f64 - expected).abs();
            assert!(error <= bound, "{what}: element {at} is off by {error:e}, bound {bound:e}");
        }
    }
}
on_cuda!(sums_are_right_to_their_own_rounding);

fn bits_are_the_same_in_every_run<G: TestGpu>() {
    for (parts, elements) in SHAPES {
        let partials = Formula::of("partials").values(parts * elements, -1.0, 1.0);
        let before = vec![0.5; elements + 2 * BESIDE];
        let (expected, _) = add::<G>(&partials, &before, elements, G::WAYS[0]);
        for way in G::WAYS {
            let (got, _) = add::<G>(&partials, &before, elements, *way);
            assert!(equal_bits(&got, &expected), "{parts} parts of {elements}: {way:?} gives other bits");
        }
    }
}
on_cuda!(bits_are_the_same_in_every_run);

/// One value that is not finite raises the flag, at any place, and so does a sum that overflows.
fn value_that_is_not_finite_raises_the_flag<G: TestGpu>() {
    for (parts, elements) in SHAPES {
        let before = vec![0.0; elements + 2 * BESIDE];
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut partials = vec![1.0; parts * elements];
            partials[(parts / 2) * elements + elements / 2] = value;
            let (after, raised) = add::<G>(&partials, &before, elements, G::WAYS[0]);
            let broken = doubles(&after).iter().filter(|v| !v.is_finite()).count();
            assert!(raised && broken == 1, "{parts} parts of {elements} with {value}: {broken} not finite");
        }
        let (after, raised) =
            add::<G>(&vec![f32::MAX; parts * elements], &vec![f32::MAX; before.len()], elements, G::WAYS[0]);
        assert!(raised && !after[BESIDE].is_finite(), "{parts} parts of {elements}: no overflow");
    }
}
on_cuda!(value_that_is_not_finite_raises_the_flag);

/// Elements and parts of two weights' gradients, and channels and parts of a batch norm: fewer and more than a block has.
const TOGETHER: [[usize; 6]; 4] = [
    [72, 40, 16_400, 33, 8, 3],
    [776, 8, 100, 300, 40, 200],
    [4, 1, 36, 32, 24, 65],
    [16_400, 33, 4, 1, 1152, 9],
];

/// Sums of a batch norm and all gradients, and the launches that made them: those of one launch if `together`.
fn of_a_pass<G: TestGpu>(shape: [usize; 6], way: G::Way, together: bool) -> Vec<f32> {
    let [first, first_parts, second, second_parts, channels, norm_parts] = shape;
    let mut f = Fixture::new("together");
    let bn = f.norm("bn", channels, 10);
    let device = CudaDevice::new(Precision::Fp32);
    // No pass writes a batch norm's sums only; the plan only has to give them a place.
    let pass = BatchNormInference { bn: BatchNorm { coefficients: bn.sums, ..bn } }.into();
    let plan = Plan::new(&device, &[pass], &f.tensors, &[bn.sums]);
    let third = 36;
    let gradients = 2 * channels + first + second + third;
    let mut ops = engine::<G>(way, gradients, gradients + 2 * channels, &[&plan], Precision::Fp32).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Gradients, &Formula::of("before").values(gradients, -1.0, 1.0)).unwrap();
    let left = |ops: &mut CudaOps<G>, what: &str, elements: usize, parts: usize| {
        let values = Formula::of(what).values(elements * parts, -1.0, 1.0);
        Partials { at: buffers::on_device(ops, bytemuck::cast_slice(&values)), parts }
    };
    let norm = left(&mut ops, "norm", 2 * channels, norm_parts);
    let mut offset = 2 * channels;
    let [first, second, third] =
        [(first, first_parts, "first"), (second, second_parts, "second"), (third, 9, "third")].map(
            |(elements, parts, what)| {
                let weight = Param { offset, elements };
                offset += elements;
                WeightGradient { weight, partials: left(&mut ops, what, elements, parts) }
            },
        );
    let cx = ops.context();
    if together {
        finish_later(cx, DEPTHWISE, second);
        finish_later(cx, PROJECT, third);
        finish_gradients(cx, Some((&bn, norm)), Some(first)).unwrap();
        assert!(finish_gradients(cx, None, None).is_err(), "nothing waits any more");
    } else {
        finish_gradients(cx, None, Some(second)).unwrap();
        finish_gradients(cx, None, Some(third)).unwrap();
        finish_gradients(cx, Some((&bn, norm)), None).unwrap();
        finish_gradients(cx, None, Some(first)).unwrap();
    }
    let sums = buffers::values(&mut ops, bn.sums).unwrap();
    [sums, buffers::state(&mut ops, Buffer::Gradients, gradients).unwrap()].concat()
}

fn one_launch_finishes_all_that_a_pass_has_left<G: TestGpu>() {
    for shape in TOGETHER {
        let expected = of_a_pass::<G>(shape, G::WAYS[0], false);
        for way in G::WAYS {
            let got = of_a_pass::<G>(shape, *way, true);
            assert!(equal_bits(&got, &expected), "{shape:?}: {way:?} gives other bits");
        }
    }
}
on_cuda!(one_launch_finishes_all_that_a_pass_has_left);
