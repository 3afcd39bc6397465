//! `report.html`: what a run and `effnet-eval` write, and what a browser makes of it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::common::data;
use crate::common::programs::{Ran, program, run, signal, wait_for};
use crate::common::shared_folder::until_exit;
use crate::common::training::{assert_same_file, log_lines, saved, timeless_log, train_program};
use effnet::data::Split;
use effnet::train::device::Cpu;
use effnet::train::evaluator::Evaluator;
use effnet::train::events::{EvaluationRecord, LogLine};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A run with its page, `run`, over `data`: five classes of noise, 40 images to train, 13 to validate.
static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = data::packed();
    let command = train_program(&dir.path().join("data"), &dir.path().join("run"), "--ema 0.9 --threads 2");
    run(command).good();
    until_exit(dir)
});

fn place(name: &str) -> PathBuf {
    RUN.path().join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn eval(arguments: &[&str]) -> Ran {
    run(program("effnet-eval").current_dir("/").args(arguments))
}

fn page(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of the run in another folder, without its page.
fn copied(folder: &Path) -> PathBuf {
    let to = folder.join("run");
    fs::create_dir(&to).unwrap();
    for name in ["checkpoint.bin", "best.bin", "log.jsonl", "recipe.toml"] {
        fs::copy(place("run").join(name), to.join(name)).unwrap();
    }
    to
}

fn evaluations(out: &Path) -> Vec<EvaluationRecord> {
    let lines = timeless_log(out).into_iter();
    lines.filter_map(|line| if let LogLine::Evaluation(e) = line { Some(e) } else { None }).collect()
}

fn percent(share: f64) -> String {
    format!("{:.2}\u{a0}%", share * 100.0)
}

/// The JSON in a script element.
fn json(page: &str, id: &str) -> Value {
    let rest = page.split(&format!("id=\"{id}\">")).nth(1).unwrap();
    serde_json::from_str(rest.split("</script>").next().unwrap()).unwrap()
}

#[test]
fn report_of_a_run_has_the_figures_of_its_log() {
    let html = page(&place("run/report.html"));
    let all = evaluations(&place("run"));
    assert_eq!(all.iter().map(|e| e.step).collect::<Vec<_>>(), [5, 10, 12]);
    let best = all.iter().map(|e| e.ema_top1.unwrap()).reduce(f64::max).unwrap();
    let last = all.last().unwrap();
    assert!(html.contains(&format!("<b>{}</b> <span>best top-1</span>", percent(best))));
    for figure in [percent(last.top1), percent(last.ema_top1.unwrap()), format!("{:.4}", last.loss)] {
        assert!(html.contains(&format!("<td>{figure}</td>")), "{figure}");
    }
    for part in [
        "EfficientNet-B0 on data",
        "12 of 12",
        "finished",
        "5 classes",
        "40 training images",
        "13 validation images",
    ] {
        assert!(html.contains(part), "{part}");
    }
    for part in ["http://", "https://"] {
        assert!(!html.contains(part), "{part}");
    }
    assert!(html.split("src=\"").skip(1).all(|value| value.starts_with("data:image/png;base64,")));
    // The curves are those of the log.
    let known = json(&html, "curve-data");
    let loss = &known["charts"][0]["series"];
    assert_eq!(loss[0]["x"], serde_json::json!((1..=12).collect::<Vec<u64>>()));
    let losses: Vec<f64> = loss[1]["y"].as_array().unwrap().iter().map(|y| y.as_f64().unwrap()).collect();
    for (shown, logged) in losses.iter().zip(&all) {
        // Five digits.
        assert!((shown - logged.loss).abs() <= 5.1e-5 * logged.loss.abs(), "{shown} {logged:?}");
    }
    let facts = json(&html, "facts");
    assert_eq!(
        (&facts["sessions"][0]["last_step"], &facts["sessions"][0]["threads"]),
        (&12.into(), &2.into())
    );
}

/// The run's page and that of `effnet-eval` are one, whatever the threads.
#[test]
fn report_of_effnet_eval_is_that_of_the_run() {
    let before = page(&place("run/report.html"));
    for threads in ["1", "3"] {
        let ran = eval(&[text(&place("run")), "--report", "--threads", threads]).good();
        assert!(
            ran.out.ends_with(&format!("report: {}\n", place("run/report.html").display())),
            "{}",
            ran.out
        );
        assert!(page(&place("run/report.html")) == before, "the page of --threads {threads} is another one");
    }
    let out = place("elsewhere.html");
    let ran = eval(&[text(&place("run")), "--report", text(&out), "--json"]).good();
    assert_eq!(ran.json()["report"].as_str(), Some(text(&out)));
    assert!(page(&out) == before);
}

/// The classes' table against the predictions of every image.
#[test]
fn report_counts_what_the_network_predicts() {
    let out = place("by-step-12.html");
    eval(&[text(&place("run/checkpoint.bin")), "--report", text(&out)]).good();
    let source = data::open(&place("data"));
    let mut evaluator = Evaluator::new(&saved(&place("run")), 8, Cpu::new(2, "as asked")).unwrap();
    let mut seen = Vec::new();
    evaluator
        .split_seen(&source, Split::Val, 1, &AtomicBool::new(false), &mut |image| {
            // The page is about the moving average, the second set of weights.
            if image.weights == 1 {
                let best = image.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                seen.push((image.index, image.label as usize, best));
            }
        })
        .unwrap();
    assert_eq!(seen.iter().map(|image| image.0).collect::<Vec<_>>(), (0..13).collect::<Vec<_>>());
    let labels: Vec<u32> = source.labels(Split::Val).collect();
    assert!(seen.iter().all(|image| image.1 == labels[image.0 as usize] as usize));
    let html = page(&out);
    let table = html.split("class=\"sortable\"").nth(1).unwrap().split("</table>").next().unwrap();
    for class in 0..5 {
        let row = table.split(&format!("<th scope=\"row\">{class}</th>")).nth(1).unwrap();
        let cells: Vec<&str> = row
            .split("</tr>")
            .next()
            .unwrap()
            .split("<td")
            .skip(1)
            .map(|cell| cell.split(['>', '<']).nth(1).unwrap())
            .collect();
        let images = seen.iter().filter(|image| image.1 == class).count();
        let correct = seen.iter().filter(|image| (image.1, image.2) == (class, class)).count();
        assert_eq!(cells[1..3], [images.to_string(), correct.to_string()], "class {class}");
        assert_eq!(cells[0], format!("{:.1}\u{a0}%", 100.0 * correct as f64 / images as f64));
    }
    let pairs = confused(&seen);
    let found: u64 = pairs.iter().map(|pair| pair.1).sum();
    assert_eq!(found as usize, seen.iter().filter(|image| image.1 != image.2).count());
    let matrix = html.split("class=\"matrix\"").nth(1).unwrap().split("</table>").next().unwrap();
    for ((label, taken), images) in pairs {
        let row = matrix.split(&format!("<tr><th scope=\"row\">{label}</th>")).nth(1).unwrap();
        let cell = row.split("<td").nth(1 + taken).unwrap().split(['>', '<']).nth(1).unwrap();
        assert_eq!(cell, images.to_string(), "{label} taken for {taken}");
    }
}

/// Label and prediction of the mistakes, and how many images they are.
fn confused(seen: &[(u64, usize, usize)]) -> Vec<((usize, usize), u64)> {
    let mut pairs: Vec<((usize, usize), u64)> = Vec::new();
    for &(_, label, taken) in seen.iter().filter(|image| image.1 != image.2) {
        match pairs.iter_mut().find(|pair| pair.0 == (label, taken)) {
            Some(pair) => pair.1 += 1,
            None => pairs.push(((label, taken), 1)),
        }
    }
    pairs
}

#[test]
fn report_changes_nothing_else_and_can_be_left_out() {
    let out = place("without");
    run(train_program(&place("data"), &out, "--ema 0.9 --threads 2 --report=false")).good();
    assert!(!out.join("report.html").exists());
    for name in ["checkpoint.bin", "best.bin", "recipe.toml"] {
        assert_same_file(&out, &place("run"), name);
    }
    assert_eq!(timeless_log(&out), timeless_log(&place("run")));
    // A page that cannot be written leaves the run's result as it is.
    let out = place("blocked");
    fs::create_dir_all(out.join("report.html/inside")).unwrap();
    let ran = run(train_program(&place("data"), &out, "--ema 0.9 --threads 2")).good();
    assert!(
        ran.out.contains("warning: there is no report: ") && ran.out.contains("run: finished"),
        "{}",
        ran.out
    );
    assert_same_file(&out, &place("run"), "checkpoint.bin");
}

#[test]
fn report_of_ranks_is_written_by_the_first() {
    let out = place("ranks");
    let ran = run(train_program(&place("data"), &out, "--ema 0.9 --ranks 2")).good();
    assert!(ran.out.contains("report: "), "{}", ran.out);
    let written = page(&out.join("report.html"));
    assert!(written.contains("2 ranks, each with") && written.contains("13 validation images"));
    eval(&[text(&out), "--report"]).good();
    assert!(page(&out.join("report.html")) == written);
}

/// It ends soon, so that its page has what the log says and the command that adds the rest.
#[test]
fn report_of_an_interrupted_run_has_its_curves() {
    let out = place("interrupted");
    let flags = "--resolution 32 --batch-size 8 --epochs 4000 --eval-every 1 --threads 2";
    let mut command = program("effnet-train");
    command.args(flags.split(' ')).arg("--data").arg(place("data")).arg("--out").arg(&out);
    let mut child = command.spawn().unwrap();
    assert!(wait_for(&mut child, Duration::from_secs(120), || log_lines(&out) > 7), "it ended early");
    signal(child.id() as i32, Signal::INT);
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.status, Some(130), "{}", ran.printed());
    let html = page(&out.join("report.html"));
    for part in ["interrupted after step", "data-chart=\"1\"", " --report</code>", "goes on with it"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("class=\"sortable\""));
    // What the run knew remains.
    eval(&[text(&out), "--report"]).good();
    let html = page(&out.join("report.html"));
    assert!(html.contains("interrupted after step") && html.contains("class=\"sortable\""));
}

#[test]
fn report_copes_with_logs_that_are_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let out = copied(dir.path());
    let report = |name: &str| {
        eval(&[text(&out.join(name)), "--report"]).good();
        page(&out.join("report.html"))
    };
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines = log.replacen("{\"step\":1,", "{\"st", 1) + "half a li";
    fs::write(out.join("log.jsonl"), lines).unwrap();
    let html = report("best.bin");
    assert!(html.contains("2 lines of log.jsonl could not be read"), "not counted");
    assert!(html.contains("No earlier page of this run says where it was trained"));
    assert_eq!(json(&html, "curve-data")["charts"][0]["series"][0]["x"][0], 2);
    fs::remove_file(out.join("log.jsonl")).unwrap();
    let html = report("checkpoint.bin");
    assert!(
        html.contains("There is no log.jsonl beside this checkpoint")
            && html.contains("13 validation images")
    );
    // Of a checkpoint before the first evaluation too.
    fs::write(out.join("log.jsonl"), "").unwrap();
    assert!(report("checkpoint.bin").contains("The log has no evaluation yet"));
}

