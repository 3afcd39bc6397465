use std::path::PathBuf;

use super::facts::{Base, Session};
use super::shown::Picture;
use super::*;
use crate::data::{Normalise, Split};
use crate::model::Variant;
use crate::train::details::Details;
use crate::train::evaluate::Evaluation;
use crate::train::recipe::Recipe;
use crate::train::report::events::{EvaluationRecord, StepRecord};

fn step(number: u64, per_epoch: f64) -> StepRecord {
    let wave = ((number * 7919) % 1009) as f64 / 1009.0;
    StepRecord {
        step: number,
        epoch: number as f64 / per_epoch,
        loss: 1.0 + wave,
        accuracy: wave,
        lr: 1e-3 * wave,
        images_per_second: 900.0 + 100.0 * wave,
        gradient_norm: Some(wave),
        data_wait: 1e-4 * wave,
        skipped: false,
    }
}

fn evaluation(step: u64, per_epoch: f64, top1: f64) -> EvaluationRecord {
    EvaluationRecord {
        step,
        epoch: step as f64 / per_epoch,
        top1,
        top5: 0.95,
        loss: 1.25,
        images: 50_000,
        ema_top1: Some(top1 + 0.01),
        ema_top5: Some(0.96),
        ema_loss: Some(1.125),
        images_per_second: 4000.0,
    }
}

