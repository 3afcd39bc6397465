//! What a pack leaves out: each file with the reason, in `skipped.jsonl`; counted by kind in the summary.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;

use crate::data::DataError;
use crate::files;

/// The list of what was left out; only there if something was.
pub const SKIPPED: &str = "skipped.jsonl";

/// Why something was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkippedKind {
    /// An image that cannot be decoded.
    Broken,
    /// No image by its name.
    NotAnImage,
    /// What systems and programs leave in folders.
    Junk,
    /// A link that leads to a folder read already.
    Link,
    /// A packed set inside the source.
    Packed,
    /// Listed, but not there.
    Missing,
    /// Without a label, or with one that cannot be used.
    Label,
    /// Of a class without a training image.
    Class,
    /// Of no part: neither training nor validation nor test.
    Part,
}

impl SkippedKind {
    /// Words for one and for more.
    fn words(self) -> [&'static str; 2] {
        match self {
            SkippedKind::Broken => ["broken image left out", "broken images left out"],
            SkippedKind::NotAnImage => {
                ["file ignored, being no image by name", "files ignored, being no images by name"]
            }
            SkippedKind::Junk => [
                "file or folder of a system or program ignored",
                "files and folders of systems and programs ignored",
            ],
            SkippedKind::Link => ["link not followed", "links not followed"],
            SkippedKind::Packed => {
                ["packed set inside the source ignored", "packed sets inside the source ignored"]
            }
            SkippedKind::Missing => ["listed image that is not there", "listed images that are not there"],
            SkippedKind::Label => {
                ["image without a usable label left out", "images without a usable label left out"]
            }
            SkippedKind::Class => [
                "image of a class without training images left out",
                "images of classes without training images left out",
            ],
            SkippedKind::Part => {
                ["file or folder of no split left out", "files and folders of no split left out"]
            }
        }
    }
}

/// A file or folder that was left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// Relative to the source.
    pub file: String,
    pub kind: SkippedKind,
    pub reason: String,
}

impl Skipped {
    pub fn new(file: impl Into<String>, kind: SkippedKind, reason: impl Into<String>) -> Skipped {
        Skipped { file: file.into(), kind, reason: reason.into() }
    }

    pub fn at(path: &Path, kind: SkippedKind, reason: impl Into<String>) -> Skipped {
        Skipped::new(path.to_string_lossy(), kind, reason)
    }
}

/// Writes `out/skipped.jsonl`, a line for each; removes an old one if nothing was left out.
pub fn write(out: &Path, skipped: &[Skipped]) -> Result<(), DataError> {
    let path = out.join(SKIPPED);
    if skipped.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(DataError::Io { path, error }),
            _ => Ok(()),
        };
    }
    Ok(files::replace_with(&path, |file| {
        let mut file = std::io::BufWriter::new(file);
        for one in skipped {
            serde_json::to_writer(&mut file, one)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    })?)
}

/// How many of each kind: the count, what they are, and an example.
pub fn counts(skipped: &[Skipped]) -> Vec<(u64, String, &Skipped)> {
    let mut kinds: BTreeMap<SkippedKind, (u64, &Skipped)> = BTreeMap::new();
    for one in skipped {
        kinds.entry(one.kind).or_insert((0, one)).0 += 1;
    }
    let words = |kind: SkippedKind, count: u64| {
        let words = kind.words()[(count > 1) as usize];
        if kind == SkippedKind::NotAnImage {
            format!("{words} ({})", extensions(skipped))
        } else {
            words.into()
        }
    };
    kinds.into_iter().map(|(kind, (count, example))| (count, words(kind, count), example)).collect()
}

/// "3 .txt, 2 .mp4, 1 without ending": of files that are no images by name, the most frequent endings first.
fn extensions(skipped: &[Skipped]) -> String {
    const SHOWN: usize = 6;
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    for one in skipped.iter().filter(|one| one.kind == SkippedKind::NotAnImage) {
        let ending = Path::new(&one.file).extension().map(|e| format!(".{}", e.to_string_lossy()));
        *endings.entry(ending.map_or("without ending".into(), |e| e.to_lowercase())).or_default() += 1;
    }
    let mut endings: Vec<_> = endings.into_iter().collect();
    endings.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more: u64 = endings.iter().skip(SHOWN).map(|(_, count)| count).sum();
    let mut parts: Vec<String> =
        endings.into_iter().take(SHOWN).map(|(ending, count)| format!("{count} {ending}")).collect();
    if more > 0 {
        parts.push(format!("{more} others"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_are_counted_by_kind_and_ending() {
        let not = |file: &str| Skipped::new(file, SkippedKind::NotAnImage, "no image by name");
        let mut all: Vec<_> = ["a.txt", "b.mp4", "c.TXT", "README"].map(not).to_vec();
        all.push(Skipped::new("x.jpg", SkippedKind::Broken, "empty file"));
        let counts = counts(&all);
        assert_eq!((counts[0].0, counts[0].2.file.as_str()), (1, "x.jpg"));
        assert_eq!(counts[1].1, "files ignored, being no images by name (2 .txt, 1 .mp4, 1 without ending)");
        let many: Vec<_> = (0..9).map(|n| not(&format!("f.x{n}"))).collect();
        assert!(extensions(&many).ends_with("1 .x5, 3 others"), "{}", extensions(&many));
    }
}
