//! Weights of another program as if they were a checkpoint before its first step, so that they can be evaluated, classify
//! images and be written in other formats without any training.
//!
//! What a checkpoint knows and plain weights do not: padding, ε and scale follow from their [`Convention`], the resolution
//! from the note in a file of this program or from the member, the classes from that note, otherwise they are numbers.

use super::checkpoint::{Checkpoint, Metadata, Snapshot};
use super::recipe::Recipe;
use crate::data::{CropMode, Normalise, NormaliseBy};
use crate::model::ParamTable;
use crate::model::formats::WeightsError;
use crate::model::formats::convention::{Convention, Note, Scale};
use crate::model::formats::import::import;
use crate::model::formats::weights_file::{Average, WeightsFile};

/// Images of a pass.
const BATCH: usize = 32;
/// Where the file has a moving average: its rate is not known, and evaluations do not need it.
const SOME_RATE: f64 = 0.999;

/// The weights of a file, with the moving average if it has one beside them.
///
/// # Errors
/// A file in which no naming is known, or that lacks tensors of the member that it is of.
pub fn checkpoint(file: &WeightsFile) -> Result<Checkpoint, WeightsError> {
    let copy = file.copy(Average::Raw)?;
    let Convention { member, padding, eps, scale, .. } = Convention::of(file, copy);
    let (Some(model), Some(classes)) = (member, file.classes(copy)) else {
        return Err(WeightsError::NoMember { path: file.path.clone() });
    };
    let note = file.note();
    let Scale { mean, deviation } = scale;
    let normalise = Normalise { mean, deviation };
    let resolution = note.as_ref().map_or(model.scaling().resolution, |note| note.resolution);
    let crop = note.as_ref().and_then(|note| note.crop.parse().ok()).unwrap_or(CropMode::Resized);
    let recipe = Recipe {
        resolution,
        padding,
        bn_eps: eps,
        crop,
        normalise: NormaliseBy::Given(normalise),
        ema: if file.has_both() { SOME_RATE } else { 0.0 },
        micro_batch: BATCH,
        ..Recipe::reference(model, BATCH)
    };
    recipe
        .validate()
        .map_err(|error| WeightsError::Note { path: file.path.clone(), problem: error.to_string() })?;
    let names = match note {
        Some(Note { classes: names, .. }) if names.len() == classes => names,
        _ => (0..classes).map(|class| class.to_string()).collect(),
    };
    let impossible = |_| WeightsError::NoMember { path: file.path.clone() };
    let architecture = recipe.architecture(classes).map_err(impossible)?;
    let table = ParamTable::new(&architecture);
    let read = |average| {
        let mut values = vec![0.0; table.total()];
        let found = import(file, average, &architecture, &mut values)?;
        found.require_whole(&file.path, &architecture)?;
        // For training a classifier may be missing or another one; here nothing would fill it.
        if !found.missing_classifier.is_empty() || found.classes.is_some() {
            return Err(WeightsError::NoMember { path: file.path.clone() });
        }
        Ok::<_, WeightsError>(values)
    };
    let parameters = read(Average::Raw)?;
    let ema = if file.has_both() { read(Average::Ema)? } else { Vec::new() };
    let metadata = Metadata::new(&recipe, names, normalise, String::new(), 0);
    Ok(Checkpoint { metadata, architecture, state: Snapshot { parameters, ema, slots: Vec::new() } })
}
