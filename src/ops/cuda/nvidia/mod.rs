//! NVIDIA's driver, a thin layer: calls that fail as values, handles that free what they name.
//!
//! The driver's library is looked for when a GPU is first asked for, so programs start without one. `cudarc` loads
//! it and declares its functions; it panics where the library or a function is missing, hence the order of
//! questions in [`device`], and only functions that CUDA 12.0 had are called unasked.
//!
//! Handles call the driver when dropped, in the context that is current on that thread: whoever owns them enters
//! the context first.

pub mod collectives;
pub mod device;
pub mod error;
pub mod handles;
pub mod kernels;

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};
pub use error::{DriverError, Failure, Version};

pub type Result<T = ()> = std::result::Result<T, DriverError>;

/// Calls a function of the driver, `call!(cuMemFree_v2(at))`; a failure names it. Unsafe as the function is.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::ops::cuda::nvidia::check(stringify!($function), cudarc::driver::sys::$function($($argument),*))
    };
}
pub(crate) use call;

/// A driver's answer as a value.
pub(crate) fn check(call: &'static str, answer: CUresult) -> std::result::Result<(), Failure> {
    if answer == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    // SAFETY: the functions only write one pointer each, to a string that lives as long as the library.
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

/// # Safety
/// `ask` leaves null or a string that is never freed.
unsafe fn said(ask: impl FnOnce(*mut *const std::ffi::c_char) -> CUresult) -> Option<String> {
    let mut text = std::ptr::null();
    let answer = ask(&mut text);
    if answer != CUresult::CUDA_SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
