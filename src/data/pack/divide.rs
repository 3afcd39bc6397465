//! Divides what a source lists into training, validation and test, and makes the plan of it.

use super::listing::{Item, Items, Listed, Listing, Part};
use super::skipped::{Skipped, SkippedKind};
use super::{PackOptions, Plan, SplitPlan};
use crate::data::fingerprint::Fnv;
use crate::data::{DataError, Split};
use crate::random::{Purpose, draw};

/// A listed image of one of the sources: SOURCE itself, and that of `--val`.
#[derive(Clone, Copy)]
struct Placed {
    source: usize,
    image: Listed,
}

/// The sources of a plan, in which every image has its place.
pub struct Images<'a> {
    items: Vec<Box<dyn Items + 'a>>,
    splits: [Vec<Placed>; 3],
}

impl Images<'_> {
    pub fn item(&mut self, split: Split, number: u64) -> Result<Item, DataError> {
        let Placed { source, image } = self.splits[split as usize][number as usize];
        let items = &mut self.items[source];
        let content = items.content(image.place)?;
        Ok(Item { name: items.name(image.place), label: image.label, content })
    }

    pub fn name(&self, split: Split, number: u64) -> String {
        let Placed { source, image } = self.splits[split as usize][number as usize];
        self.items[source].name(image.place)
    }

    /// Estimated length as stored.
    pub fn length(&self, split: Split, number: u64) -> u64 {
        self.splits[split as usize][number as usize].image.length
    }
}

/// Makes a plan of a source and, where there is one, of the source of validation images.
///
/// # Errors
/// If fewer than two classes have a training image, or no image is left for a split; the text names no source.
pub fn divide<'a>(
    kind: &str,
    listing: Listing<'a>,
    val: Option<Listing<'a>>,
    options: &PackOptions,
) -> Result<Plan<'a>, String> {
    let Listing { kind: said, classes, declared, mut images, mut skipped, mut notices, items } = listing;
    let mut items = vec![items];
    let mut splits = [Vec::new(), Vec::new(), Vec::new()];
    choose_parts(&mut images, val.is_some(), &mut notices);
    if let Some(val) = val {
        if let left @ 1.. = images.iter().filter(|image| image.part == Some(Part::Val)).count() {
            notices.push(format!("{left} validation images of SOURCE are left out, because --val is given"));
        }
        place_by_part(images, &mut splits);
        let (val_images, val_items) = of_val(val, &classes, &mut skipped, &mut notices);
        let placed = val_images.into_iter().map(|image| Placed { source: 1, image });
        splits[Split::Val as usize] = placed.collect();
        items.push(val_items);
    } else if images.iter().any(|image| image.part == Some(Part::Val)) {
        place_by_part(images, &mut splits);
    } else {
        split_by_class(images, classes.len(), options, &mut splits, &mut notices);
    }
    let mut images = Images { items, splits };
    let classes = drop_classes(classes, declared, &mut images, &mut skipped, &mut notices)?;
    for split in Split::BOTH {
        if images.splits[split as usize].is_empty() {
            let each = "every class has one image only: none is left for validation";
            return Err(if split == Split::Val { each.into() } else { "no training images".into() });
        }
    }
    let hash = hash(kind, &classes, &images, options).hex();
    let plans = images
        .splits
        .each_ref()
        .map(|placed| SplitPlan::cut(placed.iter().map(|placed| placed.image.length), options.shard_bytes));
    Ok(Plan { kind: said, classes, splits: plans, hash, skipped, notices, images })
}

/// Settles what the parts that a source names mean here: a set always has training and validation images.
fn choose_parts(images: &mut [Listed], has_val: bool, notices: &mut Vec<String>) {
    let count = |images: &[Listed], part| images.iter().filter(|image| image.part == part).count();
    let test = count(images, Some(Part::Test));
    let val = count(images, Some(Part::Val));
    if count(images, Some(Part::Train)) + count(images, None) == 0 {
        images.iter_mut().for_each(|image| image.part = None); // one part by itself is all that there is
    } else if test > 0 && val == 0 && !has_val {
        notices.push("no validation images: the test images are taken".into());
        for image in images.iter_mut().filter(|image| image.part == Some(Part::Test)) {
            image.part = Some(Part::Val);
        }
    }
}

/// Images of SOURCE itself go to their parts; those of none are for training.
fn place_by_part(images: Vec<Listed>, splits: &mut [Vec<Placed>; 3]) {
    for image in images {
        let split = match image.part {
            Some(Part::Val) => Split::Val,
            Some(Part::Test) => Split::Test,
            Some(Part::Train) | None => Split::Train,
        };
        splits[split as usize].push(Placed { source: 0, image });
    }
}

/// The validation images of a source of its own: those that it says are validation, else all. Classes are matched by
/// name; images of other classes are left out.
fn of_val<'a>(
    val: Listing<'a>,
    classes: &[String],
    skipped: &mut Vec<Skipped>,
    notices: &mut Vec<String>,
) -> (Vec<Listed>, Box<dyn Items + 'a>) {
    let labels: Vec<Option<u32>> =
        val.classes.iter().map(|class| classes.iter().position(|c| c == class).map(|at| at as u32)).collect();
    let only_val = val.images.iter().any(|image| image.part == Some(Part::Val));
    let mut images = Vec::new();
    for mut image in val.images {
        if only_val && image.part != Some(Part::Val) {
            continue;
        }
        match labels[image.label as usize] {
            Some(label) => {
                image.label = label;
                images.push(image);
            }
            None => {
                let reason = format!("class `{}` has no training image", val.classes[image.label as usize]);
                skipped.push(Skipped::new(val.items.name(image.place), SkippedKind::Class, reason));
            }
        }
    }
    skipped.extend(val.skipped);
    notices.extend(val.notices);
    (images, val.items)
}

