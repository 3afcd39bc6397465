//! Finds the library and its functions.

use std::env;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use super::{Failure, NcclError, Version, packages};

/// The oldest version that is accepted. Collectives in CUDA graphs came with 2.9, averages with 2.10, the text of the
/// last error with 2.13. 2.16 is the first version built for CUDA 12, whose drivers this program needs, and so the first
/// with code for all GPUs that it runs on.
pub const OLDEST: Version = Version(2, 16, 0);

/// The oldest version that can let ranks share a GPU.
pub const SHARING: Version = Version(2, 30, 0);

/// Whether the user has told NCCL to do so.
pub fn ranks_may_share_gpus() -> bool {
    env::var_os("NCCL_MULTI_RANK_GPU_ENABLE").is_some_and(|value| value == "1")
}

/// Names under which loaders know it. Packages without development files have only the first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Identifies a group of ranks; rank 0 creates it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;
pub(super) type Answer = c_int;
pub(super) const SUCCESS: Answer = 0;

/// Declares the functions of a library, which are looked up by name.
macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $answer:ty;)*) => {
        /// The functions that this binding uses, as `nccl.h` declares them.
        #[derive(Clone, Copy)]
        pub(super) struct Functions {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }

        impl Functions {
            /// # Safety
            /// The library's functions with these names must be those of NCCL.
            unsafe fn of(library: &libloading::Library) -> Result<Functions, &'static str> {
                Ok(Functions {
                    // SAFETY: the caller guarantees NCCL, which keeps the signatures within major version 2.
                    $($field: unsafe { *library.get($name.as_bytes()).map_err(|_| $name)? },)*
                })
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": fn(*mut c_int) -> Answer;
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> Answer;
    comm_init_rank = "ncclCommInitRank": fn(*mut Handle, c_int, UniqueId, c_int) -> Answer;
    comm_destroy = "ncclCommDestroy": fn(Handle) -> Answer;
    comm_abort = "ncclCommAbort": fn(Handle) -> Answer;
    comm_get_async_error = "ncclCommGetAsyncError": fn(Handle, *mut Answer) -> Answer;
    comm_cu_device = "ncclCommCuDevice": fn(Handle, *mut c_int) -> Answer;
    comm_user_rank = "ncclCommUserRank": fn(Handle, *mut c_int) -> Answer;
    all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Answer;
    all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> Answer;
    group_start = "ncclGroupStart": fn() -> Answer;
    group_end = "ncclGroupEnd": fn() -> Answer;
    get_error_string = "ncclGetErrorString": fn(Answer) -> *const c_char;
    get_last_error = "ncclGetLastError": fn(Handle) -> *const c_char;
}

/// The loaded library. It is never unloaded, since it has threads of its own.
#[derive(Clone, Copy)]
pub struct Nccl {
    pub(super) functions: Functions,
    version: Version,
}

impl Nccl {
    /// Loads the library that `NCCL_LIBRARY` names; without that variable the loader's, or else the one that pip has
    /// installed, see [`packages`](super::packages).
    ///
    /// # Errors
    /// [`NcclError`] if none is found or it cannot be used.
    pub fn load() -> Result<Nccl, NcclError> {
        let named = env::var_os("NCCL_LIBRARY").filter(|name| !name.is_empty());
        Nccl::find(named, || packages::folders(&|name| env::var_os(name), Path::new("/")))
    }

    fn find(named: Option<OsString>, folders: impl FnOnce() -> Vec<PathBuf>) -> Result<Nccl, NcclError> {
        if let Some(path) = named {
            return Nccl::open(Path::new(&path));
        }
        // SAFETY: loading runs the library's initialisers, which only read the environment.
        let loaders =
            NAMES.iter().find_map(|name| Some((*name, unsafe { libloading::Library::new(*name) }.ok()?)));
        if let Some((name, library)) = loaders {
            return Nccl::of(library, name.into());
        }
        let folders = folders();
        let files = folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name)));
        match files.into_iter().find(|file| file.exists()) {
            Some(file) => Nccl::open(&file),
            None => {
                let mut looked = NAMES.join(", ");
                for folder in &folders {
                    looked += &format!(", {}", folder.display());
                }
                if folders.is_empty() {
                    looked += ", Python's packages (there are none of NVIDIA)";
                }
                Err(NcclError::NotFound { looked })
            }
        }
    }

    fn open(path: &Path) -> Result<Nccl, NcclError> {
        // SAFETY: as in `find`.
        let loaded = unsafe { libloading::Library::new(path) };
        let library = loaded.map_err(|error| {
            let why = loader_message(&error).replace('\n', " ");
            let name = path.display().to_string();
            NcclError::Unloadable { why: if why.contains(&name) { why } else { format!("{name}: {why}") } }
        })?;
        Nccl::of(library, path.display().to_string())
    }

    fn of(loaded: libloading::Library, library: String) -> Result<Nccl, NcclError> {
        // SAFETY: a library of this name with all of these functions is NCCL.
        let functions = unsafe { Functions::of(&loaded) };
        std::mem::forget(loaded);
        let functions =
            functions.map_err(|function| NcclError::NotNccl { library: library.clone(), function })?;
        let mut number = 0;
        let unknown = Nccl { functions, version: Version(0, 0, 0) };
        // SAFETY: writes one number.
        unknown.check("ncclGetVersion", unsafe { (functions.get_version)(&mut number) })?;
        let version = Version::from_number(number);
        if version < OLDEST {
            return Err(NcclError::TooOld { library, has: version, needs: OLDEST });
        }
        Ok(Nccl { functions, version })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// A new identifier for a group of ranks. Rank 0 creates it, and must keep running. Needs no GPU.
    ///
    /// # Errors
    /// If there is no network.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: writes the bytes of `id`.
        self.check("ncclGetUniqueId", unsafe { (self.functions.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// The result of a call.
    pub(super) fn check(&self, call: &'static str, code: Answer) -> Result<(), NcclError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: the functions return null or a string that lives as long as the library.
        let (text, last) = unsafe {
            (
                text_of((self.functions.get_error_string)(code)),
                text_of((self.functions.get_last_error)(std::ptr::null_mut())),
            )
        };
        // NCCL appends a remedy of its own; `hint` has it.
        let text = text.map(|text| text.split(" (run with").next().unwrap_or_default().to_string());
        let text = text.unwrap_or_else(|| format!("error {code}"));
        let last = last.map(|last| format!(" ({last})")).unwrap_or_default();
        Err(Failure { call, code, text, last }.into())
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "NCCL {}", self.version)
    }
}

/// The message of the system's loader.
fn loader_message(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| source.to_string())
}

/// # Safety
/// `text` must be null or a string that is never freed.
unsafe fn text_of(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: guaranteed by the caller.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim().replace('\n', " ");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_file_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = Nccl::find(Some(folder.path().join("none.so").into()), Vec::new).unwrap_err();
        assert!(matches!(&error, NcclError::Unloadable { why } if why.contains("none.so")), "{error}");
        // A file that is no library; then another library.
        let file = folder.path().join("libnccl.so.2");
        std::fs::write(&file, "no library").unwrap();
        let error = Nccl::open(&file).unwrap_err();
        assert!(matches!(&error, NcclError::Unloadable { why } if why.contains("libnccl.so.2")), "{error}");
        let error = Nccl::open(Path::new("libm.so.6")).unwrap_err();
        assert!(matches!(error, NcclError::NotNccl { function: "ncclGetVersion", .. }), "{error}");
    }

    /// If the machine itself has NCCL, that is found first.
    #[test]
    fn folders_of_packages_are_searched_and_named() {
        let site = tempfile::tempdir().unwrap();
        let find = || Nccl::find(None, || vec![site.path().to_owned()]);
        match find() {
            Ok(library) => assert!(library.version() >= OLDEST),
            Err(error) => {
                let name = site.path().to_str().unwrap();
                assert!(matches!(&error, NcclError::NotFound { looked } if looked.contains(name)), "{error}");
            }
        }
        if let Err(error) = Nccl::find(None, Vec::new) {
            assert!(error.to_string().contains("there are none of NVIDIA"), "{error}");
            std::fs::write(site.path().join("libnccl.so.2"), "no library").unwrap();
            let error = find().unwrap_err();
            assert!(matches!(&error, NcclError::Unloadable { why } if why.contains("libnccl")), "{error}");
        }
    }
}
