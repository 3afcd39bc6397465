//! The backward kernels: one image, one slice of channels, row after row of the input.

use super::*;

/// Rows of a slice's coefficients: of BN2 forward, of its backward dy = a·du + b·(y−μ) + c, of the batch norm
/// whose sums are taken, and the image's gate and squeeze gradient, both multiplied by a.
pub(super) const COEFFICIENTS: usize = 10;
pub(super) const SCALE: usize = 0;
pub(super) const SHIFT: usize = 1;
pub(super) const MEAN: usize = 2;
pub(super) const B_ROW: usize = 3;
pub(super) const C_ROW: usize = 4;
pub(super) const INPUT_SCALE: usize = 5;
pub(super) const INPUT_SHIFT: usize = 6;
pub(super) const INPUT_MEAN: usize = 7;
pub(super) const GATE: usize = 8;
pub(super) const SQUEEZE: usize = 9;

/// A task's memory, as the kernels use it.
pub(super) struct Slice {
    /// Channels.
    pub(super) width: usize,
    /// Floats from a column of the ring, or a row of coefficients, to the next.
    pub(super) stride: usize,
    /// Elements from a pixel of the tensors to the next.
    pub(super) channels: usize,
    /// Elements from a row of the input's side and of the output's side to the next.
    pub(super) input_row: usize,
    pub(super) output_row: usize,
    pub(super) ring: *mut f32,
    /// The current row of the activated input, and `slopes` floats further the slopes of the activation.
    pub(super) inputs: *mut f32,
    pub(super) slopes: usize,
    pub(super) coefficients: *const f32,
    pub(super) weights: *const f32,
    pub(super) weight_gradient: *mut f32,
    /// Σdu, then Σdu·(y−μ).
    pub(super) sums: *mut f32,
}

/// A pixel's place in the tensors of the input's side.
#[derive(Clone, Copy)]
pub(super) struct Pixel<E> {
    pub(super) x: *const E,
    /// Null where there is no gradient at the input.
    pub(super) dx: *mut E,
    /// Null unless the input is the identity.
    pub(super) previous_y: *const E,
    /// Null without a shortcut.
    pub(super) shortcut: *const E,
    pub(super) keep: f32,
}

impl<E: Element> Pixel<E> {
    /// # Safety
    /// The pixel `elements` further is within the tensors.
    #[inline(always)]
    unsafe fn add(self, elements: usize) -> Pixel<E> {
        let far = |p: *const E| if p.is_null() { p } else { p.wrapping_add(elements) };
        // SAFETY: the caller's promise.
        unsafe {
            Pixel {
                x: self.x.add(elements),
                dx: far(self.dx).cast_mut(),
                previous_y: far(self.previous_y),
                shortcut: far(self.shortcut),
                keep: self.keep,
            }
        }
    }
}

/// Columns of a register block. Each needs registers for an input and an accumulator, beside the weights of a row and
/// their gradients.
const fn widest<V: Vector>() -> usize {
    match V::REGISTERS {
        32.. => 8,
        16.. => 4,
        _ => 2,
    }
}

/// Slides down one image.
/// # Safety
/// The instruction set of `V` is present. `pixel`, `y` and `da` point to the slice's first channel in the image's first
/// pixel; `memory` fits the shape.
#[inline(always)]
pub(super) unsafe fn image_rows<V: Vector, E: Element, const K: usize, const S: usize>(
    shape: &Shape,
    memory: &Slice,
    pixel: Pixel<E>,
    y: *const E,
    da: *const E,
) {
    let rows = (K - 1) / S + 1;
    let row_floats = shape.gradient_columns() * memory.stride;
    let mut ready = 0;
    for row in 0..shape.input {
        let end = ((row + shape.pad) / S + 1).min(shape.output);
        while ready < end {
            // SAFETY: row `ready` of the image and a row of the ring, right of its zero columns.
            unsafe {
                let from = ready * shape.output * memory.channels;
                let to = memory.ring.add(ready % rows * row_floats + shape.gradient_pad() * memory.stride);
                form_gradient::<V, E>(memory, y.add(from), da.add(from), to, shape.output);
            }
            ready += 1;
        }
        let mut taps = [(0, 0); K];
        let mut count = 0;
        for tap in 0..K.min(row + shape.pad + 1) {
            let at = row + shape.pad - tap;
            if at.is_multiple_of(S) && at / S < shape.output {
                taps[count] = (at / S % rows * row_floats, tap);
                count += 1;
            }
        }
        // SAFETY: a row of the image.
        unsafe {
            let pixel = pixel.add(row * shape.input * memory.channels);
            activate::<V, E>(memory, pixel, shape.input);
            input_row::<V, E, K, S>(shape, memory, &taps[..count], pixel);
        }
    }
}

