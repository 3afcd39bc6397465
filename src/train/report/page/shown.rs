//! What an evaluation of a checkpoint gives a page, and its pictures.
//!
//! Both sets of weights are looked at while the images are read once. The page shows the one that decides which
//! checkpoint is the best: the moving average where the run keeps one.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::html::{counted, text};
use super::section;
use crate::data::augment::{Scratch, preprocess};
use crate::data::codec::{Pixels, encode_jpeg, scale_down};
use crate::data::{DataError, Source, Split};
use crate::train::checkpoint::Metadata;
use crate::train::details::{Details, Pick};
use crate::train::evaluate::{Evaluation, Seen};
use crate::train::recipe::Recipe;
use crate::train::report::events::EvaluationRecord;
use crate::train::report::preview::{first_images, png};

/// Images of each kind on a page.
const PICKS: usize = 16;
/// The side of a picture in pixels.
const SIDE: usize = 96;
/// Squares of at most so many pixels are icons: they are shown without loss.
const ICON: usize = 64;
const QUALITY: u8 = 82;

/// Collects what a page needs from an evaluation.
pub struct Collector(Vec<Details>);

impl Collector {
    pub fn new(metadata: &Metadata) -> Collector {
        let sets = metadata.recipe.weights().len();
        Collector(vec![Details::new(metadata.classes.len(), PICKS); sets])
    }

    pub fn add(&mut self, seen: Seen) {
        let Seen { weights, index, label, logits } = seen;
        self.0[weights].add(index, label, logits);
    }
}

/// See the module's description.
pub struct Shown {
    pub split: Split,
    /// Of the weights, and of their moving average if there is one.
    pub figures: Vec<Evaluation>,
    /// Whether `details` is about the moving average.
    pub ema: bool,
    pub details: Details,
    pub mistakes: Vec<Picture>,
    pub unsure: Vec<Picture>,
}

impl Shown {
    /// # Errors
    /// Those of reading the images that are shown.
    pub fn new(
        metadata: &Metadata,
        source: &Source,
        split: Split,
        figures: Vec<Evaluation>,
        Collector(mut sets): Collector,
    ) -> Result<Shown, DataError> {
        let ema = decides(&figures, metadata.classes.len());
        let details = sets.swap_remove(usize::from(ema));
        let pictures = |picks: &[Pick]| {
            picks.iter().map(|pick| of_pick(metadata, source, split, pick)).collect::<Result<Vec<_>, _>>()
        };
        let (mistakes, unsure) = (pictures(&details.mistakes)?, pictures(&details.unsure)?);
        Ok(Shown { split, figures, ema, details, mistakes, unsure })
    }

    /// "2,000 validation images, by the moving average of the weights".
    pub fn words(&self) -> String {
        let images = counted(self.details.images(), &format!("{} image", self.split_word()));
        let weights = if self.ema { "the moving average of the weights" } else { "the weights" };
        format!("{images}, by {weights}")
    }

    pub fn split_word(&self) -> &'static str {
        match self.split {
            Split::Train => "training",
            Split::Val => "validation",
            Split::Test => "test",
        }
    }
}

/// Whether the moving average is what decides, by the rule that chooses best.bin.
fn decides(figures: &[Evaluation], classes: usize) -> bool {
    let (raw, ema) = (figures[0], figures.get(1));
    let record = EvaluationRecord {
        step: 0,
        epoch: 0.0,
        top1: raw.top1,
        top5: raw.top5,
        loss: raw.loss,
        images: raw.images,
        ema_top1: ema.map(|ema| ema.top1),
        ema_top5: ema.map(|ema| ema.top5),
        ema_loss: ema.map(|ema| ema.loss),
        images_per_second: 0.0,
    };
    record.best(classes).is_some_and(|best| best.ema)
}

/// A picture inside the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    data: String,
    /// Pixels of the screen.
    width: usize,
    icon: bool,
    /// What the picture is, as HTML.
    caption: String,
}

