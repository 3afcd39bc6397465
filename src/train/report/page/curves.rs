//! The curves of a run.

use indicatif::HumanCount;

use super::charts::{Chart, Series, Unit, render as charts};
use super::history::{Column, History, step_seconds};
use super::html::counted;
use super::{Page, section};
use crate::train::report::events::{EvaluationRecord, StepRecord};

pub(super) fn render(page: &Page) -> String {
    let Some(history) = &page.history else {
        let none =
            "<p class=\"none\">There is no log.jsonl beside this checkpoint, so there are no curves.</p>\n";
        return section("curves", "Curves", none);
    };
    let mut html = String::new();
    if history.damaged > 0 {
        let lines = counted(history.damaged, "line");
        html += &format!(
            "<p class=\"warning\">{lines} of log.jsonl could not be read and {} left out.</p>\n",
            if history.damaged == 1 { "is" } else { "are" }
        );
    }
    if history.evaluations.is_empty() {
        html += "<p class=\"none\">The log has no evaluation yet.</p>\n";
    }
    for extension in &history.extensions {
        html += &format!(
            "<p>At step {} the run was extended from {} to {} epochs.</p>\n",
            HumanCount(extension.step),
            extension.extended_from,
            extension.extended_to
        );
    }
    match history.epochs_per_step() {
        Some(epochs) => html += &charts(&of_run(history, epochs, page.metadata.recipe.batch_size)),
        None => html += "<p class=\"none\">The log has no step yet.</p>\n",
    }
    section("curves", "Curves", &html)
}

fn of_run(history: &History, epochs_per_step: f64, batch: usize) -> Vec<Chart> {
    let series = |name: &str, colour: &str, columns: Vec<Column>, smooth: bool| Series {
        name: name.into(),
        colour: colour.into(),
        columns,
        smooth,
        epochs_per_step,
    };
    let training = |name: &str, colour: &str, value: fn(&StepRecord) -> Option<f64>| {
        series(name, colour, history.curve(value), true)
    };
    let validation = |name: &str, colour: &str, value: fn(&EvaluationRecord) -> Option<f64>| {
        series(name, colour, history.evaluated(value), false)
    };
    let loss = vec![
        training("training", "train", |r| Some(r.loss)),
        validation("validation", "val", |r| Some(r.loss)),
        validation("moving average", "ema", |r| r.ema_loss),
    ];
    let accuracy = vec![
        training("training, augmented", "train", |r| Some(r.accuracy)),
        validation("validation", "val", |r| Some(r.top1)),
        validation("moving average", "ema", |r| r.ema_top1),
    ];
    let rate = vec![series("rate", "rate", history.curve(|r| Some(r.lr)), false)];
    let speed = vec![training("training", "speed", |r| Some(r.images_per_second))];
    let waits = history.curve(|r| waiting(r.data_wait, step_seconds(r, batch)));
    let most = most_waiting(&waits);
    let norm = vec![training("before clipping", "rate", |r| r.gradient_norm)];
    let chart = |title, unit, low, high, series| Chart { title, unit, low, high, series };
    vec![
        chart("Loss", Unit::Number, None, None, loss),
        chart("Accuracy", Unit::Share, Some(0.0), None, accuracy),
        chart("Learning rate", Unit::Number, Some(0.0), None, rate),
        chart("Images per second", Unit::Number, Some(0.0), None, speed),
        chart(
            "Waiting for data",
            Unit::Share,
            Some(0.0),
            Some(most),
            vec![series("share of the time", "wait", waits, true)],
        ),
        chart("Gradient norm", Unit::Number, Some(0.0), None, norm),
    ]
}

/// The end of the axis: a twentieth at least, because less than that is nothing to look at.
fn most_waiting(waits: &[Column]) -> f64 {
    waits.iter().map(|column| column.mean * 1.06).fold(0.05, f64::max).min(1.0)
}

/// The share of a step's time.
fn waiting(wait: f64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| (wait / seconds).min(1.0))
}