#[test]
fn report_that_cannot_be_written_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = copied(dir.path());
    let best = out.join("best.bin");
    let refused =
        |file: &Path, parts: &[&str]| eval(&[text(&best), "--report", text(file)]).refused(1, parts);
    let mine = dir.path().join("mine.html");
    fs::write(&mine, "<p>not a report").unwrap();
    refused(&mine, &["mine.html", "--force"]);
    assert_eq!(page(&mine), "<p>not a report");
    eval(&[text(&best), "--report", text(&mine), "--force"]).good();
    eval(&[text(&best), "--report", text(&mine)]).good();
    refused(&out.join("checkpoint.bin"), &["checkpoint.bin", "is a checkpoint"]);
    refused(dir.path(), &["is a folder"]);
    refused(&dir.path().join("missing/a.html"), &["missing/a.html"]);
    // The set has no test images; and --force alone has nothing to replace.
    eval(&[text(&best), "--report", "--split", "test"]).refused(1, &["no test images"]);
    eval(&[text(&best), "--force"]).refused(2, &["--report"]);
    // Other images of the same classes.
    let other = dir.path().join("data of another set");
    data::pack_grey(&other, 41, 7, 28, 1 << 20);
    eval(&[text(&best), "--report", text(&mine), "--data", text(&other)]).good();
    let html = page(&mine);
    assert!(html.contains("data of another set, not those") && html.contains("7 validation images"));
    assert!(!html.contains("id=\"training\""), "those are not the run's training images");
    // Another split has another page.
    let ran = eval(&[text(&best), "--report", "--split", "train"]).good();
    assert!(ran.out.contains("report-train.html"), "{}", ran.out);
    assert!(page(&out.join("report-train.html")).contains("40 training images, by"));
}

