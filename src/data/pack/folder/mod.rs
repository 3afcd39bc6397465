//! Lists a folder of images: class folders, or folders of a split with class folders in each.

mod layout;
mod walk;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::listing::{FileItems, Listed, Listing, Part, Stamp};
use super::skipped::{Skipped, SkippedKind};
use super::{PackOptions, table};
use crate::data::DataError;
use layout::Layout;
use walk::{Walk, images_here};
pub use walk::{holds_images, is_jpeg_name, is_junk, subfolders};

/// Lists a folder. A folder that is `out`, or a packed set, is no class.
pub fn list<'a>(source: &Path, out: &Path, options: &PackOptions) -> Result<Listing<'a>, DataError> {
    let mut folder = Folder {
        source,
        walk: Walk::new(source, out),
        files: Vec::new(),
        images: Vec::new(),
        notices: Vec::new(),
    };
    let top = folder.walk.classes(source)?;
    let layout = Layout::of(source, &top, &folder.walk, options.val.is_some())?;
    if options.val_list.is_some() && !matches!(&layout, Layout::Split { val: Some(_), .. }) {
        let problem = "--val-list is for a folder with train/ and a val/ without class folders".into();
        return Err(DataError::Source { path: source.to_owned(), problem });
    }
    let (kind, classes) = match &layout {
        Layout::Classes => ("class folders".to_string(), folder.classes(&top)?),
        Layout::Split { train, val, test, others } => {
            let val = val.as_deref().filter(|_| options.val.is_none());
            let with_classes = test.as_ref().filter(|(_, classes)| *classes).map(|(name, _)| name.as_str());
            let classes = folder.split(train, val, with_classes, options)?;
            folder.others(train, test.as_ref().filter(|(_, classes)| !classes), others);
            let names: Vec<String> = [Some(train.as_str()), val, with_classes]
                .iter()
                .flatten()
                .map(|name| format!("{name}/"))
                .collect();
            (format!("class folders in {}", and(&names)), classes)
        }
    };
    let Folder { walk, files, mut images, notices, .. } = folder;
    let items = FileItems { source: source.to_owned(), files };
    items.estimate(&mut images, options)?;
    let (skipped, items) = (walk.skipped, Box::new(items));
    Ok(Listing { kind, classes, declared: false, images, skipped, notices, items })
}

/// The images in a folder and in the folders in it, by paths relative to it, sorted by their bytes; and what was left out.
/// Links are followed, and no folder is read twice.
///
/// # Errors
/// A folder that cannot be read.
pub fn images_below(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Skipped>), DataError> {
    let mut walk = Walk::new(folder, Path::new(""));
    let mut paths: Vec<PathBuf> = walk.images(Path::new(""))?.into_iter().map(|found| found.path).collect();
    // A path's own order compares folder by folder: "a/b" before "a.b".
    paths.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok((paths, walk.skipped))
}

