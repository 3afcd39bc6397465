//! The head: pooling, classifier, loss, and backward to the gradient at the last batch norm's output.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm;
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction::{Partials, finish_gradients};
use super::sources::head::{
    HeadBackwardArguments, HeadLogitsArguments, HeadLossArguments, HeadPoolArguments, HeadProductArguments,
    HeadWeightsArguments, LOGITS_THREADS, LOSS_THREADS, LOSS_WARPS, POOL_THREADS, POOL_WARPS, PRODUCT_DEPTH,
    PRODUCT_PITCH, PRODUCT_THREADS, PRODUCT_TILE, SLICE,
};
use crate::ops::{HeadBackward, HeadForward, LabelForm, Loss, Result};

/// Bytes of shared memory of a product: one piece of each factor.
const PRODUCT_SHARED: usize = 2 * PRODUCT_DEPTH * PRODUCT_PITCH * 4;

/// A product's depth is divided until there are about this many blocks, two for each multiprocessor of a large GPU,
/// but no part is less deep than the second number.
const PRODUCT_BLOCKS: usize = 256;
const LEAST_DEPTH: usize = 64;
/// Maximum number of parts of the backward pass: their sums are a few percent of the maps' bytes at any batch size.
const MOST_PARTS: usize = 128;

const POOL: Kernel<HeadPoolArguments> = Kernel::stored("head_pool");
const LOGIT_PRODUCTS: Kernel<HeadProductArguments> = Kernel::plain("head_logit_products");
const FEATURE_PRODUCTS: Kernel<HeadProductArguments> = Kernel::plain("head_feature_products");
const LOGITS: Kernel<HeadLogitsArguments> = Kernel::plain("head_logits");
const LOSS: Kernel<HeadLossArguments> = Kernel::plain("head_loss");
const SOFT_LOSS: Kernel<HeadLossArguments> = Kernel::plain("head_loss_soft");
const WEIGHTS: Kernel<HeadWeightsArguments> = Kernel::plain("head_weights");
const BACKWARD: Kernel<HeadBackwardArguments> = Kernel::stored("head_backward");

/// How the depth of a product [rows, depth]·[depth, columns] is divided among blocks.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    columns: usize,
    depth: usize,
    per_part: usize,
}

impl Cut {
    fn new(rows: usize, columns: usize, depth: usize) -> Cut {
        let tiles = rows.div_ceil(PRODUCT_TILE) * columns.div_ceil(PRODUCT_TILE);
        let wanted = PRODUCT_BLOCKS.div_ceil(tiles).min(depth.div_ceil(LEAST_DEPTH));
        Cut { rows, columns, depth, per_part: depth.div_ceil(wanted).next_multiple_of(16) }
    }

    fn parts(self) -> usize {
        self.depth.div_ceil(self.per_part)
    }

    fn bytes(self) -> usize {
        self.parts() * self.rows * self.columns * 4
    }

    fn launch<G: Gpu>(
        self,
        cx: &mut Context<G>,
        kernel: &Kernel<HeadProductArguments>,
        [a, a_scale, b, partials]: [Address; 4],
    ) -> Result {
        let arguments = HeadProductArguments {
            a,
            a_scale,
            b,
            partials,
            rows: self.rows as i32,
            columns: self.columns as i32,
            depth: self.depth as i32,
            depth_per_part: self.per_part as i32,
        };
        let grid = [self.columns.div_ceil(PRODUCT_TILE), self.rows.div_ceil(PRODUCT_TILE), self.parts()];
        cx.launch(kernel, grid, PRODUCT_THREADS, PRODUCT_SHARED, arguments)
    }
}

fn logit_cut(p: &HeadForward) -> Cut {
    Cut::new(p.images, p.classes, p.channels)
}

