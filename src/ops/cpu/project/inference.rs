//! Inference: the projection of a·gate, its batch norm and the shortcut in one sweep.
//!
//! The block's input is activated, so A costs one multiplication an element. A tile's product is complete in the
//! first-level cache when batch norm and shortcut are added, and the block's output is all that is stored.

use bytemuck::cast_slice_mut;

use super::CHUNK;
use crate::ops::ProjectInference;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use crate::ops::cpu::expand::{GROUPS, TASKS};
use crate::ops::cpu::gemm::rows::{RowBlock, TILE, after, floats_of, streams, tiles};
use crate::ops::cpu::gemm::{self, Ahead, Packed, Panels, Product, padded};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, dispatch, fence};
use crate::ops::cpu::sweep::{each_vector, read};

/// Groups of rows: at least 32 rows each, or, where a single small image is all there is, those of a register tile.
fn groups(rows: usize) -> usize {
    let few = (rows / 12).min(4);
    rows.div_ceil(TILE).max((rows / 32).min(TASKS)).max(few).clamp(1, GROUPS)
}

impl OnCpu for ProjectInference {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let packed = floats_of::<E>(gemm::depth::<E>(self.inputs) * padded(self.outputs));
        let per_thread = workspace_floats(&[floats_of::<E>(TILE * CHUNK), TILE * padded(self.outputs)]);
        WorkspaceFloats { shared: workspace_floats(&[packed]), per_thread }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let whole = gemm::depth::<E>(self.inputs);
        let panels = Panels::narrow(self.outputs);
        let rows = self.images * self.pixels;
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed], out) = unsafe {
            let packed = cx.workspace([floats_of::<E>(whole * panels.padded())]);
            (packed, Shared::new(cx.write_activation::<E>(self.out)))
        };
        let packed = Packed::transposed(cx, self.weight, panels, packed);
        let coefficients = cx.read(self.bn.coefficients);
        let job = Job {
            input: Input {
                a: cx.activation::<E>(self.a),
                gate: cx.read(self.gate),
                pixels: self.pixels,
                channels: self.inputs,
            },
            panels,
            packed: packed.numbers(),
            finish: Finish {
                scale: &coefficients[2 * self.outputs..3 * self.outputs],
                shift: &coefficients[3 * self.outputs..4 * self.outputs],
                shortcut: self.shortcut.map(|shortcut| cx.activation::<E>(shortcut)),
                out,
            },
        };
        let groups = groups(rows);
        cx.parallel(groups, |group, scratch| {
            let own = part_of(rows, groups, group);
            for tile in tiles(own.clone()) {
                // The next tile's input is loaded while this tile's products run.
                job.tile(tile.clone(), after(&tile, &own), scratch);
            }
            fence();
        });
    }
}

/// What all tasks of the pass share.
struct Job<'a, E> {
    input: Input<'a, E>,
    panels: Panels,
    packed: &'a [E],
    finish: Finish<'a, E>,
}

impl<E: Element> Job<'_, E> {
    /// The rows of a tile, from the input to the block's output.
    fn tile(&self, tile: std::ops::Range<usize>, next: std::ops::Range<usize>, scratch: &mut [f32]) {
        let (depth, whole) = (self.input.channels, gemm::depth::<E>(self.input.channels));
        let stride = self.panels.padded();
        let (a, out) = scratch.split_at_mut(floats_of::<E>(TILE * CHUNK));
        let a: &mut [E] = cast_slice_mut(a);
        let mut ahead = Ahead::new(self.input.a, next.start * depth..next.end * depth);
        for first in (0..depth).step_by(CHUNK) {
            let columns = CHUNK.min(depth - first);
            gated(self.input, RowBlock::new(&tile, first..first + columns, depth), a, CHUNK);
            for panel in self.panels.iter() {
                let start = panel.first * whole + first * panel.width;
                let steps = gemm::depth::<E>(columns);
                gemm::multiply(Product {
                    rows: tile.len(),
                    depth: columns,
                    width: panel.width,
                    a: (&*a, CHUNK),
                    b: (&self.packed[start..start + steps * panel.width], panel.width),
                    c: (&mut out[panel.first..], stride),
                    add: first > 0,
                    ahead: &mut ahead,
                });
            }
        }
        let outputs = self.finish.scale.len();
        // SAFETY: each task has its own rows.
        unsafe { finish(out, stride, RowBlock::new(&tile, 0..outputs, outputs), &self.finish) };
    }
}