/// The same share of each class becomes validation, at least one image of a class with two.
fn split_by_class(
    images: Vec<Listed>,
    classes: usize,
    options: &PackOptions,
    splits: &mut [Vec<Placed>; 3],
    notices: &mut Vec<String>,
) {
    let mut counts = vec![0; classes];
    images.iter().for_each(|image| counts[image.label as usize] += 1);
    let mut chosen: Vec<_> =
        (0..classes).map(|label| choose(counts[label], label as u32, options).into_iter()).collect();
    if images.iter().any(|image| image.part == Some(Part::Train)) {
        let percent = options.val_fraction * 100.0;
        notices.push(format!(
            "no validation images: {percent} % of the training images of each class are taken"
        ));
    }
    for image in images {
        let is_val = chosen[image.label as usize].next().unwrap_or(false);
        splits[is_val as usize].push(Placed { source: 0, image });
    }
}

/// Which of a class's images become validation: those with the lowest draws.
fn choose(images: usize, label: u32, options: &PackOptions) -> Vec<bool> {
    let share = (images as f64 * options.val_fraction).round() as usize;
    let share = share.max(1).min(images.saturating_sub(1));
    let mut order: Vec<usize> = (0..images).collect();
    order.sort_by_key(|&image| (draw(options.seed, image as u64, label, Purpose::Split, 0), image));
    let mut chosen = vec![false; images];
    order[..share].iter().for_each(|&image| chosen[image] = true);
    chosen
}

/// Leaves out classes without a training image, unless the source itself declares its classes, and says so.
fn drop_classes(
    classes: Vec<String>,
    declared: bool,
    images: &mut Images,
    skipped: &mut Vec<Skipped>,
    notices: &mut Vec<String>,
) -> Result<Vec<String>, String> {
    let mut trained = vec![false; classes.len()];
    images.splits[Split::Train as usize]
        .iter()
        .for_each(|placed| trained[placed.image.label as usize] = true);
    let with = |wanted: bool| {
        classes.iter().zip(&trained).filter(move |(_, is)| **is == wanted).map(|(name, _)| name)
    };
    match with(true).collect::<Vec<_>>()[..] {
        [] => return Err(nothing(classes.is_empty(), skipped)),
        [one] => return Err(format!("`{one}` is the only class with training images; two are needed")),
        _ => {}
    }
    let what = if declared { "still classes" } else { "left out" };
    let untrained: Vec<String> = with(false).cloned().collect();
    match untrained.as_slice() {
        [] => return Ok(classes),
        [one] => notices.push(format!("class `{one}` has no training image: {what}")),
        [first, .., _] => {
            let count = untrained.len();
            notices.push(format!("{count} classes have no training image, such as `{first}`: {what}"));
        }
    }
    if declared {
        return Ok(classes);
    }
    leave_out(&classes, &trained, images, skipped);
    Ok(classes.into_iter().zip(trained).filter(|(_, trained)| *trained).map(|(class, _)| class).collect())
}

/// The error for a source without a training image.
fn nothing(no_classes: bool, skipped: &[Skipped]) -> String {
    match skipped.iter().find(|one| one.kind != SkippedKind::Junk) {
        _ if no_classes && skipped.is_empty() => "no class folders and no images with a class in it".into(),
        Some(Skipped { file, reason, .. }) => {
            let count = skipped.len();
            format!("no training images in its classes; {count} left out, such as {file}: {reason}")
        }
        None => "no training images in its classes".into(),
    }
}

/// Leaves out the images of the other classes, and numbers these from 0.
fn leave_out(classes: &[String], kept: &[bool], images: &mut Images, skipped: &mut Vec<Skipped>) {
    let numbers: Vec<u32> = kept
        .iter()
        .scan(0, |next, &kept| {
            let number = *next;
            *next += u32::from(kept);
            Some(number)
        })
        .collect();
    let Images { items, splits } = images;
    for placed in splits.iter_mut() {
        placed.retain_mut(|placed| {
            let label = placed.image.label as usize;
            placed.image.label = numbers[label];
            if !kept[label] {
                let reason = format!("class `{}` has no training image", classes[label]);
                let name = items[placed.source].name(placed.image.place);
                skipped.push(Skipped::new(name, SkippedKind::Class, reason));
            }
            kept[label]
        });
    }
}

/// Hashes everything that decides the bytes of the set: options, classes, and what the sources say of their images.
fn hash(kind: &str, classes: &[String], images: &Images, options: &PackOptions) -> Fnv {
    let mut fnv = options.hash(Fnv::new().field(kind.as_bytes()));
    for class in classes {
        fnv = fnv.field(class.as_bytes());
    }
    for (source, items) in images.items.iter().enumerate() {
        let of_source = |placed: &&Placed| placed.source == source;
        let mut placed = images.splits.iter().flatten().filter(of_source).map(|placed| placed.image);
        fnv = items.identify(fnv, &mut placed);
    }
    // Which image is of which part. Sets without test images have their hash from when there were two parts.
    if !images.splits[Split::Test as usize].is_empty() {
        for placed in &images.splits {
            fnv = fnv.field(&(placed.len() as u64).to_le_bytes());
        }
    }
    fnv
}
