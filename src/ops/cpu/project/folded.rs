//! Inference on large maps: the gate goes into the weight.
//!
//! (a·gate)·Wᵀ = a·(diag(gate)·Wᵀ). An image has one gate, and where it has many more pixels than the projection has outputs,
//! multiplying the weight by it is less work than multiplying the input. The product then takes its rows from the tensor as
//! they are, and nothing is formed in scratch memory.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::inference::{Finish, finish};
use crate::ops::ProjectInference;
use crate::ops::cpu::context::{Context, part_of, workspace_floats};
use crate::ops::cpu::expand::TASKS;
use crate::ops::cpu::gemm::rows::{RowBlock, TILE, after, floats_of, tiles};
use crate::ops::cpu::gemm::{self, Ahead, Panels, Product, padded};
use crate::ops::cpu::simd::{Element, Vector, dispatch, fence};

/// Pixels an output for which folding is less work: a task folds the weight once, for [`TILE`] rows or more.
const PIXELS: usize = 16;
/// Rows of a task if there are enough images.
const ROWS: usize = 4 * TILE;
/// Floats beyond the folded weight: a row's last vector may be longer than the row.
const SLACK: usize = 64;

/// Whether this pass folds the gate. Rows of the input must be whole groups of an operand's depth.
pub fn folds<E: Element>(pass: &ProjectInference) -> bool {
    pass.pixels >= PIXELS * pass.outputs && pass.inputs.is_multiple_of(E::DEPTH)
}

/// Floats of a task's scratch memory.
pub fn scratch<E: Element>(pass: &ProjectInference) -> usize {
    let folded = floats_of::<E>(gemm::depth::<E>(pass.inputs) * padded(pass.outputs)) + SLACK;
    workspace_floats(&[folded, TILE * padded(pass.outputs)])
}

/// What all tasks share.
pub struct Folded<'a, E> {
    /// [images·pixels, inputs].
    pub a: &'a [E],
    /// [images, inputs].
    pub gate: &'a [f32],
    pub inputs: usize,
    pub pixels: usize,
    pub panels: Panels,
    /// Wᵀ, packed as fp32.
    pub packed: &'a [f32],
    pub finish: Finish<'a, E>,
}

impl<E: Element> Folded<'_, E> {
    pub fn run(&self, cx: &Context) {
        let images = self.gate.len() / self.inputs;
        let parts = self.pixels.div_ceil(ROWS).max(TASKS.div_ceil(images).min(self.pixels / TILE)).max(1);
        cx.parallel(images * parts, |task, scratch| {
            let (image, part) = (task / parts, part_of(self.pixels, parts, task % parts));
            let first = image * self.pixels;
            self.task(image, first + part.start..first + part.end, scratch);
            fence();
        });
    }

    /// Rows of one image.
    fn task(&self, image: usize, own: Range<usize>, scratch: &mut [f32]) {
        let (depth, outputs) = (gemm::depth::<E>(self.inputs), self.finish.outputs());
        let floats = floats_of::<E>(depth * self.panels.padded()) + SLACK;
        let (weights, out) = scratch.split_at_mut(floats.next_multiple_of(16));
        let weights: &mut [E] = cast_slice_mut(weights);
        let gate = &self.gate[image * self.inputs..][..self.inputs];
        for panel in self.panels.iter() {
            let packed = &self.packed[panel.first * self.inputs..][..panel.width * self.inputs];
            fold(packed, gate, panel.width, &mut weights[panel.first * depth..]);
        }
        for tile in tiles(own.clone()) {
            let next = after(&tile, &own);
            // The next tile's input is loaded while this tile's products run.
            let mut ahead = Ahead::new(self.a, next.start * self.inputs..next.end * self.inputs);
            for panel in self.panels.iter() {
                gemm::multiply(Product {
                    rows: tile.len(),
                    depth: self.inputs,
                    width: panel.width,
                    a: (&self.a[tile.start * self.inputs..tile.end * self.inputs], self.inputs),
                    b: (&weights[panel.first * depth..][..panel.width * depth], panel.width),
                    c: (&mut out[panel.first..], self.panels.padded()),
                    add: false,
                    ahead: &mut ahead,
                });
            }
            let block = RowBlock::new(&tile, 0..outputs, outputs);
            // SAFETY: each task has its own rows.
            unsafe { finish(out, self.panels.padded(), block, &self.finish) };
        }
    }
}

dispatch! {
    /// diag(gate)·Wᵀ of a panel, interleaved. A row's last vector may write beyond the row, where the next one follows.
    fn fold<E>(packed: &[f32], gate: &[f32], width: usize, out: &mut [E]) => fold_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn fold_body<V: Vector, E: Element>(packed: &[f32], gate: &[f32], width: usize, out: &mut [E]) {
    let depth = gate.len();
    assert!(packed.len() >= depth * width && depth.is_multiple_of(E::DEPTH));
    assert!(out.len() >= depth * width + V::LANES * E::DEPTH);
    for first in (0..depth).step_by(E::DEPTH) {
        for column in (0..width).step_by(V::LANES) {
            let count = V::LANES.min(width - column);
            // SAFETY: the rows lie in the panel; the vectors that are written end at most a vector beyond its last row; the
            // rest is the caller's promise.
            unsafe {
                let from = packed.as_ptr().add(first * width + column);
                let to = out.as_mut_ptr().add(first * width + column * E::DEPTH);
                let row = V::load_some(from, count).mul(V::splat(gate[first]));
                if E::DEPTH == 1 {
                    E::store(row, to);
                } else {
                    let next = V::load_some(from.add(width), count).mul(V::splat(gate[first + 1]));
                    E::store_two_interleaved([row, next], to, to);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// A row's last vector may be longer than the row, as with half a vector: the next row is right all the same.
    fn check<E: Element>(depth: usize, width: usize) {
        let packed: Vec<f32> = (0..depth * width).map(|i| (i % 97) as f32 - 40.0).collect();
        let gate: Vec<f32> = (0..depth).map(|k| 0.25 + (k % 5) as f32 / 8.0).collect();
        let mut out = vec![E::from_f32(9.0); depth * width + SLACK];
        fold(&packed, &gate, width, &mut out);
        for k in 0..depth {
            for j in 0..width {
                let expected = E::from_f32(packed[k * width + j] * gate[k]).to_f32();
                let got = out[(k / E::DEPTH * width + j) * E::DEPTH + k % E::DEPTH].to_f32();
                assert_eq!(got, expected, "row {k}, column {j} of {depth} × {width}");
            }
        }
    }

    #[test]
    fn folded_weights_have_every_number_in_its_place() {
        for width in [8, 16, 24, 32, 48] {
            for depth in [2, 14, 96] {
                check::<f32>(depth, width);
                check::<bf16>(depth, width);
            }
            check::<f32>(13, width);
        }
    }
}
