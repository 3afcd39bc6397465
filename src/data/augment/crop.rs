//! How images are brought to the network's resolution, and what evaluation sees of them.
//!
//! *Resized*: the shorter side is scaled to round(R/0.875), then the central R×R is taken (torchvision's `Resize`,
//! `CenterCrop`). *Padded*, for images no larger than R: the image is set into the middle of a black R×R square; a
//! larger one is first scaled down to fit. What training changes about both is the [policy](super::policy)'s part.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantNames};

use super::geometry::{Geometry, Rectangle};
use crate::data::codec::{Region, fit};
use crate::names;

/// How an image is brought to the network's resolution.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    Display,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = CropMode::unknown)]
pub enum CropMode {
    /// Pad where no training image is larger than the resolution and all are icons, else Resized. Resolved once, when a
    /// run starts.
    #[default]
    Auto,
    Resized,
    Pad,
}

/// The longest side of an icon. Icons and digits lie in the middle of their images and are drawn for their pixels;
/// photographs of any size are resized.
const ICON: u32 = 64;

impl CropMode {
    /// Whether images of this largest width and height are icons.
    pub fn icons((width, height): (u32, u32)) -> bool {
        width.max(height) <= ICON
    }

    /// The mode that `Auto` stands for, by the largest width and height of the training images; the other modes stay.
    pub fn resolve(self, largest: (u32, u32), resolution: usize) -> CropMode {
        let fits = largest.0.max(largest.1) as usize <= resolution;
        match self {
            CropMode::Auto if fits && CropMode::icons(largest) => CropMode::Pad,
            CropMode::Auto => CropMode::Resized,
            other => other,
        }
    }

    fn unknown(name: &str) -> String {
        names::unknown::<CropMode>("crop mode", name)
    }
}

/// Evaluation takes this share of the resized image's shorter side.
const CENTRAL_SHARE: f64 = 0.875;

/// What evaluation sees of an image. `padded` is the mode `Pad`, else `Resized`.
pub(super) fn evaluation(image: (u32, u32), side: u32, padded: bool) -> Geometry {
    if padded {
        Geometry::padded(image, padded_size(image, side), (0, 0), side)
    } else {
        Geometry::filling(Rectangle::all(image), central_region(image, side), side)
    }
}

/// An image's size within the black square: its own, or scaled down to fit.
pub(super) fn padded_size((width, height): (u32, u32), side: u32) -> (u32, u32) {
    if width.max(height) <= side { (width, height) } else { fit(width, height, side) }
}

/// Where the central R×R of the resized image lies in the original. Resizing only this part gives the same pixels,
/// and a panorama does not become an enormous intermediate image.
fn central_region((width, height): (u32, u32), side: u32) -> Region {
    let shorter = (f64::from(side) / CENTRAL_SHARE).round();
    let w = f64::from(width);
    let h = f64::from(height);
    let (wide, high) = if width <= height {
        (shorter, (shorter * h / w).floor())
    } else {
        ((shorter * w / h).floor(), shorter)
    };
    let side = f64::from(side);
    let part = |resized: f64, original: f64| {
        let start = ((resized - side) / 2.0).round_ties_even() * original / resized;
        (start, (side * original / resized).min(original - start))
    };
    let (left, width) = part(wide, w);
    let (top, height) = part(high, h);
    (left, top, width, height)
}
