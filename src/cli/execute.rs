//! Carries out a job: prints the tables, or opens the images and trains.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Action, Job, UsageError, demo};
use crate::data::{self, DataError, Source};
use crate::model::{ParamTable, summary};
use crate::parallel::World;
use crate::train::checkpoint::{DirectoryError, Found, RunDirectory};
use crate::train::device::{self, Hardware};
use crate::train::events::{End, Outcome, Reporter};
use crate::train::report::{All, Curves, for_stdout};
use crate::train::{
    DataChoice, DeviceChoice, MemoryPlan, Recipe, RecipeError, TrainError, memory_plan, train,
};

/// Classes of a network whose data is not there yet: ImageNet's.
const CLASSES: usize = 1000;

/// How a job ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Finished,
    /// Ctrl-C or SIGTERM ended the run, which is saved.
    Interrupted,
}

/// Whether an error is the command line's (exit status 2) rather than the world's (1).
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<UsageError>()
        || error.is::<RecipeError>()
        || matches!(error.downcast_ref(), Some(TrainError::Recipe(_) | TrainError::Device(_)))
}

/// Whether whoever read the output has gone.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

impl Job {
    /// # Errors
    /// Whatever stands in the way; one line when printed as `{:#}`.
    pub fn execute(&self, stop: &AtomicBool) -> Result<Done> {
        match self.action {
            Action::Summary => {
                let arch = self.recipe.architecture(self.classes()?)?;
                write!(io::stdout(), "{}", summary::summary(&arch, &ParamTable::new(&arch)))?;
            }
            Action::DryRun => self.print_memory_plan()?,
            Action::Train => {
                let outcome = self.train(stop)?;
                if outcome.end == End::Interrupted {
                    return Ok(Done::Interrupted);
                }
            }
        }
        Ok(Done::Finished)
    }

    /// The data's classes, where there is data.
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

    fn print_memory_plan(&self) -> Result<()> {
        struct Plan<'a>(&'a Recipe, usize);
        impl device::With for Plan<'_> {
            type Output = Result<(String, MemoryPlan), RecipeError>;
            fn with<H: Hardware>(self, mut hardware: H) -> Self::Output {
                Ok((hardware.line(), memory_plan(self.0, self.1, &mut hardware, World::ALONE)?))
            }
        }
        let options = &self.options;
        let selected = device::select(options.device, options.threads, options.precision);
        let selected = selected.map_err(TrainError::from)?;
        let (line, plan) = selected.with(Plan(&self.recipe, self.classes()?))?;
        if self.json {
            let object = json!({
                "micro_batch": plan.micro_batch, "batch_size": plan.batch_size, "arena": plan.arena,
                "saved": plan.saved, "workspace": plan.workspace, "weights": plan.weights,
                "gradients": plan.gradients, "optimizer": plan.optimizer, "ema": plan.ema,
                "checkpoint": plan.checkpoint, "images": plan.images, "total": plan.total(),
                "available": plan.available, "largest_micro_batch": plan.largest,
            });
            writeln!(io::stdout(), "{object}")?;
        } else {
            writeln!(io::stdout(), "{line}\n{plan}")?;
        }
        Ok(())
    }

    fn train(&self, stop: &AtomicBool) -> Result<Outcome> {
        // A device that is not there is told of before the data is looked for.
        if self.options.device == DeviceChoice::Cuda {
            device::select(self.options.device, self.options.threads, self.options.precision)
                .map_err(TrainError::from)?;
        }
        let mut report = All(vec![Box::new(Curves::default()), for_stdout(self.json)]);
        let source = self.source(&mut report)?;
        let outcome = train(&self.recipe, &self.options, source, &mut report, stop)?;
        if self.demo && outcome.end == End::Finished && !self.json {
            print_next(&outcome.out)?;
        }
        Ok(outcome)
    }

    fn source(&self, report: &mut dyn Reporter) -> Result<Source> {
        let options = &self.options;
        if options.data != DataChoice::Demo {
            return Ok(options.data.open(self.recipe.resolution)?);
        }
        // Nothing is packed into a directory that the run would then refuse.
        if !options.resume && !options.force && RunDirectory::at(&options.out).found() != Found::Nothing {
            return Err(DirectoryError::Taken { dir: options.out.clone() }.into());
        }
        report.notice("the demo: 12,000 images of Fashion-MNIST (Zalando SE, MIT licence)");
        if self.free_name {
            report.notice(&format!(
                "earlier demos stay as they are; this one goes to {}",
                options.out.display()
            ));
        }
        fs::create_dir_all(&options.out).with_context(|| format!("{}", options.out.display()))?;
        Ok(Source::Packed(Arc::new(data::demo::open(&options.out.join("data"))?)))
    }
}

/// What a finished demo leads on to.
fn print_next(out: &Path) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "next:")?;
    for (what, command) in demo::next_commands(out) {
        writeln!(stdout, "  {command}\n      {what}")?;
    }
    Ok(())
}