#[test]
fn comparison_shows_several_runs() {
    let dir = tempfile::tempdir().unwrap();
    let other = place("other");
    run(train_program(&place("data"), &other, "--augment trivial --threads 2")).good();
    let out = dir.path().join("both.html");
    let [one, two] = [place("run"), other];
    let ran = eval(&["--compare", text(&one), text(&two), text(&out)]).good();
    assert_eq!(ran.out, format!("report: {}\n", out.display()));
    let html = page(&out);
    for run in [&one, &two] {
        let last = *evaluations(run).last().unwrap();
        assert!(html.contains(&format!("<td>{}</td>", percent(last.top1))), "{last:?}");
        let name = run.file_name().unwrap().to_str().unwrap();
        assert!(html.contains(&format!(">{name}</span>")), "{name}");
    }
    let rows = html.split("Settings that differ").nth(2).unwrap();
    assert!(rows.contains("<code>augment</code></th><td>–</td><td>trivial</td>"));
    assert!(
        rows.contains("<code>ema</code></th><td>0.9</td><td>0</td>") && !rows.contains("<code>seed</code>")
    );
    assert_eq!(json(&html, "curve-data")["charts"][0]["series"].as_array().unwrap().len(), 2);
    // A page may be replaced by a page.
    eval(&["--compare", text(&one), text(&two), text(&one), text(&out)]).good();
    assert!(!page(&out).contains("http://") && page(&out).contains("3 runs"));

    eval(&["--compare", text(&one), text(&out)]).refused(2, &["--compare", "two runs"]);
    eval(&["--compare", text(&one), text(&two), text(dir.path())]).refused(2, &["--compare", "OUT.html"]);
    eval(&["--compare", text(&one), text(dir.path()), text(&out)]).refused(1, &["without best.bin"]);
    let mine = dir.path().join("mine.html");
    fs::write(&mine, "mine").unwrap();
    eval(&["--compare", text(&one), text(&two), text(&mine)]).refused(1, &["mine.html", "--force"]);
}