/// The tensors from which A is formed.
#[derive(Clone, Copy)]
struct Input<'a, E> {
    a: &'a [E],
    /// [images, channels].
    gate: &'a [f32],
    pixels: usize,
    channels: usize,
}

/// What a product becomes: scale·y + shift (+ shortcut).
struct Finish<'a, E> {
    scale: &'a [f32],
    shift: &'a [f32],
    shortcut: Option<&'a [E]>,
    out: Shared<'a, E>,
}

dispatch! {
    /// A = a·gate of a block into `out`, rows `stride` apart.
    fn gated<E>(input: Input<'_, E>, block: RowBlock, out: &mut [E], stride: usize) => gated_body;

    /// Whole rows of the product, `stride` apart, to their places in the output.
    /// # Safety
    /// These rows of the output belong to the calling task.
    unsafe fn finish<E>(from: &[f32], stride: usize, block: RowBlock, job: &Finish<'_, E>) => finish_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn gated_body<V: Vector, E: Element>(input: Input<E>, block: RowBlock, out: &mut [E], stride: usize) {
    block.check(input.a.len());
    let channels = input.channels;
    assert!(block.channels == channels);
    assert!(input.gate.len() >= (block.row + block.rows).div_ceil(input.pixels) * channels);
    let padded = block.columns.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (padded <= stride && (block.rows - 1) * stride + padded <= out.len()));
    let mut image = block.row / input.pixels;
    for row in 0..block.rows {
        if block.row + row >= (image + 1) * input.pixels {
            image += 1;
        }
        // SAFETY: the block lies within the input, its images within the gates, its padded rows within `out`, by the
        // checks above; the rest is the caller's promise.
        unsafe {
            let a = input.a.as_ptr().add(block.range(row).start);
            let gate = input.gate.as_ptr().add(image * channels + block.column);
            let out = out.as_mut_ptr().add(row * stride);
            each_vector!(V, block.columns, |at, count| {
                let a = E::load_some::<V>(a.add(at), count);
                E::store(a.mul(V::load_some(gate.add(at), count)), out.add(at));
            });
        }
    }
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`finish`].
#[inline(always)]
unsafe fn finish_body<V: Vector, E: Element>(from: &[f32], stride: usize, block: RowBlock, job: &Finish<E>) {
    let channels = block.channels;
    block.check(job.out.len());
    assert!(job.shortcut.is_none_or(|shortcut| shortcut.len() == job.out.len()));
    let streams = streams::<E>(job.out.len());
    for row in 0..block.rows {
        let range = block.range(row);
        let y = &from[row * stride..][..channels];
        // SAFETY: the caller's promise, and the row lies within the output by the check above.
        unsafe {
            let out = job.out.part(range.clone()).as_mut_ptr();
            match job.shortcut {
                Some(shortcut) => {
                    let shortcut = &shortcut[range];
                    each_vector!(V, channels, |at, count| {
                        let z = read::<V, _>(y, at, count)
                            .mul_add(read(job.scale, at, count), read(job.shift, at, count));
                        let z = z.add(read(shortcut, at, count));
                        E::store_some(z, out.add(at), count, streams);
                    });
                }
                None => {
                    each_vector!(V, channels, |at, count| {
                        let z = read::<V, _>(y, at, count)
                            .mul_add(read(job.scale, at, count), read(job.shift, at, count));
                        E::store_some(z, out.add(at), count, streams);
                    });
                }
            }
        }
    }
}
