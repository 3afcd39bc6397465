//! What the weights of `--init-from` ask of a run.
//!
//! Weights work as they did only with the member, padding and ε that they were trained with, and they go on learning best
//! with the scale of images that they know. So these settings follow from the file, unless a flag or a file of settings says
//! otherwise: then that holds, and a line says what differs. They are a layer above the preset.

use std::path::{Path, PathBuf};

use crate::cli::flags::Settings;
use crate::data::{Normalise, NormaliseBy};
use crate::model::formats::WeightsError;
use crate::model::formats::convention::{Convention, Scale};
use crate::model::formats::weights_file::{Average, WeightsFile};
use crate::train::TrainError;
use crate::train::checkpoint::{self, CheckpointError, Metadata};

/// The file that `--init-from` means.
///
/// # Errors
/// A folder that is no run.
pub(super) fn weights_file(path: PathBuf, notes: &mut Vec<String>) -> Result<PathBuf, CheckpointError> {
    let file = checkpoint::of(&path)?;
    if let (true, Some(name)) = (file != path, file.file_name()) {
        notes.push(format!("--init-from {}: a folder; its {} is taken", path.display(), name.display()));
    }
    Ok(file)
}

/// `given` over the settings that a file of weights asks for, with lines about them in `notes`.
///
/// # Errors
/// A file that cannot be read, or in which no naming is known.
pub(super) fn over_weights(
    given: Settings,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Settings, TrainError> {
    let average = given.init_weights.unwrap_or_default();
    let asked = match checkpoint::verify(path) {
        Ok(metadata) => of_checkpoint(&metadata),
        Err(CheckpointError::Foreign { .. }) => of_file(path, average)?,
        Err(error) if checkpoint::is_checkpoint(path) => return Err(error.into()),
        // Not a safetensors file, or a damaged one: the reader of weights says which.
        Err(_) => of_file(path, average)?,
    };
    notes.extend(lines(&given, &asked));
    Ok(given.over(&asked.settings))
}

/// Settings, and whose they are.
struct Asked {
    settings: Settings,
    whose: String,
}

fn named(normalise: Normalise) -> NormaliseBy {
    if normalise == Normalise::IMAGENET { NormaliseBy::Imagenet } else { NormaliseBy::Given(normalise) }
}

fn of_checkpoint(metadata: &Metadata) -> Asked {
    let settings = Settings {
        model: Some(metadata.model),
        padding: Some(metadata.padding),
        bn_eps: Some(metadata.batch_norm.eps),
        normalise: Some(named(metadata.normalise)),
        ..Settings::default()
    };
    Asked { settings, whose: "the checkpoint".into() }
}

fn of_file(path: &Path, average: Average) -> Result<Asked, WeightsError> {
    let file = WeightsFile::read(path)?;
    let Convention { member, padding, eps, scale, whose } = Convention::of(&file, file.copy(average)?);
    let Scale { mean, deviation } = scale;
    let settings = Settings {
        model: member,
        padding: Some(padding),
        bn_eps: Some(eps),
        normalise: Some(named(Normalise { mean, deviation })),
        ..Settings::default()
    };
    Ok(Asked { settings, whose })
}

/// A line that says what follows from the weights, and a warning for each setting that contradicts them.
fn lines(given: &Settings, asked: &Asked) -> Vec<String> {
    let Settings { model, padding, bn_eps, normalise, .. } = &asked.settings;
    let texts = [
        ("model", given.model.map(|m| m.to_string()), model.map(|m| m.to_string())),
        ("padding", given.padding.map(|p| p.to_string()), padding.map(|p| p.to_string())),
        ("bn-eps", given.bn_eps.map(|eps| format!("{eps:e}")), bn_eps.map(|eps| format!("{eps:e}"))),
        ("normalise", given.normalise.map(|n| n.to_string()), normalise.map(|n| n.to_string())),
    ];
    let whose = &asked.whose;
    let mut taken = Vec::new();
    let mut lines = Vec::new();
    for (flag, given, asked) in texts {
        match (given, asked) {
            (None, Some(asked)) => taken.push(format!("--{flag} {asked}")),
            // Another member is an error where the tensors are compared.
            (Some(given), Some(asked)) if given != asked && flag != "model" => lines
                .push(format!("warning: --{flag} {given}; the weights were trained with {asked} ({whose})")),
            _ => {}
        }
    }
    if !taken.is_empty() {
        lines.insert(0, format!("from the weights ({whose}): {}", taken.join(" ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Padding;

    fn asked() -> Asked {
        let settings = Settings {
            padding: Some(Padding::Same),
            bn_eps: Some(1e-3),
            normalise: Some(NormaliseBy::Imagenet),
            ..Settings::default()
        };
        Asked { settings, whose: "Keras".into() }
    }

    #[test]
    fn lines_name_what_is_taken_and_what_contradicts() {
        let given = Settings { padding: Some(Padding::Symmetric), ..Settings::default() };
        let found = lines(&given, &asked());
        assert_eq!(
            found,
            [
                "from the weights (Keras): --bn-eps 1e-3 --normalise imagenet",
                "warning: --padding symmetric; the weights were trained with same (Keras)",
            ]
        );
        let same = Settings { padding: Some(Padding::Same), bn_eps: Some(1e-3), ..Settings::default() };
        assert_eq!(lines(&same, &asked()), ["from the weights (Keras): --normalise imagenet"]);
    }
}
