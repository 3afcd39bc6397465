//! From a recipe to a run that is ready to take its next step.
//!
//! All that can be wrong is found here, before anything is created or replaced: the recipe, the device, the
//! memory, the weights to start from, the checkpoint to go on from.

use std::fs;
use std::path::Path;

use super::checkpoint::{self, Checkpoint, DirectoryError, Found, Metadata, RunDirectory, Snapshot};
use super::device::Hardware;
use super::error::TrainError;
use super::events::Reporter;
use super::memory::{MemoryPlan, memory_plan};
use super::recipe::{Recipe, RunOptions};
use super::recipe_file::RecipeFile;
use super::schedule::Schedule;
use super::team::{self, Team};
use crate::data::{CropMode, DataError, Source, Split};
use crate::model::{Architecture, ParamTable, formats, initialise::initialise};
use crate::parallel::Identity;

/// The recipe of a run that is to be resumed.
///
/// # Errors
/// Where there is nothing to resume, or its checkpoint is damaged.
pub fn saved_recipe(out: &Path) -> Result<Recipe, TrainError> {
    let run = RunDirectory::at(out);
    match resumable(&run)? {
        Found::Begun => Ok(RecipeFile::read(&run.recipe())?.recipe),
        _ => Ok(checkpoint::verify(&run.checkpoint())?.recipe),
    }
}

fn resumable(run: &RunDirectory) -> Result<Found, DirectoryError> {
    let dir = run.path().to_owned();
    match run.found() {
        Found::Nothing => Err(DirectoryError::NothingToResume { dir }),
        Found::Broken => Err(DirectoryError::CheckpointMissing { dir }),
        found => Ok(found),
    }
}

/// What a run will be, as far as files say: no device is looked at, and nothing is created.
pub(super) struct Draft {
    recipe: Recipe,
    before: RunDirectory,
    found: Option<Found>,
    saved: Option<Checkpoint>,
}

/// Finds out what every rank of a run would meet, before any is started: nothing is created.
///
/// # Errors
/// A run directory that is taken, a checkpoint of another recipe or other data, weights that are not there, a schedule
/// without a step.
pub fn check(recipe: &Recipe, options: &RunOptions, source: &Source) -> Result<(), TrainError> {
    let draft = draft(recipe, options, source)?;
    draft.agree(source)?;
    Schedule::new(&draft.recipe, source.samples(Split::Train))?;
    Ok(())
}

/// Checks what every rank can check by itself.
pub(super) fn draft(recipe: &Recipe, options: &RunOptions, source: &Source) -> Result<Draft, TrainError> {
    let mut recipe = recipe.clone();
    let before = RunDirectory::at(&options.out);
    let found = match options.resume {
        true => Some(resumable(&before)?),
        false if before.found() != Found::Nothing && !options.force => {
            return Err(DirectoryError::Taken { dir: options.out.clone() }.into());
        }
        false => None,
    };
    let saved = match found {
        Some(Found::Checkpoint) => Some(checkpoint::read(&before.checkpoint())?),
        _ => None,
    };
    settle(&mut recipe, options, source, saved.as_ref())?;
    recipe.validate()?;
    Ok(Draft { recipe, before, found, saved })
}

impl Draft {
    /// What must be the same at all ranks.
    pub fn identity(&self, options: &RunOptions, source: &Source) -> Identity {
        team::identity(&self.recipe, options.max_steps, source, self.saved.as_ref())
    }

    /// What a resumed run has behind it.
    fn agree(&self, source: &Source) -> Result<(), TrainError> {
        match &self.saved {
            Some(saved) => agree(&self.recipe, source, saved, &self.before.checkpoint()),
            None => Ok(()),
        }
    }
}

/// A run that is ready.
pub(super) struct Session<H> {
    pub recipe: Recipe,
    pub arch: Architecture,
    pub schedule: Schedule,
    pub hardware: H,
    pub memory: MemoryPlan,
    pub run: RunDirectory,
    pub metadata: Metadata,
    pub state: Snapshot,
    /// Whether the state came from a checkpoint.
    pub resumed: bool,
}

/// Checks everything else, with the other ranks; then rank 0 makes or opens the run directory.
pub(super) fn prepare<H: Hardware>(
    draft: Draft,
    options: &RunOptions,
    source: &Source,
    mut hardware: H,
    team: &Team,
    reporter: &mut dyn Reporter,
) -> Result<Session<H>, TrainError> {
    draft.agree(source)?;
    let Draft { mut recipe, before, found, saved } = draft;
    let world = team.world();
    let divided =
        team::divide(&mut recipe, options.auto_micro_batch || saved.is_some(), saved.as_ref(), world.size)?;
    divided.iter().for_each(|line| reporter.notice(line));
    let schedule = Schedule::new(&recipe, source.samples(Split::Train))?;
    let classes = source.classes();
    let memory = fit(&mut recipe, options, classes, &mut hardware, team, saved.is_some(), reporter)?;
    let arch = recipe.architecture(classes)?;

    let resumed = saved.is_some();
    let (metadata, state) = match saved {
        Some(saved) => (Metadata { recipe: recipe.clone(), ..saved.metadata }, saved.state),
        None => initial(&recipe, options, source, &arch, &schedule, reporter)?,
    };
    // All ranks have read what is there: now it may be replaced.
    team.any("opening the run", false)?;
    if !team.leads() {
        return Ok(Session {
            recipe,
            arch,
            schedule,
            hardware,
            memory,
            run: before,
            metadata,
            state,
            resumed,
        });
    }
    let run = RunDirectory::open(&options.out)?;
    if !resumed {
        if options.force {
            run.clear()?;
        }
        if found == Some(Found::Begun) {
            reporter.notice("the run was stopped before its first checkpoint: it starts from the beginning");
        }
    }
    if !resumed || !run.recipe().exists() {
        let text = RecipeFile::new(&recipe, options, source).render();
        crate::files::replace(&run.recipe(), text.as_bytes()).map_err(DataError::from)?;
    }
    Ok(Session { recipe, arch, schedule, hardware, memory, run, metadata, state, resumed })
}