/// What a browser says of a page after it has zoomed, sorted and looked for what is there.
const PROBE: &str = r##"<script>
window.addEventListener("load", () => setTimeout(() => {
  const all = selector => Array.from(document.querySelectorAll(selector));
  const svg = document.querySelector(".chart > svg"), plot = svg.querySelector(".plot");
  const key = name => svg.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const found = { whole: plot.getAttribute("viewBox") };
  key("+"); found.zoomed = plot.getAttribute("viewBox");
  key("ArrowRight"); found.values = document.querySelector(".values").textContent;
  const box = svg.getBoundingClientRect();
  const pointer = (type, share) => svg.dispatchEvent(new PointerEvent(type, { button: 0, pointerId: 1, bubbles: true,
    clientX: box.left + box.width * share, clientY: box.top + 50 }));
  svg.setPointerCapture = () => {};
  key("Escape"); found.again = plot.getAttribute("viewBox");
  pointer("pointerdown", 0.3); pointer("pointermove", 0.5); pointer("pointerup", 0.6);
  found.dragged = plot.getAttribute("viewBox");
  svg.dispatchEvent(new MouseEvent("dblclick")); found.reset = plot.getAttribute("viewBox");
  const order = () => all(".sortable tbody th").map(cell => cell.textContent).join(" ");
  const head = document.querySelector(".sortable th button");
  if (head) { head.click(); found.rising = order(); head.click(); found.falling = order(); }
  found.lines = all(".plot .line").filter(line => line.getBoundingClientRect().width > 100).length;
  found.series = all(".plot .line").length;
  found.pictures = all("img").length;
  found.decoded = all("img").filter(image => image.complete && image.naturalWidth > 0).length;
  found.hidden = all(".tools[hidden]").length;
  found.requests = performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith("data:"));
  found.wide = document.documentElement.scrollWidth - window.innerWidth;
  const named = part => part.getAttribute("aria-label") || part.textContent.trim()
    || (part.labels && part.labels.length);
  found.nameless = all("svg[tabindex], .reliability, .scroll, input, button").filter(part => !named(part)).length;
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 300));
</script></body>"##;

