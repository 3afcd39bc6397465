//! Work of the kernels outside the layers: second stages of batch norms and of gradients, the image, the optimiser.

use crate::work::{COMPENSATED, Count, unknown};

pub fn batch_norm(c: &mut Count, name: &str) -> Result<(), String> {
    if name == "batch_norm_inference" {
        return Ok(());
    }
    let [parts, channels] = c.sides(["parts", "channels"]);
    match name {
        "batch_norm_statistics" => {
            c.statistics(parts, channels);
            c.fp32(parts * channels, 5.0);
        }
        // The same parts, and one merged part instead of coefficients.
        "batch_norm_merge" => {
            c.statistics(parts, channels);
            c.floats(2.0 * channels);
            c.fp32(parts * channels, 5.0);
        }
        _ => return Err(unknown(name)),
    }
    Ok(())
}

pub fn finish_gradients(c: &mut Count) {
    let [norm_parts, channels] = c.sides(["norm_parts", "channels"]);
    let [parts, elements] = c.sides(["parts", "elements"]);
    let [second_parts, second_elements] = c.sides(["second_parts", "second_elements"]);
    let [third_parts, third_elements] = c.sides(["third_parts", "third_elements"]);
    let weights = parts * elements + second_parts * second_elements + third_parts * third_elements;
    let sums = norm_parts * 2.0 * channels + weights;
    c.floats(sums);
    c.fp32(sums, COMPENSATED);
}

pub fn image(c: &mut Count, name: &str) -> Result<(), String> {
    match name {
        "image_normalise" => {
            let values = c.get("count");
            c.work.bytes += values;
            c.store(values);
        }
        "image_prepare" => {
            // ImageNet at 224: a training crop covers twice the square, so that 1.4 rows and columns have 3.8 taps
            // each; tables of two axes take some 20 bytes a position. Integer operations count as fp32 ones.
            let (side, images) = (c.get("side"), c.grid(1));
            let (square, taps) = (3.0 * side * side, 3.8);
            c.work.bytes += images * (2.0 * square + 40.0 * side);
            c.fp32(images * square, 1.4 * 3.0 * taps + 2.0 * taps);
            c.store(images * square);
        }
        _ => return Err(unknown(name)),
    }
    Ok(())
}

pub fn optimiser(c: &mut Count, name: &str) -> Result<(), String> {
    match name {
        "optimiser_rmsprop_pytorch"
        | "optimiser_rmsprop_tensorflow"
        | "optimiser_sgd"
        | "optimiser_sgd_nesterov"
        | "optimiser_adamw" => {
            let [trainable, statistics] = c.sides(["trainable", "statistics"]);
            let ema = if c.launch.points("ema") { 2.0 } else { 0.0 };
            // Read: parameter, gradient, momentum, mean square; written: all but the gradient.
            let (buffers, each, special) = match name {
                "optimiser_sgd" => (5.0, 5.0, 0.0),
                "optimiser_sgd_nesterov" => (5.0, 6.0, 0.0),
                _ => (7.0, 22.0, 2.0),
            };
            c.floats(trainable * (buffers + ema) + statistics * (2.0 + ema));
            c.fp32(trainable, each + ema);
            c.work.special += special * trainable;
        }
        "optimiser_finite" => {
            let trainable = c.get("trainable");
            c.floats(trainable);
            c.fp32(trainable, 1.0);
        }
        "optimiser_store" => {
            // Whole chunks, the last of each tensor too.
            let values = c.grid(0) * 2048.0;
            c.floats(values);
            c.weights(values);
            c.store(values);
        }
        "optimiser_squares" => {
            let trainable = c.get("trainable");
            c.floats(trainable);
            c.fp32(trainable, 2.0);
        }
        "optimiser_clip" => c.work.bytes += 8.0 * c.get("chunks"),
        "optimiser_scale" => {}
        _ => return Err(unknown(name)),
    }
    Ok(())
}
