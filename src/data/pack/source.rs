//! Recognises by its content what a source is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::listing::{Listing, Part};
use super::{PackOptions, cifar, folder, gzip, idx_files, list, parquet_files, tar_files};
use crate::data::DataError;

/// What [`Found::at`] takes, for messages.
pub const ACCEPTED: &str = "effnet-pack takes a folder of class folders (or of train/ and val/ with class folders), \
                            tar files (WebDataset or class folders), also in gzip, a CSV or TSV list of files and labels, Parquet \
                            files with images, and folders with CIFAR's or MNIST's binary files";

/// Containers are looked for in folders of folders, to this depth.
const DEPTH: usize = 3;

/// A source that was recognised. Files are named relative to the folder they were found in.
pub enum Found {
    Idx(idx_files::Files),
    Cifar(cifar::Set),
    Folder,
    Tar(PathBuf, Vec<PathBuf>),
    Parquet(PathBuf, Vec<PathBuf>),
    List(Vec<PathBuf>),
}

impl Found {
    /// Looks at a source.
    ///
    /// # Errors
    /// If it is not there, or of no kind that can be packed.
    pub fn at(source: &Path) -> Result<Found, DataError> {
        let problem = |problem: String| Err(DataError::Source { path: source.to_owned(), problem });
        if !source.exists() {
            return problem("no such file or directory".into());
        }
        if !source.is_dir() {
            return Found::file(source);
        }
        if let Some(files) = idx_files::find(source)? {
            return Ok(Found::Idx(files));
        }
        if let Some(set) = cifar::find(source)? {
            return Ok(Found::Cifar(set));
        }
        if folder::holds_images(source)? {
            let lists = lists(source)?;
            if !lists.is_empty() && !has_classes(source)? {
                return one_list(source, lists);
            }
            return Ok(Found::Folder);
        }
        let mut files = Vec::new();
        containers(source, Path::new(""), DEPTH, &mut files)?;
        files.sort();
        let of = |ending: &str| -> Vec<PathBuf> {
            let is = |file: &&PathBuf| file.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
            files.iter().filter(is).cloned().collect()
        };
        let mut tars = of("tar");
        let compressed = [of("gz"), of("tgz")].concat().into_iter();
        let counts = |file: &PathBuf| gzip::is_tar_name(file) || gzip::holds_tar(&source.join(file));
        tars.extend(compressed.filter(counts));
        tars.sort();
        match (of("parquet"), tars) {
            (parquet, _) if !parquet.is_empty() => Ok(Found::Parquet(source.to_owned(), parquet)),
            (_, tar) if !tar.is_empty() => Ok(Found::Tar(source.to_owned(), tar)),
            _ => {
                let lists = lists(source)?;
                if !lists.is_empty() {
                    return one_list(source, lists);
                }
                match files.first() {
                    Some(file) => problem(format!("{} is compressed; unpack it first", file.display())),
                    None if folder::subfolders(source)?.is_empty() => {
                        problem(format!("no images in it; {ACCEPTED}"))
                    }
                    None => Ok(Found::Folder), // class folders without images: the folder says so
                }
            }
        }
    }

    /// A file is known by its first bytes.
    fn file(path: &Path) -> Result<Found, DataError> {
        let problem = |problem: String| Err(DataError::Source { path: path.to_owned(), problem });
        if !path.is_file() {
            return problem("neither a file nor a folder".into());
        }
        let mut start = Vec::new();
        let file = File::open(path).map_err(DataError::io(path))?;
        file.take(1024).read_to_end(&mut start).map_err(DataError::io(path))?;
        let root = path.parent().map_or(PathBuf::new(), Path::to_owned);
        let name = vec![PathBuf::from(path.file_name().unwrap_or_default())];
        let unpack = |what: &str| problem(format!("{what}; unpack it first, and give what is in it"));
        match start.as_slice() {
            [] => problem("an empty file".into()),
            [b'P', b'A', b'R', b'1', ..] => Ok(Found::Parquet(root, name)),
            bytes if is_tar(bytes) => Ok(Found::Tar(root, name)),
            [0x1f, 0x8b, ..] if gzip::is_tar_name(path) || gzip::holds_tar(path) => {
                Ok(Found::Tar(root, name))
            }
            [0x1f, 0x8b, ..] => unpack("compressed by gzip"),
            [b'P', b'K', 3, 4, ..] => unpack("a ZIP archive"),
            [b'B', b'Z', b'h', ..] => unpack("compressed by bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => unpack("compressed by xz"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => unpack("compressed by zstd"),
            [b'7', b'z', 0xbc, 0xaf, ..] => unpack("a 7z archive"),
            [0x89, b'H', b'D', b'F', ..] => problem(format!("an HDF5 file; {ACCEPTED}")),
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => problem(format!("a NumPy array; {ACCEPTED}")),
            [0xff, 0xd8, ..] | [0x89, b'P', b'N', b'G', ..] => problem(format!("a single image; {ACCEPTED}")),
            _ if gzip::is_tar_name(path) => Ok(Found::Tar(root, name)), // damaged, which reading it says
            _ if is_list(path) || is_text(&start) => Ok(Found::List(vec![path.to_owned()])),
            _ if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) => {
                Ok(Found::Tar(root, name))
            }
            _ => problem(format!("of a kind that is not known; {ACCEPTED}")),
        }
    }

