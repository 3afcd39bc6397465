//! Forward: normalise and activate a row into the ring, convolve, store, take the statistics. In inference the row may
//! come from an [`expanded`] product, and the last two are what [`inference`] does.

use super::expanded::{ExpandedRows, Expansion};
use super::inference::{Activated, ImageTotals, activate_block, add_to_totals};
use super::*;
use crate::ops::DepthwiseForward;
use crate::ops::cpu::batch_norm::{self, NormStatistics};
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::Element;

/// What all tasks of the pass share.
pub(super) struct Job<'a, E> {
    pub shape: Shape,
    pub input: Input<'a, E>,
    /// [4, C] of the batch norm before the activation; with none, the input is convolved as it is.
    pub input_bn: Option<&'a [f32]>,
    /// [taps, C rounded up].
    pub weights: &'a [f32],
    pub y: Shared<'a, E>,
    /// [groups, 3, C], if the batch's are taken.
    pub statistics: Option<Shared<'a>>,
    /// In inference.
    pub activated: Option<Activated<'a>>,
}

/// Where rows of the input come from.
#[derive(Clone, Copy)]
pub(super) enum Input<'a, E> {
    /// From memory.
    Stored(&'a [E]),
    /// From the product that makes them.
    Expanded(Expansion<'a, E>),
}

/// A task's scratch, in floats a channel: the ring, the input's scale and shift, the weights, shift and sums of the
/// statistics (or scale, shift and sums of the activated output).
pub(super) fn scratch(shape: &Shape) -> [usize; 4] {
    [shape.kernel * shape.input_columns(), 2, shape.taps(), 3]
}

fn shape<E: Element>(pass: &DepthwiseForward) -> Shape {
    let DepthwiseForward { images, channels, window, .. } = pass;
    Shape::new::<E>(*images, *channels, window, |shape| scratch(shape).iter().sum())
}

impl OnCpu for DepthwiseForward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = shape::<E>(self);
        let statistics = batch_norm::statistics_floats(shape.groups(), shape.channels);
        WorkspaceFloats {
            shared: workspace_floats(&[shape.packed_weights(), statistics]),
            per_thread: scratch(&shape).iter().sum::<usize>() * shape.slice_stride(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = shape::<E>(self);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights, statistics], y, norm) = unsafe {
            let floats = batch_norm::statistics_floats(shape.groups(), shape.channels);
            let lengths = [shape.packed_weights(), floats];
            (
                cx.workspace(lengths),
                Shared::new(cx.write_activation::<E>(self.y)),
                NormStatistics::of(cx, &self.bn),
            )
        };
        shape.pack_weights(cx.weight(self.weight), weights);
        let job = Job {
            shape,
            input: Input::Stored(cx.activation::<E>(self.x)),
            input_bn: self.input_bn.map(|bn| cx.read(bn.coefficients)),
            weights,
            y,
            statistics: norm.is_some().then_some(Shared::new(&mut *statistics)),
            activated: None,
        };
        job.run(cx);
        if let Some(norm) = norm {
            let pixels = shape.output * shape.output;
            norm.finish(cx, statistics, |group| shape.images_of(group).len() * pixels);
        }
    }
}

impl<E: Element> Job<'_, E> {
    pub fn run(&self, cx: &Context) {
        let shape = &self.shape;
        let pixels = shape.images * shape.input * shape.input;
        match &self.input {
            Input::Stored(x) => assert_eq!(x.len(), pixels * shape.channels),
            Input::Expanded(from) => assert_eq!(from.x.len(), pixels * from.inputs),
        }
        assert_eq!(self.y.len(), shape.images * shape.output * shape.output * shape.channels);
        // SAFETY: `parallel` runs each number once.
        cx.parallel(shape.tasks(), |number, scratch| unsafe { task(self, number, scratch) });
    }

    /// The channels of a task, and the distance of its ring's columns.
    fn channels_of(&self, task: usize) -> (Range<usize>, usize) {
        match &self.input {
            Input::Stored(_) => (self.shape.channels_of(task), self.shape.slice_stride()),
            Input::Expanded(from) => from.channels_of(task),
        }
    }

    /// The rows of an image, for a task.
    fn rows(&self, image: usize, slice: &Range<usize>, number: usize) -> Rows<'_, E> {
        let shape = &self.shape;
        match &self.input {
            Input::Stored(x) => {
                let image = image * shape.input * shape.input * shape.channels;
                Rows::Stored(x[image + slice.start..].as_ptr())
            }
            Input::Expanded(from) => Rows::Expanded(from.image(shape, image, number)),
        }
    }
}

