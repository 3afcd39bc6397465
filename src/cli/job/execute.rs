//! Carries out a job: prints a table, or opens the images and trains.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};

use super::fitted::{is_gpu, ranks_on_gpus};
use super::{Action, Job, demo};
use crate::cli::unpacked::{is_source, packed, packed_before, store};
use crate::cli::{UsageError, signals};
use crate::data::{self, DataError, Source};
use crate::files;
use crate::model::{ParamTable, summary};
use crate::parallel::launch::{Launch, Program};
use crate::parallel::{GroupError, Ranks};
use crate::train::checkpoint::{DirectoryError, Found, RunDirectory};
use crate::train::curves::Curves;
use crate::train::device;
use crate::train::events::{All, End, Reporter, Silent};
use crate::train::recipe_file::RecipeFile;
use crate::train::report::log_csv::LogCsv;
use crate::train::report::page::writer::{Job as PageJob, Writer};
use crate::train::report::run_files::WithFiles;
use crate::train::report::tensorboard::TensorBoard;
use crate::train::report::{for_stdout, preview};
use crate::train::{DataChoice, Outcome, Recipe, RecipeError, RunOptions, TrainError, check, train_selected};

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
    pub fn execute(&self, stop: &Arc<AtomicBool>) -> Result<Done> {
        match self.carry_out(stop) {
            Err(error) if matches!(error.downcast_ref(), Some(DataError::Stopped { .. })) => {
                signals::pack_stopped();
                for_stdout(self.json).notice(&error.to_string());
                Ok(Done::Interrupted)
            }
            other => other,
        }
    }

    fn carry_out(&self, stop: &Arc<AtomicBool>) -> Result<Done> {
        match &self.action {
            Action::Summary => {
                let arch = self.recipe.architecture(self.classes()?)?;
                let table = ParamTable::new(&arch);
                let frozen = self.recipe.freeze.map(|freeze| freeze.to_string());
                if self.json {
                    writeln!(io::stdout(), "{}", summary::json(&arch, &table, frozen.as_deref()))?;
                } else {
                    write!(io::stdout(), "{}", summary::summary(&arch, &table, frozen.as_deref()))?;
                }
            }
            Action::DryRun => self.print_memory_plan()?,
            Action::Preview(file) => self.write_preview(file, stop)?,
            Action::Train => {
                if let Some(launch) = self.launches() {
                    return self.launch(launch);
                }
                return self.train(stop);
            }
        }
        Ok(Done::Finished)
    }

    fn write_preview(&self, file: &Path, stop: &Arc<AtomicBool>) -> Result<()> {
        let mut report = All(vec![for_stdout(self.json)]);
        let (source, _) = self.source(&mut report, stop)?;
        let selected = device::select_for(&self.options).map_err(TrainError::from)?;
        let recipe = self.fitted(&source, is_gpu(&selected), &mut report)?;
        let crop = recipe.crop_of(&source);
        let page = preview::page(&Recipe { crop, ..recipe }, &source)?;
        files::replace(file, page.as_bytes())?;
        writeln!(io::stdout(), "training images: {}", file.display())?;
        Ok(())
    }

    fn train(&self, stop: &Arc<AtomicBool>) -> Result<Done> {
        // A missing device is reported before missing data.
        let selected = device::select_for(&self.options).map_err(TrainError::from)?;
        // Only rank 0 reports.
        let leads = self.options.ranks.world().leads();
        let shown: Vec<Box<dyn Reporter>> =
            if leads { vec![Box::new(Curves::default()), for_stdout(self.json)] } else { Vec::new() };
        let mut report = Writer::new(WithFiles { reporter: Box::new(All(shown)), files: Vec::new() });
        self.notes.iter().for_each(|note| report.notice(note));
        let (source, data) = self.source(&mut report, stop)?;
        let recipe = self.fitted(&source, is_gpu(&selected), &mut report)?;
        self.warn(&recipe, &source, &mut report);
        let options = RunOptions { data, ..self.options.clone() };
        if leads && options.log_csv {
            report.inner.files.push(Box::new(LogCsv::default()));
        }
        if leads && options.tensorboard {
            let crop = recipe.crop_of(&source);
            let sheet = preview::sheet(&Recipe { crop, ..recipe.clone() }, &source)?;
            report.inner.files.push(Box::new(TensorBoard::new(sheet)));
        }
        if leads && options.report {
            let (source, options, stop) = (source.clone(), options.clone(), stop.clone());
            report.begin(PageJob { source, options, base: self.base.clone(), stop });
        }
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
        let stop = Arc::new(AtomicBool::new(false));
        let watch = signals::watch(&stop)?;
        let (source, _) = self.source(&mut All(vec![for_stdout(self.json)]), &stop)?;
        // From here on the launch has its own.
        watch.end();
        if stop.load(Ordering::Relaxed) {
            return Ok(Done::Interrupted);
        }
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

    /// Whether the data of a resumed run is what it began with.
    fn has_own_data(&self) -> bool {
        let file = RecipeFile::read(&RunDirectory::at(&self.options.out).recipe());
        file.is_ok_and(|file| file.options.data == self.options.data)
    }

    fn refuse_taken(&self) -> Result<()> {
        let options = &self.options;
        if !options.resume && !options.force && RunDirectory::at(&options.out).found() != Found::Nothing {
            return Err(DirectoryError::Taken { dir: options.out.clone() }.into());
        }
        Ok(())
    }

    /// The images, and where they lie: packed, also if --data names images that are not.
    fn source(&self, report: &mut dyn Reporter, stop: &Arc<AtomicBool>) -> Result<(Source, DataChoice)> {
        let options = &self.options;
        if options.data != DataChoice::Demo {
            return match options.data.open(self.recipe.resolution) {
                Err(DataError::NoDataset { dir, .. }) if is_source(&dir) => {
                    let store = store(&options.out, options.pack_dir.as_deref());
                    let place = match options.ranks {
                        Ranks::Given(_) => packed_before(&dir, &store)?,
                        _ => packed(&dir, &store, stop, &mut |line| report.notice(line))?,
                    };
                    // Of a set that is packed already, only the listing was stopped.
                    if stop.load(Ordering::Relaxed) {
                        return Err(DataError::Stopped { out: place }.into());
                    }
                    let choice = DataChoice::Dir(place);
                    Ok((choice.open(self.recipe.resolution)?, choice))
                }
                Err(DataError::NoDataset { dir, problem }) if options.resume && self.has_own_data() => {
                    Err(TrainError::DataMoved { dir, problem }.into())
                }
                Err(error @ DataError::NoDataset { .. }) => {
                    let way = if options.resume {
                        "without --data, the run goes on with its own"
                    } else {
                        "or try `--data synthetic` or `effnet-train --demo`"
                    };
                    Err(anyhow!("{error}; {way}"))
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
