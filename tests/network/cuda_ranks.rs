//! Ranks that share steps on the CUDA engine get, bit by bit, what one rank gets that accumulates as many micro-batches.
//!
//! On the harness, ranks are threads. Each has its own device and engine, and its own order of threads and transfers.

use std::sync::Arc;

use crate::common::buffers;
use crate::common::fixture::{equal_bits, relative_error};
use crate::common::gpu::TestGpu;
use crate::common::host_gpu::HostGpu;
use crate::common::ranks::ranks;
use crate::common::trial::{IMAGES, STEPS, Step, Trial};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::{Address, CudaOps, Gpu, Precision, exchange};
use effnet::ops::*;
use effnet::parallel::Group;
use effnet_kernel_host::Options;

/// An engine whose loss scale grows every two steps.
fn engine<G: TestGpu>(trial: &Trial, way: G::Way, scale: f32) -> CudaOps<G> {
    let mut ops = trial.ops::<G>(way, scale);
    ops.set_growth_interval(2);
    ops
}

/// What `work` gives on the engine of each rank, which runs kernels in its own way. Then the ranks leave.
fn on_ranks<T: Send>(
    trial: &Trial,
    ways: &[Options],
    scale: f32,
    work: impl Fn(usize, &mut CudaOps<HostGpu>) -> T + Sync,
) -> Vec<T> {
    ranks(ways.len(), |rank, group| {
        let mut ops = engine::<HostGpu>(trial, ways[rank], scale);
        ops.connect(&group).unwrap();
        let done = work(rank, &mut ops);
        group.leave().unwrap();
        done
    })
}

/// All steps on several ranks, one for each micro-batch.
fn shared(trial: &Trial, size: usize, scale: f32) -> Vec<Vec<Step>> {
    on_ranks(trial, &HostGpu::WAYS[..size], scale, |rank, ops| {
        (0..STEPS).map(|number| trial.step(ops, number, rank..rank + 1).unwrap()).collect()
    })
}

/// Asserts that all but the running statistics are equal, bit by bit.
fn same(got: &Step, expected: &Step, what: &str) {
    let Step { figures, scale, parameters, slots, .. } = got;
    assert_eq!(figures.loss.to_bits(), expected.figures.loss.to_bits(), "{what}: the loss");
    assert_eq!((figures, scale), (&expected.figures, &expected.scale), "{what}");
    for (name, one, other) in [
        ("parameters", parameters, &expected.parameters),
        ("mean square", &slots[0], &expected.slots[0]),
        ("momentum", &slots[1], &expected.slots[1]),
    ] {
        let different = one.iter().zip(other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{what}: {name} of {}", one.len());
    }
}

/// Returns how many steps were skipped.
fn ranks_give_what_accumulation_gives(precision: Precision, size: usize, scale: f32) -> u32 {
    let trial = Trial::small(precision, size);
    let mut ops = engine::<HostGpu>(&trial, HostGpu::WAYS[0], scale);
    let expected: Vec<Step> =
        (0..STEPS).map(|number| trial.step(&mut ops, number, 0..size).unwrap()).collect();
    let got = shared(&trial, size, scale);
    for (rank, steps) in got.iter().enumerate() {
        for (number, (step, expected)) in steps.iter().zip(&expected).enumerate() {
            let what = format!("{precision}, rank {rank} of {size}, step {number}");
            same(step, expected, &what);
            assert!(equal_bits(&step.running, &got[0][number].running), "{what}: running statistics");
        }
    }
    let moved = |one: &Step, other: &Step| !equal_bits(&one.parameters, &other.parameters);
    assert!(expected.windows(2).all(|pair| moved(&pair[0], &pair[1]) != pair[1].figures.skipped));
    expected.iter().filter(|step| step.figures.skipped).count() as u32
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn two_ranks_in_fp32_give_what_accumulation_gives() {
    assert_eq!(ranks_give_what_accumulation_gives(Precision::Fp32, 2, 1.0), 0);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn four_ranks_in_fp32_give_what_accumulation_gives() {
    assert_eq!(ranks_give_what_accumulation_gives(Precision::Fp32, 4, 1.0), 0);
}

/// The scale doubles once.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn two_ranks_in_fp16_give_what_accumulation_gives() {
    assert_eq!(ranks_give_what_accumulation_gives(Precision::Fp16, 2, 256.0), 0);
}

/// The scale is too large at first, and all ranks skip together.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn four_ranks_in_fp16_give_what_accumulation_gives() {
    let skipped = ranks_give_what_accumulation_gives(Precision::Fp16, 4, 16_777_216.0);
    assert!((1..STEPS as u32).contains(&skipped), "{skipped} steps skipped");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn running_statistics_are_the_average_of_the_ranks() {
    let trial = Trial::small(Precision::Fp32, 4);
    let alone: Vec<Vec<f32>> = (0..4)
        .map(|at| {
            let mut ops = engine::<HostGpu>(&trial, HostGpu::WAYS[0], 1.0);
            trial.step(&mut ops, 0, at..at + 1).unwrap().running
        })
        .collect();
    assert!(!equal_bits(&alone[0], &alone[1]));
    let average: Vec<f32> = (0..alone[0].len())
        .map(|i| (((alone[0][i] + alone[1][i]) + alone[2][i]) + alone[3][i]) * 0.25)
        .collect();
    for steps in shared(&trial, 4, 1.0) {
        assert!(equal_bits(&steps[0].running, &average));
    }
}

/// With batch norms synchronised over the ranks, a batch in pieces gives what the whole batch gives, apart from rounding,
/// which the gradients of an untrained network amplify about tenfold. With separate statistics the gradients are
/// entirely different.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn statistics_taken_together_are_those_of_the_whole_batch() {
    let trial = Trial::with_statistics(Precision::Fp32, 1, 2 * IMAGES, 1);
    let whole = trial.step(&mut engine::<HostGpu>(&trial, HostGpu::WAYS[0], 1.0), 0, 0..1).unwrap();
    let pieces = |statistics: usize| {
        let trial = Trial::with_statistics(Precision::Fp32, 2, IMAGES, statistics);
        on_ranks(&trial, &HostGpu::WAYS[1..3], 1.0, |rank, ops| trial.step(ops, 0, rank..rank + 1).unwrap())
    };
    for step in pieces(2) {
        let errors = [
            (step.figures.loss / whole.figures.loss - 1.0).abs(),
            relative_error(&step.running, &whole.running),
            relative_error(&step.gradients, &whole.gradients),
        ];
        println!("together: {errors:?}");
        assert!(errors[0] <= 1e-6 && errors[1] <= 1e-6 && errors[2] <= 1e-5, "{errors:?}");
        assert_eq!(step.figures.correct, whole.figures.correct);
    }
    for step in pieces(1) {
        assert!(relative_error(&step.gradients, &whole.gradients) > 0.1);
    }
}

/// Two ranks that compute expanded tensors again take their statistics together as those that store them do, bit by bit.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn two_ranks_that_recompute_give_what_two_that_store_give() {
    let steps = |recomputes: bool| {
        let trial = Trial::with_statistics(Precision::Fp16, 2, IMAGES, 2);
        let trial = if recomputes { trial.recomputing() } else { trial };
        on_ranks(&trial, &HostGpu::WAYS[1..3], 256.0, |rank, ops| trial.step(ops, 0, rank..rank + 1).unwrap())
    };
    for (step, expected) in steps(true).iter().zip(&steps(false)) {
        same(step, expected, "recomputing");
        assert!(equal_bits(&step.running, &expected.running));
    }
}

