//! Which device computes, and why.

use crate::ops::cpu::{CpuDevice, simd};

use super::recipe::DeviceChoice;

/// A device that cannot be had.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DeviceError {
    #[error("--device cuda: this build has no CUDA engine; leave the flag out, or use --device cpu")]
    NoCuda,
}

/// The device taken.
#[derive(Clone, Debug)]
pub struct Selected {
    pub device: CpuDevice,
    /// One line: which, and why.
    pub line: String,
}

/// Takes a device; `threads` 0 is one a core.
///
/// # Errors
/// [`DeviceError`] for a device that this build or machine does not have.
pub fn select(choice: DeviceChoice, threads: usize) -> Result<Selected, DeviceError> {
    let why = match choice {
        DeviceChoice::Cuda => return Err(DeviceError::NoCuda),
        DeviceChoice::Cpu => "as asked",
        DeviceChoice::Auto => "this build has no CUDA engine",
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if threads == 0 { cores } else { threads };
    let plural = if threads == 1 { "" } else { "s" };
    let line = format!("device: cpu, {threads} thread{plural}, {} ({why})", simd::level().name());
    Ok(Selected { device: CpuDevice { threads }, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_why_and_cuda_is_refused() {
        let auto = select(DeviceChoice::Auto, 0).unwrap();
        assert!(auto.device.threads >= 1);
        assert!(auto.line.contains("cpu") && auto.line.contains("no CUDA engine"), "{}", auto.line);
        assert_eq!(select(DeviceChoice::Cpu, 3).unwrap().device.threads, 3);
        assert_eq!(select(DeviceChoice::Cuda, 0).unwrap_err(), DeviceError::NoCuda);
    }
}
