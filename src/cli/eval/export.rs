//! `effnet-eval --export`: a checkpoint's network for other programs, with a model card beside it.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{EvalError, EvalFlags};
use crate::files;
use crate::model::ParamTable;
use crate::model::formats::naming::Naming;
use crate::model::formats::onnx::Input;
use crate::model::formats::weights_file::Average;
use crate::model::formats::{self, Format, WeightsError, safetensors};
use crate::train::TrainError;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::recipe_file::RecipeFile;
use crate::train::report::card::Card;

impl EvalFlags {
    pub(super) fn export(
        &self,
        read: &Checkpoint,
        file: &Path,
        out: &mut dyn Write,
    ) -> Result<(), EvalError> {
        if file.is_dir() {
            return Err(EvalError::ExportFolder(file.to_owned()));
        }
        // Under any of its names: through a link too, the optimiser's state would be lost.
        if checkpoint::is_checkpoint(file) {
            return Err(EvalError::OntoCheckpoint(file.to_owned()));
        }
        let format = self.format(file)?;
        let values = match self.weights {
            Average::Raw => &read.state.parameters,
            Average::Ema => &read.state.ema,
        };
        let model = read.metadata.trained(&read.architecture, values);
        let mut beside = file.as_os_str().to_owned();
        beside.push(".md");
        let beside = PathBuf::from(beside);
        if let (false, Some(path)) = (self.force, [file, &beside].into_iter().find(|path| path.exists())) {
            return Err(TrainError::from(WeightsError::Exists { path: path.to_owned() }).into());
        }
        formats::export(file, &model, format, self.force).map_err(TrainError::from)?;
        let recipe = RecipeFile::read(&self.checkpoint.with_file_name("recipe.toml"));
        let data = recipe.ok().map(|recipe| recipe.options.data.to_string());
        let card = Card {
            file: &file.file_name().map_or(String::new(), |name| name.to_string_lossy().into()),
            format,
            metadata: &read.metadata,
            architecture: &read.architecture,
            average: self.weights == Average::Ema,
            data: data.as_deref(),
        };
        files::replace(&beside, card.render().as_bytes())
            .map_err(|error| TrainError::from(WeightsError::from(error)))?;
        self.report_export(read, file, &beside, format, out)
    }

    /// The format that the file's ending and the flags ask for.
    fn format(&self, file: &Path) -> Result<Format, EvalError> {
        let ending = file.extension().map(|ending| ending.to_ascii_lowercase());
        match ending.as_ref().and_then(|ending| ending.to_str()) {
            Some("safetensors") if self.bytes_in => Err(EvalError::BytesIn(file.to_owned())),
            Some("safetensors") => match self.names.unwrap_or(Naming::Timm) {
                Naming::Keras => Err(EvalError::KerasNames),
                naming => Ok(Format::Safetensors(naming)),
            },
            Some("onnx") if self.names.is_some() => Err(EvalError::NamesInOnnx(file.to_owned())),
            Some("onnx") if self.bytes_in => Ok(Format::Onnx(Input::Bytes)),
            Some("onnx") => Ok(Format::Onnx(Input::Normalised)),
            _ => Err(EvalError::ExportEnding(file.to_owned())),
        }
    }

    fn report_export(
        &self,
        read: &Checkpoint,
        file: &Path,
        card: &Path,
        format: Format,
        out: &mut dyn Write,
    ) -> Result<(), EvalError> {
        let tensors = safetensors::listing(&ParamTable::new(&read.architecture)).len();
        let (name, card) = (file.display().to_string(), card.display().to_string());
        match format {
            _ if self.json => {
                let mut object = json!({ "file": name, "card": card });
                if let Format::Safetensors(_) = format {
                    object["tensors"] = tensors.into();
                }
                writeln!(out, "{object}")?;
            }
            Format::Safetensors(naming) => {
                writeln!(out, "{name}: {tensors} tensors under {naming}'s names; {card} describes it")?;
            }
            Format::Onnx(_) => writeln!(out, "{name}: the network in ONNX; {card} describes it")?,
        }
        Ok(())
    }
}