/// The page of a run over so many classes, images and steps, of which the last class has no images.
fn page(classes: usize, images: u64, steps: u64, name: impl Fn(usize) -> String) -> Page {
    let recipe = Recipe { ema: 0.9, resolution: 224, ..Recipe::reference(Variant::B0, 128) };
    let names: Vec<String> = (0..classes).map(name).collect();
    let mut metadata = Metadata::new(&recipe, names, Normalise::IMAGENET, "0123".into(), steps);
    (metadata.step, metadata.epoch) = (steps, 30.0);
    let mut details = Details::new(classes, 16);
    let mut logits = vec![0.0f32; classes];
    for index in 0..images {
        let label = index % (classes as u64 - 1);
        let taken = if index % 5 == 0 { (index * 31) % classes as u64 } else { label };
        logits[taken as usize] = 3.0 + (index % 97) as f32 / 16.0;
        details.add(index, label as u32, &logits);
        logits[taken as usize] = 0.0;
    }
    let per_epoch = steps as f64 / 30.0;
    let history = History {
        steps: (1..=steps).map(|number| step(number, per_epoch)).collect(),
        evaluations: (1..=30)
            .map(|n| evaluation(n * steps / 30, per_epoch, 0.5 + n as f64 / 100.0))
            .collect(),
        ..History::default()
    };
    let noise: Vec<u8> = (0..224 * 224 * 3u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let picture = |_| Picture::new(&noise, 224, "a caption".into()).unwrap();
    let pictures = || (0..16).map(picture).collect::<Vec<Picture>>();
    let figures = Evaluation { images, top1: 0.79, top5: 0.95, loss: 1.25 };
    let shown = Shown {
        split: Split::Val,
        figures: vec![figures; 2],
        ema: true,
        details,
        mistakes: pictures(),
        unsure: pictures(),
    };
    Page {
        checkpoint: PathBuf::from("runs/b0/best.bin"),
        metadata,
        parameters: 5_288_548,
        facts: Facts { data: "photos".into(), train_images: 1_281_167, ..Facts::default() },
        history: Some(history),
        shown: Some(shown),
        other_data: None,
        training: pictures(),
        training_images: vec![1300; classes],
    }
}

/// That nothing in it names another place.
fn expect_closed(html: &str) {
    for part in ["http://", "https://", "//cdn", "@import", "url(", "<iframe", "<object"] {
        assert!(!html.contains(part), "{part}");
    }
    for attribute in ["src=\"", "href=\""] {
        for value in html.split(attribute).skip(1) {
            assert!(value.starts_with("data:") || value.starts_with('#'), "{attribute}{}", &value[..40]);
        }
    }
}

#[test]
fn page_of_a_thousand_classes_and_a_long_log_is_small() {
    let page = page(1000, 50_000, 300_000, |class| format!("n{class:08} some kind of animal"));
    let html = page.render();
    assert!(html.len() < 3 << 20, "{}", html.len());
    expect_closed(&html);
    // No matrix of a million cells, but every class and the worst pairs.
    assert!(!html.contains("class=\"matrix\"") && html.contains("n00000999 some kind of animal"));
    assert!(html.contains("The most frequent mistakes, of"));
    assert!(html.contains("<b>81.00\u{a0}%</b> <span>best top-1</span>"));
    assert!(html.contains("step 300,000"));
    assert_eq!(html, page.render());
}

#[test]
fn class_without_images_has_a_dash() {
    let page = page(4, 100, 10, |class| format!("class{class}"));
    let html = page.render();
    let row = html.split("<tr><th scope=\"row\">class3</th>").nth(1).unwrap().split("</tr>").next().unwrap();
    assert!(row.starts_with("<td class=\"bar\" style=\"--w:0.0%\">–</td><td>0</td><td>0</td>"), "{row}");
    assert!(!html.contains("NaN") && html.contains("class=\"matrix\""));
    // It stands at the end of the table, which begins with the worst class.
    let table = html.split("class=\"sortable\"").nth(1).unwrap().split("</table>").next().unwrap();
    assert_eq!(table.rsplit("<th scope=\"row\">").next().unwrap().split('<').next(), Some("class3"));
}

#[test]
fn hostile_names_are_shown_as_text() {
    const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&\u{202e}\n";
    let mut page = page(4, 100, 10, |class| format!("{HOSTILE}{class}"));
    page.checkpoint = PathBuf::from(format!("runs/{HOSTILE}/best.bin"));
    page.other_data = Some(HOSTILE.into());
    page.facts = Facts {
        data: HOSTILE.into(),
        notes: vec![HOSTILE.into()],
        end: Some(HOSTILE.into()),
        resume: Some(HOSTILE.into()),
        base: Some(Base::new(HOSTILE, &Recipe::reference(Variant::B0, 64))),
        sessions: vec![Session {
            version: HOSTILE.into(),
            device: HOSTILE.into(),
            processor: Some(HOSTILE.into()),
            ranks: 2,
            threads: 1,
            loader_threads: 1,
            first_step: 0,
            last_step: 10,
        }],
        ..Facts::default()
    };
    let html = page.render();
    // The page's own scripts: two of data, one of code; and only its own pictures.
    assert_eq!((html.matches("<script").count(), html.matches("</script>").count()), (3, 3));
    assert_eq!(html.matches("<img").count(), 48);
    assert!(!html.contains("<img src=x") && !html.contains("<script>alert") && !html.contains('\u{202e}'));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    expect_closed(&html);
    // What it carries comes back as it was.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    page.write(&path).unwrap();
    assert_eq!(Facts::of_page(&path), Some(page.facts));
}

#[test]
fn page_says_what_is_missing() {
    let mut page = page(4, 100, 10, |class| class.to_string());
    page.history = None;
    let html = page.render();
    assert!(html.contains("There is no log.jsonl beside this checkpoint") && html.contains("top-1 here"));
    page.history = Some(History { damaged: 2, ..History::default() });
    let html = page.render();
    for part in
        ["2 lines of log.jsonl could not be read and are left out", "no evaluation yet", "no step yet"]
    {
        assert!(html.contains(part), "{part}");
    }
    page.shown = None;
    let html = page.render();
    assert!(html.contains("Nothing has been evaluated yet") && html.contains("effnet-eval runs/b0 --report"));
    assert!(!html.contains("class=\"sortable\""));
}

#[test]
fn facts_are_taken_from_pages_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.html");
    assert!(!is_page(&path));
    for text in
        ["", "<!doctype html><p>mine", MARK, &format!("{MARK} id=\"facts\">{{\"sessions\":3}}</script>")]
    {
        std::fs::write(&path, text).unwrap();
        assert_eq!((Facts::of_page(&path), is_page(&path)), (None, text.contains(MARK)), "{text}");
    }
}
