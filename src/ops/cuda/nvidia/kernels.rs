//! The embedded kernels on a card: found by name, loaded at first use, checked before the first launch.
//!
//! The build lists which file has which kernel. So files are loaded only when needed, which saves time on cards for
//! which the driver has to compile, and no lookup fails, which tools that watch the driver's calls would report.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{CUfunction, CUfunction_attribute as Attribute, CUmodule};

use super::handles::Stream;
use super::wait::notice;
use super::{DriverError, Result, Version, call};
use crate::ops::cuda::embedded::{Embedded, Image};
use crate::ops::cuda::gpu::{Launch, Properties};

/// The oldest driver that can tell the size of a kernel's arguments.
const KNOWS_ARGUMENTS: Version = Version(12, 4);

#[derive(Debug)]
pub struct Kernels {
    embedded: Embedded,
    modules: Vec<Option<Module>>,
    functions: HashMap<String, Function>,
    driver: Version,
    /// Maximum bytes of shared memory of a block on this card.
    shared_per_block: usize,
    /// The driver compiles the kernels, and nobody was told so yet.
    untold: bool,
}

/// Loaded code.
#[derive(Debug)]
struct Module(CUmodule);

#[derive(Clone, Copy, Debug)]
struct Function {
    raw: CUfunction,
    /// Bytes of its arguments, if the driver can tell.
    arguments: Option<usize>,
    /// Maximum threads of a block.
    threads: u32,
    /// Bytes of static shared memory, and the current maximum of dynamic shared memory.
    own_shared: usize,
    dynamic_shared: usize,
}

// SAFETY: the driver's objects may be used from any thread that has entered their context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}

impl Kernels {
    pub fn new(embedded: &Embedded, driver: Version, card: &Properties) -> Kernels {
        let (major, minor) = card.capability;
        Kernels {
            embedded: *embedded,
            modules: embedded.files.iter().map(|_| None).collect(),
            functions: HashMap::new(),
            driver,
            shared_per_block: card.shared_per_block,
            untold: matches!(embedded.image_for(10 * major + minor), Some(Image::Ptx(_))),
        }
    }

    /// Enqueues a kernel.
    ///
    /// # Errors
    /// An unknown kernel, or a launch that does not fit the kernel. Then nothing is launched.
    ///
    /// # Safety
    /// [`super::super::gpu::Gpu::launch`]'s.
    pub unsafe fn launch(&mut self, stream: &Stream, launch: &Launch, arguments: *const c_void) -> Result {
        let function = self.checked(launch)?;
        let [x, y, z] = launch.grid;
        let mut parameters = [arguments.cast_mut()];
        // SAFETY: the function is loaded. It takes one argument, whose size was checked and which the driver copies
        // before it returns. The caller promises the rest.
        let launched = unsafe {
            call!(cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared as u32,
                stream.raw(),
                parameters.as_mut_ptr(),
                null_mut(),
            ))
        };
        launched.map_err(|failure| DriverError::Launch { kernel: launch.kernel.into(), failure })
    }

    /// The kernel of a launch, if the launch fits it. Allocates only at the kernel's first launch.
    fn checked(&mut self, launch: &Launch) -> Result<CUfunction> {
        if !self.functions.contains_key(launch.kernel) {
            let function = self.find(launch.kernel)?;
            self.functions.insert(launch.kernel.into(), function);
        }
        let Some(function) = self.functions.get_mut(launch.kernel) else {
            return Err(DriverError::UnknownKernel(launch.kernel.into()));
        };
        let kernel = || launch.kernel.to_string();
        if let Some(takes) = function.arguments.filter(|takes| *takes != launch.size) {
            return Err(DriverError::ArgumentSize { kernel: kernel(), takes, given: launch.size });
        }
        if launch.threads > function.threads {
            return Err(DriverError::Threads {
                kernel: kernel(),
                most: function.threads,
                given: launch.threads,
            });
        }
        if launch.shared > function.dynamic_shared {
            let wanted = launch.shared + function.own_shared;
            let has = self.shared_per_block;
            if wanted > has {
                return Err(DriverError::SharedMemory { kernel: kernel(), wanted, has });
            }
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { call!(cuFuncSetAttribute(function.raw, attribute, launch.shared as i32)) }
                .map_err(|failure| DriverError::Launch { kernel: kernel(), failure })?;
            function.dynamic_shared = launch.shared;
        }
        Ok(function.raw)
    }

    /// Looks a kernel up in its file.
    fn find(&mut self, kernel: &str) -> Result<Function> {
        let unknown = || DriverError::UnknownKernel(kernel.into());
        let file = self.embedded.file_of(kernel).ok_or_else(unknown)?;
        let name = CString::new(kernel).map_err(|_| unknown())?;
        if std::mem::take(&mut self.untold) {
            notice("the driver compiles the kernels for this card, which takes minutes the first time");
        }
        let module = match &mut self.modules[file] {
            Some(module) => module,
            none => none.insert(Module::load(self.embedded.files[file].1)?),
        };
        let mut raw = null_mut();
        // SAFETY: writes one pointer; the module is loaded, and the name ends with a zero byte.
        unsafe { call!(cuModuleGetFunction(&mut raw, module.0, name.as_ptr())) }
            .map_err(|failure| DriverError::Launch { kernel: kernel.into(), failure })?;
        Function::describe(raw, kernel, self.driver)
    }
}

impl Function {
    fn describe(raw: CUfunction, kernel: &str, driver: Version) -> Result<Function> {
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes one number; the function is loaded.
            unsafe { call!(cuFuncGetAttribute(&mut value, attribute, raw)) }?;
            Ok::<_, DriverError>(value.max(0) as usize)
        };
        let arguments = if driver >= KNOWS_ARGUMENTS { Some(size_of_argument(raw, kernel)?) } else { None };
        Ok(Function {
            raw,
            arguments,
            threads: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32,
            own_shared: attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            dynamic_shared: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?,
        })
    }
}

/// Bytes of the one argument that a kernel takes, as the macro `KERNEL` declares it. The driver must know
/// [`KNOWS_ARGUMENTS`].
fn size_of_argument(raw: CUfunction, kernel: &str) -> Result<usize> {
    let (mut offset, mut size) = (0, 0);
    // SAFETY: writes two numbers; the function is loaded.
    unsafe { call!(cuFuncGetParamInfo(raw, 0, &mut offset, &mut size)) }
        .map_err(|failure| DriverError::Launch { kernel: kernel.into(), failure })?;
    Ok(size)
}

impl Module {
    /// Loads a fatbin: the driver chooses the machine code for the card, or compiles the PTX.
    fn load(image: &'static [u8]) -> Result<Module> {
        let mut raw = null_mut();
        // SAFETY: writes one pointer. The image is a complete fatbin, which contains its length.
        unsafe { call!(cuModuleLoadData(&mut raw, image.as_ptr().cast::<c_void>())) }?;
        Ok(Module(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`. Its owner has waited for its kernels.
        let _ = unsafe { call!(cuModuleUnload(self.0)) };
    }
}
