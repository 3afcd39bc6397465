//! Curves of a page: complete without a script, which adds zooming and the values under the pointer.
//!
//! A curve's path lies in an inner `svg` with coordinates of its own: x from 0 to 10,000 over its run's steps, y from 0
//! to 1000 over the chart's range, downwards. To zoom is to change this inner `viewBox`; the path stays. Its numbers
//! stand once more as JSON, for the values under the pointer.

use std::fmt::Write;

use serde::Serialize;

use super::history::Column;
use super::html::{data, short, text};
use crate::train::report::curves::{decimal, moving_mean, nice_step, ticks};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
/// The plot's edges within that.
const LEFT: f64 = 54.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 30.0;
/// Coordinates of paths.
const ACROSS: f64 = 10_000.0;
const DOWN: f64 = 1000.0;
/// So many values or fewer are marked by dots.
const DOTS: usize = 60;

/// How a chart's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// In per cent.
    Share,
    Number,
}

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// The class that gives it its colour: see page.css.
    pub colour: String,
    pub columns: Vec<Column>,
    /// Whether the line is a moving mean, before the range of the values.
    pub smooth: bool,
    pub epochs_per_step: f64,
}

/// Several curves with the same axes.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: &'static str,
    pub unit: Unit,
    /// The least value of the vertical axis, or the least of the lines.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub series: Vec<Series>,
}

/// What the script knows of a chart.
#[derive(Serialize)]
struct ChartData<'a> {
    unit: Unit,
    low: f64,
    high: f64,
    floor: Option<f64>,
    series: Vec<SeriesData<'a>>,
}

#[derive(Serialize)]
struct SeriesData<'a> {
    name: &'a str,
    /// Epochs of a step.
    epochs: f64,
    /// The last step of each column, the line's value there, and the range of the steps.
    x: Vec<u64>,
    y: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lo: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hi: Vec<f64>,
}

/// The lengths of the horizontal axis of all charts of a page.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lengths {
    step: u64,
    epoch: f64,
}

impl Series {
    fn last(&self) -> u64 {
        self.columns.last().map_or(0, |column| column.last)
    }

    fn line(&self) -> Vec<(f64, f64)> {
        let points = self.columns.iter().map(|column| (column.last as f64, column.mean)).collect();
        if self.smooth { moving_mean(&points, points.len() / 40) } else { points }
    }

    fn data(&self) -> SeriesData<'_> {
        let column = |value: fn(&Column) -> f64| match self.smooth {
            true => self.columns.iter().map(|column| short(value(column))).collect(),
            false => Vec::new(),
        };
        SeriesData {
            name: &self.name,
            epochs: self.epochs_per_step,
            x: self.columns.iter().map(|column| column.last).collect(),
            y: self.line().iter().map(|point| short(point.1)).collect(),
            lo: column(|column| column.least),
            hi: column(|column| column.most),
        }
    }
}

/// The charts that have a curve, as HTML, and the data for the script.
pub fn render(charts: &[Chart]) -> String {
    let charts: Vec<Chart> = charts.iter().filter_map(Chart::without_empty).collect();
    let all = || charts.iter().flat_map(|chart| &chart.series);
    let step = all().map(Series::last).max().unwrap_or(1).max(1);
    let epoch = all().map(|series| series.last() as f64 * series.epochs_per_step).fold(0.0, f64::max);
    let lengths = Lengths { step, epoch: if epoch > 0.0 { epoch } else { 1.0 } };
    let mut html = String::from(
        "<div class=\"tools\" hidden><span>Drag over a curve to zoom, double click to see all; with the keyboard: \
         arrows, + and −, Escape.</span> <fieldset><legend>Across</legend>\
         <label><input type=\"radio\" name=\"unit\" value=\"epoch\" checked> epochs</label>\
         <label><input type=\"radio\" name=\"unit\" value=\"step\"> steps</label></fieldset>\
         <button type=\"button\" id=\"reset\" disabled>See all</button></div>\n<div class=\"charts\">\n",
    );
    for (number, chart) in charts.iter().enumerate() {
        chart.draw(number, lengths, &mut html);
    }
    html += "</div>\n";
    let known: Vec<ChartData> = charts.iter().map(Chart::data).collect();
    let known = data(&serde_json::json!({ "lengths": lengths, "charts": known }));
    let _ = writeln!(html, "<script type=\"application/json\" id=\"curve-data\">{known}</script>");
    html
}

