//! Settings become a job: a complete recipe, checked, and how to carry it out.

use std::env;
use std::path::{Path, PathBuf};

use super::flags::{Actions, Flags, MicroBatch, Settings};
use super::{UsageError, config, demo, ranks};
use crate::data::CropMode;
use crate::model::Variant;
use crate::train::checkpoint::{Found, RunDirectory};
use crate::train::recipe_file::RecipeFile;
use crate::train::team::divide;
use crate::train::{DataChoice, Recipe, RecipeError, RunOptions};

/// The reference recipe's batch.
const BATCH: u64 = 4096;
/// The directory of images where neither flag nor environment names one.
const DATA: &str = "data";
const DATA_VARIABLE: &str = "EFFNET_DATA";

/// What to do with the recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Train,
    /// Print the memory plan.
    DryRun,
    /// Print the layer table.
    Summary,
}

/// A command line understood.
#[derive(Clone, Debug)]
pub struct Job {
    pub action: Action,
    /// `crop` is still auto where neither flag nor file chose: the data decides.
    pub recipe: Recipe,
    pub options: RunOptions,
    pub demo: bool,
    /// Whether the run directory was given.
    pub named: bool,
    /// A demo that took a directory beside those of earlier ones.
    pub free_name: bool,
    pub json: bool,
}

impl Flags {
    /// Lays the layers over each other and checks the result. `saved` finds the recipe of a run that is resumed.
    ///
    /// # Errors
    /// [`UsageError`] for what the user can set right on the command line; whatever `saved` reports.
    pub fn job<E: From<UsageError>>(self, saved: impl FnOnce(&Path) -> Result<Recipe, E>) -> Result<Job, E> {
        self.job_among(|name| env::var(name).ok(), saved)
    }

    /// [`Flags::job`] with the launcher's variables from elsewhere than the environment.
    ///
    /// # Errors
    /// As [`Flags::job`].
    pub fn job_among<E: From<UsageError>>(
        self,
        variable: impl Fn(&str) -> Option<String>,
        saved: impl FnOnce(&Path) -> Result<Recipe, E>,
    ) -> Result<Job, E> {
        let Flags { mut settings, actions } = self;
        if let Some(file) = &actions.config {
            settings = settings.over(&config::read(file)?);
        }
        if settings.data.is_some() && actions.demo {
            return Err(UsageError("--demo brings its own images: leave out --data, or --demo".into()).into());
        }
        ranks::settle_device(&mut settings)?;
        let file = actions.resume.then(|| RunDirectory::at(&out(&settings, &actions)));
        let file = file.and_then(|run| Some((run.found(), RecipeFile::read(&run.recipe()).ok()?)));
        if let Some((found, file)) = &file {
            go_on_as(file, *found, &mut settings);
        }
        let mut options = options(&settings, &actions)?;
        options.ranks = ranks::ranks(&settings, &actions, variable)?;
        options.started_with = ranks::started_with(&settings);
        if let Some((_, file)) = file.filter(|_| !actions.demo && settings.data.is_none()) {
            options.data = file.data;
        }
        let named = settings.out.is_some();
        let free_name = actions.demo && !named && !actions.resume && options.out != demo::first();
        let recipe = match actions.resume {
            true => apply(&settings, saved(&options.out)?),
            false => {
                let mut lower = if actions.demo { demo::preset() } else { Settings::default() };
                if let (Some(epochs), Some(warmup)) = (settings.epochs, &mut lower.warmup_epochs) {
                    *warmup = warmup.min(epochs / 10.0);
                }
                let settings = settings.over(&lower);
                apply(&settings, defaults(&settings))
            }
        };
        within_reason(&recipe)?;
        recipe.validate().map_err(|error| {
            UsageError(match error {
                RecipeError::Model(error) => format!("--resolution {}: {error}", recipe.resolution),
                error => error.to_string(),
            })
        })?;
        let mut divided = recipe.clone();
        let free = options.auto_micro_batch || actions.resume;
        // The layers are the same for any number of ranks.
        let ranks = if actions.summary { 1 } else { options.ranks.world().size };
        divide(&mut divided, free, None, ranks).map_err(|e| UsageError(e.to_string()))?;
        // What a checkpoint says is compared first, and then divided.
        let recipe = if actions.resume { recipe } else { divided };
        let action = match (actions.summary, actions.dry_run) {
            (true, _) => Action::Summary,
            (_, true) => Action::DryRun,
            _ => Action::Train,
        };
        Ok(Job { action, recipe, options, demo: actions.demo, named, free_name, json: actions.json })
    }
}

/// Sizes that no machine has: beyond them the plan's arithmetic would overflow before it could refuse.
fn within_reason(recipe: &Recipe) -> Result<(), UsageError> {
    let sizes = [
        ("resolution", recipe.resolution, 4096),
        ("batch-size", recipe.batch_size, 1 << 20),
        ("micro-batch", recipe.micro_batch, 1 << 20),
    ];
    match sizes.into_iter().find(|(_, value, most)| value > most) {
        Some((flag, value, most)) => Err(UsageError(format!("--{flag} {value}: must be at most {most}"))),
        None => Ok(()),
    }
}