/// "train/, val/ and test/".
fn and(names: &[String]) -> String {
    match names {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// A folder being listed.
struct Folder<'s> {
    source: &'s Path,
    walk: Walk,
    files: Vec<Stamp>,
    images: Vec<Listed>,
    notices: Vec<String>,
}

impl Folder<'_> {
    /// Class folders at the top.
    fn classes(&mut self, names: &[String]) -> Result<Vec<String>, DataError> {
        let loose = images_here(self.source)?;
        if loose > 0 && !names.is_empty() {
            self.notices
                .push(format!("{loose} images beside the class folders are left out: they have no class"));
        }
        for (label, class) in names.iter().enumerate() {
            self.class(Path::new(class), label as u32, None)?;
        }
        Ok(names.to_vec())
    }

    /// Class folders in the folder of training images, in that of validation images, or a flat one with a list, and in
    /// that of test images.
    fn split(
        &mut self,
        train: &str,
        val: Option<&str>,
        test: Option<&str>,
        options: &PackOptions,
    ) -> Result<Vec<String>, DataError> {
        let mut classes = self.walk.classes(&self.source.join(train))?;
        let flat = val.is_some_and(|val| options.val_list.is_some() || self.is_flat(val));
        let in_val = match val {
            Some(val) if !flat => self.walk.classes(&self.source.join(val))?,
            _ => Vec::new(),
        };
        let in_test = test.map_or(Ok(Vec::new()), |test| self.walk.classes(&self.source.join(test)))?;
        let trained = classes.len();
        for class in in_val.iter().chain(&in_test) {
            if !classes.contains(class) {
                classes.push(class.clone());
            }
        }
        for (label, class) in classes.iter().enumerate().take(trained) {
            self.class(&Path::new(train).join(class), label as u32, Some(Part::Train))?;
        }
        match val {
            Some(val) if flat => self.flat(val, &classes, options)?,
            Some(val) => self.part(val, Part::Val, &in_val, &classes)?,
            None => {}
        }
        if let Some(test) = test {
            self.part(test, Part::Test, &in_test, &classes)?;
        }
        Ok(classes)
    }

    /// The class folders `inside` a folder of validation or of test images.
    fn part(
        &mut self,
        name: &str,
        part: Part,
        inside: &[String],
        classes: &[String],
    ) -> Result<(), DataError> {
        let mut lacking = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            let found = match inside.contains(class) {
                true => self.class(&Path::new(name).join(class), label as u32, Some(part))?,
                false => 0,
            };
            if found == 0 {
                lacking.push(class);
            }
        }
        match lacking.as_slice() {
            [] => {}
            [class] => self.notices.push(format!("class `{class}` has no image in {name}/")),
            [class, ..] => {
                let count = lacking.len();
                self.notices.push(format!("{count} classes have no image in {name}/, such as `{class}`"));
            }
        }
        Ok(())
    }

    fn is_flat(&self, folder: &str) -> bool {
        self.walk.subfolders(&self.source.join(folder)).is_ok_and(|inside| inside.is_empty())
    }

    /// A folder of images without class folders; a list has their classes.
    fn flat(&mut self, val: &str, classes: &[String], options: &PackOptions) -> Result<(), DataError> {
        let path = self.source.join(val);
        let Some(list) = &options.val_list else {
            let images = images_here(&path)?;
            let problem = format!(
                "{images} images and no class folders in it; give their classes with --val-list FILE, in which each \
                 line is `file,class`"
            );
            return Err(DataError::Source { path, problem });
        };
        let found = self.walk.images(Path::new(val))?;
        let by_name: HashMap<String, usize> =
            found.iter().enumerate().map(|(at, file)| (table::key(&file.path, Path::new(val)), at)).collect();
        let rows = table::read(list)?;
        let labels = table::labels(&rows, classes);
        let mut label_of: Vec<Option<Result<u32, String>>> = vec![None; found.len()];
        for (row, label) in rows.iter().zip(labels) {
            match table::find(&by_name, &row.file) {
                Some(at) => label_of[at] = Some(label),
                None => self.walk.skipped.push(Skipped::at(
                    &Path::new(val).join(&row.file),
                    SkippedKind::Missing,
                    format!("line {} of the list: no such file", row.line),
                )),
            }
        }
        for (file, label) in found.into_iter().zip(label_of) {
            match label.unwrap_or_else(|| Err("not in the list".into())) {
                Ok(label) => self.image(file, label, Some(Part::Val)),
                Err(problem) => self.walk.skipped.push(Skipped::at(&file.path, SkippedKind::Label, problem)),
            }
        }
        Ok(())
    }

    /// Says what is left out beside the folders of the split.
    fn others(&mut self, train: &str, flat_test: Option<&(String, bool)>, others: &[String]) {
        let part = SkippedKind::Part;
        if let Some((test, _)) = flat_test {
            self.notices.push(format!("{test}/ is left out, because it has no class folders"));
            self.walk.skipped.push(Skipped::new(test, part, "no class folders in it"));
        }
        for other in others {
            self.notices
                .push(format!("{other}/ is left out: it is beside {train}/ and no part of the split"));
            self.walk.skipped.push(Skipped::new(other, part, "beside the folders of the split"));
        }
    }

    /// The images of a class, sorted by path; gives their number.
    fn class(&mut self, folder: &Path, label: u32, part: Option<Part>) -> Result<usize, DataError> {
        let found = self.walk.images(folder)?;
        let count = found.len();
        found.into_iter().for_each(|file| self.image(file, label, part));
        Ok(count)
    }

    fn image(&mut self, file: Stamp, label: u32, part: Option<Part>) {
        self.images.push(Listed { part, label, place: self.files.len() as u64, length: 0 });
        self.files.push(file);
    }
}
