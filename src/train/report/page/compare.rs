//! The page of several runs beside each other: their figures, their curves over each other, and where their recipes
//! differ.
//!
//! Runs may have other batches and other data. So the curves share an axis of epochs or of steps, as the reader
//! chooses, and a line says if the runs were evaluated on other images.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use indicatif::HumanCount;

use super::charts::{Chart, Series, Unit, render as charts};
use super::document;
use super::history::{Column, History};
use super::html::{counted, percent, text};
use super::recipe::value;
use super::section;
use crate::data::DataError;
use crate::files::{self, FileError};
use crate::train::checkpoint::{self, Metadata};
use crate::train::error::TrainError;
use crate::train::report::events::EvaluationRecord;
use crate::train::report::rows::{FEW_CLASSES, decimals, span};

/// Colours that a page has for runs; further ones begin again, dashed.
const COLOURS: usize = 8;

/// One of the runs.
pub struct Run {
    /// As the command named it.
    name: String,
    metadata: Metadata,
    /// None without a log.
    history: Option<History>,
}

impl Run {
    /// The run in a folder, or that of a checkpoint.
    ///
    /// # Errors
    /// If there is no checkpoint, a damaged one, or a log that cannot be read.
    pub fn read(path: &Path) -> Result<Run, TrainError> {
        let file = checkpoint::of(path)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        // The latest checkpoint has the settings of the run as it ended; an extension changes them.
        let latest = folder.join("checkpoint.bin");
        let metadata = checkpoint::verify(if latest.exists() { &latest } else { &file })?;
        let history = History::read(folder).map_err(DataError::io(folder.join("log.jsonl")))?;
        Ok(Run { name: path.display().to_string(), metadata, history })
    }

    fn classes(&self) -> usize {
        self.metadata.classes.len()
    }

    fn last(&self) -> Option<&EvaluationRecord> {
        self.history.as_ref()?.evaluations.last()
    }

    /// The log, if it has a step.
    fn trained(&self) -> Option<&History> {
        self.history.as_ref().filter(|history| !history.steps.is_empty())
    }

    fn colour(number: usize) -> String {
        let dashed = if number / COLOURS % 2 == 1 { " dashed" } else { "" };
        format!("c{}{dashed}", number % COLOURS)
    }
}

/// Writes the page of these runs.
///
/// # Errors
/// If the file cannot be written.
pub fn write(runs: &[Run], path: &Path) -> Result<(), FileError> {
    files::replace(path, render(runs).as_bytes())
}

/// The page.
pub fn render(runs: &[Run]) -> String {
    let names: Vec<String> = names(runs);
    let mut html = String::from("<p class=\"what\">");
    let list = names
        .iter()
        .enumerate()
        .map(|(number, name)| format!("<span class=\"key {}\">{}</span>", Run::colour(number), text(name)));
    html += &list.collect::<Vec<_>>().join(" ");
    html += "</p>\n";
    let data: BTreeSet<&String> = runs.iter().map(|run| &run.metadata.data).collect();
    if data.len() > 1 {
        html += "<p class=\"warning\">These runs were not trained and evaluated on the same data: their figures \
                 cannot be compared directly.</p>\n";
    }
    html += &section("result", "Result", &figures(runs, &names));
    html += &section("curves", "Curves", &curves(runs, &names));
    html += &section("recipe", "Where the recipes differ", &recipes(runs, &names));
    document(&counted(runs.len() as u64, "run"), &html)
}

