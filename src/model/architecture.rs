//! One member of the family laid out for one image size and class count: every block with its shapes.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::family::{HEAD_CHANNELS, STAGES, STEM_CHANNELS, Variant};
use crate::names;

/// What cannot be built.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ModelError {
    #[error("resolution {0} is too small: the network halves the image five times, so it needs at least 32")]
    Resolution(usize),
    #[error("{0} classes cannot be told apart: at least 2 are needed")]
    Classes(usize),
}

/// How a convolution pads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = Padding::unknown)]
pub enum Padding {
    /// (k−1)/2 on every side, as PyTorch pads.
    Symmetric,
    /// TensorFlow's "same": the output is ⌈input/stride⌉, and an odd pad goes to the bottom and right.
    Same,
}

impl Padding {
    fn unknown(name: &str) -> String {
        names::unknown::<Padding>("padding", name)
    }
}

/// Geometry of a square convolution over a square map, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: usize,
    pub stride: usize,
    /// Side of the input map.
    pub input: usize,
    /// Side of the output map.
    pub output: usize,
    /// Zero rows above the input and zero columns left of it. Those below and right follow from the other fields.
    pub pad: usize,
}

impl Window {
    pub fn new(kernel: usize, stride: usize, input: usize, padding: Padding) -> Window {
        match padding {
            Padding::Symmetric => {
                let pad = (kernel - 1) / 2;
                Window { kernel, stride, input, output: (input + 2 * pad - kernel) / stride + 1, pad }
            }
            Padding::Same => {
                let output = input.div_ceil(stride);
                let total = ((output - 1) * stride + kernel).saturating_sub(input);
                Window { kernel, stride, input, output, pad: total / 2 }
            }
        }
    }

    pub fn input_pixels(&self) -> usize {
        self.input * self.input
    }

    pub fn output_pixels(&self) -> usize {
        self.output * self.output
    }
}

/// Constants of every batch norm. `momentum` is the weight of the *new* batch in the running statistics (PyTorch's
/// convention; TensorFlow's figure is one minus this).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNormConfig {
    pub momentum: f64,
    pub eps: f64,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        BatchNormConfig { momentum: 0.1, eps: 1e-5 }
    }
}

/// One MBConv block.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// timm's prefix: `blocks.2.0`.
    pub name: String,
    /// Place among all blocks, from 0.
    pub index: usize,
    /// Stage of the family's table, from 0.
    pub stage: usize,
    /// Place within the stage, from 0.
    pub repeat: usize,
    /// Narrow input channels.
    pub input: usize,
    /// Channels of the depthwise convolution.
    pub expanded: usize,
    /// Narrow output channels.
    pub output: usize,
    /// Width of the squeeze-excite bottleneck: a quarter of the block's input.
    pub squeeze: usize,
    /// False in the first stage: there the depthwise convolution reads the block's input itself.
    pub expands: bool,
    pub window: Window,
}

impl Block {
    /// Whether the block's input is added to its output.
    pub fn residual(&self) -> bool {
        self.input == self.output && self.window.stride == 1
    }

    /// timm's names of the depthwise batch norm, the projection's batch norm and the projection. A block without an
    /// expansion counts from one lower.
    pub fn late_names(&self) -> [&'static str; 3] {
        if self.expands { ["bn2", "bn3", "conv_pwl"] } else { ["bn1", "bn2", "conv_pw"] }
    }
}

/// A network, as `--model`, `--resolution`, `--padding` and the data's classes determine it.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    pub variant: Variant,
    pub classes: usize,
    pub resolution: usize,
    pub padding: Padding,
    pub batch_norm: BatchNormConfig,
    pub stem_channels: usize,
    pub stem: Window,
    pub blocks: Vec<Block>,
    pub head_channels: usize,
}

impl Architecture {
    /// The same network for images of another size: with the same parameters.
    ///
    /// # Errors
    /// If the resolution is too small.
    pub fn at(&self, resolution: usize) -> Result<Architecture, ModelError> {
        let Architecture { variant, classes, padding, batch_norm, .. } = *self;
        Architecture::new(variant, classes, resolution, padding, batch_norm)
    }

