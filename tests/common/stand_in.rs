//! Shared libraries for tests, compiled from C++: the stand-ins for NVIDIA's driver and for NCCL.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `tests/driver/NAME.cpp` to `NAME.so` in a folder. `libnccl` uses the functions of the `libcuda` that the
/// process has loaded.
pub fn build(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/driver/{name}.cpp")), &library);
    library
}

pub fn compile(source: &Path, library: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let name = library.file_name().expect("a file").display();
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC"])
        .arg(format!("-Wl,-soname,{name}"))
        .arg("-o")
        .arg(library)
        .arg(source)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} is needed for this test: {error}"));
    assert!(built.success());
}
