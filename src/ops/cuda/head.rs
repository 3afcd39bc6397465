//! The head: pooling, classifier, loss, and back to the gradient at the last batch norm's output.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::batch_norm;
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use crate::ops::{HeadBackward, HeadForward, Loss, Result};

/// Threads and channels of a block that works on maps.
const POOL_THREADS: usize = 256;
const SLICE: usize = 256;
/// Threads and side of a block's tile of a product.
const PRODUCT_THREADS: usize = 128;
const TILE: usize = 64;
/// Shared memory of a product: two pieces of 16 depths, 68 floats each.
const PRODUCT_SHARED: usize = 2 * 16 * 68 * 4;
const LOGITS_THREADS: usize = 256;
const LOSS_THREADS: usize = 128;

/// Blocks that a product's depth is cut for, two for each multiprocessor of a large GPU, and the least depth of one.
const PRODUCT_BLOCKS: usize = 256;
const LEAST_DEPTH: usize = 64;
/// Most parts of the backward pass over the maps: a few percent of the maps' own bytes at any batch.
const MOST_PARTS: usize = 128;

arguments! {
    /// pooled [N, C].
    pub struct PoolArguments {
        y: Address,
        coefficients: Address,
        pooled: Address,
        pixels: i32,
        channels: i32,
    }
}

arguments! {
    /// Partial products [parts, rows, columns].
    pub struct ProductArguments {
        a: Address,
        a_scale: Address,
        b: Address,
        partials: Address,
        rows: i32,
        columns: i32,
        depth: i32,
        depth_per_part: i32,
    }
}

arguments! {
    /// Bias and the sum of the partial products.
    pub struct LogitsArguments {
        partials: Address,
        bias: Address,
        logits: Address,
        images: i32,
        classes: i32,
        parts: i32,
    }
}

arguments! {
    /// Cross-entropy and its gradient.
    pub struct LossArguments {
        block: Address,
        logits: Address,
        labels: Address,
        losses: Address,
        dlogits: Address,
        right: Address,
        classes: i32,
        smoothing: f32,
        scale: f32,
    }
}

arguments! {
    /// Adds a micro-batch to the step's figures.
    pub struct TallyArguments {
        block: Address,
        losses: Address,
        right: Address,
        images: i32,
    }
}

arguments! {
    /// The classifier's gradients.
    pub struct WeightsArguments {
        block: Address,
        dlogits: Address,
        pooled: Address,
        dropout: Address,
        weight_gradient: Address,
        bias_gradient: Address,
        images: i32,
        channels: i32,
        classes: i32,
    }
}

arguments! {
    /// du and its sums.
    pub struct BackwardArguments {
        y: Address,
        coefficients: Address,
        partials: Address,
        dropout: Address,
        du: Address,
        sums: Address,
        images: i32,
        images_per_part: i32,
        pixels: i32,
        channels: i32,
        splits: i32,
    }
}

const POOL: Kernel<PoolArguments> = Kernel::stored("head_pool");
const LOGIT_PRODUCTS: Kernel<ProductArguments> = Kernel::plain("head_logit_products");
const FEATURE_PRODUCTS: Kernel<ProductArguments> = Kernel::plain("head_feature_products");
const LOGITS: Kernel<LogitsArguments> = Kernel::plain("head_logits");
const LOSS: Kernel<LossArguments> = Kernel::plain("head_loss");
const TALLY: Kernel<TallyArguments> = Kernel::plain("head_tally");
const WEIGHTS: Kernel<WeightsArguments> = Kernel::plain("head_weights");
const BACKWARD: Kernel<BackwardArguments> = Kernel::stored("head_backward");

/// How the depth of a product [rows, depth]·[depth, columns] is cut among blocks.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    columns: usize,
    depth: usize,
    per_part: usize,
}

