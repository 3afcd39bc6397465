//! Memory and launches.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::{Count, Field, Kernel, Launch, Order};

#[repr(C)]
struct RawDevice {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RawField {
    name: *const u8,
    name_bytes: usize,
    offset: usize,
    size: usize,
}

#[repr(C)]
struct RawOptions {
    order: u32,
    late_copies: u32,
    seed: u64,
}

#[repr(C)]
struct RawLaunch {
    kernel: *const u8,
    kernel_bytes: usize,
    grid: [u32; 3],
    threads: u32,
    shared: usize,
    fields: *const RawField,
    field_count: usize,
    size: usize,
    arguments: *const c_void,
    options: RawOptions,
}

#[repr(C)]
struct TableField {
    name: *const c_char,
    offset: usize,
    size: usize,
}

#[repr(C)]
struct TableKernel {
    name: *const c_char,
    file: *const c_char,
    threads: u32,
    size: usize,
    fields: *const TableField,
    field_count: usize,
    run: *const c_void,
}

type Text = unsafe extern "C" fn(*mut c_void, *const u8, usize);

unsafe extern "C" {
    fn effnet_host_device_new() -> *mut RawDevice;
    fn effnet_host_device_free(device: *mut RawDevice);
    fn effnet_host_allocate(device: *mut RawDevice, bytes: usize) -> *mut c_void;
    fn effnet_host_guard(device: *mut RawDevice, begin: *mut c_void, bytes: usize);
    fn effnet_host_unguard(device: *mut RawDevice, begin: *mut c_void, bytes: usize);
    fn effnet_host_label(
        device: *mut RawDevice,
        begin: *mut c_void,
        bytes: usize,
        label: *const u8,
        label_bytes: usize,
    );
    fn effnet_host_describe(device: *mut RawDevice, address: *const c_void, to: Text, sink: *mut c_void);
    fn effnet_host_reset_counts(device: *mut RawDevice);
    fn effnet_host_counts(
        device: *mut RawDevice,
        to: Text,
        numbers: unsafe extern "C" fn(*mut c_void, u64, u64),
        sink: *mut c_void,
    );
    fn effnet_host_kernel_count() -> usize;
    fn effnet_host_kernel(number: usize) -> *const TableKernel;
    fn effnet_host_run(device: *mut RawDevice, launch: *const RawLaunch, to: Text, sink: *mut c_void)
    -> bool;
}

/// Appends to a `String`.
unsafe extern "C" fn append(sink: *mut c_void, text: *const u8, bytes: usize) {
    // SAFETY: callers pass a `String` of theirs as the sink, and the text's bytes.
    let (sink, text) = unsafe { (&mut *sink.cast::<String>(), std::slice::from_raw_parts(text, bytes)) };
    sink.push_str(&String::from_utf8_lossy(text));
}

/// All kernels of the program.
pub fn kernels() -> Vec<Kernel> {
    // SAFETY: the table's texts are literals of the kernels' sources.
    let text = |text: *const c_char| unsafe { CStr::from_ptr(text) }.to_str().expect("sources are UTF-8");
    // SAFETY: the table was filled before main began and does not change.
    let kernel = |number| unsafe { &*effnet_host_kernel(number) };
    // SAFETY: as above.
    let count = unsafe { effnet_host_kernel_count() };
    (0..count)
        .map(|number| {
            let k = kernel(number);
            // SAFETY: the table says how many fields lie there.
            let fields = unsafe { std::slice::from_raw_parts(k.fields, k.field_count) };
            let field = |f: &TableField| Field { name: text(f.name), offset: f.offset, size: f.size };
            Kernel {
                name: text(k.name),
                file: text(k.file),
                threads: k.threads,
                size: k.size,
                fields: fields.iter().map(field).collect(),
            }
        })
        .collect()
}

/// The memory of an imaginary GPU. Addresses are the host's own.
pub struct Device {
    raw: NonNull<RawDevice>,
    own: PhantomData<RawDevice>,
}

// SAFETY: a device is used by one thread at a time, since whatever changes it takes it mutably; the interpreter's
// state belongs to the thread that launches.
unsafe impl Send for Device {}

impl Device {
    /// A device without memory yet.
    ///
    /// # Errors
    /// If 64 GB of address space are not available.
    pub fn new() -> Result<Device, String> {
        // SAFETY: no precondition.
        let raw = unsafe { effnet_host_device_new() };
        let raw = NonNull::new(raw).ok_or("the host harness finds no address space")?;
        Ok(Device { raw, own: PhantomData })
    }

