use indicatif::InMemoryTerm;

use super::*;
use crate::model::Variant;
use crate::train::recipe::Recipe;
use crate::train::report::events::Best;

fn header() -> Header {
    let mut recipe = Recipe::reference(Variant::B0, 64);
    (recipe.resolution, recipe.ema) = (32, 0.99);
    Header {
        recipe,
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
        last: Some(evaluation()),
        best: Some(Best { top1: 0.85, step: 40, ema: true }),
        train_seconds: 75.0,
        images_per_second: 640.0,
        data_wait: 0.01,
        out: "no-such-run".into(),
        checkpoint: "no-such-run/checkpoint.bin".into(),
        started_with: Some("--gpus 8".into()),
    }
}

fn play(reporter: &mut dyn Reporter) {
    reporter.notice("a notice");
    reporter.started(&header());
    for number in 1..=40 {
        reporter.step(&step(number));
    }
    reporter.evaluating(4000);
    reporter.evaluation(&evaluation(), true);
    reporter.saved(Path::new("no-such-run/checkpoint.bin"), 40);
}

#[test]
fn plain_lines_hold_the_run_without_any_control_character() {
    let mut out = Vec::new();
    let mut plain = Plain::new(&mut out);
    play(&mut plain);
    plain.finished(&outcome());
    let text = String::from_utf8(out).unwrap();
    for line in [
        "a notice",
        "model: EfficientNet-B0, 4,020,358 parameters",
        "images: 10,000 training, 2,000 validation",
        "batch norm: momentum 0.1 (0.9 in TensorFlow's convention), epsilon 1e-5",
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
    // Forty steps at once are not forty lines.
    assert!(text.lines().filter(|l| l.starts_with("step ")).count() <= 3, "{text}");
}

#[test]
fn a_terminal_shows_a_table_a_bar_and_the_evaluation() {
    let screen = InMemoryTerm::new(60, 160);
    let mut terminal = Terminal::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), false);
    play(&mut terminal);
    terminal.step(&step(40));
    // A line above the bar draws the bar anew, however short ago it was drawn.
    terminal.notice("a notice");
    let shown = screen.contents();
    for part in ["parameters", "my-data", "top-1 84.21 %", "40/40", "loss 2.0000", "images/s", "left"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    terminal.finished(&outcome());
    let shown = screen.contents();
    assert!(shown.contains("effnet-train --resume --out no-such-run"), "{shown}");
    assert!(!shown.contains("left"), "the bar is still there:\n{shown}");
}

#[test]
fn json_is_one_object_a_line_with_exact_numbers() {
    let mut out = Vec::new();
    let mut json = Json(&mut out);
    play(&mut json);
    json.finished(&outcome());
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["notice", "started"]);
    assert_eq!(names[names.len() - 3..], ["evaluation", "saved", "finished"]);
    assert_eq!(names.iter().filter(|n| **n == "step").count(), 40);
    assert_eq!(lines[names.len() - 3]["top1"], 0.8421);
    assert_eq!(lines[1]["recipe"]["batch-size"], 64);
}

/// A pipe whose reader has gone.
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
fn a_reader_who_leaves_ends_no_run() {
    play(&mut Plain::new(Closed));
    play(&mut Json(Closed));
}

#[test]
fn numbers_read_easily() {
    assert_eq!(thousands(0), "0");
    assert_eq!(thousands(999), "999");
    assert_eq!(thousands(1_234_567), "1,234,567");
    assert_eq!(span(4.25), "4.2 s");
    assert_eq!(span(61.0), "1 min 1 s");
    assert_eq!(span(7300.0), "2 h 1 min");
    assert_eq!(small(1e-5), "1e-5");
    assert_eq!(small(0.08), "0.08");
}
