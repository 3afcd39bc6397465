//! Initial values, drawn from the parameter table and a seed.

use super::params::{Entry, ParamRole, ParamTable};
use crate::random::{Purpose, draw, unit};

/// Fills a buffer of [`ParamTable::total`] elements with the values that training starts from.
///
/// A value depends only on the seed, the tensor's number in the table and the element.
pub fn initialise(table: &ParamTable, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; table.total()];
    for (number, entry) in table.entries().iter().enumerate() {
        let out = &mut values[entry.range()];
        match entry.role {
            ParamRole::Convolution => normal(out, deviation(entry), seed, number as u32),
            ParamRole::Linear => {
                let bound = 1.0 / (entry.shape[0] as f32).sqrt();
                for (i, value) in out.iter_mut().enumerate() {
                    let bits = draw(seed, i as u64, 0, Purpose::Initialise, number as u32)[0];
                    *value = (2.0 * unit(bits) - 1.0) * bound;
                }
            }
            ParamRole::Scale | ParamRole::RunningVariance => out.fill(1.0),
            ParamRole::Shift | ParamRole::Bias | ParamRole::RunningMean => out.fill(0.0),
        }
    }
    values
}

/// √(2/fan_out), with fan_out = output channels × kernel area / groups. A depthwise kernel has as many groups
/// as outputs, so its fan_out is the kernel's area.
fn deviation(entry: &Entry) -> f64 {
    let &[out, per_group, height, width] = entry.shape.as_slice() else { return 0.0 };
    let depthwise = per_group == 1;
    let fan_out = height * width * if depthwise { 1 } else { out };
    (2.0 / fan_out as f64).sqrt()
}

/// Box and Muller's transform of pairs of uniform draws.
fn normal(out: &mut [f32], deviation: f64, seed: u64, layer: u32) {
    for (i, pair) in out.chunks_mut(2).enumerate() {
        let bits = draw(seed, i as u64, 0, Purpose::Initialise, layer);
        let open = (bits[0] as f64 + 0.5) / (1u64 << 32) as f64;
        let radius = deviation * (-2.0 * open.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * bits[1] as f64 / (1u64 << 32) as f64).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, BatchNormConfig, Padding, Variant};

    #[test]
    fn initial_values_follow_the_stated_distributions() {
        let net = Architecture::new(Variant::B0, 10, 64, Padding::Symmetric, BatchNormConfig::default());
        let table = ParamTable::new(&net.unwrap());
        let values = initialise(&table, 7);
        let moments = |name: &str| {
            let entry = table.get(name).unwrap();
            let part = &values[entry.range()];
            let mean = part.iter().map(|&v| v as f64).sum::<f64>() / part.len() as f64;
            let var = part.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / part.len() as f64;
            (mean, var.sqrt(), part.len() as f64)
        };
        // Five standard errors of a mean and of a standard deviation of normal draws.
        for (name, expected) in [
            ("conv_head.weight", (2.0f64 / 1280.0).sqrt()),
            ("blocks.5.1.conv_dw.weight", (2.0f64 / 25.0).sqrt()),
            ("conv_stem.weight", (2.0f64 / (32.0 * 9.0)).sqrt()),
        ] {
            let (mean, deviation, n) = moments(name);
            assert!(mean.abs() < 5.0 * expected / n.sqrt(), "{name}: mean {mean}");
            assert!((deviation / expected - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{name}: {deviation}");
        }
        let bound = 1.0 / 10f32.sqrt();
        let linear = &values[table.get("classifier.weight").unwrap().range()];
        assert!(linear.iter().all(|v| v.abs() <= bound) && linear.iter().any(|v| v.abs() > 0.99 * bound));
        assert!(values[table.get("bn1.running_var").unwrap().range()].iter().all(|&v| v == 1.0));
        assert_ne!(values, initialise(&table, 8));
        assert_eq!(values, initialise(&table, 7));
    }
}
