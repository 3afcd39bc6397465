//! Mean of silu(BN(y)) over the pixels of each image: the first step of squeeze-excite and of the head.
//!
//! A tile of four pixels runs along the channels, with the sums in memory: so y is read in order, and the
//! sums' loads and stores take no time beside the exponentials. A sum covers at most [`BLOCK`] pixels before
//! it is added to the total, so that fp32 stays exact to a few units in the last place on large maps. The
//! result of an image depends neither on the number of images nor on how tasks are cut.

use super::context::Context;
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch, silu_each};
use super::sweep::{each_vector, prefetch, read, write};
use crate::ops::BatchNorm;

/// Elements of a task: enough that starting the task costs little.
const TASK: usize = 1 << 16;
/// Maps with fewer channels are not cut: 512 bytes in a row keep the prefetchers going.
const NARROWEST: usize = 128;
/// Distance between the tile and the memory that is prefetched, in elements. The hardware does not detect four parallel
/// rows: without this, a map that is not in the cache takes twice the time.
const AHEAD: usize = 2048;
/// Pixels that are summed before the sum is added to the total.
const BLOCK: usize = 256;

/// Scratch floats per thread.
pub fn scratch_floats(channels: usize) -> usize {
    channels
}

/// y [images, pixels, C] → out [images, C].
pub fn means<E: Element>(
    cx: &Context,
    bn: &BatchNorm,
    y: &[E],
    images: usize,
    pixels: usize,
    out: &mut [f32],
) {
    let channels = bn.channels;
    let coefficients = cx.read(bn.coefficients);
    let (scale, shift) = (&coefficients[2 * channels..3 * channels], &coefficients[3 * channels..]);
    let size = pixels * channels;
    let slices = (size / TASK).min(channels / NARROWEST).max(1);
    let width = channels.div_ceil(slices).next_multiple_of(16);
    let slices = channels.div_ceil(width);
    let group = (TASK / size).clamp(1, images);
    let out = Shared::new(out);
    cx.parallel(images.div_ceil(group) * slices, |task, scratch| {
        let (group_number, slice) = (task / slices, task % slices);
        let range = slice * width..channels.min((slice + 1) * width);
        for image in group_number * group..images.min((group_number + 1) * group) {
            let y = &y[image * size + range.start..(image + 1) * size];
            // SAFETY: each task has its own images and channels.
            let out = unsafe { out.part(image * channels + range.start..image * channels + range.end) };
            let scratch = &mut scratch[..range.len()];
            mean(y, channels, pixels, &scale[range.clone()], &shift[range.clone()], scratch, out);
        }
    });
}

dispatch! {
    /// One image's channels `0..out.len()`; pixel p starts at y[p·stride].
    fn mean<E>(y: &[E], stride: usize, pixels: usize, scale: &[f32], shift: &[f32], sums: &mut [f32], out: &mut [f32])
        => mean_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn mean_body<V: Vector, E: Element>(
    y: &[E],
    stride: usize,
    pixels: usize,
    scale: &[f32],
    shift: &[f32],
    sums: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        out.fill(0.0);
        let mut pixel = 0;
        while pixel < pixels {
            let end = pixels.min(pixel + BLOCK);
            sums.fill(0.0);
            while pixel + 4 <= end {
                add_pixels::<V, E, 4>(&y[pixel * stride..], stride, scale, shift, sums);
                pixel += 4;
            }
            while pixel < end {
                add_pixels::<V, E, 1>(&y[pixel * stride..], stride, scale, shift, sums);
                pixel += 1;
            }
            each_vector!(V, out.len(), |at, count| {
                write(out, at, count, read::<V, _>(out, at, count).add(read(sums, at, count)));
            });
        }
        let pixels = V::splat(pixels as f32);
        each_vector!(V, out.len(), |at, count| {
            write(out, at, count, read::<V, _>(out, at, count).div(pixels));
        });
    }
}

/// Adds silu(scale·y + shift) of `R` pixels to the sums.
/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn add_pixels<V: Vector, E: Element, const R: usize>(
    y: &[E],
    stride: usize,
    scale: &[f32],
    shift: &[f32],
    sums: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, sums.len(), |at, count| {
            let (a, b) = (read::<V, _>(scale, at, count), read::<V, _>(shift, at, count));
            let mut tile = [V::zero(); R];
            for (row, slot) in tile.iter_mut().enumerate() {
                prefetch(y, row * stride + at + AHEAD);
                *slot = read::<V, _>(y, row * stride + at, count).mul_add(a, b);
            }
            let tile = silu_each::<E, V, R>(&tile);
            let mut sum = tile[0];
            if R == 4 {
                sum = tile[0].add(tile[1]).add(tile[2].add(tile[3]));
            }
            write(sums, at, count, read::<V, _>(sums, at, count).add(sum));
        });
    }
}
