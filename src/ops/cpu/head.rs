//! The head: pooling, dropout, classifier and loss, then back to the gradient at the last batch norm's output.

use super::batch_norm::{NormSums, sums_floats};
use super::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use super::dense::{Factor, Region, Start, WeightedRows, add_column_sums, dots, multiply, weighted_rows};
use super::memory::Shared;
use super::pool;
use super::simd::{Element, Vector, dispatch, silu_with_derivative_each};
use super::sweep::{each_vector, read, write};
use crate::ops::{Dense, HeadBackward, HeadForward, Labels, Loss, Mixed, Tensor};

/// Images and classes of a task of the forward product: both blocks of rows stay in L2.
const LOGIT_TILE: [usize; 2] = [32, 32];
/// Classes of a task of the weight gradient.
const WEIGHT_ROWS: usize = 24;
/// Images and channels of a task of the input gradient.
const INPUT_TILE: [usize; 2] = [36, 256];
/// Images of a task with little work per image.
const GROUP: usize = 16;
/// Elements of y of a task of the last phase of backward.
const TASK: usize = 1 << 14;

impl OnCpu for HeadForward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        WorkspaceFloats {
            shared: workspace_floats(&[features_floats(self.dropout, self.images, self.channels)]),
            per_thread: pool::scratch_floats(self.channels),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (images, channels, classes) = (self.images, self.channels, self.classes);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let (pooled, logits, [features]) = unsafe {
            let lengths = [features_floats(self.dropout, images, channels)];
            (cx.write(self.pooled), Shared::new(cx.write(self.logits)), cx.workspace(lengths))
        };
        pool::means(cx, &self.bn, cx.activation::<E>(self.y), images, self.pixels, pooled);
        let features = dropped(cx, pooled, self.dropout, channels, features);
        let (weight, bias) = (cx.weight(self.classifier.weight), cx.weight(self.classifier.bias));
        let [rows, columns] = LOGIT_TILE;
        let across = classes.div_ceil(columns);
        cx.parallel(images.div_ceil(rows) * across, |task, _| {
            let own = task / across * rows..images.min((task / across + 1) * rows);
            let labels = task % across * columns..classes.min((task % across + 1) * columns);
            let start = own.start * classes + labels.start;
            // SAFETY: each task has its own images and classes.
            let mut out = unsafe { Region::of(logits, start, classes, own.len(), labels.len()) };
            let features = &features[own.start * channels..own.end * channels];
            let weight = &weight[labels.start * channels..labels.end * channels];
            dots(features, weight, channels, &bias[labels], &mut out);
        });
    }
}

fn features_floats(dropout: Option<Tensor>, images: usize, channels: usize) -> usize {
    if dropout.is_some() { images * channels } else { 0 }
}

/// The classifier's input: with dropout, the pooled features multiplied by its factors, in `product`.
fn dropped<'a>(
    cx: &'a Context,
    pooled: &'a [f32],
    dropout: Option<Tensor>,
    channels: usize,
    product: &'a mut [f32],
) -> &'a [f32] {
    let Some(factors) = dropout.map(|dropout| cx.read(dropout)) else { return pooled };
    let piece = GROUP * channels;
    let shared = Shared::new(&mut *product);
    cx.parallel(pooled.len().div_ceil(piece), |task, _| {
        let range = task * piece..pooled.len().min((task + 1) * piece);
        // SAFETY: each task has its own images.
        multiply(&pooled[range.clone()], &factors[range.clone()], unsafe { shared.part(range) });
    });
    product
}

impl OnCpu for Loss {
    /// Loss and gradient in double: a step has few logits, and the mean over a data set of losses near zero should keep
    /// its digits.
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (images, classes) = (self.images, self.classes);
        let logits = cx.read(self.logits);
        let labels = self.form.labels(bytemuck::cast_slice(cx.read(self.labels)), images);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let (losses, gradients) =
            unsafe { (Shared::new(cx.write(self.losses)), Shared::new(cx.write(self.dlogits))) };
        cx.parallel(images.div_ceil(GROUP), |task, _| {
            let own = task * GROUP..images.min((task + 1) * GROUP);
            for image in own {
                let range = image * classes..(image + 1) * classes;
                // SAFETY: each task has its own images.
                let (loss, gradient) =
                    unsafe { (losses.part(image..image + 1), gradients.part(range.clone())) };
                loss[0] = cross_entropy(self, &logits[range], Target::of(&labels, image), gradient);
            }
        });
    }
}

/// What an image should be: the classes of its parts and the first one's share. The weights are empty if all are 1.
struct Target<'a> {
    labels: [usize; 2],
    share: f64,
    weights: &'a [f32],
}

