//! The recipe of a set of images: what a run takes where nobody said otherwise.
//!
//! The reference recipe is made for 1.3 million images on several GPUs: on a thousand photographs, its batch of 4096 is
//! larger than the set and 400 epochs are a hundred steps. So the settings that were not given follow from the images
//! and the device:
//!
//! | setting | rule |
//! |---|---|
//! | resolution | the member's own, but not above what half of the images have on their shorter side, in steps of 32; for icons the side of the largest |
//! | batch | the largest power of two that leaves [`STEPS_OF_EPOCH`] steps to an epoch, from 32 (or all images) to the reference's 4096 |
//! | epochs | so many that the run has [`STEPS_ON_CPU`] or [`STEPS_ON_GPU`] steps, from [`LEAST_EPOCHS`] to 400; more where they are fewer than [`FEW_STEPS`] steps |
//! | learning rate | [`RATE`] for each image of the batch |
//! | warm-up | a tenth of the epochs: over fewer steps, the loss of a tiny set rises first |
//! | dropout, stochastic depth | none in a run of fewer than [`STEPS_ON_GPU`] steps: they slow learning down, which is too short for overfitting |
//! | evaluations | at most [`EVALUATIONS`] |
//!
//! A set that is large enough for the reference's batch has the reference's batch, rate and epochs. The micro-batch is
//! no part of this: it is the largest that fits into memory, see [`memory_plan`](super::memory::memory_plan).

use indicatif::HumanCount;

use super::optimizer::Optimizer;
use super::recipe::Recipe;
use super::schedule::Schedule;
use crate::data::{CropMode, Source, Split};

/// Steps of an epoch: enough to see the loss fall within the first one.
pub const STEPS_OF_EPOCH: usize = 128;
/// Steps of a run. A CPU takes minutes to hours for its share, a GPU minutes.
pub const STEPS_ON_CPU: u64 = 3_000;
pub const STEPS_ON_GPU: u64 = 10_000;
/// A run of fewer steps learns little, whatever its recipe.
pub const FEW_STEPS: u64 = 1_000;
pub const LEAST_EPOCHS: f64 = 10.0;
/// The most epochs, for sets of a few images only.
const MOST_EPOCHS: f64 = 1_000.0;
/// The batch of the reference recipe.
pub const REFERENCE_BATCH: usize = 4096;
/// Batches below it give batch norm poor statistics.
const LEAST_BATCH: usize = 32;
/// The demo's rate of 5e-4 for a batch of 64, by RMSprop. The reference's is unstable over so few steps.
pub const RATE: f64 = 5e-4 / 64.0;
/// Evaluations of a run: each one also writes a checkpoint.
pub const EVALUATIONS: f64 = 40.0;
/// The members' maps are halved five times.
const STRIDE: usize = 32;

/// What the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Training images.
    pub images: usize,
    /// The longest side of all training images.
    pub largest: u32,
    /// The shorter side of an image in the middle, by this side.
    pub shorter: u32,
    pub on_gpu: bool,
    pub ranks: usize,
}

impl Circumstances {
    pub fn of(source: &Source, on_gpu: bool, ranks: usize) -> Circumstances {
        let (width, height) = source.largest(Split::Train);
        let images = source.samples(Split::Train);
        let shorter = source.median_shorter_side(Split::Train);
        Circumstances { images, largest: width.max(height), shorter, on_gpu, ranks }
    }

    /// Whether the set is as large as those that the reference recipe is made for.
    fn are_the_reference_s(&self) -> bool {
        self.images / STEPS_OF_EPOCH >= REFERENCE_BATCH
    }

    /// The side of the input, where the member's own is `own`.
    fn resolution(&self, own: usize) -> usize {
        let side = if CropMode::icons((self.largest, self.largest)) {
            (self.largest as usize).next_multiple_of(STRIDE)
        } else {
            self.shorter as usize / STRIDE * STRIDE
        };
        side.clamp(STRIDE, own.max(STRIDE))
    }

    /// Images of a step; a multiple of `part`, which the ranks' micro-batches must divide.
    fn batch(&self, part: usize) -> usize {
        batch_for(self.images).next_multiple_of(part)
    }

    fn epochs(&self, batch: usize, reference: f64) -> f64 {
        let steps_of_epoch = self.images as f64 / batch as f64;
        let epochs = |steps: u64| (steps as f64 / steps_of_epoch).ceil();
        let wanted = epochs(if self.on_gpu { STEPS_ON_GPU } else { STEPS_ON_CPU });
        wanted.clamp(LEAST_EPOCHS, reference.max(LEAST_EPOCHS)).max(epochs(FEW_STEPS).min(MOST_EPOCHS))
    }
}

/// The batch that suits so many training images.
pub fn batch_for(images: usize) -> usize {
    let power = |below: usize| 1 << below.max(1).ilog2();
    power(images / STEPS_OF_EPOCH).clamp(LEAST_BATCH, REFERENCE_BATCH).min(power(images))
}