/// One row of the input, in register blocks.
/// # Safety
/// The instruction set of `V` is present. `pixel` is the row's first; the ring holds the rows that `taps` name.
#[inline(always)]
unsafe fn input_row<V: Vector, E: Element, const K: usize, const S: usize>(
    shape: &Shape,
    memory: &Slice,
    taps: &[(usize, usize)],
    pixel: Pixel<E>,
) {
    let mut column = 0;
    while column < shape.input {
        let width = block_of(shape.input - column, widest::<V>());
        let (start, parity) = ((column + shape.pad) / S, (column + shape.pad) % S);
        let at = (start + shape.gradient_pad() - (K - 1) / S) * memory.stride;
        // SAFETY: the block lies within the input row, the outputs it meets within the ring's columns.
        unsafe {
            let pixel = pixel.add(column * memory.channels);
            if const { S == 2 } {
                if parity == 1 {
                    block_of_width::<V, E, K, 2, 1>(memory, taps, at, (pixel, column), width);
                } else {
                    block_of_width::<V, E, K, 2, 0>(memory, taps, at, (pixel, column), width);
                }
            } else {
                block_of_width::<V, E, K, 1, 0>(memory, taps, at, (pixel, column), width);
            }
        }
        column += width;
    }
}

/// [`block`] with a width known at run time.
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn block_of_width<V: Vector, E: Element, const K: usize, const S: usize, const P: usize>(
    memory: &Slice,
    taps: &[(usize, usize)],
    at: usize,
    (pixel, column): (Pixel<E>, usize),
    width: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            8 if const { widest::<V>() >= 8 } => block::<V, E, K, S, P, 8>(memory, taps, at, (pixel, column)),
            7 if const { widest::<V>() >= 7 } => block::<V, E, K, S, P, 7>(memory, taps, at, (pixel, column)),
            4 if const { widest::<V>() >= 4 } => block::<V, E, K, S, P, 4>(memory, taps, at, (pixel, column)),
            2 => block::<V, E, K, S, P, 2>(memory, taps, at, (pixel, column)),
            _ => block::<V, E, K, S, P, 1>(memory, taps, at, (pixel, column)),
        }
    }
}

/// One row of the gradient at the convolution's output, into the ring.
/// # Safety
/// The instruction set of `V` is present. `y` and `da` point to a row of pixels, `ring` to as many columns.
#[inline(always)]
unsafe fn form_gradient<V: Vector, E: Element>(
    memory: &Slice,
    y: *const E,
    da: *const E,
    ring: *mut f32,
    columns: usize,
) {
    let mut column = 0;
    while column < columns {
        // SAFETY: the columns are within the row.
        unsafe {
            let (from, to) = (column * memory.channels, ring.add(column * memory.stride));
            if columns - column >= 4 {
                form_columns::<V, E, 4>(memory, y.add(from), da.add(from), to);
                column += 4;
            } else {
                form_columns::<V, E, 1>(memory, y.add(from), da.add(from), to);
                column += 1;
            }
        }
    }
}

