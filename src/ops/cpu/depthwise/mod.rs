//! Depthwise convolution: every channel is convolved with its own k×k window.
//!
//! Half of the time goes into the silus, and most of the rest into the multiply-adds of the window. A task owns a *group*
//! of images and a *slice* of so few channels that its memory stays in the L1 cache. It slides down each image with a ring
//! of rows in its scratch memory: forward, rows of the activated input, each element's silu computed once; backward, rows
//! of the gradient at the convolution's output. Channels are the vector's lanes, and a block of up to eight columns is
//! kept in registers: an element of the ring is loaded once for all its taps in a row of the window. The ring is fp32, the
//! tensors are what they are stored as. In inference of few images a task owns a *band* of an image's rows.
//!
//! The ring has zero columns for the part of the window beyond the map; rows beyond the map are skipped. If the
//! map is so small that some taps never meet it (a 5×5 window over 2×2 pixels), [`Shape`] cuts those taps off the
//! window.

mod backward;
mod expanded;
mod forward;
mod inference;
mod input_sweep;

use std::ops::Range;

use super::context::{Context, part_of};
use super::gemm::{Form, Packed};
use super::simd::{Element, Vector, dispatch, prefetch_far, silu_each, silu_with_derivative_each};
use super::sweep::each_vector;
use crate::model::Window;
use crate::ops::Param;

/// Slices are cut at multiples of a cache line of the tensors: one or two of the widest vectors. If the channels are such
/// a multiple too, no two tasks write the same line.
const LINE: usize = 64;
/// Bytes of a task's scratch memory. Every element of the ring is loaded for each row of its window, so the ring has to
/// stay in the L1 cache. With rings of 192 KiB, in L2, the passes took a tenth to a fifth longer.
const SCRATCH_BYTES: usize = 32 << 10;
/// Channels of a slice of small maps, where several images make a task.
const SMALL_MAP_SLICE: usize = 256;
/// Input pixels that a task should have at least, in whole images.
const TASK_PIXELS: usize = 256;
/// Most images of a task, so that there are enough tasks.
const GROUP: usize = 16;
/// Pixels that are summed before their sum is added to that of the map, in whole rows.
const BLOCK: usize = 256;
/// In inference, images are cut into bands of rows if there would be fewer tasks than this: the rows that bands share are
/// made twice, so there are no more than sixteen threads need.
const FEW_TASKS: usize = 16;
/// A band has, on average, at least so many times the rows that it shares with the one above.
const BAND_ROWS: usize = 16;

/// The convolution's geometry with the taps that meet the map, and the partition into tasks: functions of the
/// layer's shape and of the storage type alone.
#[derive(Clone, Copy, Debug)]
struct Shape {
    images: usize,
    channels: usize,
    /// Side of the window after cutting: 1, 3 or 5.
    kernel: usize,
    /// The row and column of the weight at which the cut window starts. `whole` is the weight's side.
    first_tap: usize,
    whole: usize,
    stride: usize,
    input: usize,
    output: usize,
    /// Zero rows above and columns left of the input, for the cut window.
    pad: usize,
    slices: usize,
    /// Channels of a cache line.
    unit: usize,
    /// Images of a task.
    group: usize,
    /// Bands of rows of an image, each a task of its own.
    bands: usize,
}

impl Shape {
    /// `scratch(shape)` is what a task needs, in floats for each channel of its slice.
    fn new<E: Element>(
        images: usize,
        channels: usize,
        window: &Window,
        scratch: impl Fn(&Shape) -> usize,
    ) -> Shape {
        let Window { kernel: whole, stride, input, output, pad } = *window;
        let meets = |tap: &usize| {
            (0..output).any(|o| (o * stride + tap).checked_sub(pad).is_some_and(|column| column < input))
        };
        let first = (0..whole).find(meets).unwrap_or(pad);
        let last = (0..whole).rev().find(meets).unwrap_or(pad);
        let kernel = (last - first + 1) | 1;
        assert!(matches!(kernel, 1 | 3 | 5) && kernel <= whole, "windows are 3×3 and 5×5");
        let first_tap = first.min(whole - kernel);
        let stride = if kernel == 1 { 1 } else { stride };
        let mut shape = Shape {
            images,
            channels,
            kernel,
            first_tap,
            whole,
            stride,
            input,
            output,
            pad: pad - first_tap,
            slices: 1,
            unit: LINE / size_of::<E>(),
            group: (TASK_PIXELS / (input * input)).clamp(1, GROUP),
            bands: 1,
        };
        let most = if shape.group > 1 { SMALL_MAP_SLICE } else { usize::MAX };
        let width = (SCRATCH_BYTES / (4 * scratch(&shape))).max(shape.unit).min(most);
        shape.slices = channels.div_ceil(width / shape.unit * shape.unit);
        shape
    }

