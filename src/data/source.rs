//! Where images come from: a packed set, or one that is made up. The loader needs no other distinction.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::augment::view::View;
use super::codec::decode_jpeg;
use super::dataset::Dataset;
use super::fingerprint::Fnv;
use super::normalise::Normalise;
use super::sampler::blocks;
use super::shard::{Encoding, Sample};
use super::synthetic::Synthetic;
use super::{DataError, Split};

/// A set of labelled images; cheap to clone.
#[derive(Clone, Debug)]
pub enum Source {
    Packed(Arc<Dataset>),
    Synthetic(Synthetic),
}

/// An image ready for preprocessing.
pub struct Image<'a> {
    pub id: u64,
    pub label: u32,
    pub view: View<'a>,
}

impl Source {
    /// A packed set's directory; see [`Dataset::open`].
    pub fn open(dir: &Path) -> Result<Source, DataError> {
        Ok(Source::Packed(Arc::new(Dataset::open(dir)?)))
    }

    /// A made-up set of `side`×`side` images.
    ///
    /// # Errors
    /// If a number is 0, or there are fewer images than classes.
    pub fn synthetic(classes: usize, train: usize, val: usize, side: usize) -> Result<Source, DataError> {
        let most = u32::MAX as usize;
        let sound = classes >= 2
            && (classes..=most).contains(&train)
            && (1..=most).contains(&val)
            && (1..=8192).contains(&side);
        if !sound {
            return Err(DataError::Invalid(format!(
                "synthetic data of {classes} classes, {train} training and {val} validation images of side {side}: \
                 at least two classes and one training image for each are needed"
            )));
        }
        Ok(Source::Synthetic(Synthetic { classes, train, val, side }))
    }

    pub fn classes(&self) -> usize {
        match self {
            Source::Packed(dataset) => dataset.classes().len(),
            Source::Synthetic(set) => set.classes,
        }
    }

    pub fn class_names(&self) -> Vec<String> {
        match self {
            Source::Packed(dataset) => dataset.classes().to_vec(),
            Source::Synthetic(set) => (0..set.classes).map(|class| class.to_string()).collect(),
        }
    }

    /// Number of images; 0 only of a set without test images.
    pub fn samples(&self, split: Split) -> usize {
        match self {
            Source::Packed(dataset) => dataset.samples(split),
            Source::Synthetic(set) => set.samples(split),
        }
    }

    /// Largest width and largest height.
    pub fn largest(&self, split: Split) -> (u32, u32) {
        match self {
            Source::Packed(dataset) => dataset.largest(split),
            Source::Synthetic(set) => (set.side as u32, set.side as u32),
        }
    }

    /// The shorter side of the image that is in the middle by this side.
    pub fn median_shorter_side(&self, split: Split) -> u32 {
        match self {
            Source::Packed(dataset) => dataset.median_shorter_side(split),
            Source::Synthetic(set) => set.side as u32,
        }
    }

    /// Number of images of each class.
    pub fn class_counts(&self, split: Split) -> Vec<u64> {
        match self {
            Source::Packed(dataset) => dataset.class_counts(split),
            Source::Synthetic(set) => {
                let mut counts = vec![0; set.classes];
                (0..set.samples(split)).for_each(|index| counts[set.label(index) as usize] += 1);
                counts
            }
        }
    }

    pub fn normalise(&self) -> Normalise {
        match self {
            Source::Packed(dataset) => dataset.normalise(),
            Source::Synthetic(set) => set.normalise(),
        }
    }

    /// A name for the content; a checkpoint records it.
    pub fn fingerprint(&self) -> String {
        match self {
            Source::Packed(dataset) => dataset.fingerprint(),
            Source::Synthetic(set) => [set.classes, set.train, set.val, set.side]
                .iter()
                .fold(Fnv::new().field(b"synthetic"), |fnv, &number| fnv.number(number as u64))
                .hex(),
        }
    }

    /// Bytes of a split's images on disk; none of images that are made up.
    pub fn bytes(&self, split: Split) -> u64 {
        match self {
            Source::Packed(dataset) => dataset.manifest().split(split).bytes,
            Source::Synthetic(_) => 0,
        }
    }

