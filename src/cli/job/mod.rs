//! From flags to a job: a complete recipe, checked, and how to carry it out.

pub mod demo;
pub mod execute;
mod ranks;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::flags::{Actions, Flags, MicroBatch, Settings, file};
use super::{UsageError, preset};
use crate::data::CropMode;
use crate::model::Variant;
use crate::train::checkpoint::{Found, RunDirectory};
use crate::train::recipe_file::RecipeFile;
use crate::train::{DataChoice, Recipe, RunOptions, saved_recipe};

/// The batch of the reference recipe.
const BATCH: u64 = 4096;

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
    /// The crop is still auto if no layer sets it: it depends on the data.
    pub recipe: Recipe,
    pub options: RunOptions,
    pub demo: bool,
    /// Whether the run directory was given.
    pub named: bool,
    /// Whether a demo takes another directory because earlier demos have taken the first.
    pub free_name: bool,
    /// A line for the user before the run.
    pub notice: Option<String>,
    pub json: bool,
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
        if let Some(path) = &actions.config {
            settings = settings.over(&file::read(path)?);
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
        let mut divided = recipe.clone();
        // The layer table is the same for any number of ranks.
        let ranks = if actions.summary { 1 } else { options.ranks.world().size };
        divided.divide(ranks, options.auto_micro_batch || actions.resume)?;
        // The recipe of a resumed run is first compared with the checkpoint's, and then divided.
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
        Ok(Job { action, recipe, options, demo, named, free_name, notice, json })
    }
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
        force: actions.force,
        ranks: ranks::ranks(settings, actions, |name| env::var(name).ok())?,
        started_with: ranks::started_with(settings),
        ..given
    })
}

/// The recipe of a resumed run or the reference recipe, with the settings that are given over those of the preset.
fn recipe(settings: &Settings, preset: &Settings, actions: &Actions, out: &Path) -> Result<Recipe> {
    if actions.resume {
        return Ok(saved_recipe(out)?.with(&without_auto(settings))?);
    }
    let all = settings.over(preset);
    let reference = Recipe {
        crop: CropMode::Auto,
        ..Recipe::reference(all.model.unwrap_or(Variant::B0), all.batch_size.unwrap_or(BATCH) as usize)
    };
    let mut recipe = reference.with(&without_auto(&all))?;
    // A short run gets a short warm-up, unless the warm-up is given.
    if let (Some(epochs), None) = (settings.epochs, settings.warmup_epochs) {
        recipe.warmup_epochs = recipe.warmup_epochs.min(epochs / 10.0);
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
