//! Work of the squeeze-excite, the end of a block and the head.

use crate::work::{COMPENSATED, Count, EXACT_SIGMOID, SILU_AND_SLOPE, unknown, up};

/// Sums of silu(BN(y)).
fn pool(c: &mut Count, values: f64) {
    c.load(values);
    c.sigmoid(values);
    c.fp32(values, 3.0);
}

/// The small layers are fp32 products; each neighbouring block stages the same values again.
pub fn squeeze(c: &mut Count, name: &str) -> Result<(), String> {
    let [images, channels, units] = c.sides(["images", "channels", "units"]);
    let (wide, narrow, whole) = (images * channels, images * units, up(images, 8.0));
    match name {
        "squeeze_pool" => {
            let (slices, splits, pixels) = (c.grid(0), c.grid(1), c.get("pixels"));
            pool(c, wide * pixels);
            c.fp32(wide, units + splits);
            // The pool's sums and the slices' hidden units are written and, by the last blocks, read.
            c.floats(wide * splits + whole * units * slices);
            if c.launch.points("gate") {
                gates(c, [wide, narrow, units, slices]);
                c.sigmoid(wide);
            }
        }
        "squeeze_gate" => {
            let (neighbours, slices) = (c.grid(1), c.get("slices"));
            gates(c, [wide, narrow * neighbours, units, slices]);
            c.exact_sigmoid(wide);
            c.floats(whole * units * slices);
        }
        "squeeze_hidden_gradient" => {
            let slices = c.grid(1);
            c.fp32(wide, units + 3.0);
            c.fp32(narrow, slices);
            c.exact_sigmoid(narrow);
            c.floats(wide + whole * units * (slices + 2.0));
        }
        "squeeze_gradients" => {
            let groups = whole / 8.0;
            // Three products: of the pooled features' gradient and of both layers' weights.
            c.fp32(wide, 3.0 * units + 6.0 + up(units, 8.0) / 8.0);
            c.floats(wide + 2.0 * whole * units);
            c.sums(groups, channels);
            c.fp32(2.0 * channels * groups, COMPENSATED);
        }
        _ => return Err(unknown(name)),
    }
    Ok(())
}

/// Hidden units, from what the slices of channels add to each, and the second layer's product.
fn gates(c: &mut Count, [wide, narrow, units, slices]: [f64; 4]) {
    c.fp32(narrow, slices);
    c.exact_sigmoid(narrow);
    c.fp32(wide, units);
}

pub fn residual(c: &mut Count) {
    let [pixels, channels] = c.sides(["pixels", "channels"]);
    let values = c.grid(2) * pixels * channels;
    c.load(values * if c.launch.points("shortcut") { 2.0 } else { 1.0 });
    c.fp32(values, 2.0);
    c.store(values);
}

/// Side of a block's tile of a product.
const TILE: f64 = 64.0;

pub fn head(c: &mut Count, name: &str) -> Result<(), String> {
    match name {
        "head_pool" => {
            let values = c.grid(0) * c.get("pixels") * c.get("channels");
            pool(c, values);
        }
        "head_logit_products" | "head_feature_products" => {
            let [rows, columns, depth] = c.sides(["rows", "columns", "depth"]);
            c.fp32(up(rows, TILE) * up(columns, TILE), depth);
            let parts = c.grid(2);
            c.floats(parts * rows * columns);
        }
        "head_logits" => {
            let [images, classes, parts] = c.sides(["images", "classes", "parts"]);
            c.fp32(images * classes, parts + 1.0);
            c.floats(images * classes * parts);
        }
        "head_loss" | "head_loss_soft" => {
            let logits = c.grid(0) * c.get("classes");
            // e^x and its correction.
            c.fp32(logits, EXACT_SIGMOID);
            c.work.special += logits;
        }
        "head_weights" => {
            let [images, channels, classes] = c.sides(["images", "channels", "classes"]);
            c.fp32(up(classes, TILE) * up(channels, TILE), images);
        }
        "head_backward" => {
            let [images, pixels, channels, splits] = c.sides(["images", "pixels", "channels", "splits"]);
            let (values, parts) = (images * pixels * channels, c.grid(0));
            c.load(2.0 * values);
            c.sigmoid(values);
            c.store(2.0 * values);
            c.fp32(values, 1.0 + SILU_AND_SLOPE + 1.0 + 4.0);
            c.floats(splits * images * channels);
            c.sums(parts, channels);
        }
        _ => return Err(unknown(name)),
    }
    Ok(())
}
