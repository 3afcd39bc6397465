//! The real NCCL, as far as it works without a GPU. These tests run if `NCCL_LIBRARY` names it, else they are ignored.

use std::fs;
use std::path::PathBuf;

use effnet::parallel::nccl::{Comm, Nccl, NcclError, OLDEST};

/// `tools/check_gpu.sh` reads the version, or the reason why there is none.
#[test]
#[cfg_attr(not(effnet_nccl), ignore = "needs NCCL, named by NCCL_LIBRARY")]
fn nccl_is_found_and_creates_identifiers() {
    let library = Nccl::load().unwrap_or_else(|error| panic!("{error}"));
    println!("\nNCCL {}", library.version());
    assert!(library.version() >= OLDEST, "{library:?}");
    let [one, other] = [(); 2].map(|()| library.unique_id().unwrap());
    assert!(one.0 != other.0 && one.0 != [0; 128]);
}

/// NVIDIA's packages have `nccl.h` beside the library.
#[test]
#[cfg_attr(not(effnet_nccl), ignore = "needs NCCL, named by NCCL_LIBRARY")]
fn numbers_are_those_of_the_header() {
    let library = PathBuf::from(std::env::var_os("NCCL_LIBRARY").expect("set, as in the build"));
    let header = library.parent().and_then(|lib| Some(lib.parent()?.join("include/nccl.h")));
    let Some(text) = header.and_then(|header| fs::read_to_string(header).ok()) else {
        println!("no nccl.h beside {}", library.display());
        return;
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let expected = [
        ("ncclUint8", "1,"),
        ("ncclUint32", "3,"),
        ("ncclFloat32", "7,"),
        ("ncclFloat64", "8,"),
        ("ncclSum", "0,"),
        ("ncclMax", "2,"),
        ("ncclAvg", "4,"),
        ("ncclInvalidUsage", "5,"),
        ("ncclRemoteError", "6,"),
        ("NCCL_UNIQUE_ID_BYTES", "128"),
    ];
    for (name, value) in expected {
        let found = words.windows(3).any(|w| w[0] == name && (w[1..] == ["=", value] || w[1] == value));
        assert!(found, "{name} is not {value}");
    }
}

#[test]
#[cfg_attr(any(not(effnet_nccl), effnet_gpu), ignore = "needs NCCL, named by NCCL_LIBRARY, and no GPU")]
fn joining_without_a_gpu_fails_in_one_line() {
    let library = Nccl::load().unwrap();
    let id = library.unique_id().unwrap();
    let error = Comm::join(library, id, 1, 0).unwrap_err();
    let NcclError::Call(failure) = &error else { panic!("{error}") };
    let text = error.to_string();
    assert!(failure.call == "ncclCommInitRank" && !text.contains('\n') && text.contains("; "), "{text}");
}
