//! One step's images, and how a thread of the loader makes them.
//!
//! Images leave in the form that the device takes: as squares, cropped, resized, mirrored, edited and mixed here, or as
//! [raw batches](super::raw), of which the device makes the same squares. For a raw batch a thread only decodes, copies
//! the pixels that the crop covers and draws the edits and what is mixed; an image that finds no room becomes a square here,
//! which the device edits and mixes all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::augment::{Edit, Geometry, Look, Mix, Scratch, View, choose_geometry, edit_square, render};
use super::codec::{Pixels, decode_file_to_reduce};
use super::raw::{RawBatch, RawScratch};
use super::request::{Form, LoaderConfig};
use super::sampler::Place;
use super::{DataError, Source};
use crate::host_bytes::HostBytes;
use crate::labels::{Labels, Mixed};
use crate::pixels::{BatchPixels, Editing, raw_batch_bytes};

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
    /// What the device does to the squares of raw batches.
    pub editing: Editing,
    /// Squares, or raw batches at distances of [`raw_batch_bytes`]; the bytes between those have no meaning.
    pub pixels: Vec<u8>,
    /// The same raw batches in memory that the device reads by itself, if the loader was given such.
    pub held: Option<HostBytes>,
    /// Bytes of each raw batch; empty for squares.
    pub used: Vec<usize>,
    /// [batch].
    pub labels: Vec<u32>,
    /// [batch]; empty where images are not mixed. See [`Mixed`].
    pub second: Vec<u32>,
    pub shares: Vec<f32>,
    /// Files that could not be read, by their number in the batch, with the reason; their images are black. Always empty
    /// for images of a set, of which a damaged one is an error.
    pub broken: Vec<(usize, String)>,
}

/// Where a loader's images come from.
#[derive(Clone)]
pub(super) enum Images {
    Set(Source),
    /// Image files without labels, for inference.
    Files(Arc<[PathBuf]>),
}

