//! The host harness itself: what it runs, and that it notices what is wrong.

mod common;

use common::fixture::{Fixture, expect_none};
use common::host_gpu::HostGpu;
use effnet::ops::cuda::{CudaOps, Precision};
use effnet::ops::*;
use effnet_kernel_host::Options;

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn an_engine_is_made() {
    for precision in Precision::ALL {
        let mut ops = CudaOps::new(HostGpu::new(Options::default()), 10, 12, &[], precision).unwrap();
        assert_eq!(ops.gpu().launches, 1);
        ops.set_step(StepParams::default()).unwrap();
    }
}

#[test]
fn residual() {
    let f = &mut Fixture::new("residual on the harness");
    let y = f.activation("y", 2 * 9, 24);
    let pass = ResidualForward {
        images: 2,
        pixels: 9,
        channels: 24,
        bn: f.norm_of("bn", &y, 24),
        y: f.input("y", y),
        keep: f.keep("keep", 2, true),
        shortcut: Some(f.input_noise("shortcut", 2 * 9 * 24, -1.0, 1.0)),
        out: f.output("out", 2 * 9 * 24),
    };
    expect_none(f.check_cuda(Pass::ResidualForward(pass), 9));
}
