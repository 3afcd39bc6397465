//! `recipe.toml`: the recipe of a run and what its files depend on, under the flags' names.
//!
//! `effnet-train --config runs/b0/recipe.toml --out elsewhere` repeats the run, byte for byte. It is also how
//! `effnet-eval` finds the images that a checkpoint was trained on.

use std::fs;
use std::path::{Path, PathBuf};

use super::recipe::{DataChoice, DeviceChoice, Recipe, RunOptions};
use crate::data::Source;
use crate::ops::cuda::Precision;

/// What `recipe.toml` holds. `recipe.init_from` is none: the path stands in `init_from`.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFile {
    pub recipe: Recipe,
    pub data: DataChoice,
    pub device: DeviceChoice,
    pub precision: Option<Precision>,
    pub checkpoint_every: u64,
    pub keep: usize,
    pub init_from: Option<PathBuf>,
}

/// A recipe that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct RecipeFileError {
    path: PathBuf,
    problem: String,
}

impl RecipeFile {
    /// Paths become absolute, so that the file means the same from any directory.
    pub fn new(recipe: &Recipe, options: &RunOptions, source: &Source) -> RecipeFile {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let data = match source {
            Source::Packed(dataset) => DataChoice::Dir(absolute(dataset.dir())),
            Source::Synthetic(_) => DataChoice::Synthetic,
        };
        RecipeFile {
            recipe: Recipe { init_from: None, ..recipe.clone() },
            data,
            device: options.device,
            precision: options.precision,
            checkpoint_every: options.checkpoint_every,
            keep: options.keep,
            init_from: options.init_from.as_deref().map(absolute),
        }
    }

    pub fn render(&self) -> String {
        let mut table = toml::Table::try_from(&self.recipe).unwrap_or_default();
        let mut set = |key: &str, value: toml::Value| table.insert(key.into(), value);
        set("data", self.data.to_string().into());
        set("device", self.device.to_string().into());
        if let Some(precision) = self.precision {
            set("precision", precision.to_string().into());
        }
        set("checkpoint-every", (self.checkpoint_every as i64).into());
        set("keep", (self.keep as i64).into());
        if let Some(path) = &self.init_from {
            set("init-from", path.display().to_string().into());
        }
        let note = "# The recipe of this run. Repeat it: effnet-train --config recipe.toml --out DIR\n";
        format!("{note}{table}")
    }

    pub fn parse(text: &str) -> Result<RecipeFile, String> {
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.message().to_string())?;
        let mut text_of = |key: &str| match table.remove(key) {
            Some(toml::Value::String(text)) => Ok(Some(text)),
            None => Ok(None),
            Some(_) => Err(format!("{key} must be text")),
        };
        let data = text_of("data")?.ok_or("data is missing")?;
        let Ok(data) = data.parse();
        let device = text_of("device")?.map_or(Ok(DeviceChoice::Auto), |text| text.parse())?;
        let precision = text_of("precision")?.map(|text| text.parse()).transpose()?;
        let init_from = text_of("init-from")?.map(PathBuf::from);
        let mut number_of = |key: &str| match table.remove(key) {
            Some(toml::Value::Integer(number)) if number >= 0 => Ok(number as u64),
            None => Ok(0),
            Some(_) => Err(format!("{key} must be a whole number")),
        };
        let (checkpoint_every, keep) = (number_of("checkpoint-every")?, number_of("keep")? as usize);
        let recipe = table.try_into().map_err(|e: toml::de::Error| e.message().to_string())?;
        Ok(RecipeFile { recipe, data, device, precision, checkpoint_every, keep, init_from })
    }

    /// # Errors
    /// [`RecipeFileError`] with the file's name.
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

    #[test]
    fn a_recipe_file_comes_back() {
        let mut options = RunOptions::new(DataChoice::Synthetic, "x");
        (options.checkpoint_every, options.keep) = (7, 2);
        options.init_from = Some("/w/a b.safetensors".into());
        let mut recipe = Recipe::reference(Variant::B2, 48);
        (recipe.lr, recipe.seed) = (0.1 + 0.2, 1 << 40);
        recipe.init_from = Some("crc".into());
        let source = Source::synthetic(3, 9, 3, 32).unwrap();
        let file = RecipeFile::new(&recipe, &options, &source);
        assert_eq!(RecipeFile::parse(&file.render()).unwrap(), file);
        assert_eq!(file.recipe.init_from, None);
        assert!(file.render().contains("init-from = \"/w/a b.safetensors\""), "{}", file.render());
        for broken in ["", "data = 3", "data = \"x\"\nkeep = -1", "data = \"x\"\nsurprise = 1"] {
            assert!(RecipeFile::parse(broken).is_err(), "{broken}");
        }
    }
}
