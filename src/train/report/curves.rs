//! The curves of a run as a picture: `curves.svg`, made from `log.jsonl` alone.
//!
//! Two panels show loss and accuracy over the epochs, of training and of validation. A training value covers only the
//! batch of one step and is noisy, so the raw values are drawn faintly and their moving mean over a fortieth of the run
//! on top. The SVG needs only lines and text, so this module writes it without a crate.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::events::{EvaluationRecord, Event, Header, LogLine, Reporter, StepRecord};
use crate::files;

pub const FILE: &str = "curves.svg";

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 420.0;
/// Margins of a panel's plot, for its labels.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 52.0;
/// The most points of a drawn curve: more would be finer than the picture.
const POINTS: usize = 400;

// Colours that colour-blind people can distinguish too (Okabe & Ito).
const TRAINING: &str = "#0072b2";
const VALIDATION: &str = "#d55e00";
const AVERAGE: &str = "#009e73";

/// Keeps the picture up to date. If it cannot be drawn, the run continues without it.
#[derive(Default)]
pub struct Curves {
    run: Option<(PathBuf, String)>,
}

impl Curves {
    fn start(&mut self, header: &Header) {
        let side = header.recipe.resolution;
        let title = format!("{} on {}, {side}×{side}", header.model_name(), header.data);
        self.run = Some((header.out.clone(), title));
    }
}

impl Reporter for Curves {
    fn report(&mut self, event: Event) {
        match event {
            Event::Started(header) => self.start(header),
            Event::Evaluation { .. } | Event::Finished(_) => {
                if let Some((out, title)) = &self.run {
                    let _ = write(out, title);
                }
            }
            _ => {}
        }
    }
}

/// Draws the run in the directory `run` from its log, and puts the picture beside the log.
///
/// # Errors
/// If the log cannot be read or the picture cannot be written. Lines of the log that are not records are skipped.
pub fn write(run: &Path, title: &str) -> io::Result<PathBuf> {
    let mut log = CurveLog::default();
    for line in super::log::read(&run.join("log.jsonl"))? {
        match line {
            LogLine::Step(record) => log.steps.push(record),
            LogLine::Evaluation(record) => log.evaluations.push(record),
            LogLine::Extension(_) => {}
        }
    }
    let path = run.join(FILE);
    files::replace(&path, log.draw(title).as_bytes()).map_err(|failed| failed.error)?;
    Ok(path)
}

/// The records of a run.
#[derive(Default)]
pub struct CurveLog {
    pub steps: Vec<StepRecord>,
    pub evaluations: Vec<EvaluationRecord>,
}

type Points = Vec<(f64, f64)>;

/// A line of a panel and its entry in the legend.
struct Curve {
    name: &'static str,
    colour: &'static str,
    /// Points drawn faintly behind the line.
    raw: Points,
    points: Points,
    dashed: bool,
    /// Whether each point is marked by a dot.
    dots: bool,
}

struct Panel {
    title: &'static str,
    left: f64,
    width: f64,
    curves: Vec<Curve>,
    /// Whether the values are shares, shown in per cent.
    shares: bool,
}

