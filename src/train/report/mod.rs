//! What a person sees of a run: a table and a progress bar on a terminal, plain lines in a pipe, JSON for programs.
//!
//! A reader who goes away (a closed pipe) ends the report, not the run.

pub mod curves;
pub mod events;
pub mod log;
pub mod profile;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::events::{End, EvaluationRecord, Header, Outcome, Reporter, StepRecord};
use crate::ops::{ProfileReport, ProfileRow};
use crate::train::memory::bytes;
use crate::train::recipe::Optimizer;

/// Passes every event on to several reporters, in order.
pub struct All(pub Vec<Box<dyn Reporter>>);

impl Reporter for All {
    fn started(&mut self, header: &Header) {
        self.0.iter_mut().for_each(|r| r.started(header));
    }
    fn step(&mut self, record: &StepRecord) {
        self.0.iter_mut().for_each(|r| r.step(record));
    }
    fn evaluating(&mut self, images: u64) {
        self.0.iter_mut().for_each(|r| r.evaluating(images));
    }
    fn evaluation(&mut self, record: &EvaluationRecord, best: bool) {
        self.0.iter_mut().for_each(|r| r.evaluation(record, best));
    }
    fn profile(&mut self, report: &ProfileReport, steps: u64) {
        self.0.iter_mut().for_each(|r| r.profile(report, steps));
    }
    fn saved(&mut self, checkpoint: &Path, step: u64) {
        self.0.iter_mut().for_each(|r| r.saved(checkpoint, step));
    }
    fn notice(&mut self, line: &str) {
        self.0.iter_mut().for_each(|r| r.notice(line));
    }
    fn finished(&mut self, outcome: &Outcome) {
        self.0.iter_mut().for_each(|r| r.finished(outcome));
    }
}

/// Keeps `curves.svg` up to date. A picture that cannot be drawn is no reason to stop a run.
#[derive(Default)]
pub struct Curves {
    run: Option<(std::path::PathBuf, String)>,
}

impl Curves {
    fn draw(&self) {
        if let Some((out, title)) = &self.run {
            let _ = curves::write(out, title);
        }
    }
}

impl Reporter for Curves {
    fn started(&mut self, header: &Header) {
        let Header { recipe, data, .. } = header;
        let title = format!(
            "EfficientNet-{} on {data}, {}×{}",
            model_name(header),
            recipe.resolution,
            recipe.resolution
        );
        self.run = Some((header.out.clone(), title));
    }
    fn evaluation(&mut self, _: &EvaluationRecord, _: bool) {
        self.draw();
    }
    fn finished(&mut self, _: &Outcome) {
        self.draw();
    }
}

fn model_name(header: &Header) -> String {
    header.recipe.model.name().to_uppercase()
}

/// The run as pairs of a name and a value.
pub fn header_rows(header: &Header) -> Vec<(&'static str, String)> {
    let Header { recipe, .. } = header;
    let average = match recipe.ema {
        0.0 => "off".to_string(),
        decay => format!("of the weights, decay {decay}"),
    };
    let start = match header.first_step {
        0 => String::new(),
        step => format!(", going on after step {}", thousands(step)),
    };
    let stop = match header.last_step {
        last if last < header.steps => format!(", stopping after step {}", thousands(last)),
        _ => String::new(),
    };
    let (side, micro) = (recipe.resolution, recipe.micro_batch);
    let ranks = match header.ranks {
        1 => String::new(),
        ranks => format!(", {} for each of {ranks} ranks", recipe.batch_size / ranks),
    };
    vec![
        (
            "model",
            format!(
                "EfficientNet-{}, {} parameters",
                model_name(header),
                thousands(header.parameters as u64)
            ),
        ),
        ("input", format!("{side}×{side}, crop {}, padding {}", recipe.crop, padding_name(recipe.padding))),
        ("data", format!("{} ({} classes, fingerprint {})", header.data, header.classes, header.fingerprint)),
        (
            "images",
            format!(
                "{} training, {} validation",
                thousands(header.train_images as u64),
                thousands(header.val_images as u64)
            ),
        ),
        ("batch", format!("{}{ranks}, in micro-batches of {micro}", recipe.batch_size)),
        (
            "schedule",
            format!(
                "{} epochs = {} steps, warm-up {} steps{start}{stop}",
                recipe.epochs,
                thousands(header.steps),
                thousands(header.warmup_steps)
            ),
        ),
        ("optimizer", optimizer_row(header)),
        (
            "regularisation",
            format!(
                "label smoothing {}, dropout {}, stochastic depth {}",
                recipe.label_smoothing, recipe.dropout, recipe.drop_connect
            ),
        ),
        (
            "batch norm",
            format!(
                "momentum {} ({} in TensorFlow's convention), epsilon {}",
                recipe.bn_momentum,
                rounded(1.0 - recipe.bn_momentum),
                small(recipe.bn_eps)
            ),
        ),
        ("moving average", average),
        ("seed", recipe.seed.to_string()),
        ("device", header.device.trim_start_matches("device: ").to_string()),
        (
            "threads",
            format!("{} computing, {} loading{}", header.threads, header.loader_threads, each(header)),
        ),
        ("memory", format!("{} planned{}", bytes(header.memory), each(header))),
        ("run directory", header.out.display().to_string()),
    ]
}

