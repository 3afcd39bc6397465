//! One step's images, and how a thread of the loader makes them.
//!
//! Images leave in the form that the device takes: as squares, cropped, resized and mirrored here, or as
//! [raw batches](super::raw), of which the device makes the same squares. For a raw batch a thread only decodes and
//! copies the pixels that the crop covers; an image that finds no room, or is changed in other ways too, becomes a square
//! here all the same.

use super::augment::{Geometry, Look, Scratch, View, choose_geometry, edit_square, render};
use super::raw::{RawBatch, RawScratch};
use super::request::{Form, LoaderConfig};
use super::sampler::Place;
use super::{DataError, Source};
use crate::host_bytes::HostBytes;
use crate::pixels::{BatchPixels, raw_batch_bytes};

/// One step's images.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    pub step: u64,
    /// Position of the first image in the endless order; step × batch.
    pub first_position: u64,
    /// Valid images: the batch's size, or less in the last batch of an evaluation; the others are black.
    pub images: usize,
    pub form: Form,
    /// Side R of the squares.
    pub resolution: usize,
    /// Squares, or raw batches at distances of [`raw_batch_bytes`]; the bytes between those have no meaning.
    pub pixels: Vec<u8>,
    /// The same raw batches in memory that the device reads by itself, if the loader was given such.
    pub held: Option<HostBytes>,
    /// Bytes of each raw batch; empty for squares.
    pub used: Vec<usize>,
    /// [batch].
    pub labels: Vec<u32>,
}

impl Batch {
    /// The batch cut into parts of `images`, each with its labels.
    ///
    /// # Panics
    /// If raw batches are of another size.
    pub fn parts(&self, images: usize) -> impl ExactSizeIterator<Item = (BatchPixels<'_>, &[u32])> {
        let side = self.resolution;
        let bytes = match self.form {
            Form::Squares => images * side * side * 3,
            Form::Raw { images: own } => {
                assert_eq!(images, own, "raw batches are made for passes of their size");
                raw_batch_bytes(images, side)
            }
        };
        let held = self.held.as_ref();
        let pixels = held.map_or(&self.pixels[..], HostBytes::bytes);
        let parts = pixels.chunks_exact(bytes).zip(self.labels.chunks_exact(images));
        parts.enumerate().map(move |(number, (pixels, labels))| match self.form {
            Form::Squares => (BatchPixels::Squares(pixels), labels),
            Form::Raw { .. } => {
                (BatchPixels::Raw { bytes: &pixels[..self.used[number]], side, held }, labels)
            }
        })
    }
}

impl Batch {
    /// Copies the raw batches to memory that the device reads by itself. Returns false, and copies nothing, if somebody
    /// else holds it or if it has another size.
    pub(super) fn hold_in(&mut self, mut memory: HostBytes) -> bool {
        let Some(to) = memory.bytes_mut().filter(|to| to.len() == self.pixels.len()) else { return false };
        let stride = self.pixels.len() / self.used.len().max(1);
        for (number, used) in self.used.iter().enumerate() {
            let part = number * stride..number * stride + used;
            to[part.clone()].copy_from_slice(&self.pixels[part]);
        }
        self.held = Some(memory);
        true
    }
}

/// Brings an image into its square and does what training does to squares.
fn make_square(
    image: View,
    geometry: &Geometry,
    look: Option<Look>,
    resolution: usize,
    scratch: &mut Scratch,
    square: &mut [u8],
) -> Result<(), String> {
    render(image, geometry, resolution, scratch, square)?;
    if let Some(look) = look {
        edit_square(look, resolution, scratch, square);
    }
    Ok(())
}

/// Fills batches; one for each thread, with its own buffers.
pub(super) struct Maker {
    source: Source,
    config: LoaderConfig,
    decoded: Vec<u8>,
    tools: Tools,
}

#[derive(Default)]
struct Tools {
    scratch: Scratch,
    raw: RawScratch,
    /// An image that becomes a square here although the device takes others.
    square: Vec<u8>,
}

impl Maker {
    pub fn new(source: Source, config: LoaderConfig) -> Maker {
        Maker { source, config, decoded: Vec::new(), tools: Tools::default() }
    }

    /// Fills a batch with the images at `places`.
    pub fn fill(&mut self, places: &[Place], batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { split, batch: size, resolution, form, .. } = self.config;
        batch.images = places.len();
        batch.form = form;
        batch.resolution = resolution;
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
        let LoaderConfig { batch: size, resolution, .. } = self.config;
        let length = resolution * resolution * 3;
        batch.pixels.resize(size * length, 0);
        let slots = batch.pixels.chunks_exact_mut(length).zip(&mut batch.labels);
        for (place, (pixels, label)) in places.iter().zip(slots) {
            *label = self.with_image(place, |image, geometry, look, tools| {
                make_square(image, geometry, look, resolution, &mut tools.scratch, pixels)
            })?;
        }
        batch.pixels[places.len() * length..].fill(0);
        Ok(())
    }

    fn raw_batches(&mut self, places: &[Place], images: usize, batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { batch: size, resolution, .. } = self.config;
        let only_geometry = self.config.augment.is_none_or(|policy| policy.only_geometry());
        let bytes = raw_batch_bytes(images, resolution);
        let length = size / images * bytes;
        if batch.pixels.len() != length {
            // Fresh from the system: pages that no image is written to cost no memory.
            batch.pixels = vec![0; length];
        }
        let slots = batch.pixels.chunks_exact_mut(bytes).zip(batch.labels.chunks_exact_mut(images));
        for (part, (buffer, labels)) in slots.enumerate() {
            let places = places.get(part * images..).unwrap_or_default();
            let mut raw = RawBatch::new(buffer, images, resolution);
            for (place, label) in places.iter().zip(labels) {
                *label = self.with_image(place, |image, geometry, look, tools| {
                    let Tools { scratch, raw: tables, square } = tools;
                    if !only_geometry || !raw.push(image, geometry, tables) {
                        square.resize(resolution * resolution * 3, 0);
                        make_square(image, geometry, look, resolution, scratch, square)?;
                        raw.push_resized(square, tables);
                    }
                    Ok(())
                })?;
            }
            batch.used.push(raw.used());
        }
        Ok(())
    }

    /// Gives the image at a place to `work`, with its geometry and the look that chose it, and returns its label.
    fn with_image(
        &mut self,
        place: &Place,
        work: impl FnOnce(View, &Geometry, Option<Look>, &mut Tools) -> Result<(), String>,
    ) -> Result<u32, DataError> {
        let Maker { source, config, decoded, tools } = self;
        let LoaderConfig { split, resolution, crop, augment, seed, .. } = *config;
        let index = place.index as usize;
        let image = source.image(split, index, decoded)?;
        let look = augment.map(|policy| Look { policy, seed, epoch: place.epoch, id: image.id });
        let worked = image.view.whole().and_then(|view| {
            let geometry = choose_geometry(view.size(), resolution, crop, look)?;
            work(view, &geometry, look, tools)
        });
        worked.map_err(|problem| source.damaged(split, index, problem))?;
        Ok(image.label)
    }
}
