//! Carries out a job: prints a table, or opens the images and trains.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use serde_json::json;

use super::fitted::{is_gpu, ranks_on_gpus};
use super::unpacked::is_source;
use super::{Action, Job, demo};
use crate::cli::UsageError;
use crate::data::{self, DataError, Source};
use crate::files;
use crate::model::{ParamTable, summary};
use crate::parallel::launch::{Launch, Program};
use crate::parallel::{GroupError, Ranks, World};
use crate::train::checkpoint::{DirectoryError, Found, RunDirectory};
use crate::train::curves::Curves;
use crate::train::device::{self, Hardware};
use crate::train::events::{All, End, Reporter, Silent};
use crate::train::report::{for_stdout, preview};
use crate::train::{
    DataChoice, MemoryPlan, Outcome, Recipe, RecipeError, RunOptions, TrainError, check, memory_plan,
    train_selected,
};

/// Classes of a network without data: as many as ImageNet has.
const CLASSES: usize = 1000;

/// How a job ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Finished,
    /// Ctrl-C or SIGTERM ended the run. It is saved, if it had begun.
    Interrupted,
    /// The started ranks have ended with this status, and have reported everything.
    Ranks(u8),
}

/// Whether the command line caused the error (exit status 2) or something else (1).
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<UsageError>()
        || error.is::<RecipeError>()
        || matches!(error.downcast_ref(), Some(TrainError::Recipe(_) | TrainError::Device(_)))
}

/// Whether another rank reports the error.
pub fn is_told(error: &anyhow::Error) -> bool {
    use TrainError::{Group, Rank};
    matches!(
        error.downcast_ref(),
        Some(Rank { told: true, .. } | Group(GroupError::Refused { told: true, .. }))
    )
}

/// Whether the reader of the output has closed it.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

impl Job {
    /// The ranks that this process starts; then it does not train itself.
    pub fn launches(&self) -> Option<&Launch> {
        match &self.options.ranks {
            Ranks::Launch(launch) if self.action == Action::Train => Some(launch),
            _ => None,
        }
    }

    /// Carries out the job. If it launches ranks, the launcher handles signals, and the caller must not.
    ///
    /// # Errors
    /// One line when printed as `{:#}`.
    pub fn execute(&self, stop: &AtomicBool) -> Result<Done> {
        match &self.action {
            Action::Summary => {
                let arch = self.recipe.architecture(self.classes()?)?;
                let table = ParamTable::new(&arch);
                if self.json {
                    writeln!(io::stdout(), "{}", summary::json(&arch, &table))?;
                } else {
                    write!(io::stdout(), "{}", summary::summary(&arch, &table))?;
                }
            }
            Action::DryRun => self.print_memory_plan()?,
            Action::Preview(file) => self.write_preview(file)?,
            Action::Train => {
                if let Some(launch) = self.launches() {
                    return self.launch(launch);
                }
                return self.train(stop);
            }
        }
        Ok(Done::Finished)
    }

    /// The number of classes of the data, if there is data.
    fn classes(&self) -> Result<usize> {
        if self.options.data == DataChoice::Demo {
            return Ok(data::demo::CLASSES.len());
        }
        match self.options.data.open(self.recipe.resolution) {
            Ok(source) => Ok(source.classes()),
            Err(DataError::NoDataset { .. }) => Ok(CLASSES),
            Err(other) => Err(other.into()),
        }
    }

    fn write_preview(&self, file: &Path) -> Result<()> {
        let mut report = All(vec![for_stdout(self.json)]);
        let (source, _) = self.source(&mut report)?;
        let selected = device::select_for(&self.options).map_err(TrainError::from)?;
        let recipe = self.fitted(&source, is_gpu(&selected), &mut report)?;
        let crop = recipe.crop_of(&source);
        let page = preview::page(&Recipe { crop, ..recipe }, &source)?;
        files::replace(file, page.as_bytes())?;
        writeln!(io::stdout(), "training images: {}", file.display())?;
        Ok(())
    }

