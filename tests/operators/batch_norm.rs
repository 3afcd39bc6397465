//! Batch norm in inference: coefficients from the running statistics. In training, batch norm is a part of each
//! convolution's pass and is tested there. Here are also the tests of how a GPU merges the partial results of its blocks.

use crate::common::buffers;
use crate::common::fixture::cases::{Case, check_on_cpu, on_every_device};
use crate::common::fixture::{Fixture, UNIT, equal_bits, tolerance};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use effnet::ops::cuda::batch_norm::{finish_statistics, merge, statistics_bytes};
use effnet::ops::cuda::reduction::{Partials, finish_gradients};
use effnet::ops::cuda::{Address, CudaDevice, CudaOps, Precision, step};
use effnet::ops::*;

fn inference_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for channels in [8, 24, 40, 112, 1152, 1280] {
        for weights in [Weights::Raw, Weights::Ema] {
            for eps in [1e-5, 1e-3] {
                let mut f = Fixture::new(format!("batch norm of {channels}, {weights:?}, eps {eps}"));
                f.weights = weights;
                let mut bn = f.norm("bn", channels, 10);
                bn.statistics = Statistics::Running;
                bn.eps = eps;
                // A variance near eps, so that a wrong eps shows.
                bn.running_var = f.param("small variance", channels, 0.0, 4.0 * eps as f64);
                cases.push(Case::new(f, BatchNormInference { bn }.into(), 1));
            }
        }
    }
    cases
}
on_every_device!(inference_coefficients_agree_with_the_oracle, inference_cases());

/// The mean is ten thousand deviations: in fp32 the difference of E[y²] and E[y]² has no digit left; the same holds for a merge that
/// drops the tasks' own shifts. The weights are the identity, so y is x.
#[test]
fn statistics_survive_a_mean_of_ten_thousand_deviations() {
    let mut f = Fixture::new("batch norm of a huge mean");
    let (rows, channels) = (3000, 40);
    let identity = |at: usize| if at / channels == at % channels { 1.0 } else { 0.0 };
    let pass = ExpandForward {
        rows,
        inputs: channels,
        outputs: channels,
        x: f.input_noise("x", rows * channels, 1e4 - 1.7, 1e4 + 1.7),
        weight: f.param_of("identity", (0..channels * channels).map(identity).collect()),
        y: f.output("y", rows * channels),
        bn: f.norm("bn", channels, rows),
    };
    check_on_cpu([Case::new(f, Pass::ExpandForward(pass), rows)]);
}

/// A device with one batch norm of `channels` channels and nothing else.
fn alone<G: TestGpu>(channels: usize, rows: usize, way: G::Way) -> (CudaOps<G>, BatchNorm) {
    let mut f = Fixture::new("alone");
    let bn = f.norm("bn", channels, rows);
    let device = CudaDevice::new(Precision::Fp32);
    // No pass writes both tensors of a batch norm; the plan only has to give each a place.
    let passes = [bn.coefficients, bn.sums]
        .map(|coefficients| BatchNormInference { bn: BatchNorm { coefficients, ..bn } }.into());
    let plan = Plan::new(&device, &passes, &f.tensors, &[bn.coefficients, bn.sums]);
    let mut ops = engine::<G>(way, 2 * channels, 4 * channels, &[&plan], Precision::Fp32).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &Formula::of("parameters").values(4 * channels, 0.5, 1.5)).unwrap();
    (ops, bn)
}

fn on_device<G: TestGpu>(ops: &mut CudaOps<G>, values: &[f32]) -> Address {
    buffers::on_device(ops, bytemuck::cast_slice(values))
}

fn read<G: TestGpu>(ops: &mut CudaOps<G>, buffer: Buffer, elements: usize) -> Vec<f32> {
    buffers::state(ops, buffer, elements).unwrap()
}

/// Partial results as a pass writes them: counts [parts] and moments [parts, 2, C]. Parts without rows hold NaN.
fn moments(parts: usize, channels: usize, offset: f64) -> (Vec<f32>, Vec<f32>) {
    let noise = |what: &str, low, high| Formula::of(what).values(parts * channels, low, high);
    let count = |part: usize| if part % 5 == 3 { 0.0 } else { (1 + part * 7 % 100) as f32 };
    let counts: Vec<f32> = (0..parts).map(count).collect();
    let (means, spreads) = (noise("means", offset - 1.0, offset + 1.0), noise("spreads", 0.0, 2.0));
    let mut moments = Vec::new();
    for (part, &count) in counts.iter().enumerate() {
        let own = part * channels..(part + 1) * channels;
        let held = |v: &f32| if count == 0.0 { f32::NAN } else { *v };
        moments.extend(means[own.clone()].iter().map(held));
        moments.extend(spreads[own].iter().map(|v| held(&(v * (count - 1.0).max(0.0)))));
    }
    (counts, moments)
}