/// The reference recipe for the model and the batch, with a warm-up that fits a short run.
fn defaults(settings: &Settings) -> Recipe {
    let model = settings.model.unwrap_or(Variant::B0);
    let mut recipe = Recipe::reference(model, settings.batch_size.unwrap_or(BATCH) as usize);
    recipe.crop = CropMode::Auto;
    if let Some(epochs) = settings.epochs {
        recipe.warmup_epochs = recipe.warmup_epochs.min(epochs / 10.0);
    }
    recipe
}

/// What is set goes into the recipe.
fn apply(settings: &Settings, mut recipe: Recipe) -> Recipe {
    fn set<T>(field: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *field = value;
        }
    }
    let s = settings;
    let size = |value: Option<u64>| value.map(|v| usize::try_from(v).unwrap_or(usize::MAX));
    set(&mut recipe.model, s.model);
    set(&mut recipe.resolution, size(s.resolution));
    set(&mut recipe.padding, s.padding);
    set(&mut recipe.dropout, s.dropout);
    set(&mut recipe.drop_connect, s.drop_connect);
    set(&mut recipe.bn_momentum, s.bn_momentum);
    set(&mut recipe.bn_eps, s.bn_eps);
    // After a resume, auto is what the data has decided once.
    set(&mut recipe.crop, s.crop.filter(|&crop| crop != CropMode::Auto));
    set(&mut recipe.epochs, s.epochs);
    set(&mut recipe.batch_size, size(s.batch_size));
    set(
        &mut recipe.micro_batch,
        match s.micro_batch {
            Some(MicroBatch::Images(images)) => size(Some(images)),
            // The batch: the reference recipe's, and the CPU's auto. A GPU cuts it where it does not fit.
            Some(MicroBatch::Auto) => None,
            None => None,
        },
    );
    set(&mut recipe.lr, s.lr);
    set(&mut recipe.warmup_epochs, s.warmup_epochs);
    set(&mut recipe.optimizer, s.optimizer);
    set(&mut recipe.alpha, s.alpha);
    set(&mut recipe.momentum, s.momentum);
    set(&mut recipe.rms_eps, s.rms_eps);
    set(&mut recipe.weight_decay, s.weight_decay);
    set(&mut recipe.label_smoothing, s.label_smoothing);
    set(&mut recipe.ema, s.ema);
    set(&mut recipe.seed, s.seed);
    set(&mut recipe.eval_every, s.eval_every);
    set(&mut recipe.sync_bn, s.sync_bn);
    recipe
}

fn options(settings: &Settings, actions: &Actions) -> Result<RunOptions, UsageError> {
    let at_least_one = |flag: &str, value: Option<u64>| match value {
        Some(0) => Err(UsageError(format!("--{flag} 0: must be at least 1"))),
        // More threads than any machine has would only exhaust memory.
        Some(value) if value > 1024 => Err(UsageError(format!("--{flag} {value}: must be at most 1024"))),
        value => Ok(value.map(|v| v as usize)),
    };
    let mut options = RunOptions::new(data(settings, actions.demo), out(settings, actions));
    options.device = settings.device.unwrap_or_default();
    options.precision = settings.precision;
    options.auto_micro_batch = !matches!(settings.micro_batch, Some(MicroBatch::Images(_)));
    options.profile = at_least_one("profile", actions.profile)?.map(|steps| steps as u64);
    options.threads = at_least_one("threads", settings.threads)?.unwrap_or(options.threads);
    options.loader_threads =
        at_least_one("loader-threads", settings.loader_threads)?.unwrap_or(options.loader_threads);
    options.checkpoint_every = settings.checkpoint_every.unwrap_or(options.checkpoint_every);
    options.keep = settings.keep.map_or(options.keep, |keep| keep as usize);
    options.max_steps = settings.max_steps;
    if options.max_steps == Some(0) {
        return Err(UsageError("--max-steps 0: must be at least 1; --dry-run only looks".into()));
    }
    options.init_from = settings.init_from.clone();
    (options.resume, options.force) = (actions.resume, actions.force);
    Ok(options)
}

/// What a resumed run was started with and its checkpoint does not hold, unless it is given anew.
fn go_on_as(file: &RecipeFile, found: Found, settings: &mut Settings) {
    settings.device.get_or_insert(file.device);
    settings.precision = settings.precision.or(file.precision);
    settings.checkpoint_every.get_or_insert(file.checkpoint_every);
    settings.keep.get_or_insert(file.keep as _);
    // Once there is a checkpoint, the weights are in it.
    if found == Found::Begun && settings.init_from.is_none() {
        settings.init_from.clone_from(&file.init_from);
    }
}

fn data(settings: &Settings, is_demo: bool) -> DataChoice {
    let Ok(choice) = match (&settings.data, is_demo) {
        (_, true) => return DataChoice::Demo,
        (Some(text), _) => text.parse(),
        (None, _) => match env::var_os(DATA_VARIABLE).filter(|value| !value.is_empty()) {
            Some(dir) => return DataChoice::Dir(dir.into()),
            None => DATA.parse(),
        },
    };
    choice
}

fn out(settings: &Settings, actions: &Actions) -> PathBuf {
    match &settings.out {
        Some(out) => out.clone(),
        None if actions.demo && actions.resume => demo::latest_directory(),
        None if actions.demo && actions.force => demo::first(),
        None if actions.demo => demo::free_directory(),
        None => Path::new("runs").join(settings.model.unwrap_or(Variant::B0).name()),
    }
}
