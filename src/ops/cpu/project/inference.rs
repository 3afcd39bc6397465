//! Inference: the projection of a·gate, its batch norm and the shortcut in one sweep.
//!
//! The block's input is activated, so A costs one multiplication an element. A tile's product is complete in the
//! first-level cache when batch norm and shortcut are added, and the block's output is all that is stored.

use super::folded::{self, Folded, folds};
use super::{CHUNK, InChunks};
use crate::ops::ProjectInference;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use crate::ops::cpu::expand::{GROUPS, TASKS};
use crate::ops::cpu::gemm::rows::{RowBlock, TILE, after, floats_of, streams, tiles};
use crate::ops::cpu::gemm::{self, Ahead, Packed, Panels, padded};
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
        let per_thread = match folds::<E>(self) {
            true => folded::scratch::<E>(self),
            false => InChunks::<E>::scratch(self.outputs),
        };
        WorkspaceFloats { shared: workspace_floats(&[packed_floats::<E>(self)]), per_thread }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let panels = Panels::narrow(self.outputs);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed], out) = unsafe {
            (cx.workspace([packed_floats::<E>(self)]), Shared::new(cx.write_activation::<E>(self.out)))
        };
        let coefficients = cx.read(self.bn.coefficients);
        let finish = Finish {
            scale: &coefficients[2 * self.outputs..3 * self.outputs],
            shift: &coefficients[3 * self.outputs..4 * self.outputs],
            shortcut: self.shortcut.map(|shortcut| cx.activation::<E>(shortcut)),
            out,
        };
        let (a, gate) = (cx.activation::<E>(self.a), cx.read(self.gate));
        let (inputs, pixels) = (self.inputs, self.pixels);
        if folds::<E>(self) {
            let packed = Packed::<f32>::transposed(cx, self.weight, panels, packed);
            return Folded { a, gate, inputs, pixels, panels, packed: packed.numbers(), finish }.run(cx);
        }
        let packed = Packed::transposed(cx, self.weight, panels, packed);
        let job = Job {
            input: Input { a, gate, pixels, channels: inputs },
            product: InChunks { depth: inputs, panels, packed: packed.numbers() },
            finish,
        };
        let rows = self.images * pixels;
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

/// Floats of the packed weight.
fn packed_floats<E: Element>(pass: &ProjectInference) -> usize {
    match folds::<E>(pass) {
        true => pass.inputs * padded(pass.outputs),
        false => floats_of::<E>(gemm::depth::<E>(pass.inputs) * padded(pass.outputs)),
    }
}

/// What all tasks of the pass share.
struct Job<'a, E> {
    input: Input<'a, E>,
    product: InChunks<'a, E>,
    finish: Finish<'a, E>,
}

impl<E: Element> Job<'_, E> {
    /// The rows of a tile, from the input to the block's output.
    fn tile(&self, tile: std::ops::Range<usize>, next: std::ops::Range<usize>, scratch: &mut [f32]) {
        let Job { input, product, .. } = self;
        let mut ahead = Ahead::new(input.a, next.start * input.channels..next.end * input.channels);
        let out = product.tile(&tile, scratch, &mut ahead, |block, a| gated(*input, block, a, CHUNK));
        let outputs = self.finish.outputs();
        // SAFETY: each task has its own rows.
        unsafe {
            finish(out, product.panels.padded(), RowBlock::new(&tile, 0..outputs, outputs), &self.finish)
        };
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
pub struct Finish<'a, E> {
    scale: &'a [f32],
    shift: &'a [f32],
    shortcut: Option<&'a [E]>,
    out: Shared<'a, E>,
}

impl<E> Finish<'_, E> {
    pub fn outputs(&self) -> usize {
        self.scale.len()
    }
}

dispatch! {
    /// A = a·gate of a block into `out`, rows `stride` apart.
    fn gated<E>(input: Input<'_, E>, block: RowBlock, out: &mut [E], stride: usize) => gated_body;

    /// Whole rows of the product, `stride` apart, to their places in the output.
    /// # Safety
    /// These rows of the output belong to the calling task.
    pub unsafe fn finish<E>(from: &[f32], stride: usize, block: RowBlock, job: &Finish<'_, E>) => finish_body;
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
    let padded = channels.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (block.rows - 1) * stride + padded <= from.len());
    // A few vectors of all rows: their coefficients stay in registers.
    for first in (0..channels).step_by(4 * V::LANES) {
        // SAFETY: the checks above; the rest is the caller's promise.
        unsafe {
            match (channels - first).div_ceil(V::LANES) {
                1 => finish_vectors::<V, E, 1>(from, stride, block, first, job),
                2 => finish_vectors::<V, E, 2>(from, stride, block, first, job),
                3 => finish_vectors::<V, E, 3>(from, stride, block, first, job),
                _ => finish_vectors::<V, E, 4>(from, stride, block, first, job),
            }
        }
    }
}

/// The `W` vectors of each row from column `first` on.
/// # Safety
/// As for [`finish`]; the columns are below the block's, the last vector's may end before it.
#[inline(always)]
unsafe fn finish_vectors<V: Vector, E: Element, const W: usize>(
    from: &[f32],
    stride: usize,
    block: RowBlock,
    first: usize,
    job: &Finish<E>,
) {
    let streams = streams::<E>(job.out.len());
    // SAFETY: the caller's promise.
    unsafe {
        let mut lanes = [V::LANES; W];
        lanes[W - 1] = V::LANES.min(block.channels - first - (W - 1) * V::LANES);
        let (mut scale, mut shift) = ([V::zero(); W], [V::zero(); W]);
        for j in 0..W {
            scale[j] = read(job.scale, first + j * V::LANES, lanes[j]);
            shift[j] = read(job.shift, first + j * V::LANES, lanes[j]);
        }
        for row in 0..block.rows {
            let at = block.range(row).start + first;
            let columns = at..at + (W - 1) * V::LANES + lanes[W - 1];
            let shortcut = job.shortcut.map(|shortcut| shortcut.as_ptr().add(at));
            let (y, out) = (from.as_ptr().add(row * stride + first), job.out.part(columns).as_mut_ptr());
            for j in 0..W {
                let mut z = V::load(y.add(j * V::LANES)).mul_add(scale[j], shift[j]);
                if let Some(shortcut) = shortcut {
                    z = z.add(E::load_some(shortcut.add(j * V::LANES), lanes[j]));
                }
                E::store_some(z, out.add(j * V::LANES), lanes[j], streams);
            }
        }
    }
}
