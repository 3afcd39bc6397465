//! Several ranks train the same network as one process that accumulates as many micro-batches.
//!
//! Loss and weights are equal bit by bit. Running statistics are not, and cannot be: one process updates them with every
//! micro-batch, each time from the previous result, while all ranks update them once from the same values and take the
//! mean. So for those the tests check that they are that mean, bit by bit.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use crate::common::ranks::members;
use crate::common::training::*;
use effnet::data::{Batch, CropMode, Form, Share, Source, Split};
use effnet::model::{ParamTable, initialise};
use effnet::network::Inference;
use effnet::ops::Precision;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::{Ops, StateSize, StepParams, Weights};
use effnet::parallel::Identity;
use effnet::train::checkpoint::{Checkpoint, Snapshot};
use effnet::train::device::Cpu;
use effnet::train::engine::Engine;
use effnet::train::evaluate::{Images, evaluate};
use effnet::train::events::Silent;
use effnet::train::loading::Loading;
use effnet::train::team::Team;
use effnet::train::{ClassWeights, EvaluationRecord, Optimizer, Recipe, RunOptions, TrainError, train};

const RANKS: usize = 4;

/// Without evaluations between steps, and without the average of the weights, which would contain running statistics.
fn steps(steps: u64, out: &Path) -> (Recipe, RunOptions) {
    let recipe =
        Recipe { micro_batch: 8 / RANKS, ema: 0.0, eval_every: 100.0, clip_norm: Some(1.0), ..recipe() };
    (recipe, RunOptions { max_steps: Some(steps), ..options(out) })
}

fn figure_bits(dir: &Path) -> Vec<(u64, u64, u64)> {
    figures(dir).into_iter().map(|(step, a, b)| (step, a.to_bits(), b.to_bits())).collect()
}