impl CurveLog {
    /// The picture as SVG text.
    pub fn draw(&self, title: &str) -> String {
        let half = WIDTH / 2.0;
        let panel = |title, left, curves, shares| Panel { title, left, width: half, curves, shares };
        let loss = vec![
            self.training("training", |r| r.loss),
            self.validation("validation", VALIDATION, false, |r| Some(r.loss)),
            self.validation("moving average", AVERAGE, true, |r| r.ema_loss),
        ];
        let accuracy = vec![
            self.training("training (augmented)", |r| r.accuracy),
            self.validation("validation top-1", VALIDATION, false, |r| Some(r.top1)),
            self.validation("moving average top-1", AVERAGE, true, |r| r.ema_top1),
        ];
        let mut svg = String::new();
        let style =
            r##"font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="#333333""##;
        let size = format!(r#"width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}""#);
        let _ = writeln!(svg, r#"<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>"#);
        let _ = writeln!(svg, r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##);
        text(&mut svg, LEFT, 26.0, r#"font-size="15" font-weight="bold""#, title);
        let end = self.last_epoch();
        for panel in [panel("Loss", 0.0, loss, false), panel("Accuracy", half, accuracy, true)] {
            panel.draw(&mut svg, end);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn last_epoch(&self) -> f64 {
        let steps = self.steps.iter().map(|r| r.epoch);
        let end = steps.chain(self.evaluations.iter().map(|r| r.epoch)).filter(|e| e.is_finite());
        let end = end.fold(0.0, f64::max);
        if end > 0.0 { end } else { 1.0 }
    }

    fn training(&self, name: &'static str, value: fn(&StepRecord) -> f64) -> Curve {
        let all: Points = self.steps.iter().map(|r| (r.epoch, value(r))).filter(finite).collect();
        let smooth = moving_mean(&all, all.len() / 40);
        Curve {
            name,
            colour: TRAINING,
            raw: thin(&all),
            points: thin(&smooth),
            dashed: false,
            dots: smooth.len() == 1,
        }
    }

    fn validation(
        &self,
        name: &'static str,
        colour: &'static str,
        dashed: bool,
        value: fn(&EvaluationRecord) -> Option<f64>,
    ) -> Curve {
        let points = self.evaluations.iter().filter_map(|r| Some((r.epoch, value(r)?)));
        let points: Points = points.filter(finite).collect();
        let dots = points.len() <= 40;
        Curve { name, colour, raw: Vec::new(), points: thin(&points), dashed, dots }
    }
}

fn finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// Mean over up to `reach` points on either side. At the start, where the curve is steep, the window shrinks on both
/// sides. At the end it shrinks only on the right, so that the last value is not that of a single step.
pub(super) fn moving_mean(points: &Points, reach: usize) -> Points {
    let mut sums = vec![0.0];
    for (_, y) in points {
        sums.push(sums[sums.len() - 1] + y);
    }
    let mean = |at: usize| {
        let before = reach.min(at);
        let after = before.min(points.len() - 1 - at);
        (sums[at + after + 1] - sums[at - before]) / (before + after + 1) as f64
    };
    points.iter().enumerate().map(|(at, &(x, _))| (x, mean(at))).collect()
}

/// At most [`POINTS`] points, evenly spaced, with the first and the last.
fn thin(points: &Points) -> Points {
    if points.len() <= POINTS {
        return points.clone();
    }
    (0..POINTS).map(|i| points[i * (points.len() - 1) / (POINTS - 1)]).collect()
}

impl Panel {
    fn draw(&self, svg: &mut String, end: f64) {
        let (low, high) = self.range();
        let (x0, x1) = (self.left + LEFT, self.left + self.width - RIGHT);
        let (y0, y1) = (HEIGHT - BOTTOM, TOP);
        let x = |epoch: f64| x0 + (x1 - x0) * epoch / end;
        let y = |value: f64| y0 + (y1 - y0) * (value.clamp(low, high) - low) / (high - low);
        let step = nice_step((high - low) / 6.0);
        for value in ticks(low, high, step) {
            let at = y(value);
            line(svg, (x0, at), (x1, at), "#e4e4e4");
            let label = if self.shares { format!("{:.0} %", value * 100.0) } else { decimal(value, step) };
            text(svg, x0 - 8.0, at + 4.0, r#"text-anchor="end""#, &label);
        }
        let step = nice_step(end / 7.0);
        for epoch in ticks(0.0, end, step) {
            line(svg, (x(epoch), y0), (x(epoch), y0 + 5.0), "#888888");
            text(svg, x(epoch), y0 + 19.0, r#"text-anchor="middle""#, &decimal(epoch, step));
        }
        line(svg, (x0, y0), (x1, y0), "#888888");
        text(svg, (x0 + x1) / 2.0, HEIGHT - 12.0, r#"text-anchor="middle""#, "epoch");
        text(svg, x0, 48.0, r#"font-size="13" font-weight="bold""#, self.title);
        self.legend(svg, x0);
        for curve in self.curves.iter().filter(|c| !c.points.is_empty()) {
            let at = |points: &Points| points.iter().map(|&(e, v)| (x(e), y(v))).collect::<Points>();
            polyline(svg, &at(&curve.raw), curve.colour, r#"stroke-width="1" stroke-opacity="0.22""#);
            let style = if curve.dashed {
                r#"stroke-width="2" stroke-dasharray="6 4""#
            } else {
                r#"stroke-width="2""#
            };
            polyline(svg, &at(&curve.points), curve.colour, style);
            for (x, y) in at(&curve.points).iter().filter(|_| curve.dots) {
                let colour = curve.colour;
                let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
            }
        }
    }

    /// The range of the vertical axis: 0 to 1 for accuracy; for the loss, that of the means, so that single extreme raw
    /// values are cut off.
    fn range(&self) -> (f64, f64) {
        let values = || self.curves.iter().flat_map(|c| &c.points).map(|p| p.1);
        let (low, high) = values().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        // Without any value, low is above high.
        if self.shares || low > high {
            return (0.0, 1.0);
        }
        let room = (0.06 * (high - low)).max(0.02 * high.abs()).max(1e-6);
        ((low - room).max(0.0), high + room)
    }

    /// The name of each curve and its last value, in a row.
    fn legend(&self, svg: &mut String, left: f64) {
        let mut x = left;
        for curve in &self.curves {
            let Some(&(_, last)) = curve.points.last() else { continue };
            let value = if self.shares { format!("{:.1} %", last * 100.0) } else { format!("{last:.3}") };
            let dash = if curve.dashed { r#" stroke-dasharray="6 4""# } else { "" };
            let _ = writeln!(
                svg,
                r#"<path d="M{x:.1} 62h18" stroke="{}" stroke-width="3"{dash}/>"#,
                curve.colour
            );
            let label = format!("{} {value}", curve.name);
            text(svg, x + 23.0, 66.0, r#"font-size="11""#, &label);
            x += 23.0 + 6.4 * label.len() as f64 + 12.0;
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
pub(super) fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|&step| step >= least * 0.999);
    step.unwrap_or(10.0 * power)
}

/// Multiples of `step` from `low` to `high`.
pub(super) fn ticks(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step - 1e-6).ceil() as i64;
    let last = (high / step + 1e-6).floor() as i64;
    (first..=last.min(first + 50)).map(|n| n as f64 * step).collect()
}

/// The value with as many decimals as the step needs.
pub(super) fn decimal(value: f64, step: f64) -> String {
    let places = (-(step * 1.001).log10().floor()).max(0.0) as usize;
    format!("{value:.places$}")
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" {style}>{content}</text>"#);
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x0, y0), (x1, y1)) = (from, to);
    let _ = writeln!(svg, r#"<path d="M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}" stroke="{colour}"/>"#);
}

fn polyline(svg: &mut String, points: &Points, colour: &str, style: &str) {
    if points.len() < 2 {
        return;
    }
    let _ =
        write!(svg, r#"<polyline fill="none" stroke="{colour}" stroke-linejoin="round" {style} points=""#);
    for (x, y) in points {
        let _ = write!(svg, "{x:.1},{y:.1} ");
    }
    svg.push_str("\"/>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: step as f64 / 10.0,
            loss,
            accuracy: 0.5,
            lr: 0.1,
            images_per_second: 1.0,
            gradient_norm: None,
            data_wait: 0.0,
            skipped: false,
        }
    }

    fn evaluation(step: u64, ema: Option<f64>) -> EvaluationRecord {
        EvaluationRecord {
            step,
            epoch: step as f64 / 10.0,
            top1: 0.75,
            top5: 0.9,
            loss: 1.0,
            images: 10,
            ema_top1: ema,
            ema_top5: ema,
            ema_loss: ema,
            images_per_second: 1.0,
        }
    }

    fn count(svg: &str, what: &str) -> usize {
        svg.matches(what).count()
    }

    #[test]
    fn picture_has_a_curve_and_a_legend_for_each_kind_of_record() {
        let steps = (1..=100).map(|n| step(n, 3.0 / n as f64)).collect();
        let plain = CurveLog { steps, evaluations: vec![evaluation(50, None), evaluation(100, None)] };
        let svg = plain.draw("b0 <32>");
        // Raw and smoothed training values and validation, in both panels.
        assert_eq!(count(&svg, "<polyline"), 6);
        assert_eq!(count(&svg, "<circle"), 4);
        assert!(svg.contains("b0 &lt;32&gt;") && svg.contains("validation top-1 75.0 %"));
        assert!(!svg.contains("moving average"));
        let with =
            CurveLog { evaluations: vec![evaluation(50, Some(0.5)), evaluation(100, Some(0.25))], ..plain };
        let svg = with.draw("t");
        assert_eq!(count(&svg, "<polyline"), 8);
        assert!(svg.contains("moving average top-1 25.0 %"));
    }

    #[test]
    fn picture_is_valid_for_empty_short_and_extreme_logs() {
        let odd = [
            CurveLog::default(),
            CurveLog { steps: vec![step(1, 2.0)], evaluations: vec![] },
            CurveLog {
                steps: vec![step(1, f64::NAN), step(2, f64::INFINITY)],
                evaluations: vec![evaluation(0, None)],
            },
            CurveLog { steps: vec![step(1, 0.0), step(2, 0.0)], evaluations: vec![] },
            CurveLog {
                steps: vec![step(1, 1e30), step(2, 1.0)],
                evaluations: vec![evaluation(2, Some(f64::NAN))],
            },
        ];
        for log in odd {
            let svg = log.draw("t");
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn picture_of_a_long_log_is_small() {
        let steps = (1..=200_000).map(|n| step(n, 1.0)).collect();
        let svg = CurveLog { steps, evaluations: (1..5000).map(|n| evaluation(n, None)).collect() }.draw("t");
        assert!(svg.len() < 60_000, "{}", svg.len());
    }

    #[test]
    fn moving_mean_keeps_a_straight_line_and_removes_noise() {
        let line: Points = (0..50).map(|n| (n as f64, 2.0 * n as f64)).collect();
        let smooth = moving_mean(&line, 7);
        for (a, b) in line.iter().zip(&smooth).take(43) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
        // The last value is the mean of the last point and the seven before it.
        assert!((smooth[49].1 - (98.0 - 7.0)).abs() < 1e-9);
        let noise: Points = (0..50).map(|n| (n as f64, (n % 2) as f64)).collect();
        let smooth = moving_mean(&noise, 10);
        assert!(smooth[15..35].iter().all(|p| (p.1 - 0.5).abs() < 0.03));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 1.0, nice_step(1.0 / 6.0)), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(nice_step(0.11), 0.2);
        assert_eq!(nice_step(3.0), 5.0);
        assert_eq!(nice_step(7.0), 10.0);
        assert_eq!(decimal(0.25, 0.05), "0.25");
        assert_eq!(decimal(14.0, 2.0), "14");
    }
}
