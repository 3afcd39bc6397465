//! Shared libraries for tests, compiled from C++: the stand-ins for NVIDIA's driver and for NCCL.
//!
//! A test program whose loader finds the stand-in in place of NVIDIA's driver gives it the kernels of the host harness. So
//! its tests `on_a_gpu` run without a GPU as well, through the same driver's calls, and with the faults of `FAKE_FAULTS`.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use effnet::ops::cuda::embedded::Embedded;
use effnet_kernel_host::{Device, Kernel, Launch, Options};

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

/// The kernels that a card of this process has, if the stand-in is its driver.
pub static KERNELS: LazyLock<Option<Embedded>> = LazyLock::new(|| {
    // SAFETY: loading the driver's library, the real one or the stand-in, only runs its initialisers.
    let library = unsafe { libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: the library is loaded and stays so.
    let register = unsafe { libc::dlsym(library, c"fake_kernels".as_ptr()) };
    if register.is_null() {
        return None;
    }
    // SAFETY: only the stand-in has a function of this name, and `kernels.h` declares it so.
    let register: extern "C" fn(Run) = unsafe { std::mem::transmute(register) };
    register(run);
    let files = images();
    let kernels = kernels(files);
    Some(Embedded { compiler: (12, 0), architectures: &[80, 90], ptx: Some(90), files, kernels })
});

type Run = extern "C" fn(*const c_char, *const [u32; 3], u32, usize, *const c_void) -> bool;

/// The kernels of each source as the stand-in reads them: name, threads, bytes of arguments and of static shared memory.
fn images() -> &'static [(&'static str, &'static [u8])] {
    let mut images: BTreeMap<&'static str, String> = BTreeMap::new();
    for Kernel { name, file, threads, size, .. } in effnet_kernel_host::kernels() {
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).expect("a source's name");
        *images.entry(stem).or_default() += &format!("{name} {threads} {size} 0\n");
    }
    let image = |(stem, text): (_, String)| (stem, &*Vec::leak((text + "\0").into_bytes()));
    Vec::leak(images.into_iter().map(image).collect())
}

/// Each kernel and the number of its source in `files`, by name.
fn kernels(files: &[(&'static str, &'static [u8])]) -> &'static [(&'static str, usize)] {
    let mut kernels = Vec::new();
    for Kernel { name, file, .. } in effnet_kernel_host::kernels() {
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str());
        let number = files.iter().position(|(own, _)| Some(*own) == stem).expect("the image of its source");
        kernels.push((name, number));
    }
    kernels.sort_unstable();
    Vec::leak(kernels)
}

/// Runs a kernel to its end on the harness. False after a mistake, which is printed.
extern "C" fn run(
    name: *const c_char,
    grid: *const [u32; 3],
    threads: u32,
    shared: usize,
    arguments: *const c_void,
) -> bool {
    static TABLE: LazyLock<Vec<Kernel>> = LazyLock::new(effnet_kernel_host::kernels);
    static DEVICE: LazyLock<Mutex<Device>> =
        LazyLock::new(|| Mutex::new(Device::new().expect("address space")));
    // SAFETY: the stand-in passes a name that ends with a zero, and three numbers.
    let (name, grid) = unsafe { (CStr::from_ptr(name).to_str().expect("a kernel's name"), *grid) };
    let kernel = TABLE.iter().find(|kernel| kernel.name == name).expect("it came from this table");
    let (fields, size) = (&kernel.fields[..], kernel.size);
    let launch = Launch { kernel: name, grid, threads, shared, fields, size, options: Options::default() };
    // SAFETY: the stand-in has compared the size of the arguments, which are those of a launch that the engine made.
    match unsafe { DEVICE.lock().expect("no panic").launch(&launch, arguments) } {
        Ok(()) => true,
        Err(mistake) => {
            eprintln!("{mistake}");
            false
        }
    }
}