/// The recipe with the settings that nobody `gave` (by the names of their flags) as the circumstances have them, and
/// lines that say what was chosen and why. `reference` has the reference's values in these settings.
pub fn fit(
    reference: &Recipe,
    given: impl Fn(&str) -> bool,
    circumstances: &Circumstances,
) -> (Recipe, Vec<String>) {
    let mut recipe = reference.clone();
    let mut chosen = Chosen::default();
    if !given("resolution") {
        recipe.resolution = circumstances.resolution(reference.resolution);
        chosen.add("resolution", format!("input {0}×{0}", recipe.resolution));
    }
    if !circumstances.are_the_reference_s() {
        fit_schedule(&mut recipe, given, circumstances, &mut chosen);
    }
    let lines = chosen.lines(&recipe, circumstances);
    (recipe, lines)
}

/// What a set needs that is smaller than the reference's.
fn fit_schedule(
    recipe: &mut Recipe,
    given: impl Fn(&str) -> bool,
    circumstances: &Circumstances,
    chosen: &mut Chosen,
) {
    let reference = recipe.clone();
    if !given("batch-size") {
        let images = if given("micro-batch") { reference.micro_batch } else { reference.least_micro_batch() };
        recipe.batch_size = circumstances.batch(circumstances.ranks * images);
        chosen.add("batch-size", format!("batch {}", recipe.batch_size));
    }
    if !given("micro-batch") {
        recipe.micro_batch = recipe.batch_size;
    }
    if !given("epochs") {
        let epochs = circumstances.epochs(recipe.batch_size, reference.epochs);
        // A warm-up that was asked for is at most half of the run.
        let warmup = if given("warmup-epochs") { reference.warmup_epochs } else { 0.0 };
        recipe.epochs = epochs.max((2.0 * warmup).ceil());
    }
    let steps = Schedule::new(recipe, circumstances.images).map_or(0, |schedule| schedule.steps());
    if !given("epochs") {
        chosen.add("epochs", format!("{} epochs ({} steps)", recipe.epochs, HumanCount(steps)));
    }
    if !given("lr") {
        let like_reference = reference.lr / reference.batch_size as f64;
        let known = matches!(recipe.optimizer, Optimizer::Rmsprop | Optimizer::RmspropTf);
        recipe.lr = recipe.batch_size as f64 * if known { RATE } else { like_reference };
        chosen.add("lr", format!("learning rate {}", recipe.lr));
    }
    if !given("warmup-epochs") {
        recipe.warmup_epochs = recipe.epochs / 10.0;
    }
    let short = steps < STEPS_ON_GPU;
    if short && !given("dropout") {
        recipe.dropout = 0.0;
        chosen.add("dropout", "no dropout".into());
    }
    if short && !given("drop-connect") {
        recipe.drop_connect = 0.0;
        chosen.add("drop-connect", "no stochastic depth".into());
    }
    let rarely = (recipe.epochs / EVALUATIONS).ceil();
    if !given("eval-every") && rarely > reference.eval_every {
        recipe.eval_every = rarely;
        chosen.add("eval-every", format!("validation every {rarely} epochs"));
    }
}

/// The flags that were not given, and what was chosen.
#[derive(Default)]
struct Chosen {
    flags: Vec<String>,
    phrases: Vec<String>,
}

impl Chosen {
    fn add(&mut self, flag: &str, phrase: String) {
        self.flags.push(format!("--{flag}"));
        self.phrases.push(phrase);
    }

