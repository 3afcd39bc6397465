//! Transfer of batches to the GPU: two buffers take turns, one is filled while the other is in use.
//!
//! A buffer holds the labels, then the images: squares, or a [raw batch](crate::data::raw). Its size depends only on
//! the shapes, so it is allocated once and captured graphs can contain its address. Of a raw batch only the used
//! bytes are sent.

use super::context::Context;
use super::gpu::{Gpu, Staging};
use super::image;
use crate::ops::{BatchInput, BatchTarget, OpsError, Result, Tensor};
use crate::pixels::{BatchPixels, raw_batch_bytes};

/// The form of a batch. A captured graph unpacks one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sent {
    Squares,
    /// A raw batch of squares of this side.
    Raw(usize),
}

impl Sent {
    fn of(pixels: &BatchPixels) -> Sent {
        match *pixels {
            BatchPixels::Squares(_) => Sent::Squares,
            BatchPixels::Raw { side, .. } => Sent::Raw(side),
        }
    }

    /// Offset of the images: they follow the labels. Raw batches have room for labels in inference too, so that
    /// inference and training can share the buffers.
    fn images_at(self, target: &BatchTarget) -> usize {
        let labels = match self {
            Sent::Squares => target.labels.map_or(0, |labels| labels.elements),
            Sent::Raw(side) => images(target.image, side),
        };
        (4 * labels).next_multiple_of(256)
    }
}

/// N of an image tensor [N, R, R, 3].
fn images(image: Tensor, side: usize) -> usize {
    image.elements / (side * side * 3)
}

/// The two buffers, see the module.
pub struct Batches {
    staging: [Staging; 2],
    room: usize,
    sent: [Option<Sent>; 2],
}

impl Batches {
    /// Bytes of a buffer for batches of this kind.
    pub fn bytes(batch: &BatchInput) -> usize {
        let room = match batch.pixels {
            BatchPixels::Squares(bytes) => bytes.len(),
            BatchPixels::Raw { bytes, side } => {
                bytes.len().max(raw_batch_bytes(images(batch.target.image, side), side))
            }
        };
        Sent::of(&batch.pixels).images_at(&batch.target) + room
    }

    /// Buffers of `room` bytes.
    pub fn new<G: Gpu>(gpu: &mut G, room: usize) -> Result<Batches> {
        Ok(Batches { staging: [gpu.staging(room)?, gpu.staging(room)?], room, sent: [None; 2] })
    }

    pub fn free<G: Gpu>(self, gpu: &mut G) -> Result {
        self.staging.into_iter().try_for_each(|staging| gpu.free_staging(staging))
    }

    pub fn room(&self) -> usize {
        self.room
    }

    /// The form of the batch last sent as `slot`.
    pub fn sent(&self, slot: usize) -> Option<Sent> {
        self.sent[slot]
    }

    /// Copies a batch into its buffer and starts its transfer.
    pub fn send<G: Gpu>(&mut self, gpu: &mut G, slot: usize, batch: &BatchInput) -> Result {
        let sent = Sent::of(&batch.pixels);
        let (BatchPixels::Squares(pixels) | BatchPixels::Raw { bytes: pixels, .. }) = batch.pixels;
        let start = sent.images_at(&batch.target);
        let host = gpu.staging_host(self.staging[slot])?;
        host[..4 * batch.labels.len()].copy_from_slice(bytemuck::cast_slice(batch.labels));
        host[start..start + pixels.len()].copy_from_slice(pixels);
        self.sent[slot] = Some(sent);
        gpu.staging_send(self.staging[slot], start + pixels.len())
    }

    /// Makes the batch that was sent as `slot` the network's input.
    ///
    /// # Errors
    /// No batch was sent as `slot`; errors of the GPU.
    pub fn unpack<G: Gpu>(&self, cx: &mut Context<G>, slot: usize, target: &BatchTarget) -> Result {
        let Some(sent) = self.sent[slot] else {
            return Err(OpsError::Device(format!("no batch was sent as {slot}")));
        };
        let at = cx.gpu.staging_address(self.staging[slot]);
        let from = at.offset(sent.images_at(target));
        let BatchTarget { image, labels, mean, deviation } = *target;
        match sent {
            Sent::Squares => image::normalise(cx, from, image, mean, deviation)?,
            Sent::Raw(side) => image::prepare(cx, from, image, side, mean, deviation)?,
        }
        let Some(labels) = labels else { return Ok(()) };
        let to = cx.tensor(labels);
        cx.gpu.copy(at, to, 4 * labels.elements)
    }

    /// Work enqueued from here on waits for the batch.
    pub fn acquire<G: Gpu>(&self, gpu: &mut G, slot: usize) -> Result {
        gpu.staging_acquire(self.staging[slot])
    }

    /// The batch may be overwritten once the work enqueued so far is done.
    pub fn release<G: Gpu>(&self, gpu: &mut G, slot: usize) -> Result {
        gpu.staging_release(self.staging[slot])
    }
}
