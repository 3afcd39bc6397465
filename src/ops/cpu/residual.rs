//! Residual: out = BN(y)·keep (+ shortcut), the end of every block. Bound by memory: each tensor is touched
//! once, in row blocks.

use super::OnCpu;
use super::context::{Context, Shared};
use super::simd::Vector;
use super::sweep::{each_vector, read, write};
use crate::dispatch;
use crate::ops::ResidualForward;

/// Elements of a task.
const TASK: usize = 1 << 14;

impl OnCpu for ResidualForward {
    fn run(&self, cx: &Context) {
        let (channels, rows) = (self.channels, self.images * self.pixels);
        let y = cx.read(self.y);
        let coefficients = cx.read(self.bn.coefficients);
        let (scale, shift) = (&coefficients[2 * channels..3 * channels], &coefficients[3 * channels..]);
        let keep = self.keep.map(|keep| cx.read(keep));
        let shortcut = self.shortcut.map(|shortcut| cx.read(shortcut));
        let out = Shared::new(cx.write(self.out));
        let block = (TASK / channels).max(1);
        cx.parallel(rows.div_ceil(block), |task, _| {
            let (mut first, end) = (task * block, rows.min((task + 1) * block));
            while first < end {
                // With factors per image a run of rows ends where the image does.
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
    /// Rows of out = (scale·y + shift)·factor + shortcut; an empty shortcut is none.
    fn normalise(y: &[f32], scale: &[f32], shift: &[f32], factor: f32, shortcut: &[f32], out: &mut [f32])
        => normalise_body;
}

#[inline(always)]
fn normalise_body<V: Vector>(
    y: &[f32],
    scale: &[f32],
    shift: &[f32],
    factor: f32,
    shortcut: &[f32],
    out: &mut [f32],
) {
    let channels = scale.len();
    let factor = V::splat(factor);
    for (row, out) in out.chunks_exact_mut(channels).enumerate() {
        let y = &y[row * channels..][..channels];
        if shortcut.is_empty() {
            each_vector!(V, channels, |at, count| {
                let z = read::<V>(y, at, count).mul_add(read(scale, at, count), read(shift, at, count));
                write(out, at, count, z.mul(factor));
            });
        } else {
            let shortcut = &shortcut[row * channels..][..channels];
            each_vector!(V, channels, |at, count| {
                let z = read::<V>(y, at, count).mul_add(read(scale, at, count), read(shift, at, count));
                write(out, at, count, z.mul_add(factor, read(shortcut, at, count)));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Setup, assert_close, values};
    use crate::ops::ResidualForward;

    fn check(images: usize, pixels: usize, channels: usize, with_keep: bool, with_shortcut: bool) {
        let mut s = Setup::default();
        let rows = images * pixels;
        let bn = s.batch_norm(rows, &values(1, 4 * channels, -1.5, 1.5));
        let y = s.input(&values(2, rows * channels, -3.0, 3.0));
        let keep: Vec<f32> = (0..images).map(|i| if i % 3 == 1 { 0.0 } else { 1.25 }).collect();
        let keep = with_keep.then(|| s.input(&keep));
        let shortcut = with_shortcut.then(|| s.input(&values(3, rows * channels, -3.0, 3.0)));
        let out = s.output(rows * channels);
        let pass = ResidualForward { images, pixels, channels, y, bn, keep, shortcut, out };
        let got = s.run(&[pass.into()]);
        let coefficients = got.get(bn.coefficients);
        let expected: Vec<f64> = (0..rows * channels)
            .map(|i| {
                let [scale, shift] = [2, 3].map(|row| coefficients[row * channels + i % channels] as f64);
                let keep = keep.map_or(1.0, |keep| got.get(keep)[i / channels / pixels] as f64);
                let shortcut = shortcut.map_or(0.0, |shortcut| got.get(shortcut)[i] as f64);
                (scale * got.get(y)[i] as f64 + shift) * keep + shortcut
            })
            .collect();
        assert_close("out", got.get(out), &expected, 2e-7);
    }

    #[test]
    fn all_four_forms_follow_the_formula() {
        for (keep, shortcut) in [(false, false), (false, true), (true, false), (true, true)] {
            check(5, 49, 24, keep, shortcut);
            check(7, 1, 13, keep, shortcut);
            check(3, 900, 40, keep, shortcut);
        }
    }
}