    /// The name of the kind in a plan's hash.
    pub fn tag(&self) -> &'static str {
        match self {
            Found::Idx(_) => "idx",
            Found::Cifar(_) => "cifar",
            Found::Folder => "folder",
            Found::Tar(..) => "tar",
            Found::Parquet(..) => "parquet",
            Found::List(_) => "list",
        }
    }

    /// Lists what the source holds.
    pub fn list<'a>(
        &'a self,
        source: &Path,
        out: &Path,
        options: &PackOptions,
    ) -> Result<Listing<'a>, DataError> {
        if options.val_list.is_some() && !matches!(self, Found::Folder) {
            let problem = "--val-list is for a folder with train/ and a val/ without class folders".into();
            return Err(DataError::Source { path: source.to_owned(), problem });
        }
        match self {
            Found::Idx(files) => idx_files::list(&files.inputs(), None),
            Found::Cifar(set) => cifar::list(source, set),
            Found::Folder => folder::list(source, out, options),
            Found::Tar(root, files) => tar_files::list(root, files, options),
            Found::Parquet(root, files) => parquet_files::list(root, files, options),
            Found::List(lists) => list::list(lists, options),
        }
    }
}

/// Whether a file's first bytes are those of a tar file.
pub fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

/// Text of which the first line has several words or cells.
fn is_text(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(start); // the end may be in the middle of a character
    let line = text.lines().next().unwrap_or_default();
    !text.trim_end_matches('\u{fffd}').contains(['\0', '\u{fffd}']) && line.contains([',', '\t', ';', ' '])
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["csv", "tsv"].iter().any(|kind| e.eq_ignore_ascii_case(kind)))
}

/// The lists in a folder itself, sorted.
fn lists(source: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut lists = Vec::new();
    for entry in fs::read_dir(source).map_err(DataError::io(source))? {
        let path = entry.map_err(DataError::io(source))?.path();
        if path.is_file() && is_list(&path) && !path.file_name().is_some_and(folder::is_junk) {
            lists.push(path);
        }
    }
    lists.sort();
    Ok(lists)
}

/// Of several lists, those of the parts of a split.
fn one_list(source: &Path, lists: Vec<PathBuf>) -> Result<Found, DataError> {
    if lists.len() == 1 {
        return Ok(Found::List(lists));
    }
    let of_part =
        |list: &&PathBuf| list.file_stem().is_some_and(|stem| Part::of_file(Path::new(stem)).is_some());
    let parts: Vec<PathBuf> = lists.iter().filter(of_part).cloned().collect();
    if parts.is_empty() {
        let names: Vec<_> =
            lists.iter().map(|list| list.file_name().unwrap_or_default().to_string_lossy()).collect();
        let problem = format!("several lists in it ({}); give the one to pack", names.join(", "));
        return Err(DataError::Source { path: source.to_owned(), problem });
    }
    Ok(Found::List(parts))
}

/// Whether a folder has class folders: two folders with images that are no flat parts of a split.
fn has_classes(source: &Path) -> Result<bool, DataError> {
    let mut classes = 0;
    for name in folder::subfolders(source)? {
        let path = source.join(&name);
        if Part::of_folder(&name).is_some() {
            if !folder::subfolders(&path)?.is_empty() {
                return Ok(true);
            }
        } else if folder::holds_images(&path)? {
            classes += 1;
        }
    }
    Ok(classes >= 2)
}

/// Files that hold many images, plain or compressed.
fn containers(root: &Path, inside: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let path = root.join(inside);
    for entry in fs::read_dir(&path).map_err(DataError::io(&path))? {
        let entry = entry.map_err(DataError::io(&path))?;
        let (name, named) = (entry.file_name(), inside.join(entry.file_name()));
        if folder::is_junk(&name) {
            continue;
        }
        if entry.path().is_dir() {
            if depth > 0 {
                containers(root, &named, depth - 1, found)?;
            }
        } else {
            let ending = named.extension().unwrap_or_default().to_ascii_lowercase();
            if ["parquet", "tar", "tgz", "gz", "zip", "zst", "xz", "bz2", "7z", "rar"]
                .iter()
                .any(|e| ending == *e)
            {
                found.push(named);
            }
        }
    }
    Ok(())
}

/// Refuses an output directory in which shards would lie between the images of the source.
pub fn check_output(source: &Path, out: &Path) -> Result<(), DataError> {
    let (Ok(from), Ok(to)) = (fs::canonicalize(source), fs::canonicalize(out)) else { return Ok(()) };
    let problem = |problem: &str| Err(DataError::Output { path: out.to_owned(), problem: problem.into() });
    if from == to {
        return problem("SOURCE and OUT are the same; choose another directory for OUT");
    }
    if from.is_dir() && to.is_dir() && to.starts_with(&from) && folder::holds_images(&to)? {
        return problem("lies in SOURCE and holds images of it; choose another directory for OUT");
    }
    Ok(())
}