/// Mean and Σ(y − mean)² of one channel over all parts, in f64.
fn merged(counts: &[f32], moments: &[f32], channels: usize, channel: usize) -> (f64, f64) {
    let parts = || {
        let rows = moments.chunks_exact(2 * channels).zip(counts).filter(|(_, count)| **count > 0.0);
        rows.map(|(row, n)| (*n as f64, row[channel] as f64, row[channels + channel] as f64))
    };
    let mean = parts().map(|(n, mean, _)| n * mean).sum::<f64>() / parts().map(|(n, ..)| n).sum::<f64>();
    (mean, parts().map(|(n, own, spread)| spread + n * (own - mean) * (own - mean)).sum())
}

const PARTS: [usize; 6] = [1, 3, 64, 65, 200, 1000];

/// Coefficients and running statistics from the parts of a pass. A thread merges 16 parts of 1000 in fp32, about
/// the first of them; the rest is f64. Means are compared in deviations.
fn statistics_of_parts_are_those_of_all_rows<G: TestGpu>() {
    let bound = tolerance(16);
    for (parts, channels) in PARTS.into_iter().flat_map(|parts| [(parts, 8), (parts, 40)]) {
        for offset in [0.0, 1000.0] {
            let what = format!("{parts} parts of {channels} channels about {offset}");
            let (counts, moments) = moments(parts, channels, offset);
            let rows = counts.iter().sum::<f32>() as usize;
            let (mut ops, bn) = alone::<G>(channels, rows, G::WAYS[0]);
            let before = read(&mut ops, Buffer::Parameters, 4 * channels);
            let [counts_at, moments_at] = [&counts, &moments].map(|values| on_device(&mut ops, values));
            finish_statistics(ops.context(), &bn, counts_at, moments_at, parts).unwrap();
            let got = buffers::values(&mut ops, bn.coefficients).unwrap();
            let after = read(&mut ops, Buffer::Parameters, 4 * channels);
            assert!(equal_bits(&after[..2 * channels], &before[..2 * channels]), "{what}: γ or β changed");
            for c in 0..channels {
                let (mean, spread) = merged(&counts, &moments, channels, c);
                let variance = spread / rows as f64;
                let deviation = (variance + 1e-3).sqrt();
                let (gamma, beta) = (before[c] as f64, before[channels + c] as f64);
                let scale = gamma / deviation;
                let running = |row: usize, now: f64| 0.9 * before[row * channels + c] as f64 + 0.1 * now;
                let unbiased = spread / (rows as f64 - 1.0).max(1.0);
                // The rounding of the offset is added to that of the deviation.
                let near = deviation + mean.abs();
                for (name, got, expected, size) in [
                    ("mean", got[c], mean, near),
                    ("r", got[channels + c], 1.0 / deviation, 1.0 / deviation),
                    ("scale", got[2 * channels + c], scale, scale.abs()),
                    ("shift", got[3 * channels + c], beta - mean * scale, beta.abs() + near * scale.abs()),
                    ("running mean", after[2 * channels + c], running(2, mean), near),
                    ("running variance", after[3 * channels + c], running(3, unbiased), running(3, unbiased)),
                ] {
                    let error = (got as f64 - expected).abs();
                    assert!(error <= bound * size, "{what}: {name} {got}, not {expected}");
                }
            }
        }
    }
}
on_cuda!(statistics_of_parts_are_those_of_all_rows);

/// With several ranks, each merges the parts of its pass into one, which is stored behind them; the parts of the other
/// ranks are gathered after it.
fn parts_of_a_rank_become_one<G: TestGpu>() {
    let bound = tolerance(16);
    for (parts, channels) in PARTS.into_iter().flat_map(|parts| [(parts, 8), (parts, 40)]) {
        for (offset, ranks) in [(0.0, 2), (1000.0, 700)] {
            let what = format!("{parts} parts of {channels} channels about {offset}, {ranks} ranks");
            let (counts, moments) = moments(parts, channels, offset);
            let rows = counts.iter().sum::<f32>() as usize;
            let run = |way| {
                let (mut ops, bn) = alone::<G>(channels, rows, way);
                let bn = BatchNorm { ranks, ..bn };
                let [counts, moments] = [&counts, &moments].map(|values| {
                    let held = statistics_bytes(&bn, parts)[usize::from(values.len() > parts)] / 4;
                    let mut all = values.clone();
                    all.resize(held, f32::NAN);
                    on_device(&mut ops, &all)
                });
                let cx = ops.context();
                let [rank_counts, merged] = merge(cx, &bn, counts, moments, parts).unwrap();
                assert_eq!(rank_counts, counts.offset(4 * parts), "{what}");
                assert_eq!(merged, moments.offset(8 * parts * channels), "{what}");
                let mut got = vec![0.0; ranks + 2 * (1 + ranks) * channels];
                let (counts, moments) = got.split_at_mut(ranks);
                cx.gpu.read(rank_counts, bytemuck::cast_slice_mut(counts)).unwrap();
                cx.gpu.read(merged, bytemuck::cast_slice_mut(moments)).unwrap();
                got
            };
            let got = run(G::WAYS[0]);
            let (rank_counts, own) = got.split_at(ranks);
            let (own, others) = own.split_at(2 * channels);
            assert!(rank_counts.iter().all(|count| *count == rows as f32), "{what}: {rank_counts:?}");
            assert!(others.iter().all(|value| value.is_nan()), "{what}: written where others' parts come");
            for c in 0..channels {
                let (mean, spread) = merged(&counts, &moments, channels, c);
                let deviation = (spread / rows as f64).sqrt();
                for (name, got, expected, size) in [
                    ("mean", own[c], mean, deviation + mean.abs()),
                    ("spread", own[channels + c], spread, spread),
                ] {
                    let error = (got as f64 - expected).abs();
                    assert!(error <= bound * size, "{what}: {name} {got}, not {expected}");
                }
            }
            for way in G::WAYS {
                assert!(equal_bits(&run(*way), &got), "{what}: {way:?} gives other bits");
            }
        }
    }
}
on_cuda!(parts_of_a_rank_become_one);