impl Batch {
    /// The batch cut into parts of `images`, each with its labels.
    ///
    /// # Panics
    /// If raw batches are of another size.
    pub fn parts(&self, images: usize) -> impl ExactSizeIterator<Item = (BatchPixels<'_>, Labels<'_>)> {
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
        parts.enumerate().map(move |(number, (pixels, first))| {
            let own = number * images..(number + 1) * images;
            let mixed = self.second.get(own.clone()).zip(self.shares.get(own));
            let mixed = mixed.map(|(second, shares)| Mixed { second, shares });
            let pixels = match self.form {
                Form::Squares => BatchPixels::Squares(pixels),
                Form::Raw { .. } => {
                    let bytes = &pixels[..self.used[number]];
                    BatchPixels::Raw { bytes, side, editing: self.editing, held }
                }
            };
            (pixels, Labels { first, mixed, class_weights: None })
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

/// Fills batches; one for each thread, with its own buffers.
pub(super) struct Maker {
    images: Images,
    config: LoaderConfig,
    decoded: Vec<u8>,
    /// How the pairs of the batch are mixed; empty if none is.
    mixes: Vec<Option<Mix>>,
    tools: Tools,
}

#[derive(Default)]
struct Tools {
    scratch: Scratch,
    raw: RawScratch,
    edits: Vec<Edit>,
    /// An image that becomes a square here although the device takes others.
    square: Vec<u8>,
}

impl Maker {
    pub fn new(images: Images, config: LoaderConfig) -> Maker {
        Maker { images, config, decoded: Vec::new(), mixes: Vec::new(), tools: Tools::default() }
    }

    /// Fills a batch with the images at `places`.
    pub fn fill(&mut self, places: &[Place], batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { split, batch: size, resolution, form, augment, .. } = self.config;
        batch.images = places.len();
        batch.form = form;
        batch.resolution = resolution;
        batch.editing = match form {
            Form::Raw { .. } if self.config.mixes() => Editing::Mixing,
            Form::Raw { .. } if augment.is_some_and(|policy| !policy.only_geometry()) => Editing::Edits,
            _ => Editing::None,
        };
        batch.labels.resize(size, 0);
        if let Images::Set(source) = &self.images {
            places.iter().for_each(|place| source.will_need(split, place.index as usize));
        }
        batch.used.clear();
        batch.broken.clear();
        self.choose_mixes(places, batch.first_position);
        match form {
            Form::Squares => self.squares(places, batch)?,
            Form::Raw { images } => self.raw_batches(places, images, batch)?,
        }
        batch.labels[places.len()..].fill(0);
        self.mix_labels(batch);
        Ok(())
    }

    fn choose_mixes(&mut self, places: &[Place], first_position: u64) {
        let LoaderConfig { split, resolution, augment, seed, .. } = self.config;
        self.mixes.clear();
        let Some(policy) = augment.filter(|_| self.config.mixes()) else { return };
        let Images::Set(source) = &self.images else { return };
        let samples = source.samples(split) as u64;
        let positions = (first_position..).step_by(2);
        self.mixes.extend(places.chunks_exact(2).zip(positions).map(|(pair, position)| {
            let Place { index, epoch } = pair[0];
            let id = source.id(split, index as usize);
            Look { policy, seed, epoch, id }.mix((position / samples) as u32, resolution as u32)
        }));
    }

    /// Gives the images of mixed pairs two labels. The batch has each image's own.
    fn mix_labels(&self, batch: &mut Batch) {
        let Batch { labels, second, shares, resolution, .. } = batch;
        second.clear();
        shares.clear();
        if self.mixes.is_empty() {
            return;
        }
        second.extend_from_slice(labels);
        shares.resize(labels.len(), 1.0);
        for (number, mix) in self.mixes.iter().enumerate() {
            let Some(mix) = mix else { continue };
            let (one, two) = (2 * number, 2 * number + 1);
            let own = [labels[one], labels[two]];
            for (at, own, other) in [(one, own[0], own[1]), (two, own[1], own[0])] {
                (labels[at], second[at], shares[at]) = mix.labels(own, other, *resolution as u32);
            }
        }
    }

    fn squares(&mut self, places: &[Place], batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { batch: size, resolution, .. } = self.config;
        let length = resolution * resolution * 3;
        batch.pixels.resize(size * length, 0);
        let slots = batch.pixels.chunks_exact_mut(length).zip(&mut batch.labels);
        for (number, (place, (pixels, label))) in places.iter().zip(slots).enumerate() {
            let made = self.with_image(place, |image, geometry, look, tools| {
                render(image, geometry, resolution, &mut tools.scratch, pixels)?;
                if let Some(look) = look {
                    edit_square(look, resolution, &mut tools.scratch, pixels);
                }
                Ok(())
            });
            *label = self.or_broken(made, number, &mut batch.broken, |_| pixels.fill(0))?;
        }
        for (pair, mix) in batch.pixels.chunks_exact_mut(2 * length).zip(&self.mixes) {
            if let Some(mix) = mix {
                let (one, two) = pair.split_at_mut(length);
                mix.apply(one, two, resolution);
            }
        }
        batch.pixels[places.len() * length..].fill(0);
        Ok(())
    }

    fn raw_batches(&mut self, places: &[Place], images: usize, batch: &mut Batch) -> Result<(), DataError> {
        let LoaderConfig { batch: size, resolution, .. } = self.config;
        let editing = batch.editing;
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
            for (number, (place, label)) in places.iter().zip(labels).enumerate() {
                let made = self.with_image(place, |image, geometry, look, tools| {
                    let Tools { scratch, raw: tables, edits, square } = tools;
                    edits.clear();
                    if let Some(look) = look {
                        look.edits(resolution as u32, edits);
                    }
                    assert!(edits.is_empty() || editing != Editing::None, "the device expects edits");
                    if !raw.push(image, geometry, edits, tables) {
                        square.resize(resolution * resolution * 3, 0);
                        render(image, geometry, resolution, scratch, square)?;
                        raw.push_resized(square, edits, tables);
                    }
                    Ok(())
                });
                *label = self.or_broken(made, part * images + number, &mut batch.broken, |tools| {
                    tools.square.clear();
                    tools.square.resize(resolution * resolution * 3, 0);
                    raw.push_resized(&tools.square, &[], &mut tools.raw);
                })?;
            }
            let mixes = self.mixes.get(part * images / 2..).unwrap_or_default();
            for (pair, mix) in mixes.iter().take(places.len().min(images) / 2).enumerate() {
                if let Some(mix) = mix {
                    [2 * pair, 2 * pair + 1].into_iter().for_each(|number| raw.mix(number, *mix));
                }
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
        let Maker { images, config, decoded, tools, .. } = self;
        let LoaderConfig { split, resolution, crop, augment, seed, .. } = *config;
        let index = place.index as usize;
        let source = match images {
            Images::Set(source) => source,
            Images::Files(files) => {
                let worked = with_file(&files[index], decoded, |image| {
                    let geometry = choose_geometry(image.size(), resolution, crop, None)?;
                    work(image, &geometry, None, tools)
                });
                return worked.map(|()| 0);
            }
        };
        let image = source.image(split, index, decoded)?;
        let look = augment.map(|policy| Look { policy, seed, epoch: place.epoch, id: image.id });
        let worked = image.view.whole().and_then(|view| {
            let geometry = choose_geometry(view.size(), resolution, crop, look)?;
            work(view, &geometry, look, tools)
        });
        worked.map_err(|problem| source.damaged(split, index, problem))?;
        Ok(image.label)
    }
    /// A file that could not be read is noted, and `black` makes its image; of a set's image the error stays one.
    fn or_broken(
        &mut self,
        made: Result<u32, DataError>,
        number: usize,
        broken: &mut Vec<(usize, String)>,
        black: impl FnOnce(&mut Tools),
    ) -> Result<u32, DataError> {
        match (made, &self.images) {
            (Err(error), Images::Files(_)) => {
                broken.push((number, error.to_string()));
                black(&mut self.tools);
                Ok(0)
            }
            (made, _) => made,
        }
    }
}

/// Gives a file's image to `work`. `buffer` is memory to be used again.
fn with_file(
    path: &Path,
    buffer: &mut Vec<u8>,
    work: impl FnOnce(View) -> Result<(), String>,
) -> Result<(), DataError> {
    let broken = |problem| DataError::Image { path: path.to_owned(), problem };
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let Pixels { width, height, channels, bytes } =
        decode_file_to_reduce(&bytes, None, std::mem::take(buffer)).map_err(broken)?.pixels;
    *buffer = bytes;
    let view = View { width, height, channels, bytes: buffer };
    view.whole().and_then(work).map_err(broken)
}
