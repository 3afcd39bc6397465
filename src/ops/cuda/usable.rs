//! Whether a GPU of this machine can be used, which is asked before any time is spent on it.

use super::embedded::{EMBEDDED, Embedded};
use super::nvidia::device::{Library, fits, properties, supported};
use super::nvidia::{self, DriverError};
use crate::ops::Result;

/// The variable that makes a kernel's failure carry its name: 1, or 0 like unset.
const SYNCHRONOUS: &str = "EFFNET_CUDA_SYNC";

/// Number of GPUs of this machine.
///
/// # Errors
/// No driver, an unusable driver, or no GPU.
pub fn count() -> Result<usize> {
    Ok(Library::load()?.devices)
}

/// What [`Driver::open`](super::driver::Driver::open) refuses, without the time that a context takes.
///
/// # Errors
/// As for it.
pub fn check(index: usize) -> Result {
    usable(index)?;
    synchronous()?;
    Ok(())
}

pub(super) fn usable(index: usize) -> nvidia::Result<(Library, &'static Embedded)> {
    let library = Library::load()?;
    let properties = properties(library.device(index)?)?;
    // Check the card before this build: for a card that no build supports, that is the more useful error.
    supported(&properties)?;
    let embedded = EMBEDDED.as_ref().map_err(|reason| DriverError::NoKernels(reason))?;
    fits(&properties, library.version, embedded)?;
    Ok((library, embedded))
}

pub(super) fn synchronous() -> nvidia::Result<bool> {
    match std::env::var(SYNCHRONOUS).as_deref() {
        Err(std::env::VarError::NotPresent) | Ok("" | "0") => Ok(false),
        Ok("1") => Ok(true),
        Ok(other) => Err(DriverError::Synchronous(other.into())),
        Err(other) => Err(DriverError::Synchronous(other.to_string())),
    }
}
