//! Images of validation, or of the test, that are in training too: a score on those says nothing.
//!
//! A shard's index holds each sample's checksum, length and size. Where those of two samples are equal, their bytes are
//! compared. So nothing has to be noted while packing, and a pack that was interrupted finds the same. The index of
//! the split is kept: 24 bytes an image.

use std::path::Path;

use serde::Serialize;

use super::divide::Images;
use crate::data::dataset::{ShardEntry, SplitEntry};
use crate::data::shard::{Record, Shard};
use crate::data::{DataError, Split};

/// How many images of a split are training images too.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Duplicates {
    pub images: u64,
    /// The names of the first one, as training image and in this split.
    pub example: Option<[String; 2]>,
}

impl Duplicates {
    pub fn is_none(&self) -> bool {
        self.images == 0
    }
}

/// A sample of the split, by a name for its content, apart from chance.
struct Entry {
    key: (u32, u32, u32),
    shard: u32,
    position: u32,
    found: bool,
}

fn key(record: &Record) -> (u32, u32, u32) {
    (record.crc, record.length, record.width)
}

/// Counts the samples of a split whose bytes are those of a training sample.
pub fn find(
    images: &Images,
    out: &Path,
    splits: &[SplitEntry; 3],
    split: Split,
) -> Result<Duplicates, DataError> {
    let open = |entry: &ShardEntry| Shard::open(&out.join(&entry.file));
    let theirs = splits[split as usize].shards.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut entries: Vec<Entry> = (0..)
        .zip(&theirs)
        .flat_map(|(shard, open)| {
            (0..).zip(open.records()).map(move |(position, record)| (shard, position, record))
        })
        .map(|(shard, position, record)| Entry { key: key(record), shard, position, found: false })
        .collect();
    entries.sort_unstable_by_key(|entry| (entry.key, entry.shard, entry.position));
    let mut duplicates = Duplicates::default();
    if entries.is_empty() {
        return Ok(duplicates);
    }
    for shard in &splits[Split::Train as usize].shards {
        let shard = open(shard)?;
        for (position, record) in shard.records().iter().enumerate() {
            let key = key(record);
            let first = entries.partition_point(|entry| entry.key < key);
            for entry in entries[first..].iter_mut().take_while(|entry| entry.key == key) {
                if entry.found {
                    continue; // each image counts once
                }
                let other = theirs[entry.shard as usize].sample(entry.position as usize)?;
                if other.bytes != shard.sample(position)?.bytes {
                    continue;
                }
                entry.found = true;
                duplicates.images += 1;
                duplicates.example.get_or_insert_with(|| {
                    [images.name(Split::Train, record.id), images.name(split, other.id)]
                });
            }
        }
    }
    Ok(duplicates)
}
