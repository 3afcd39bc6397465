//! The stand-in for the driver, loaded into this process, and its kernels.

use std::ffi::{CString, c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard};

use effnet::ops::cuda::arguments::Field;
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::embedded::Embedded;
use effnet::ops::cuda::gpu::{Address, Gpu, Launch};
use effnet::ops::cuda::nvidia::DriverError;
use effnet::ops::cuda::nvidia::device::Library;

use crate::common::stand_in;

/// A function of a library.
///
/// # Safety
/// The function must have this type.
pub unsafe fn function<F: Copy>(library: *mut c_void, name: &str) -> F {
    // SAFETY: the library is loaded, and the name ends with a zero.
    let symbol = unsafe { libc::dlsym(library, CString::new(name).unwrap().as_ptr()) };
    assert!(!symbol.is_null() && size_of::<F>() == size_of_val(&symbol), "{name}");
    // SAFETY: a function pointer of this type, as the caller guarantees.
    unsafe { std::mem::transmute_copy(&symbol) }
}

/// What happened since the machine was set up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Calls that failed.
    pub failures: c_int,
    /// Waits of the host.
    pub waits: c_int,
    /// Contexts that were made.
    pub contexts: c_int,
    /// Graphs of several streams that do not keep their priorities.
    pub lost_priorities: c_int,
    /// Copies from the host to the device.
    pub sends: c_int,
    /// Those of 4 KiB or more from the start of pinned memory.
    pub large: c_int,
}

/// The functions of the stand-in for tests. It is loaded under the name that the crate looks for. One test at a time.
pub struct Fake {
    pub machine: extern "C" fn(c_int, c_int, c_int, c_int, c_int, usize),
    pub eager_transfers: extern "C" fn(c_int),
    /// From here on every call answers so.
    pub fault: extern "C" fn(c_int),
    /// Another process takes so many bytes of the device.
    pub taken: extern "C" fn(usize),
    /// Whether memory of the host can be pinned.
    pub pinnable: extern "C" fn(c_int),
    pub report: extern "C" fn() -> Report,
    /// Graphs that were made and not freed.
    pub graphs: extern "C" fn() -> c_int,
    pub live: extern "C" fn() -> c_int,
}

/// Bytes of the device's memory.
pub const MEMORY: usize = 256 << 20;

static FAKE: LazyLock<Mutex<Fake>> = LazyLock::new(|| Mutex::new(Fake::load()));

impl Fake {
    fn load() -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let library = stand_in::build(folder.path(), "libcuda");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: the library's initialiser only reads a variable. It stays loaded and defines these functions.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
            assert!(!handle.is_null());
            Fake {
                machine: function(handle, "fake_machine"),
                eager_transfers: function(handle, "fake_eager_transfers"),
                fault: function(handle, "fake_fault"),
                taken: function(handle, "fake_taken"),
                pinnable: function(handle, "fake_pinnable"),
                report: function(handle, "fake_report"),
                graphs: function(handle, "fake_graphs"),
                live: function(handle, "fake_live"),
            }
        }
    }

    /// A machine with one GPU.
    pub fn card(version: i32, capability: (i32, i32)) -> MutexGuard<'static, Fake> {
        let fake = FAKE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (fake.machine)(version, 1, capability.0, capability.1, 0, MEMORY);
        (fake.eager_transfers)(0);
        fake
    }
}

/// The arguments of every kernel of the stand-in, which adds `value` to `count` floats.
#[repr(C)]
struct Add {
    to: Address,
    count: i32,
    value: f32,
}

const FIELDS: &[Field] = &[
    Field { name: "to", offset: 0, size: 8 },
    Field { name: "count", offset: 8, size: 4 },
    Field { name: "value", offset: 12, size: 4 },
];
pub const KERNELS: Embedded = Embedded {
    compiler: (12, 9),
    architectures: &[80, 90],
    ptx: Some(90),
    files: &[
        ("add", b"add_f32 64 16 0\nadd_wide_f32 64 24 0\nfault_f32 64 16 0\0"),
        ("other", b"stray_f32 64 16 1024\0"),
    ],
    kernels: &[("add_f32", 0), ("add_wide_f32", 0), ("fault_f32", 0), ("stray_f32", 1)],
};

/// The engine's kernels, which do nothing here.
pub static IDLE: LazyLock<Embedded> = LazyLock::new(|| {
    let mut kernels: Vec<_> = effnet_kernel_host::kernels().iter().map(|kernel| (kernel.name, 0)).collect();
    kernels.sort_unstable();
    Embedded { files: &[("all", b"*\0")], kernels: Vec::leak(kernels), ..KERNELS }
});

pub fn open() -> Result<Driver, DriverError> {
    Driver::with_kernels(Library::load()?, 0, &KERNELS)
}

pub fn launch(kernel: &str) -> Launch<'_> {
    Launch { kernel, grid: [2, 1, 1], threads: 64, shared: 0, fields: FIELDS, size: size_of::<Add>() }
}

pub fn add(gpu: &mut Driver, launch: &Launch, to: Address, value: f32) -> effnet::ops::Result {
    let arguments = Add { to, count: 4, value };
    // SAFETY: `FIELDS` describes the arguments, and `to` is the address of four floats.
    unsafe { gpu.launch(launch, (&raw const arguments).cast()) }
}

pub fn floats(gpu: &mut Driver, from: Address) -> [f32; 4] {
    let mut out = [0.0; 4];
    gpu.read(from, bytemuck::bytes_of_mut(&mut out)).unwrap();
    out
}