/// What is said of one rank is so of all.
fn each(header: &Header) -> &'static str {
    if header.ranks > 1 { ", in each rank" } else { "" }
}

fn optimizer_row(header: &Header) -> String {
    let recipe = &header.recipe;
    let (lr, momentum, decay) = (small(recipe.lr), recipe.momentum, small(recipe.weight_decay));
    let own = match recipe.optimizer {
        Optimizer::Sgd => String::new(),
        _ => format!(", alpha {}, epsilon {}", recipe.alpha, small(recipe.rms_eps)),
    };
    format!("{}, learning rate {lr}, momentum {momentum}{own}, weight decay {decay}", recipe.optimizer)
}

fn padding_name(padding: crate::model::Padding) -> &'static str {
    match padding {
        crate::model::Padding::Symmetric => "symmetric",
        crate::model::Padding::Same => "same",
    }
}

/// The run's result as pairs of a name and a value.
pub fn outcome_rows(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let state = match outcome.end {
        End::Finished => "finished",
        End::MaxSteps => "stopped by --max-steps",
        End::Interrupted => "interrupted",
    };
    let (step, steps) = (thousands(outcome.step), thousands(outcome.steps));
    rows.push(("run", format!("{state} after step {step} of {steps}, epoch {:.2}", outcome.epoch)));
    if let Some(last) = &outcome.last {
        rows.push(("test accuracy", figures(last.top1, last.top5, last.loss)));
        if let (Some(top1), Some(top5), Some(loss)) = (last.ema_top1, last.ema_top5, last.ema_loss) {
            rows.push(("moving average", figures(top1, top5, loss)));
        }
    }
    if let Some(best) = &outcome.best {
        let whose = if best.ema { " by the moving average" } else { "" };
        rows.push(("best", format!("top-1 {} at step {}{whose}", percent(best.top1), thousands(best.step))));
    }
    rows.push((
        "training",
        format!(
            "{}, {:.0} images/s, {} of it waiting for images",
            span(outcome.train_seconds),
            outcome.images_per_second,
            percent(outcome.data_wait)
        ),
    ));
    let files = ["best.bin", curves::FILE, "log.jsonl", "recipe.toml"];
    rows.push(("checkpoint", outcome.checkpoint.display().to_string()));
    for file in files.map(|file| outcome.out.join(file)).iter().filter(|path| path.exists()) {
        let what = match file.extension().and_then(|e| e.to_str()) {
            Some("bin") => "best checkpoint",
            Some("svg") => "curves",
            Some("jsonl") => "log",
            _ => "recipe",
        };
        rows.push((what, file.display().to_string()));
    }
    if let Some(command) = outcome.resume_command() {
        rows.push(("to go on", command));
    }
    rows
}

fn figures(top1: f64, top5: f64, loss: f64) -> String {
    format!("top-1 {}, top-5 {}, loss {loss:.4}", percent(top1), percent(top5))
}

fn evaluation_line(record: &EvaluationRecord, best: bool) -> String {
    let mut line = format!("epoch {:.2}: {}", record.epoch, figures(record.top1, record.top5, record.loss));
    if let Some(top1) = record.ema_top1 {
        line += &format!(", moving average top-1 {}", percent(top1));
    }
    if best {
        line += ", the best so far";
    }
    line
}

/// Means of what passes by between two lines.
#[derive(Default)]
struct Window {
    steps: f64,
    loss: f64,
    accuracy: f64,
    images: f64,
    seconds: f64,
    wait: f64,
}

