//! Folders that several tests of a program share.
//!
//! Such a folder lies in a static, and Rust drops no static: without more, each test program would leave its runs behind,
//! gigabytes of them. So they are removed when the process exits.

use std::path::PathBuf;
use std::sync::{Mutex, Once};

use tempfile::TempDir;

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The folder, which the process removes when it exits.
pub fn until_exit(folder: TempDir) -> TempDir {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // SAFETY: `remove` is a function without arguments that does not unwind: it handles its errors.
        let refused = unsafe { libc::atexit(remove) };
        assert_eq!(refused, 0);
    });
    FOLDERS.lock().unwrap().push(folder.path().to_path_buf());
    folder
}

extern "C" fn remove() {
    let Ok(folders) = FOLDERS.lock() else { return };
    for folder in folders.iter() {
        if let Err(error) = std::fs::remove_dir_all(folder) {
            eprintln!("{} stays behind: {error}", folder.display());
        }
    }
}
