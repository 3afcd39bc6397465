//! From a recipe to a run that is ready for its next step.
//!
//! Everything that can be wrong is found here, before anything is created or replaced: the recipe, the device, the
//! memory, the weights to start from, the checkpoint to continue from. [`inspect`] does what needs no other rank,
//! [`prepare`] the rest.

use std::fs;
use std::path::Path;

use super::schedule::Schedule;
use crate::data::{CropMode, DataError, Source, Split};
use crate::files;
use crate::model::formats::import::import;
use crate::model::formats::weights_file::{Average, WeightsFile};
use crate::model::{Architecture, ParamTable, initialise::initialise};
use crate::parallel::Identity;
use crate::train::checkpoint::{
    self, Checkpoint, CheckpointError, DirectoryError, Found, Metadata, RunDirectory, Snapshot,
};
use crate::train::device::Hardware;
use crate::train::error::TrainError;
use crate::train::extension::{check_patience, extend, line};
use crate::train::memory::{MemoryError, MemoryPlan, memory_plan};
use crate::train::options::RunOptions;
use crate::train::recipe::Recipe;
use crate::train::recipe_file::RecipeFile;
use crate::train::report::events::{ExtensionRecord, Reporter};
use crate::train::team::Team;

/// The recipe of a run that is to be resumed.
///
/// # Errors
/// If there is no run to resume, or its checkpoint is damaged.
pub fn saved_recipe(out: &Path) -> Result<Recipe, TrainError> {
    let directory = RunDirectory::at(out);
    match resumable(&directory)? {
        Found::Begun => Ok(RecipeFile::read(&directory.recipe())?.recipe),
        _ => Ok(checkpoint::verify(&directory.checkpoint())?.recipe),
    }
}

fn resumable(directory: &RunDirectory) -> Result<Found, DirectoryError> {
    let dir = directory.path().to_owned();
    match directory.found() {
        Found::Nothing => Err(DirectoryError::NothingToResume { dir }),
        Found::Broken => Err(DirectoryError::CheckpointMissing { dir }),
        found => Ok(found),
    }
}

/// What the files say about a run. Reading them opens no device and creates nothing.
pub(super) struct Inspection {
    recipe: Recipe,
    /// The epochs of the run before it was extended, if it is.
    extended_from: Option<f64>,
    directory: RunDirectory,
    /// What the directory holds of a run to be resumed.
    found: Option<Found>,
    saved: Option<Checkpoint>,
}

/// Finds the errors that every rank of a run would meet, before any rank is started. Nothing is created.
///
/// # Errors
/// A run directory that is taken, a checkpoint of another recipe or other data, missing weights, a schedule without a
/// step.
pub fn check(recipe: &Recipe, options: &RunOptions, source: &Source) -> Result<(), TrainError> {
    let inspection = inspect(recipe, options, source)?;
    inspection.compare(source)?;
    inspection.recipe.weights_of_classes(source)?;
    Schedule::new(&inspection.recipe, source.samples(Split::Train))?;
    Ok(())
}

/// Checks what a rank can check without the others.
pub(super) fn inspect(
    recipe: &Recipe,
    options: &RunOptions,
    source: &Source,
) -> Result<Inspection, TrainError> {
    let directory = RunDirectory::at(&options.out);
    let found = options.resume.then(|| resumable(&directory)).transpose()?;
    if !options.resume && !options.force && directory.found() != Found::Nothing {
        return Err(DirectoryError::Taken { dir: options.out.clone() }.into());
    }
    let saved = match found {
        Some(Found::Checkpoint) => Some(checkpoint::read(&directory.checkpoint())?),
        _ => None,
    };
    let recipe = resolve(recipe, options, source, saved.as_ref())?;
    let mut extended_from = None;
    let recipe = match options.extend {
        Some(to) => {
            extended_from = Some(recipe.epochs).filter(|&epochs| epochs != to);
            extend(&recipe, to, saved.as_ref().map(|saved| &saved.metadata))?
        }
        None => recipe,
    };
    recipe.validate()?;
    Ok(Inspection { recipe, extended_from, directory, found, saved })
}

/// Resolves the crop and replaces `--init-from` by a checksum of the file.
fn resolve(
    recipe: &Recipe,
    options: &RunOptions,
    source: &Source,
    saved: Option<&Checkpoint>,
) -> Result<Recipe, TrainError> {
    let saved = saved.map(|saved| &saved.metadata.recipe);
    let crop = match (recipe.crop, saved) {
        (CropMode::Auto, Some(saved)) => saved.crop,
        _ => recipe.crop_of(source),
    };
    // Which copy of the file counts too.
    let identified = |path: &Path| {
        let checksum = file_checksum(path)?;
        Ok::<_, DataError>(match options.init_weights {
            Average::Raw => checksum,
            Average::Ema => format!("{checksum}-ema"),
        })
    };
    let init_from = match (&options.init_from, saved) {
        (Some(path), None) => Some(identified(path)?),
        // The weights are in the checkpoint, so the file need not exist any more.
        (Some(path), Some(saved)) => identified(path).ok().or(saved.init_from.clone()),
        (None, Some(saved)) => saved.init_from.clone(),
        (None, None) => None,
    };
    Ok(Recipe { crop, init_from, ..recipe.clone() })
}