impl Chart {
    fn without_empty(&self) -> Option<Chart> {
        let series: Vec<Series> =
            self.series.iter().filter(|series| !series.columns.is_empty()).cloned().collect();
        (!series.is_empty()).then(|| Chart { series, ..self.clone() })
    }

    /// The vertical axis: that of the lines, so that single extreme values are cut off.
    fn range(&self) -> (f64, f64) {
        let values = self.series.iter().flat_map(Series::line).map(|point| point.1);
        let (least, most) = values.fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(v), m.max(v)));
        let room = (0.06 * (most - least)).max(0.02 * most.abs()).max(1e-9);
        let (room, top) = match self.unit {
            Unit::Share => (room.max(0.005), 1.0),
            Unit::Number => (room, f64::INFINITY),
        };
        let lowest = if least >= 0.0 { (least - room).max(0.0) } else { least - room };
        let low = self.low.unwrap_or(lowest);
        (low, self.high.unwrap_or((most + room).min(top)).max(low + 1e-9))
    }

    fn data(&self) -> ChartData<'_> {
        let (low, high) = self.range();
        let series = self.series.iter().map(Series::data).collect();
        ChartData { unit: self.unit, low, high, floor: self.low, series }
    }

    fn value(&self, value: f64) -> String {
        match self.unit {
            Unit::Share => format!("{:.1}\u{a0}%", value * 100.0),
            Unit::Number if value != 0.0 && value.abs() < 1e-3 => format!("{value:.2e}"),
            Unit::Number if value.abs() < 100.0 => format!("{value:.3}"),
            Unit::Number if value.abs() < 1e6 => format!("{value:.0}"),
            Unit::Number => format!("{value:.2e}"),
        }
    }

    fn draw(&self, number: usize, lengths: Lengths, html: &mut String) {
        let (low, high) = self.range();
        let _ = write!(
            html,
            "<figure class=\"chart\" data-chart=\"{number}\">\n<figcaption><h3>{}</h3><div class=\"keys\">",
            self.title
        );
        let mut ends = Vec::new();
        for (at, Series { name, colour, .. }) in self.series.iter().enumerate() {
            let last = self.series[at].line().last().map_or(0.0, |point| point.1);
            let (name, last) = (text(name), self.value(last));
            ends.push(format!("{name} {last}"));
            let _ = write!(
                html,
                "<button type=\"button\" class=\"key {colour}\" aria-pressed=\"true\" data-series=\"{at}\">{name} \
                 <b>{last}</b></button>"
            );
        }
        let _ = write!(
            html,
            "</div></figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" tabindex=\"0\" role=\"img\" \
             aria-label=\"{} over {:.2} epochs, {} steps. At the end: {}\">",
            self.title,
            lengths.epoch,
            lengths.step,
            ends.join(", ")
        );
        self.axes(low, high, lengths.epoch, html);
        let (wide, tall) = (RIGHT - LEFT, BOTTOM - TOP);
        let _ = write!(
            html,
            "<svg class=\"plot\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{wide}\" height=\"{tall}\" \
             viewBox=\"0 0 {ACROSS} {DOWN}\" preserveAspectRatio=\"none\">"
        );
        for (at, series) in self.series.iter().enumerate() {
            let scale = series.last() as f64 * series.epochs_per_step / lengths.epoch;
            let _ = write!(
                html,
                "<g class=\"{}\" data-series=\"{at}\" transform=\"scale({} 1)\">",
                series.colour,
                short(scale)
            );
            self.paths(series, (low, high), html);
            html.push_str("</g>");
        }
        html.push_str(
            "</svg><path class=\"cursor\"/><rect class=\"brush\"/></svg>\n\
             <output class=\"values\"></output>\n</figure>\n",
        );
    }

    /// Lines and numbers of the axes. The script draws them anew for another part or another width.
    fn axes(&self, low: f64, high: f64, epochs: f64, html: &mut String) {
        html.push_str("<g class=\"axes\">");
        let step = nice_step((high - low) / 5.0);
        for value in ticks(low, high, step) {
            let y = BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);
            let label = match self.unit {
                Unit::Share => format!("{} %", decimal(value * 100.0, step * 100.0)),
                Unit::Number if value == 0.0 => "0".into(),
                Unit::Number if !(1e-2..1e6).contains(&high) => format!("{value:.1e}").replace(".0e", "e"),
                Unit::Number => decimal(value, step),
            };
            let _ = write!(
                html,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 7.0,
                y + 4.0
            );
        }
        let step = nice_step(epochs / 6.0);
        for value in ticks(0.0, epochs, step) {
            let x = LEFT + (RIGHT - LEFT) * value / epochs;
            let _ = write!(
                html,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 15.0,
                if value == 0.0 { "0".into() } else { decimal(value, step) }
            );
        }
        let _ = write!(
            html,
            "<text class=\"unit\" x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\">epochs</text></g>",
            HEIGHT - 3.0
        );
    }

    fn paths(&self, series: &Series, (low, high): (f64, f64), html: &mut String) {
        let last = series.last().max(1) as f64;
        let point = |step: f64, value: f64| {
            let down = DOWN * (high - value) / (high - low);
            // What lies far outside is cut off by the plot's edge.
            let down = down.clamp(-3.0 * DOWN, 4.0 * DOWN);
            (short_1(ACROSS * step / last), short_1(down))
        };
        let path = |points: &mut dyn Iterator<Item = (String, String)>| {
            let mut path = String::new();
            for (number, (x, y)) in points.enumerate() {
                let _ = write!(path, "{}{x} {y}", if number == 0 { 'M' } else { 'L' });
            }
            path
        };
        let columns = &series.columns;
        if series.smooth {
            let upper = columns.iter().map(|c| point(c.last as f64, c.most));
            let lower = columns.iter().rev().map(|c| point(c.last as f64, c.least));
            let _ = write!(html, "<path class=\"band\" d=\"{}\"/>", path(&mut upper.chain(lower)));
        }
        let line = series.line();
        let points = || line.iter().map(|&(x, y)| point(x, y));
        let _ = write!(html, "<path class=\"line\" d=\"{}\"/>", path(&mut points()));
        if !series.smooth && line.len() <= DOTS || line.len() == 1 {
            let dots: String = points().map(|(x, y)| format!("M{x} {y}h.01")).collect();
            let _ = write!(html, "<path class=\"dots\" d=\"{dots}\"/>");
        }
    }
}

