//! Batch norm outside training: coefficients from the running statistics. What it does in training is part of
//! every convolution's pass, and tested there.

mod common;

use common::fixture::{Fixture, expect_none};
use effnet::ops::*;

#[test]
fn inference_coefficients_agree_with_the_oracle() {
    let mut failures = Vec::new();
    for channels in [8, 24, 40, 112, 1152, 1280] {
        for weights in [Weights::Raw, Weights::Ema] {
            for eps in [1e-5, 1e-3] {
                let f = &mut Fixture::new(format!("batch norm of {channels}, {weights:?}, eps {eps}"));
                f.weights = weights;
                let mut bn = f.norm("bn", channels, 10);
                bn.statistics = Statistics::Running;
                bn.eps = eps;
                // A variance near eps, so that eps is seen.
                bn.running_var = f.param("small variance", channels, 0.0, 4.0 * eps as f64);
                failures.extend(f.check(Pass::BatchNormInference(bn), 1));
            }
        }
    }
    expect_none(failures);
}