    /// Columns of a ring row of inputs, with the zero columns under the window.
    fn input_columns(&self) -> usize {
        ((self.output - 1) * self.stride + self.kernel).max(self.pad + self.input)
    }

    /// Zero columns left of a ring row of output gradients.
    fn gradient_pad(&self) -> usize {
        self.kernel - 1 - self.pad
    }

    /// Columns of a ring row of output gradients.
    fn gradient_columns(&self) -> usize {
        self.gradient_pad() + self.output.max((self.pad + self.input - 1) / self.stride + 1)
    }

    /// Most output rows that one input row meets.
    fn gradient_rows(&self) -> usize {
        (self.kernel - 1) / self.stride + 1
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn groups(&self) -> usize {
        self.images.div_ceil(self.group)
    }

    fn images_of(&self, group: usize) -> Range<usize> {
        group * self.group..self.images.min((group + 1) * self.group)
    }

    /// Cuts images into bands of whole blocks, so that a few images occupy many threads. The rows of the ring above a
    /// band are made twice, so bands are not too low.
    fn in_bands(self) -> Shape {
        let halo = self.kernel.saturating_sub(self.stride).max(1);
        let most = self.blocks().min(self.input / (BAND_ROWS * halo)).max(1);
        Shape { bands: FEW_TASKS.div_ceil(self.tasks()).min(most), ..self }
    }

    /// Rows of the output that are summed before their sum is added to that of the map.
    fn block_rows(&self) -> usize {
        (BLOCK / self.output).max(1)
    }

    fn blocks(&self) -> usize {
        self.output.div_ceil(self.block_rows())
    }

    fn tasks(&self) -> usize {
        self.groups() * self.bands * self.slices
    }

    /// The group of images of a task.
    fn group_of(&self, task: usize) -> usize {
        task / (self.slices * self.bands)
    }

    /// The rows of the output of a task.
    fn rows_of(&self, task: usize) -> Range<usize> {
        let blocks = part_of(self.blocks(), self.bands, task / self.slices % self.bands);
        blocks.start * self.block_rows()..self.output.min(blocks.end * self.block_rows())
    }

    /// The channels of a task.
    fn channels_of(&self, task: usize) -> Range<usize> {
        let units = part_of(self.padded_channels() / self.unit, self.slices, task % self.slices);
        units.start * self.unit..self.channels.min(units.end * self.unit)
    }

    /// Channels of the widest slice, rounded up to whole vectors: the distance of a ring's columns.
    fn slice_stride(&self) -> usize {
        (self.padded_channels() / self.unit).div_ceil(self.slices) * self.unit
    }

    fn padded_channels(&self) -> usize {
        self.channels.next_multiple_of(self.unit)
    }

    fn packed_weights(&self) -> usize {
        self.taps() * self.padded_channels()
    }

    /// [`Shape::pack_weights`], kept in inference.
    fn packed<'a>(&self, cx: &Context, weight: Param, workspace: &'a mut [f32]) -> Packed<'a, f32> {
        let form = Form::Taps { kernel: self.kernel, first: self.first_tap };
        Packed::new(cx, weight, form, workspace, |packed| self.pack_weights(cx.weight(weight), packed))
    }

    /// The weight [C, k, k] as [taps, C] (C rounded up), the taps of the cut window only.
    fn pack_weights(&self, weight: &[f32], packed: &mut [f32]) {
        let stride = self.padded_channels();
        for (tap, row) in packed.chunks_exact_mut(stride).enumerate() {
            let at = self.place_in_weight(tap);
            let whole = weight.chunks_exact(self.whole * self.whole);
            row.iter_mut().zip(whole).for_each(|(to, from)| *to = from[at]);
            row[self.channels..].fill(0.0);
        }
    }

    /// The index of a tap of the cut window in the whole one.
    fn place_in_weight(&self, tap: usize) -> usize {
        let (row, column) = (tap / self.kernel, tap % self.kernel);
        (row + self.first_tap) * self.whole + column + self.first_tap
    }
}