fn file_checksum(path: &Path) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(|error| DataError::Io { path: path.to_owned(), error })?;
    Ok(format!("{:08x}-{}", crc32fast::hash(&bytes), bytes.len()))
}

impl Inspection {
    /// What must be the same at all ranks.
    pub fn identity(&self, options: &RunOptions, source: &Source) -> Identity {
        let fields = self.recipe.fields().into_iter();
        let mut facts: Vec<(String, String)> =
            fields.map(|(name, value)| (name, value.to_string())).collect();
        // Not part of the recipe, but ranks that end or measure at different steps would wait for each other.
        let steps = |steps: Option<u64>| steps.map_or("none".into(), |steps| steps.to_string());
        let (max_steps, profile) = (steps(options.max_steps), steps(options.profile));
        let checkpoint = self.saved.as_ref().map_or("none".into(), |Checkpoint { metadata, .. }| {
            format!("{} of step {}", metadata.checksum, metadata.step)
        });
        facts.extend([
            ("max-steps".into(), max_steps),
            ("profile".into(), profile),
            ("data set".into(), source.fingerprint()),
            ("classes".into(), source.classes().to_string()),
            ("checkpoint".into(), checkpoint),
        ]);
        Identity { version: env!("CARGO_PKG_VERSION").into(), facts }
    }

    /// Checks that the checkpoint of a resumed run has this recipe and this data.
    fn compare(&self, source: &Source) -> Result<(), TrainError> {
        let Some(Checkpoint { metadata, .. }) = &self.saved else { return Ok(()) };
        let checkpoint = self.directory.checkpoint();
        let epochs = self.extended_from.unwrap_or(self.recipe.epochs);
        same_recipe(&Recipe { epochs, ..self.recipe.clone() }, &metadata.recipe, &checkpoint)?;
        let theirs = metadata.data.clone();
        let ours = source.fingerprint();
        if theirs != ours || metadata.classes != source.class_names() {
            return Err(TrainError::OtherData { checkpoint, theirs, ours });
        }
        Ok(())
    }
}

/// Refuses a recipe that is not that of the checkpoint to be resumed.
///
/// # Errors
/// One line with every field that differs, and the ways out.
pub fn same_recipe(recipe: &Recipe, saved: &Recipe, checkpoint: &Path) -> Result<(), TrainError> {
    let differences = recipe.differences(saved);
    if differences.is_empty() {
        return Ok(());
    }
    let more = Some(recipe.epochs).filter(|&epochs| epochs > saved.epochs);
    Err(TrainError::OtherRecipe { checkpoint: checkpoint.to_owned(), differences, more })
}

/// A run that is ready.
pub(super) struct Session<H> {
    pub recipe: Recipe,
    pub arch: Architecture,
    pub schedule: Schedule,
    pub hardware: H,
    pub memory: MemoryPlan,
    pub directory: RunDirectory,
    pub metadata: Metadata,
    pub state: Snapshot,
    /// Whether the state came from a checkpoint.
    pub resumed: bool,
    /// Set if it goes on to more epochs than the checkpoint says.
    pub extension: Option<ExtensionRecord>,
}

/// Checks everything else, together with the other ranks; then rank 0 creates or opens the run directory.
pub(super) fn prepare<H: Hardware>(
    inspection: Inspection,
    options: &RunOptions,
    source: &Source,
    hardware: H,
    team: &Team,
    reporter: &mut dyn Reporter,
) -> Result<Session<H>, TrainError> {
    inspection.compare(source)?;
    // The same passes on every rank, so that all enqueue their collectives in the same order.
    let all = team.least("recompute", usize::from(hardware.recomputes()))? == 1;
    let mut hardware = if all { hardware } else { hardware.storing() };
    let Inspection { mut recipe, extended_from, mut directory, found, saved } = inspection;
    let resumed = saved.is_some();
    let smaller = recipe.divide(team.world().size, options.auto_micro_batch || resumed)?;
    if let Some(line) = smaller.filter(|_| resumed) {
        reporter.notice(&line);
    }
    let schedule = Schedule::new(&recipe, source.samples(Split::Train))?;
    let classes = source.classes();
    let may_change = options.auto_micro_batch && !resumed;
    let memory =
        fit(&mut recipe, classes, &mut hardware, team, (may_change, options.loader_threads), reporter)?;
    let arch = recipe.architecture(classes)?;
    // Before anything is created.
    recipe.weights_of_classes(source)?;
    let (metadata, state) = match saved {
        Some(saved) => {
            let steps = schedule.steps();
            (Metadata { recipe: recipe.clone(), steps, ..saved.metadata }, saved.state)
        }
        None => initial(&recipe, options, source, &arch, &schedule, reporter)?,
    };
    let extension = match extended_from.filter(|_| resumed) {
        Some(from) => Some(extension(from, &recipe, &schedule, &metadata, source, reporter)?),
        None => None,
    };
    // After this, all ranks have read the old files, so rank 0 may replace them.
    team.any("opening the run", false)?;
    if team.leads() {
        directory = RunDirectory::open(&options.out)?;
        if !resumed && options.force {
            directory.clear()?;
        }
        if found == Some(Found::Begun) {
            reporter.notice("the run was stopped before its first checkpoint: it starts from the beginning");
        }
        if !resumed || !directory.recipe().exists() {
            let text = RecipeFile::new(&recipe, options, source).render();
            files::replace(&directory.recipe(), text.as_bytes()).map_err(DataError::from)?;
        }
    }
    Ok(Session { recipe, arch, schedule, hardware, memory, directory, metadata, state, resumed, extension })
}

