//! Lists tar files: WebDataset shards, in which `key.jpg` has its label in `key.cls` or `key.json`, or archives of
//! class folders, or one archive for each class.
//!
//! One pass over the headers notes where each image lies; then images are read from there, on all threads. So a tar
//! file is never unpacked; of one that is compressed, see [`gzip`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use super::gzip::{self, Forward};
use super::listing::{Content, Items, Listed, Listing, MAX_FILE, Part, Stamp, classes_of, identify_by_place};
use super::skipped::{Skipped, SkippedKind};
use super::source::is_tar;
use super::{PackOptions, folder};
use crate::data::DataError;
use crate::data::codec::is_image_name;
use crate::data::fingerprint::Fnv;

/// Files with labels are not larger.
const MAX_LABEL: u64 = 1 << 20;
/// In a JSON file, what may hold the label.
const LABELS: [&str; 8] =
    ["label", "cls", "class", "class_id", "class_name", "label_name", "target", "category"];

/// A file in an archive.
struct Member {
    name: String,
    offset: u64,
    length: u64,
    /// The length as stored, if it had to be estimated while the archive was read.
    stored: Option<u64>,
}

/// What one archive holds.
#[derive(Default)]
struct Archive {
    images: Vec<Member>,
    /// Labels of a WebDataset, by key.
    labels: HashMap<String, String>,
    skipped: Vec<Skipped>,
    notice: Option<String>,
}

/// Lists archives; their names are relative to `root`.
pub fn list<'a>(root: &Path, names: &[PathBuf], options: &PackOptions) -> Result<Listing<'a>, DataError> {
    let (names, twice) = without_twins(names);
    let read = |name: &&PathBuf| Archive::read(&root.join(name), name, options);
    let work = || names.par_iter().map(read).collect::<Result<Vec<_>, _>>();
    let archives = super::prepare::pool(options.threads)?.install(work)?;
    let is_web = archives.iter().any(|archive| !archive.labels.is_empty());
    let (mut members, mut labels) = (Vec::new(), Vec::new());
    let (mut skipped, mut notices) = (Vec::new(), twice);
    for (number, (archive, &file)) in (0_u32..).zip(archives.into_iter().zip(&names)) {
        let Archive { images, labels: of_key, skipped: left_out, notice } = archive;
        skipped.extend(left_out);
        notices.extend(notice);
        let common = common_folders(&images);
        for image in images {
            let label = if is_web {
                let label = of_key.get(key(&image.name)).filter(|label| !label.is_empty());
                label.map(|label| (Part::of_file(file), label.clone()))
            } else {
                class_of(&image.name, &common, &gzip::plain_name(file))
            };
            match label {
                Some(label) => {
                    labels.push(label);
                    members.push((number, image));
                }
                None => {
                    let reason =
                        if is_web { "no .cls or .json with a label beside it" } else { "in no class folder" };
                    skipped.push(Skipped::new(in_archive(file, &image.name), SkippedKind::Label, reason));
                }
            }
        }
    }
    let classes = classes_of(labels.iter().map(|(_, label)| label.as_str()));
    let index: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let files: Vec<Stamp> = names.iter().map(|&name| Stamp::at(root, name.clone())).collect();
    let mut images: Vec<Listed> = (0..)
        .zip(labels.iter().zip(&members))
        .map(|(place, ((part, label), (_, member)))| Listed {
            part: *part,
            label: index[label.as_str()],
            place,
            length: member.length,
        })
        .collect();
    let items = TarItems { root: root.to_owned(), files, members, open: None };
    items.estimate(&mut images, options)?;
    let form = if is_web { "WebDataset" } else { "class folders" };
    let kind = match names.len() {
        1 => format!("a tar file ({form})"),
        count => format!("{count} tar files ({form})"),
    };
    Ok(Listing { kind, classes, declared: false, images, skipped, notices, items: Box::new(items) })
}

