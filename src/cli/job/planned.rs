//! `--dry-run` and `--summary`: what a run would be, without packing or training anything.

use std::io::{self, Write};

use anyhow::Result;
use indicatif::HumanCount;
use serde_json::json;

use super::Job;
use super::fitted::is_gpu;
use crate::cli::unpacked::{find, is_source, listed, store};
use crate::data::pack::Outline;
use crate::data::{self, DataError, Source, Split};
use crate::names::shown_path;
use crate::parallel::World;
use crate::train::device::{self, Hardware};
use crate::train::events::{All, Reporter};
use crate::train::fit::Circumstances;
use crate::train::report::for_stdout;
use crate::train::{DataChoice, MemoryPlan, Recipe, RecipeError, TrainError, memory_plan};

/// Classes of a network without data: as many as ImageNet has.
const CLASSES: usize = 1000;

/// What is known of the images of a run that is only planned.
enum Planned {
    Opened(Source),
    /// Not packed; and a line that says what they are taken for.
    Listed(Outline, String),
    Demo,
    /// None; and a line that says so.
    Nothing(String),
}

impl Job {
    /// The number of classes of the data, if there is data.
    pub(super) fn classes(&self) -> Result<usize> {
        Ok(self.planned()?.classes())
    }

    fn planned(&self) -> Result<Planned, DataError> {
        let options = &self.options;
        if options.data == DataChoice::Demo {
            return Ok(Planned::Demo);
        }
        match options.data.open(self.recipe.resolution) {
            Ok(source) => Ok(Planned::Opened(source)),
            Err(DataError::NoDataset { dir, .. }) if is_source(&dir) => {
                let store = store(&options.out, options.pack_dir.as_deref());
                let found = find(&dir, &store);
                if let Ok(Some(packed)) = found {
                    return Ok(Planned::Opened(Source::open(&packed)?));
                }
                let listed = match found.and_then(|_| listed(&dir, &store)) {
                    Err(problem @ DataError::Source { .. }) => {
                        let line = format!("{problem}; planned for {CLASSES} classes, as ImageNet has");
                        return Ok(Planned::Nothing(line));
                    }
                    listed => listed?,
                };
                let line = format!(
                    "{} ({}) is not packed: planned for {} classes and {} training images as listed, and, until their sizes \
                     are known, with at least {} pixels a side",
                    shown_path(&dir),
                    listed.kind,
                    listed.classes,
                    HumanCount(listed.images[Split::Train as usize]),
                    self.recipe.resolution
                );
                Ok(Planned::Listed(listed, line))
            }
            Err(DataError::NoDataset { dir, problem }) => {
                let dir = shown_path(&dir);
                Ok(Planned::Nothing(format!(
                    "{dir}: {problem}; planned for {CLASSES} classes, as ImageNet has"
                )))
            }
            Err(other) => Err(other),
        }
    }

    pub(super) fn print_memory_plan(&self) -> Result<()> {
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
        let planned = self.planned()?;
        let on_gpu = is_gpu(&selected);
        let mut recipe = match &planned {
            Planned::Opened(source) => self.fitted(source, on_gpu, &mut report)?,
            Planned::Listed(listed, line) => {
                report.notice(line);
                let side = self.recipe.resolution as u32;
                let images = listed.images[Split::Train as usize] as usize;
                let ranks = world.size;
                let assumed = Circumstances { images, largest: side, shorter: side, on_gpu, ranks };
                self.fitted_to(&assumed, &mut report)?
            }
            Planned::Nothing(line) => {
                report.notice(line);
                self.recipe.clone()
            }
            Planned::Demo => self.recipe.clone(),
        };
        // The recipe of a resumed run is not divided yet.
        recipe.divide(world.size, options.auto_micro_batch || options.resume)?;
        let (line, plan) = selected.with(Plan(&recipe, planned.classes(), world, options.loader_threads))?;
        if self.json {
            let mut object = json!(plan);
            object["total"] = plan.total().into();
            writeln!(io::stdout(), "{object}")?;
        } else {
            writeln!(io::stdout(), "{line}\n{plan}")?;
        }
        Ok(())
    }
}

impl Planned {
    fn classes(&self) -> usize {
        match self {
            Planned::Opened(source) => source.classes(),
            Planned::Listed(listed, _) => listed.classes,
            Planned::Demo => data::demo::CLASSES.len(),
            Planned::Nothing(_) => CLASSES,
        }
    }
}