fn momentum(state: &Snapshot) -> &[f32] {
    &state.slots.iter().find(|slot| slot.name == "momentum").unwrap().values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn four_ranks_equal_four_accumulated_micro_batches_bit_by_bit() {
    expect_equal_ranks(None, |recipe| recipe);
}

#[test]
fn four_ranks_equal_four_accumulated_micro_batches_in_bf16() {
    expect_equal_ranks(Some(Precision::Bf16), |recipe| recipe);
}

/// Pairs of images lie within a rank's micro-batch, and the weights of classes are those of the whole set.
#[test]
fn four_ranks_equal_one_with_mixed_pairs_and_class_weights() {
    expect_equal_ranks(None, |recipe| {
        let weights = (0..5).map(|class| (class.to_string(), f64::from(class))).collect();
        let class_weights = Some(ClassWeights::Given(weights));
        Recipe { mixup: 0.4, cutmix: 1.0, class_weights, ..recipe }
    });
}

/// Stages begin and end together.
#[test]
fn four_ranks_equal_one_over_stages() {
    expect_equal_ranks(None, |recipe| Recipe {
        resolution: 48,
        progressive: vec![32],
        progressive_augment: Some(0.5),
        crop: CropMode::Resized,
        color_jitter: 0.4,
        ..recipe
    });
}

fn expect_equal_ranks(precision: Option<Precision>, change: impl Fn(Recipe) -> Recipe) {
    let dir = tempfile::tempdir().unwrap();
    let [one, four] = ["one", "four"].map(|name| dir.path().join(name));
    let (recipe, options) = steps(10, &one);
    let options = RunOptions { precision, ..options };
    let recipe = change(recipe);
    run(&recipe, &options).unwrap();
    let never = AtomicBool::new(false);
    for outcome in run_ranks(RANKS, &recipe, &RunOptions { out: four.clone(), ..options }, &never) {
        let outcome = outcome.unwrap();
        assert_eq!((outcome.step, outcome.last), (10, None));
    }
    assert_eq!(figures(&one).len(), 10);
    assert_eq!(figure_bits(&one), figure_bits(&four));
    let one = saved(&one);
    let four = saved(&four);
    assert_eq!(one.metadata.recipe, four.metadata.recipe);
    let trainable = ParamTable::new(&one.architecture).trainable();
    let weights = |saved: &Checkpoint| bits(&saved.state.parameters[..trainable]);
    assert!(weights(&one) == weights(&four));
    assert!(one.state.slots == four.state.slots);
    assert!(
        one.state.parameters[trainable..] != four.state.parameters[trainable..],
        "accumulation updates them more often"
    );
}

/// A rank's share of the first step's batch.
fn first_batch(recipe: &Recipe, share: Share) -> Batch {
    let source = &source();
    let form = Form::Squares;
    let loading = Loading { source, recipe, form, share, threads: 1, memory: None, processors: &[] };
    loading.training(recipe.stages()[0], 0, 1).unwrap().next().unwrap().unwrap()
}

/// The state after one step over only a rank's share of the first batch.
fn alone(recipe: &Recipe, rank: usize, initial: &Checkpoint) -> Snapshot {
    let batch = first_batch(recipe, Share { part: rank, parts: RANKS });
    let arch = &initial.architecture;
    let normalise = source().normalise();
    let mut engine = Engine::new(recipe, arch, normalise, Cpu::new(1, "a test"), &Team::default()).unwrap();
    engine.load(&initial.state, None).unwrap();
    let seed = recipe.seed;
    let first_position = batch.first_position;
    let params = StepParams { seed, first_position, learning_rate: 1e-3, ..StepParams::default() };
    engine.step(&batch, params).unwrap();
    let mut state = initial.state.clone();
    engine.store(&mut state).unwrap();
    state
}

/// After one step from the same state, the running statistics of four ranks are the mean of those that each micro-batch
/// gives alone.
#[test]
fn running_statistics_are_the_mean_over_the_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let (recipe, options) = steps(1, &out("ranks"));
    let never = AtomicBool::new(false);
    run_ranks(RANKS, &recipe, &options, &never).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    let together = saved(&out("ranks"));
    // The initial state of every run with this seed.
    let at_once = AtomicBool::new(true);
    let initial = RunOptions { out: out("initial"), ..options };
    train(&recipe, &initial, source(), &mut Silent, &at_once).unwrap();
    let initial = saved(&out("initial"));
    assert_eq!(initial.metadata.step, 0);
    let trainable = ParamTable::new(&together.architecture).trainable();

    let mut sums = vec![0.0f32; together.state.parameters.len() - trainable];
    for rank in 0..RANKS {
        let alone = alone(&recipe, rank, &initial);
        sums.iter_mut().zip(&alone.parameters[trainable..]).for_each(|(sum, value)| *sum += value);
    }
    let mean: Vec<f32> = sums.iter().map(|sum| sum / RANKS as f32).collect();
    assert!(bits(&mean) == bits(&together.state.parameters[trainable..]));
}

/// With statistics over all ranks, four ranks with eight images equal one process with 32 except for rounding: sums in
/// another order, amplified by 49 batch norms. The momentum after one step of plain descent is the gradient.
#[test]
fn synchronised_batch_norm_treats_all_ranks_as_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let (recipe, options) = steps(1, &out("whole"));
    let recipe = Recipe { batch_size: 32, micro_batch: 32, optimizer: Optimizer::Sgd, ..recipe };
    let never = AtomicBool::new(false);
    run(&recipe, &options).unwrap();
    let whole = saved(&out("whole"));
    let table = ParamTable::new(&whole.architecture);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = |name: &str, sync_bn| {
        let recipe = Recipe { sync_bn, micro_batch: 8, ..recipe.clone() };
        let options = RunOptions { out: out(name), ..options.clone() };
        run_ranks(RANKS, &recipe, &options, &never).into_iter().for_each(|outcome| drop(outcome.unwrap()));
        let state = saved(&out(name)).state;
        let loss = |dir: &Path| figures(dir)[0].1;
        let loss = ((loss(&out("whole")) - loss(&out(name))) / loss(&out("whole"))).abs();
        // All gradients as one vector: where a batch norm removes a shift, a gradient is rounding alone.
        let pairs =
            || momentum(&whole.state).iter().zip(momentum(&state)).map(|(a, b)| (*a as f64, *b as f64));
        let gradients = norm(&mut pairs().map(|(a, b)| a - b)) / norm(&mut pairs().map(|(a, _)| a));
        // The error of a mean relative to its deviation, that of a variance relative to the variance.
        let mut statistics = 0.0f64;
        for prefix in table.batch_norms() {
            let range = |name: &str| table.get(&format!("{prefix}.{name}")).unwrap().range();
            let mean = range("running_mean").zip(range("running_var"));
            for (mean, variance) in mean {
                let of = |at: usize| (whole.state.parameters[at] as f64, state.parameters[at] as f64);
                let ((mean, other_mean), (variance, other)) = (of(mean), of(variance));
                let off = (mean - other_mean).abs() / variance.sqrt();
                statistics = statistics.max(off).max((variance - other).abs() / variance);
            }
        }
        println!("{name}: loss {loss:e}, gradients {gradients:e}, running statistics {statistics:e}");
        (loss, [gradients, statistics])
    };
    let (loss, [gradients, statistics]) = apart("synchronised", true);
    // A whole network in single precision differs by about 1e-5 from its golden values. Two such errors add up here.
    assert!(loss < 2e-5 && gradients < 1e-4 && statistics < 2e-5);
    // Without synchronisation the difference is large, so the comparison can fail.
    let (loss, [gradients, statistics]) = apart("local", false);
    assert!(loss > 1e-3 && gradients > 0.1 && statistics > 1e-3);
}

