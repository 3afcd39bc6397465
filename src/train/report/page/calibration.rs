//! How far the network's confidence can be believed: the reliability diagram, and the expected calibration error, which
//! [`details`](crate::train::details) defines with its source.

use std::fmt::Write;

use super::html::percent;
use super::section;
use crate::train::details::{BINS, Bin, Details};

/// The plot's side and its margins.
const SIDE: f64 = 260.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 8.0;
const BELOW: f64 = 40.0;
const RIGHT: f64 = 10.0;

/// The part of the page.
pub fn render(details: &Details) -> String {
    let Some(found) = details.calibration() else {
        let none = "<p>No image has a probability: the logits are not finite.</p>\n";
        return section("calibration", "Calibration", none);
    };
    let gap = found.confidence - found.accuracy;
    let verdict = match gap {
        _ if gap.abs() < 0.01 => "On average it is as sure as it is right.".to_string(),
        _ if gap > 0.0 => format!("On average it is surer than it is right, by {}.", percent(gap)),
        _ => format!(
            "On average it is less sure than it is right, by {}; label smoothing and mixed images do that.",
            percent(-gap)
        ),
    };
    let html = format!(
        "<p>Images are grouped by the probability of the predicted class. Where a bar ends on the diagonal, the \
         network is right as often as it says. The expected calibration error (ECE, {BINS} bins; Guo et al. 2017) is \
         <b>{}</b>: mean confidence {}, accuracy {}. {verdict}</p>\n<div class=\"beside\">\n{}{}</div>\n",
        percent(found.error),
        percent(found.confidence),
        percent(found.accuracy),
        diagram(details),
        table(details)
    );
    section("calibration", "Calibration", &html)
}

fn accuracy(bin: &Bin) -> f64 {
    bin.correct as f64 / bin.images as f64
}

/// The bin's range of confidences: "60–67 %".
fn range(number: usize) -> String {
    let edge = |number: usize| number as f64 / BINS as f64 * 100.0;
    format!("{:.0}–{:.0} %", edge(number), edge(number + 1))
}

fn diagram(details: &Details) -> String {
    let (wide, tall) = (LEFT + SIDE + RIGHT, TOP + SIDE + BELOW);
    let x = |share: f64| LEFT + SIDE * share;
    let y = |share: f64| TOP + SIDE * (1.0 - share);
    let mut svg = format!(
        "<svg class=\"reliability\" viewBox=\"0 0 {wide} {tall}\" role=\"img\" aria-label=\"Reliability diagram; its \
         numbers are in the table beside it\"><g class=\"axes\">"
    );
    for tenth in [0, 2, 4, 6, 8, 10] {
        let share = f64::from(tenth) / 10.0;
        let (label, at, down) = (tenth * 10, x(share), y(share));
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {down:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label} %</text>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(1.0),
            LEFT - 6.0,
            down + 4.0,
            y(0.0) + 16.0
        );
    }
    let _ = write!(
        svg,
        "<text class=\"unit\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">confidence in %</text></g>",
        x(0.5),
        tall - 6.0
    );
    let most = details.bins.iter().map(|bin| bin.images).max().unwrap_or(1).max(1) as f64;
    for (number, bin) in details.bins.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
        let (left, width) = (x(number as f64 / BINS as f64) + 1.0, SIDE / BINS as f64 - 2.0);
        let (right, sure) = (accuracy(bin), bin.confidence / bin.images as f64);
        // A faint bar holds few images.
        let weight = 0.35 + 0.65 * (bin.images as f64 / most).sqrt();
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
             opacity=\"{weight:.2}\"/>\
             <path class=\"gap\" d=\"M{:.1} {:.1}V{:.1}\"/>",
            y(right),
            y(0.0) - y(right),
            left + width / 2.0,
            y(right),
            y(sure)
        );
    }
    let _ =
        writeln!(svg, "<path class=\"diagonal\" d=\"M{} {}L{} {}\"/></svg>", x(0.0), y(0.0), x(1.0), y(1.0));
    svg
}

fn table(details: &Details) -> String {
    let mut html = String::from(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Calibration by confidence\"><table>\
         <caption>Calibration by confidence</caption><thead><tr><th scope=\"col\">Confidence</th>\
         <th scope=\"col\" class=\"n\">Images</th><th scope=\"col\" class=\"n\">Mean confidence</th>\
         <th scope=\"col\" class=\"n\">Accuracy</th></tr></thead>\n<tbody>\n",
    );
    for (number, bin) in details.bins.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            range(number),
            indicatif::HumanCount(bin.images),
            percent(bin.confidence / bin.images as f64),
            percent(accuracy(bin))
        );
    }
    html += "</tbody></table></div>\n";
    html
}