impl Window {
    /// Earlier steps count `keep` times as much as before.
    fn add(&mut self, record: &StepRecord, batch: usize, keep: f64) {
        let seconds = batch as f64 / record.images_per_second;
        let seconds = if seconds.is_finite() { seconds } else { 0.0 };
        let both = |old: &mut f64, new: f64| *old = *old * keep + new;
        both(&mut self.steps, 1.0);
        both(&mut self.loss, record.loss);
        both(&mut self.accuracy, record.accuracy);
        both(&mut self.images, batch as f64);
        both(&mut self.seconds, seconds);
        both(&mut self.wait, record.data_wait);
    }

    fn line(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        format!(
            "loss {:.4}, accuracy {}, {:.0} images/s, data wait {}",
            self.loss / self.steps,
            percent(self.accuracy / self.steps),
            self.images / seconds,
            percent(self.wait / seconds)
        )
    }
}

/// Lines for a pipe or a file.
pub struct Plain<W> {
    out: W,
    window: Window,
    batch: usize,
    steps: u64,
    /// Steps of a twentieth of an epoch.
    every: u64,
    last_line: Instant,
    last_step: u64,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W) -> Self {
        let last_line = Instant::now();
        Plain { out, window: Window::default(), batch: 1, steps: 0, every: 1, last_line, last_step: 0 }
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    /// Lines come about twenty an epoch, but neither in a flood nor further than ten seconds apart.
    fn due(&self, record: &StepRecord) -> bool {
        let quiet = self.last_line.elapsed();
        let part = record.step.is_multiple_of(self.every) && quiet >= Duration::from_secs(1);
        part || quiet >= Duration::from_secs(10) || self.last_step == 0 || record.step == self.steps
    }
}

impl<W: Write> Reporter for Plain<W> {
    fn started(&mut self, header: &Header) {
        for (name, value) in header_rows(header) {
            self.line(&format!("{name}: {value}"));
        }
        self.batch = header.recipe.batch_size;
        self.steps = header.last_step;
        self.every = (header.train_images as u64 / self.batch.max(1) as u64 / 20).max(1);
        self.last_line = Instant::now();
    }

    fn step(&mut self, record: &StepRecord) {
        self.window.add(record, self.batch, 1.0);
        if self.due(record) {
            let line = self.window.line();
            self.line(&format!("step {}/{}, epoch {:.2}: {line}", record.step, self.steps, record.epoch));
            self.window = Window::default();
            (self.last_line, self.last_step) = (Instant::now(), record.step);
        }
    }

    fn evaluation(&mut self, record: &EvaluationRecord, best: bool) {
        self.line(&format!("validation, {}", evaluation_line(record, best)));
        self.last_line = Instant::now();
    }

    fn notice(&mut self, line: &str) {
        self.line(line);
    }

    fn finished(&mut self, outcome: &Outcome) {
        for (name, value) in outcome_rows(outcome) {
            self.line(&format!("{name}: {value}"));
        }
    }
}

/// A table, a progress bar, a line an evaluation.
pub struct Terminal {
    bar: ProgressBar,
    window: Window,
    batch: usize,
    colour: bool,
}

impl Terminal {
    /// A report on standard output; in colour unless NO_COLOR is set.
    pub fn new() -> Terminal {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Terminal::on(ProgressDrawTarget::stdout(), colour)
    }

    pub fn on(target: ProgressDrawTarget, colour: bool) -> Terminal {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        Terminal { bar, window: Window::default(), batch: 1, colour }
    }

