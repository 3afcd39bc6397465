//! Residual: out = BN(y)·keep (+ shortcut), the end of every block. Memory bounds its speed, so each tensor is read or
//! written once, in row blocks.

use super::context::{Context, OnCpu};
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch};
use super::sweep::{each_vector, read, write};
use crate::ops::ResidualForward;

/// Elements of a task.
const TASK: usize = 1 << 14;

impl OnCpu for ResidualForward {
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (channels, rows) = (self.channels, self.images * self.pixels);
        let y = cx.activation::<E>(self.y);
        let coefficients = cx.read(self.bn.coefficients);
        let (scale, shift) = (&coefficients[2 * channels..3 * channels], &coefficients[3 * channels..]);
        let keep = self.keep.map(|keep| cx.read(keep));
        let shortcut = self.shortcut.map(|shortcut| cx.activation::<E>(shortcut));
        // SAFETY: the caller's promise, and the pass takes it once.
        let out = Shared::new(unsafe { cx.write_activation::<E>(self.out) });
        let block = (TASK / channels).max(1);
        cx.parallel(rows.div_ceil(block), |task, _| {
            let (mut first, end) = (task * block, rows.min((task + 1) * block));
            while first < end {
                // With one factor per image, a run of rows ends at the end of the image.
                let (factor, last) = match keep {
                    Some(keep) => {
                        (keep[first / self.pixels], end.min((first / self.pixels + 1) * self.pixels))
                    }
                    None => (1.0, end),
                };
                let range = first * channels..last * channels;
                // SAFETY: each task has its own rows.
                let out = unsafe { out.part(range.clone()) };
                let shortcut = shortcut.map_or(&[][..], |shortcut| &shortcut[range.clone()]);
                normalise(&y[range], scale, shift, factor, shortcut, out);
                first = last;
            }
        });
    }
}

dispatch! {
    /// Rows of out = (scale·y + shift)·factor + shortcut; an empty shortcut means none.
    fn normalise<E>(y: &[E], scale: &[f32], shift: &[f32], factor: f32, shortcut: &[E], out: &mut [E])
        => normalise_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn normalise_body<V: Vector, E: Element>(
    y: &[E],
    scale: &[f32],
    shift: &[f32],
    factor: f32,
    shortcut: &[E],
    out: &mut [E],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let channels = scale.len();
        let factor = V::splat(factor);
        for (row, out) in out.chunks_exact_mut(channels).enumerate() {
            let y = &y[row * channels..][..channels];
            if shortcut.is_empty() {
                each_vector!(V, channels, |at, count| {
                    let z =
                        read::<V, _>(y, at, count).mul_add(read(scale, at, count), read(shift, at, count));
                    write(out, at, count, z.mul(factor));
                });
            } else {
                let shortcut = &shortcut[row * channels..][..channels];
                each_vector!(V, channels, |at, count| {
                    let z =
                        read::<V, _>(y, at, count).mul_add(read(scale, at, count), read(shift, at, count));
                    write(out, at, count, z.mul_add(factor, read(shortcut, at, count)));
                });
            }
        }
    }
}
