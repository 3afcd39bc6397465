//! A thin layer over NVIDIA's driver: failed calls are values, and handles free their objects.
//!
//! The driver's library is loaded when a GPU is first used, so programs start without it. `cudarc` loads it and
//! declares its functions. It panics if the library or a function is missing. Therefore [`device`] checks in a fixed
//! order, and functions newer than CUDA 12.0 are called only after a check of the version.
//!
//! Handles call the driver when dropped, in the thread's current context: their owner makes the context current first.

pub(super) mod branches;
pub mod collectives;
pub mod device;
pub mod error;
pub mod handles;
pub mod kernels;
pub mod wait;

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};
pub use error::{DriverError, Failure, Version};

pub type Result<T = ()> = std::result::Result<T, DriverError>;

/// Calls a function of the driver, as in `call!(cuMemFree_v2(at))`. The error names the function. The call is unsafe.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::ops::cuda::nvidia::check(stringify!($function), cudarc::driver::sys::$function($($argument),*))
    };
}
pub(crate) use call;

/// A result code of the driver as a value.
pub(crate) fn check(call: &'static str, answer: CUresult) -> std::result::Result<(), Failure> {
    if answer == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    // SAFETY: each function writes one pointer, to a string that lives as long as the library.
    let (name, text) = unsafe {
        (said(|out| sys::cuGetErrorName(answer, out)), said(|out| sys::cuGetErrorString(answer, out)))
    };
    Err(Failure {
        call: call.trim_end_matches("_v2"),
        code: answer as u32,
        name: name.unwrap_or_else(|| format!("error {}", answer as u32)),
        text: text.map(|text| format!(" ({text})")).unwrap_or_default(),
    })
}

/// The string that a function returns.
///
/// # Safety
/// `ask` writes null or a pointer to a string that is never freed.
unsafe fn said(ask: impl FnOnce(*mut *const std::ffi::c_char) -> CUresult) -> Option<String> {
    let mut text = std::ptr::null();
    let answer = ask(&mut text);
    if answer != CUresult::CUDA_SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