/// Runs `work` on two ranks that are ready for the first step of this recipe, each with its batch. `change` changes the
/// state of rank 1; otherwise both states are equal.
fn two_engines<T: Send>(
    recipe: &Recipe,
    change: impl Fn(&ParamTable, &mut Snapshot) + Sync,
    work: impl Fn(&mut Engine<CpuOps>, &Team, &Batch) -> T + Sync,
) -> Vec<T> {
    let one = |rank, membership| {
        let team = Team::join(Some(&membership), Identity::default, &AtomicBool::new(false)).unwrap();
        let (arch, normalise) = (recipe.architecture(5).unwrap(), source().normalise());
        let table = ParamTable::new(&arch);
        let mut state = Snapshot::new(&table, recipe);
        state.parameters = initialise::initialise(&table, recipe.seed);
        if rank == 1 {
            change(&table, &mut state);
        }
        let mut engine = Engine::new(recipe, &arch, normalise, Cpu::new(1, "a test"), &team).unwrap();
        engine.load(&state, None).unwrap();
        let batch = first_batch(recipe, team.share());
        let done = work(&mut engine, &team, &batch);
        team.conclude(Ok(())).unwrap();
        done
    };
    members(0..2, 2, one)
}

/// With statistics over all ranks, a rank that has found the first number that is not finite must still run the passes
/// that follow, because the other ranks wait in them. Here one rank finds it in its loss, the other in the gradients.
#[test]
fn search_for_not_finite_numbers_runs_all_passes() {
    let (recipe, _) = steps(1, Path::new("none"));
    let recipe = Recipe { sync_bn: true, ..recipe };
    let bad = |table: &ParamTable, state: &mut Snapshot| {
        state.parameters[table.get("classifier.bias").unwrap().range()][1] = f32::NAN;
    };
    let names = two_engines(&recipe, bad, |engine, _, batch| {
        engine.first_not_finite(batch, StepParams::default()).unwrap().unwrap()
    });
    assert!(
        names[0].contains("gradient") && names[1].contains("of the weights, classifier.bias"),
        "{names:?}"
    );
}

/// A step of a large network on the CPU may take longer than the watchdog's limit.
#[test]
fn progress_is_made_with_every_pass() {
    let (recipe, _) = steps(1, Path::new("none"));
    let moved = two_engines(
        &recipe,
        |_, _| {},
        |engine, team, batch| {
            let group = team.group().unwrap();
            let before = group.moves();
            engine.step(batch, StepParams::default()).unwrap();
            group.moves() - before
        },
    );
    assert!(moved.iter().all(|moved| *moved > 100), "{moved:?}");
}