/// # Safety
/// As for [`form_gradient`], with `B` columns.
#[inline(always)]
unsafe fn form_columns<V: Vector, E: Element, const B: usize>(
    memory: &Slice,
    y: *const E,
    da: *const E,
    ring: *mut f32,
) {
    // SAFETY: the caller's promise, and the slice has `count` more channels.
    unsafe {
        each_vector!(V, memory.width, |c, count| {
            let row = memory.coefficients.add(c);
            let (scale, shift) = (V::load(row), V::load(row.add(SHIFT * memory.stride)));
            let mut z = [V::zero(); B];
            for (j, z) in z.iter_mut().enumerate() {
                let y = y.add(j * memory.channels + c);
                prefetch(y, memory.output_row);
                *z = get::<V, E>(y, count).mul_add(scale, shift);
            }
            let (_, slopes) = silu_with_derivative_each::<E, V, _>(&z);
            let mean = V::load(row.add(MEAN * memory.stride));
            let b = V::load(row.add(B_ROW * memory.stride));
            let constant = V::load(row.add(C_ROW * memory.stride));
            let gate = V::load(row.add(GATE * memory.stride));
            let squeeze = V::load(row.add(SQUEEZE * memory.stride));
            for (j, slope) in slopes.iter().enumerate() {
                let (y, da) = (y.add(j * memory.channels + c), da.add(j * memory.channels + c));
                prefetch(da, memory.output_row);
                // y is loaded again: four vectors more would not fit into the registers.
                let (y, da) = (get::<V, E>(y, count), get::<V, E>(da, count));
                let du = da.mul_add(gate, squeeze);
                let rest = y.sub(mean).mul_add(b, constant);
                du.mul_add(*slope, rest).store(ring.add(j * memory.stride + c));
            }
        });
    }
}

/// The gradient of `B` input pixels from `column` of a row, all channels of the slice, and their part of the weights'
/// gradient.
///
/// `taps` are the ring's rows that meet this row, with the window's row; `at` is the place in a ring row of
/// the first output that may meet the block. `P` is the parity of the block's first column plus pad.
/// # Safety
/// The instruction set of `V` is present. The ring has all columns that meet the block; `pixel` is the first of `B`.
#[inline(always)]
unsafe fn block<V: Vector, E: Element, const K: usize, const S: usize, const P: usize, const B: usize>(
    memory: &Slice,
    taps: &[(usize, usize)],
    at: usize,
    (pixel, column): (Pixel<E>, usize),
) {
    let stride = memory.stride;
    for c in (0..memory.width).step_by(V::LANES) {
        // SAFETY: within the tensors, the ring and the coefficients by the caller's promise.
        unsafe {
            let inputs = memory.inputs.add(column * stride + c);
            let mut a = [V::zero(); B];
            for (j, a) in a.iter_mut().enumerate() {
                *a = V::load(inputs.add(j * stride));
            }
            let mut da = [V::zero(); B];
            for &(row, tap) in taps {
                let ring = memory.ring.add(row + at + c);
                let tap = tap * K * stride + c;
                let mut w = [V::zero(); K];
                for (k, w) in w.iter_mut().enumerate() {
                    *w = V::load(memory.weights.add(tap + k * stride));
                }
                let mut dw = [V::zero(); K];
                // Each gradient is loaded once and meets all inputs that its window covers.
                unroll!(COLUMN in [0 1 2 3 4 5 6 7 8 9 10 11] {
                    if const { COLUMN < (K - 1) / S + (B - 1 + P) / S + 1 } {
                        let dy = V::load(ring.add(COLUMN * stride));
                        for k in 0..K {
                            // Column of the block, shifted to stay positive.
                            let shifted = COLUMN * S + k;
                            let shift = (K - 1) / S * S + P;
                            if shifted >= shift && shifted - shift < B {
                                let j = shifted - shift;
                                da[j] = dy.mul_add(w[k], da[j]);
                                dw[k] = dy.mul_add(a[j], dw[k]);
                            }
                        }
                    }
                });
                for (k, dw) in dw.iter().enumerate() {
                    accumulate(*dw, memory.weight_gradient.add(tap + k * stride));
                }
            }
            if pixel.dx.is_null() {
                continue;
            }
            // Each is inlined twice, so that whole vectors need no branch for each column.
            let whole = memory.width - c >= V::LANES;
            let count = if whole { V::LANES } else { memory.width - c };
            match (pixel.previous_y.is_null(), whole) {
                (true, true) => {
                    store_normalised(memory, pixel, (c, V::LANES), &da, inputs.add(memory.slopes))
                }
                (true, false) => store_normalised(memory, pixel, (c, count), &da, inputs.add(memory.slopes)),
                (false, true) => store_identity(memory, pixel, (c, V::LANES), &da),
                (false, false) => store_identity(memory, pixel, (c, count), &da),
            }
        }
    }
}

