//! From flags to a job: a complete recipe, checked, and how to carry it out.

pub mod demo;
pub mod execute;
mod fitted;
mod planned;
mod ranks;
mod weights;

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use weights::{over_weights, weights_file};

use super::flags::{Actions, Flags, MicroBatch, Settings, file};
use super::{UsageError, preset};
use crate::data::CropMode;
use crate::model::Variant;
use crate::train::checkpoint::{Found, RunDirectory};
use crate::train::fit::REFERENCE_BATCH;
use crate::train::page::facts::Base;
use crate::train::recipe_file::RecipeFile;
use crate::train::{DataChoice, Recipe, RunOptions, same_recipe, saved_recipe};

/// What to do with the recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Train,
    /// Write a page of training images to this file.
    Preview(PathBuf),
    /// Print the memory plan.
    DryRun,
    /// Print the layer table.
    Summary,
}

/// The meaning of a command line.
#[derive(Clone, Debug)]
pub struct Job {
    pub action: Action,
    /// The crop is still auto if no layer sets it: it depends on the data. So do the settings that the command line does
    /// not name, see `given`.
    pub recipe: Recipe,
    /// The settings on the command line, if all others follow from the images and the device. With a file, in a demo and
    /// in a resumed run they do not.
    pub given: Option<BTreeSet<String>>,
    pub options: RunOptions,
    /// The recipe of the preset, with which the report compares this one; none means the reference recipe.
    pub base: Option<Base>,
    pub demo: bool,
    /// Whether the run directory was given.
    pub named: bool,
    /// Whether a demo takes another directory because earlier demos have taken the first.
    pub free_name: bool,
    pub json: bool,
    /// Lines for the user about the command line.
    pub notes: Vec<String>,
}

impl Flags {
    /// The answer to a question such as `--preset list`, which needs no job.
    ///
    /// # Errors
    /// A name that is no preset.
    pub fn answer(&self) -> Result<Option<String>, UsageError> {
        Ok(match preset::asked(&self.actions.preset)? {
            Some(preset::Asked::Print(name)) => Some(preset::text(name)),
            _ => None,
        })
    }

    /// Merges the layers and checks the result.
    ///
    /// # Errors
    /// [`UsageError`](super::UsageError) or [`RecipeError`](crate::train::RecipeError) for settings that cannot be
    /// carried out; the error of a run that cannot be resumed.
    pub fn job(self) -> Result<Job> {
        let Flags { mut settings, actions } = self;
        let mut notes = Vec::new();
        let mut meant = settings.table();
        if let Some(path) = &actions.config {
            let path = config_file(path, &mut notes);
            let in_file = file::read(&path)?;
            meant.extend(meant_by(&in_file, &path, &settings));
            settings = settings.over(&in_file);
        }
        if let Some(path) = settings.init_from.take() {
            let file = weights_file(path, &mut notes)?;
            if !actions.resume {
                settings = over_weights(settings, &file, &mut notes)?;
            }
            settings.init_from = Some(file);
        }
        settings.check(&actions)?;
        let preset = preset::layer(&settings, &actions)?;
        let notice = preset::notice(&settings, &actions);
        settings.device = ranks::device(&settings);
        let out = out(&settings, &actions);
        let named = settings.out.is_some();
        let free_name = actions.demo && !named && !actions.resume && out != demo::first();
        if actions.resume {
            settings = settings.over(&kept(&out));
        }
        let options = options(&settings, &actions, out)?;
        let recipe = recipe(&settings, &preset, &actions, &options.out)?;
        recipe.validate()?;
        if !actions.resume {
            recipe.refuse_unused(|flag| meant.contains_key(flag))?;
        }
        let given = given(&settings, &actions);
        let base = base(recipe.model, &preset, &actions)?;
        // The recipe of a resumed run is first compared with the checkpoint's, and then divided; a batch that nobody gave
        // is chosen so that the ranks divide it. The layer table is the same for any number of ranks.
        let divided = if given.is_some() && settings.batch_size.is_none() {
            recipe.clone()
        } else {
            let ranks = if actions.summary { 1 } else { options.ranks.world().size };
            let mut divided = recipe.clone();
            divided.divide(ranks, options.auto_micro_batch || actions.resume)?;
            divided
        };
        let recipe = if actions.resume { recipe } else { divided };
        let action = if actions.summary {
            Action::Summary
        } else if actions.dry_run {
            Action::DryRun
        } else if let Some(file) = actions.preview {
            Action::Preview(file)
        } else {
            Action::Train
        };
        let Actions { demo, json, .. } = actions;
        notes.extend(notice);
        Ok(Job { action, recipe, given, options, base, demo, named, free_name, json, notes })
    }
}

/// The configuration file: in a run's folder its recipe.
fn config_file(path: &Path, notes: &mut Vec<String>) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    notes.push(format!("--config {}: a folder; its recipe.toml is taken", path.display()));
    RunDirectory::at(path).recipe()
}

