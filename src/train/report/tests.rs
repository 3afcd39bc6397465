use std::io::{self, Write};
use std::path::Path;

use indicatif::{InMemoryTerm, ProgressDrawTarget};
use serde_json::Value;

use super::events::{Best, End, EvaluationRecord, Event, Header, Outcome, Reporter, StepRecord};
use super::json::Json;
use super::plain::Plain;
use super::terminal::Terminal;
use crate::model::Variant;
use crate::train::recipe::Recipe;

fn header() -> Header {
    Header {
        recipe: Recipe { resolution: 32, ema: 0.99, ..Recipe::reference(Variant::B0, 64) },
        classes: 10,
        parameters: 4_020_358,
        train_images: 10_000,
        val_images: 2000,
        data: "my-data".into(),
        fingerprint: "0123456789abcdef".into(),
        out: "no-such-run".into(),
        device: "cpu, because".into(),
        ranks: 1,
        threads: 2,
        loader_threads: 1,
        steps: 2188,
        warmup_steps: 47,
        first_step: 0,
        last_step: 40,
        memory: 3 << 20,
    }
}

fn step(step: u64) -> StepRecord {
    StepRecord {
        step,
        epoch: step as f64 * 0.0064,
        loss: 2.0,
        accuracy: 0.25,
        lr: 0.001,
        images_per_second: 640.0,
        gradient_norm: None,
        data_wait: 0.001,
        skipped: false,
    }
}

fn evaluation() -> EvaluationRecord {
    EvaluationRecord {
        step: 40,
        epoch: 0.26,
        top1: 0.8421,
        top5: 0.99,
        loss: 0.5,
        images: 2000,
        ema_top1: Some(0.85),
        ema_top5: Some(0.991),
        ema_loss: Some(0.4),
        images_per_second: 2000.0,
    }
}

fn outcome() -> Outcome {
    Outcome {
        end: End::MaxSteps,
        step: 40,
        steps: 2188,
        epoch: 0.26,
        classes: 10,
        diverged: false,
        last: Some(evaluation()),
        best: Some(Best { top1: 0.85, step: 40, ema: true }),
        train_seconds: 75.0,
        images_per_second: 640.0,
        data_wait: 0.01,
        out: "no-such-run".into(),
        checkpoint: "no-such-run/checkpoint.bin".into(),
        resume: Some("effnet-train --resume --out no-such-run --gpus 8".into()),
    }
}

/// All events of a run but the last.
fn play(reporter: &mut dyn Reporter) {
    reporter.notice("a notice");
    reporter.report(Event::Started(&header()));
    (1..=40).for_each(|number| reporter.report(Event::Step(&step(number))));
    reporter.report(Event::Evaluating { images: 4000 });
    reporter.report(Event::Evaluation { record: &evaluation(), best: true });
    reporter.report(Event::Saved { checkpoint: Path::new("no-such-run/checkpoint.bin"), step: 40 });
}

#[test]
fn plain_writes_the_run_as_lines_without_control_characters() {
    let mut out = Vec::new();
    let mut plain = Plain::new(&mut out);
    play(&mut plain);
    plain.report(Event::Finished(&outcome()));
    let text = String::from_utf8(out).unwrap();
    for line in [
        "a notice",
        "model: EfficientNet-B0, 4,020,358 parameters",
        "input: 32×32, crop resized, padding symmetric",
        "images: 10,000 training, 2,000 validation",
        "schedule: 400 epochs = 2,188 steps, warm-up 47 steps, stopping after step 40",
        "batch norm: momentum 0.1 (0.9 in TensorFlow's convention), epsilon 1e-5",
        "memory: 3.00 MiB planned",
        "step 1/40, epoch 0.01: loss 2.0000, accuracy 25.00 %, 640 images/s, data wait 1.00 %",
        "validation, epoch 0.26: top-1 84.21 %, top-5 99.00 %, loss 0.5000, moving average top-1 85.00 %, the best so far",
        "best: top-1 85.00 % at step 40 by the moving average",
        "training: 1 min 15 s, 640 images/s, 1.00 % of it waiting for images",
        "to go on: effnet-train --resume --out no-such-run --gpus 8",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
    assert!(text.lines().any(|l| l.starts_with("step 40/40")), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    // Forty steps within a second make only a few lines.
    assert!(text.lines().filter(|l| l.starts_with("step ")).count() <= 3, "{text}");
}

#[test]
fn plain_says_of_which_step_the_last_figures_are() {
    let text = |outcome: &Outcome| {
        let mut out = Vec::new();
        Plain::new(&mut out).report(Event::Finished(outcome));
        String::from_utf8(out).unwrap()
    };
    let at_once = text(&outcome());
    assert!(at_once.contains("test accuracy: top-1 84.21 %, top-5 99.00 %, loss 0.5000\n"), "{at_once}");
    let later = text(&Outcome { step: 47, ..outcome() });
    assert!(
        later.contains("test accuracy: top-1 84.21 %, top-5 99.00 %, loss 0.5000, at step 40\n"),
        "{later}"
    );
    assert!(
        later.contains("moving average: top-1 85.00 %, top-5 99.10 %, loss 0.4000, at step 40"),
        "{later}"
    );
    // All of so few classes are among the five most probable.
    let few = text(&Outcome { classes: 5, ..outcome() });
    assert!(few.contains("test accuracy: top-1 84.21 %, loss 0.5000\n"), "{few}");
}

#[test]
fn terminal_names_no_time_that_is_left_before_the_first_step() {
    let screen = InMemoryTerm::new(60, 160);
    let mut terminal = Terminal::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), false);
    terminal.report(Event::Started(&header()));
    terminal.notice("a notice");
    let shown = screen.contents();
    assert!(shown.contains("0/40  the first step is under way") && !shown.contains("left"), "{shown}");
    terminal.report(Event::Step(&step(1)));
    terminal.notice("a notice");
    assert!(screen.contents().contains(" left"), "{}", screen.contents());
}