/// One row of the convolution's input, activated, and the slopes of the activation.
/// # Safety
/// The instruction set of `V` is present. `pixel` is the first of `columns`.
#[inline(always)]
unsafe fn activate<V: Vector, E: Element>(memory: &Slice, pixel: Pixel<E>, columns: usize) {
    let normalised = pixel.previous_y.is_null();
    let mut column = 0;
    while column < columns {
        // SAFETY: the columns are within the row.
        unsafe {
            let x = pixel.x.add(column * memory.channels);
            let to = memory.inputs.add(column * memory.stride);
            if columns - column >= 4 {
                activate_columns::<V, E, 4>(memory, x, to, normalised);
                column += 4;
            } else {
                activate_columns::<V, E, 1>(memory, x, to, normalised);
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
    to: *mut f32,
    normalised: bool,
) {
    // SAFETY: the caller's promise, and the slice has `count` more channels.
    unsafe {
        each_vector!(V, memory.width, |c, count| {
            let scale = V::load(memory.coefficients.add(INPUT_SCALE * memory.stride + c));
            let shift = V::load(memory.coefficients.add(INPUT_SHIFT * memory.stride + c));
            let mut z = [V::zero(); B];
            for (j, z) in z.iter_mut().enumerate() {
                let x = x.add(j * memory.channels + c);
                prefetch(x, memory.input_row);
                let x = get::<V, E>(x, count);
                if normalised {
                    *z = x.mul_add(scale, shift);
                } else {
                    x.store(to.add(j * memory.stride + c));
                }
            }
            if normalised {
                let (a, slopes) = silu_with_derivative_each::<E, V, _>(&z);
                for (j, (a, slope)) in a.iter().zip(&slopes).enumerate() {
                    let to = to.add(j * memory.stride + c);
                    a.store(to);
                    slope.store(to.add(memory.slopes));
                }
            }
        });
    }
}

/// du = da·silu'(z), with the sums of what is stored.
/// # Safety
/// The instruction set of `V` is present. `pixel` is the first of `B`; from channel `c` on, the slice has `count` more
/// or a whole vector; `slopes` is the slope of both.
#[inline(always)]
unsafe fn store_normalised<V: Vector, E: Element, const B: usize>(
    memory: &Slice,
    pixel: Pixel<E>,
    (c, count): (usize, usize),
    da: &[V; B],
    slopes: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mean = V::load(memory.coefficients.add(INPUT_MEAN * memory.stride + c));
        let (mut sum, mut dot) = (V::zero(), V::zero());
        for (j, da) in da.iter().enumerate() {
            let at = j * memory.channels + c;
            let du = da.mul(V::load(slopes.add(j * memory.stride)));
            prefetch(pixel.dx.add(at), memory.input_row);
            put(du, pixel.dx.add(at), count);
            let du = E::rounded(du);
            sum = sum.add(du);
            dot = du.mul_add(get::<V, E>(pixel.x.add(at), count).sub(mean), dot);
        }
        accumulate(sum, memory.sums.add(c));
        accumulate(dot, memory.sums.add(memory.stride + c));
    }
}

/// dx = da (+ the shortcut's gradient), with the sums of keep·dx, as stored, for the previous block's batch norm.
/// # Safety
/// The instruction set of `V` is present. `pixel` is the first of `B`; from channel `c` on, the slice has `count` more
/// or a whole vector.
#[inline(always)]
unsafe fn store_identity<V: Vector, E: Element, const B: usize>(
    memory: &Slice,
    pixel: Pixel<E>,
    (c, count): (usize, usize),
    da: &[V; B],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mean = V::load(memory.coefficients.add(INPUT_MEAN * memory.stride + c));
        let keep = V::splat(pixel.keep);
        let (mut sum, mut dot) = (V::zero(), V::zero());
        for (j, da) in da.iter().enumerate() {
            let at = j * memory.channels + c;
            let shortcut = pixel.shortcut;
            let dx = if shortcut.is_null() { *da } else { da.add(get(shortcut.add(at), count)) };
            put(dx, pixel.dx.add(at), count);
            let du = E::rounded(dx).mul(keep);
            sum = sum.add(du);
            dot = du.mul_add(get::<V, E>(pixel.previous_y.add(at), count).sub(mean), dot);
        }
        accumulate(sum, memory.sums.add(c));
        accumulate(dot, memory.sums.add(memory.stride + c));
    }
}