    fn table(&self, rows: &[(&'static str, String)]) {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let (dim, plain) = if self.colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        self.bar.println("");
        for (name, value) in rows {
            self.bar.println(format!("  {dim}{name:<width$}{plain}  {value}"));
        }
        self.bar.println("");
    }

    fn style(&self) -> ProgressStyle {
        let bar = if self.colour { "{bar:24.green/dim}" } else { "{bar:24}" };
        let template = format!("{bar} {{pos}}/{{len}}  {{msg}}  {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        style.progress_chars("━━─")
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal::new()
    }
}

impl Reporter for Terminal {
    fn started(&mut self, header: &Header) {
        self.batch = header.recipe.batch_size;
        self.table(&header_rows(header));
        self.bar.set_style(self.style());
        self.bar.set_length(header.last_step);
        self.bar.set_position(header.first_step);
        self.bar.reset_eta();
    }

    fn step(&mut self, record: &StepRecord) {
        self.window.add(record, self.batch, 0.96);
        self.bar.set_message(format!("epoch {:.2}, {}", record.epoch, self.window.line()));
        self.bar.set_position(record.step);
    }

    fn evaluating(&mut self, images: u64) {
        self.bar.set_message(format!("evaluating {} images", thousands(images)));
    }

    fn evaluation(&mut self, record: &EvaluationRecord, best: bool) {
        self.bar.println(format!("  {}", evaluation_line(record, best)));
    }

    fn notice(&mut self, line: &str) {
        self.bar.println(format!("  {line}"));
    }

    fn finished(&mut self, outcome: &Outcome) {
        self.table(&outcome_rows(outcome));
        self.bar.finish_and_clear();
    }
}

/// Every event as an object on a line of its own; `event` says which.
pub struct Json<W>(pub W);

impl<W: Write> Json<W> {
    fn event(&mut self, name: &str, mut fields: Value) {
        fields["event"] = name.into();
        let _ = writeln!(self.0, "{fields}").and_then(|()| self.0.flush());
    }
}

impl<W: Write> Reporter for Json<W> {
    fn started(&mut self, header: &Header) {
        let fields = json!({
            "recipe": header.recipe, "classes": header.classes, "parameters": header.parameters,
            "train_images": header.train_images, "val_images": header.val_images, "data": header.data,
            "fingerprint": header.fingerprint, "out": header.out, "device": header.device,
            "ranks": header.ranks, "threads": header.threads, "loader_threads": header.loader_threads, "steps": header.steps,
            "warmup_steps": header.warmup_steps, "first_step": header.first_step,
            "last_step": header.last_step, "memory": header.memory,
        });
        self.event("started", fields);
    }
    fn step(&mut self, record: &StepRecord) {
        self.event("step", json!(record));
    }
    fn evaluation(&mut self, record: &EvaluationRecord, best: bool) {
        let mut fields = json!(record);
        fields["best"] = best.into();
        self.event("evaluation", fields);
    }
    fn profile(&mut self, report: &ProfileReport, steps: u64) {
        let row = |row: &ProfileRow| {
            json!({
                "pass": row.pass, "kernel": row.kernel, "calls": row.calls, "microseconds": row.microseconds,
                "bytes": row.bytes,
            })
        };
        let rows: Vec<Value> = report.rows.iter().map(row).collect();
        let copy = report.copy_bytes_per_second;
        self.event("profile", json!({ "steps": steps, "copy_bytes_per_second": copy, "rows": rows }));
    }
    fn saved(&mut self, checkpoint: &Path, step: u64) {
        self.event("saved", json!({ "checkpoint": checkpoint, "step": step }));
    }
    fn notice(&mut self, line: &str) {
        self.event("notice", json!({ "text": line }));
    }
    fn finished(&mut self, outcome: &Outcome) {
        let end = match outcome.end {
            End::Finished => "finished",
            End::MaxSteps => "max-steps",
            End::Interrupted => "interrupted",
        };
        let fields = json!({
            "end": end, "step": outcome.step, "steps": outcome.steps, "epoch": outcome.epoch,
            "last": outcome.last, "best": outcome.best, "train_seconds": outcome.train_seconds,
            "images_per_second": outcome.images_per_second, "data_wait": outcome.data_wait,
            "out": outcome.out, "checkpoint": outcome.checkpoint, "resume": outcome.resume_command(),
        });
        self.event("finished", fields);
    }
}

/// 1234567 as "1,234,567".
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Small numbers as 1e-5 rather than with zeros.
fn small(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:e}") } else { value.to_string() }
}

/// Without the last digits that a subtraction leaves.
fn rounded(value: f64) -> f64 {
    (value * 1e9).round() / 1e9
}

fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{} h {minutes} min", thousands(hours)),
    }
}

/// What a run on this output is reported by.
pub fn for_stdout(json: bool) -> Box<dyn Reporter> {
    use io::IsTerminal;
    match (json, io::stdout().is_terminal()) {
        (true, _) => Box::new(Json(io::stdout())),
        (false, true) => Box::new(Terminal::new()),
        (false, false) => Box::new(Plain::new(io::stdout())),
    }
}

#[cfg(test)]
mod tests;