impl<'a> Target<'a> {
    fn of(labels: &Labels<'a>, image: usize) -> Target<'a> {
        let first = labels.first[image] as usize;
        let (second, share) = match labels.mixed {
            Some(Mixed { second, shares }) => (second[image] as usize, f64::from(shares[image])),
            None => (first, 1.0),
        };
        Target { labels: [first, second], share, weights: labels.class_weights.unwrap_or_default() }
    }

    /// A class's share before smoothing.
    fn certain(&self, class: usize) -> f64 {
        let [first, second] = self.labels.map(|label| label == class);
        (if first { self.share } else { 0.0 }) + if second { 1.0 - self.share } else { 0.0 }
    }

    fn weight(&self, class: usize) -> f64 {
        self.weights.get(class).map_or(1.0, |&weight| f64::from(weight))
    }

    /// The mean of a value of the two labels, by their shares. Where there is one part, the other has no influence.
    fn mean(&self, value: impl Fn(usize) -> f64) -> f64 {
        let [first, second] = self.labels;
        if self.share == 1.0 {
            return value(first);
        }
        self.share * value(first) + (1.0 - self.share) * value(second)
    }
}

/// One image's loss −Σ w·target·ln softmax and its gradient. A label outside the classes gives NaN.
fn cross_entropy(p: &Loss, logits: &[f32], target: Target, gradient: &mut [f32]) -> f32 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) as f64;
    let (mut exponentials, mut sum) = (0.0, 0.0);
    for (class, (slot, &logit)) in gradient.iter_mut().zip(logits).enumerate() {
        let shifted = logit as f64 - most;
        let e = shifted.exp();
        exponentials += e;
        sum += target.weight(class) * shifted;
        // Kept in single precision: half a unit in the last place of the gradient.
        *slot = e as f32;
    }
    let smoothing = p.smoothing as f64;
    let (everywhere, extra, scale) = (smoothing / p.classes as f64, 1.0 - smoothing, p.scale as f64);
    let shifted = |label: usize| logits.get(label).map_or(f64::NAN, |&logit| logit as f64 - most);
    let own = target.mean(|label| target.weight(label) * shifted(label));
    // Σ w·target, which is 1 without weights.
    let total = match target.weights {
        [] => 1.0,
        weights => {
            let all: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            extra * target.mean(|label| target.weight(label)) + everywhere * all
        }
    };
    for (class, slot) in gradient.iter_mut().enumerate() {
        let wanted = target.weight(class) * (everywhere + extra * target.certain(class));
        *slot = ((*slot as f64 * total / exponentials - wanted) * scale) as f32;
    }
    (total * exponentials.ln() - extra * own - everywhere * sum) as f32
}

impl OnCpu for HeadBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        WorkspaceFloats { shared: workspace_floats(&backward_lengths(self)), per_thread: 0 }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (images, channels) = (self.images, self.channels);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([features, dpooled, partials], du, classifier) = unsafe {
            let Dense { weight, bias, .. } = self.classifier;
            (
                cx.workspace(backward_lengths(self)),
                self.du.map(|du| (Shared::new(cx.write_activation::<E>(du)), NormSums::of(cx, &self.bn))),
                [weight, bias].map(|param| Shared::new(cx.gradient_mut(param))),
            )
        };
        let features = dropped(cx, cx.read(self.pooled), self.dropout, channels, features);
        classifier_backward(cx, self, features, dpooled, classifier);
        let Some((du, norm)) = du else { return };

        let size = self.pixels * channels;
        let group = image_group(self);
        let y = cx.activation::<E>(self.y);
        let coefficients = cx.read(self.bn.coefficients);
        let dropout = self.dropout.map(|dropout| cx.read(dropout));
        let (dpooled, sums) = (Shared::new(dpooled), Shared::new(&mut *partials));
        cx.parallel(images.div_ceil(group), |task, _| {
            // SAFETY: each task has its own images and its own partial sums.
            let sums = unsafe { sums.part(task * 2 * channels..(task + 1) * 2 * channels) };
            sums.fill(0.0);
            for image in task * group..images.min((task + 1) * group) {
                let row = image * channels..(image + 1) * channels;
                let map = image * size..(image + 1) * size;
                let factors = dropout.map_or(&[][..], |dropout| &dropout[row.clone()]);
                // SAFETY: as above.
                let (dpooled, du) = unsafe { (dpooled.part(row), du.part(map.clone())) };
                share_out(self.pixels as f32, factors, dpooled);
                map_gradient(&y[map], coefficients, dpooled, du, sums);
            }
        });
        norm.finish(cx, partials);
    }
}

/// Images of a task of the last phase.
fn image_group(p: &HeadBackward) -> usize {
    (TASK / (p.pixels * p.channels)).clamp(1, p.images)
}

fn backward_lengths(p: &HeadBackward) -> [usize; 3] {
    let features = features_floats(p.dropout, p.images, p.channels);
    if p.du.is_none() {
        return [features, 0, 0];
    }
    let partials = sums_floats(p.images.div_ceil(image_group(p)), p.channels);
    [features, p.images * p.channels, partials]
}