    /// Zeroed memory, aligned to 256 bytes, with guarded bytes before and after.
    ///
    /// # Errors
    /// If the memory is exhausted.
    pub fn allocate(&mut self, bytes: usize) -> Result<u64, String> {
        // SAFETY: the device lives.
        let at = unsafe { effnet_host_allocate(self.raw.as_ptr(), bytes) };
        if at.is_null() { Err(format!("no memory for {bytes} bytes")) } else { Ok(at as u64) }
    }

    /// Forbids a part of an allocation to kernels, and changes what lies there.
    ///
    /// # Safety
    /// The bytes belong to an allocation of this device.
    pub unsafe fn guard(&mut self, at: u64, bytes: usize) {
        // SAFETY: passed on.
        unsafe { effnet_host_guard(self.raw.as_ptr(), at as *mut c_void, bytes) }
    }

    /// Allows it again.
    ///
    /// # Safety
    /// As for [`Device::guard`].
    pub unsafe fn unguard(&mut self, at: u64, bytes: usize) {
        // SAFETY: passed on.
        unsafe { effnet_host_unguard(self.raw.as_ptr(), at as *mut c_void, bytes) }
    }

    /// Names a part of memory, for messages and counts. Names given before for the same bytes are forgotten.
    pub fn label(&mut self, at: u64, bytes: usize, label: &str) {
        // SAFETY: the address is only compared.
        unsafe {
            effnet_host_label(self.raw.as_ptr(), at as *mut c_void, bytes, label.as_ptr(), label.len());
        }
    }

    /// Describes an address in words.
    pub fn describe(&self, at: u64) -> String {
        let mut text = String::new();
        // SAFETY: the address is only compared; the sink is a `String`.
        unsafe {
            effnet_host_describe(self.raw.as_ptr(), at as *const c_void, append, (&raw mut text).cast());
        }
        text
    }

    /// Forgets all counts.
    pub fn reset_counts(&mut self) {
        // SAFETY: the device lives.
        unsafe { effnet_host_reset_counts(self.raw.as_ptr()) }
    }

    /// Bytes that launches loaded and stored since the last reset, by region, in the order of addresses, without regions
    /// that were not touched. Only the `race` build counts.
    pub fn counts(&self) -> Vec<Count> {
        struct Sink {
            label: String,
            counts: Vec<Count>,
        }
        unsafe extern "C" fn label(sink: *mut c_void, text: *const u8, bytes: usize) {
            // SAFETY: the sink is the `Sink` below, and `append` takes its string.
            unsafe { append((&raw mut (*sink.cast::<Sink>()).label).cast(), text, bytes) }
        }
        unsafe extern "C" fn numbers(sink: *mut c_void, loaded: u64, stored: u64) {
            // SAFETY: as above.
            let sink = unsafe { &mut *sink.cast::<Sink>() };
            sink.counts.push(Count { label: std::mem::take(&mut sink.label), loaded, stored });
        }
        let mut sink = Sink { label: String::new(), counts: Vec::new() };
        // SAFETY: the device lives, and so does the sink.
        unsafe { effnet_host_counts(self.raw.as_ptr(), label, numbers, (&raw mut sink).cast()) };
        sink.counts
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// Before the kernel runs: a launch that does not fit it. Afterwards: all detected mistakes.
    ///
    /// # Safety
    /// `arguments` points to `launch.size` bytes laid out as `launch.fields` says; the addresses in them are memory of
    /// this device that nobody else uses meanwhile. What a kernel does wrong with them is reported as far as the build
    /// can see it; far outside it may hit other memory of the program.
    pub unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result<(), String> {
        let field = |f: &Field| RawField {
            name: f.name.as_ptr(),
            name_bytes: f.name.len(),
            offset: f.offset,
            size: f.size,
        };
        let fields: Vec<RawField> = launch.fields.iter().map(field).collect();
        let (order, seed) = match launch.options.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let raw = RawLaunch {
            kernel: launch.kernel.as_ptr(),
            kernel_bytes: launch.kernel.len(),
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            fields: fields.as_ptr(),
            field_count: fields.len(),
            size: launch.size,
            arguments,
            options: RawOptions { order, late_copies: launch.options.late_copies.into(), seed },
        };
        let mut text = String::new();
        // SAFETY: everything that `raw` points to lives until the call returns; the rest is the caller's promise.
        let ran = unsafe { effnet_host_run(self.raw.as_ptr(), &raw, append, (&raw mut text).cast()) };
        if ran { Ok(()) } else { Err(text) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: made by `effnet_host_device_new`, freed once.
        unsafe { effnet_host_device_free(self.raw.as_ptr()) }
    }
}
