//! A page of training images as the network sees them, so that people look before they train.
//!
//! It shows the first images of the run's first epoch: each as an evaluation sees it, then as the first epochs of the run
//! see it. The page is one file and asks the network for nothing.

use std::fmt::Write;
use std::io::Cursor;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::{ImageFormat, RgbImage};

use crate::data::augment::{Look, Scratch, View, preprocess};
use crate::data::sampler::Sampler;
use crate::data::{DataError, Source, Split};
use crate::train::recipe::Recipe;

/// Images on a page, and looks at each.
const IMAGES: usize = 16;
const LOOKS: u32 = 4;
/// Small squares are shown at least so wide, with their pixels visible.
const LEAST_WIDTH: usize = 112;

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1.5rem auto; max-width: 1100px; padding: 0 1rem }
figure { margin: 0 0 1.2rem; overflow-x: auto }
figcaption { margin-bottom: .3rem }
.row { display: flex; gap: .4rem }
img { image-rendering: pixelated; flex: none; border-radius: 3px }
.row img:first-child { outline: 2px solid #3b82f6; outline-offset: -2px }
@media print { figure { break-inside: avoid } }
";

/// The page for a recipe, of which the crop is resolved.
///
/// # Errors
/// Those of reading the source's images.
pub fn page(recipe: &Recipe, source: &Source) -> Result<String, DataError> {
    let side = recipe.resolution;
    let width = side * LEAST_WIDTH.div_ceil(side).max(1);
    let policy = recipe.policy(source.normalise());
    let classes = source.class_names();
    let mut sampler = Sampler::training(recipe.seed, source, IMAGES, recipe.sampling);
    let mut places = Vec::new();
    sampler.fill(0, &mut places);
    places.truncate(source.samples(Split::Train));
    let mut figures = String::new();
    let (mut decoded, mut scratch, mut square) = (Vec::new(), Scratch::default(), vec![0; side * side * 3]);
    for place in places {
        let index = place.index as usize;
        let image = source.image(Split::Train, index, &mut decoded)?;
        let View { width: wide, height: high, .. } = image.view;
        let class = escaped(&classes[image.label as usize]);
        let _ = write!(figures, "<figure><figcaption>{class}, {wide}×{high}</figcaption><div class=\"row\">");
        for epoch in 0..=LOOKS {
            let of = |epoch| Look { policy, seed: recipe.seed, epoch, id: image.id };
            let (look, what) = match epoch {
                0 => (None, "as evaluated".to_string()),
                epoch => (Some(of(epoch - 1)), format!("in epoch {epoch}")),
            };
            preprocess(image.view, side, recipe.crop, look, &mut scratch, &mut square)
                .map_err(DataError::Invalid)?;
            let data = BASE64_STANDARD.encode(png(&square, side)?);
            let _ = write!(
                figures,
                "<img width=\"{width}\" height=\"{width}\" alt=\"{class}, {what}\" title=\"{what}\" \
                 src=\"data:image/png;base64,{data}\">"
            );
        }
        figures += "</div></figure>\n";
    }
    let augmentation = escaped(&super::rows::augmentation(recipe));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Training images</title>\n<style>{STYLE}</style>\n<h1>Training images</h1>\n\
         <p>{side}×{side} pixels, crop {}. Augmentation: {augmentation}. The first square of each row, framed, is what an \
         evaluation sees; the others are what the first {LOOKS} epochs see.</p>\n{figures}</html>\n",
        recipe.crop
    ))
}

fn png(square: &[u8], side: usize) -> Result<Vec<u8>, DataError> {
    let image = RgbImage::from_raw(side as u32, side as u32, square.to_vec()).expect("a square's bytes");
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| DataError::Invalid(e.to_string()))?;
    Ok(bytes.into_inner())
}

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::Auto;
    use crate::data::codec::decode_file;
    use crate::data::{CropMode, Form, Share};
    use crate::model::Variant;
    use crate::train::loading::Loading;

    /// The squares of the first epoch are those that the run's loader gives.
    #[test]
    fn page_shows_the_squares_of_the_run() {
        let source = Source::synthetic(3, 20, 2, 50).unwrap();
        let recipe = Recipe {
            resolution: 32,
            crop: CropMode::Resized,
            augment: Auto::AutoAugment,
            color_jitter: 0.2,
            ..Recipe::reference(Variant::B0, IMAGES)
        };
        let page = page(&recipe, &source).unwrap();
        let pictures: Vec<Vec<u8>> = page
            .split("base64,")
            .skip(1)
            .map(|rest| BASE64_STANDARD.decode(rest.split('"').next().unwrap()).unwrap())
            .map(|png| decode_file(&png).unwrap().pixels.bytes)
            .collect();
        assert_eq!(pictures.len(), IMAGES * (1 + LOOKS as usize));
        let loading = Loading {
            source: &source,
            recipe: &recipe,
            form: Form::Squares,
            share: Share::WHOLE,
            threads: 1,
            memory: None,
            processors: &[],
        };
        let mut loader = loading.training(0, 1).unwrap();
        let batch = loader.next().unwrap().unwrap();
        for (number, square) in batch.pixels.chunks_exact(32 * 32 * 3).enumerate() {
            assert!(pictures[number * (1 + LOOKS as usize) + 1] == square, "image {number}");
        }
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<b> & \"c\""), "&lt;b> &amp; &quot;c&quot;");
    }
}