/// The statistics that passes exchange are not buckets.
#[test]
fn profile_of_the_exchange_has_only_gradients() {
    for sync_bn in [false, true] {
        let (recipe, _) = steps(1, Path::new("none"));
        let recipe = Recipe { sync_bn, ..recipe };
        let times = two_engines(
            &recipe,
            |_, _| (),
            |engine, _, batch| {
                engine.start_profile().unwrap();
                (0..2).for_each(|step| {
                    engine.step(batch, StepParams { step, ..StepParams::default() }).unwrap()
                });
                (engine.take_profile().unwrap().exchange, engine.table.trainable())
            },
        );
        for (times, trainable) in times {
            for step in 0..2 {
                let own: Vec<_> = times.iter().filter(|time| time.step == step).collect();
                let bytes: u64 = own.iter().map(|time| time.bytes).sum();
                assert_eq!(bytes, 4 * trainable as u64, "{sync_bn}: {times:?}");
                assert!(own.iter().all(|time| time.ready <= time.end && time.start <= time.end), "{own:?}");
                assert!(own.windows(2).all(|pair| pair[0].ready <= pair[1].ready), "{own:?}");
            }
            assert_eq!(times.iter().map(|time| time.step).max(), Some(1));
        }
    }
}

/// An evaluation may be long, so it must end when another rank fails.
#[test]
fn evaluation_ends_with_the_group() {
    let (recipe, _) = steps(1, Path::new("none"));
    let failed = Barrier::new(2);
    members(0..2, 2, |rank, membership| {
        let team = Team::join(Some(&membership), Identity::default, &AtomicBool::new(false)).unwrap();
        if rank == 1 {
            assert!(team.conclude::<()>(Err(TrainError::DataEnded { step: 7 })).is_err());
            failed.wait();
            return;
        }
        failed.wait();
        let (arch, normalise) = (recipe.architecture(5).unwrap(), source().normalise());
        let table = ParamTable::new(&arch);
        let device = CpuDevice::fp32(1);
        let network = Inference::new(&arch, &table, recipe.micro_batch, &device, &[Weights::Raw]);
        let plan = network.plan(&device);
        let mut ops =
            CpuOps::new(StateSize::new(table.trainable(), table.total()), &[&plan], CpuDevice::fp32(1))
                .unwrap();
        ops.bind(&plan).unwrap();
        let (form, share) = (Form::Squares, Share::WHOLE);
        let (source, recipe) = (&source(), &recipe);
        let loading = Loading { source, recipe, form, share, threads: 1, memory: None, processors: &[] };
        let mut loader = loading.evaluation(Split::Val).unwrap();
        let images = Images { loader: &mut loader, normalise, expected: 13 };
        let never = AtomicBool::new(false);
        let error = evaluate(&mut ops, &network, images, &never, &team).unwrap_err();
        assert!(error.to_string().contains("step 7: the data ended early"), "{error}");
        assert!(loader.next().unwrap().is_some(), "it has not evaluated all images");
    });
}

/// There is one image to evaluate, for one of four ranks. A step has one image for each.
#[test]
fn evaluation_works_on_ranks_without_images() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let source = Source::synthetic(5, 8, 1, 32).unwrap();
    let recipe = Recipe { batch_size: RANKS, micro_batch: 1, epochs: 1.0, warmup_epochs: 0.0, ..recipe() };
    let never = AtomicBool::new(false);
    let outcomes = run_ranks_over(&source, RANKS, &recipe, &options(&out), &never);
    let last: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().last.unwrap()).collect();
    assert_eq!((last[0].step, last[0].images), (2, 1));
    assert!(last[0].loss.is_finite() && last[0].ema_loss.unwrap().is_finite());
    let figures = |rank: &EvaluationRecord| (rank.top1, rank.loss, rank.ema_loss);
    assert!(last.iter().all(|rank| figures(rank) == figures(&last[0])), "{last:?}");
}

/// Numbers that are not finite reach all ranks from any of them. The first error names the layer and the rank.
#[test]
fn number_that_is_not_finite_is_named_with_its_rank() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let (recipe, options) = steps(9, &out);
    let recipe = Recipe { lr: 1e30, ..recipe };
    let never = AtomicBool::new(false);
    let errors: Vec<String> = run_ranks(2, &recipe, &options, &never)
        .into_iter()
        .map(|outcome| outcome.unwrap_err().to_string())
        .collect();
    assert!(errors[0].contains("not finite") || errors[0].contains("loss is"), "{errors:?}");
    let first =
        errors.iter().any(|error| error.contains("first not finite: ") && error.contains(" at rank "));
    assert!(first, "{errors:?}");
    // The checkpoint saved before is intact.
    assert_eq!(saved(&out).metadata.step, 0);
}
