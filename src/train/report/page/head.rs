//! The top of a page: what the run is, and its figures.

use std::fmt::Write;

use indicatif::HumanCount;

use super::html::{counted, percent, text};
use super::{Page, section};
use crate::data::Split;
use crate::names::quoted;
use crate::train::evaluate::Evaluation;
use crate::train::report::events::EvaluationRecord;
use crate::train::report::rows::{FEW_CLASSES, decimals, span};

/// The lines under the title, links to the parts, the figures.
pub(super) fn render(page: &Page) -> String {
    let metadata = &page.metadata;
    let side = metadata.resolution;
    let classes = metadata.classes.len() as u64;
    let mut what = vec![
        format!("{side}×{side} pixels"),
        format!("{} parameters", HumanCount(page.parameters as u64)),
        match classes {
            1 => "one class".to_string(),
            _ => format!("{} classes", HumanCount(classes)),
        },
    ];
    if page.facts.train_images > 0 {
        what.push(counted(page.facts.train_images, "training image"));
    }
    if !page.facts.data.is_empty() {
        what.push(format!("data <code>{}</code>", text(&page.facts.data)));
    }
    let place = format!(
        "step {} of {}, epoch {:.2}",
        HumanCount(metadata.step),
        HumanCount(metadata.steps),
        metadata.epoch
    );
    let end = page.facts.end.as_deref().map_or(String::new(), |end| format!("The run: {}. ", text(end)));
    let checkpoint = text(&page.checkpoint.display().to_string());
    let mut html = format!(
        "<p class=\"what\">{}</p>\n\
         <p class=\"what\">{end}This page is about <code>{checkpoint}</code>: {place}.</p>\n{}",
        what.join(" · "),
        links(page)
    );
    if let Some(other) = &page.other_data {
        let other = text(other);
        let _ = writeln!(
            html,
            "<p class=\"warning\">What is evaluated here are the images of {other}, not those that the run was trained \
             with; the curves are the run's own.</p>"
        );
    }
    html += &section("result", "Result", &format!("{}{}", tiles(page), figures(page)));
    html
}

fn links(page: &Page) -> String {
    let mut html = String::from("<nav aria-label=\"Parts of this page\"><a href=\"#result\">Result</a> ");
    let all = [
        ("curves", "Curves", true),
        ("classes", "Classes", page.shown.is_some()),
        ("confusion", "Confusion", page.shown.is_some()),
        ("calibration", "Calibration", page.shown.is_some()),
        ("images", "Images", page.shown.is_some()),
        ("training", "Training images", !page.training.is_empty()),
        ("recipe", "Recipe", true),
    ];
    for (id, name, _) in all.into_iter().filter(|(.., there)| *there) {
        let _ = write!(html, "<a href=\"#{id}\">{name}</a> ");
    }
    html += "</nav>\n";
    html
}

/// The main numbers, large.
fn tiles(page: &Page) -> String {
    let classes = page.metadata.classes.len();
    let mut tiles: Vec<(String, &str, String)> = Vec::new();
    let history = page.history.as_ref();
    if let Some((record, best)) = history.and_then(|history| history.best(classes)) {
        let by = if best.ema { ", moving average" } else { "" };
        tiles.push((percent(best.top1), "best top-1", format!("epoch {:.2}{by}", record.epoch)));
    }
    if let Some(last) = history.and_then(|history| history.evaluations.last()) {
        let top1 = last.ema_top1.unwrap_or(last.top1);
        let by = if last.ema_top1.is_some() { ", moving average" } else { "" };
        tiles.push((percent(top1), "last top-1", format!("epoch {:.2}{by}", last.epoch)));
        if classes > FEW_CLASSES {
            tiles.push((percent(last.ema_top5.unwrap_or(last.top5)), "last top-5", String::new()));
        }
        tiles.push((decimals(last.ema_loss.unwrap_or(last.loss)), "last validation loss", String::new()));
    }
    if let Some(history) = history.filter(|history| !history.steps.is_empty()) {
        let batch = page.metadata.recipe.batch_size;
        let seconds = history.seconds(batch);
        let rate = (history.steps.len() * batch) as f64 / seconds.max(1e-9);
        let waited = percent(history.waited() / seconds.max(1e-9));
        tiles.push((span(seconds), "training time", "steps alone, without evaluations".into()));
        tiles.push((
            HumanCount(rate as u64).to_string(),
            "images per second",
            format!("{waited} waiting for data"),
        ));
    }
    let evaluated = history.is_some_and(|history| !history.evaluations.is_empty());
    if let Some(shown) = page.shown.as_ref().filter(|shown| !evaluated || shown.split != Split::Val) {
        let Evaluation { top1, .. } = shown.figures[usize::from(shown.ema)];
        tiles.push((percent(top1), "top-1 here", shown.words()));
    }
    let mut html = String::from("<div class=\"tiles\">\n");
    for (value, name, note) in tiles {
        let _ = writeln!(html, "<div><b>{value}</b> <span>{name}</span> <small>{note}</small></div>");
    }
    html += "</div>\n";
    html
}

