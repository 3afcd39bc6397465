//! `effnet-eval --export`: a checkpoint's weights for other programs.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::{EvalError, EvalFlags, Kind};
use crate::model::ParamTable;
use crate::model::formats::{self, TrainedModel, safetensors};
use crate::train::TrainError;
use crate::train::checkpoint::{self, Checkpoint};

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
        let values = match self.weights {
            Kind::Raw => &read.state.parameters,
            Kind::Ema => &read.state.ema,
        };
        let model = TrainedModel { architecture: &read.architecture, values, steps: read.metadata.step };
        formats::export(file, &model, self.force).map_err(TrainError::from)?;
        let tensors = safetensors::listing(&ParamTable::new(&read.architecture)).len();
        if self.json {
            writeln!(out, "{}", json!({ "file": file.display().to_string(), "tensors": tensors }))?;
        } else {
            writeln!(out, "{}: {tensors} tensors under timm's names", file.display())?;
        }
        Ok(())
    }
}
