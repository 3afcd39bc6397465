//! Finding a card that can run the embedded kernels, and its context.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute as Attribute, CUresult};

use super::{DriverError, Failure, Result, Version, call};
use crate::ops::cuda::embedded::Embedded;
use crate::ops::cuda::gpu::Properties;

/// The oldest driver that has all functions.
const OLDEST_DRIVER: Version = Version(12, 0);
/// The oldest cards that have what kernels need: asynchronous copies and bfloat16.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// The driver, loaded and initialised.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    pub version: Version,
    pub devices: usize,
}

impl Library {
    /// # Errors
    /// No driver, a driver older than CUDA 12 or without a GPU, or one that fails to start.
    pub fn load() -> Result<Library> {
        // SAFETY: loading the driver's library only runs its initialisers.
        if !unsafe { sys::is_culib_present() } {
            return Err(DriverError::NoDriver);
        }
        let mut number = 0;
        // SAFETY: writes one number; may be called first.
        unsafe { call!(cuDriverGetVersion(&mut number)) }.map_err(stub)?;
        let version = Version::from_number(number);
        if version < OLDEST_DRIVER {
            return Err(DriverError::TooOld { has: version, needs: OLDEST_DRIVER });
        }
        // SAFETY: takes no pointer, and may be called any number of times.
        match unsafe { call!(cuInit(0)) } {
            Err(failure) if failure.code == CUresult::CUDA_ERROR_NO_DEVICE as u32 => {
                return Err(DriverError::NoDevice);
            }
            answer => answer.map_err(stub)?,
        }
        let mut count = 0;
        // SAFETY: writes one number.
        unsafe { call!(cuDeviceGetCount(&mut count)) }?;
        match usize::try_from(count) {
            Ok(devices) if devices > 0 => Ok(Library { version, devices }),
            _ => Err(DriverError::NoDevice),
        }
    }

    /// A card by its number, from 0.
    pub fn device(&self, index: usize) -> Result<CUdevice> {
        if index >= self.devices {
            return Err(DriverError::NoSuchDevice { index, count: self.devices });
        }
        let mut device = 0;
        // SAFETY: writes one number.
        unsafe { call!(cuDeviceGet(&mut device, index as i32)) }?;
        Ok(device)
    }
}

/// Toolkits contain a library to link against on machines without a driver. Each of its functions fails in this way.
fn stub(failure: Failure) -> DriverError {
    match failure.code == CUresult::CUDA_ERROR_STUB_LIBRARY as u32 {
        true => DriverError::Stub,
        false => failure.into(),
    }
}