    /// The classes of the images, one after the other.
    pub fn labels(&self, split: Split) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Source::Packed(dataset) => Box::new(dataset.records(split).map(|record| record.label)),
            Source::Synthetic(set) => Box::new((0..set.samples(split)).map(|index| set.label(index))),
        }
    }

    /// The first image of each block of neighbours on disk, and the number of images; see [`blocks`].
    pub fn blocks(&self, split: Split) -> Vec<u32> {
        let mut starts = Vec::new();
        match self {
            Source::Packed(dataset) => dataset.blocks(split, &mut starts),
            Source::Synthetic(set) => {
                let lengths = (0..set.samples(split)).map(|_| (set.side * set.side * 3) as u64);
                blocks::cut(0, lengths, &mut starts);
            }
        }
        starts.push(self.samples(split) as u32);
        starts
    }

    /// Tells the system that images are read by blocks, with [`Source::will_need_block`].
    pub fn advise_blocks(&self, split: Split) {
        if let Source::Packed(dataset) = self {
            dataset.advise_random(split);
        }
    }

    /// Starts fetching neighbours on disk that are needed soon.
    pub fn will_need_block(&self, split: Split, images: Range<usize>) {
        if let Source::Packed(dataset) = self {
            dataset.will_need_block(split, images);
        }
    }

    /// Starts fetching an image that is needed soon.
    pub fn will_need(&self, split: Split, index: usize) {
        if let Source::Packed(dataset) = self {
            dataset.will_need(split, index);
        }
    }

    /// The id of the image at `index`, without looking at the image.
    pub fn id(&self, split: Split, index: usize) -> u64 {
        match self {
            Source::Packed(dataset) => dataset.id(split, index),
            Source::Synthetic(_) => Synthetic::id(split, index),
        }
    }

    /// The image at `index`. `buffer` holds the pixels, unless they lie ready in the map.
    ///
    /// # Errors
    /// [`DataError::DamagedSample`], naming file and sample.
    pub fn image<'a>(
        &'a self,
        split: Split,
        index: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Image<'a>, DataError> {
        self.read(split, index)?.decode(buffer)
    }

    /// The image at `index` as it is stored, compared with its checksum.
    ///
    /// # Errors
    /// [`DataError::DamagedSample`], naming file and sample.
    pub fn read(&self, split: Split, index: usize) -> Result<Stored<'_>, DataError> {
        let sample = match self {
            Source::Packed(dataset) => Some(dataset.sample(split, index)?),
            Source::Synthetic(_) => None,
        };
        Ok(Stored { source: self, split, index, sample })
    }

    /// The error for an image whose bytes match their checksum but cannot be used.
    pub(super) fn damaged(&self, split: Split, index: usize, problem: String) -> DataError {
        match self {
            Source::Packed(dataset) => dataset.damaged_sample(split, index, problem),
            Source::Synthetic(_) => DataError::Loader(problem),
        }
    }
}

/// An image as it is stored; nothing yet of one that is made up.
pub struct Stored<'a> {
    source: &'a Source,
    split: Split,
    index: usize,
    sample: Option<Sample<'a>>,
}

impl<'a> Stored<'a> {
    /// Number of stored bytes.
    pub fn bytes(&self) -> usize {
        self.sample.map_or(0, |sample| sample.bytes.len())
    }

    /// The pixels; see [`Source::image`].
    ///
    /// # Errors
    /// [`DataError::DamagedSample`], naming file and sample.
    pub fn decode(self, buffer: &'a mut Vec<u8>) -> Result<Image<'a>, DataError> {
        let Stored { source, split, index, sample } = self;
        let Some(Sample { id, label, width, height, channels, encoding, bytes }) = sample else {
            let Source::Synthetic(set) = source else { unreachable!("a packed image has a sample") };
            set.image(split, index, buffer);
            let side = set.side as u32;
            let view = View { width: side, height: side, channels: 3, bytes: buffer };
            return Ok(Image { id: Synthetic::id(split, index), label: set.label(index), view });
        };
        let bytes = match encoding {
            Encoding::Raw => bytes,
            Encoding::Jpeg => {
                decode_jpeg(bytes, width, height, channels, buffer)
                    .map_err(|problem| source.damaged(split, index, problem))?;
                buffer.as_slice()
            }
        };
        Ok(Image { id, label, view: View { width, height, channels, bytes } })
    }
}
