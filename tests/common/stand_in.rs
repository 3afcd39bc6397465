//! Builds the stand-ins for the driver and for NCCL.
#![allow(dead_code)] // each test program uses a part

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `libcuda.cpp` to `libcuda.so` in a folder.
pub fn build(folder: &Path) -> PathBuf {
    compile(folder, "libcuda")
}

/// Compiles `libnccl.cpp` to `libnccl.so` in a folder. It uses the functions of libcuda that the process has loaded.
pub fn build_nccl(folder: &Path) -> PathBuf {
    compile(folder, "libnccl")
}

fn compile(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/driver/{name}.cpp"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC"])
        .arg(format!("-Wl,-soname,{name}.so"))
        .arg("-o")
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} is needed for this test: {error}"));
    assert!(built.success());
    library
}
