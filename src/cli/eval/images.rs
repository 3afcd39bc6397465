//! From the arguments to a list of image files: files as they are given, folders with all images in them.

use std::path::{Path, PathBuf};

use super::EvalError;
use crate::data::pack::{images_below, skipped};
use crate::names::shown_path;
use crate::train::TrainError;

/// The images to classify, in order.
pub struct Listed {
    pub files: Vec<PathBuf>,
    /// Of each file, its path within the folder that was given, or its own name.
    pub names: Vec<PathBuf>,
    /// Lines about what was left out of the folders.
    pub notes: Vec<String>,
}

/// Lists the arguments in their order, and the images of a folder by the bytes of their paths. A file is taken whatever
/// its name; in folders the names tell what is an image.
///
/// # Errors
/// A folder that cannot be read, or that has no image in it.
pub fn list(arguments: &[PathBuf]) -> Result<Listed, EvalError> {
    let mut listed = Listed { files: Vec::new(), names: Vec::new(), notes: Vec::new() };
    for argument in arguments {
        if argument.is_dir() {
            listed.folder(argument)?;
        } else {
            listed.names.push(argument.file_name().unwrap_or_default().into());
            listed.files.push(argument.clone());
        }
    }
    Ok(listed)
}

impl Listed {
    fn folder(&mut self, folder: &Path) -> Result<(), EvalError> {
        let (paths, skipped) = images_below(folder).map_err(TrainError::from)?;
        let notes = skipped::counts(&skipped).into_iter();
        self.notes.extend(notes.map(|(count, what, _)| format!("{}: {count} {what}", shown_path(folder))));
        if paths.is_empty() {
            return Err(EvalError::NoImages(folder.to_owned()));
        }
        self.files.extend(paths.iter().map(|path| folder.join(path)));
        self.names.extend(paths);
        Ok(())
    }
}
