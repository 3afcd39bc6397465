//! The run for TensorBoard: an [event file](super::event_file) in the run directory, so that `tensorboard --logdir runs`
//! shows each run under its own name.
//!
//! | tag | |
//! |---|---|
//! | `train/…`, `eval/…` | the figures of each step and of each evaluation, by their names in `log.jsonl` |
//! | `run`, `recipe` | text: what the report says at the start; the recipe |
//! | `images` | the first training images, as they are augmented |
//!
//! A resumed run goes on in a new file, whose session marker voids what earlier files have after the checkpoint. A run
//! that had no event file before gets the lines of its log from before, with the time of now. The file is begun with
//! the first line of a call.

use std::io;
use std::path::PathBuf;

use super::event_file::{EventFile, SESSION_START, SessionLog, Summary, Value, What};
use super::events::{EvaluationRecord, Event, Header, LogLine, StepRecord};
use super::log;
use super::preview::Sheet;
use super::rows::header_rows;
use super::run_files::RunFile;
use crate::files::FileError;
use crate::names::shown;

/// Keeps the event file.
pub struct TensorBoard {
    /// The training images, until they are written.
    sheet: Option<Sheet>,
    run: Option<Run>,
    file: Option<EventFile>,
}

/// A run that has started.
struct Run {
    out: PathBuf,
    first_step: u64,
    texts: Vec<Value>,
}

impl TensorBoard {
    pub fn new(sheet: Sheet) -> TensorBoard {
        TensorBoard { sheet: Some(sheet), run: None, file: None }
    }

    /// Begins the file; the log has `line` already.
    fn begin(&mut self, line: &LogLine) -> io::Result<EventFile> {
        let Some(run) = &mut self.run else { return Err(io::Error::other("the run has not started")) };
        let existing = EventFile::existing(&run.out)?;
        let mut file = EventFile::create(&run.out, &existing)?;
        if !existing.is_empty() {
            let marker = What::SessionLog(SessionLog { status: SESSION_START });
            file.write(run.first_step + 1, marker)?;
            write(&mut file, line)?;
            return Ok(file);
        }
        let mut first = std::mem::take(&mut run.texts);
        if let Some(Sheet { size, png }) = self.sheet.take() {
            first.push(Value::image("images", size, png));
        }
        file.write(0, What::Summary(Summary { value: first }))?;
        log::read(&run.out.join("log.jsonl"))?.iter().try_for_each(|line| write(&mut file, line))?;
        Ok(file)
    }

    fn path(&self) -> PathBuf {
        let folder = || self.run.as_ref().map_or(PathBuf::new(), |run| run.out.join("events.out.tfevents"));
        self.file.as_ref().map_or_else(folder, |file| file.path.clone())
    }
}

impl RunFile for TensorBoard {
    fn record(&mut self, event: Event) -> Result<(), FileError> {
        let done = match (event, LogLine::of(event)) {
            (Event::Started(header), _) => {
                let Header { out, first_step, .. } = header;
                let (out, first_step) = (out.clone(), *first_step);
                self.run = Some(Run { out, first_step, texts: texts(header) });
                Ok(())
            }
            (Event::Saved { .. }, _) => self.file.as_ref().map_or(Ok(()), EventFile::sync),
            (_, Some(line)) => match &mut self.file {
                Some(file) => write(file, &line),
                None => self.begin(&line).map(|file| self.file = Some(file)),
            },
            _ => Ok(()),
        };
        done.map_err(|error| FileError { path: self.path(), error })
    }
}

/// Writes the figures of a line.
fn write(file: &mut EventFile, line: &LogLine) -> io::Result<()> {
    let mut value = Vec::new();
    let mut add =
        |tag: &str, figure: Option<f64>| value.extend(figure.map(|figure| Value::scalar(tag, figure)));
    match *line {
        LogLine::Step(StepRecord {
            loss, accuracy, lr, images_per_second, gradient_norm, data_wait, ..
        }) => {
            add("train/loss", Some(loss));
            add("train/accuracy", Some(accuracy));
            add("train/lr", Some(lr));
            add("train/images_per_second", Some(images_per_second));
            add("train/data_wait", Some(data_wait));
            add("train/gradient_norm", gradient_norm);
        }
        LogLine::Evaluation(EvaluationRecord {
            top1,
            top5,
            loss,
            ema_top1,
            ema_top5,
            ema_loss,
            images_per_second,
            ..
        }) => {
            add("eval/top1", Some(top1));
            add("eval/top5", Some(top5));
            add("eval/loss", Some(loss));
            add("eval/ema_top1", ema_top1);
            add("eval/ema_top5", ema_top5);
            add("eval/ema_loss", ema_loss);
            add("eval/images_per_second", Some(images_per_second));
        }
        LogLine::Extension(_) => return Ok(()),
    }
    file.write(line.step(), What::Summary(Summary { value }))
}

/// What the report says at the start, as a table, and the recipe.
fn texts(header: &Header) -> Vec<Value> {
    let cell = |text: &str| shown(text).replace('|', "\\|");
    let rows: String =
        header_rows(header).iter().map(|(name, value)| format!("| {name} | {} |\n", cell(value))).collect();
    let recipe = toml::to_string(&header.recipe).unwrap_or_default();
    // Four spaces make a block of code.
    let recipe: String = recipe.lines().map(|line| format!("    {line}\n")).collect();
    vec![Value::text("run", format!("| | |\n|---|---|\n{rows}")), Value::text("recipe", recipe)]
}