for_each_window!(Job, sweep);

/// A task's memory, as the kernels use it.
pub(super) struct Slice {
    /// Channels.
    pub width: usize,
    /// Floats from a column of the ring to the next.
    pub stride: usize,
    /// Elements from a pixel of x and y to the next.
    channels: usize,
    /// Elements from a row of x and of y to the next.
    x_row: usize,
    y_row: usize,
    ring: *mut f32,
    /// Scale, then shift; null if the input is convolved as it is.
    pub input: *const f32,
    weights: *const f32,
    /// Shift, Σ, Σ²; null if no statistics are taken.
    statistics: *mut f32,
    /// Scale, shift, Σ; null unless the output is activated.
    pub activated: *mut f32,
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`task`].
#[inline(always)]
unsafe fn sweep<V: Vector, E: Element, const K: usize, const S: usize>(
    job: &Job<E>,
    number: usize,
    floats: &mut [f32],
) {
    let shape = &job.shape;
    let group = shape.group_of(number);
    let (slice, stride) = job.channels_of(number);
    let [ring, input, weights, statistics] = carve(floats, scratch(shape).map(|rows| rows * stride));
    ring.fill(0.0);
    statistics.fill(0.0);
    if let Some(bn) = job.input_bn {
        for (to, row) in input.chunks_exact_mut(stride).zip([2, 3]) {
            copy_slice(to, &bn[row * shape.channels..], &slice);
        }
    }
    if let Some(activated) = job.activated {
        for (to, row) in statistics.chunks_exact_mut(stride).zip([2, 3]) {
            copy_slice(to, &activated.coefficients()[row * shape.channels..], &slice);
        }
    }
    for (to, row) in weights.chunks_exact_mut(stride).zip(job.weights.chunks_exact(shape.padded_channels())) {
        copy_slice(to, row, &slice);
    }
    let memory = Slice {
        width: slice.len(),
        stride,
        channels: shape.channels,
        x_row: shape.input * shape.channels,
        y_row: shape.output * shape.channels,
        ring: ring.as_mut_ptr(),
        input: if job.input_bn.is_some() { input.as_ptr() } else { std::ptr::null() },
        weights: weights.as_ptr(),
        statistics: if job.statistics.is_some() { statistics.as_mut_ptr() } else { std::ptr::null_mut() },
        activated: if job.activated.is_some() { statistics.as_mut_ptr() } else { std::ptr::null_mut() },
    };
    let mut first = true;
    for image in shape.images_of(group) {
        let y = image * shape.output * shape.output * shape.channels + slice.start;
        // SAFETY: the tensors' lengths were checked against the shape; no two tasks share image, rows and slice; the
        // rest is the caller's promise.
        unsafe {
            let rows = job.rows(image, &slice, number);
            let y = job.y.start().add(y);
            let totals = job.activated.map(|to| to.totals_of(shape, image, slice.start));
            image_rows::<V, E, K, S>(shape, &memory, rows, shape.rows_of(number), y, totals, &mut first);
        }
    }
    if let Some(partials) = job.statistics {
        for (row, from) in statistics.chunks_exact(stride).enumerate() {
            let at = (group * 3 + row) * shape.channels + slice.start;
            // SAFETY: each task writes its own group and channels.
            unsafe { partials.part(at..at + slice.len()) }.copy_from_slice(&from[..slice.len()]);
        }
    }
}

