//! `effnet-eval` without images: accuracy and loss over a split.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::{Value, json};

use super::{EvalError, EvalFlags};
use crate::cli::unpacked::{is_source, packed, store};
use crate::data::{DataError, Source};
use crate::train::checkpoint::Checkpoint;
use crate::train::evaluate::{Evaluation, rate};
use crate::train::recipe_file::RecipeFile;
use crate::train::report::rows::FEW_CLASSES;
use crate::train::whole::Whole;
use crate::train::{DataChoice, TrainError};

impl EvalFlags {
    pub(super) fn evaluate(
        &self,
        read: &Checkpoint,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<(), EvalError> {
        let page = self.report.as_ref().map(|out| self.page_file(out.as_deref())).transpose()?;
        let selected = self.selected()?;
        let (choice, source) = self.source(read, err)?;
        if !read.metadata.is_foreign() && source.fingerprint() != read.metadata.data {
            if self.data.is_none() {
                let checkpoint = self.checkpoint.clone();
                return Err(EvalError::OtherData { checkpoint, data: choice.to_string() });
            }
            writeln!(err, "warning: {choice} is not the data that this checkpoint was trained on")?;
        }
        let batch = self.batch_size.map_or(read.metadata.recipe.micro_batch, |images| images as usize);
        let since = Instant::now();
        let threads = self.loader_threads.unwrap_or(0) as usize;
        let stop = &AtomicBool::new(false);
        let whole = Whole { read, batch, source: &source, split: self.split, threads, stop };
        let (figures, rate) = match &page {
            Some(page) => self.report(whole, selected, &choice, page)?,
            None => {
                let figures = whole.evaluate(selected, &mut |_| {})?.unwrap_or_default();
                let rate = rate((source.samples(self.split) * figures.len()) as u64, since);
                (figures, rate)
            }
        };
        if self.json {
            let mut object = figures_json(&figures, rate);
            if let Some(page) = &page {
                object["report"] = page.display().to_string().into();
            }
            return Ok(writeln!(out, "{object}")?);
        }
        let metadata = &read.metadata;
        let place = format!("step {} of {}, epoch {:.2}", metadata.step, metadata.steps, metadata.epoch);
        writeln!(out, "{}: {}, {place}", self.checkpoint.display(), metadata.model)?;
        writeln!(
            out,
            "{choice}, {} images of {}, {rate:.0} images/s",
            source.samples(self.split),
            self.split
        )?;
        for (name, e) in ["weights", "average"].iter().zip(&figures) {
            let top1 = 100.0 * e.top1;
            let top5 = match source.classes() {
                ..=FEW_CLASSES => String::new(),
                _ => format!("top-5 {:6.2} %   ", 100.0 * e.top5),
            };
            writeln!(out, "  {name:<8} top-1 {top1:6.2} %   {top5}loss {:.4}", e.loss)?;
        }
        if let Some(page) = page {
            writeln!(out, "report: {}", page.display())?;
        }
        Ok(())
    }

    /// The images to evaluate, and the name of the data.
    fn source(&self, read: &Checkpoint, err: &mut dyn Write) -> Result<(DataChoice, Source), EvalError> {
        let beside = self.checkpoint.with_file_name("recipe.toml");
        let mut choice = match &self.data {
            Some(text) => DataChoice::from(text.clone()),
            None if beside.exists() => RecipeFile::read(&beside).map_err(TrainError::from)?.options.data,
            None => DataChoice::from_environment(),
        };
        let source = match choice.open(read.metadata.resolution) {
            Err(DataError::NoDataset { dir, .. }) if self.data.is_some() && is_source(&dir) => {
                let run = self.checkpoint.parent().unwrap_or(Path::new(""));
                let place = packed(&dir, &store(run, None), &Arc::default(), &mut |line| {
                    // Nobody may be there to read it.
                    let _ = writeln!(err, "{line}");
                });
                choice = DataChoice::Dir(place.map_err(TrainError::from)?);
                choice.open(read.metadata.resolution)
            }
            Err(DataError::NoDataset { dir, problem }) if self.data.is_none() && beside.exists() => {
                return Err(TrainError::DataMoved { dir, problem }.into());
            }
            other => other,
        };
        let source = source.map_err(TrainError::from)?;
        if source.samples(self.split) == 0 {
            return Err(EvalError::NoTest(choice.to_string()));
        }
        let theirs = &read.metadata.classes;
        // Without a note, weights have no names of classes: they are meant in the order of the data's.
        let numbers = theirs.iter().enumerate().all(|(class, name)| *name == class.to_string());
        let numbered = read.metadata.is_foreign() && numbers && theirs.len() == source.classes();
        if !numbered && *theirs != source.class_names() {
            return Err(EvalError::Classes {
                checkpoint: self.checkpoint.clone(),
                theirs: theirs.len(),
                ours: source.classes(),
            });
        }
        Ok((choice, source))
    }
}

/// The results of the raw weights, with those of their moving average as `ema`.
fn figures_json(figures: &[Evaluation], rate: f64) -> Value {
    let mut object = json!(figures.first());
    object["images_per_second"] = rate.into();
    if let Some(ema) = figures.get(1) {
        object["ema"] = json!(ema);
    }
    object
}
