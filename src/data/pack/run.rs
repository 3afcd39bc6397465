//! Executes a plan: shard by shard, a few images at a time. Finished shards are noted, so that an interrupted pack can
//! continue.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use rayon::ThreadPool;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::prepare::{Sums, pool, prepare};
use super::skipped::{Skipped, SkippedKind};
use super::{Broken, PackOptions, PackSummary, Plan, Progress, SplitSummary, duplicates, skipped};
use crate::data::codec::Conversions;
use crate::data::dataset::{MANIFEST, Manifest, PARTIAL, ShardEntry, SplitEntry};
use crate::data::shard::{Sample, Shard, ShardWriter, file_name};
use crate::data::{DataError, Split};
use crate::files::{self, sync_directory, temporary_name};

/// Images are prepared in groups of about this many bytes, as stored or as held before, and at most this many images. A
/// pack holds one group
/// in memory, besides the list of the source's files and one image being decoded on each thread.
const GROUP_BYTES: u64 = 32 << 20;
const GROUP_IMAGES: u64 = 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Partial {
    plan: String,
    shards: Vec<Done>,
}

/// A finished shard, with what the summary needs to know about it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    split: Split,
    number: u32,
    entry: ShardEntry,
    sums: Sums,
    conversions: Conversions,
    broken: Vec<Broken>,
}

/// Packs a plan to `out`.
pub fn run(
    mut plan: Plan,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PackSummary, DataError> {
    let finished = claim_directory(out, &plan.hash, options.force)?;
    let pool = pool(options.threads)?;
    let mut partial = Partial { plan: plan.hash.clone(), shards: Vec::new() };
    let mut resumed_shards = 0;
    let total = plan.splits.iter().map(|split| split.images).sum();
    let mut done = 0;
    for split in Split::ALL {
        let mut start = 0;
        let ends = plan.splits[split as usize].ends.clone();
        for (number, end) in (0_u32..).zip(ends) {
            let kept = finished.iter().find(|done| done.split == split && done.number == number);
            match kept.filter(|done| is_intact(out, done)) {
                Some(kept) => {
                    partial.shards.push(kept.clone());
                    resumed_shards += 1;
                }
                None => {
                    let mut report = |images| progress(Progress { split, done: done + images, total });
                    let work = Work { out, options, pool: &pool, split, number };
                    partial.shards.push(work.shard(&mut plan, start..end, &mut report)?);
                    write_partial(out, &partial)?;
                }
            }
            done += end - start;
            start = end;
            progress(Progress { split, done, total });
        }
    }
    finish(plan, out, options, partial, resumed_shards)
}

/// Takes the output directory: a new or empty one, or one with an interrupted pack of the same plan, or any with
/// `force`. Returns the shards that are already finished.
fn claim_directory(out: &Path, plan: &str, force: bool) -> Result<Vec<Done>, DataError> {
    let taken = |problem: &str| DataError::Output { path: out.to_owned(), problem: problem.into() };
    fs::create_dir_all(out).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => taken("exists and is not a directory"),
        _ => DataError::Io { path: out.to_owned(), error },
    })?;
    if out.join(MANIFEST).exists() {
        if !force {
            return Err(taken("holds a dataset already; use --force to replace it"));
        }
    } else if let Ok(bytes) = fs::read(out.join(PARTIAL)) {
        match serde_json::from_slice::<Partial>(&bytes) {
            Ok(partial) if partial.plan == plan => return Ok(partial.shards),
            _ if !force => {
                return Err(taken(
                    "holds an unfinished pack of another source or with other options; use --force to replace it",
                ));
            }
            _ => {}
        }
    } else if !force && holds_anything(out)? {
        return Err(taken("is not empty and holds no dataset; choose a new directory, or use --force"));
    }
    // The notes are written first: a pack killed between any two of these steps can be started again.
    write_partial(out, &Partial { plan: plan.into(), shards: Vec::new() })?;
    remove_shards(out)?;
    Ok(Vec::new())
}

