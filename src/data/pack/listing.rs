//! What a source holds: its classes, and an entry for each image. Every kind of source makes one, and
//! [`divide`](super::divide) makes the plan of it.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::skipped::Skipped;
use crate::data::fingerprint::Fnv;
use crate::data::{DataError, Split};

/// The images of a source, before they are divided.
pub struct Listing<'a> {
    /// What was recognised, for one line, such as "class folders".
    pub kind: String,
    pub classes: Vec<String>,
    /// The source itself says which classes there are: one without an image stays a class.
    pub declared: bool,
    /// In the order in which they will be stored.
    pub images: Vec<Listed>,
    pub skipped: Vec<Skipped>,
    pub notices: Vec<String>,
    pub items: Box<dyn Items + 'a>,
}

/// One image of a source.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    pub part: Option<Part>,
    pub label: u32,
    /// Where the source has it; [`Items`] knows what that means.
    pub place: u64,
    /// Estimated length as stored.
    pub length: u64,
}

/// What a source says an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Train,
    Val,
    Test,
}

const TRAIN: [&str; 2] = ["train", "training"];
const VAL: [&str; 3] = ["val", "valid", "validation"];
const TEST: [&str; 2] = ["test", "testing"];

impl Part {
    pub const ALL: [Part; 3] = [Part::Train, Part::Val, Part::Test];

    fn names(self) -> &'static [&'static str] {
        match self {
            Part::Train => &TRAIN,
            Part::Val => &VAL,
            Part::Test => &TEST,
        }
    }

    /// The part that a folder's name means, in any case.
    pub fn of_folder(name: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.names().iter().any(|known| name.eq_ignore_ascii_case(known)))
    }

    /// The part that a file's name or path means: `train-00000-of-00004.parquet`, `imagenet-val-003.tar`,
    /// `validation/0.tar`. The last word that names a part decides.
    pub fn of_file(path: &Path) -> Option<Part> {
        let text = path.to_string_lossy();
        text.rsplit(|c: char| !c.is_ascii_alphabetic()).find_map(Part::of_folder)
    }
}

impl From<Split> for Part {
    fn from(split: Split) -> Part {
        match split {
            Split::Train => Part::Train,
            Split::Val => Part::Val,
            Split::Test => Part::Test,
        }
    }
}

/// One image before it is decoded.
pub struct Item {
    /// For messages.
    pub name: String,
    pub label: u32,
    pub content: Content,
}

/// Where an image's bytes are. What is not read yet is read on the thread that decodes it.
pub enum Content {
    File(PathBuf),
    /// An image file inside another file.
    Range {
        file: Arc<File>,
        offset: u64,
        length: u64,
    },
    /// An image file.
    Bytes(Vec<u8>),
    /// Rows of 1 (grey) or 3 (RGB) bytes a pixel.
    Pixels {
        width: u32,
        height: u32,
        channels: u8,
        bytes: Vec<u8>,
    },
}

/// Longer image files are not read.
pub const MAX_FILE: u64 = 1 << 30;

impl Content {
    /// The bytes that are in memory before it is read.
    pub fn held(&self) -> u64 {
        match self {
            Content::Bytes(bytes) | Content::Pixels { bytes, .. } => bytes.len() as u64,
            Content::File(_) | Content::Range { .. } => 0,
        }
    }

    /// The bytes of an image file, or of pixels.
    pub fn read(self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        match self {
            Content::Bytes(bytes) | Content::Pixels { bytes, .. } => return Ok(bytes),
            Content::File(path) => {
                let read = File::open(&path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
                read.map_err(|error| error.to_string())?;
            }
            Content::Range { length, .. } if length > MAX_FILE => return Err("larger than 1 GiB".into()),
            Content::Range { file, offset, length } => {
                bytes.resize(length as usize, 0);
                file.read_exact_at(&mut bytes, offset).map_err(|error| match error.kind() {
                    ErrorKind::UnexpectedEof => "the file around it ends before it does".into(),
                    _ => error.to_string(),
                })?;
            }
        }
        if bytes.len() as u64 > MAX_FILE { Err("larger than 1 GiB".into()) } else { Ok(bytes) }
    }
}

/// Gives the images of a source. Within a split, places are asked for in rising order.
pub trait Items {
    fn content(&mut self, place: u64) -> Result<Content, DataError>;
    /// For messages.
    fn name(&self, place: u64) -> String;
    /// Hashes what decides the stored bytes of these images.
    fn identify(&self, fnv: Fnv, images: &mut dyn Iterator<Item = Listed>) -> Fnv;
}

/// The size and the time of a file: what says that it is still the same.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub path: PathBuf,
    pub bytes: u64,
    pub modified: u128,
}

impl Stamp {
    /// A link to nothing has no metadata: zeros, and an error when it is read.
    pub fn of(metadata: Option<&Metadata>, path: PathBuf) -> Stamp {
        let time = metadata.and_then(|metadata| metadata.modified().ok());
        let modified = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let bytes = metadata.map_or(0, Metadata::len);
        Stamp { path, bytes, modified: modified.map_or(0, |since| since.as_nanos()) }
    }

    /// Of a file below `root`.
    pub fn at(root: &Path, path: PathBuf) -> Stamp {
        Stamp::of(root.join(&path).metadata().ok().as_ref(), path)
    }

    pub fn hash(&self, fnv: Fnv) -> Fnv {
        let fnv = fnv.field(self.path.as_os_str().as_encoded_bytes());
        fnv.number(self.bytes).bytes(&self.modified.to_le_bytes())
    }
}

/// Images that are files of their own.
pub struct FileItems {
    pub source: PathBuf,
    pub files: Vec<Stamp>,
}

impl Items for FileItems {
    fn content(&mut self, place: u64) -> Result<Content, DataError> {
        Ok(Content::File(self.source.join(&self.files[place as usize].path)))
    }

    fn name(&self, place: u64) -> String {
        self.files[place as usize].path.to_string_lossy().into_owned()
    }

    fn identify(&self, mut fnv: Fnv, images: &mut dyn Iterator<Item = Listed>) -> Fnv {
        for image in images {
            let Stamp { path, bytes, modified } = &self.files[image.place as usize];
            fnv = fnv.field(path.as_os_str().as_encoded_bytes());
            fnv = fnv.number(image.label.into()).number(*bytes).bytes(&modified.to_le_bytes());
        }
        fnv
    }
}

/// Hashes the files of a source, then every image's label and place in them.
pub fn identify_by_place(
    kind: &str,
    files: &[Stamp],
    mut fnv: Fnv,
    images: &mut dyn Iterator<Item = Listed>,
) -> Fnv {
    fnv = fnv.field(kind.as_bytes());
    fnv = files.iter().fold(fnv, |fnv, file| file.hash(fnv));
    images.fold(fnv, |fnv, image| fnv.number(image.label.into()).number(image.place))
}

/// Classes from the labels that a source gives as text: in order of their numbers if all are numbers, else of names.
pub fn classes_of<'l>(labels: impl Iterator<Item = &'l str>) -> Vec<String> {
    let names: BTreeSet<&str> = labels.collect();
    let mut classes: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    if names.iter().all(|name| name.parse::<i64>().is_ok()) {
        classes.sort_by_key(|name| name.parse::<i64>().unwrap_or(0));
    }
    classes
}