/// A group of one, on a device that exchanges with itself.
fn one_rank_gives_what_none_gives<G: TestGpu>() {
    let trial = Trial::small(Precision::Fp16, 1);
    let run = |connect: Option<&Arc<Group>>| -> Vec<Step> {
        let mut ops = engine::<G>(&trial, G::WAYS[0], 256.0);
        if let Some(group) = connect {
            exchange::connect(ops.context(), group).unwrap();
        }
        (0..STEPS).map(|number| trial.step(&mut ops, number, 0..1).unwrap()).collect()
    };
    let expected = run(None);
    let got = ranks(1, |_, group| {
        let steps = run(Some(&group));
        group.leave().unwrap();
        steps
    });
    for (step, expected) in got[0].iter().zip(&expected) {
        same(step, expected, "alone");
        assert!(equal_bits(&step.running, &expected.running));
    }
}

mod one_rank_gives_what_none_gives {
    use super::*;

    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
    fn on_the_harness() {
        super::one_rank_gives_what_none_gives::<HostGpu>();
    }

    #[test]
    #[cfg_attr(
        not(all(effnet_gpu, effnet_nccl)),
        ignore = "needs an NVIDIA GPU, and NCCL named by NCCL_LIBRARY"
    )]
    fn on_a_gpu() {
        super::one_rank_gives_what_none_gives::<Driver>();
    }
}

/// A step whose gradients are given, in one bucket.
fn step_of_gradients(trial: &Trial, ops: &mut CudaOps<HostGpu>, gradients: &[f32]) -> Result<Step> {
    ops.begin_step()?;
    ops.write_state(Buffer::Gradients, gradients)?;
    ops.reduce(&Bucket { elements: 0..gradients.len(), frozen: Frozen::NOTHING })?;
    ops.run(&trial.update.into())?;
    ops.end_step()?;
    trial.outcome(ops)
}