/// [`Input`], of one image and slice.
enum Rows<'a, E> {
    /// The slice's first channel in the image's first pixel.
    Stored(*const E),
    Expanded(ExpandedRows<'a, E>),
}

/// Columns of a register block: one accumulator each.
const fn widest<V: Vector>() -> usize {
    if V::REGISTERS >= 16 { 8 } else { 4 }
}

/// Slides down the rows `own` of one image's output. `first` is true until the first output is stored. `totals` are those
/// of an activated output.
/// # Safety
/// The instruction set of `V` is present. `y` points to the slice's first channel in the image's first pixel, as `rows`
/// may; `memory` fits the shape. These rows and totals belong to the caller.
#[inline(always)]
unsafe fn image_rows<V: Vector, E: Element, const K: usize, const S: usize>(
    shape: &Shape,
    memory: &Slice,
    rows: Rows<E>,
    own: Range<usize>,
    y: *mut E,
    totals: Option<ImageTotals>,
    first: &mut bool,
) {
    let row_floats = shape.input_columns() * memory.stride;
    let mut ready = (own.start * S).saturating_sub(shape.pad);
    for row in own {
        let end = (row * S + K - shape.pad).min(shape.input);
        while ready < end {
            // SAFETY: row `ready` of the image and a row of the ring, right of its zero columns.
            unsafe {
                let to = memory.ring.add(ready % K * row_floats + shape.pad * memory.stride);
                match &rows {
                    Rows::Stored(x) => {
                        let from = x.add(ready * shape.input * memory.channels);
                        activate::<V, E>(memory, from, to, shape.input);
                    }
                    Rows::Expanded(rows) => rows.expand::<V>(ready, memory, to, shape.input),
                }
            }
            ready += 1;
        }
        let mut taps = [(0, 0); K];
        let mut count = 0;
        for tap in 0..K {
            let at = row * S + tap;
            if at >= shape.pad && at - shape.pad < shape.input {
                taps[count] = ((at - shape.pad) % K * row_floats, tap);
                count += 1;
            }
        }
        let mut column = 0;
        while column < shape.output {
            let width = block_of(shape.output - column, widest::<V>());
            // SAFETY: the block lies within the output row, its window within the ring's columns.
            unsafe {
                let y = y.add((row * shape.output + column) * memory.channels);
                let (taps, at) = (&taps[..count], column * S * memory.stride);
                match width {
                    8 if const { widest::<V>() >= 8 } => block::<V, E, K, S, 8>(memory, taps, at, y, *first),
                    7 if const { widest::<V>() >= 7 } => block::<V, E, K, S, 7>(memory, taps, at, y, *first),
                    4 => block::<V, E, K, S, 4>(memory, taps, at, y, *first),
                    2 => block::<V, E, K, S, 2>(memory, taps, at, y, *first),
                    _ => block::<V, E, K, S, 1>(memory, taps, at, y, *first),
                }
            }
            *first = false;
            column += width;
        }
        if let Some(totals) = &totals {
            // SAFETY: the caller's promise.
            unsafe { add_to_totals::<V>(shape, memory, row, totals) };
        }
    }
}

/// One row of the input, normalised and activated, into the ring.
/// # Safety
/// The instruction set of `V` is present. `x` points to a row of pixels, `ring` to as many columns.
#[inline(always)]
unsafe fn activate<V: Vector, E: Element>(memory: &Slice, x: *const E, ring: *mut f32, columns: usize) {
    let mut column = 0;
    while column < columns {
        // SAFETY: the columns are within the row.
        unsafe {
            let (x, ring) = (x.add(column * memory.channels), ring.add(column * memory.stride));
            if columns - column >= 4 {
                activate_columns::<V, E, 4>(memory, x, ring);
                column += 4;
            } else {
                activate_columns::<V, E, 1>(memory, x, ring);
                column += 1;
            }
        }
    }
}

