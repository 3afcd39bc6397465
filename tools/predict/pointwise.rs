//! Work of the pointwise kernels: `expand_*` and `project_*`.

use crate::work::{Count, MOMENTS, NORM_BACKWARD, SILU_AND_SLOPE, up};

/// `kernels/pointwise.cuh`.
pub fn forward(c: &mut Count, base: &str, [tile_rows, tile_columns]: [f64; 2]) {
    let [rows, inputs, outputs] = c.sides(["rows", "inputs", "outputs"]);
    let (column_tiles, parts) = (c.grid(0), c.grid(1));
    c.product(up(rows, tile_rows), column_tiles * tile_columns, inputs);
    if base == "project_forward" {
        // Every column tile activates its input: batch norm, silu, gate.
        let values = rows * inputs * column_tiles;
        c.load(values);
        c.fp32(values, 3.0);
        c.sigmoid(values);
        c.store(values);
    }
    // To the warp's own rows and back, then to memory.
    let values = rows * outputs;
    c.store(if c.launch.points("y") { 2.0 } else { 1.0 } * values);
    c.load(values);
    if c.launch.points("moments") {
        c.fp32(values, MOMENTS);
        c.statistics(parts, outputs);
    }
    c.weights(inputs * outputs);
}

/// dy from du and y.
fn form(c: &mut Count, values: f64, factor: bool) {
    c.load(2.0 * values);
    c.fp32(values, NORM_BACKWARD + if factor { 1.0 } else { 0.0 });
    c.store(values);
}

/// dx with its shortcut, and the sums of the batch norm before: `NarrowGradient`.
fn narrow_gradient(c: &mut Count, rows: f64, inputs: f64, parts: f64) {
    let values = rows * inputs;
    if c.launch.points("shortcut") {
        c.load(values);
        c.fp32(values, 1.0);
    }
    c.store(2.0 * values);
    c.load(2.0 * values);
    c.fp32(values, 5.0);
    c.sums(parts, inputs);
}

/// Channels of the accumulators of `ExpandSweepShape`: eight warps share them in whole tiles.
fn padded(wide: f64) -> f64 {
    let tiles = (wide / 16.0 / 8.0).ceil();
    16.0 * tiles * (wide / 16.0 / tiles).ceil()
}

/// Data and weights at once, with y stored or made of x.
pub fn expand_sweep(c: &mut Count, [wide, narrow]: [f64; 2], recomputes: bool) {
    let [rows, inputs, outputs] = c.sides(["rows", "inputs", "outputs"]);
    let parts = c.grid(0);
    form(c, rows * outputs, false);
    if recomputes {
        c.expand_again(rows, outputs);
        c.load(-rows * outputs);
    }
    c.product(rows, narrow, outputs);
    c.product(padded(wide), narrow, rows);
    narrow_gradient(c, rows, inputs, parts);
    c.weights(inputs * outputs);
    c.floats(parts * inputs * outputs);
}

/// Data and weights in blocks of their own, each of which make dy: those of the weights for `left` channels and all
/// `columns`, or a half of them.
pub fn expand_split(c: &mut Count, [left, columns]: [f64; 2]) {
    let [rows, inputs, outputs] = c.sides(["rows", "inputs", "outputs"]);
    let [data_blocks, slice, pieces, parts] = c.sides(["data_blocks", "slice", "pieces", "parts"]);
    let across = pieces / (outputs / slice).ceil();
    form(c, rows * outputs * (1.0 + across), false);
    c.product(rows, columns, outputs);
    c.product(pieces * left, columns / across, rows);
    narrow_gradient(c, rows, inputs, data_blocks);
    c.weights(inputs * outputs);
    c.floats(parts * inputs * outputs);
    // du and y. Its argument names each tensor once.
    c.work.again = 2.0 * c.element() * rows * outputs;
    c.work.bytes += c.work.again;
}

/// The five sums of da and x, with the activation where the weights' gradient needs it.
fn five_sums(c: &mut Count, values: f64, activate: bool) {
    c.store(values); // da, as the product leaves it
    c.load(2.0 * values);
    c.sigmoid(values);
    // z, silu and its slope; x − mean and da·slope; the sums.
    c.fp32(values, 1.0 + SILU_AND_SLOPE + 2.0 + 5.0);
    if activate {
        c.fp32(values, 1.0);
        c.store(values);
    }
}

/// The sums of segments of an image: written, read and added up.
fn segments(c: &mut Count, images: f64, inputs: f64) {
    let segments = c.get("segments");
    if segments > 1.0 {
        let sums = 5.0 * segments * images * inputs;
        c.floats(2.0 * sums);
        c.fp32(sums, 1.0);
    }
}

/// Data, five sums and weights at once, by slices of the wide channels, each of which computes dy.
pub fn project_sweep(c: &mut Count, [depth, slice]: [f64; 2]) {
    let [images, pixels, inputs, outputs] = c.sides(["images", "pixels", "inputs", "outputs"]);
    let (rows, slices, parts) = (images * pixels, c.grid(0), c.grid(1));
    // The mean is in the constant, so the factor costs nothing more.
    form(c, rows * outputs * slices, false);
    c.product(rows, slice * slices, outputs);
    five_sums(c, rows * inputs, true);
    c.product(depth, slice * slices, rows);
    c.weights(inputs * outputs);
    c.floats(parts * inputs * outputs);
    segments(c, images, inputs);
}

pub fn project_data(c: &mut Count) {
    let [images, pixels, inputs, outputs] = c.sides(["images", "pixels", "inputs", "outputs"]);
    let (rows, slices) = (images * pixels, c.grid(0));
    form(c, rows * outputs * slices, true);
    c.product(rows, up(inputs, 128.0), outputs);
    five_sums(c, rows * inputs, false);
    c.weights(inputs * outputs);
    segments(c, images, inputs);
}

/// Each piece of the narrow channels computes A again, each piece of the wide ones dy.
pub fn project_weights(c: &mut Count, [left, right]: [f64; 2]) {
    let [rows, inputs, outputs] = c.sides(["rows", "inputs", "outputs"]);
    let (pieces, parts, across) = (c.grid(0), c.grid(1), (inputs / right).ceil());
    form(c, rows * outputs * across, true);
    let values = rows * inputs * pieces / across;
    c.load(values);
    c.fp32(values, 3.0);
    c.sigmoid(values);
    c.store(values);
    c.product(pieces * left, right, rows);
    c.floats(parts * inputs * outputs);
}
