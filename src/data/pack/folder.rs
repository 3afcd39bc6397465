//! Plans a folder of images: class folders, or `train/` and `val/` with class folders in each.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;

use super::{Content, Item, Items, PackEncoding, PackOptions, Plan, SplitPlan};
use crate::data::codec::{dimensions, fit};
use crate::data::fingerprint::Fnv;
use crate::data::{DataError, Split};
use crate::random::{Purpose, draw};

/// Folders inside a class folder are read too, to this depth.
const DEPTH: usize = 16;

/// An image file of the source.
struct Entry {
    /// Relative to the source.
    path: PathBuf,
    label: u32,
    bytes: u64,
    modified: u128,
    /// Estimated length as stored.
    length: u64,
}

pub fn plan<'a>(source: &Path, options: &PackOptions) -> Result<Plan<'a>, DataError> {
    let problem = |problem: String| DataError::Source { path: source.to_owned(), problem };
    if !source.exists() {
        return Err(problem("no such file or directory".into()));
    }
    if !source.is_dir() {
        return Err(problem("not a directory; give a folder of images, or of the four IDX files".into()));
    }
    let mut ignored = 0;
    let top = subfolders(source)?;
    let (classes, mut splits) = match (top.iter().any(|d| d == "train"), top.iter().any(|d| d == "val")) {
        (true, true) => split_folder(source, &mut ignored)?,
        // A class may be called "train", but hardly beside one called "valid" or "test".
        (true, false) if top.len() <= 2 || other_split(&top).is_some() => {
            let other = other_split(&top).or(top.iter().find(|d| *d != "train"));
            let remedy = other.map_or("add one".into(), |other| format!("rename {other}/ to val/"));
            return Err(problem(format!(
                "train/ has no val/ beside it; {remedy}, or give {}/train to have it split",
                source.display()
            )));
        }
        _ if top.is_empty() => {
            return Err(problem(
                "neither class folders nor the four IDX files (train-images-idx3-ubyte[.gz], ...) in it"
                    .into(),
            ));
        }
        _ => one_folder(source, &top, options, &mut ignored)?,
    };
    estimate(source, options, &mut splits)?;
    let mut fnv = options.hash(Fnv::new().field(b"folder"));
    for class in &classes {
        fnv = fnv.field(class.as_bytes());
    }
    for entry in splits.iter().flatten() {
        fnv = fnv.field(entry.path.as_os_str().as_encoded_bytes());
        fnv = fnv.number(entry.label.into()).number(entry.bytes).bytes(&entry.modified.to_le_bytes());
    }
    let plans = splits
        .each_ref()
        .map(|entries| SplitPlan::cut(entries.iter().map(|entry| entry.length), options.shard_bytes));
    let items = Box::new(FolderItems { source: source.to_owned(), splits });
    Ok(Plan { classes, splits: plans, hash: fnv.hex(), ignored, items })
}

/// Lists `train/` and `val/`, which must have the same classes.
fn split_folder(source: &Path, ignored: &mut u64) -> Result<(Vec<String>, [Vec<Entry>; 2]), DataError> {
    let classes = subfolders(&source.join("train"))?;
    let others = subfolders(&source.join("val"))?;
    enough(&source.join("train"), &classes)?;
    for (folder, here, there) in [("val", &classes, &others), ("train", &others, &classes)] {
        if let Some(class) = here.iter().find(|class| !there.contains(class)) {
            let problem = format!("class `{class}` has no folder in {folder}/");
            return Err(DataError::Source { path: source.to_owned(), problem });
        }
    }
    let mut splits = [Vec::new(), Vec::new()];
    for split in Split::BOTH {
        for (label, class) in classes.iter().enumerate() {
            let entries =
                class_entries(source, &Path::new(split.as_ref()).join(class), label as u32, ignored)?;
            splits[split as usize].extend(entries);
        }
    }
    Ok((classes, splits))
}

/// Lists class folders. The same share of each class becomes validation, at least one image of a class with two.
fn one_folder(
    source: &Path,
    classes: &[String],
    options: &PackOptions,
    ignored: &mut u64,
) -> Result<(Vec<String>, [Vec<Entry>; 2]), DataError> {
    enough(source, classes)?;
    let mut splits = [Vec::new(), Vec::new()];
    for (label, class) in classes.iter().enumerate() {
        let entries = class_entries(source, Path::new(class), label as u32, ignored)?;
        let chosen = choose(entries.len(), label as u32, options);
        for (entry, is_val) in entries.into_iter().zip(chosen) {
            splits[is_val as usize].push(entry);
        }
    }
    if splits[Split::Val as usize].is_empty() {
        let problem = "every class has one image only: none is left for validation".into();
        return Err(DataError::Source { path: source.to_owned(), problem });
    }
    Ok((classes.to_vec(), splits))
}

