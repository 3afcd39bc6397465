//! `effnet-eval` with images: the most probable classes of each.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::explain::Explanations;
use super::images::list;
use super::predictions::{Form, Prediction, Predictions};
use super::{EvalError, EvalFlags};
use crate::cli::signals;
use crate::model::formats::weights_file::Average;
use crate::ops::{Ops, Weights};
use crate::train::checkpoint::Checkpoint;
use crate::train::classify::Classifying;
use crate::train::device::{Hardware, With};
use crate::train::evaluate::rate;
use crate::train::evaluator::Evaluator;
use crate::train::loading;
use crate::train::memory::prepared_bytes;

/// The number of classes printed for an image, if none is given.
const TOP: usize = 5;
/// Images of a pass, if none are given: more of them are hardly faster, and need more memory.
const MOST_IMAGES: usize = 32;

impl EvalFlags {
    pub(super) fn classify(
        &self,
        read: &Checkpoint,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<(), EvalError> {
        let listed = list(&self.images)?;
        for note in &listed.notes {
            writeln!(err, "{note}")?;
        }
        let explanations = Explanations::of(self, &listed, &read.metadata)?;
        let files: Arc<[PathBuf]> = listed.files.into();
        let images = files.len();
        let classes = read.metadata.classes.len();
        let top = self.topk.map_or(TOP, |count| usize::try_from(count).unwrap_or(usize::MAX));
        if self.topk.is_some() && top > classes {
            writeln!(err, "--topk {top}: there are {classes} classes; all of them are given")?;
        }
        let usual = images.min(read.metadata.recipe.micro_batch).clamp(1, MOST_IMAGES);
        let batch = self.batch_size.map_or(usual, |images| images as usize);
        let selected = self.selected()?;
        let stop = Arc::new(AtomicBool::new(false));
        signals::watch_images(&stop)?;
        let since = Instant::now();
        let top = top.min(classes);
        let classify = Classify { flags: self, read, files, batch, top, explanations, stop, out, err };
        let failed = selected.with(classify)?;
        if let Some(file) = &self.out {
            let rate = rate(images as u64, since);
            writeln!(out, "{}: {} images, {rate:.1} images/s", file.display(), images - failed)?;
        }
        match failed {
            0 => Ok(()),
            failed => Err(EvalError::Images { failed, images }),
        }
    }

    fn form(&self) -> Form {
        match &self.out {
            _ if self.json => Form::Json,
            _ if self.csv => Form::Csv,
            Some(file) => Form::of(file),
            None => Form::Text,
        }
    }

    fn kind_of_weights(&self) -> Weights {
        match self.weights {
            Average::Raw => Weights::Raw,
            Average::Ema => Weights::Ema,
        }
    }
}

/// Classifies images on a device of either kind. Returns how many of them could not be read.
struct Classify<'a> {
    flags: &'a EvalFlags,
    read: &'a Checkpoint,
    files: Arc<[PathBuf]>,
    batch: usize,
    /// Classes of each image.
    top: usize,
    explanations: Option<Explanations>,
    stop: Arc<AtomicBool>,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl With for Classify<'_> {
    type Output = Result<usize, EvalError>;

    fn with<H: Hardware>(self, hardware: H) -> Self::Output {
        let bytes = self.batch as u64 * prepared_bytes(&hardware.device(), self.read.metadata.resolution);
        let threads = self.flags.loader_threads.unwrap_or(0) as usize;
        let threads = loading::threads(threads, &hardware, 1, bytes);
        let evaluator = Evaluator::new(self.read, self.batch, hardware)?;
        self.run(evaluator, threads)
    }
}

impl Classify<'_> {
    fn run<O: Ops>(self, mut evaluator: Evaluator<O>, threads: usize) -> Result<usize, EvalError> {
        let Classify { flags, read, files, top, explanations, stop, out, err, .. } = self;
        let mut predictions = Predictions::begin(flags.form(), flags.out.as_deref(), top, out)?;
        let classes = &read.metadata.classes;
        let mut failed = 0;
        let maps = explanations.is_some();
        let how = Classifying { weights: flags.kind_of_weights(), threads, maps, stop: &stop };
        let done = evaluator.classify(&files, &how, &mut |number, seen| -> Result<(), EvalError> {
            let image = &files[number];
            match seen {
                Ok(seen) => {
                    let ranked = seen.ranked(top).into_iter();
                    let ranked = ranked.map(|(class, p)| (classes[class].as_str(), p)).collect();
                    let drawn =
                        explanations.as_ref().map(|all| all.draw(number, image, &seen, &read.metadata));
                    let explanation = drawn.transpose()?.map(|(class, file)| (classes[class].as_str(), file));
                    predictions.push(&Prediction { image, ranked, explanation })
                }
                // After a broken image the others are still classified.
                Err(problem) => {
                    failed += 1;
                    Ok(writeln!(err, "error: {problem}")?)
                }
            }
        })?;
        if stop.load(Ordering::Relaxed) && done < files.len() {
            signals::images_stopped();
            return Err(EvalError::Stopped { done, images: files.len(), out: flags.out.clone() });
        }
        predictions.finish()?;
        Ok(failed)
    }
}
