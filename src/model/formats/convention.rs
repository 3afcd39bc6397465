//! What else weights need to give the results that they were trained for: padding, batch norm's ε, and how an image's
//! numbers are scaled.
//!
//! Nothing in a plain file of tensors says these. Files written here hold a note ([`Note`]). A `config.json` beside the
//! file, as `hf download` writes it, names timm's architecture and its means and deviations. Otherwise it follows from
//! whose names the tensors have, and from the file's path:
//!
//! | weights | padding | ε | |
//! |---|---|---|---|
//! | timm `efficientnet_bN` | symmetric | 1e-5 | trained with PyTorch |
//! | timm `tf_efficientnet_bN` | same | 1e-3 | from TensorFlow; the names are those of `efficientnet_bN`, so a path must say `tf_` |
//! | torchvision, B0–B4 | symmetric | 1e-5 | |
//! | torchvision, B5–B7 | symmetric | 1e-3 | from TensorFlow, used with PyTorch's padding |
//! | lukemelas, Keras | same | 1e-3 | from TensorFlow |
//!
//! All of these scale by ImageNet's means and deviations, but for two kinds of timm's, which scale to ±1: those trained with
//! AdvProp (tag `ap`), and those with the tag `ra4`.
//!
//! Sources: timm's `efficientnet.py` (`bn_eps`, `pad_type`, `default_cfgs`), torchvision's `efficientnet.py`
//! (`norm_layer`), `efficientnet-pytorch`'s `utils.py` (`batch_norm_epsilon`), Keras's `efficientnet.py`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::naming::Naming;
use super::weights_file::{NamedCopy, WeightsFile};
use crate::model::Padding;
use crate::model::family::Variant;

/// Channel means and standard deviations, as fractions of full intensity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

impl Scale {
    fn is_sound(&self) -> bool {
        let Scale { mean, deviation } = self;
        mean.iter().all(|m| (0.0..=1.0).contains(m)) && deviation.iter().all(|d| *d > 0.0 && *d <= 1.0)
    }
}

const IMAGENET: Scale = Scale { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
/// To ±1.
const HALF: Scale = Scale { mean: [0.5; 3], deviation: [0.5; 3] };

/// ε of batch norm in PyTorch and in TensorFlow.
const PYTORCH: f64 = 1e-5;
const TENSORFLOW: f64 = 1e-3;

/// What a file of weights written here says of the network and of its images: a value of the file's metadata under
/// [`Note::KEY`], in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Note {
    pub model: Variant,
    /// Side of the images in pixels.
    pub resolution: usize,
    pub padding: Padding,
    pub batch_norm_eps: f64,
    /// How images become square.
    pub crop: String,
    #[serde(flatten)]
    pub scale: Scale,
    pub classes: Vec<String>,
}

impl Note {
    pub const KEY: &str = "effnet-network";

    /// The note of a file's metadata.
    ///
    /// # Errors
    /// What is wrong with it: a newer program may have written it.
    pub fn parse(text: &str) -> Result<Note, String> {
        let note: Note = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !note.scale.is_sound() {
            return Err("its means or deviations are no fractions of full intensity".into());
        }
        Ok(note)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Convention {
    /// The member of the family, if the file has all tensors of one.
    pub member: Option<Variant>,
    pub padding: Padding,
    pub eps: f64,
    pub scale: Scale,
    /// Whose convention it is, for a line: "timm's tf_efficientnet_b0".
    pub whose: String,
}

impl Convention {
    /// That of a copy in a file.
    pub fn of(file: &WeightsFile, copy: &NamedCopy) -> Convention {
        let member = file.member(copy);
        if let Some(Note { model, padding, batch_norm_eps, scale, .. }) = file.note() {
            let whose = "the note in the file".into();
            return Convention { member: Some(model), padding, eps: batch_norm_eps, scale, whose };
        }
        let tensorflow = |whose: &str| Convention {
            member,
            padding: Padding::Same,
            eps: TENSORFLOW,
            scale: IMAGENET,
            whose: whose.into(),
        };
        match copy.naming {
            Naming::Timm => timm(&file.path, member),
            Naming::Torchvision => {
                let late = member.is_some_and(|member| member as usize >= Variant::B5 as usize);
                let eps = if late { TENSORFLOW } else { PYTORCH };
                Convention { padding: Padding::Symmetric, eps, ..tensorflow("torchvision") }
            }
            Naming::Lukemelas => tensorflow("efficientnet-pytorch (lukemelas)"),
            Naming::Keras => tensorflow("Keras"),
        }
    }
}

/// timm's, by the `config.json` beside the file, otherwise by the file's path.
fn timm(path: &Path, member: Option<Variant>) -> Convention {
    let (name, scale, by) = match config(path) {
        Some(config) => (config.architecture, config.scale, "by its config.json"),
        None => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let path = path.to_string_lossy().to_ascii_lowercase();
            let named = path.split(['/', '\\']).rev().find(|part| part.contains("efficientnet_"));
            let from_tensorflow = named.is_some_and(|part| part.contains("tf_efficientnet_"));
            let tags = [".ap_", "_ap-", "_ap.", ".ra4_"];
            let half = named.is_some_and(|part| tags.iter().any(|tag| part.contains(tag)));
            let family = if from_tensorflow { "tf_efficientnet" } else { "efficientnet" };
            let name = member.map_or(family.into(), |member| format!("{family}_{}", member.name()));
            let by = match named {
                Some(_) => "by the file's name or folder",
                None => "as neither its path nor a config.json says `tf_`",
            };
            (name, half.then_some(HALF), by)
        }
    };
    let (padding, eps) = match name.starts_with("tf_") {
        true => (Padding::Same, TENSORFLOW),
        false => (Padding::Symmetric, PYTORCH),
    };
    let whose = format!("timm's {name}, {by}");
    Convention { member, padding, eps, scale: scale.unwrap_or(IMAGENET), whose }
}

/// What is used of timm's `config.json`.
struct Config {
    architecture: String,
    scale: Option<Scale>,
}

/// The largest `config.json` that is read, in bytes: with 21,841 class names they have two megabytes.
const LARGEST: u64 = 1 << 24;

/// The `config.json` in the folder of a file, if it is one of timm's. That of something else says nothing.
fn config(path: &Path) -> Option<Config> {
    #[derive(Deserialize)]
    struct Found {
        architecture: String,
        pretrained_cfg: Option<Pretrained>,
    }
    #[derive(Deserialize)]
    struct Pretrained {
        mean: [f32; 3],
        std: [f32; 3],
    }
    let beside = path.with_file_name("config.json");
    if fs::metadata(&beside).ok()?.len() > LARGEST {
        return None;
    }
    let found: Found = serde_json::from_slice(&fs::read(beside).ok()?).ok()?;
    if !found.architecture.contains("efficientnet_") {
        return None;
    }
    let scale =
        found.pretrained_cfg.map(|pretrained| Scale { mean: pretrained.mean, deviation: pretrained.std });
    Some(Config { architecture: found.architecture, scale: scale.filter(Scale::is_sound) })
}