#[test]
fn evaluation_of_weights_that_have_diverged_is_never_the_best() {
    let of = |top1, loss, ema: Option<(f64, f64)>| {
        let (ema_top1, ema_loss) = (ema.map(|ema| ema.0), ema.map(|ema| ema.1));
        EvaluationRecord { top1, loss, ema_top1, ema_loss, ..evaluation() }
    };
    let best = |record: EvaluationRecord| record.best(10).map(|best| (best.top1, best.ema));
    assert_eq!(best(of(0.5, 1.0, None)), Some((0.5, false)));
    assert_eq!(best(of(0.5, 1.0, Some((0.4, 1.0)))), Some((0.4, true)));
    assert_eq!(best(of(0.5, 1.0, Some((0.6, 1.0)))), Some((0.6, true)));
    for absurd in [f64::NAN, f64::INFINITY, 3.8e13] {
        let record = of(0.5, absurd, None);
        assert!(record.diverged(10), "{absurd}");
        assert_eq!(best(record), None);
        assert_eq!(best(of(0.5, absurd, Some((0.2, 2.0)))), Some((0.2, true)));
        assert_eq!(best(of(0.5, 1.0, Some((0.9, absurd)))), Some((0.5, false)));
    }
    // Early statistics of batch norm give large losses.
    assert!(!of(0.1, 200.0, None).diverged(10));
}

#[test]
fn terminal_shows_a_table_a_bar_and_the_evaluation() {
    let screen = InMemoryTerm::new(60, 160);
    let mut terminal = Terminal::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), false);
    play(&mut terminal);
    terminal.report(Event::Step(&step(40)));
    // A line above the bar always redraws the bar, even if it was drawn a moment ago.
    terminal.notice("a notice");
    let shown = screen.contents();
    for part in ["parameters", "my-data", "top-1 84.21 %", "40/40", "loss 2.0000", "images/s", "left"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    terminal.report(Event::Finished(&outcome()));
    let shown = screen.contents();
    assert!(shown.contains("effnet-train --resume --out no-such-run"), "{shown}");
    assert!(!shown.contains("left"), "the bar is still there:\n{shown}");
}

#[test]
fn json_is_one_object_a_line_with_exact_numbers() {
    let mut out = Vec::new();
    let mut json = Json(&mut out);
    play(&mut json);
    json.report(Event::Finished(&outcome()));
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["notice", "started"]);
    assert_eq!(names[names.len() - 3..], ["evaluation", "saved", "finished"]);
    assert_eq!(names.iter().filter(|n| **n == "step").count(), 40);
    let [evaluation, saved, finished] = &lines[names.len() - 3..] else { unreachable!() };
    assert_eq!((&evaluation["top1"], &evaluation["best"]), (&0.8421.into(), &true.into()));
    assert_eq!(saved["step"], 40);
    assert_eq!((&finished["end"], &finished["best"]["ema"]), (&"max-steps".into(), &true.into()));
    assert_eq!(lines[1]["recipe"]["batch-size"], 64);
}

/// A pipe whose reader has gone away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn closed_pipe_does_not_end_the_run() {
    play(&mut Plain::new(Closed));
    play(&mut Json(Closed));
}