/// The settings in a file that somebody wrote for the run's optimiser. The recipe of a run has a value of every setting, and
/// an optimiser on the command line replaces the file's with all that belongs to it.
fn meant_by(in_file: &Settings, path: &Path, typed: &Settings) -> toml::Table {
    let other = typed.optimizer.is_some() && typed.optimizer != in_file.optimizer;
    if other || RecipeFile::read(path).is_ok() { toml::Table::new() } else { in_file.table() }
}

/// See [`Job::base`]. A resumed run has no preset any more.
fn base(model: Variant, preset: &Settings, actions: &Actions) -> Result<Option<Base>> {
    let name = match actions.preset.as_slice() {
        [name] => format!("the preset {name}"),
        _ if actions.demo && !actions.resume => "the demo".into(),
        _ => return Ok(None),
    };
    let batch = preset.batch_size.map_or(REFERENCE_BATCH, |images| images as usize);
    Ok(Some(Base::new(&name, &Recipe::reference(model, batch).with(&preset.table())?)))
}

/// See [`Job::given`].
fn given(settings: &Settings, actions: &Actions) -> Option<BTreeSet<String>> {
    let alone = actions.config.is_none() && actions.preset.is_empty() && !actions.demo && !actions.resume;
    alone.then(|| without_auto(settings).into_iter().map(|(name, _)| name).collect())
}

/// The run directory.
fn out(settings: &Settings, actions: &Actions) -> PathBuf {
    match &settings.out {
        Some(out) => out.clone(),
        None if actions.demo && actions.resume => demo::latest_directory(),
        None if actions.demo && actions.force => demo::first(),
        None if actions.demo => demo::free_directory(),
        None => Path::new("runs").join(settings.model.unwrap_or(Variant::B0).name()),
    }
}

/// The lowest layer of a resumed run: the settings that its recipe file keeps and its checkpoint does not contain.
fn kept(out: &Path) -> Settings {
    let directory = RunDirectory::at(out);
    let Ok(file) = RecipeFile::read(&directory.recipe()) else { return Settings::default() };
    let mut kept = file.kept();
    if directory.found() == Found::Checkpoint {
        // The weights are in the checkpoint.
        kept.remove("init-from");
    }
    kept.try_into().unwrap_or_default()
}

fn options(settings: &Settings, actions: &Actions, out: PathBuf) -> Result<RunOptions> {
    let given: RunOptions = settings.table().try_into()?;
    Ok(RunOptions {
        data: if actions.demo { DataChoice::Demo } else { given.data },
        out,
        auto_micro_batch: !matches!(settings.micro_batch, Some(MicroBatch::Images(_))),
        profile: actions.profile,
        resume: actions.resume,
        extend: actions.extend,
        force: actions.force,
        ranks: ranks::ranks(settings, actions, |name| env::var(name).ok())?,
        started_with: ranks::started_with(settings),
        ..given
    })
}

/// The recipe of a resumed run or the reference recipe, with the settings that are given over those of the preset.
fn recipe(settings: &Settings, preset: &Settings, actions: &Actions, out: &Path) -> Result<Recipe> {
    if actions.resume {
        return resumed_recipe(settings, out);
    }
    let all = settings.over(preset);
    let reference = Recipe {
        crop: CropMode::Auto,
        ..Recipe::reference(
            all.model.unwrap_or(Variant::B0),
            all.batch_size.map_or(REFERENCE_BATCH, |images| images as usize),
        )
    };
    let mut recipe = reference.with(&without_auto(&all))?;
    // A short run gets a short warm-up, unless the warm-up is given.
    if let (Some(epochs), None) = (settings.epochs, settings.classifier_epochs) {
        recipe.classifier_epochs = recipe.classifier_epochs.map(|first| first.min(epochs / 10.0));
    }
    if let (Some(epochs), None) = (settings.epochs, settings.warmup_epochs) {
        recipe.warmup_epochs = recipe.warmup_epochs.min(epochs / 10.0);
    }
    Ok(recipe)
}

/// The recipe of a run to be resumed. Flags that contradict its checkpoint are refused before they are compared with each
/// other; a run that was stopped before its first checkpoint may still change.
fn resumed_recipe(settings: &Settings, out: &Path) -> Result<Recipe> {
    let saved = saved_recipe(out)?;
    let recipe = saved.with(&without_auto(settings))?;
    let directory = RunDirectory::at(out);
    if directory.found() == Found::Checkpoint {
        same_recipe(&recipe, &saved, &directory.checkpoint())?;
    }
    Ok(recipe)
}

/// The settings that are given. `auto` keeps the recipe's value: the crop of a resumed run, and the whole batch as
/// micro-batch, which a GPU divides if it does not fit.
fn without_auto(settings: &Settings) -> toml::Table {
    let mut table = settings.table();
    table.retain(|_, value| value.as_str() != Some("auto"));
    table
}