/// One decimal, none if it is 0.
fn short_1(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(String::from).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::report::page::history::thin;

    fn series(name: &str, points: &[(u64, f64)], smooth: bool) -> Series {
        Series {
            name: name.into(),
            colour: "a".into(),
            columns: thin(points, 1000),
            smooth,
            epochs_per_step: 0.01,
        }
    }

    fn chart(series: Vec<Series>) -> Chart {
        Chart { title: "Loss", unit: Unit::Number, low: None, high: None, series }
    }

    #[test]
    fn charts_have_a_path_and_numbers_for_each_curve() {
        let steps: Vec<(u64, f64)> = (1..=100).map(|n| (n, 3.0 / n as f64)).collect();
        let html = render(&[chart(vec![
            series("<training>", &steps, true),
            series("validation", &[(50, 0.5), (100, 0.25)], false),
            series("nothing", &[], false),
        ])]);
        assert_eq!(html.matches("class=\"line\"").count(), 2);
        assert_eq!((html.matches("class=\"band\"").count(), html.matches("class=\"dots\"").count()), (1, 1));
        assert!(html.contains("validation <b>0.250</b>") && html.contains("&lt;training&gt;"), "{html}");
        let json = html.split("id=\"curve-data\">").nth(1).unwrap().split("</script>").next().unwrap();
        let known: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(known["lengths"]["step"], 100);
        assert_eq!(known["charts"][0]["series"][1]["y"], serde_json::json!([0.5, 0.25]));
        assert_eq!(known["charts"][0]["series"][0]["hi"][0], 3.0);
        assert_eq!(render(&[chart(vec![series("nothing", &[], false)])]).matches("<figure").count(), 0);
    }

    #[test]
    fn odd_values_give_finite_paths() {
        for points in
            [vec![(1, 0.0)], vec![(1, 0.0), (2, 0.0)], vec![(1, 1e30), (2, 1.0)], vec![(5, -1.0), (6, -1.0)]]
        {
            for smooth in [true, false] {
                let html = render(&[chart(vec![series("a", &points, smooth)])]);
                assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            }
        }
    }

    #[test]
    fn charts_of_a_long_log_are_small() {
        let steps: Vec<(u64, f64)> = (1..=300_000).map(|n| (n, ((n * 7919) % 1009) as f64)).collect();
        let html = render(&vec![chart(vec![series("a", &steps, true)]); 5]);
        assert!(html.len() < 500_000, "{}", html.len());
    }
}