fn chromium() -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    let all = env::split_paths(&folders)
        .flat_map(|folder| ["chromium", "google-chrome"].map(|name| folder.join(name)));
    all.into_iter().find(|file| file.is_file())
}

/// Opens a copy of a page with the probe in it, in a window of this width.
fn probed(browser: &Path, file: &Path, width: u32) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("page.html");
    fs::write(&copy, page(file).replace("</body>", PROBE)).unwrap();
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]);
    command.arg(format!("--window-size={width},900")).arg("--virtual-time-budget=8000");
    command.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
    let ran: Ran = command.arg(format!("file://{}", copy.display())).output().unwrap().into();
    let said: Vec<&str> = ran.err.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert_eq!(said, [""; 0], "the page wrote to the console");
    let found =
        ran.out.split("<pre id=\"probe\">").nth(1).unwrap_or_else(|| panic!("no answer: {}", ran.printed()));
    let found = found.split("</pre>").next().unwrap();
    let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found}"))
}

#[test]
fn report_works_in_a_browser() {
    let Some(browser) = chromium() else {
        println!("skipped: report_works_in_a_browser needs chromium on PATH");
        return;
    };
    let other = place("for-a-browser");
    run(train_program(&place("data"), &other, "--augment trivial --threads 2")).good();
    let both = place("both.html");
    eval(&["--compare", text(&place("run")), text(&other), text(&both)]).good();
    for (file, pictures, series) in [(place("run/report.html"), true, 9), (both, false, 10)] {
        for width in [1280, 500] {
            let found = probed(&browser, &file, width);
            assert_eq!(found["requests"], serde_json::json!([]), "{found}");
            assert_eq!((&found["lines"], &found["series"]), (&series.into(), &series.into()), "{found}");
            assert_eq!((&found["hidden"], &found["nameless"]), (&0.into(), &0.into()), "{found}");
            assert!(found["wide"].as_f64().unwrap() <= 0.0, "wider than the window: {found}");
            assert_eq!(found["pictures"], found["decoded"], "{found}");
            assert_eq!(found["pictures"].as_u64().unwrap() > 16, pictures, "{found}");
            for zoomed in ["zoomed", "dragged"] {
                assert_ne!(found[zoomed], found["whole"], "{zoomed}: {found}");
            }
            assert_eq!((&found["again"], &found["reset"]), (&found["whole"], &found["whole"]), "{found}");
            let values = found["values"].as_str().unwrap();
            assert!(values.starts_with("epoch ") && values.contains(" · "), "{found}");
            if pictures {
                assert_eq!((&found["rising"], &found["falling"]), (&"0 1 2 3 4".into(), &"4 3 2 1 0".into()));
            }
        }
    }
}
