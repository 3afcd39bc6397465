//! One step's images, and how a thread of the loader makes them.
//!
//! They leave in the form that the device takes: as squares, cropped, resized and mirrored here, or as
//! [raw batches](super::raw), of which the device makes the very same squares. Then a thread only decodes, and copies
//! what the crop covers; an image that finds no room is resized here all the same.

use super::augment::{Geometry, Look, Scratch, preprocess};
use super::loader::LoaderConfig;
use super::raw::{RawBatch, RawScratch};
use super::sampler::Place;
use super::source::Image;
use super::{DataError, Source};

/// In which form images leave the loader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// [batch, R, R, 3] bytes.
    #[default]
    Squares,
    /// A raw batch for every `images` of them, which divide the batch.
    Raw { images: usize },
}

/// Images as they go to a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BatchPixels<'a> {
    /// [N, R, R, 3] bytes.
    Squares(&'a [u8]),
    /// A raw batch, of which the device makes squares of this side.
    Raw { bytes: &'a [u8], side: usize },
}

/// One step's images.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    pub step: u64,
    /// Position of the first image in the endless order; step × batch.
    pub first_position: u64,
    /// Images that are valid, the batch's size but for the last batch of an evaluation; the rest is black.
    pub images: usize,
    pub form: Form,
    /// Side R of the squares.
    pub resolution: usize,
    /// Squares, or raw batches at equal distances, [`RawBatch::bytes`]; what lies between those is left over.
    pub pixels: Vec<u8>,
    /// Bytes of each raw batch; empty for squares.
    pub used: Vec<usize>,
    /// [batch].
    pub labels: Vec<u32>,
}

impl Batch {
    /// The batch cut into parts of `images`, each with its labels.
    ///
    /// # Panics
    /// Where raw batches are of another size.
    pub fn parts(&self, images: usize) -> impl ExactSizeIterator<Item = (BatchPixels<'_>, &[u32])> {
        let side = self.resolution;
        let bytes = match self.form {
            Form::Squares => images * side * side * 3,
            Form::Raw { images: own } => {
                assert_eq!(images, own, "raw batches are made for passes of their size");
                RawBatch::bytes(images, side)
            }
        };
        let parts = self.pixels.chunks_exact(bytes).zip(self.labels.chunks_exact(images));
        parts.enumerate().map(move |(number, (pixels, labels))| match self.form {
            Form::Squares => (BatchPixels::Squares(pixels), labels),
            Form::Raw { .. } => (BatchPixels::Raw { bytes: &pixels[..self.used[number]], side }, labels),
        })
    }
}

/// What one thread fills batches with, and the buffers that it does it in.
pub(super) struct Maker {
    source: Source,
    config: LoaderConfig,
    decoded: Vec<u8>,
    scratch: Scratch,
    raw: RawScratch,
    /// An image that is resized here although the device would have done it.
    square: Vec<u8>,
}

impl Maker {
    pub fn new(source: Source, config: LoaderConfig) -> Maker {
        let (decoded, square) = (Vec::new(), Vec::new());
        Maker { source, config, decoded, scratch: Scratch::default(), raw: RawScratch::default(), square }
    }

    /// Fills a batch with the images at `places`.
    pub fn fill(&mut self, places: &[Place], batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { split, batch: size, resolution, form, .. } = self.config;
        (batch.images, batch.form, batch.resolution) = (places.len(), form, resolution);
        batch.labels.resize(size, 0);
        for place in places {
            self.source.will_need(split, place.index as usize);
        }
        batch.used.clear();
        match form {
            Form::Squares => self.squares(places, batch)?,
            Form::Raw { images } => self.raw_batches(places, images, batch)?,
        }
        batch.labels[places.len()..].fill(0);
        Ok(())
    }

    fn squares(&mut self, places: &[Place], batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { batch: size, resolution, crop, .. } = self.config;
        let length = resolution * resolution * 3;
        batch.pixels.resize(size * length, 0);
        let slots = batch.pixels.chunks_exact_mut(length).zip(&mut batch.labels);
        for (place, (pixels, label)) in places.iter().zip(slots) {
            *label = self.with_image(place, |image, look, tools| {
                preprocess(image.view, resolution, crop, look, tools.scratch, pixels)
            })?;
        }
        batch.pixels[places.len() * length..].fill(0);
        Ok(())
    }

    fn raw_batches(&mut self, places: &[Place], images: usize, batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { batch: size, resolution, crop, .. } = self.config;
        let bytes = RawBatch::bytes(images, resolution);
        let length = size / images * bytes;
        if batch.pixels.len() != length {
            // Fresh from the system: pages that no image comes to cost no memory.
            batch.pixels = vec![0; length];
        }
        let slots = batch.pixels.chunks_exact_mut(bytes).zip(batch.labels.chunks_exact_mut(images));
        for (part, (buffer, labels)) in slots.enumerate() {
            let places = places.get(part * images..).unwrap_or_default();
            let mut raw = RawBatch::new(buffer, images, resolution);
            for (place, label) in places.iter().zip(labels) {
                *label = self.with_image(place, |image, look, tools| {
                    let view = image.view.whole()?;
                    let geometry = Geometry::new((view.width, view.height), resolution, crop, look)?;
                    if !raw.push(view, &geometry, tools.raw) {
                        tools.square.resize(resolution * resolution * 3, 0);
                        preprocess(view, resolution, crop, look, tools.scratch, tools.square)?;
                        raw.push_resized(tools.square, tools.raw);
                    }
                    Ok(())
                })?;
            }
            batch.used.push(raw.used());
        }
        Ok(())
    }

    /// Hands the image at a place to `work`, with what training draws for it, and gives its label.
    fn with_image(
        &mut self,
        place: &Place,
        work: impl FnOnce(&Image, Option<Look>, Tools) -> Result<(), String>,
    ) -> Result<u32, DataError> {
        let Maker { source, config, decoded, scratch, raw, square } = self;
        let (split, index) = (config.split, place.index as usize);
        let image = source.image(split, index, decoded)?;
        let look = config.train.then_some(Look { seed: config.seed, epoch: place.epoch, id: image.id });
        work(&image, look, Tools { scratch, raw, square }).map_err(|problem| match &*source {
            Source::Packed(dataset) => dataset.damaged_sample(split, index, problem),
            Source::Synthetic(_) => DataError::Loader(problem),
        })?;
        Ok(image.label)
    }
}

/// A thread's buffers.
struct Tools<'a> {
    scratch: &'a mut Scratch,
    raw: &'a mut RawScratch,
    square: &'a mut Vec<u8>,
}
