//! The GPUs that tests use: the host harness, and a real GPU through NVIDIA's driver, for which tests of the tests have a
//! stand-in that runs the harness's kernels.
//!
//! A test of the CUDA engine is written once, for any [`TestGpu`], and [`on_cuda`] makes two tests of it: `on_the_harness`,
//! which runs everywhere, and `on_a_gpu`, which is listed as *ignored* if the build found no GPU or has no kernels
//! (`build.rs` explains how to change that). `cargo test on_a_gpu` runs only the latter.

use std::fmt::Debug;
use std::sync::{Mutex, OnceLock};

use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::nvidia::device::Library;
use effnet::ops::cuda::{Address, CudaOps, Gpu, Precision};
use effnet::ops::{Plan, Result, StateSize};
use effnet_kernel_host::{BUILD, Build, Count, Options};

use super::host_gpu::HostGpu;
use super::stand_in::KERNELS;

pub trait TestGpu: Gpu + Sized + 'static {
    /// A way of running kernels. All must give the same bits.
    type Way: Copy + Debug + 'static;
    /// All ways. The results of the first are compared with the expected ones.
    const WAYS: &'static [Self::Way];

    /// The ways in which a single pass is run in this storage type.
    fn ways(_: Precision) -> &'static [Self::Way] {
        Self::WAYS
    }
    fn open(way: Self::Way) -> Self;
    /// Forbids bytes to kernels.
    fn guard(&mut self, at: Address, bytes: usize) -> Result;
    /// Whether nothing was written to bytes that were forbidden.
    fn kept(&mut self, at: Address, bytes: usize) -> Result<bool>;
    /// Bytes loaded and stored by region since the last reset, where they are counted.
    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }
    fn reset_counts(&mut self) {}
}

impl TestGpu for HostGpu {
    type Way = Options;
    const WAYS: &'static [Options] = &Options::ALL;

    fn ways(precision: Precision) -> &'static [Options] {
        match (BUILD, precision) {
            // These builds detect mistakes in any order, and take several times as long.
            (Build::Race, _) | (_, Precision::Bf16) => &Options::ALL[1..2],
            (Build::Address, _) => &Options::ALL[..2],
            (Build::Plain, _) => &Options::ALL,
        }
    }

    fn open(way: Options) -> HostGpu {
        HostGpu::new(way)
    }

    fn guard(&mut self, at: Address, bytes: usize) -> Result {
        HostGpu::guard(self, at, bytes);
        Ok(())
    }

    /// A launch that writes there has already failed.
    fn kept(&mut self, _: Address, _: usize) -> Result<bool> {
        Ok(true)
    }

    fn counts(&self) -> Vec<Count> {
        HostGpu::counts(self)
    }

    fn reset_counts(&mut self) {
        HostGpu::reset_counts(self);
    }
}

/// The order of threads is up to the hardware, so everything is run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    First,
    Second,
}

/// What forbidden bytes hold; as numbers of any type, NaN.
const FORBIDDEN: u8 = 0xff;

/// A driver that is never dropped. Dropping the last one would destroy the card's context, and creating that takes longer
/// than a test.
static KEPT: OnceLock<Mutex<Driver>> = OnceLock::new();

fn driver() -> Driver {
    let opened = match &*KERNELS {
        Some(kernels) => Library::load().and_then(|library| Driver::with_kernels(library, 0, kernels)),
        None => {
            return Driver::open(0).unwrap_or_else(|error| panic!("this test needs an NVIDIA GPU: {error}"));
        }
    };
    opened.unwrap_or_else(|error| panic!("the stand-in for the driver: {error}"))
}

impl TestGpu for Driver {
    type Way = Run;
    const WAYS: &'static [Run] = &[Run::First, Run::Second];

    fn open(_: Run) -> Driver {
        KEPT.get_or_init(|| Mutex::new(driver()));
        driver()
    }

    fn guard(&mut self, at: Address, bytes: usize) -> Result {
        if bytes == 0 { Ok(()) } else { self.fill(at, FORBIDDEN, bytes) }
    }

    fn kept(&mut self, at: Address, bytes: usize) -> Result<bool> {
        let mut held = vec![0; bytes];
        if bytes > 0 {
            self.read(at, &mut held)?;
        }
        Ok(held.iter().all(|byte| *byte == FORBIDDEN))
    }
}

/// An engine whose workspace holds NaN.
pub fn engine<G: TestGpu>(
    way: G::Way,
    trainable: usize,
    total: usize,
    plans: &[&Plan],
    precision: Precision,
) -> Result<CudaOps<G>> {
    let mut ops = CudaOps::new(G::open(way), StateSize::new(trainable, total), plans, precision)?;
    let cx = ops.context();
    if cx.workspace_bytes > 0 {
        cx.gpu.fill(cx.workspace, 0xff, cx.workspace_bytes)?;
    }
    Ok(ops)
}

/// Makes a generic function of this file, `fn NAME<G: TestGpu>()`, the tests `NAME::on_the_harness` and
/// `NAME::on_a_gpu`; or, with an expression, tests that call `EXPRESSION::<G>(ARGUMENTS)`.
#[allow(unused_macros)] // each test program uses a part
macro_rules! on_cuda {
    ($name:ident) => {
        on_cuda!($name, $name());
    };
    ($name:ident, $test:ident($($argument:expr),*)) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            #[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
            fn on_the_harness() {
                $test::<$crate::common::host_gpu::HostGpu>($($argument),*);
            }

            #[test]
            #[cfg_attr(not(effnet_gpu), ignore = "needs an NVIDIA GPU")]
            fn on_a_gpu() {
                $test::<effnet::ops::cuda::driver::Driver>($($argument),*);
            }
        }
    };
}
#[allow(unused_imports)]
pub(crate) use on_cuda;