impl Cut {
    fn new(rows: usize, columns: usize, depth: usize) -> Cut {
        let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
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
        kernel: &Kernel<ProductArguments>,
        [a, a_scale, b, partials]: [Address; 4],
    ) -> Result {
        let arguments = ProductArguments {
            a,
            a_scale,
            b,
            partials,
            rows: self.rows as i32,
            columns: self.columns as i32,
            depth: self.depth as i32,
            depth_per_part: self.per_part as i32,
        };
        let grid = [self.columns.div_ceil(TILE), self.rows.div_ceil(TILE), self.parts()];
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
        let pool = PoolArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            pooled,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
        };
        let shared = POOL_THREADS / 32 * SLICE * 4;
        cx.launch(&POOL, [self.images, self.channels.div_ceil(SLICE), 1], POOL_THREADS, shared, pool)?;

        let cut = logit_cut(self);
        let [partials] = cx.workspace([cut.bytes()]);
        let factors = [pooled, cx.optional(self.dropout), cx.weight(self.classifier.weight), partials];
        cut.launch(cx, &LOGIT_PRODUCTS, factors)?;
        let logits = LogitsArguments {
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
    /// One number an image: whether its label has the largest logit.
    fn workspace(&self, _: Precision) -> usize {
        workspace_bytes(&[self.images * 4])
    }

    /// The gradient is that of the loss times the step's loss scale; the losses are themselves, and they and the images
    /// that are right are added to the step's figures.
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [right] = cx.workspace([self.images * 4]);
        let losses = cx.tensor(self.losses);
        let arguments = LossArguments {
            block: cx.state.block,
            logits: cx.tensor(self.logits),
            labels: cx.tensor(self.labels),
            losses,
            dlogits: cx.tensor(self.dlogits),
            right,
            classes: self.classes as i32,
            smoothing: self.smoothing,
            scale: self.scale,
        };
        let warps = LOSS_THREADS / 32;
        cx.launch(&LOSS, [self.images, 1, 1], LOSS_THREADS, warps * (3 * 8 + 4), arguments)?;
        let tally = TallyArguments { block: cx.state.block, losses, right, images: self.images as i32 };
        cx.launch(&TALLY, [1, 1, 1], LOSS_THREADS, warps * 2 * 8, tally)
    }
}

fn feature_cut(p: &HeadBackward) -> Cut {
    Cut::new(p.images, p.channels, p.classes)
}

fn images_per_part(p: &HeadBackward) -> usize {
    p.images.div_ceil(MOST_PARTS)
}

fn backward_bytes(p: &HeadBackward) -> [usize; 2] {
    let parts = p.images.div_ceil(images_per_part(p));
    [feature_cut(p).bytes(), batch_norm::sums_bytes(parts, p.channels)]
}

impl OnCuda for HeadBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&backward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [partials, sums] = cx.workspace(backward_bytes(self));
        let (dlogits, dropout) = (cx.tensor(self.dlogits), cx.optional(self.dropout));
        let weights = WeightsArguments {
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
        let grid = [self.channels.div_ceil(TILE), self.classes.div_ceil(TILE), 1];
        cx.launch(&WEIGHTS, grid, PRODUCT_THREADS, PRODUCT_SHARED, weights)?;

        let cut = feature_cut(self);
        let weight = cx.raw_weight(self.classifier.weight);
        cut.launch(cx, &FEATURE_PRODUCTS, [dlogits, Address::NULL, weight, partials])?;
        let per_part = images_per_part(self);
        let parts = self.images.div_ceil(per_part);
        let maps = BackwardArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            partials,
            dropout,
            du: cx.tensor(self.du),
            sums,
            images: self.images as i32,
            images_per_part: per_part as i32,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
            splits: cut.parts() as i32,
        };
        let shared = (1 + 2 * POOL_THREADS / 32) * SLICE * 4;
        cx.launch(&BACKWARD, [parts, self.channels.div_ceil(SLICE), 1], POOL_THREADS, shared, maps)?;
        batch_norm::finish_sums(cx, &self.bn, sums, parts)
    }
}
