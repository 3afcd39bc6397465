//! Transfer of batches to the GPU: two buffers take turns, one is filled while the other is in use.
//!
//! A buffer holds the labels, then the images: squares, or a [raw batch](crate::data::raw). Its size depends only on
//! the shapes, so it is allocated once and captured graphs can contain its address. Of a raw batch only the used
//! bytes are sent. They come from the loader's memory if the device can read it, so that the host copies labels alone.

use std::ops::Range;

use super::context::Context;
use super::gpu::{Address, Gpu, Held, Staging};
use super::image::{self, RawOnDevice};
use crate::ops::{BatchInput, BatchTarget, OpsError, Result, Tensor};
use crate::pixels::{BatchPixels, Editing, edited_squares_bytes, raw_batch_bytes};

/// The form of a batch. A captured graph unpacks one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sent {
    Squares,
    /// A raw batch of squares of this side, and what happens to them.
    Raw {
        side: usize,
        editing: Editing,
    },
}

impl Sent {
    fn of(pixels: &BatchPixels) -> Sent {
        match *pixels {
            BatchPixels::Squares(_) => Sent::Squares,
            BatchPixels::Raw { side, editing, .. } => Sent::Raw { side, editing },
        }
    }

    /// Offset of the images: they follow the labels. Raw batches have room for labels in inference too, so that
    /// inference and training can share the buffers.
    fn images_at(self, target: &BatchTarget) -> usize {
        let labels = match self {
            Sent::Squares => target.labels.map_or(0, |labels| labels.elements),
            Sent::Raw { side, .. } => {
                target.labels.map_or(images(target.image, side), |labels| labels.elements)
            }
        };
        (4 * labels).next_multiple_of(256)
    }
}

/// N of an image tensor [N, R, R, 3].
fn images(image: Tensor, side: usize) -> usize {
    image.elements / (side * side * 3)
}

/// Bytes of a buffer on the device, and of the one on the host from which it is filled: where the device reads the
/// loader's memory, only labels pass through the latter.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    device: usize,
    host: usize,
    /// Of the workspace in which squares are edited. It lies behind the first buffer, and serves both.
    squares: usize,
}

impl Size {
    /// Enough for batches of either size.
    pub fn max(self, other: Size) -> Size {
        Size {
            device: self.device.max(other.device),
            host: self.host.max(other.host),
            squares: self.squares.max(other.squares),
        }
    }

    fn squares_at(&self) -> usize {
        self.device.next_multiple_of(256)
    }
}

/// Where a part of some bytes begins and ends.
///
/// # Panics
/// If it is no part of them.
fn range_of(part: &[u8], of: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).wrapping_sub(of.as_ptr() as usize);
    assert!(
        of.get(start..start + part.len()).is_some_and(|own| std::ptr::eq(own, part)),
        "not a part of them"
    );
    start..start + part.len()
}

/// The two buffers, see the module.
pub struct Batches {
    staging: [Staging; 2],
    room: Size,
    sent: [Option<Sent>; 2],
}

impl Batches {
    /// The size of buffers for batches of this kind.
    pub fn size(batch: &BatchInput) -> Size {
        let (room, held, squares) = match batch.pixels {
            BatchPixels::Squares(bytes) => (bytes.len(), false, 0),
            BatchPixels::Raw { bytes, side, editing, held } => {
                let images = images(batch.target.image, side);
                let squares = if editing == Editing::None { 0 } else { edited_squares_bytes(images, side) };
                (bytes.len().max(raw_batch_bytes(images, side)), held.is_some(), squares)
            }
        };
        let labels = Sent::of(&batch.pixels).images_at(&batch.target);
        let device = labels + room;
        Size { device, host: if held { labels } else { device }, squares }
    }

    /// Buffers of this size.
    pub fn new<G: Gpu>(gpu: &mut G, room: Size) -> Result<Batches> {
        let mut staging = |bytes| gpu.staging(bytes, room.host);
        let staging = [staging(room.squares_at() + room.squares)?, staging(room.device)?];
        Ok(Batches { staging, room, sent: [None; 2] })
    }

    pub fn free<G: Gpu>(self, gpu: &mut G) -> Result {
        self.staging.into_iter().try_for_each(|staging| gpu.free_staging(staging))
    }

    pub fn room(&self) -> Size {
        self.room
    }

    /// Whether batches of this size fit.
    pub fn has_room(&self, size: Size) -> bool {
        size.device <= self.room.device && size.host <= self.room.host && size.squares <= self.room.squares
    }

    /// Lets go of the loader's memory whose bytes have arrived on the device.
    pub fn let_go<G: Gpu>(&self, gpu: &mut G) -> Result {
        self.staging.iter().try_for_each(|staging| gpu.staging_let_go(*staging))
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
        let words = batch.labels.words();
        let planned = batch.target.labels.map_or(0, |labels| labels.elements);
        assert_eq!(words, planned, "labels of another form");
        batch.labels.write(bytemuck::cast_slice_mut(&mut host[..4 * words]));
        self.sent[slot] = Some(sent);
        if let BatchPixels::Raw { bytes, held: Some(memory), .. } = batch.pixels {
            let from = Held { memory: memory.clone(), bytes: range_of(bytes, memory.bytes()), to: start };
            return gpu.staging_send(self.staging[slot], 4 * words, Some(from));
        }
        host[start..start + pixels.len()].copy_from_slice(pixels);
        gpu.staging_send(self.staging[slot], start + pixels.len(), None)
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
            Sent::Raw { side, editing } => {
                let first = cx.gpu.staging_address(self.staging[0]);
                let squares = match editing {
                    Editing::None => Address::NULL,
                    _ => first.offset(self.room.squares_at()),
                };
                let raw = RawOnDevice { bytes: from, side, editing, squares };
                image::prepare(cx, raw, image, mean, deviation)?;
            }
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
