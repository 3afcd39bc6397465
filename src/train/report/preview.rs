//! A page of training images as the network sees them, so that people look before they train.
//!
//! It shows the first images of the run's first epoch: each as an evaluation sees it, then as the first epochs of the run
//! see it. The page is one file and asks the network for nothing.

use std::fmt::Write;
use std::io::Cursor;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::{ImageFormat, Rgb, RgbImage};

use super::page::html::text as escaped;
use crate::data::augment::{Look, Policy, Scratch, preprocess};
use crate::data::sampler::{Place, Sampler};
use crate::data::{DataError, Source, Split};
use crate::train::progressive::Stage;
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
small { display: block; overflow-wrap: anywhere }
img { image-rendering: pixelated; flex: none; border-radius: 3px }
.row > :first-child:is(img), .row > :first-child img { outline: 2px solid #3b82f6; outline-offset: -2px }
@media print { figure { break-inside: avoid } }
";

/// The page for a recipe, of which the crop is resolved.
///
/// # Errors
/// Those of reading the source's images.
pub fn page(recipe: &Recipe, source: &Source) -> Result<String, DataError> {
    let side = recipe.resolution;
    let mut painter = Painter::new(recipe, source, LOOKS);
    let mut figures = String::new();
    for number in 0..IMAGES.min(source.samples(Split::Train)) {
        let index = painter.orders[0][number].index;
        let (wide, high) = painter.evaluated(index)?;
        let class = painter.classes[painter.label as usize].clone();
        let _ = write!(figures, "<figure><figcaption>{class}, {wide}×{high}</figcaption><div class=\"row\">");
        figures += &painter.picture(&class, "as evaluated")?;
        for epoch in 0..LOOKS {
            let at = match epoch {
                0 => Some(number),
                _ => painter.orders[epoch as usize].iter().position(|place| place.index == index),
            };
            let mixed = at.map(|at| painter.trained(epoch, at)).transpose()?;
            let what = match mixed {
                Some(mixed) => format!("in epoch {}{mixed}", epoch + 1),
                // Of balanced classes, the larger ones are not seen in full.
                None => {
                    painter.evaluated(index)?;
                    format!("not in epoch {}", epoch + 1)
                }
            };
            figures += &painter.picture(&class, &what)?;
        }
        figures += "</div></figure>\n";
    }
    let augmentation = escaped(&super::rows::augmentation(recipe));
    let stage = match recipe.stages().len() {
        1 => String::new(),
        _ => format!(" in the run's first stage, of {0}×{0} pixels", painter.stage.resolution),
    };
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Training images</title>\n<style>{STYLE}</style>\n<h1>Training images</h1>\n\
         <p>{side}×{side} pixels, crop {}. Augmentation: {augmentation}. The first square of each row, framed, is what an \
         evaluation sees; the others are what the first {LOOKS} epochs see{stage}.</p>\n{figures}</html>\n",
        recipe.crop
    ))
}

/// The page's images of the first epoch as one picture.
pub struct Sheet {
    /// Width and height.
    pub size: (u32, u32),
    pub png: Vec<u8>,
}

/// Images in a row of a sheet.
const COLUMNS: usize = 4;

/// The first images of the run as its first epoch sees them, in rows of four; small ones with their pixels visible.
///
/// # Errors
/// Those of reading the source's images.
pub fn sheet(recipe: &Recipe, source: &Source) -> Result<Sheet, DataError> {
    let seen = first_images(recipe, source)?;
    let (images, side) = (seen.len(), seen.first().map_or(1, |image| image.side));
    let times = LEAST_WIDTH.div_ceil(side);
    let shown = side * times;
    let size = ((COLUMNS.min(images) * shown) as u32, (images.div_ceil(COLUMNS) * shown) as u32);
    let mut sheet = RgbImage::new(size.0, size.1);
    for (number, Seen { square, .. }) in seen.iter().enumerate() {
        let (left, top) = (number % COLUMNS * shown, number / COLUMNS * shown);
        for (y, x) in (0..shown).flat_map(|y| (0..shown).map(move |x| (y, x))) {
            let at = (y / times * side + x / times) * 3;
            let pixel = Rgb([square[at], square[at + 1], square[at + 2]]);
            sheet.put_pixel((left + x) as u32, (top + y) as u32, pixel);
        }
    }
    Ok(Sheet { size, png: encoded(&sheet)? })
}

/// A training image as the first epoch of the run sees it.
pub(super) struct Seen {
    /// R×R×3 bytes.
    pub square: Vec<u8>,
    pub side: usize,
    /// Its class as HTML; where it is mixed, the labels with their shares.
    pub caption: String,
}

