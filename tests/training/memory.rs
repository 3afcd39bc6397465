//! Training from a set larger than the memory that the process may use: the images are read through shared maps,
//! so what training needs does not grow with the set.
#![cfg(target_os = "linux")]

use std::os::unix::process::CommandExt;

use crate::common::data;
use crate::common::programs::{program, run};

/// Private writable memory that the run may use: B0's weights, gradients, optimiser and a copy while saving take
/// about 200 MB, activations at this size little.
const LIMIT: u64 = 320 << 20;

#[test]
fn run_trains_from_more_than_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("data");
    // Images of 512 × 512 in shards of 32 MiB.
    let summary = data::pack_grey(&set, 1400, 5, 512, 32 << 20);
    assert!(summary.train.bytes > LIMIT, "{} bytes", summary.train.bytes);

    for order in [&[][..], &["--shuffle", "blocks", "--balance"]] {
        let mut command = program("effnet-train");
        command.args(["--resolution", "32", "--batch-size", "20", "--epochs", "1", "--warmup-epochs", "0.1"]);
        command.args(["--threads", "1", "--loader-threads", "1", "--force", "--out", "run"]);
        command.args(order).arg("--data").arg(&set).current_dir(dir.path());
        // SAFETY: between fork and exec, only the system call that sets the child's own limit.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
                match libc::setrlimit(libc::RLIMIT_DATA, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let out = run(command).good().out;
        assert!(out.contains("finished after step 70 of 70"), "{out}");
        let said = "balance: an epoch draws each of 5 classes 280 times";
        assert_eq!(out.contains(said), !order.is_empty(), "{out}");
    }
}
