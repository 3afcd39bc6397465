//! Lists the images that CSV or TSV files name: a path and a label in each line. Paths are relative to the list.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::listing::{FileItems, Listed, Listing, Part, Stamp, classes_of};
use super::skipped::{Skipped, SkippedKind};
use super::{PackOptions, folder, size, table};
use crate::data::DataError;

/// Lists what these lists name.
pub fn list<'a>(lists: &[PathBuf], options: &PackOptions) -> Result<Listing<'a>, DataError> {
    let root = lists[0].parent().map_or(PathBuf::new(), Path::to_owned);
    let mut rows = Vec::new();
    let mut notices = Vec::new();
    for path in lists {
        let part = Part::of_file(Path::new(path.file_name().unwrap_or_default())).filter(|_| lists.len() > 1);
        match table::read(path) {
            Ok(read) => rows.extend(read.into_iter().map(|row| (row.part.or(part), row))),
            // The list of test images often has no labels.
            Err(error) if part == Some(Part::Test) => notices.push(format!("left out: {error}")),
            Err(error) => return Err(error),
        }
    }
    let mut skipped = Vec::new();
    let labelled = |row: &table::Row| !row.label.is_empty();
    let classes =
        classes_of(rows.iter().map(|(_, row)| row).filter(|row| labelled(row)).map(|row| row.label.as_str()));
    let index: HashMap<String, u32> = classes.iter().cloned().zip(0..).collect();
    let places = Places::of(&root, rows.iter().map(|(_, row)| row.file.as_str()))?;
    let stamps: Vec<Option<Stamp>> = super::prepare::pool(options.threads)?
        .install(|| rows.par_iter().map(|(_, row)| places.find(&root, &row.file)).collect());
    let (mut files, mut images) = (Vec::new(), Vec::new());
    for ((part, row), stamp) in rows.into_iter().zip(stamps) {
        match (index.get(&row.label), stamp) {
            (None, _) => {
                let reason = format!("line {} has no label", row.line);
                skipped.push(Skipped::new(row.file, SkippedKind::Label, reason));
            }
            (_, None) => {
                let reason = format!("line {}: no such file", row.line);
                skipped.push(Skipped::new(row.file, SkippedKind::Missing, reason));
            }
            (Some(&label), Some(stamp)) => {
                images.push(Listed { part, label, place: files.len() as u64, length: 0 });
                files.push(stamp);
            }
        }
    }
    let items = FileItems { source: root, files };
    items.estimate(&mut images, options)?;
    let names: Vec<_> =
        lists.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
    let kind = format!("the images listed in {}", names.join(", "));
    Ok(Listing { kind, classes, declared: false, images, skipped, notices, items: Box::new(items) })
}

/// Where lists may mean their files to be: beside them, or in one of the folders there, with or without an ending.
struct Places {
    /// Before and after the name that the list gives.
    forms: Vec<(String, &'static str)>,
}

impl Places {
    /// Tries all forms for the first rows; those that lead to a file are kept.
    fn of<'r>(root: &Path, names: impl Iterator<Item = &'r str>) -> Result<Places, DataError> {
        const TRIED: usize = 50;
        let here = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let folders = folder::subfolders(here)?.into_iter().map(|folder| format!("{folder}/"));
        let endings = ["", ".jpg", ".JPEG", ".jpeg", ".png", ".JPG"];
        let all: Vec<_> = std::iter::once(String::new())
            .chain(folders)
            .flat_map(|folder| endings.map(|ending| (folder.clone(), ending)))
            .collect();
        let mut forms = vec![(String::new(), "")];
        for name in names.take(TRIED) {
            if let Some(form) = all.iter().find(|form| path(root, form, name).is_file())
                && !forms.contains(form)
            {
                forms.push(form.clone());
            }
        }
        Ok(Places { forms })
    }

    fn find(&self, root: &Path, name: &str) -> Option<Stamp> {
        let metadata = |path: &PathBuf| path.metadata().ok().filter(|metadata| metadata.is_file());
        let find = |form| {
            let path = path(root, form, name);
            metadata(&path).map(|metadata| (path, metadata))
        };
        let (found, metadata) = self.forms.iter().find_map(find)?;
        Some(Stamp::of(Some(&metadata), found.strip_prefix(root).unwrap_or(&found).to_owned()))
    }
}

fn path(root: &Path, (folder, ending): &(String, &str), name: &str) -> PathBuf {
    let name = name.replace('\\', "/");
    if folder.is_empty() && ending.is_empty() {
        root.join(name)
    } else {
        root.join(format!("{folder}{name}{ending}"))
    }
}

impl FileItems {
    /// Estimates the stored length of each image.
    pub fn estimate(&self, images: &mut [Listed], options: &PackOptions) -> Result<(), DataError> {
        let work = || {
            images.par_iter_mut().for_each(|image| {
                let file = &self.files[image.place as usize];
                let start = || size::start(&self.source.join(&file.path));
                image.length = options.estimate(folder::is_jpeg_name(&file.path), file.bytes, start);
            });
        };
        super::prepare::pool(options.threads)?.install(work);
        Ok(())
    }
}
