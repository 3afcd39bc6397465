//! `effnet-eval --explain`: for each image a picture of what speaks for a class.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::ImageFormat;

use super::images::Listed;
use super::{EvalError, EvalFlags};
use crate::data::{DataError, evaluate_image};
use crate::files::{self, FileError};
use crate::names::shown;
use crate::train::TrainError;
use crate::train::checkpoint::Metadata;
use crate::train::classify::Seen;
use crate::train::heat_map::picture;

/// The pictures to be drawn.
pub struct Explanations {
    /// Of each image.
    pictures: Vec<PathBuf>,
    /// The class to explain; none means the most probable one.
    class: Option<usize>,
}

impl Explanations {
    /// What the flags ask for, if they ask for pictures. Of one image --explain names the picture, of several images and
    /// of a folder the folder of the pictures.
    ///
    /// # Errors
    /// A name that cannot be the picture's, two images with one picture, a class that the checkpoint does not have.
    pub fn of(
        flags: &EvalFlags,
        listed: &Listed,
        metadata: &Metadata,
    ) -> Result<Option<Explanations>, EvalError> {
        let Some(place) = &flags.explain else { return Ok(None) };
        let class = flags.explain_class.as_ref().map(|name| class(name, &metadata.classes)).transpose()?;
        let single = matches!(&flags.images[..], [image] if !image.is_dir()) && !place.is_dir();
        let pictures = if single {
            if !place.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")) {
                let problem = "the picture is a PNG; give --explain a name that ends in .png, or a folder";
                return Err(EvalError::NoPlace { file: place.clone(), problem });
            }
            vec![place.clone()]
        } else {
            if place.is_file() {
                let problem = "is a file; for several images --explain needs a folder";
                return Err(EvalError::NoPlace { file: place.clone(), problem });
            }
            listed.names.iter().map(|name| place.join(picture_name(name))).collect()
        };
        check(&pictures, &listed.files)?;
        Ok(Some(Explanations { pictures, class }))
    }

    /// Draws the picture of an image, and returns the class that it explains and its place.
    ///
    /// # Errors
    /// An image that cannot be read a second time; a picture that cannot be written.
    pub fn draw(
        &self,
        number: usize,
        image: &Path,
        seen: &Seen,
        metadata: &Metadata,
    ) -> Result<(usize, &Path), EvalError> {
        let class = self.class.unwrap_or_else(|| seen.ranked(1)[0].0);
        let Some(map) = seen.map(class) else { unreachable!("classified without features") };
        let square =
            evaluate_image(image, metadata.resolution, metadata.recipe.crop).map_err(TrainError::from)?;
        let file = &self.pictures[number];
        let mut png = Cursor::new(Vec::new());
        let drawn = picture(&square, &map).write_to(&mut png, ImageFormat::Png);
        drawn.map_err(|error| TrainError::from(DataError::Invalid(error.to_string())))?;
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| FileError { path: folder.to_owned(), error })?;
        }
        files::replace(file, &png.into_inner())?;
        Ok((class, file))
    }
}

/// `name.png`, with the name's own ending before it: a.jpg and a.png have pictures of their own.
fn picture_name(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(".png");
    name.into()
}

fn class(name: &str, classes: &[String]) -> Result<usize, EvalError> {
    let found = classes.iter().position(|class| class == name);
    found.ok_or_else(|| {
        const SHOWN: usize = 10;
        let mut some: Vec<String> = classes.iter().take(SHOWN).map(|class| shown(class)).collect();
        if classes.len() > SHOWN {
            some.push("…".into());
        }
        EvalError::NoClass { name: shown(name), classes: classes.len(), some: some.join(", ") }
    })
}

/// Refuses pictures that would replace each other or an image.
fn check(pictures: &[PathBuf], images: &[PathBuf]) -> Result<(), EvalError> {
    let mut drawn: HashMap<&Path, usize> = HashMap::new();
    for (number, picture) in pictures.iter().enumerate() {
        if let Some(other) = drawn.insert(picture, number) {
            let [one, two] = [other, number].map(|number| images[number].clone());
            return Err(EvalError::OnePicture { picture: picture.clone(), one, two });
        }
    }
    let there: Vec<PathBuf> = pictures.iter().filter_map(|picture| fs::canonicalize(picture).ok()).collect();
    if there.is_empty() {
        return Ok(());
    }
    let images: HashSet<PathBuf> = images.iter().filter_map(|image| fs::canonicalize(image).ok()).collect();
    match there.into_iter().find(|picture| images.contains(picture)) {
        Some(file) => {
            let problem =
                "is one of the images, which its picture would replace; give --explain another place";
            Err(EvalError::NoPlace { file, problem })
        }
        None => Ok(()),
    }
}