/// Plans the memory of all ranks. A GPU may cut the batch into micro-batches that fit, the same at every rank.
fn fit<H: Hardware>(
    recipe: &mut Recipe,
    options: &RunOptions,
    classes: usize,
    hardware: &mut H,
    team: &Team,
    resumed: bool,
    reporter: &mut dyn Reporter,
) -> Result<MemoryPlan, TrainError> {
    let world = team.world();
    let mut memory = memory_plan(recipe, classes, hardware, world)?;
    let mut fits = recipe.micro_batch;
    if options.auto_micro_batch && hardware.has_own_memory() && !resumed {
        fits = memory.check().err().and_then(|error| error.fits).unwrap_or(fits);
    }
    // Also so that all have seen what memory there is before any takes some.
    let fits = team.least("micro-batch", fits)?;
    if fits < recipe.micro_batch {
        recipe.micro_batch = fits;
        memory = memory_plan(recipe, classes, hardware, world)?;
        reporter.notice(&format!(
            "micro-batch: {fits} images, the most that fits; {} passes make a step",
            recipe.batch_size / world.size / fits
        ));
    }
    memory.check()?;
    Ok(memory)
}

/// Puts the content of `--init-from` and the resolved crop into the recipe.
fn settle(
    recipe: &mut Recipe,
    options: &RunOptions,
    source: &Source,
    saved: Option<&Checkpoint>,
) -> Result<(), TrainError> {
    let saved = saved.map(|saved| &saved.metadata.recipe);
    if recipe.crop == CropMode::Auto {
        recipe.crop = saved.map_or_else(
            || recipe.crop.resolve(source.largest(Split::Train), recipe.resolution),
            |saved| saved.crop,
        );
    }
    recipe.init_from = match (&options.init_from, saved) {
        (Some(path), None) => Some(identity(path)?),
        // On resume the weights are in the checkpoint; the file may have gone.
        (Some(path), Some(saved)) => identity(path).ok().or(saved.init_from.clone()),
        (None, Some(saved)) => saved.init_from.clone(),
        (None, None) => None,
    };
    Ok(())
}

/// Names a file's content.
fn identity(path: &Path) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(|error| DataError::Io { path: path.to_owned(), error })?;
    Ok(format!("{:08x}-{}", crc32fast::hash(&bytes), bytes.len()))
}

/// Whether a checkpoint is of this recipe and data.
fn agree(recipe: &Recipe, source: &Source, saved: &Checkpoint, path: &Path) -> Result<(), TrainError> {
    let checkpoint = path.to_owned();
    let differences = recipe.differences(&saved.metadata.recipe);
    if !differences.is_empty() {
        return Err(TrainError::OtherRecipe { checkpoint, differences });
    }
    let (theirs, ours) = (saved.metadata.data.clone(), source.fingerprint());
    if theirs != ours || saved.metadata.classes != source.class_names() {
        return Err(TrainError::OtherData { checkpoint, theirs, ours });
    }
    Ok(())
}

/// The state before the first step.
fn initial(
    recipe: &Recipe,
    options: &RunOptions,
    source: &Source,
    arch: &Architecture,
    schedule: &Schedule,
    reporter: &mut dyn Reporter,
) -> Result<(Metadata, Snapshot), TrainError> {
    let table = ParamTable::new(arch);
    let mut state = Snapshot::new(&table, recipe.ema > 0.0);
    state.parameters = initialise(&table, recipe.seed);
    if let Some(path) = &options.init_from {
        reject_damaged(path)?;
        let import = formats::import(path, &table, &mut state.parameters)?;
        import.lines().iter().for_each(|line| reporter.notice(line));
    }
    if recipe.ema > 0.0 {
        state.ema.clone_from(&state.parameters);
    }
    state.mean_square.fill(recipe.update().rule.initial_mean_square());
    let metadata = Metadata::new(
        recipe,
        source.class_names(),
        source.normalise(),
        source.fingerprint(),
        schedule.steps(),
    );
    Ok((metadata, state))
}

/// A checkpoint of this program has a checksum; other safetensors files have none.
fn reject_damaged(path: &Path) -> Result<(), TrainError> {
    match checkpoint::verify(path) {
        Ok(_) | Err(checkpoint::CheckpointError::Foreign { .. }) => Ok(()),
        // Truncated and altered foreign files are `import`'s to judge.
        Err(error) => match looks_like_ours(path) {
            true => Err(error.into()),
            false => Ok(()),
        },
    }
}

fn looks_like_ours(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    read.is_ok() && start.get(8..).is_some_and(|json| json.starts_with(b"{\"__metadata__\":{\"effnet\":"))
}