/// The paths without the folders that all have in common.
fn names(runs: &[Run]) -> Vec<String> {
    let parts: Vec<Vec<&str>> =
        runs.iter().map(|run| run.name.trim_end_matches('/').split('/').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let common = (0..shortest.saturating_sub(1))
        .take_while(|&at| parts.iter().all(|path| path[at] == parts[0][at]))
        .count();
    parts.iter().map(|path| path[common..].join("/")).collect()
}

/// A table with a column for each run.
fn table(caption: &str, names: &[String], rows: &[(String, Vec<String>)]) -> String {
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table>\
         <caption>{caption}</caption><thead><tr><th scope=\"col\"></th>"
    );
    for (number, name) in names.iter().enumerate() {
        let _ = write!(
            html,
            "<th scope=\"col\" class=\"n\"><span class=\"key {}\">{}</span></th>",
            Run::colour(number),
            text(name)
        );
    }
    html += "</tr></thead>\n<tbody>\n";
    for (name, cells) in rows {
        let _ = write!(html, "<tr><th scope=\"row\">{name}</th>");
        cells.iter().for_each(|cell| {
            let _ = write!(html, "<td>{cell}</td>");
        });
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    html
}

fn figures(runs: &[Run], names: &[String]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut row = |name: &str, value: &dyn Fn(&Run) -> Option<String>| {
        let cells: Vec<Option<String>> = runs.iter().map(value).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".into())).collect();
            rows.push((name.into(), cells));
        }
    };
    let best = |run: &Run| {
        let (record, best) = run.history.as_ref()?.best(run.classes())?;
        Some((*record, best))
    };
    let many = runs.iter().any(|run| run.classes() > FEW_CLASSES);
    let batch = |run: &Run| run.metadata.recipe.batch_size;
    let seconds = |run: &Run| run.trained().map(|history| history.seconds(batch(run)));
    row("Model", &|run| Some(format!("EfficientNet-{}", run.metadata.model.name().to_uppercase())));
    row("Resolution", &|run| Some(format!("{0}×{0}", run.metadata.resolution)));
    row("Best top-1", &|run| best(run).map(|(_, best)| format!("<b>{}</b>", percent(best.top1))));
    row("Best top-1, by", &|run| {
        best(run).map(|(_, best)| if best.ema { "moving average" } else { "weights" }.into())
    });
    row("Best top-1, at epoch", &|run| best(run).map(|(record, _)| format!("{:.2}", record.epoch)));
    row("Last top-1", &|run| run.last().map(|last| percent(last.top1)));
    row("Last top-1, moving average", &|run| run.last()?.ema_top1.map(percent));
    if many {
        row("Last top-5", &|run| run.last().map(|last| percent(last.ema_top5.unwrap_or(last.top5))));
    }
    row("Last loss", &|run| run.last().map(|last| decimals(last.loss)));
    row("Last loss, moving average", &|run| run.last()?.ema_loss.map(decimals));
    row("Validation images", &|run| run.last().map(|last| HumanCount(last.images).to_string()));
    row("Steps", &|run| {
        let done = run.history.as_ref().map_or(run.metadata.step, History::last_step);
        Some(format!("{} of {}", HumanCount(done), HumanCount(run.metadata.steps)))
    });
    row("Training time", &|run| seconds(run).map(span));
    row("Images per second", &|run| {
        let history = run.trained()?;
        let images = (history.steps.len() * batch(run)) as f64;
        Some(HumanCount((images / history.seconds(batch(run)).max(1e-9)) as u64).to_string())
    });
    row("Waiting for data", &|run| {
        let history = run.trained()?;
        Some(percent(history.waited() / history.seconds(batch(run)).max(1e-9)))
    });
    row("Damaged lines of the log", &|run| {
        let damaged = run.history.as_ref()?.damaged;
        (damaged > 0).then(|| HumanCount(damaged).to_string())
    });
    table("Figures of the runs", names, &rows)
}

fn curves(runs: &[Run], names: &[String]) -> String {
    let mut html = String::new();
    for (_, name) in runs.iter().zip(names).filter(|(run, _)| run.history.is_none()) {
        let _ = writeln!(html, "<p class=\"none\">{} has no log.jsonl, so it has no curves.</p>", text(name));
    }
    let overlaid = |columns: &dyn Fn(&History) -> Vec<Column>, smooth: bool| -> Vec<Series> {
        let series = runs.iter().zip(names).enumerate().filter_map(|(number, (run, name))| {
            let history = run.history.as_ref()?;
            Some(Series {
                name: name.clone(),
                colour: Run::colour(number),
                columns: columns(history),
                smooth,
                epochs_per_step: history.epochs_per_step()?,
            })
        });
        series.collect()
    };
    let chart = |title, unit, low, high, series| Chart { title, unit, low, high, series };
    let all = [
        chart(
            "Validation top-1",
            Unit::Share,
            Some(0.0),
            None,
            overlaid(&|history| history.evaluated(|r| Some(r.ema_top1.unwrap_or(r.top1))), false),
        ),
        chart(
            "Validation loss",
            Unit::Number,
            None,
            None,
            overlaid(&|history| history.evaluated(|r| Some(r.ema_loss.unwrap_or(r.loss))), false),
        ),
        chart(
            "Training loss",
            Unit::Number,
            None,
            None,
            overlaid(&|history| history.curve(|r| Some(r.loss)), true),
        ),
        chart(
            "Learning rate",
            Unit::Number,
            Some(0.0),
            None,
            overlaid(&|history| history.curve(|r| Some(r.lr)), false),
        ),
        chart(
            "Images per second",
            Unit::Number,
            Some(0.0),
            None,
            overlaid(&|history| history.curve(|r| Some(r.images_per_second)), true),
        ),
    ];
    html += "<p>Validation is that of the moving average where a run keeps one. Losses of training compare only where \
             label smoothing, mixing and class weights are the same.</p>\n";
    html + &charts(&all)
}

fn recipes(runs: &[Run], names: &[String]) -> String {
    let fields: Vec<_> = runs.iter().map(|run| run.metadata.recipe.fields()).collect();
    let keys: BTreeSet<&String> = fields.iter().flat_map(|fields| fields.keys()).collect();
    let rows: Vec<(String, Vec<String>)> = keys
        .into_iter()
        .filter(|key| fields.iter().any(|other| other.get(*key) != fields[0].get(*key)))
        .map(|key| {
            let cells = fields.iter().map(|fields| value(fields.get(key))).collect();
            (format!("<code>{key}</code>"), cells)
        })
        .collect();
    if rows.is_empty() {
        return "<p class=\"none\">The recipes are the same.</p>\n".into();
    }
    table("Settings that differ", names, &rows)
}
