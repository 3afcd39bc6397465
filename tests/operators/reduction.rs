//! The second stage of weight gradients: partial sums of a GPU's blocks, added up in a fixed order.

use crate::common::buffers;
use crate::common::fixture::{UNIT, doubles, equal_bits};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use effnet::ops::cuda::{Precision, reduction, step};
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
    reduction::add_gradient(cx, at, parts, Param { offset: BESIDE, elements }).unwrap();
    let raised = step::read(cx).unwrap().not_finite;
    (buffers::state(&mut ops, Buffer::Gradients, total).unwrap(), raised)
}

/// Shapes of every kernel: few parts, many, few elements and many.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 777), (8, 300), (9, 72), (32, 33), (33, 16_400), (257, 1), (300, 100), (1000, 72)];

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
