//! Images on their way from the loader to a device: the forms of a batch's pixels, which both ends must agree on.
//!
//! A batch arrives as *squares* of the network's resolution, or as *raw batches* of images in their own sizes, which
//! the device crops, resizes and edits itself. A raw batch is one buffer, sent as it is: an [`ImageSample`] for each image,
//! then each image's pixels, resampling tables and edits. `data::raw` writes it, `kernels/image.cu` reads it.

use bytemuck::{Pod, Zeroable};

use crate::host_bytes::HostBytes;

/// The pixels of a batch as they go to a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BatchPixels<'a> {
    /// [N, R, R, 3] bytes.
    Squares(&'a [u8]),
    /// A raw batch, of which the device makes squares of this side. `held` is the memory that the bytes are a part of, if
    /// the device can read it by itself.
    Raw { bytes: &'a [u8], side: usize, editing: Editing, held: Option<&'a HostBytes> },
}

/// Where one image lies in a raw batch, how it is resampled and what happens to its square; the same struct is in
/// `kernels/image.cuh`. Offsets are bytes from the buffer's start, multiples of [`RAW_ALIGNMENT`]. An image whose output is empty (all zero) is black.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ImageSample {
    /// Rows of `pitch` bytes, of which `channels` are one pixel.
    pub pixels: u64,
    /// Tables that say how columns and rows are combined. A table has the first input position and the number of
    /// inputs of each output position, 16 bits each; then each output position's weights, `window` of 16 bits.
    pub columns: u64,
    pub rows: u64,
    /// [`ImageEdit`]s of the square.
    pub program: u64,
    pub pitch: u32,
    /// 1 or 3.
    pub channels: u32,
    /// Size after resampling.
    pub width: u32,
    pub height: u32,
    /// Weights of one output position in the tables.
    pub column_window: u32,
    pub row_window: u32,
    /// Weights are multiples of 2^−precision.
    pub column_precision: u32,
    pub row_precision: u32,
    /// Place of the upper left corner in the square.
    pub left: i32,
    pub top: i32,
    /// 1 if the square is mirrored.
    pub mirrored: u32,
    /// Number of edits, and of those among them that [move](Operation::moves) pixels.
    pub edits: u16,
    pub moves: u16,
    /// What is mixed in from the neighbour: its share of every pixel, in steps of 2⁻¹⁶, and the rectangle (left, top,
    /// width, height) that is all its own.
    pub share: u32,
    pub unused: u32,
    pub part: [u16; 4],
}

/// What happens to the squares of a raw batch beyond their making.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Editing {
    /// Nothing: no image has edits.
    #[default]
    None,
    /// Images may have edits, which takes another kernel and a workspace.
    Edits,
    /// Images may have edits, and then a part of their neighbour: image p of p^1.
    Mixing,
}

/// One operation on a square; the same struct is in `kernels/image_edit.cuh`. The numbers are the operation's, see
/// `data::augment::Edit`; the others are 0. A colour is one number, red + 2⁸·green + 2¹⁶·blue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ImageEdit {
    pub operation: u32,
    pub numbers: [i32; 7],
}

/// The operations that a device knows, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    Affine = 0,
    AutoContrast = 1,
    Equalize = 2,
    Invert = 3,
    Posterize = 4,
    Solarize = 5,
    SolarizeAdd = 6,
    Color = 7,
    Contrast = 8,
    Brightness = 9,
    Sharpness = 10,
    Erase = 11,
}

impl Operation {
    /// Whether pixels are read from one square and written to another.
    pub fn moves(self) -> bool {
        matches!(self, Operation::Affine | Operation::Sharpness)
    }
}

/// The most edits of an image that a raw batch has room for: a flip, sixteen operations of RandAugment, three of colour
/// jitter and an erased rectangle.
pub const MOST_EDITS: usize = 21;

pub const RAW_ALIGNMENT: usize = 16;

/// Bytes of one row that the inputs of one output column may have: more do not fit a device's shared memory.
pub const MAX_WINDOW_BYTES: usize = 24 << 10;

/// An image's share of a raw batch: three squares, but at most 512 KiB where a square takes less than that.
const SHARE_SQUARES: usize = 3;
const MAX_SHARE_BYTES: usize = 512 << 10;

/// Bytes of the buffer for a raw batch, in proportion to its images and at least [`least_raw_batch_bytes`].
///
/// Crops of ImageNet cover nearly two squares of 224 pixels in training and 2.3 in evaluation (half and 0.875² of
/// 469×387 pixels), so a share of three has room for nearly all images. It bounds what the bus carries, the host pins
/// and the device keeps for a batch. The loader resizes larger photographs itself as soon as the rest of the batch
/// would find no room: that costs little beside decoding them, and sending them would cost much.
pub fn raw_batch_bytes(images: usize, side: usize) -> usize {
    let square = raw_square_bytes(side);
    let share = (SHARE_SQUARES * square).min(MAX_SHARE_BYTES).max(square);
    images * (share + program_bytes(MOST_EDITS) + size_of::<ImageSample>().next_multiple_of(RAW_ALIGNMENT))
}

/// Bytes that hold any `images` images, with all their edits, if all of them are resized already.
pub fn least_raw_batch_bytes(images: usize, side: usize) -> usize {
    raw_samples_bytes(images) + images * (raw_square_bytes(side) + program_bytes(MOST_EDITS))
}

/// Bytes of the [`ImageSample`]s at the start of a raw batch.
pub fn raw_samples_bytes(images: usize) -> usize {
    (images * size_of::<ImageSample>()).next_multiple_of(RAW_ALIGNMENT)
}

/// Bytes of an image's edits in a raw batch.
pub fn program_bytes(edits: usize) -> usize {
    (edits * size_of::<ImageEdit>()).next_multiple_of(RAW_ALIGNMENT)
}

/// Bytes on the device in which the squares of a raw batch are edited: four for each pixel.
pub fn edited_squares_bytes(images: usize, side: usize) -> usize {
    4 * images * side * side
}

/// Bytes of an R×R image with its tables.
pub fn raw_square_bytes(side: usize) -> usize {
    2 * (side * 6).next_multiple_of(RAW_ALIGNMENT) + (3 * side).next_multiple_of(RAW_ALIGNMENT) * side
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_batch_bytes_are_in_proportion_and_have_room_for_squares() {
        for side in [1, 32, 224, 300, 380, 600] {
            let one = raw_batch_bytes(1, side);
            for images in [1, 3, 16, 1000] {
                assert_eq!(raw_batch_bytes(images, side), images * one);
                assert!(images * one >= least_raw_batch_bytes(images, side));
            }
            assert!(one.is_multiple_of(RAW_ALIGNMENT), "the next batch begins aligned");
            assert!(one < 4 * (3 * side + 32) * (side + 8) + 1024);
        }
        // An ordinary photograph: half of it, the mean crop of training, and evaluation's centre.
        let half = 500 * 375 * 3 / 2;
        let centre = 328 * 328 * 3;
        assert!(raw_batch_bytes(1, 224) > centre && raw_batch_bytes(1, 224) > half * 3 / 2);
    }
}
