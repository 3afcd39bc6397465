//! What can go wrong with NCCL, each in one line of the form "what is wrong; what to do".

use std::fmt;

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// From the library's number: 22304 is 2.23.4. Before 2.9 it has one digit less: 2804 is 2.8.4.
    pub fn from_number(number: i32) -> Version {
        let number = number.max(0) as u32;
        let major = if number < 10_000 { 1_000 } else { 10_000 };
        Version(number / major, number % major / 100, number % 100)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{call}: {text}{last}; {}", hint(*code))]
pub struct Failure {
    /// The name of the function.
    pub call: &'static str,
    /// `ncclResult_t`.
    pub code: i32,
    /// The library's text for the code.
    pub text: String,
    /// Its text for its last error, in brackets after a space, or nothing.
    pub last: String,
}

/// The remedy for a failure.
fn hint(code: i32) -> &'static str {
    match code {
        // A failure of CUDA.
        1 => {
            "an older driver needs an older NCCL (nvidia-nccl-cu12 before driver 580); NCCL_DEBUG=WARN says more"
        }
        // A failure of the system: sockets, shared memory.
        2 => {
            "ranks must reach one another (NCCL_SOCKET_IFNAME names the network) and share /dev/shm; NCCL_DEBUG=WARN \
             says more"
        }
        5 => "two ranks may have been given one GPU; NCCL_DEBUG=WARN says more",
        6 => "another rank has ended or cannot be reached",
        _ => "NCCL_DEBUG=WARN says more",
    }
}

/// How to get the library.
const REMEDY: &str = "pip install nvidia-nccl-cu13 (nvidia-nccl-cu12 with a driver before 580), or let NCCL_LIBRARY \
                      name libnccl.so.2";

/// Why ranks cannot exchange gradients between GPUs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NcclError {
    #[error("ranks on GPUs need NCCL, which was not found: looked for {looked}; {REMEDY}")]
    NotFound { looked: String },
    #[error("cannot load NCCL: {why}; {REMEDY}")]
    Unloadable { why: String },
    #[error("{library} is not NCCL: it has no {function}; {REMEDY}")]
    NotNccl { library: String, function: &'static str },
    #[error("{library} is NCCL {has}, ranks need {needs} or later; {REMEDY}")]
    TooOld { library: String, has: Version, needs: Version },
    #[error(
        "NCCL {has} on rank {rank}, {needs} on rank 0; every machine must have the same, NCCL_LIBRARY says which is loaded"
    )]
    OtherVersion { rank: usize, has: Version, needs: Version },
    #[error(
        "ranks {ranks} were given the same GPU, {gpu}; start one rank a GPU, see CUDA_VISIBLE_DEVICES (to NCCL, the MIG instances of a card are one GPU)"
    )]
    SharedGpu { ranks: String, gpu: String },
    #[error(
        "NCCL {has} does not allow several ranks on one GPU; start one rank a GPU, or take NCCL {needs} or later"
    )]
    CannotShare { has: Version, needs: Version },
    #[error("NCCL takes rank {rank} for {got}, not {expected}; report this, with what NCCL_DEBUG=INFO says")]
    Misplaced { rank: usize, got: String, expected: String },
    #[error(transparent)]
    Call(#[from] Failure),
    /// The group has the reason.
    #[error("the exchange with the other ranks was stopped")]
    Stopped,
}

impl NcclError {
    /// Whether another rank is the probable cause.
    pub fn elsewhere(&self) -> bool {
        const REMOTE: i32 = 6;
        matches!(self, NcclError::Stopped | NcclError::Call(Failure { code: REMOTE, .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_the_library_writes_them() {
        assert_eq!(Version::from_number(23_203), Version(2, 32, 3));
        assert_eq!(Version::from_number(21_005).to_string(), "2.10.5");
        assert_eq!(Version::from_number(2_804), Version(2, 8, 4));
        assert!(Version(2, 8, 4) < Version(2, 16, 2));
    }

    #[test]
    fn error_is_one_line_with_the_problem_before_the_remedy() {
        let library = || "libnccl.so.2".to_string();
        let failure = |code| Failure {
            call: "ncclCommInitRank",
            code,
            text: "invalid usage".into(),
            last: " (Duplicate GPU detected)".into(),
        };
        let errors = [
            NcclError::NotFound { looked: "libnccl.so.2, libnccl.so".into() },
            NcclError::Unloadable { why: "libnccl.so.2: invalid ELF header".into() },
            NcclError::NotNccl { library: library(), function: "ncclAllReduce" },
            NcclError::TooOld { library: library(), has: Version(2, 8, 4), needs: Version(2, 16, 0) },
            NcclError::OtherVersion { rank: 3, has: Version(2, 18, 1), needs: Version(2, 32, 3) },
            NcclError::SharedGpu {
                ranks: "0 and 1 (on host a)".into(),
                gpu: "Some Card, 00000000:01:00.0".into(),
            },
            NcclError::CannotShare { has: Version(2, 27, 3), needs: Version(2, 30, 0) },
            NcclError::Misplaced { rank: 1, got: "one on GPU 0".into(), expected: "GPU 1".into() },
            NcclError::Call(failure(1)),
            NcclError::Call(failure(2)),
            NcclError::Call(failure(3)),
            NcclError::Call(failure(5)),
            NcclError::Call(failure(6)),
        ];
        for error in errors {
            let text = error.to_string();
            let (what, remedy) = text.split_once("; ").expect(&text);
            assert!(what.len() > 15 && remedy.len() > 10 && !text.contains('\n'), "{text}");
        }
        let text = NcclError::Call(failure(5)).to_string();
        assert!(
            text.starts_with("ncclCommInitRank: invalid usage (Duplicate GPU detected); two ranks"),
            "{text}"
        );
    }
}
