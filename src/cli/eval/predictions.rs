//! The classes of images as text, JSON lines or CSV, on standard output or in a file.
//!
//! A file gets its name when all results are in it and on disk: under this name there is the whole result, or what was
//! there before.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::EvalError;
use crate::data::codec::is_image_name;
use crate::files::{Disk, Draft, FileError};
use crate::names::{shown, shown_path};
use crate::train::checkpoint;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// An object a line.
    Json,
    /// A line for each image: its name, then each class and its probability.
    Csv,
}

impl Form {
    /// The form that a file's name asks for.
    pub fn of(file: &Path) -> Form {
        let ends = |endings: &[&str]| {
            file.extension()
                .is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
        };
        match () {
            () if ends(&["csv"]) => Form::Csv,
            () if ends(&["json", "jsonl"]) => Form::Json,
            () => Form::Text,
        }
    }
}

/// An image and its most probable classes, with their probabilities.
pub struct Prediction<'a> {
    pub image: &'a Path,
    pub ranked: Vec<(&'a str, f64)>,
    /// The class whose map was drawn, and the picture.
    pub explanation: Option<(&'a str, &'a Path)>,
}

impl Prediction<'_> {
    fn text(&self) -> String {
        let classes =
            self.ranked.iter().map(|(class, p)| format!("  {:6.2} %  {}\n", 100.0 * p, shown(class)));
        let explained = self.explanation.map_or(String::new(), |(class, file)| {
            format!("  what speaks for {}: {}\n", shown(class), shown_path(file))
        });
        format!("{}\n{}{explained}", shown_path(self.image), classes.collect::<String>())
    }

    fn json(&self) -> String {
        let classes: Vec<Value> =
            self.ranked.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
        let mut object = json!({ "image": self.image.to_string_lossy(), "classes": classes });
        if let Some((class, file)) = self.explanation {
            object["explanation"] = json!({ "class": class, "file": file.to_string_lossy() });
        }
        format!("{object}\n")
    }

    fn csv(&self) -> io::Result<Vec<u8>> {
        let shares: Vec<String> = self.ranked.iter().map(|(_, p)| p.to_string()).collect();
        let classes = self.ranked.iter().zip(&shares);
        // The bytes of the name, also if they are no text: the line finds its file again.
        let image = self.image.as_os_str().as_encoded_bytes();
        row([image].into_iter().chain(classes.flat_map(|((class, _), p)| [class.as_bytes(), p.as_bytes()])))
    }
}

/// A line of CSV.
fn row<'a>(fields: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).map_err(io::Error::from)?;
    writer.into_inner().map_err(|error| error.into_error())
}

/// Where results go.
enum Sink<'a> {
    Out(&'a mut dyn Write),
    File(PathBuf, BufWriter<Draft<'static>>),
}

/// The results that have been written so far.
pub struct Predictions<'a> {
    form: Form,
    sink: Sink<'a>,
}

impl<'a> Predictions<'a> {
    /// Begins to write `top` classes of each image, into `file` or else to `out`.
    ///
    /// # Errors
    /// A file that cannot be made, or must not be replaced.
    pub fn begin(
        form: Form,
        file: Option<&Path>,
        top: usize,
        out: &'a mut dyn Write,
    ) -> Result<Predictions<'a>, EvalError> {
        let sink = match file {
            Some(file) => {
                check(file)?;
                Sink::File(file.to_owned(), BufWriter::new(Draft::create(&Disk, file)?))
            }
            None => Sink::Out(out),
        };
        let mut predictions = Predictions { form, sink };
        if form == Form::Csv {
            let classes = (1..=top).flat_map(|n| [format!("class_{n}"), format!("probability_{n}")]);
            let names: Vec<String> = ["image".to_string()].into_iter().chain(classes).collect();
            predictions.write(&row(names.iter().map(String::as_bytes))?)?;
        }
        Ok(predictions)
    }

    /// Writes an image's classes.
    ///
    /// # Errors
    /// [`EvalError::Output`], or [`EvalError::File`] if the results go to one.
    pub fn push(&mut self, prediction: &Prediction) -> Result<(), EvalError> {
        match self.form {
            Form::Text => self.write(prediction.text().as_bytes()),
            Form::Json => self.write(prediction.json().as_bytes()),
            Form::Csv => self.write(&prediction.csv()?),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), EvalError> {
        match &mut self.sink {
            Sink::Out(out) => Ok(out.write_all(bytes)?),
            Sink::File(path, file) => Ok(file.write_all(bytes).map_err(at(path))?),
        }
    }

    /// Ends the writing: a file gets its name.
    ///
    /// # Errors
    /// As [`Predictions::push`].
    pub fn finish(self) -> Result<(), EvalError> {
        match self.sink {
            Sink::Out(out) => Ok(out.flush()?),
            Sink::File(path, file) => {
                let draft = file.into_inner().map_err(|error| at(&path)(error.into_error()))?;
                Ok(draft.commit()?)
            }
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError { path, error }
}

/// Refuses a name whose file is worth more than results.
pub fn check(file: &Path) -> Result<(), EvalError> {
    let refused = |problem| Err(EvalError::NoPlace { file: file.to_owned(), problem });
    if file.is_dir() {
        return refused("is a folder; --out needs the name of a file");
    }
    if checkpoint::is_checkpoint(file) {
        return refused("is a checkpoint, which the results would replace; give --out another name");
    }
    if is_image_name(file) {
        return refused("has the name of an image; give --out another name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_follow_the_ending_and_quote_what_they_must() {
        let forms = ["a.CSV", "a.jsonl", "a.json", "a.txt", "csv"].map(|name| Form::of(Path::new(name)));
        assert_eq!(forms, [Form::Csv, Form::Json, Form::Json, Form::Text, Form::Text]);
        let prediction = Prediction {
            image: Path::new("a, \"b\"\n.png"),
            ranked: vec![("cat, tabby", 0.75), ("=1+1", 0.1 + 0.2)],
            explanation: None,
        };
        let csv = String::from_utf8(prediction.csv().unwrap()).unwrap();
        assert_eq!(csv, "\"a, \"\"b\"\"\n.png\",\"cat, tabby\",0.75,=1+1,0.30000000000000004\n");
        assert_eq!(prediction.text(), "a, \"b\"\\n.png\n   75.00 %  cat, tabby\n   30.00 %  =1+1\n");
        let json: Value = serde_json::from_str(&prediction.json()).unwrap();
        assert_eq!(
            (&json["image"], &json["classes"][1]["probability"]),
            (&"a, \"b\"\n.png".into(), &(0.1 + 0.2).into())
        );
    }
}