/// Checks that a run can be extended, and reports what that means.
fn extension(
    extended_from: f64,
    recipe: &Recipe,
    schedule: &Schedule,
    metadata: &Metadata,
    source: &Source,
    reporter: &mut dyn Reporter,
) -> Result<ExtensionRecord, TrainError> {
    check_patience(recipe, schedule, metadata)?;
    let Metadata { step, epoch, .. } = *metadata;
    let record = ExtensionRecord { step, epoch, extended_from, extended_to: recipe.epochs };
    let before = Recipe { epochs: extended_from, ..recipe.clone() };
    let before = Schedule::new(&before, source.samples(Split::Train))?;
    reporter.notice(&line(&before, schedule, recipe.stages().len(), &record));
    Ok(record)
}

/// Plans the memory of all ranks. If the micro-batch `may_change`, it becomes the largest that fits at every rank.
fn fit<H: Hardware>(
    recipe: &mut Recipe,
    classes: usize,
    hardware: &mut H,
    team: &Team,
    (may_change, loader_threads): (bool, usize),
    reporter: &mut dyn Reporter,
) -> Result<MemoryPlan, TrainError> {
    let world = team.world();
    let mut memory = memory_plan(recipe, classes, hardware, world, loader_threads)?;
    let mut fits = recipe.micro_batch;
    if may_change {
        fits = memory.check().err().and_then(|error| error.fits()).unwrap_or(fits);
    }
    // This exchange also ensures that all ranks have looked at the free memory before any rank allocates.
    let fits = team.least("micro-batch", fits)?;
    if fits < recipe.micro_batch {
        recipe.micro_batch = fits;
        memory = memory_plan(recipe, classes, hardware, world, loader_threads)?;
        reporter.notice(&format!(
            "micro-batch: {fits} images, the most that fits; {} passes make a step",
            recipe.batch_size / world.size / fits
        ));
    }
    match memory.check() {
        // Nobody asked for this micro-batch, and no other fits.
        Err(MemoryError::Batch { have, on_gpu, .. }) if may_change => {
            let least = recipe.least_micro_batch();
            let one = Recipe { micro_batch: least, ..recipe.clone() };
            let need = memory_plan(&one, classes, hardware, world, loader_threads)?.total();
            let Recipe { batch_size, resolution, .. } = *recipe;
            Err(MemoryError::Nothing { batch_size, least, resolution, need, have, on_gpu }.into())
        }
        other => Ok(other.map(|()| memory)?),
    }
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
    let mut state = Snapshot::new(&table, recipe);
    state.parameters = initialise(&table, recipe.seed);
    if let Some(path) = &options.init_from {
        reject_damaged(path)?;
        let file = WeightsFile::read(path)?;
        let import = import(&file, options.init_weights, arch, &mut state.parameters)?;
        if !options.init_partial {
            import.require_whole(path, arch)?;
        }
        if file.has_both() && options.init_weights == Average::Raw {
            reporter.notice("weights: the file has a moving average too; --init-weights ema takes it");
        }
        import.lines().iter().for_each(|line| reporter.notice(line));
    }
    if recipe.ema > 0.0 {
        state.ema.clone_from(&state.parameters);
    }
    let metadata = Metadata::new(
        recipe,
        source.class_names(),
        recipe.normalise.values(source.normalise()),
        source.fingerprint(),
        schedule.steps(),
    );
    Ok((metadata, state))
}

/// Refuses a damaged checkpoint as the source of weights. Other safetensors files have no checksum; `import` checks
/// them.
fn reject_damaged(path: &Path) -> Result<(), TrainError> {
    match checkpoint::verify(path) {
        Ok(_) | Err(CheckpointError::Foreign { .. }) => Ok(()),
        Err(error) if checkpoint::is_checkpoint(path) => Err(error.into()),
        Err(_) => Ok(()),
    }
}