/// The archives, and notices of those that are left out because the same one is there plain or by another ending. In
/// order of their names, the plain one is first.
fn without_twins(names: &[PathBuf]) -> (Vec<&PathBuf>, Vec<String>) {
    let (mut kept, mut first, mut notices) = (Vec::new(), HashMap::new(), Vec::new());
    for name in names {
        match first.entry(gzip::plain_name(name)) {
            Entry::Vacant(place) => {
                place.insert(name.display());
                kept.push(name);
            }
            Entry::Occupied(first) => {
                let (twin, first) = (name.display(), first.get());
                notices.push(format!("{twin} is left out: {first} is there too; if they differ, rename one"));
            }
        }
    }
    (kept, notices)
}

fn in_archive(file: &Path, member: &str) -> String {
    format!("{}: {member}", file.to_string_lossy())
}

impl Archive {
    /// Reads all headers of an archive, and the files with labels.
    fn read(path: &Path, named: &Path, options: &PackOptions) -> Result<Archive, DataError> {
        let broken = |after: &str, error: std::io::Error| {
            let after = if after.is_empty() { "at its start".into() } else { format!("after {after}") };
            let problem = format!("damaged or cut short {after}: {error}");
            DataError::Source { path: path.to_owned(), problem }
        };
        let mut scan = Scan { path, named, archive: Archive::default(), end: 0, last: String::new() };
        let invalid = |problem: &str| broken("", std::io::Error::other(problem));
        let is_gzip = gzip::is_gzip(path);
        if !is_gzip && gzip::is_tar_name(path) && !starts_as_tar(path).map_err(DataError::io(path))? {
            return Err(invalid("neither gzip's bytes nor tar's; fetch or make it again"));
        }
        let length = if is_gzip {
            let mut tar = tar::Archive::new(Forward::open(path).map_err(DataError::io(path))?);
            for entry in tar.entries().map_err(|error| broken("", error))? {
                let entry = entry.map_err(|error| broken(&scan.last, error))?;
                scan.entry(entry, u64::MAX, Some(options))?;
            }
            match tar.into_inner().finish().map_err(|error| broken(&scan.last, error))? {
                0 => return Err(invalid("nothing in it; fetch or make it again")),
                length => length,
            }
        } else {
            let file = File::open(path).map_err(DataError::io(path))?;
            let length = file.metadata().map_err(DataError::io(path))?.len();
            let mut tar = tar::Archive::new(file);
            for entry in tar.entries_with_seek().map_err(|error| broken("", error))? {
                scan.entry(entry.map_err(|error| broken(&scan.last, error))?, length, None)?;
            }
            length
        };
        let Scan { mut archive, end, .. } = scan;
        if end >= length {
            archive.notice =
                Some(format!("{} has no end mark: it may be cut short", named.to_string_lossy()));
        }
        Ok(archive)
    }
}

/// An archive that is being read.
struct Scan<'a> {
    path: &'a Path,
    named: &'a Path,
    archive: Archive,
    /// Where the last member ends, and its name.
    end: u64,
    last: String,
}

impl Scan<'_> {
    /// Notes a member of an archive of this length. If it cannot be read again at once, `options` say how to estimate the
    /// stored length of an image.
    fn entry(
        &mut self,
        entry: tar::Entry<impl Read>,
        length: u64,
        options: Option<&PackOptions>,
    ) -> Result<(), DataError> {
        let archive = &mut self.archive;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_string();
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let problem = format!("cut short: it ends in {name}; fetch or make it again");
            return Err(DataError::Source { path: self.path.to_owned(), problem });
        }
        self.end = offset + bytes.next_multiple_of(512);
        self.last.clone_from(&name);
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            return Ok(());
        }
        let leave_out = |kind, reason| Skipped::new(in_archive(self.named, &name), kind, reason);
        let ending = Path::new(&name).extension().unwrap_or_default().to_ascii_lowercase();
        if !kind.is_file() {
            archive.skipped.push(leave_out(SkippedKind::Link, "a link or a device in a tar file"));
        } else if Path::new(&name).iter().any(folder::is_junk) {
            archive.skipped.push(leave_out(SkippedKind::Junk, "a file of a system or program"));
        } else if is_image_name(Path::new(&name)) {
            let start = || {
                let mut start = Vec::new();
                entry.take(super::size::HEADER).read_to_end(&mut start).ok().map(|_| start)
            };
            let is_jpeg = folder::is_jpeg_name(Path::new(&name));
            let stored = options.map(|options| options.estimate(is_jpeg, bytes, start));
            archive.images.push(Member { name, offset, length: bytes, stored });
        } else if ending == "cls" {
            let label = text(entry).unwrap_or_default().trim().to_string();
            archive.labels.insert(key(&name).into(), label);
        } else if ending == "json" {
            if let Some(label) = text(entry).and_then(|text| json_label(&text)) {
                archive.labels.entry(key(&name).into()).or_insert(label);
            }
        } else {
            archive.skipped.push(leave_out(SkippedKind::NotAnImage, "no image by its name"));
        }
        Ok(())
    }
}