/// Which of a class's images become validation: those with the lowest draws.
fn choose(images: usize, label: u32, options: &PackOptions) -> Vec<bool> {
    let share = (images as f64 * options.val_fraction).round() as usize;
    let share = share.max(1).min(images.saturating_sub(1));
    let mut order: Vec<usize> = (0..images).collect();
    order.sort_by_key(|&image| (draw(options.seed, image as u64, label, Purpose::Split, 0), image));
    let mut chosen = vec![false; images];
    order[..share].iter().for_each(|&image| chosen[image] = true);
    chosen
}

fn enough(path: &Path, classes: &[String]) -> Result<(), DataError> {
    if classes.len() < 2 {
        let problem = match classes.first() {
            Some(class) => format!("`{class}` is the only class folder; two classes are needed"),
            None => "no class folders in it".into(),
        };
        return Err(DataError::Source { path: path.to_owned(), problem });
    }
    Ok(())
}

/// The folder that is likely meant as val/.
fn other_split(folders: &[String]) -> Option<&String> {
    let names = ["valid", "validation", "test", "testing"];
    names.iter().find_map(|name| folders.iter().find(|folder| folder == name))
}

/// Names of the folders in `path`, sorted, without those that start with a dot.
fn subfolders(path: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(DataError::io(path))? {
        let entry = entry.map_err(DataError::io(path))?;
        if !entry.path().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().map_err(|name| DataError::Source {
            path: path.join(name),
            problem: "a class folder's name must be UTF-8".into(),
        })?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The image files of a class, sorted by path.
fn class_entries(
    source: &Path,
    folder: &Path,
    label: u32,
    ignored: &mut u64,
) -> Result<Vec<Entry>, DataError> {
    let mut entries = Vec::new();
    walk(source, folder, label, DEPTH, &mut entries, ignored)?;
    if entries.is_empty() {
        let problem = "a class folder without a JPEG or PNG file".into();
        return Err(DataError::Source { path: source.join(folder), problem });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn walk(
    source: &Path,
    folder: &Path,
    label: u32,
    depth: usize,
    entries: &mut Vec<Entry>,
    ignored: &mut u64,
) -> Result<(), DataError> {
    let absolute = source.join(folder);
    for entry in fs::read_dir(&absolute).map_err(DataError::io(&absolute))? {
        let entry = entry.map_err(DataError::io(&absolute))?;
        let name = entry.file_name();
        let path = folder.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link to a folder is not followed, because it may lead back up.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                walk(source, &path, label, depth - 1, entries, ignored)?;
            }
            continue;
        }
        if !is_image_name(&path) {
            *ignored += 1;
            continue;
        }
        // A link to nothing has no metadata; reading it will fail, and it will be listed as broken.
        let (bytes, modified) = fs::metadata(entry.path()).map_or((0, 0), |metadata| {
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            (metadata.len(), modified.map_or(0, |since| since.as_nanos()))
        });
        entries.push(Entry { path, label, bytes, modified, length: 0 });
    }
    Ok(())
}

fn is_image_name(path: &Path) -> bool {
    let kinds = ["jpg", "jpeg", "jpe", "jfif", "png"];
    path.extension().is_some_and(|extension| kinds.iter().any(|kind| extension.eq_ignore_ascii_case(kind)))
}

/// Estimates each image's stored length: that of the file for a JPEG that is kept, else from the size in its header.
fn estimate(source: &Path, options: &PackOptions, splits: &mut [Vec<Entry>; 2]) -> Result<(), DataError> {
    let work = || {
        splits.par_iter_mut().flatten().for_each(|entry| {
            let is_png = entry.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
            let stays = match options.encoding {
                PackEncoding::Raw => false,
                PackEncoding::Auto => !is_png,
                PackEncoding::Jpeg => true,
            };
            entry.length =
                if stays { entry.bytes } else { raw_length(&source.join(&entry.path), options.max_side) };
        });
    };
    super::prepare::pool(options.threads)?.install(work);
    Ok(())
}

/// Length of an image's pixels, three bytes each; 0 where its header cannot be read.
fn raw_length(path: &Path, max_side: Option<u32>) -> u64 {
    // A JPEG's size may come after a thumbnail of up to 64 KiB and a colour profile.
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(256 << 10).read_to_end(&mut start));
    let Some((width, height)) = read.ok().and_then(|_| dimensions(&start)) else { return 0 };
    let longest = max_side.unwrap_or(u32::MAX);
    let (width, height) =
        if width.max(height) > longest { fit(width, height, longest) } else { (width, height) };
    u64::from(width) * u64::from(height) * 3
}

struct FolderItems {
    source: PathBuf,
    splits: [Vec<Entry>; 2],
}

impl Items for FolderItems {
    fn item(&mut self, split: Split, number: u64) -> Result<Item, DataError> {
        let entry = &self.splits[split as usize][number as usize];
        let name = entry.path.display().to_string();
        Ok(Item { name, label: entry.label, content: Content::File(self.source.join(&entry.path)) })
    }

    fn length(&self, split: Split, number: u64) -> u64 {
        self.splits[split as usize][number as usize].length
    }
}