impl Picture {
    /// R×R×3 bytes: an icon enlarged by a whole number, or a photograph made smaller.
    pub(super) fn new(square: &[u8], side: usize, caption: String) -> Result<Picture, DataError> {
        let icon = side <= ICON;
        let (kind, bytes) = if icon {
            ("png", png(square, side)?)
        } else {
            let whole =
                Pixels { width: side as u32, height: side as u32, channels: 3, bytes: square.to_vec() };
            let small = if side > SIDE {
                scale_down(&whole, SIDE as u32).map_err(DataError::Invalid)?
            } else {
                whole
            };
            ("jpeg", encode_jpeg(&small, QUALITY).map_err(DataError::Invalid)?)
        };
        let data = format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(bytes));
        Ok(Picture { data, width: if icon { side * (SIDE / side).max(1) } else { SIDE }, icon, caption })
    }

    fn render(&self, alt: &str, html: &mut String) {
        let Picture { data, width, icon, caption } = self;
        let class = if *icon { " class=\"icon\"" } else { "" };
        let _ = writeln!(
            html,
            "<figure><img{class} width=\"{width}\" height=\"{width}\" alt=\"{alt}\" src=\"{data}\">\
             <figcaption>{caption}</figcaption></figure>"
        );
    }
}

/// The image as the network saw it, with its label and what it was taken for.
fn of_pick(metadata: &Metadata, source: &Source, split: Split, pick: &Pick) -> Result<Picture, DataError> {
    let Pick { index, label, predicted, confidence, of_label } = *pick;
    let mut buffer = Vec::new();
    let image = source.image(split, index as usize, &mut buffer)?;
    let side = metadata.resolution;
    let mut square = vec![0; side * side * 3];
    preprocess(image.view, side, metadata.crop, None, &mut Scratch::default(), &mut square)
        .map_err(DataError::Invalid)?;
    let name = |class: u32| text(&metadata.classes[class as usize]);
    let percent = |share: f64| format!("{:.1}\u{a0}%", share * 100.0);
    let caption = if label == predicted {
        format!("<b>{}</b> {}<small>image {index}</small>", name(label), percent(confidence))
    } else {
        format!(
            "<b>{}</b> {}<span>is {} {}</span><small>image {index}</small>",
            name(predicted),
            percent(confidence),
            name(label),
            percent(of_label)
        )
    };
    Picture::new(&square, side, caption)
}

/// The first training images of the run, as it saw them.
///
/// # Errors
/// Those of reading them.
pub fn training(recipe: &Recipe, source: &Source) -> Result<Vec<Picture>, DataError> {
    let images = first_images(recipe, source)?;
    images.into_iter().map(|image| Picture::new(&image.square, image.side, image.caption)).collect()
}

/// The mistakes and the hits that are worth a look.
pub(super) fn render(classes: &[String], shown: &Shown) -> String {
    let mut html = String::new();
    let mut gallery = |heading: &str, note: &str, pictures: &[Picture], alt: &dyn Fn(usize) -> String| {
        let _ = write!(html, "<h3>{heading}</h3>\n<p>{note}</p>\n");
        if pictures.is_empty() {
            html += "<p class=\"none\">None.</p>\n";
            return;
        }
        html += "<div class=\"gallery\">\n";
        pictures.iter().enumerate().for_each(|(number, picture)| picture.render(&alt(number), &mut html));
        html += "</div>\n";
    };
    let name = |class: u32| text(&classes[class as usize]);
    gallery(
        "The most confident mistakes",
        "What the network took an image for and how sure it was, then what the image is by its label. \
         Wrong labels are often among these.",
        &shown.mistakes,
        &|number| {
            let pick = &shown.details.mistakes[number];
            format!("{}, taken for {}", name(pick.label), name(pick.predicted))
        },
    );
    gallery(
        "The least certain hits",
        "Correct, but barely: the probability that the network gave the right class.",
        &shown.unsure,
        &|number| format!("{}, correct", name(shown.details.unsure[number].label)),
    );
    section("images", "Images to look at", &html)
}

/// The training images as the first epoch saw them.
pub(super) fn render_training(pictures: &[Picture]) -> String {
    if pictures.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<p>The first images of the run's first epoch: cropped, mirrored, edited and mixed as the recipe says.</p>\n\
         <div class=\"gallery\">\n",
    );
    pictures.iter().for_each(|picture| picture.render("a training image", &mut html));
    html += "</div>\n";
    section("training", "Training images as the network saw them", &html)
}
