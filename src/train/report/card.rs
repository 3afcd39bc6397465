//! The model card beside exported weights: what somebody who gets the file has to know to use it well.
//!
//! Its sections follow Mitchell et al. 2019, "Model Cards for Model Reporting", as far as a checkpoint knows them; what only
//! the author knows is left open and says so.

use std::fmt::Write;

use toml::Table;

use crate::model::formats::Format;
use crate::model::formats::naming::Naming;
use crate::model::formats::onnx::{self, Input};
use crate::model::{Architecture, Padding, ParamTable};
use crate::names::shown;
use crate::train::checkpoint::Metadata;

/// Class names that are listed; of more, the first ones.
const LISTED: usize = 100;

/// What a card tells.
pub struct Card<'a> {
    /// The name of the exported file.
    pub file: &'a str,
    pub format: Format,
    pub metadata: &'a Metadata,
    pub architecture: &'a Architecture,
    /// Whether the weights are the moving average.
    pub average: bool,
    /// Where the images came from, if the run's recipe says so.
    pub data: Option<&'a str>,
}

impl Card<'_> {
    /// The card in Markdown.
    pub fn render(&self) -> String {
        let Card { file, metadata, architecture, .. } = self;
        let name = architecture.variant.name().to_uppercase();
        let mut text = format!("# EfficientNet-{name}, {} classes\n\n", architecture.classes);
        // Writing to a string does not fail.
        let _ = writeln!(text, "`{}`: {}.\n", shown(file), self.what());
        for (title, section) in [
            ("Accuracy", self.accuracy()),
            ("Images", self.images()),
            ("Use", self.usage()),
            ("Classes", self.classes()),
            ("Training", self.training()),
        ] {
            let _ = writeln!(text, "## {title}\n\n{}\n", section.trim_end());
        }
        let _ = writeln!(
            text,
            "## Licence, intended use, limits\n\nTo be filled in by the author: under which licence the weights and the images \
             are, what the network is for, and where it must not be used.\n\nWritten by effnet {}{}.",
            env!("CARGO_PKG_VERSION"),
            match metadata.is_foreign() {
                true => String::new(),
                false => format!(" from step {} of {}", metadata.step, metadata.steps),
            }
        );
        text
    }

    fn what(&self) -> String {
        let weights = if self.average { "the moving average of the weights" } else { "the weights" };
        match self.format {
            Format::Safetensors(naming) => format!("{weights} under {naming}'s names"),
            Format::Onnx(_) => format!("{weights} and the network in ONNX (operator set {})", onnx::OPSET),
        }
    }

    fn accuracy(&self) -> String {
        let Metadata { best, step, .. } = self.metadata;
        match best {
            Some(best) => {
                let same = best.step == *step && best.ema == self.average;
                let same = if same { "these weights" } else { "the best weights of the run" };
                format!(
                    "Top-1 {:.2} % on the validation images, at step {} of the run: {same}.",
                    100.0 * best.top1,
                    best.step
                )
            }
            None => "Not evaluated here yet.".into(),
        }
    }

    fn images(&self) -> String {
        let Metadata { resolution, crop, normalise, .. } = self.metadata;
        let list = |values: [f32; 3]| values.map(|value| value.to_string()).join(", ");
        let square = match crop.to_string().as_str() {
            "pad" => "padded with black to a square; larger ones are scaled down until they fit",
            _ => {
                "scaled (bilinear, with antialiasing) so that the shorter side is the resolution / 0.875, and the centre cut out"
            }
        };
        let scaled = match self.format {
            Format::Onnx(Input::Bytes) => {
                "The file takes bytes and normalises them itself, by the".to_string()
            }
            _ => "A byte x becomes (x / 255 - mean) / deviation, with the".to_string(),
        };
        format!(
            "{resolution} × {resolution} pixels, red, green, blue; {square}. {scaled} means {} and the deviations {}.",
            list(normalise.mean),
            list(normalise.deviation)
        )
    }

    fn usage(&self) -> String {
        let (net, file) = (self.architecture, shown(self.file));
        let (name, classes) = (net.variant.name(), net.classes);
        let code = match self.format {
            Format::Safetensors(Naming::Timm) => {
                let family = if net.padding == Padding::Same { "tf_efficientnet" } else { "efficientnet" };
                let eps = net.batch_norm.eps;
                format!(
                    "import timm\nfrom safetensors.torch import load_file\n\nmodel = timm.create_model(\"{family}_{name}\", \
                     num_classes={classes}, bn_eps={eps})\nmodel.load_state_dict(load_file(\"{file}\"), strict=True)"
                )
            }
            Format::Safetensors(Naming::Torchvision) => format!(
                "import torch\nimport torchvision\nfrom safetensors.torch import load_file\n\nmodel = \
                 torchvision.models.efficientnet_{name}(num_classes={classes})\nmodel.load_state_dict(load_file(\"{file}\"), \
                 strict=True)\nfor module in model.modules():\n    if isinstance(module, torch.nn.BatchNorm2d):\n        \
                 module.eps = {}",
                net.batch_norm.eps
            ),
            Format::Safetensors(Naming::Lukemelas | Naming::Keras) => format!(
                "from efficientnet_pytorch import EfficientNet\nfrom safetensors.torch import load_file\n\nmodel = \
                 EfficientNet.from_name(\"efficientnet-{name}\", num_classes={classes}, image_size={})\n\
                 model.load_state_dict(load_file(\"{file}\"), strict=True)",
                net.resolution
            ),
            Format::Onnx(input) => {
                let shape = match input {
                    Input::Normalised => format!("float32 [N, 3, {0}, {0}], normalised", net.resolution),
                    Input::Bytes => format!("uint8 [N, {0}, {0}, 3]", net.resolution),
                };
                format!(
                    "import onnxruntime\n\nsession = onnxruntime.InferenceSession(\"{file}\")\n[logits] = session.run(None, \
                     {{\"images\": images}})  # {shape}"
                )
            }
        };
        format!("```python\n{code}\n```{}", self.padding_note())
    }

    /// PyTorch's own models have no padding like TensorFlow's, so that the logits would differ.
    fn padding_note(&self) -> &'static str {
        match (self.format, self.architecture.padding) {
            (Format::Safetensors(Naming::Torchvision), Padding::Same) => {
                "\n\nThe network was trained with TensorFlow's padding, which torchvision does not have: its logits differ."
            }
            (Format::Safetensors(Naming::Lukemelas), Padding::Symmetric) => {
                "\n\nThe network was trained with PyTorch's padding, which efficientnet-pytorch does not have: its logits \
                 differ."
            }
            _ => "",
        }
    }

    fn classes(&self) -> String {
        let names = &self.metadata.classes;
        let listed: Vec<String> = names.iter().take(LISTED).map(|name| shown(name)).collect();
        let more = match names.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more, which the file's metadata has"),
        };
        format!("In the order of the logits: {}{more}.", listed.join(", "))
    }

    fn training(&self) -> String {
        let Metadata { recipe, data, epoch, .. } = self.metadata;
        if self.metadata.is_foreign() {
            return "The file does not say how these weights were trained.".into();
        }
        let table = Table::try_from(recipe).unwrap_or_default();
        let source = self.data.map_or(String::new(), |data| format!(", `{}`", shown(data)));
        let parameters = ParamTable::new(self.architecture).trainable();
        format!(
            "{parameters} parameters, {epoch:.2} epochs over data with the fingerprint `{data}`{source}. The recipe, by the names of \
             effnet-train's flags:\n\n```toml\n{table}```"
        )
    }
}
