//! Errors of driver, card and build, with remedies.
//!
//! Every text is one line, "what is wrong; what to do". A program that continues without a GPU prints the first half
//! only.

use std::fmt;

use super::branches::branch_for;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// From the driver's number: 12040 is 12.4.
    pub fn from_number(number: i32) -> Version {
        let number = number.max(0) as u32;
        Version(number / 1000, number % 1000 / 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A failed call of the driver.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{call}: {name}{text}{hint}", hint = hint(*code))]
pub struct Failure {
    /// The function.
    pub call: &'static str,
    pub code: u32,
    /// The code's name in NVIDIA's documentation.
    pub name: String,
    /// The driver's description in brackets after a space, or empty.
    pub text: String,
}

/// Advice on failures with known causes.
fn hint(code: u32) -> &'static str {
    match code {
        2 => "; the card's memory is full: close what else uses it, or train with a smaller --micro-batch",
        46 => "; another process uses this card alone: see nvidia-smi, compute mode",
        // Faults inside kernels. The next call reports them, whichever it is.
        700..=720 => "; an earlier kernel may have caused it: EFFNET_CUDA_SYNC=1 makes the next run name it",
        214 => "; the card's memory is failing: see nvidia-smi -q -d ECC",
        802 => "; is the fabric manager of this machine running?",
        803 | 804 => {
            "; the driver's library and kernel module differ: reboot, or in a container use the host's library"
        }
        999 => "; was the machine suspended, or does the container have no GPU? See nvidia-smi",
        _ => "",
    }
}

/// Why there is no GPU, or what failed on it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DriverError {
    #[error(
        "no NVIDIA driver on this machine: libcuda was not found; install one, or in a container start it with its GPUs"
    )]
    NoDriver,
    #[error(
        "the NVIDIA driver that was loaded is a stub, for linking only; take the folder stubs out of LD_LIBRARY_PATH"
    )]
    Stub,
    #[error("the NVIDIA driver finds no GPU; see nvidia-smi, and CUDA_VISIBLE_DEVICES if it is set")]
    NoDevice,
    #[error("there is no GPU {index}, only {count}; they are counted from 0")]
    NoSuchDevice { index: usize, count: usize },
    #[error("the NVIDIA driver is too old: it knows CUDA {has}, needs {needs}{remedy}", remedy = update(*needs))]
    TooOld { has: Version, needs: Version },
    #[error(
        "{name} has compute capability {}.{}, needs 8.0; use an A100, an RTX 30 or a later card", capability.0, capability.1
    )]
    OldCard { name: String, capability: (u32, u32) },
    #[error(
        "this program has no CUDA kernels: {0}; run tools/install_nvcc.sh, or install CUDA 12 or later, and build again"
    )]
    NoKernels(&'static str),
    #[error(
        "this program's kernels are for compute capability {compiled} only, {name} has {}.{}; build again without EFFNET_CUDA_ARCH",
        capability.0, capability.1
    )]
    OtherCard { name: String, capability: (u32, u32), compiled: String },
    #[error(
        "out of device memory: {} wanted, {} free; close what else uses the card, or train with a smaller --micro-batch",
        mebibytes(*wanted), mebibytes(*free)
    )]
    OutOfMemory { wanted: u64, free: u64 },
    #[error("out of the host's memory: {} wanted for a batch; take a smaller --micro-batch", mebibytes(*wanted))]
    OutOfHostMemory { wanted: u64 },
    #[error("EFFNET_CUDA_SYNC={0} has no meaning; use 1, or 0 like unset")]
    Synchronous(String),
    #[error(transparent)]
    Call(#[from] Failure),
    #[error("{kernel}: {failure}")]
    Launch { kernel: String, failure: Failure },
    #[error("there is no kernel {0} in this program")]
    UnknownKernel(String),
    #[error("{kernel} takes {takes} bytes of arguments, {given} were given")]
    ArgumentSize { kernel: String, takes: usize, given: usize },
    #[error("{kernel} is compiled for blocks of at most {most} threads, not {given}")]
    Threads { kernel: String, most: u32, given: u32 },
    #[error("{kernel} wants {wanted} bytes of shared memory a block, this card has {has}")]
    SharedMemory { kernel: String, wanted: usize, has: usize },
}

/// A version without a minor one is that of machine code, which a branch of drivers runs; others are of PTX.
fn update(needs: Version) -> String {
    let update = match branch_for(needs.0).filter(|_| needs.1 == 0) {
        Some(branch) => format!("; update it to {branch} or later"),
        None => "; update it".into(),
    };
    let older = if needs.0 > 12 { ", or build with CUDA 12: tools/install_nvcc.sh --cuda 12" } else { "" };
    update + older
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_driver_s_numbers() {
        assert_eq!(Version::from_number(12_040), Version(12, 4));
        assert_eq!(Version::from_number(13_000).to_string(), "13.0");
        assert!(Version(12, 9) < Version(13, 0));
    }

    #[test]
    fn errors_are_one_line_with_what_is_wrong_first() {
        let name = "Some Card".to_string();
        let kernel = "stem_forward_f16".to_string();
        let failure = |code| Failure {
            call: "cuStreamSynchronize",
            code,
            name: "CUDA_ERROR_ILLEGAL_ADDRESS".into(),
            text: " (an illegal memory access was encountered)".into(),
        };
        let with_remedy = [
            DriverError::NoDriver,
            DriverError::NoDevice,
            DriverError::NoSuchDevice { index: 3, count: 1 },
            DriverError::TooOld { has: Version(11, 8), needs: Version(13, 0) },
            DriverError::OldCard { name: name.clone(), capability: (7, 5) },
            DriverError::NoKernels("it was built with EFFNET_CUDA=skip"),
            DriverError::OtherCard { name, capability: (8, 6), compiled: "9.0".into() },
            DriverError::OutOfMemory { wanted: 3 << 30, free: 1 },
            DriverError::OutOfHostMemory { wanted: 1 << 20 },
            DriverError::Stub,
            DriverError::Call(failure(2)),
            DriverError::Call(failure(46)),
            DriverError::Call(failure(700)),
            DriverError::Call(failure(999)),
            DriverError::Synchronous("yes please".into()),
        ];
        for error in with_remedy {
            let text = error.to_string();
            let (what, remedy) = text.split_once("; ").expect(&text);
            assert!(what.len() > 15 && remedy.len() > 15 && !text.contains('\n'), "{text}");
        }
        let launch = DriverError::Launch { kernel, failure: failure(1) }.to_string();
        assert!(launch.starts_with("stem_forward_f16: cuStreamSynchronize: CUDA_ERROR_"), "{launch}");
        let old = DriverError::TooOld { has: Version(11, 8), needs: Version(13, 0) }.to_string();
        assert!(old.contains("11.8") && old.contains("13.0") && old.contains("580"), "{old}");
        assert!(old.ends_with("or build with CUDA 12: tools/install_nvcc.sh --cuda 12"), "{old}");
        let remedy = |needs| DriverError::TooOld { has: Version(11, 8), needs }.to_string();
        assert!(
            remedy(Version(12, 0)).ends_with("; update it to 525 or later"),
            "{}",
            remedy(Version(12, 0))
        );
        assert!(remedy(Version(12, 9)).ends_with("needs 12.9; update it"), "{}", remedy(Version(12, 9)));
    }
}