/// The evaluations that matter, to the last digit that is printed elsewhere.
fn figures(page: &Page) -> String {
    let classes = page.metadata.classes.len();
    let mut rows = String::new();
    let mut row = |name: &str, whose: &str, evaluation: Evaluation| {
        let Evaluation { images, top1, top5, loss } = evaluation;
        let top5 = if classes > FEW_CLASSES { format!("<td>{}</td>", percent(top5)) } else { String::new() };
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{name}</th><td class=\"t\">{whose}</td><td>{}</td>{top5}<td>{}</td><td>{}</td></tr>",
            percent(top1),
            decimals(loss),
            HumanCount(images)
        );
    };
    if let Some(history) = &page.history {
        let best = history.best(classes).map(|(record, _)| record);
        let last = history.evaluations.last();
        let both = best.is_some() && best == last;
        let all = if both { [("best and last", best), ("", None)] } else { [("best", best), ("last", last)] };
        for (name, record) in all {
            let Some(record) = record else { continue };
            let name = format!("{name}, step {}", HumanCount(record.step));
            row(&name, "weights", raw(record));
            if let Some(average) = average(record) {
                row(&name, "moving average", average);
            }
        }
    }
    if let Some(shown) = &page.shown {
        let name = format!("this checkpoint, {}", shown.split_word());
        for (whose, figures) in ["weights", "moving average"].iter().zip(&shown.figures) {
            row(&name, whose, *figures);
        }
    }
    if rows.is_empty() {
        return "<p class=\"none\">Nothing has been evaluated yet.</p>\n".into();
    }
    let top5 = if classes > FEW_CLASSES { "<th scope=\"col\" class=\"n\">Top-5</th>" } else { "" };
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Evaluations\"><table>\
         <caption>Evaluations</caption><thead><tr><th scope=\"col\">Of</th>\
         <th scope=\"col\">By</th><th scope=\"col\" class=\"n\">Top-1</th>{top5}<th scope=\"col\" class=\"n\">Loss</th>\
         <th scope=\"col\" class=\"n\">Images</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn raw(record: &EvaluationRecord) -> Evaluation {
    let EvaluationRecord { images, top1, top5, loss, .. } = *record;
    Evaluation { images, top1, top5, loss }
}

fn average(record: &EvaluationRecord) -> Option<Evaluation> {
    let (top1, top5, loss) = (record.ema_top1?, record.ema_top5?, record.ema_loss?);
    Some(Evaluation { images: record.images, top1, top5, loss })
}

/// In place of what an evaluation shows.
pub(super) fn without_evaluation(page: &Page) -> String {
    let run = quoted(page.run());
    section(
        "classes",
        "Classes and images",
        &format!(
            "<p class=\"none\">The run was stopped or has diverged, so its weights were not evaluated once more for \
             this page. This command adds the classes, the calibration and the images:</p>\n\
             <pre><code>effnet-eval {} --report</code></pre>\n",
            text(&run)
        ),
    )
}