/// The gradients of each rank are finite, so no rank raises the flag before the sum.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn sum_that_overflows_skips_the_step() {
    let trial = Trial::small(Precision::Fp32, 2);
    let all = trial.table.trainable();
    on_ranks(&trial, &HostGpu::WAYS[..2], 1.0, |_, ops| {
        let before = buffers::state(ops, Buffer::Parameters, trial.table.total()).unwrap();
        // The last one lies after the last whole vector.
        for at in [0, 1234, all - 1] {
            let mut gradients = vec![1.0; all];
            gradients[at] = f32::MAX;
            let step = step_of_gradients(&trial, ops, &gradients).unwrap();
            assert!(step.figures.skipped, "gradient {at}");
            assert!(equal_bits(&step.parameters, &before[..all]));
        }
        let step = step_of_gradients(&trial, ops, &vec![f32::MAX / 2.0; all]).unwrap();
        assert!(!step.figures.skipped);
    });
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn profile_lists_every_bucket_of_every_step() {
    let trial = Trial::small(Precision::Fp32, 2);
    let reports = on_ranks(&trial, &HostGpu::WAYS[..2], 1.0, |rank, ops| {
        trial.step(ops, 0, rank..rank + 1).unwrap();
        ops.start_profile().unwrap();
        for number in 1..3 {
            trial.step(ops, number, rank..rank + 1).unwrap();
        }
        let report = ops.take_profile().unwrap();
        trial.step(ops, 3, rank..rank + 1).unwrap();
        report
    });
    let bytes: Vec<u64> = trial.buckets.iter().map(|(_, bucket)| 4 * bucket.elements.len() as u64).collect();
    for report in reports {
        for step in 0..2 {
            let times: Vec<&BucketTime> = report.exchange.iter().filter(|time| time.step == step).collect();
            assert_eq!(times.iter().map(|time| time.bytes).collect::<Vec<_>>(), bytes);
            let mut before = 0.0;
            for time in &times {
                assert!(
                    before < time.ready && time.ready <= time.start && time.start <= time.end,
                    "{times:?}"
                );
                before = time.ready;
            }
            let backward_end = times[0].backward_end;
            assert!(times.iter().all(|time| time.backward_end == backward_end));
            let (last, others) = times.split_last().unwrap();
            assert!(others.iter().all(|time| time.start < backward_end) && backward_end <= last.start);
        }
        assert_eq!(report.exchange.len(), 2 * bytes.len());
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn exchange_without_a_group_or_with_gaps_is_refused() {
    let trial = Trial::small(Precision::Fp32, 1);
    let mut alone = HostGpu::open(HostGpu::WAYS[0]);
    let refused = [
        alone.collective_begin(),
        alone.all_reduce(&[]),
        alone.all_gather(Address::NULL, Address::NULL, 0),
        alone.collective_end(),
        alone.collective_mark().map(drop),
    ];
    assert!(refused.iter().all(|answer| matches!(answer, Err(OpsError::NotConnected))), "{refused:?}");
    let together = Trial::with_statistics(Precision::Fp32, 1, IMAGES, 2);
    let error = together.step(&mut engine::<HostGpu>(&together, HostGpu::WAYS[0], 1.0), 0, 0..1).unwrap_err();
    assert!(matches!(error, OpsError::NotConnected), "{error}");
    ranks(1, |_, group| {
        let mut ops = engine::<HostGpu>(&trial, HostGpu::WAYS[0], 1.0);
        exchange::connect(ops.context(), &group).unwrap();
        let all = trial.table.trainable();
        ops.begin_step().unwrap();
        let error = ops.run(&trial.update.into()).unwrap_err().to_string();
        assert!(error.contains(&format!("update before {all} gradients")), "{error}");
        let frozen = |parameters| Frozen { parameters, statistics: 0 };
        ops.reduce(&Bucket { elements: 100..all, frozen: frozen(0) }).unwrap();
        for (elements, parameters) in [(0..all, 0), (0..99, 0), (0..100, 50), (50..99, 50)] {
            let bucket = Bucket { elements, frozen: frozen(parameters) };
            assert!(ops.reduce(&bucket).is_err(), "{bucket:?}");
        }
        let error = ops.run(&trial.update.into()).unwrap_err().to_string();
        assert!(error.contains("update before 100 gradients"), "{error}");
        group.leave().unwrap();
    });
}

/// Tests the gather alone.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn bytes_are_gathered_in_rank_order() {
    let all = ranks(3, |rank, group| {
        let mut gpu = HostGpu::open(HostGpu::WAYS[rank]);
        gpu.connect(&group).unwrap();
        let (from, to) = (gpu.allocate(2).unwrap(), gpu.allocate(6).unwrap());
        gpu.write(from, &[rank as u8, 10 + rank as u8]).unwrap();
        gpu.collective_begin().unwrap();
        gpu.all_gather(from, to, 2).unwrap();
        gpu.collective_end().unwrap();
        let mut got = [0; 6];
        gpu.read(to, &mut got).unwrap();
        group.leave().unwrap();
        got
    });
    assert_eq!(all, [[0, 10, 1, 11, 2, 12]; 3]);
}
