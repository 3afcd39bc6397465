//! Work of the kernels that slide a window: `depthwise_*` and `stem_*`.

use crate::work::{COMPENSATED, Count, MOMENTS, NORM_BACKWARD, SILU_AND_SLOPE};

/// Neighbouring columns of a thread of the depthwise kernels, but four backward with stride two.
const COLUMNS: f64 = 7.0;
/// Values under one output of the stem.
const TAPS: f64 = 27.0;

/// `depthwise_forward_k3s1`, `depthwise_backward_k5s2`, `depthwise_backward_identity_k3s1`,
/// `depthwise_forward_recompute_k3s2`.
pub fn depthwise(c: &mut Count, name: &str) -> Result<(), String> {
    let window = name.rsplit('_').next().and_then(|w| w.strip_prefix('k')?.split_once('s'));
    let window = window.and_then(|(k, s)| Some([k.parse().ok()?, s.parse().ok()?]));
    let window: [f64; 2] = window.ok_or_else(|| format!("{name}: a window such as k3s1 is in its name"))?;
    match name.starts_with("depthwise_forward") {
        true => depthwise_forward(c, window),
        false => depthwise_backward(c, window, name.contains("identity")),
    }
    Ok(())
}

/// The convolution's input, stored or computed again.
fn load_input(c: &mut Count, rows: f64, channels: f64) {
    match c.launch.points("expand_weight") {
        true => c.expand_again(rows, channels),
        false => c.load(rows * channels),
    }
}

fn depthwise_forward(c: &mut Count, [kernel, stride]: [f64; 2]) {
    let [images, channels, input, output] = c.sides(["images", "channels", "input", "output"]);
    let (loaded, stored) = (images * input * input * channels, images * output * output * channels);
    load_input(c, images * input * input, channels);
    if c.launch.points("coefficients") {
        c.fp32(loaded, 2.0);
        c.sigmoid(loaded);
    }
    // The last outputs of a row may lie beyond the map.
    let made = stored * (output / COLUMNS).ceil() * COLUMNS / output;
    c.fp32(made, kernel * kernel);
    if stride == 2.0 {
        // The ring holds the storage type. A row of taps reads the columns under a thread's outputs once.
        c.store(loaded);
        c.load(made * kernel * ((COLUMNS - 1.0) * stride + kernel) / COLUMNS);
    }
    c.store(stored);
    if c.launch.points("counts") {
        // As stored.
        c.load(stored);
        c.fp32(stored, MOMENTS);
        let parts = c.grid(1);
        c.statistics(parts, channels);
    }
}

fn depthwise_backward(c: &mut Count, [kernel, stride]: [f64; 2], identity: bool) {
    let [images, channels, input, output] = c.sides(["images", "channels", "input", "output"]);
    let (loaded, made) = (images * input * input * channels, images * output * output * channels);
    // dy of each output once.
    c.load(2.0 * made);
    c.sigmoid(made);
    c.fp32(made, 1.0 + SILU_AND_SLOPE + 2.0 + 2.0);
    // Both products of each tap that meets a position.
    let columns = if stride == 2.0 { 4.0 } else { COLUMNS };
    let positions = loaded * (input / columns).ceil() * columns / input;
    c.fp32(positions, 2.0 * kernel * kernel / (stride * stride));
    load_input(c, images * input * input, channels);
    if identity {
        if c.launch.points("shortcut") {
            c.load(loaded);
            c.fp32(loaded, 1.0);
        }
    } else {
        c.sigmoid(loaded);
        c.fp32(loaded, 1.0 + SILU_AND_SLOPE + 1.0);
    }
    // Stored, as stored, the two sums.
    c.store(loaded);
    c.load(loaded);
    c.fp32(loaded, 3.0);
    let parts = c.grid(1);
    c.floats(parts * channels * kernel * kernel);
    // The last blocks read the sums once more and add them.
    c.sums(2.0 * parts, channels);
    c.fp32(2.0 * parts * channels, COMPENSATED);
}

/// Planes that hold a value of the image for tensor cores, on average.
const PLANES: f64 = 1.5;

pub fn stem_forward(c: &mut Count) {
    let [images, input, output, channels] = c.sides(["images", "input", "output", "channels"]);
    let (rows, stored) = (images * output * output, images * output * output * channels);
    stem_products(c, images * input * input * 3.0, rows, channels);
    if c.half {
        // The weights are the sum of two halves.
        stem_products(c, 0.0, rows, channels);
    }
    c.store(stored);
    if c.launch.points("moments") {
        c.store(stored);
        c.load(stored);
        c.fp32(stored, MOMENTS);
        let parts = c.grid(0);
        c.statistics(parts, channels);
    }
}

pub fn stem_backward(c: &mut Count) {
    let [images, input, output, channels] = c.sides(["images", "input", "output", "channels"]);
    let rows = images * output * output;
    let made = rows * channels;
    stem_products(c, images * input * input * 3.0, rows, channels);
    c.load(2.0 * made);
    c.fp32(made, NORM_BACKWARD);
    if c.half {
        c.store(made);
    }
    let parts = c.grid(0);
    c.floats(parts * TAPS * channels);
}

/// The image in shared memory, and its products by weights or by gradients.
fn stem_products(c: &mut Count, image: f64, rows: f64, channels: f64) {
    if c.half {
        c.fp32(image, PLANES / 2.0);
    } else {
        c.load(image);
    }
    c.product(rows, channels, TAPS);
}
