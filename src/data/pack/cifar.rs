//! Lists CIFAR-10 and CIFAR-100 in their binary form.
//!
//! ```text
//! CIFAR-10    data_batch_1.bin ... data_batch_5.bin, test_batch.bin    label, then 3 × 32 × 32 bytes
//! CIFAR-100   train.bin, test.bin                                      coarse label, fine label, then the same
//! ```
//!
//! An image is three planes, red, green and blue. CIFAR-100 is packed with its fine labels. Class names are read from
//! `batches.meta.txt` or `fine_label_names.txt`; without them, classes are numbers.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::listing::{Content, Items, Listed, Listing, Part, Stamp, identify_by_place};
use crate::data::DataError;
use crate::data::fingerprint::Fnv;

const SIDE: u32 = 32;
const PLANE: usize = (SIDE * SIDE) as usize;

/// One of the two sets.
pub struct Set {
    name: &'static str,
    files: Vec<(&'static str, Part)>,
    /// Bytes before the pixels; the last of them is the label.
    labels: usize,
    classes: usize,
    names: &'static str,
}

impl Set {
    fn record(&self) -> u64 {
        (self.labels + 3 * PLANE) as u64
    }
}

const TEN: [(&str, Part); 6] = [
    ("data_batch_1.bin", Part::Train),
    ("data_batch_2.bin", Part::Train),
    ("data_batch_3.bin", Part::Train),
    ("data_batch_4.bin", Part::Train),
    ("data_batch_5.bin", Part::Train),
    ("test_batch.bin", Part::Val),
];
const HUNDRED: [(&str, Part); 2] = [("train.bin", Part::Train), ("test.bin", Part::Val)];

/// The set in a directory, if there is one.
///
/// # Errors
/// If a part of it is missing, or it is there in another form.
pub fn find(source: &Path) -> Result<Option<Set>, DataError> {
    let problem = |problem: String| Err(DataError::Source { path: source.to_owned(), problem });
    let there = |name: &str| source.join(name).is_file();
    if (there("data_batch_1") && there("test_batch")) || (there("train") && there("test") && there("meta")) {
        return problem("CIFAR as Python objects; take its binary version, a folder with .bin files".into());
    }
    let ten = Set { name: "CIFAR-10", files: TEN.into(), labels: 1, classes: 10, names: "batches.meta.txt" };
    let hundred = Set {
        name: "CIFAR-100",
        files: HUNDRED.into(),
        labels: 2,
        classes: 100,
        names: "fine_label_names.txt",
    };
    let Some(set) = [ten, hundred].into_iter().find(|set| there(set.files[0].0)) else { return Ok(None) };
    match set.files.iter().find(|(name, _)| !there(name)) {
        Some((missing, _)) => problem(format!("{} without {missing}", set.name)),
        None => Ok(Some(set)),
    }
}

/// Lists the set; reads all labels.
pub fn list<'a>(source: &Path, set: &Set) -> Result<Listing<'a>, DataError> {
    let mut images = Vec::new();
    let mut files = Vec::new();
    for (number, (name, part)) in (0_u64..).zip(&set.files) {
        let path = source.join(name);
        let problem = |problem: String| DataError::Source { path: path.clone(), problem };
        let stamp = Stamp::at(source, PathBuf::from(name));
        if stamp.bytes == 0 || !stamp.bytes.is_multiple_of(set.record()) {
            let (bytes, record, set) = (stamp.bytes, set.record(), set.name);
            return Err(problem(format!(
                "{bytes} bytes are no whole number of {set} images of {record}: cut short?"
            )));
        }
        let mut reader = BufReader::new(File::open(&path).map_err(DataError::io(&path))?);
        let mut record = vec![0; set.record() as usize];
        for at in 0..stamp.bytes / set.record() {
            reader.read_exact(&mut record).map_err(DataError::io(&path))?;
            let label = record[set.labels - 1];
            if usize::from(label) >= set.classes {
                let last = set.classes - 1;
                return Err(problem(format!("image {at} has label {label}; {} has 0 to {last}", set.name)));
            }
            let length = (3 * PLANE) as u64;
            images.push(Listed { part: Some(*part), label: label.into(), place: number << 32 | at, length });
        }
        files.push(stamp);
    }
    let (labels, record) = (set.labels as u64, set.record());
    Ok(Listing {
        kind: format!("{} (binary)", set.name),
        classes: class_names(source, set),
        declared: true,
        images,
        skipped: Vec::new(),
        notices: Vec::new(),
        items: Box::new(CifarItems { source: source.to_owned(), files, open: None, labels, record }),
    })
}

fn class_names(source: &Path, set: &Set) -> Vec<String> {
    let text = fs::read_to_string(source.join(set.names)).unwrap_or_default();
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.len() == set.classes { names } else { (0..set.classes).map(|label| label.to_string()).collect() }
}

struct CifarItems {
    source: PathBuf,
    files: Vec<Stamp>,
    open: Option<(usize, Arc<File>)>,
    labels: u64,
    record: u64,
}

impl Items for CifarItems {
    fn content(&mut self, place: u64) -> Result<Content, DataError> {
        let number = (place >> 32) as usize;
        let path = self.source.join(&self.files[number].path);
        let file = match &self.open {
            Some((open, file)) if *open == number => file.clone(),
            _ => {
                let file = Arc::new(File::open(&path).map_err(DataError::io(&path))?);
                self.open = Some((number, file.clone()));
                file
            }
        };
        let mut planes = vec![0; 3 * PLANE];
        let offset = (place & u64::from(u32::MAX)) * self.record + self.labels;
        file.read_exact_at(&mut planes, offset).map_err(DataError::io(&path))?;
        let bytes =
            (0..PLANE).flat_map(|at| [planes[at], planes[PLANE + at], planes[2 * PLANE + at]]).collect();
        Ok(Content::Pixels { width: SIDE, height: SIDE, channels: 3, bytes })
    }

    fn name(&self, place: u64) -> String {
        let file = &self.files[(place >> 32) as usize].path;
        format!("{}: image {}", file.display(), place & u64::from(u32::MAX))
    }

    fn identify(&self, fnv: Fnv, images: &mut dyn Iterator<Item = Listed>) -> Fnv {
        identify_by_place("cifar", &self.files, fnv, images)
    }
}