/// Properties of a card.
pub fn properties(device: CUdevice) -> Result<Properties> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: writes a string that ends within the buffer; its last byte stays zero.
    unsafe { call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device)) }?;
    let mut memory = 0;
    // SAFETY: writes one number.
    unsafe { call!(cuDeviceTotalMem_v2(&mut memory, device)) }?;
    // They only decide how to compute, not what comes out, so a driver need not tell.
    let known = |of| attribute(device, of).map_or(0, u64::from);
    Ok(Properties {
        // SAFETY: the last byte is still zero.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        capability: (
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        clock: 1000 * known(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        // Two transfers a cycle; kHz and bits.
        memory_speed: 2000
            * known(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            * known(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
            / 8,
        shared_per_block: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        memory: memory as u64,
    })
}

fn attribute(device: CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: writes one number.
    unsafe { call!(cuDeviceGetAttribute(&mut value, attribute, device)) }?;
    Ok(value.max(0) as u32)
}

/// Whether a card has what kernels need, independent of this build.
///
/// # Errors
/// The card is too old.
pub fn supported(card: &Properties) -> Result {
    let Properties { name, capability, .. } = card;
    if *capability < OLDEST_CAPABILITY {
        return Err(DriverError::OldCard { name: name.clone(), capability: *capability });
    }
    Ok(())
}

/// Whether a card with this driver can run the kernels.
///
/// # Errors
/// The card is too old, the kernels were compiled for other cards, or the driver is older than their compiler.
pub fn fits(card: &Properties, driver: Version, kernels: &Embedded) -> Result {
    supported(card)?;
    let Properties { name, capability, .. } = card;
    let name = name.clone();
    let capability = *capability;
    let number = capability.0 * 10 + capability.1;
    if !kernels.serves(number) {
        let compiled: Vec<String> =
            kernels.architectures.iter().map(|a| format!("{}.{}", a / 10, a % 10)).collect();
        return Err(DriverError::OtherCard { name, capability, compiled: compiled.join(", ") });
    }
    // Machine code runs under every driver of its compiler's major version. PTX is compiled by the driver, so the
    // driver must be as new as the compiler.
    let compiler = Version(kernels.compiler.0, kernels.compiler.1);
    let needs = if kernels.has_machine_code(number) { Version(compiler.0, 0) } else { compiler };
    if driver < needs {
        return Err(DriverError::TooOld { has: driver, needs });
    }
    Ok(())
}

/// A card's primary context, shared with other libraries in the process.
#[derive(Debug)]
pub struct DriverContext {
    device: CUdevice,
    raw: CUcontext,
}

// SAFETY: the driver's contexts may be used from any thread.
unsafe impl Send for DriverContext {}
// SAFETY: as above, also at the same time.
unsafe impl Sync for DriverContext {}

impl DriverContext {
    pub fn of(device: CUdevice) -> Result<DriverContext> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { call!(cuDevicePrimaryCtxRetain(&mut raw, device)) }?;
        Ok(DriverContext { device, raw })
    }

    /// The card's number.
    pub fn index(&self) -> usize {
        self.device as usize
    }

    /// The card's PCI address such as 00000000:01:00.0, the same for all processes.
    pub fn place(&self) -> Result<String> {
        let mut text: [c_char; 32] = [0; 32];
        // SAFETY: writes a string that ends within the buffer; its last byte stays zero.
        unsafe { call!(cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32 - 1, self.device)) }?;
        // SAFETY: the last byte is still zero.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Makes it the calling thread's context. This takes some ten nanoseconds, so it is done before every call.
    pub fn enter(&self) -> Result {
        // SAFETY: the context was retained and is not released yet.
        unsafe { call!(cuCtxSetCurrent(self.raw)) }?;
        Ok(())
    }
}

impl Drop for DriverContext {
    fn drop(&mut self) {
        // SAFETY: retained by `of`. After a failure nothing can be done.
        let _ = unsafe { call!(cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(capability: (u32, u32)) -> Properties {
        Properties {
            name: "Some Card".into(),
            capability,
            multiprocessors: 68,
            clock: 1_710_000_000,
            memory_speed: 760_320_000_000,
            shared_per_block: 99 << 10,
            memory: 10 << 30,
        }
    }

    #[test]
    fn fits_compares_card_and_driver_with_the_build() {
        let all = Embedded {
            compiler: (13, 1),
            architectures: &[80, 86, 90],
            ptx: Some(90),
            files: &[],
            kernels: &[],
        };
        let (old, new) = (Version(13, 0), Version(13, 1));
        assert_eq!(fits(&card((8, 0)), old, &all), Ok(()));
        assert_eq!(fits(&card((8, 9)), old, &all), Ok(()));
        let error = fits(&card((7, 5)), new, &all).unwrap_err();
        assert_eq!(error, DriverError::OldCard { name: "Some Card".into(), capability: (7, 5) });
        let error = fits(&card((8, 0)), Version(12, 9), &all).unwrap_err();
        assert_eq!(error, DriverError::TooOld { has: Version(12, 9), needs: Version(13, 0) });
        // Only PTX fits this card, and this driver is older than the compiler that made it.
        assert_eq!(fits(&card((12, 0)), new, &all), Ok(()));
        let error = fits(&card((12, 0)), old, &all).unwrap_err();
        assert_eq!(error, DriverError::TooOld { has: old, needs: new });
        let one = Embedded { compiler: (13, 0), architectures: &[90], ptx: None, files: &[], kernels: &[] };
        let error = fits(&card((8, 6)), new, &one).unwrap_err();
        assert!(matches!(&error, DriverError::OtherCard { compiled, .. } if compiled == "9.0"), "{error}");
    }
}
