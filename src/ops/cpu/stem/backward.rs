//! Backward: dy of a row into scratch, then its products with the image's values under each tap.

use super::*;
use crate::ops::StemBackward;

struct Backward<'a, E> {
    shape: Shape,
    image: &'a [E],
    y: &'a [E],
    du: &'a [E],
    /// [4, C] of dy = a·du + b·(y−μ) + c.
    coefficients: &'a [f32],
    /// [tasks, 27, C].
    partials: Shared<'a>,
}

impl OnCpu for StemBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = Shape::new(self.images, self.window, self.channels);
        WorkspaceFloats {
            shared: workspace_floats(&[4 * shape.channels, shape.tasks() * TAPS * shape.channels]),
            per_thread: SIDE * shape.row_values() + (self.window.output + TAPS) * shape.padded(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = Shape::new(self.images, self.window, self.channels);
        let channels = shape.channels;
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([coefficients, partials], gradient) = unsafe {
            let lengths = [4 * channels, shape.tasks() * TAPS * channels];
            (cx.workspace(lengths), cx.gradient_mut(self.weight))
        };
        batch_norm::backward_coefficients(cx, &self.bn, coefficients);
        let job = Backward {
            shape,
            image: cx.activation::<E>(self.image),
            y: cx.activation::<E>(self.y),
            du: cx.activation::<E>(self.du),
            coefficients,
            partials: Shared::new(&mut *partials),
        };
        assert_eq!([job.y.len(), job.du.len()], [shape.rows * self.window.output * channels; 2]);
        // SAFETY: `parallel` runs each number once.
        cx.parallel(shape.tasks(), |number, scratch| unsafe { backward_task(&job, number, scratch) });
        for at in 0..TAPS * channels {
            let total: f64 = partials.chunks_exact(TAPS * channels).map(|part| part[at] as f64).sum();
            gradient[place_in_weight(at / channels, at % channels)] += total as f32;
        }
    }
}

dispatch! {
    /// # Safety
    /// Each number runs once.
    unsafe fn backward_task<E>(job: &Backward<E>, number: usize, scratch: &mut [f32]) => backward_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`backward_task`].
#[inline(always)]
unsafe fn backward_body<V: Vector, E: Element>(job: &Backward<E>, number: usize, scratch: &mut [f32]) {
    let shape = &job.shape;
    let (rows, rest) = scratch.split_at_mut(SIDE * shape.row_values());
    let (dy, rest) = rest.split_at_mut(shape.window.output * shape.padded());
    let gradient = &mut rest[..TAPS * shape.padded()];
    gradient.fill(0.0);
    for row in shape.rows_of(number) {
        // SAFETY: a row of the tensors; the scratch is as long as the shape says; the rest is the caller's promise.
        // Each tap and vector needs an accumulator: the registers have room for two vectors or one.
        unsafe {
            shape.gather::<V, E>(job.image, row, rows);
            form_gradient::<V, E>(job, row, dy);
            let next = (row + 1) * shape.window.output * shape.channels;
            let ahead = [job.y, job.du].map(|from| from.as_ptr().wrapping_add(next));
            if V::REGISTERS >= 32 {
                add_row::<V, E, 2>(shape, rows, dy, ahead, gradient);
            } else {
                add_row::<V, E, 1>(shape, rows, dy, ahead, gradient);
            }
        }
    }
    for (tap, from) in gradient.chunks_exact(shape.padded()).enumerate() {
        let at = (number * TAPS + tap) * shape.channels;
        // SAFETY: each task writes its own part.
        unsafe { job.partials.part(at..at + shape.channels) }.copy_from_slice(&from[..shape.channels]);
    }
}

/// dy of one output row into scratch, zero in the padded channels.
/// # Safety
/// The instruction set of `V` is present, and `row` is a row of the tensors.
#[inline(always)]
unsafe fn form_gradient<V: Vector, E: Element>(job: &Backward<E>, row: usize, dy: &mut [f32]) {
    let shape = &job.shape;
    let (channels, columns) = (shape.channels, shape.window.output);
    let start = row * columns * channels;
    let (y, du) = (&job.y[start..start + columns * channels], &job.du[start..start + columns * channels]);
    for c in (0..shape.padded()).step_by(V::LANES) {
        let count = V::LANES.min(channels.saturating_sub(c));
        let at = c.min(channels);
        // SAFETY: every row has `count` more lanes; scratch rows are padded to whole vectors; the rest is the caller's
        // promise.
        unsafe {
            let row = |number: usize| job.coefficients.as_ptr().add(number * channels + at);
            let a = V::load_part(row(0), count);
            let b = V::load_part(row(1), count);
            let constant = V::load_part(row(2), count);
            let mean = V::load_part(row(3), count);
            for j in 0..columns {
                let y = E::load_some::<V>(y.as_ptr().add(j * channels + at), count);
                let du = E::load_some::<V>(du.as_ptr().add(j * channels + at), count);
                let value = du.mul_add(a, y.sub(mean).mul_add(b, constant));
                value.store(dy.as_mut_ptr().add(j * shape.padded() + c));
            }
        }
    }
}

/// Adds one row's products to the gradient, `N` vectors of channels at a time. Meanwhile a row is fetched from each of
/// `ahead`, which are y and du of the next row: else the products wait for the memory.
/// # Safety
/// The instruction set of `V` is present, and the slices are as long as the shape says.
#[inline(always)]
unsafe fn add_row<V: Vector, E: Element, const N: usize>(
    shape: &Shape,
    rows: &[f32],
    dy: &[f32],
    ahead: [*const E; 2],
    gradient: &mut [f32],
) {
    // Elements of a cache line.
    let line = 64 / size_of::<E>();
    for c in (0..shape.padded()).step_by(N * V::LANES) {
        for ky in 0..SIDE {
            // SAFETY: the caller's promise.
            unsafe {
                let mut sums = [[V::zero(); N]; ROW_TAPS];
                let values = rows.as_ptr().add(ky * shape.row_values());
                for j in 0..shape.window.output {
                    if ky < ahead.len() && c % line == 0 {
                        for at in (c..shape.channels.min(c + N * V::LANES)).step_by(line) {
                            prefetch_far(ahead[ky].wrapping_add(j * shape.channels + at));
                        }
                    }
                    let mut d = [V::zero(); N];
                    for (n, d) in d.iter_mut().enumerate() {
                        *d = V::load(dy.as_ptr().add(j * shape.padded() + c + n * V::LANES));
                    }
                    for (tap, sums) in sums.iter_mut().enumerate() {
                        let x = V::splat(*values.add(j * STEP + tap));
                        for (sum, d) in sums.iter_mut().zip(&d) {
                            *sum = x.mul_add(*d, *sum);
                        }
                    }
                }
                for (tap, sums) in sums.iter().enumerate() {
                    let to = gradient.as_mut_ptr().add((ky * ROW_TAPS + tap) * shape.padded() + c);
                    for (n, sum) in sums.iter().enumerate() {
                        let to = to.add(n * V::LANES);
                        V::load(to).add(*sum).store(to);
                    }
                }
            }
        }
    }
}