/// The first images of the run's first epoch.
///
/// # Errors
/// As [`page`].
pub(super) fn first_images(recipe: &Recipe, source: &Source) -> Result<Vec<Seen>, DataError> {
    let mut painter = Painter::new(recipe, source, 1);
    let images = 0..IMAGES.min(source.samples(Split::Train));
    images
        .map(|number| {
            let mixed = painter.trained(0, number)?;
            let caption = match mixed.strip_prefix(": ") {
                Some(shares) => shares.into(),
                None => painter.classes[painter.label as usize].clone(),
            };
            Ok(Seen { square: painter.square.clone(), side: painter.stage.resolution, caption })
        })
        .collect()
}

/// Makes the squares of a page.
struct Painter<'a> {
    recipe: &'a Recipe,
    source: &'a Source,
    /// The run's first.
    stage: Stage,
    /// Of that stage.
    policy: Policy,
    /// Names of the classes, as HTML.
    classes: Vec<String>,
    /// The images of each epoch in their order, and of one more: the last image of an epoch may be mixed with the first
    /// of the next.
    orders: Vec<Vec<Place>>,
    /// The label of the image that was rendered last, and its square.
    label: u32,
    square: Vec<u8>,
    decoded: Vec<u8>,
    scratch: Scratch,
}

impl<'a> Painter<'a> {
    /// For the first epochs of the run.
    fn new(recipe: &'a Recipe, source: &'a Source, epochs: u32) -> Painter<'a> {
        let stage = recipe.stages()[0];
        // One step an epoch.
        let samples = source.samples(Split::Train);
        let mut sampler = Sampler::training(recipe.seed, source, samples, recipe.sampling);
        let order = |epoch: u32| {
            let mut order = Vec::new();
            sampler.fill(epoch.into(), &mut order);
            order
        };
        Painter {
            recipe,
            source,
            stage,
            policy: stage.weaken(recipe.policy(source.normalise())),
            classes: source.class_names().iter().map(|class| escaped(class)).collect(),
            orders: (0..=epochs).map(order).collect(),
            label: 0,
            square: Vec::new(),
            decoded: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    fn look(&self, Place { index, epoch }: Place) -> Look {
        let id = self.source.id(Split::Train, index as usize);
        Look { policy: self.policy, seed: self.recipe.seed, epoch, id }
    }

    /// Renders an image, and returns its size.
    fn render(&mut self, index: u32, look: Option<Look>) -> Result<(u32, u32), DataError> {
        let Painter { source, recipe, stage, decoded, scratch, square, label, .. } = self;
        let image = source.image(Split::Train, index as usize, decoded)?;
        *label = image.label;
        let side = if look.is_some() { stage.resolution } else { recipe.resolution };
        square.resize(side * side * 3, 0);
        preprocess(image.view, side, recipe.crop, look, scratch, square).map_err(DataError::Invalid)?;
        Ok(image.view.size())
    }

    fn evaluated(&mut self, index: u32) -> Result<(u32, u32), DataError> {
        self.render(index, None)
    }

    /// Renders the image at a place of an epoch's order. Where it is mixed, returns the labels with their shares.
    fn trained(&mut self, epoch: u32, place: usize) -> Result<String, DataError> {
        let order = &self.orders[epoch as usize];
        let own = order[place];
        let index = own.index;
        let own = self.look(own);
        let samples = order.len() as u64;
        let position = u64::from(epoch) * samples + place as u64;
        let other = position ^ 1;
        let other = self.orders[(other / samples) as usize][(other % samples) as usize];
        let partner = self.look(other);
        let side = self.stage.resolution;
        // The pair is in the epoch of its first image.
        let (first, pair_epoch) = match position % 2 {
            0 => (own, position / samples),
            _ => (partner, (position - 1) / samples),
        };
        let Some(mix) = first.mix(pair_epoch as u32, side as u32) else {
            return self.render(index, Some(own)).map(|_| String::new());
        };
        self.render(other.index, Some(partner))?;
        let (other_label, mut other_square) = (self.label, self.square.clone());
        self.render(index, Some(own))?;
        mix.apply(&mut self.square, &mut other_square, side);
        let (first, second, share) = mix.labels(self.label, other_label, side as u32);
        let [first, second] = [first, second].map(|label| &self.classes[label as usize]);
        Ok(format!(": {share:.2} {first}, {:.2} {second}", 1.0 - share))
    }

    /// The square that was rendered last, with what it shows.
    fn picture(&self, class: &str, what: &str) -> Result<String, DataError> {
        let side = (self.square.len() / 3).isqrt();
        let width = side * LEAST_WIDTH.div_ceil(side).max(1);
        let data = BASE64_STANDARD.encode(png(&self.square, side)?);
        let image = format!(
            "<img width=\"{width}\" height=\"{width}\" alt=\"{class}, {what}\" title=\"{what}\" \
             src=\"data:image/png;base64,{data}\">"
        );
        // The shares are to be seen without a mouse.
        let shares = what.split_once(": ").map_or(String::new(), |(_, shares)| shares.replace(", ", "<br>"));
        Ok(if self.recipe.mixes() {
            format!("<div style=\"width: {width}px\">{image}<small>{shares}</small></div>")
        } else {
            image
        })
    }
}

/// R×R×3 bytes as a PNG file.
pub(super) fn png(square: &[u8], side: usize) -> Result<Vec<u8>, DataError> {
    let image = RgbImage::from_raw(side as u32, side as u32, square.to_vec()).expect("a square's bytes");
    encoded(&image)
}

fn encoded(image: &RgbImage) -> Result<Vec<u8>, DataError> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| DataError::Invalid(e.to_string()))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::Auto;
    use crate::data::codec::decode_file;
    use crate::data::{CropMode, Form, Sampling, Share, Shuffle};
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
        expect_squares_of_the_run(&recipe, &source);
    }

    /// The labels and shares too.
    #[test]
    fn page_shows_the_mixed_pairs_of_the_run() {
        let source = Source::synthetic(3, 21, 2, 50).unwrap();
        let recipe = Recipe {
            resolution: 32,
            crop: CropMode::Resized,
            mixup: 0.8,
            cutmix: 1.0,
            mixup_prob: Some(0.9),
            ..Recipe::reference(Variant::B0, IMAGES)
        };
        let page = expect_squares_of_the_run(&recipe, &source);
        assert!(page.contains("mixup 0.8 or cutmix 1 (50 %) of 90 %"), "the head says it");
        // Epoch 1 ends with an image whose partner is the first of epoch 2.
        Painter::new(&recipe, &source, LOOKS).trained(0, 20).unwrap();
        // In any order; a balanced one leaves some images out of some epochs.
        let orders = [(Shuffle::Blocks, false), (Shuffle::Full, true), (Shuffle::Blocks, true)];
        for (shuffle, balance) in orders {
            let recipe = Recipe { sampling: Sampling { shuffle, balance }, ..recipe.clone() };
            expect_squares_of_the_run(&recipe, &source);
        }
    }

    /// Those of the first stage.
    #[test]
    fn page_shows_the_first_stage_of_the_run() {
        let source = Source::synthetic(3, 20, 2, 50).unwrap();
        let recipe = Recipe {
            resolution: 48,
            progressive: vec![32],
            progressive_augment: Some(0.5),
            crop: CropMode::Resized,
            color_jitter: 0.4,
            ..Recipe::reference(Variant::B0, IMAGES)
        };
        let page = expect_squares_of_the_run(&recipe, &source);
        assert!(page.contains("in the run's first stage, of 32×32 pixels"));
    }

    fn expect_squares_of_the_run(recipe: &Recipe, source: &Source) -> String {
        let page = page(recipe, source).unwrap();
        let pictures: Vec<Vec<u8>> = page
            .split("base64,")
            .skip(1)
            .map(|rest| BASE64_STANDARD.decode(rest.split('"').next().unwrap()).unwrap())
            .map(|png| decode_file(&png).unwrap().pixels.bytes)
            .collect();
        assert_eq!(pictures.len(), IMAGES * (1 + LOOKS as usize));
        let loading = Loading {
            source,
            recipe,
            form: Form::Squares,
            share: Share::WHOLE,
            threads: 1,
            memory: None,
            processors: &[],
        };
        let mut loader = loading.training(recipe.stages()[0], 0, 1).unwrap();
        let batch = loader.next().unwrap().unwrap();
        let sheet = decode_file(&sheet(recipe, source).unwrap().png).unwrap().pixels;
        assert_eq!((sheet.width, sheet.height), (512, 512));
        for (number, square) in batch.pixels.chunks_exact(32 * 32 * 3).enumerate() {
            assert!(pictures[number * (1 + LOOKS as usize) + 1] == square, "image {number}");
            let (left, top) = (number % 4 * 128, number / 4 * 128);
            for (at, pixel) in square.chunks_exact(3).enumerate() {
                let place = ((top + at / 32 * 4 + 3) * 512 + left + at % 32 * 4 + 1) * 3;
                assert_eq!(sheet.bytes[place..place + 3], *pixel, "image {number}");
            }
            let (Some(second), Some(share)) = (batch.second.get(number), batch.shares.get(number)) else {
                continue;
            };
            let row = page.split("<figure>").nth(1 + number).unwrap();
            let said = row.split("title=\"").nth(2).unwrap().split('"').next().unwrap();
            let expected = match *share {
                1.0 => "in epoch 1".to_string(),
                share => {
                    format!("in epoch 1: {share:.2} {}, {:.2} {second}", batch.labels[number], 1.0 - share)
                }
            };
            assert_eq!(said, expected, "image {number}");
        }
        page
    }
}
