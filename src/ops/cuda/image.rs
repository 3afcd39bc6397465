//! Images from bytes: squares are normalised; a raw batch of images of any size is also resized, edited and mixed.

use super::arguments::Kernel;
use super::context::Context;
use super::gpu::{Address, Gpu};
use super::sources::ImageTable;
use super::sources::image::{
    EDIT_AFFINE, EDIT_AUTO_CONTRAST, EDIT_BRIGHTNESS, EDIT_COLOR, EDIT_CONTRAST, EDIT_COPIES, EDIT_EQUALIZE,
    EDIT_ERASE, EDIT_INVERT, EDIT_POSTERIZE, EDIT_SHARPNESS, EDIT_SOLARIZE, EDIT_SOLARIZE_ADD, EDIT_THREADS,
    EDIT_WARPS, IMAGE_THREADS, ImageEditArguments, ImageMixArguments, ImageNormaliseArguments,
    ImagePrepareArguments, MIX_PIXELS, MIX_THREADS, PREPARE_BYTES, PREPARE_ROWS,
};
use crate::ops::{Result, Tensor};
use crate::pixels::{Editing, Operation};

/// Maximum number of blocks that normalise: eight for each multiprocessor of a large GPU.
const MOST_BLOCKS: usize = 1056;
const TABLE_BYTES: usize = size_of::<ImageTable>();
/// Shared memory of a block that edits: two tables of values, two of bytes as words of 16 bits, histograms, the sums of its
/// warps.
const EDIT_BYTES: usize = 2 * TABLE_BYTES + 2 * (2 * 768) + 4 * 768 * EDIT_COPIES + 4 * EDIT_WARPS;

const NORMALISE: Kernel<ImageNormaliseArguments> = Kernel::stored("image_normalise");
const PREPARE: Kernel<ImagePrepareArguments> = Kernel::stored("image_prepare");
const EDIT: Kernel<ImageEditArguments> = Kernel::stored("image_edit");
const MIX: Kernel<ImageMixArguments> = Kernel::stored("image_mix");

/// The kernel has these numbers too.
const _: () = assert!(
    Operation::Affine as usize == EDIT_AFFINE
        && Operation::AutoContrast as usize == EDIT_AUTO_CONTRAST
        && Operation::Equalize as usize == EDIT_EQUALIZE
        && Operation::Invert as usize == EDIT_INVERT
        && Operation::Posterize as usize == EDIT_POSTERIZE
        && Operation::Solarize as usize == EDIT_SOLARIZE
        && Operation::SolarizeAdd as usize == EDIT_SOLARIZE_ADD
        && Operation::Color as usize == EDIT_COLOR
        && Operation::Contrast as usize == EDIT_CONTRAST
        && Operation::Brightness as usize == EDIT_BRIGHTNESS
        && Operation::Sharpness as usize == EDIT_SHARPNESS
        && Operation::Erase as usize == EDIT_ERASE
);

/// A [raw batch](crate::data::raw) on the device.
#[derive(Clone, Copy, Debug)]
pub struct RawOnDevice {
    /// Aligned to 16.
    pub bytes: Address,
    /// Of the squares.
    pub side: usize,
    pub editing: Editing,
    /// Where squares are edited, [`edited_squares_bytes`](crate::pixels::edited_squares_bytes); null without editing.
    pub squares: Address,
}

/// (byte/255 − mean)/deviation for each byte, [3, 256], computed in double like on the CPU.
fn table(mean: [f32; 3], deviation: [f32; 3]) -> ImageTable {
    std::array::from_fn(|at| {
        let channel = at / 256;
        let byte = at % 256;
        ((byte as f64 / 255.0 - f64::from(mean[channel])) / f64::from(deviation[channel])) as f32
    })
}

/// Fills `image` [N, R, R, 3] from bytes of the host: (pixel/255 − mean)/deviation of each channel. Not while
/// capturing.
pub fn upload<G: Gpu>(
    cx: &mut Context<G>,
    image: Tensor,
    pixels: &[u8],
    mean: [f32; 3],
    deviation: [f32; 3],
) -> Result {
    assert_eq!(pixels.len(), image.elements, "one value for each byte");
    let from = write(cx, pixels)?;
    normalise(cx, from, image, mean, deviation)
}

/// Copies bytes to the context's own buffer.
fn write<G: Gpu>(cx: &mut Context<G>, bytes: &[u8]) -> Result<Address> {
    let to = match cx.pixels {
        Some((address, length)) if length >= bytes.len() => address,
        _ => {
            let address = cx.gpu.allocate(bytes.len())?;
            cx.pixels = Some((address, bytes.len()));
            address
        }
    };
    cx.gpu.write(to, bytes)?;
    Ok(to)
}

/// Fills `image` [N, R, R, 3] from bytes of the same shape on the device, aligned to 16.
pub fn normalise<G: Gpu>(
    cx: &mut Context<G>,
    from: Address,
    image: Tensor,
    mean: [f32; 3],
    deviation: [f32; 3],
) -> Result {
    let blocks = image.elements.div_ceil(16 * IMAGE_THREADS).min(MOST_BLOCKS);
    let arguments = ImageNormaliseArguments {
        bytes: from,
        image: cx.tensor(image),
        count: image.elements as u64,
        blocks: blocks as i32,
        table: table(mean, deviation),
    };
    cx.launch(&NORMALISE, [blocks, 1, 1], IMAGE_THREADS, TABLE_BYTES, arguments)
}

/// Fills `image` [N, R, R, 3] from a raw batch. The values are those of the squares that
/// [`preprocess`](crate::data::augment::preprocess) makes.
pub fn prepare<G: Gpu>(
    cx: &mut Context<G>,
    raw: RawOnDevice,
    image: Tensor,
    mean: [f32; 3],
    deviation: [f32; 3],
) -> Result {
    let RawOnDevice { bytes: batch, side, editing, squares } = raw;
    let images = image.elements / (side * side * 3);
    assert_eq!(image.elements, images * side * side * 3, "the image tensor is [N, R, R, 3]");
    let (image, rows, table) = (cx.tensor(image), side.div_ceil(PREPARE_ROWS), table(mean, deviation));
    let pixels = side * side;
    let (side, mixed) = (side as i32, i32::from(editing == Editing::Mixing));
    let arguments = ImagePrepareArguments { batch, image, squares, side, mixed, table };
    let shared = TABLE_BYTES + (PREPARE_ROWS * 4 * side as usize).next_multiple_of(16) + PREPARE_BYTES;
    cx.launch(&PREPARE, [rows, images, 1], IMAGE_THREADS, shared, arguments)?;
    if editing == Editing::None {
        return Ok(());
    }
    let arguments = ImageEditArguments { batch, image, squares, side, mixed, table };
    cx.launch(&EDIT, [images, 1, 1], EDIT_THREADS, EDIT_BYTES, arguments)?;
    if editing == Editing::Edits {
        return Ok(());
    }
    let blocks = pixels.div_ceil(MIX_PIXELS);
    let arguments = ImageMixArguments { batch, image, squares, side, blocks: blocks as i32, table };
    cx.launch(&MIX, [blocks, images, 1], MIX_THREADS, TABLE_BYTES, arguments)
}