fn finish_sums<G: TestGpu>(ops: &mut CudaOps<G>, bn: &BatchNorm, at: Address, parts: usize) {
    finish_gradients(ops.context(), Some((bn, Partials { at, parts })), None).unwrap();
}

/// Σdu and Σdu·ŷ, and with them the gradients of β and γ, to their own rounding although the terms cancel.
fn sums_of_parts_are_right_to_their_own_rounding<G: TestGpu>() {
    for (parts, channels) in PARTS.into_iter().flat_map(|parts| [(parts, 8), (parts, 40)]) {
        let what = format!("{parts} parts of {channels} channels");
        let mut partials = Formula::of(&what).values(parts * 2 * channels, -1.0, 1.0);
        for pair in partials.chunks_exact_mut(4 * channels) {
            let (one, other) = pair.split_at_mut(2 * channels);
            one.iter().zip(other).for_each(|(one, other)| *other = *other * 1e-3 - one);
        }
        let (mut ops, bn) = alone::<G>(channels, 10, G::WAYS[0]);
        let before = Formula::of("gradients").values(2 * channels, -1.0, 1.0);
        ops.write_state(Buffer::Gradients, &before).unwrap();
        let at = on_device(&mut ops, &partials);
        finish_sums(&mut ops, &bn, at, parts);
        let sums = buffers::values(&mut ops, bn.sums).unwrap();
        let after = read(&mut ops, Buffer::Gradients, 2 * channels);
        for column in 0..2 * channels {
            let terms = || partials[column..].iter().step_by(2 * channels).map(|&v| v as f64);
            let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            // γ lies first in the buffer, Σdu of β in the sums.
            let gradient = (column + channels) % (2 * channels);
            let grown = before[gradient] as f64 + sum;
            // A part of a gradient is rounded before it is added, as the parts of other ranks are: both errors count.
            for (name, got, expected, part) in
                [("sum", sums[column], sum, 0.0), ("gradient", after[gradient], grown, sum)]
            {
                let bound = UNIT * (expected.abs() + part.abs()) * 1.001 + size / (1u64 << 45) as f64;
                assert!((got as f64 - expected).abs() <= bound, "{what}: {name} {got}, not {expected}");
            }
        }
        assert!(!step::read(ops.context()).unwrap().not_finite, "{what}: the flag is raised");
        partials[parts / 2 * 2 * channels + channels] = f32::NAN;
        let at = on_device(&mut ops, &partials);
        finish_sums(&mut ops, &bn, at, parts);
        assert!(step::read(ops.context()).unwrap().not_finite, "{what}: the flag is not raised");
    }
}
on_cuda!(sums_of_parts_are_right_to_their_own_rounding);

fn statistics_and_sums_are_the_same_in_every_run<G: TestGpu>() {
    let (parts, channels) = (130, 24);
    let (counts, moments) = moments(parts, channels, 3.0);
    let rows = counts.iter().sum::<f32>() as usize;
    let partials = Formula::of("partials").values(parts * 2 * channels, -1.0, 1.0);
    let run = |way: G::Way| {
        let (mut ops, bn) = alone::<G>(channels, rows, way);
        let [counts, moments, partials] =
            [&counts, &moments, &partials].map(|values| on_device(&mut ops, values));
        finish_statistics(ops.context(), &bn, counts, moments, parts).unwrap();
        finish_sums(&mut ops, &bn, partials, parts);
        let mut all = buffers::values(&mut ops, bn.coefficients).unwrap();
        all.extend(buffers::values(&mut ops, bn.sums).unwrap());
        all.extend(read(&mut ops, Buffer::Parameters, 4 * channels));
        all.extend(read(&mut ops, Buffer::Gradients, 2 * channels));
        all
    };
    let expected = run(G::WAYS[0]);
    for way in G::WAYS {
        assert!(equal_bits(&run(*way), &expected), "{way:?} gives other bits");
    }
}
on_cuda!(statistics_and_sums_are_the_same_in_every_run);