/// Whether a file that is not compressed is a tar file, whatever its name says.
fn starts_as_tar(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    Ok(is_tar(&start))
}

fn text(entry: tar::Entry<impl Read>) -> Option<String> {
    let mut text = String::new();
    entry.take(MAX_LABEL).read_to_string(&mut text).ok().map(|_| text)
}

/// What the files of one sample have in common: the name up to the first dot after the folders.
fn key(name: &str) -> &str {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    name[file..].find('.').map_or(name, |dot| &name[..file + dot])
}

/// A label that is a number or a name in an object, or by itself.
fn json_label(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let label = match &value {
        Value::Object(fields) => LABELS.iter().find_map(|name| fields.get(*name))?,
        other => other,
    };
    match label {
        Value::String(name) => Some(name.trim().into()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The folders in which all images of an archive are.
fn common_folders(images: &[Member]) -> Vec<String> {
    let folders = |member: &Member| -> Vec<String> {
        let mut parts: Vec<String> = member.name.split('/').map(String::from).collect();
        parts.pop();
        parts
    };
    let Some(mut common) = images.first().map(folders) else { return Vec::new() };
    for image in images {
        let same = image.name.split('/').zip(&common).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    common
}

/// The part and the class of an image in class folders. Where all images of an archive are in one folder, that is the
/// class; where they are in none, the archive's name is.
fn class_of(name: &str, common: &[String], file: &Path) -> Option<(Option<Part>, String)> {
    let parts: Vec<&str> = name.split('/').collect();
    let inside = &parts[common.len()..];
    let mut part =
        common.iter().rev().find_map(|folder| Part::of_folder(folder)).or_else(|| Part::of_file(file));
    let class = match inside {
        [split, class, _, ..] if Part::of_folder(split).is_some() => {
            part = Part::of_folder(split);
            Some(*class)
        }
        [split, _] if Part::of_folder(split).is_some() && common.is_empty() => None,
        [class, _, ..] => Some(*class),
        _ => match common.last() {
            Some(folder) => Some(folder.as_str()),
            None => file.file_stem().and_then(|stem| stem.to_str()),
        },
    };
    class.map(|class| (part, class.to_string()))
}

struct TarItems {
    root: PathBuf,
    files: Vec<Stamp>,
    /// The number of the archive, and the file in it.
    members: Vec<(u32, Member)>,
    open: Option<(u32, Open)>,
}

/// An open archive.
enum Open {
    Plain(Arc<File>),
    Gzip(Box<Forward>),
}

impl Open {
    fn at(path: &Path) -> std::io::Result<Open> {
        Ok(if gzip::is_gzip(path) {
            Open::Gzip(Box::new(Forward::open(path)?))
        } else {
            Open::Plain(Arc::new(File::open(path)?))
        })
    }
}

impl TarItems {
    fn path(&self, number: u32) -> PathBuf {
        self.root.join(&self.files[number as usize].path)
    }

    /// Estimates the stored length of each image.
    fn estimate(&self, images: &mut [Listed], options: &PackOptions) -> Result<(), DataError> {
        use std::os::unix::fs::FileExt;
        let work = || {
            images
                .par_chunk_by_mut(|a, b| self.members[a.place as usize].0 == self.members[b.place as usize].0)
                .for_each(|images| {
                    let number = self.members[images[0].place as usize].0;
                    let Ok(file) = File::open(self.path(number)) else { return };
                    for image in images {
                        let member = &self.members[image.place as usize].1;
                        if let Some(stored) = member.stored {
                            image.length = stored;
                            continue;
                        }
                        let start = || {
                            let mut start = vec![0; member.length.min(super::size::HEADER) as usize];
                            file.read_exact_at(&mut start, member.offset).ok().map(|()| start)
                        };
                        let is_jpeg = folder::is_jpeg_name(Path::new(&member.name));
                        image.length = options.estimate(is_jpeg, member.length, start);
                    }
                });
        };
        super::prepare::pool(options.threads)?.install(work);
        Ok(())
    }
}

impl Items for TarItems {
    fn content(&mut self, place: u64) -> Result<Content, DataError> {
        let (number, Member { offset, length, .. }) = self.members[place as usize];
        let path = self.path(number);
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.open = Some((number, Open::at(&path).map_err(DataError::io(&path))?));
        }
        let Some((_, open)) = &mut self.open else { unreachable!("it was opened above") };
        match open {
            Open::Plain(file) => Ok(Content::Range { file: file.clone(), offset, length }),
            Open::Gzip(content) if length <= MAX_FILE => {
                Ok(Content::Bytes(content.read_at(offset, length).map_err(DataError::io(path))?))
            }
            // It says that it is too long, and is not read.
            Open::Gzip(_) => {
                let file = Arc::new(File::open(&path).map_err(DataError::io(path))?);
                Ok(Content::Range { file, offset, length })
            }
        }
    }

    fn name(&self, place: u64) -> String {
        let (number, member) = &self.members[place as usize];
        in_archive(&self.files[*number as usize].path, &member.name)
    }

    fn identify(&self, fnv: Fnv, images: &mut dyn Iterator<Item = Listed>) -> Fnv {
        identify_by_place("tar", &self.files, fnv, images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_of_a_member_is_its_folder() {
        let class = |names: &[&str], file: &str| -> Vec<Option<(Option<Part>, String)>> {
            let member = |name: &&str| Member { name: name.to_string(), offset: 0, length: 0, stored: None };
            let images: Vec<Member> = names.iter().map(member).collect();
            let common = common_folders(&images);
            names.iter().map(|name| class_of(name, &common, Path::new(file))).collect()
        };
        let of = |part, class: &str| Some((part, class.to_string()));
        let (train, val) = (Some(Part::Train), Some(Part::Val));
        assert_eq!(class(&["set/a/1.jpg", "set/b/x/2.jpg"], "x.tar"), [of(None, "a"), of(None, "b")]);
        assert_eq!(
            class(&["d/train/a/1.jpg", "d/val/b/2.jpg", "d/val/3.jpg"], "x.tar"),
            [of(train, "a"), of(val, "b"), of(None, "val")]
        );
        assert_eq!(class(&["train/a/1.jpg", "val/3.jpg"], "x.tar"), [of(train, "a"), None]);
        assert_eq!(class(&["val/a/1.jpg", "val/b/1.jpg"], "x.tar"), [of(val, "a"), of(val, "b")]);
        assert_eq!(class(&["n1/1.jpg", "n1/2.jpg"], "p/val-3.tar"), [of(val, "n1"), of(val, "n1")]);
        assert_eq!(class(&["1.jpg", "2.jpg"], "n2.tar"), [of(None, "n2"), of(None, "n2")]);
    }

    #[test]
    fn label_is_found_in_json() {
        assert_eq!(json_label(r#"{"label": 7, "x": 1}"#), Some("7".into()));
        assert_eq!(json_label(r#"{"class_name": " cat "}"#), Some("cat".into()));
        assert_eq!(
            [json_label("3"), json_label("{}"), json_label("[1]"), json_label("x")],
            [Some("3".into()), None, None, None]
        );
        assert_eq!([key("a.b/c.seg.jpg"), key("x"), key("a/b")], ["a.b/c", "x", "a/b"]);
    }
}