/// Whether a directory holds more than the file left by a pack that was killed in its first step.
fn holds_anything(out: &Path) -> Result<bool, DataError> {
    let leftover = temporary_name(Path::new(PARTIAL));
    for entry in fs::read_dir(out).map_err(DataError::io(out))? {
        if entry.map_err(DataError::io(out))?.file_name() != leftover.as_os_str() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes `dataset.json`, then the shards, finished or not, and the list of what was left out. Files with other names
/// stay.
fn remove_shards(out: &Path) -> Result<(), DataError> {
    match fs::remove_file(out.join(MANIFEST)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(DataError::Io { path: out.join(MANIFEST), error });
        }
        _ => sync_directory(out)?,
    }
    for entry in fs::read_dir(out).map_err(DataError::io(out))? {
        let path = entry.map_err(DataError::io(out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".tmp").unwrap_or(&name);
        if is_shard_name(stem) || stem == skipped::SKIPPED {
            fs::remove_file(&path).map_err(DataError::io(&path))?;
        }
    }
    Ok(())
}

fn is_shard_name(name: &str) -> bool {
    let number = name
        .strip_suffix(".shard")
        .and_then(|stem| Split::ALL.iter().find_map(|split| stem.strip_prefix(&format!("{split}-"))));
    number.is_some_and(|digits| digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn write_partial(out: &Path, partial: &Partial) -> Result<(), DataError> {
    let bytes = serde_json::to_vec(partial).map_err(|e| DataError::Invalid(e.to_string()))?;
    Ok(files::replace(&out.join(PARTIAL), &bytes)?)
}

/// Whether a finished shard is still as it was written. Its bytes were on disk before it was noted.
fn is_intact(out: &Path, done: &Done) -> bool {
    if done.entry.samples == 0 {
        return true; // all of its images were broken, so it has no file
    }
    Shard::open(&out.join(&done.entry.file)).is_ok_and(|shard| {
        let header = shard.header();
        header.file_length == done.entry.bytes && format!("{:08x}", header.crc) == done.entry.index_crc
    })
}

/// One shard's work.
struct Work<'a> {
    out: &'a Path,
    options: &'a PackOptions,
    pool: &'a ThreadPool,
    split: Split,
    number: u32,
}

impl Work<'_> {
    fn shard(
        &self,
        plan: &mut Plan,
        range: Range<u64>,
        report: &mut dyn FnMut(u64),
    ) -> Result<Done, DataError> {
        let (split, number, options) = (self.split, self.number, self.options);
        let room = (range.end - range.start) as usize;
        let mut writer = ShardWriter::create(self.out, split, number, plan.classes.len() as u32, room)?;
        let mut sums = Sums::default();
        let mut conversions = Conversions::default();
        let mut broken = Vec::new();
        let mut next = range.start;
        while next < range.end {
            let first = next;
            let (mut items, mut bytes) = (Vec::new(), 0);
            while next < range.end && next - first < GROUP_IMAGES && (items.is_empty() || bytes < GROUP_BYTES)
            {
                let item = plan.images.item(split, next)?;
                bytes += plan.images.length(split, next).max(item.content.held());
                items.push(item);
                next += 1;
            }
            // An image may take long: between two of them is soon enough to stop.
            let work =
                |buffer: &mut Vec<u8>, item| (!options.stopped()).then(|| prepare(item, options, buffer));
            let prepared: Option<Vec<_>> =
                self.pool.install(|| items.into_par_iter().map_init(Vec::new, work).collect());
            let prepared = prepared.ok_or_else(|| DataError::Stopped { out: self.out.to_owned() })?;
            for (id, prepared) in (first..).zip(prepared) {
                match prepared {
                    Err(problem) => broken.push(problem),
                    Ok(image) => {
                        sums.add(&image.sums);
                        conversions.add(&image.conversions);
                        writer.push(&Sample {
                            id,
                            label: image.label,
                            width: image.width,
                            height: image.height,
                            channels: image.channels,
                            encoding: image.encoding,
                            bytes: &image.bytes,
                        })?;
                    }
                }
            }
            report(next - range.start);
        }
        let mut entry =
            ShardEntry { file: file_name(split, number), samples: 0, bytes: 0, index_crc: String::new() };
        if writer.samples() > 0 {
            let header = writer.finish()?;
            entry.samples = header.samples;
            entry.bytes = header.file_length;
            entry.index_crc = format!("{:08x}", header.crc);
        }
        Ok(Done { split, number, entry, sums, conversions, broken })
    }
}

/// The splits, and what their shards come to.
fn add_shards(shards: Vec<Done>) -> ([SplitEntry; 3], Sums, Conversions, Vec<Broken>) {
    let mut splits = Split::ALL.map(|_| SplitEntry::default());
    let mut sums = Sums::default();
    let mut converted = Conversions::default();
    let mut broken = Vec::new();
    for done in shards {
        if done.split == Split::Train {
            sums.add(&done.sums);
        }
        converted.add(&done.conversions);
        broken.extend(done.broken);
        let split = &mut splits[done.split as usize];
        if done.entry.samples > 0 {
            split.samples += done.entry.samples;
            split.bytes += done.entry.bytes;
            split.shards.push(done.entry);
        }
    }
    (splits, sums, converted, broken)
}

/// Writes `dataset.json`, which completes the set, and makes the summary.
fn finish(
    plan: Plan,
    out: &Path,
    options: &PackOptions,
    partial: Partial,
    resumed_shards: usize,
) -> Result<PackSummary, DataError> {
    let (splits, sums, converted, broken) = add_shards(partial.shards);
    let empty = |&split: &Split| splits[split as usize].samples == 0;
    if let Some(split) = Split::BOTH.into_iter().find(empty) {
        return Err(nothing_remains(out, split, &broken)?);
    }
    let summaries = splits.each_ref().map(|split| SplitSummary {
        images: split.samples,
        bytes: split.bytes,
        shards: split.shards.len(),
    });
    let duplicates = duplicates::find(&plan.images, out, &splits, Split::Val)?;
    let test_duplicates = duplicates::find(&plan.images, out, &splits, Split::Test)?;
    let mut notices = plan.notices;
    if plan.splits[Split::Test as usize].images > 0 && empty(&Split::Test) {
        notices.push("no test image could be read: the set has no test images".into());
    }
    let mut skipped = plan.skipped;
    let ignored = skipped.len() as u64;
    skipped.extend(broken.iter().map(|one| Skipped::new(&one.file, SkippedKind::Broken, &one.problem)));
    skipped::write(out, &skipped)?;
    let empty_classes = empty_classes(out, &plan.classes, &splits[Split::Train as usize])?;
    let normalise = sums.normalise();
    let manifest = Manifest::new(plan.classes, options.encoding.to_string(), normalise, splits);
    manifest.write(out)?;
    fs::remove_file(out.join(PARTIAL)).map_err(DataError::io(out))?;
    sync_directory(out)?;
    let [train, val, test] = summaries;
    Ok(PackSummary {
        out: out.to_owned(),
        classes: manifest.classes.len(),
        train,
        val,
        test,
        normalise,
        converted,
        source: plan.kind,
        notices,
        ignored,
        skipped,
        duplicates,
        test_duplicates,
        resumed_shards,
        broken,
        empty_classes,
        fingerprint: manifest.fingerprint(),
    })
}

/// Removes what was written, and gives the error for a split of which every image is broken.
fn nothing_remains(out: &Path, split: Split, broken: &[Broken]) -> Result<DataError, DataError> {
    remove_shards(out)?;
    fs::remove_file(out.join(PARTIAL)).map_err(DataError::io(out))?;
    let first = broken.first().map_or(String::new(), |b| format!(", the first {}: {}", b.file, b.problem));
    let count = broken.len();
    let are = if count == 1 { "1 is broken".into() } else { format!("{count} are broken") };
    let problem = format!("nothing remains of the {split} images: {are}{first}");
    Ok(DataError::Output { path: out.to_owned(), problem })
}

/// Classes without a training sample.
fn empty_classes(out: &Path, classes: &[String], train: &SplitEntry) -> Result<Vec<String>, DataError> {
    let mut seen = vec![false; classes.len()];
    for entry in &train.shards {
        for record in Shard::open(&out.join(&entry.file))?.records() {
            seen[record.label as usize] = true;
        }
    }
    Ok(classes.iter().zip(seen).filter(|(_, seen)| !seen).map(|(class, _)| class.clone()).collect())
}