    fn print_memory_plan(&self) -> Result<()> {
        struct Plan<'a>(&'a Recipe, usize, World, usize);
        impl device::With for Plan<'_> {
            type Output = Result<(String, MemoryPlan), RecipeError>;
            fn with<H: Hardware>(self, mut hardware: H) -> Self::Output {
                Ok((hardware.line(), memory_plan(self.0, self.1, &mut hardware, self.2, self.3)?))
            }
        }
        let options = &self.options;
        let selected = device::select_for(options).map_err(TrainError::from)?;
        let world = options.ranks.world();
        let mut report = All(if self.json { Vec::new() } else { vec![for_stdout(false)] });
        let mut recipe = match options.data.open(self.recipe.resolution) {
            Ok(source) => self.fitted(&source, is_gpu(&selected), &mut report)?,
            // No images, or the demo's.
            Err(_) => self.recipe.clone(),
        };
        // The recipe of a resumed run is not divided yet.
        recipe.divide(world.size, options.auto_micro_batch || options.resume)?;
        let (line, plan) = selected.with(Plan(&recipe, self.classes()?, world, options.loader_threads))?;
        if self.json {
            let mut object = json!(plan);
            object["total"] = plan.total().into();
            writeln!(io::stdout(), "{object}")?;
        } else {
            writeln!(io::stdout(), "{line}\n{plan}")?;
        }
        Ok(())
    }

    fn train(&self, stop: &AtomicBool) -> Result<Done> {
        // A missing device is reported before missing data.
        let selected = device::select_for(&self.options).map_err(TrainError::from)?;
        // Only rank 0 reports.
        let leads = self.options.ranks.world().leads();
        let mut report = All(Vec::new());
        if leads {
            report.0 = vec![Box::new(Curves::default()), for_stdout(self.json)];
        }
        self.notes.iter().for_each(|note| report.notice(note));
        let (source, data) = self.source(&mut report)?;
        let recipe = self.fitted(&source, is_gpu(&selected), &mut report)?;
        self.warn(&recipe, &source, &mut report);
        let options = RunOptions { data, ..self.options.clone() };
        let outcome = match train_selected(&recipe, &options, source, selected, &mut report, stop) {
            Err(TrainError::Group(error @ GroupError::Interrupted)) => {
                report.notice(&error.to_string());
                return Ok(Done::Interrupted);
            }
            outcome => outcome?,
        };
        match outcome {
            Outcome { end: End::Interrupted, .. } => return Ok(Done::Interrupted),
            // Every rank ends with this status; the first one reports it.
            Outcome { diverged: true, .. } if !leads => return Ok(Done::Ranks(1)),
            Outcome { diverged: true, last: Some(last), best, .. } => {
                return Err(TrainError::Diverged { loss: last.loss, best: best.map(|best| best.step) }.into());
            }
            _ => {}
        }
        if self.demo && outcome.end == End::Finished && !self.json && leads {
            print_next(&outcome.out)?;
        }
        Ok(Done::Finished)
    }

    /// Starts the ranks, after a check for errors that all of them would meet.
    fn launch(&self, launch: &Launch) -> Result<Done> {
        device::check_for(&self.options).map_err(TrainError::from)?;
        // This also packs images before several ranks open them.
        let (source, _) = self.source(&mut All(vec![for_stdout(self.json)]))?;
        // Rank 0 says what is chosen.
        let recipe = self.fitted(&source, ranks_on_gpus(self.options.device), &mut Silent)?;
        check(&recipe, &self.options, &source)?;
        let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
        if self.demo && !self.named {
            // As soon as rank 0 has begun, other ranks would find another free name.
            arguments.extend(["--out".into(), self.options.out.clone().into()]);
        }
        let program = Program::this(arguments).context("this program's own path")?;
        Ok(Done::Ranks(launch.run(&program)?))
    }

    fn refuse_taken(&self) -> Result<()> {
        let options = &self.options;
        if !options.resume && !options.force && RunDirectory::at(&options.out).found() != Found::Nothing {
            return Err(DirectoryError::Taken { dir: options.out.clone() }.into());
        }
        Ok(())
    }

    /// The images, and where they lie: packed, also if --data names images that are not.
    fn source(&self, report: &mut dyn Reporter) -> Result<(Source, DataChoice)> {
        let options = &self.options;
        if options.data != DataChoice::Demo {
            return match options.data.open(self.recipe.resolution) {
                Err(DataError::NoDataset { dir, .. }) if is_source(&dir) => {
                    let choice = DataChoice::Dir(self.packed(&dir, report)?);
                    Ok((choice.open(self.recipe.resolution)?, choice))
                }
                Err(DataError::NoDataset { dir, problem }) if options.resume => {
                    Err(TrainError::DataMoved { dir, problem }.into())
                }
                other => Ok((other?, options.data.clone())),
            };
        }
        if let Ranks::Given(_) = options.ranks {
            // The launcher has packed them and reported it.
            let set = data::demo::open(&options.out.join("data"))?;
            return Ok((Source::Packed(Arc::new(set)), DataChoice::Demo));
        }
        // Images must not be packed into a directory that the run would then refuse.
        self.refuse_taken()?;
        report.notice("the demo: 12,000 images of Fashion-MNIST (Zalando SE, MIT licence)");
        if self.free_name {
            report.notice(&format!(
                "earlier demos stay as they are; this one goes to {}",
                options.out.display()
            ));
        }
        fs::create_dir_all(&options.out).with_context(|| format!("{}", options.out.display()))?;
        let set = data::demo::open(&options.out.join("data"))?;
        Ok((Source::Packed(Arc::new(set)), DataChoice::Demo))
    }
}

/// Prints the commands to try after a demo.
fn print_next(out: &Path) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "next:")?;
    for (what, command) in demo::next_commands(out) {
        writeln!(stdout, "  {command}\n      {what}")?;
    }
    Ok(())
}