/// Adds dW = dlogitsᵀ·features and db, and writes dlogits·W to `dpooled`, unless that is empty: blocks of both in one round of
/// tasks.
fn classifier_backward(
    cx: &Context,
    p: &HeadBackward,
    features: &[f32],
    dpooled: &mut [f32],
    [dweight, dbias]: [Shared; 2],
) {
    let (images, channels, classes) = (p.images, p.channels, p.classes);
    let dlogits = cx.read(p.dlogits);
    let weight = cx.weight(p.classifier.weight);
    let rows_of_data = dpooled.len() / channels;
    let dpooled = Shared::new(dpooled);
    let weight_tasks = classes.div_ceil(WEIGHT_ROWS);
    let [rows, columns] = INPUT_TILE;
    let across = channels.div_ceil(columns);
    cx.parallel(weight_tasks + rows_of_data.div_ceil(rows) * across, |task, _| {
        if task < weight_tasks {
            let own = task * WEIGHT_ROWS..classes.min((task + 1) * WEIGHT_ROWS);
            // SAFETY: each task has its own classes.
            let (dweight, dbias) =
                unsafe { (dweight.part(own.start * channels..own.end * channels), dbias.part(own.clone())) };
            let dlogits = &dlogits[own.start..];
            let a = Factor { data: dlogits, row_stride: 1, depth_stride: classes };
            let product = WeightedRows { a, depth: images, b: features, stride: channels, start: Start::Add };
            weighted_rows(product, &mut Region::whole(dweight, channels));
            add_column_sums(dlogits, classes, images, dbias);
        } else {
            let task = task - weight_tasks;
            let own = task / across * rows..images.min((task / across + 1) * rows);
            let slice = task % across * columns..channels.min((task % across + 1) * columns);
            let start = own.start * channels + slice.start;
            // SAFETY: each task has its own images and channels.
            let mut out = unsafe { Region::of(dpooled, start, channels, own.len(), slice.len()) };
            let dlogits = &dlogits[own.start * classes..own.end * classes];
            let a = Factor { data: dlogits, row_stride: classes, depth_stride: 1 };
            let b = &weight[slice.start..];
            let product = WeightedRows { a, depth: classes, b, stride: channels, start: Start::Zero };
            weighted_rows(product, &mut out);
        }
    });
}

dispatch! {
    /// d = d·dropout/pixels; empty factors mean one.
    fn share_out(pixels: f32, dropout: &[f32], d: &mut [f32]) => share_out_body;
    /// du = d·silu'(z) of one image, adding Σdu and Σdu·ŷ to the sums [2, C].
    fn map_gradient<E>(y: &[E], coefficients: &[f32], d: &[f32], du: &mut [E], sums: &mut [f32]) => map_gradient_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn share_out_body<V: Vector>(pixels: f32, dropout: &[f32], d: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let pixels = V::splat(pixels);
        each_vector!(V, d.len(), |at, count| {
            let mut value = read::<V, _>(d, at, count);
            if !dropout.is_empty() {
                value = value.mul(read(dropout, at, count));
            }
            write(d, at, count, value.div(pixels));
        });
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn map_gradient_body<V: Vector, E: Element>(
    y: &[E],
    coefficients: &[f32],
    d: &[f32],
    du: &mut [E],
    sums: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let channels = d.len();
        let pixels = du.len() / channels;
        let mut pixel = 0;
        while pixel < pixels {
            let four = pixel + 4 <= pixels;
            let rows = pixel * channels..(pixel + if four { 4 } else { 1 }) * channels;
            if four {
                pixel_gradients::<V, E, 4>(&y[rows.clone()], coefficients, d, &mut du[rows], sums);
            } else {
                pixel_gradients::<V, E, 1>(&y[rows.clone()], coefficients, d, &mut du[rows], sums);
            }
            pixel += if four { 4 } else { 1 };
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn pixel_gradients<V: Vector, E: Element, const R: usize>(
    y: &[E],
    coefficients: &[f32],
    d: &[f32],
    du: &mut [E],
    sums: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let channels = d.len();
        let (first, second) = sums.split_at_mut(channels);
        each_vector!(V, channels, |at, count| {
            let mean = read::<V, _>(coefficients, at, count);
            let r = read::<V, _>(coefficients, channels + at, count);
            let scale = read::<V, _>(coefficients, 2 * channels + at, count);
            let shift = read::<V, _>(coefficients, 3 * channels + at, count);
            let d = read::<V, _>(d, at, count);
            let (mut sum, mut with_y) = (read::<V, _>(first, at, count), read::<V, _>(second, at, count));
            let (mut values, mut z) = ([mean; R], [mean; R]);
            for row in 0..R {
                values[row] = read::<V, _>(y, row * channels + at, count);
                z[row] = values[row].mul_add(scale, shift);
            }
            let (_, slopes) = silu_with_derivative_each::<E, V, R>(&z);
            for row in 0..R {
                let (y, own) = (values[row], d.mul(slopes[row]));
                write(du, row * channels + at, count, own);
                // The passes that follow read du as stored, so the sums are taken of that.
                let own = E::rounded(own);
                sum = sum.add(own);
                with_y = own.mul_add(y.sub(mean).mul(r), with_y);
            }
            write(first, at, count, sum);
            write(second, at, count, with_y);
        });
    }
}
