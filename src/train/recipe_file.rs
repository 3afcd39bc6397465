//! `recipe.toml`: the recipe of a run and the options that a resumed run keeps, under the names of the flags.
//!
//! `effnet-train --config runs/b0/recipe.toml --out elsewhere` repeats the run, byte for byte. `effnet-eval` reads the
//! file to find the images that a checkpoint was trained on.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

use super::options::{DataChoice, RunOptions};
use super::recipe::Recipe;
use crate::data::Source;
use crate::files::{self, FileError};

/// The options in the file.
const KEPT: [&str; 11] = [
    "data",
    "device",
    "precision",
    "recompute",
    "checkpoint-every",
    "keep",
    "init-from",
    "init-weights",
    "init-partial",
    "log-csv",
    "tensorboard",
];

/// The content of `recipe.toml`.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    /// Without `init_from`: the file has the path instead, as an option.
    pub recipe: Recipe,
    /// The options [`KEPT`] in the file; all others are defaults.
    pub options: RunOptions,
}

/// A recipe file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct RecipeFileError {
    path: PathBuf,
    problem: String,
}

impl RecipeFile {
    /// Paths become absolute, so that the file means the same in any directory. Below a directory whose name is no text
    /// they stay as they were given: the file can hold only text.
    pub fn new(recipe: &Recipe, options: &RunOptions, source: &Source) -> RecipeFile {
        let absolute = |path: &Path| {
            let absolute = std::path::absolute(path).ok().filter(|path| path.to_str().is_some());
            absolute.unwrap_or_else(|| path.to_owned())
        };
        let data = match source {
            Source::Packed(dataset) => DataChoice::Dir(absolute(dataset.dir())),
            Source::Synthetic(_) => DataChoice::Synthetic,
        };
        let init_from = options.init_from.as_deref().map(absolute);
        RecipeFile {
            recipe: Recipe { init_from: None, ..recipe.clone() },
            options: RunOptions { data, init_from, ..options.clone() },
        }
    }

    /// The options that a resumed run keeps.
    pub fn kept(&self) -> Table {
        let mut options = Table::try_from(&self.options).unwrap_or_default();
        options.retain(|key, _| KEPT.contains(&key));
        options
    }

    pub fn render(&self) -> String {
        let mut table = Table::try_from(&self.recipe).unwrap_or_default();
        table.extend(self.kept());
        let note = "# The recipe of this run. Repeat it: effnet-train --config recipe.toml --out DIR\n";
        format!("{note}{table}")
    }

    /// # Errors
    /// One line about the first key that is missing, unknown or of the wrong type.
    pub fn parse(text: &str) -> Result<RecipeFile, String> {
        let message = |error: toml::de::Error| error.message().to_string();
        let mut table: Table = text.parse().map_err(message)?;
        let kept: Table = KEPT.iter().filter_map(|key| table.remove_entry(*key)).collect();
        if !kept.contains_key("data") {
            return Err("data is missing".into());
        }
        Ok(RecipeFile {
            recipe: table.try_into().map_err(message)?,
            options: kept.try_into().map_err(message)?,
        })
    }

    /// Makes the file at `path` say these epochs. One that cannot be read stays as it is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set_epochs(path: &Path, epochs: f64) -> Result<(), FileError> {
        match RecipeFile::read(path) {
            Ok(mut file) if file.recipe.epochs != epochs => {
                file.recipe.epochs = epochs;
                files::replace(path, file.render().as_bytes())
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`RecipeFileError`], which names the file.
    pub fn read(path: &Path) -> Result<RecipeFile, RecipeFileError> {
        let failed = |problem: String| RecipeFileError { path: path.to_owned(), problem };
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        RecipeFile::parse(&text).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;
    use crate::train::options::RecomputeChoice;

    #[test]
    fn file_comes_back_as_it_was_written() {
        let options = RunOptions {
            checkpoint_every: 7,
            keep: 2,
            threads: 5,
            recompute: RecomputeChoice::On,
            init_from: Some("/w/a b.safetensors".into()),
            ..RunOptions::new(DataChoice::Synthetic, "x")
        };
        let recipe = Recipe {
            lr: 0.1 + 0.2,
            seed: 1 << 40,
            init_from: Some("crc".into()),
            ..Recipe::reference(Variant::B2, 48)
        };
        let source = Source::synthetic(3, 9, 3, 32).unwrap();
        let file = RecipeFile::new(&recipe, &options, &source);
        let text = file.render();
        let back = RecipeFile::parse(&text).unwrap();
        assert_eq!(back.recipe, Recipe { init_from: None, ..recipe });
        assert_eq!((back.kept(), back.render()), (file.kept(), text.clone()));
        assert_eq!((back.options.keep, back.options.threads), (2, 0));
        assert_eq!(back.options.recompute, RecomputeChoice::On);
        assert!(text.contains("init-from = \"/w/a b.safetensors\""), "{text}");
        assert!(!text.contains("threads"), "{text}");
        for broken in ["", "data = 3", "data = \"x\"\nkeep = -1", "data = \"x\"\nsurprise = 1"] {
            assert!(RecipeFile::parse(broken).is_err(), "{broken}");
        }
        for broken in [text.replace("keep = 2", "keep = -1"), text + "surprise = 1\n"] {
            assert!(RecipeFile::parse(&broken).is_err(), "{broken}");
        }
    }
}
