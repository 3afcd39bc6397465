//! Frozen state keeps its bits, and the rest moves as it does alone, wherever the border lies.

use super::*;

/// Borders at vectors and chunks and beside them, of parameters and of running statistics. None leaves nothing to train.
fn borders(trainable: usize, total: usize) -> impl Iterator<Item = Frozen> {
    let parameters = [0, 1, 6, 8, 2047, 2048, 2049, 4100, 16_384, 16_385, 70_000];
    let statistics = [0, total - trainable, 1.min(total - trainable)];
    let parameters = parameters.into_iter().filter(move |border| *border < trainable);
    let statistics = statistics.into_iter().cycle().skip(1);
    parameters.zip(statistics).map(|(parameters, statistics)| Frozen { parameters, statistics })
}

/// `got` is state with a frozen beginning, `free` the same with none.
fn expect_frozen(what: &str, frozen: Frozen, trainable: usize, [got, free, before]: [&[Vec<f32>; 5]; 3]) {
    for (((buffer, got), free), before) in BUFFERS.into_iter().zip(got).zip(free).zip(before) {
        if buffer == Buffer::Gradients {
            continue;
        }
        for at in 0..got.len() {
            let is_frozen =
                at < frozen.parameters || (trainable..trainable + frozen.statistics).contains(&at);
            let expected = if is_frozen { before[at] } else { free[at] };
            let name = if is_frozen { "frozen" } else { "free" };
            assert_eq!(got[at].to_bits(), expected.to_bits(), "{what}: {name} element {at} of {buffer:?}");
        }
    }
}

/// Frozen elements have gradients too, and a decay: an update must not look at them.
fn frozen_state_keeps_its_bits<O: Ops>(
    lengths: &[(usize, usize)],
    mut device: impl FnMut(usize, usize) -> O,
) {
    for &(trainable, total) in lengths {
        for rule in rules() {
            for (weight_decay, ema) in [(BY_PARAMETER, true), (DECAY, false)] {
                let free = Update { rule, weight_decay, clip_norm: None, ema, frozen: Frozen::NOTHING };
                let mut run = |update: &Update| {
                    let mut ops = device(trainable, total);
                    three_steps(&mut ops, update, trainable, total);
                    state(&mut ops, trainable, total)
                };
                let moved = run(&free);
                // All frozen: the state as it was written.
                let nothing = Frozen { parameters: trainable, statistics: total - trainable };
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &Update { frozen: nothing, ..free }, trainable, total);
                let before = state(&mut reference, trainable, total);
                for frozen in borders(trainable, total) {
                    let update = Update { frozen, ..free };
                    let got = run(&update);
                    let what = format!("{update:?} over {trainable} of {total}");
                    expect_frozen(&what, frozen, trainable, [&got, &moved, &before]);
                    // The oracle's own border, where it is quick.
                    if trainable < 10_000 {
                        let mut reference = Reference::new(trainable, total);
                        three_steps(&mut reference, &update, trainable, total);
                        expect_close(&what, &got, &mut reference);
                    }
                }
            }
        }
    }
}

#[test]
fn frozen_state_keeps_its_bits_on_the_cpu() {
    let device =
        |trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap();
    frozen_state_keeps_its_bits(&[(7, 9), (5001, 5601), (70_001, 70_501)], device);
}

fn frozen_state_keeps_its_bits_in_kernels<G: TestGpu>() {
    let device = |trainable, total| cuda::<G>(Precision::Fp32, trainable, total, G::WAYS[0]);
    frozen_state_keeps_its_bits(&[(7, 9), (5001, 5601)], device);
}
on_cuda!(frozen_state_keeps_its_bits_in_kernels);

/// The norm is that of the gradients that are not frozen: those of the others are 0.
fn norm_of_the_rest_clips<O: Ops>(mut device: impl FnMut(usize, usize) -> O) {
    let (trainable, total) = (5001, 5601);
    for parameters in [8, 2049, 4100] {
        let mut gradients = gradient(2, trainable);
        gradients[..parameters].fill(0.0);
        let expected = norm(&doubles(&gradients));
        let frozen = Frozen { parameters, statistics: 3 };
        let update =
            Update { rule: rules()[0], weight_decay: DECAY, clip_norm: Some(0.1), ema: true, frozen };
        let mut ops = device(trainable, total);
        ops.set_step(params(0)).unwrap();
        ops.begin_step().unwrap();
        ops.write_state(Buffer::Gradients, &gradients).unwrap();
        ops.run(&update.into()).unwrap();
        ops.end_step().unwrap();
        let found = ops.take_figures(true).unwrap().expect("a step has ended").gradient_norm;
        let found = f64::from(found.expect("a norm"));
        assert!((found / expected - 1.0).abs() <= 2.0 * UNIT, "{parameters}: norm {found}, not {expected}");
    }
}

#[test]
fn norm_of_the_rest_clips_on_the_cpu() {
    norm_of_the_rest_clips(|trainable, total| {
        CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap()
    });
}

fn norm_of_the_rest_clips_in_kernels<G: TestGpu>() {
    norm_of_the_rest_clips(|trainable, total| cuda::<G>(Precision::Fp32, trainable, total, G::WAYS[0]));
}
on_cuda!(norm_of_the_rest_clips_in_kernels);