/// # Safety
/// As for [`activate`], with `B` columns.
#[inline(always)]
unsafe fn activate_columns<V: Vector, E: Element, const B: usize>(
    memory: &Slice,
    x: *const E,
    ring: *mut f32,
) {
    // SAFETY: the caller's promise, and the slice has `count` more channels.
    unsafe {
        each_vector!(V, memory.width, |c, count| {
            let mut z = [V::zero(); B];
            for (j, z) in z.iter_mut().enumerate() {
                let from = x.add(j * memory.channels + c);
                prefetch(from, memory.x_row);
                *z = get::<V, E>(from, count);
            }
            if !memory.input.is_null() {
                let scale = V::load(memory.input.add(c));
                let shift = V::load(memory.input.add(memory.stride + c));
                for z in &mut z {
                    *z = z.mul_add(scale, shift);
                }
                z = silu_each::<E, V, _>(&z);
            }
            for (j, a) in z.iter().enumerate() {
                a.store(ring.add(j * memory.stride + c));
            }
        });
    }
}

/// `B` output pixels of a row, all channels of the slice. `taps` are the ring's rows under the window with
/// the window's row; `at` is the first column's place in a row.
/// # Safety
/// The instruction set of `V` is present. The ring has the window's columns for all `B` pixels from `at`; `y` has `B`
/// pixels.
#[inline(always)]
unsafe fn block<V: Vector, E: Element, const K: usize, const S: usize, const B: usize>(
    memory: &Slice,
    taps: &[(usize, usize)],
    at: usize,
    y: *mut E,
    first: bool,
) {
    let stride = memory.stride;
    for c in (0..memory.width).step_by(V::LANES) {
        // SAFETY: the caller's promise; `B` pixels from `y`, three rows of statistics.
        unsafe {
            let mut sums = [V::zero(); B];
            for &(row, tap) in taps {
                let ring = memory.ring.add(row + at + c);
                let weights = memory.weights.add(tap * K * stride + c);
                let mut w = [V::zero(); K];
                for (k, w) in w.iter_mut().enumerate() {
                    *w = V::load(weights.add(k * stride));
                }
                // Each column is loaded once and added to all outputs that it meets.
                unroll!(COLUMN in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18] {
                    if const { COLUMN < (B - 1) * S + K } {
                        let a = V::load(ring.add(COLUMN * stride));
                        for (k, w) in w.iter().enumerate() {
                            let Some(at) = COLUMN.checked_sub(k) else { continue };
                            if at.is_multiple_of(S) && at / S < B {
                                sums[at / S] = a.mul_add(*w, sums[at / S]);
                            }
                        }
                    }
                });
            }
            if !memory.activated.is_null() {
                activate_block::<V, E, B>(&mut sums, memory, c);
            }
            for (j, sum) in sums.iter_mut().enumerate() {
                let to = y.add(j * memory.channels + c);
                prefetch(to, memory.y_row);
                put(*sum, to, memory.width - c);
                *sum = E::rounded(*sum);
            }
            if !memory.statistics.is_null() {
                take_statistics(&sums, memory.statistics.add(c), stride, first);
            }
        }
    }
}

/// Adds a block's outputs, as stored, to the statistics [3, stride]. The task's first output becomes the shift.
/// # Safety
/// `to` is valid for a vector in each of the three rows.
#[inline(always)]
unsafe fn take_statistics<V: Vector, const B: usize>(y: &[V; B], to: *mut f32, stride: usize, first: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if first {
            y[0].store(to);
        }
        let shift = V::load(to);
        let (mut sum, mut square) = (V::zero(), V::zero());
        for y in y {
            let d = y.sub(shift);
            sum = sum.add(d);
            square = d.mul_add(d, square);
        }
        accumulate(sum, to.add(stride));
        accumulate(square, to.add(2 * stride));
    }
}
