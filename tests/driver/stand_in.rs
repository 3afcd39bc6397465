//! Builds the driver without a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `libcuda.cpp` as `libcuda.so` into a folder.
pub fn build(folder: &Path) -> PathBuf {
    let library = folder.join("libcuda.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/libcuda.cpp");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} is needed for this test: {error}"));
    assert!(built.success());
    library
}