impl OnCuda for HeadForward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&[logit_cut(self).bytes()])
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let pooled = cx.tensor(self.pooled);
        let pool = HeadPoolArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            pooled,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
        };
        let shared = POOL_WARPS * SLICE * 4;
        cx.launch(&POOL, [self.images, self.channels.div_ceil(SLICE), 1], POOL_THREADS, shared, pool)?;

        let cut = logit_cut(self);
        let [partials] = cx.workspace([cut.bytes()]);
        let factors = [pooled, cx.optional(self.dropout), cx.weight(self.classifier.weight), partials];
        cut.launch(cx, &LOGIT_PRODUCTS, factors)?;
        let logits = HeadLogitsArguments {
            partials,
            bias: cx.weight(self.classifier.bias),
            logits: cx.tensor(self.logits),
            images: self.images as i32,
            classes: self.classes as i32,
            parts: cut.parts() as i32,
        };
        let blocks = (self.images * self.classes).div_ceil(LOGITS_THREADS);
        cx.launch(&LOGITS, [blocks, 1, 1], LOGITS_THREADS, 0, logits)
    }
}

impl OnCuda for Loss {
    /// One number for each image: whether its label has the largest logit.
    fn workspace(&self, _: Precision) -> usize {
        workspace_bytes(&[self.images * 4])
    }

    /// The gradient is multiplied by the step's loss scale, the losses are not. The losses and the number of correct
    /// images are added to the step's figures.
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [right] = cx.workspace([self.images * 4]);
        let (labels, mixed) = (cx.tensor(self.labels), self.form.mixed);
        let piece = |number: usize, present: bool| {
            if present { labels.offset(number * self.images * 4) } else { Address::NULL }
        };
        let arguments = HeadLossArguments {
            block: cx.state.block,
            logits: cx.tensor(self.logits),
            labels,
            second: piece(1, mixed),
            shares: piece(2, mixed),
            class_weights: piece(if mixed { 3 } else { 1 }, self.form.weighted),
            losses: cx.tensor(self.losses),
            dlogits: cx.tensor(self.dlogits),
            right,
            arrivals: cx.state.arrivals,
            classes: self.classes as i32,
            smoothing: self.smoothing,
            scale: self.scale,
        };
        let kernel = if self.form == LabelForm::PLAIN { &LOSS } else { &SOFT_LOSS };
        cx.launch(kernel, [self.images, 1, 1], LOSS_THREADS, LOSS_WARPS * (4 * 8 + 4), arguments)
    }
}

fn feature_cut(p: &HeadBackward) -> Cut {
    Cut::new(p.images, p.channels, p.classes)
}

fn images_per_part(p: &HeadBackward) -> usize {
    p.images.div_ceil(MOST_PARTS)
}

fn backward_bytes(p: &HeadBackward) -> [usize; 2] {
    if p.du.is_none() {
        return [0; 2];
    }
    let parts = p.images.div_ceil(images_per_part(p));
    [feature_cut(p).bytes(), batch_norm::sums_bytes(parts, p.channels)]
}

impl OnCuda for HeadBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&backward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [partials, sums] = cx.workspace(backward_bytes(self));
        let dlogits = cx.tensor(self.dlogits);
        let dropout = cx.optional(self.dropout);
        let weights = HeadWeightsArguments {
            block: cx.state.block,
            dlogits,
            pooled: cx.tensor(self.pooled),
            dropout,
            weight_gradient: cx.gradient(self.classifier.weight),
            bias_gradient: cx.gradient(self.classifier.bias),
            images: self.images as i32,
            channels: self.channels as i32,
            classes: self.classes as i32,
        };
        let grid = [self.channels.div_ceil(PRODUCT_TILE), self.classes.div_ceil(PRODUCT_TILE), 1];
        cx.launch(&WEIGHTS, grid, PRODUCT_THREADS, PRODUCT_SHARED, weights)?;

        let Some(du) = self.du else { return Ok(()) };
        let cut = feature_cut(self);
        let weight = cx.raw_weight(self.classifier.weight);
        cut.launch(cx, &FEATURE_PRODUCTS, [dlogits, Address::NULL, weight, partials])?;
        let per_part = images_per_part(self);
        let parts = self.images.div_ceil(per_part);
        let maps = HeadBackwardArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            partials,
            dropout,
            du: cx.tensor(du),
            sums,
            images: self.images as i32,
            images_per_part: per_part as i32,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
            splits: cut.parts() as i32,
        };
        let shared = (1 + 2 * POOL_WARPS) * SLICE * 4;
        cx.launch(&BACKWARD, [parts, self.channels.div_ceil(SLICE), 1], POOL_THREADS, shared, maps)?;
        finish_gradients(cx, Some((&self.bn, Partials { at: sums, parts })), None)
    }
}
