//! `effnet-eval` with images: the most probable classes of each.

use std::io::Write;

use serde_json::{Value, json};

use super::{EvalError, EvalFlags, Kind};
use crate::names::shown;
use crate::ops::{Ops, Weights};
use crate::train::checkpoint::Checkpoint;
use crate::train::device::{Hardware, With};
use crate::train::evaluator::Evaluator;

/// The number of classes printed for an image.
const TOP: usize = 5;

impl EvalFlags {
    pub(super) fn classify(
        &self,
        read: &Checkpoint,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<(), EvalError> {
        self.selected()?.with(Classify { flags: self, read, out, err })
    }

    fn classify_with<O: Ops + Send>(
        &self,
        mut evaluator: Evaluator<O>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<(), EvalError> {
        let weights = match self.weights {
            Kind::Raw => Weights::Raw,
            Kind::Ema => Weights::Ema,
        };
        let mut failed = 0;
        for image in &self.images {
            // After a broken image the others are still classified.
            let ranked = match evaluator.classify(image, weights, TOP) {
                Ok(ranked) => ranked,
                Err(error) => {
                    failed += 1;
                    if image.is_dir() {
                        writeln!(err, "error: {}: a folder; give image files", image.display())?;
                        continue;
                    }
                    writeln!(err, "error: {error}")?;
                    continue;
                }
            };
            let name = image.display().to_string();
            if self.json {
                let classes: Vec<Value> =
                    ranked.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
                writeln!(out, "{}", json!({ "image": name, "classes": classes }))?;
                continue;
            }
            writeln!(out, "{}", shown(&name))?;
            for (class, p) in ranked {
                writeln!(out, "  {:6.2} %  {}", 100.0 * p, shown(&class))?;
            }
        }
        match failed {
            0 => Ok(()),
            failed => Err(EvalError::Images { failed, images: self.images.len() }),
        }
    }
}

/// Classifies single images on a device of either kind.
struct Classify<'a> {
    flags: &'a EvalFlags,
    read: &'a Checkpoint,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl With for Classify<'_> {
    type Output = Result<(), EvalError>;

    fn with<H: Hardware>(self, hardware: H) -> Self::Output {
        self.flags.classify_with(Evaluator::new(self.read, 1, hardware)?, self.out, self.err)
    }
}
