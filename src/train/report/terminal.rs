//! A report on a terminal: a table, a progress bar, one line for each evaluation.

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::events::{Event, Header, Reporter, StepRecord};
use super::profile;
use super::rows::{Row, StepMeans, evaluation_line, header_rows, outcome_rows};

/// How much an earlier step counts in the means that the bar shows, for each step since.
const KEEP: f64 = 0.96;

pub struct Terminal {
    bar: ProgressBar,
    means: StepMeans,
    batch: usize,
    classes: usize,
    colour: bool,
}

impl Terminal {
    /// Reports on standard output, in colour unless NO_COLOR is set.
    pub fn new() -> Terminal {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Terminal::on(ProgressDrawTarget::stdout(), colour)
    }

    pub fn on(target: ProgressDrawTarget, colour: bool) -> Terminal {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        Terminal { bar, means: StepMeans::default(), batch: 1, classes: 0, colour }
    }

    fn line(&self, line: &str) {
        self.bar.println(format!("  {line}"));
    }

    fn table(&self, rows: &[Row]) {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let (dim, plain) = if self.colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        self.bar.println("");
        rows.iter().for_each(|(name, value)| self.line(&format!("{dim}{name:<width$}{plain}  {value}")));
        self.bar.println("");
    }

    fn start(&mut self, header: &Header) {
        self.batch = header.recipe.batch_size;
        self.classes = header.classes;
        self.table(&header_rows(header));
        self.bar.set_style(self.style(""));
        self.bar.set_message("the first step is under way");
        self.bar.set_length(header.last_step);
        self.bar.set_position(header.first_step);
        self.bar.reset_eta();
    }

    /// How the bar ends: the time that is left is unknown before the first step.
    fn style(&self, end: &str) -> ProgressStyle {
        let bar = if self.colour { "{bar:24.green/dim}" } else { "{bar:24}" };
        let template = format!("{bar} {{pos}}/{{len}}  {{msg}}{end}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        style.progress_chars("━━─")
    }

    fn step(&mut self, record: &StepRecord) {
        if self.means.is_empty() {
            self.bar.set_style(self.style("  {eta} left"));
        }
        self.means.add(record, self.batch, KEEP);
        self.bar.set_message(format!("epoch {:.2}, {}", record.epoch, self.means.line()));
        self.bar.set_position(record.step);
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal::new()
    }
}

impl Reporter for Terminal {
    fn report(&mut self, event: Event) {
        match event {
            Event::Started(header) => self.start(header),
            Event::Step(record) => self.step(record),
            Event::Evaluating { images } => {
                self.bar.set_message(format!("evaluating {} images", HumanCount(images)));
            }
            Event::Evaluation { record, best } => {
                self.line(&evaluation_line(record, best, self.classes));
            }
            Event::Profile { report, steps } => {
                profile::lines(report, steps).iter().for_each(|line| self.line(line));
            }
            Event::Notice { text } => self.line(text),
            Event::Finished(outcome) => {
                self.table(&outcome_rows(outcome));
                self.bar.finish_and_clear();
            }
            // A notice says more of an extension.
            Event::Saved { .. } | Event::Extended(_) => {}
        }
    }
}
