//! `report.html`: a page about a run, one file that asks the network for nothing.
//!
//! | module | |
//! |---|---|
//! | [`writer`] | the [`Reporter`](super::events::Reporter) that writes it at the end of a run |
//! | [`history`] | the log, thinned |
//! | [`facts`] | what neither log nor checkpoint keeps: the machine, what the run said; a page carries it to the next |
//! | [`shown`] | what an evaluation of the checkpoint gives: counts, calibration, pictures |
//! | `head`, `curves`, `classes`, `calibration`, `recipe` | the parts of the page |
//! | [`charts`], [`html`] | curves as SVG, and text that is safe to show |
//! | [`compare`] | the page of several runs |
//!
//! The page is complete without its script (page.js), which zooms and sorts. It is the same for the same run and
//! checkpoint, apart from times and speeds. A policy in its head forbids it to load anything, whatever a class is
//! called.

pub mod calibration;
pub mod charts;
mod classes;
pub mod compare;
mod curves;
pub mod facts;
mod head;
pub mod history;
pub mod html;
mod recipe;
pub mod shown;
pub mod writer;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use facts::Facts;
use history::History;
use html::text;
use shown::{Picture, Shown};

use crate::files::{self, FileError};
use crate::train::checkpoint::Metadata;

/// The page of a run, beside its log.
pub const FILE: &str = "report.html";

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// In the head of every page: such a file may be replaced.
const MARK: &str = "<meta name=\"generator\" content=\"effnet report\">";

/// What a page shows.
pub struct Page {
    /// The checkpoint as the command named it, and the directory that it lies in.
    pub checkpoint: PathBuf,
    pub metadata: Metadata,
    /// Trainable parameters.
    pub parameters: usize,
    pub facts: Facts,
    /// None without a log.
    pub history: Option<History>,
    /// None of a run that was interrupted.
    pub shown: Option<Shown>,
    /// The data that was evaluated, if it is not that of the run.
    pub other_data: Option<String>,
    /// Training images as the run saw them; none if the data is not that of the run.
    pub training: Vec<Picture>,
    /// Training images of each class, where the data is that of the run.
    pub training_images: Vec<u64>,
}

impl Page {
    pub fn render(&self) -> String {
        let model = format!("EfficientNet-{}", self.metadata.model.name().to_uppercase());
        let title = match self.facts.data.as_str() {
            "" => model,
            data => format!("{model} on {}", short_name(data)),
        };
        let mut parts = vec![head::render(self), curves::render(self)];
        if let Some(shown) = &self.shown {
            parts.push(classes::render(self, shown));
            parts.push(calibration::render(&shown.details));
            parts.push(shown::render(&self.metadata.classes, shown));
        } else {
            parts.push(head::without_evaluation(self));
        }
        parts.push(shown::render_training(&self.training));
        parts.push(recipe::render(self));
        let facts = html::data(&self.facts);
        parts.push(format!("<script type=\"application/json\" id=\"facts\">{facts}</script>\n"));
        document(&title, &parts.concat())
    }

    /// Writes the page.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        files::replace(path, self.render().as_bytes())
    }

    /// The folder of the run.
    fn run(&self) -> &Path {
        self.checkpoint.parent().unwrap_or(Path::new(""))
    }
}

/// The last part of a path: the whole path is too long for a title.
fn short_name(data: &str) -> &str {
    data.trim_end_matches('/').rsplit('/').next().unwrap_or(data)
}

/// A whole page around its parts.
fn document(title: &str, body: &str) -> String {
    let title = text(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{MARK}\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <main>\n<h1>{title}</h1>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// Whether the file at `path` is a page that this program has written.
pub fn is_page(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains(MARK)
}

/// A part of the page with a heading.
fn section(id: &str, heading: &str, content: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{heading}</h2>\n{content}</section>\n"
    )
}

#[cfg(test)]
mod tests;
