//! Lists the four IDX files of an MNIST-layout set.

use std::path::{Path, PathBuf};

use super::listing::{Content, Items, Listed, Listing, Part};
use crate::data::fingerprint::Fnv;
use crate::data::idx::{Images, Input, Survey, labels};
use crate::data::{DataError, Split};

/// The four files: training images and labels, then validation images and labels.
pub struct Files([PathBuf; 4]);

impl Files {
    pub fn inputs(&self) -> [Input<'_>; 4] {
        self.0.each_ref().map(|path| Input::File(path))
    }
}

const NAMES: [(&str, &str); 4] = [
    ("train-images", "idx3-ubyte"),
    ("train-labels", "idx1-ubyte"),
    ("t10k-images", "idx3-ubyte"),
    ("t10k-labels", "idx1-ubyte"),
];

/// The four files in a directory; none if the directory has none of them.
///
/// # Errors
/// If some are there and some are missing.
pub fn find(source: &Path) -> Result<Option<Files>, DataError> {
    let found = NAMES.map(|(part, kind)| {
        ["-", "."]
            .iter()
            .flat_map(|dash| ["", ".gz"].map(|end| source.join(format!("{part}{dash}{kind}{end}"))))
            .find(|path| path.is_file())
    });
    if found.iter().all(Option::is_none) {
        return Ok(None);
    }
    if let Some(missing) = found.iter().position(Option::is_none) {
        let (part, kind) = NAMES[missing];
        let problem = format!("an IDX set without {part}-{kind} (or {part}-{kind}.gz)");
        return Err(DataError::Source { path: source.to_owned(), problem });
    }
    Ok(Some(Files(found.map(Option::unwrap_or_default))))
}

/// Reads all four files to their ends and checks that they fit together.
pub fn list<'a>(inputs: &[Input<'a>; 4], class_names: Option<&[&str]>) -> Result<Listing<'a>, DataError> {
    let [train_images, train_labels, val_images, val_labels] = *inputs;
    let train = half(train_images, train_labels)?;
    let val = half(val_images, val_labels)?;
    let classes = class_list(inputs, &train.labels, &val.labels, class_names)?;
    let halves = [train, val];
    let mut images = Vec::new();
    for split in Split::BOTH {
        let half = &halves[split as usize];
        let part = Some(Part::from(split));
        images.extend((0..half.survey.count).zip(&half.labels).map(|(number, &label)| Listed {
            part,
            label: label.into(),
            place: (split as u64) << 32 | number,
            length: half.area(),
        }));
    }
    Ok(Listing {
        kind: "IDX files".into(),
        classes,
        declared: true,
        images,
        skipped: Vec::new(),
        notices: Vec::new(),
        items: Box::new(IdxItems { halves }),
    })
}

/// One split's images and labels.
struct Half<'a> {
    input: Input<'a>,
    survey: Survey,
    labels: Vec<u8>,
    reader: Option<Images<'a>>,
}

impl Half<'_> {
    fn area(&self) -> u64 {
        u64::from(self.survey.rows) * u64::from(self.survey.columns)
    }
}

fn half<'a>(images: Input<'a>, label_file: Input<'a>) -> Result<Half<'a>, DataError> {
    let survey = Images::survey(images)?;
    let labels = labels(label_file)?;
    if labels.len() as u64 != survey.count {
        let problem =
            format!("{} labels for {} images in {}", labels.len(), survey.count, images.name().display());
        return Err(DataError::Source { path: label_file.name(), problem });
    }
    Ok(Half { input: images, survey, labels, reader: None })
}

/// The given names, or numbers up to the highest training label. Every label must occur in training, as every class
/// folder must hold an image. Label 0 may be missing, because some sets count from 1.
fn class_list(
    inputs: &[Input; 4],
    train: &[u8],
    val: &[u8],
    names: Option<&[&str]>,
) -> Result<Vec<String>, DataError> {
    let problem = |input: &Input, problem| Err(DataError::Source { path: input.name(), problem });
    let highest = usize::from(train.iter().copied().max().unwrap_or(0));
    let count = names.map_or(highest + 1, <[_]>::len);
    for (input, labels) in [(&inputs[1], train), (&inputs[3], val)] {
        if let Some(at) = labels.iter().position(|&label| usize::from(label) >= count) {
            let text =
                format!("label {} of image {at} is out of range: there are {count} classes", labels[at]);
            return problem(input, text);
        }
    }
    if count < 2 {
        return problem(&inputs[1], "all labels are 0: one class cannot be learnt, two are needed".into());
    }
    if let Some(gap) = (1..count).find(|&label| !train.iter().any(|&l| usize::from(l) == label)) {
        let text =
            format!("labels go up to {}, but none is {gap}: a class without a training image", count - 1);
        return problem(&inputs[1], text);
    }
    Ok(match names {
        Some(names) => names.iter().map(|name| name.to_string()).collect(),
        None => (0..count).map(|label| label.to_string()).collect(),
    })
}

struct IdxItems<'a> {
    halves: [Half<'a>; 2],
}

impl<'a> IdxItems<'a> {
    fn half(&self, place: u64) -> &Half<'a> {
        &self.halves[(place >> 32) as usize]
    }
}

impl Items for IdxItems<'_> {
    fn content(&mut self, place: u64) -> Result<Content, DataError> {
        let half = &mut self.halves[(place >> 32) as usize];
        let reader = match &mut half.reader {
            Some(reader) => reader,
            None => half.reader.insert(Images::open(half.input)?),
        };
        let number = place & u64::from(u32::MAX);
        if number < reader.position() {
            *reader = Images::open(half.input)?; // its images are in both splits: read from the start again
        }
        reader.skip(number - reader.position())?;
        let bytes = reader.read()?;
        Ok(Content::Pixels { width: reader.columns, height: reader.rows, channels: 1, bytes })
    }

    fn name(&self, place: u64) -> String {
        format!("{}: image {}", self.half(place).input.name().display(), place & u64::from(u32::MAX))
    }

    fn identify(&self, mut fnv: Fnv, _: &mut dyn Iterator<Item = Listed>) -> Fnv {
        for part in &self.halves {
            let Survey { count, rows, columns, crc } = part.survey;
            fnv = fnv.number(count).number(rows.into()).number(columns.into()).number(crc.into());
            fnv = fnv.field(&part.labels);
        }
        fnv
    }
}