/// Columns of the next register block of `remaining`, of at most `widest`: 8, 7, 4, 2 or 1.
#[inline(always)]
fn block_of(remaining: usize, widest: usize) -> usize {
    match remaining {
        7 | 14 if widest >= 7 => 7,
        8.. if widest >= 8 => 8,
        4.. if widest >= 4 => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Defines `task`, which runs the kernel compiled for the window of its job.
macro_rules! for_each_window {
    ($job:ident, $sweep:ident) => {
        dispatch! {
            unsafe fn sweep_1<E>(job: &$job<E>, number: usize, scratch: &mut [f32]) => $sweep<1, 1>;
            unsafe fn sweep_3<E>(job: &$job<E>, number: usize, scratch: &mut [f32]) => $sweep<3, 1>;
            unsafe fn sweep_5<E>(job: &$job<E>, number: usize, scratch: &mut [f32]) => $sweep<5, 1>;
            unsafe fn sweep_3_by_2<E>(job: &$job<E>, number: usize, scratch: &mut [f32]) => $sweep<3, 2>;
            unsafe fn sweep_5_by_2<E>(job: &$job<E>, number: usize, scratch: &mut [f32]) => $sweep<5, 2>;
        }

        /// # Safety
        /// Each number runs once.
        unsafe fn task<E: Element>(job: &$job<E>, number: usize, scratch: &mut [f32]) {
            // SAFETY: the caller's promise.
            unsafe {
                match (job.shape.kernel, job.shape.stride) {
                    (1, 1) => sweep_1(job, number, scratch),
                    (3, 1) => sweep_3(job, number, scratch),
                    (5, 1) => sweep_5(job, number, scratch),
                    (3, 2) => sweep_3_by_2(job, number, scratch),
                    (5, 2) => sweep_5_by_2(job, number, scratch),
                    (kernel, stride) => unreachable!("a {kernel}×{kernel} window of stride {stride}"),
                }
            }
        }
    };
}
use for_each_window;

/// Runs the block once for each listed value of a constant: an array in registers needs constant indices.
macro_rules! unroll {
    ($i:ident in [$($n:literal)*] $body:block) => {
        $({
            const $i: usize = $n;
            $body
        })*
    };
}
use unroll;

/// A whole vector, or its first `count` lanes.
/// # Safety
/// The instruction set of `V` is present, and `from` is valid for reading `count` elements, or a vector if `count` is
/// more.
#[inline(always)]
unsafe fn get<V: Vector, E: Element>(from: *const E, count: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if count >= V::LANES { E::load(from) } else { E::load_part(from, count) } }
}

/// # Safety
/// `to` is valid for writing `count` elements, or a vector if `count` is more.
#[inline(always)]
unsafe fn put<V: Vector, E: Element>(value: V, to: *mut E, count: usize) {
    // SAFETY: the caller's promise.
    unsafe { if count >= V::LANES { E::store(value, to) } else { E::store_part(value, to, count) } }
}

/// Adds a vector to the one in memory.
/// # Safety
/// `to` is valid for reading and writing a vector.
#[inline(always)]
unsafe fn accumulate<V: Vector>(value: V, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { V::load(to).add(value).store(to) }
}

/// Asks for the cache line `elements` further, into L2. The processor's own prefetching stops at every 4 KiB page and
/// does not predict the next row. In L1, a line would be replaced before its use a row later, and would occupy one of
/// the few misses that L1 can have in flight (a quarter slower).
#[inline(always)]
fn prefetch<E: Element>(from: *const E, elements: usize) {
    prefetch_far(from.wrapping_add(elements));
}

/// Cuts `lengths` pieces off a task's scratch memory.
fn carve<const N: usize>(mut scratch: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    lengths.map(|len| {
        let (piece, rest) = std::mem::take(&mut scratch).split_at_mut(len);
        scratch = rest;
        piece
    })
}

/// Copies the channels of a slice from a row of coefficients; the rest becomes zero.
fn copy_slice(to: &mut [f32], row: &[f32], slice: &Range<usize>) {
    let (head, tail) = to.split_at_mut(slice.len());
    head.copy_from_slice(&row[slice.clone()]);
    tail.fill(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Padding;

    /// The tasks of a shape have each image, row and channel once, whole blocks of rows each, with bands and without.
    #[test]
    fn tasks_share_out_images_rows_and_channels() {
        for (images, side, kernel, stride, banded) in [
            (1, 112, 3, 2, true),
            (1, 112, 3, 1, true),
            (2, 129, 5, 1, true),
            (1, 129, 5, 2, true),
            (17, 112, 3, 2, false),
            (1, 28, 5, 1, false),
            (5, 7, 5, 1, false),
        ] {
            let window = Window::new(kernel, stride, side, Padding::Symmetric);
            let shape = Shape::new::<f32>(images, 48, &window, |_| 256).in_bands();
            assert_eq!(shape.bands > 1, banded, "{images} × {side}², {kernel}×{kernel} / {stride}");
            let mut seen = vec![0; images * shape.output * shape.channels];
            for task in 0..shape.tasks() {
                let rows = shape.rows_of(task);
                assert!(rows.start.is_multiple_of(shape.block_rows()), "a band begins with a block");
                for image in shape.images_of(shape.group_of(task)) {
                    for row in rows.clone() {
                        for channel in shape.channels_of(task) {
                            seen[(image * shape.output + row) * shape.channels + channel] += 1;
                        }
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{images} × {side}², {kernel}×{kernel} / {stride}");
        }
    }
}