    /// Two lines: what was chosen, and why.
    fn lines(&self, recipe: &Recipe, circumstances: &Circumstances) -> Vec<String> {
        if self.flags.is_empty() {
            return Vec::new();
        }
        let Circumstances { images, largest, shorter, on_gpu, .. } = *circumstances;
        let how = match recipe.crop.resolve((largest, largest), recipe.least_resolution()) {
            CropMode::Pad => format!("none larger than {largest} pixels: padded"),
            _ => format!("half of them at least {shorter} pixels wide and high: resized"),
        };
        vec![
            format!("recipe: {}", self.phrases.join(", ")),
            format!(
                "chosen for {} training images, {how}, on {}; {} {} otherwise",
                HumanCount(images as u64),
                if on_gpu { "a GPU" } else { "the CPU" },
                self.flags.join(" "),
                if self.flags.len() == 1 { "says" } else { "say" },
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    const PHOTOS: Circumstances =
        Circumstances { images: 2000, largest: 640, shorter: 480, on_gpu: false, ranks: 1 };

    fn reference() -> Recipe {
        Recipe { crop: CropMode::Auto, ..Recipe::reference(Variant::B0, 4096) }
    }

    fn fitted(circumstances: Circumstances, given: &[&str], recipe: Recipe) -> Recipe {
        let (recipe, _) = fit(&recipe, |flag| given.contains(&flag), &circumstances);
        assert_eq!(recipe.validate(), Ok(()));
        recipe
    }

    #[test]
    fn fit_gives_small_sets_enough_steps_of_small_batches() {
        let sizes = [
            // images, batch, epochs on the CPU, epochs on a GPU
            (2, 2, 1000.0, 1000.0),
            (22, 16, 728.0, 728.0),
            (100, 32, 400.0, 400.0),
            (2_000, 32, 48.0, 160.0),
            (10_000, 64, 20.0, 64.0),
            (100_000, 512, 16.0, 52.0),
            (524_287, 2048, 12.0, 40.0),
        ];
        for (images, batch, on_cpu, on_gpu) in sizes {
            for (device, epochs) in [(false, on_cpu), (true, on_gpu)] {
                let recipe = fitted(Circumstances { images, on_gpu: device, ..PHOTOS }, &[], reference());
                assert_eq!((recipe.batch_size, recipe.epochs), (batch, epochs), "{images} images");
                assert_eq!(recipe.lr, 5e-4 * batch as f64 / 64.0);
                assert_eq!(recipe.warmup_epochs, epochs / 10.0);
                assert!(recipe.epochs / recipe.eval_every <= EVALUATIONS);
                let short = recipe.epochs * (images as f64) < 10_000.0 * batch as f64;
                assert_eq!((recipe.dropout == 0.0, recipe.drop_connect == 0.0), (short, short));
            }
        }
    }

    #[test]
    fn fit_leaves_the_reference_to_large_sets() {
        for images in [524_288, 1_281_167] {
            for on_gpu in [false, true] {
                let recipe = fitted(Circumstances { images, on_gpu, ..PHOTOS }, &[], reference());
                assert_eq!(recipe, reference());
            }
        }
    }

    #[test]
    fn fit_changes_nothing_that_was_given() {
        let recipe = Recipe {
            resolution: 96,
            batch_size: 8,
            micro_batch: 4,
            epochs: 3.0,
            lr: 0.5,
            warmup_epochs: 0.0,
            eval_every: 0.5,
            ..reference()
        };
        let all = "resolution batch-size micro-batch epochs lr warmup-epochs dropout drop-connect eval-every";
        let (same, lines) = fit(&recipe, |flag| all.split(' ').any(|given| given == flag), &PHOTOS);
        assert_eq!((same, lines.len()), (recipe, 0));
        // What follows from a given value follows from this one.
        let some = fitted(PHOTOS, &["batch-size"], Recipe { batch_size: 8, micro_batch: 8, ..reference() });
        assert_eq!((some.batch_size, some.epochs, some.lr), (8, 12.0, 6.25e-5));
        let warm = fitted(PHOTOS, &["warmup-epochs"], Recipe { warmup_epochs: 70.5, ..reference() });
        assert_eq!((warm.epochs, warm.warmup_epochs), (141.0, 70.5));
        // The rate of other optimisers is not known to be too high.
        let sgd = fitted(PHOTOS, &["optimizer"], Recipe { optimizer: Optimizer::Sgd, ..reference() });
        assert_eq!((sgd.batch_size, sgd.lr), (32, 0.08 * 32.0 / 4096.0));
        let large = Circumstances { images: 100_000, ..PHOTOS };
        let some =
            fitted(large, &["batch-size"], Recipe { batch_size: 512, micro_batch: 512, ..reference() });
        assert_eq!((some.epochs, some.lr), (16.0, 4e-3));
    }

    #[test]
    fn fit_takes_a_resolution_that_the_images_have() {
        let side = |largest, shorter, model| {
            let recipe = Recipe { crop: CropMode::Auto, ..Recipe::reference(model, 4096) };
            fitted(Circumstances { largest, shorter, ..PHOTOS }, &[], recipe).resolution
        };
        assert_eq!(side(28, 28, Variant::B0), 32);
        assert_eq!(side(64, 20, Variant::B0), 64);
        assert_eq!(side(65, 20, Variant::B0), 32);
        assert_eq!(side(160, 120, Variant::B0), 96);
        assert_eq!(side(640, 480, Variant::B0), 224);
        assert_eq!(side(640, 480, Variant::B7), 480);
    }

    #[test]
    fn fit_takes_a_batch_that_ranks_and_micro_batches_divide() {
        let recipe = fitted(Circumstances { ranks: 3, ..PHOTOS }, &[], reference());
        assert_eq!(recipe.batch_size, 33);
        let two = Recipe { micro_batch: 32, ..reference() };
        let recipe = fitted(Circumstances { ranks: 2, ..PHOTOS }, &["micro-batch"], two);
        assert_eq!((recipe.batch_size, recipe.micro_batch), (64, 32));
    }

    #[test]
    fn fit_says_what_it_chose_and_why() {
        let (_, lines) = fit(&reference(), |flag| flag == "lr", &PHOTOS);
        assert_eq!(
            lines[0],
            "recipe: input 224×224, batch 32, 48 epochs (3,000 steps), no dropout, no stochastic depth, validation every 2 epochs"
        );
        assert!(lines[1].contains("2,000 training images") && lines[1].contains("480 pixels"), "{lines:?}");
        assert!(lines[1].contains("on the CPU; --resolution --batch-size --epochs --dropout"), "{lines:?}");
        assert!(lines[1].ends_with("--eval-every say otherwise"), "{lines:?}");
        let icons = Circumstances { largest: 28, shorter: 28, ..PHOTOS };
        let (_, lines) = fit(&reference(), |_| false, &icons);
        assert!(lines[1].contains("none larger than 28 pixels: padded"), "{lines:?}");
    }
}