    pub fn new(
        variant: Variant,
        classes: usize,
        resolution: usize,
        padding: Padding,
        batch_norm: BatchNormConfig,
    ) -> Result<Architecture, ModelError> {
        if resolution < 32 {
            return Err(ModelError::Resolution(resolution));
        }
        if classes < 2 {
            return Err(ModelError::Classes(classes));
        }
        let stem_channels = variant.channels(STEM_CHANNELS);
        let stem = Window::new(3, 2, resolution, padding);
        let mut blocks = Vec::new();
        let mut input = stem_channels;
        let mut side = stem.output;
        for (number, stage) in STAGES.iter().enumerate() {
            let output = variant.channels(stage.channels);
            for repeat in 0..variant.repeats(stage.repeats) {
                let stride = if repeat == 0 { stage.stride } else { 1 };
                let window = Window::new(stage.kernel, stride, side, padding);
                blocks.push(Block {
                    name: format!("blocks.{number}.{repeat}"),
                    index: blocks.len(),
                    stage: number,
                    repeat,
                    input,
                    expanded: input * stage.expansion,
                    output,
                    squeeze: input / 4,
                    expands: stage.expansion > 1,
                    window,
                });
                input = output;
                side = window.output;
            }
        }
        Ok(Architecture {
            variant,
            classes,
            resolution,
            padding,
            batch_norm,
            stem_channels,
            stem,
            blocks,
            head_channels: variant.channels(HEAD_CHANNELS),
        })
    }

    /// Side of the last feature map.
    pub fn final_side(&self) -> usize {
        self.blocks.last().map_or(self.stem.output, |b| b.window.output)
    }

    /// Channels that enter the head.
    pub fn final_channels(&self) -> usize {
        self.blocks.last().map_or(self.stem_channels, |b| b.output)
    }

    /// Stochastic-depth rate of a block: `rate·i/n`, so that the first block is never dropped.
    pub fn drop_path_rate(&self, rate: f64, block: &Block) -> f64 {
        rate * block.index as f64 / self.blocks.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_same_is_asymmetric_at_stride_two() {
        let even = Window::new(3, 2, 112, Padding::Same);
        assert_eq!((even.output, even.pad), (56, 0));
        let odd = Window::new(5, 2, 7, Padding::Same);
        assert_eq!((odd.output, odd.pad), (4, 2));
        let symmetric = Window::new(5, 2, 7, Padding::Symmetric);
        assert_eq!((symmetric.output, symmetric.pad), (4, 2));
        assert_eq!(Window::new(3, 1, 9, Padding::Same).pad, 1);
    }

    #[test]
    fn window_of_five_by_five_fits_a_one_pixel_map() {
        for padding in [Padding::Same, Padding::Symmetric] {
            let window = Window::new(5, 1, 1, padding);
            assert_eq!((window.output, window.pad), (1, 2));
        }
    }

    #[test]
    fn drop_path_rate_rises_with_the_block() {
        let net =
            Architecture::new(Variant::B0, 10, 224, Padding::Symmetric, BatchNormConfig::default()).unwrap();
        let rates: Vec<f64> = net.blocks.iter().map(|b| net.drop_path_rate(0.2, b)).collect();
        assert_eq!(rates.len(), 16);
        for (i, rate) in rates.iter().enumerate() {
            assert!((rate - 0.0125 * i as f64).abs() < 1e-12);
        }
        let residual: Vec<usize> = net.blocks.iter().filter(|b| b.residual()).map(|b| b.index).collect();
        assert_eq!(residual, [2, 4, 6, 7, 9, 10, 12, 13, 14]);
    }

    #[test]
    fn architecture_refuses_what_cannot_be_built() {
        let build = |classes, resolution| {
            Architecture::new(Variant::B0, classes, resolution, Padding::Same, BatchNormConfig::default())
        };
        assert_eq!(build(10, 31).unwrap_err(), ModelError::Resolution(31));
        assert_eq!(build(1, 32).unwrap_err(), ModelError::Classes(1));
    }

    #[test]
    fn padding_is_read_by_name() {
        assert_eq!("same".parse::<Padding>(), Ok(Padding::Same));
        let error = "valid".parse::<Padding>().unwrap_err();
        assert_eq!(error, "`valid` is no padding: use symmetric or same");
    }
}
