//! Plans the four IDX files of an MNIST-layout set.

use std::path::{Path, PathBuf};

use super::{Content, Item, Items, PackOptions, Plan, SplitPlan};
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
pub fn plan<'a>(
    inputs: &[Input<'a>; 4],
    class_names: Option<&[&str]>,
    options: &PackOptions,
) -> Result<Plan<'a>, DataError> {
    let [train_images, train_labels, val_images, val_labels] = *inputs;
    let train = half(train_images, train_labels)?;
    let val = half(val_images, val_labels)?;
    let classes = class_list(inputs, &train.labels, &val.labels, class_names)?;
    let mut fnv = options.hash(Fnv::new().field(b"idx"));
    for class in &classes {
        fnv = fnv.field(class.as_bytes());
    }
    for part in [&train, &val] {
        let Survey { count, rows, columns, crc } = part.survey;
        fnv = fnv.number(count).number(rows.into()).number(columns.into()).number(crc.into());
        fnv = fnv.field(&part.labels);
    }
    let splits = [&train, &val]
        .map(|part| SplitPlan::cut((0..part.survey.count).map(|_| part.area()), options.shard_bytes));
    let items = Box::new(IdxItems { halves: [train, val] });
    Ok(Plan { classes, splits, hash: fnv.hex(), ignored: 0, items })
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

impl Items for IdxItems<'_> {
    fn item(&mut self, split: Split, number: u64) -> Result<Item, DataError> {
        let half = &mut self.halves[split as usize];
        let reader = match &mut half.reader {
            Some(reader) => reader,
            None => half.reader.insert(Images::open(half.input)?),
        };
        reader.skip(number - reader.position())?;
        let bytes = reader.read()?;
        let (width, height) = (reader.columns, reader.rows);
        let name = format!("{}: image {number}", half.input.name().display());
        let label = half.labels[number as usize].into();
        Ok(Item { name, label, content: Content::Grey { width, height, bytes } })
    }

    fn length(&self, split: Split, _number: u64) -> u64 {
        self.halves[split as usize].area()
    }
}
