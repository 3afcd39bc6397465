//! The predictions as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::card::{CARDS, Card, LAUNCH, LIMITS};
use crate::recorder::Launched;
use crate::step::{Case, Recorded};
use crate::work::Work;

/// Sums over launches. One resource limits a launch; a row has the one that limits most of its time.
#[derive(Default)]
struct Row {
    launches: usize,
    floor: f64,
    work: Work,
    /// Microseconds on each card, by the resource that limits each launch.
    bound: [[f64; 4]; 2],
}

impl Row {
    fn add(&mut self, work: &Work) {
        self.launches += 1;
        self.work += *work;
        for (card, bound) in CARDS.iter().zip(&mut self.bound) {
            let times = card.times(work);
            let longest = (0..4).max_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
            bound[longest] += times[longest];
        }
    }
    fn microseconds(&self, card: usize) -> f64 {
        self.bound[card].iter().sum()
    }
    fn limit(&self, card: usize) -> &'static str {
        let bound = &self.bound[card];
        if self.microseconds(card) < 0.05 {
            return "–";
        }
        LIMITS[(0..4).max_by(|&a, &b| bound[a].total_cmp(&bound[b])).unwrap_or(0)]
    }
}

fn rows<'a>(steps: &'a [Recorded], key: impl Fn(&'a Recorded, &'a str) -> String) -> Vec<(String, Row)> {
    let mut rows: Vec<(String, Row)> = Vec::new();
    for step in steps {
        for (launch, work) in &step.launches {
            let key = key(step, &launch.kernel);
            match rows.iter_mut().find(|(known, _)| *known == key) {
                Some((_, row)) => row.add(work),
                None => {
                    let mut row = Row::default();
                    row.add(work);
                    rows.push((key, row));
                }
            }
        }
    }
    rows
}

/// What the tables mean.
pub fn preface() -> String {
    let mut text = String::from(
        "# Kernels: what a training step must cost\n\
        \n\
        **Predicted, not measured.** No GPU has run these kernels yet. This page is printed by\n\
        \n\
        ```sh\n\
        cargo run --example predict -- --launches target/launches.json --record target/step.json > docs/kernels.md\n\
        tools/check_kernels.py --table --launches target/launches.json >> docs/kernels.md\n\
        cargo run -p effnet-count -- --step target/step.json --sample 1 >> docs/kernels.md\n\
        ```\n\
        \n\
        The last two look into the newest build with nvcc. The last is nearest to what a card will do: it counts all instructions.\n\
        \n\
        The first command runs the launchers of a whole step on a GPU that only records its calls (`tools/predict`), so\n\
        launches, grids, threads and shared memory are exact. The work of a launch is computed from its arguments:\n\
        \n\
        - **MB**: the tensors and parameters that it points to, each once, and its workspace, in decimal megabytes. Data that\n  \
        neighbouring blocks read again are assumed to come from the second-level cache. **floor MB** of a pass: only the\n  \
        tensors, each once, even if two kernels read it.\n\
        - **tensor G**: 10⁹ multiply-adds on the tensor cores, with channels padded to whole tiles.\n\
        - **fp32 G**: 10⁹ fp32 instructions of a thread: multiply-adds, additions, conversions from a half type; two\n  \
        conversions to a half type count as one. Loads, integers, branches and shuffles do not count.\n\
        - **special M**: 10⁶ special-function operations. A sigmoid is two: e^x, reciprocal.\n\
        - **µs** of a launch: the longest of its four times,\n  \
        `max(bytes/copy, tensor/(SM·clock·t), fp32/(SM·clock·f), special/(SM·clock·s))`, and of a row the sum over its\n  \
        launches, with the resource that limits most of that time.\n\
        \n\
        These are bounds, not times. Latency, instructions that are not counted, traffic of shared memory and of the\n\
        second-level cache, low occupancy, double precision and the gaps between launches come on top. A kernel of a few\n\
        microseconds, such as `optimiser_scale`, takes the time of its launch instead. Less than the bound is possible only\n\
        if the second-level cache still holds the output of the kernel before, such as the workspace.\n\
        \n\
        | card | SMs | GHz | copy TB/s | tensor t | fp32 f | special s |\n\
        |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for Card { name, multiprocessors, clock, copy, tensor, fp32, special } in &CARDS {
        let _ = writeln!(
            text,
            "| {name} | {multiprocessors} | {clock} | {copy:.2} | {tensor} | {fp32} | {special} |"
        );
    }
    text.push_str(
        "\nt, f and s are operations of a multiprocessor per cycle: multiply-adds by `mma.sync` in half precision with fp32\n\
        sums, for which an H100 is assumed to reach half the rate of its own `wgmma`; fp32 instructions; special functions.\n",
    );
    text
}

/// The tables of one network.
pub fn network(case: Case, steps: &[Recorded]) -> String {
    let mut text = format!("\n## {case}\n");
    let images = case.images as f64;
    let mut all = Row::default();
    steps.iter().flat_map(|step| &step.launches).for_each(|(_, work)| all.add(work));
    all.floor = steps.iter().map(|step| step.floor as f64).sum();
    let _ = writeln!(text, "\n| an image | | {} | {} |\n|---|---:|---:|---:|", CARDS[0].name, CARDS[1].name);
    let mut line = |what: &str, amount: String, microseconds: [f64; 2]| {
        let [a, b] = microseconds.map(|t| t / images);
        let _ = writeln!(text, "| {what} | {amount} | {a:.1} µs | {b:.1} µs |");
    };
    let times = |work: Work, limit: usize| [0, 1].map(|card| CARDS[card].times(&work)[limit]);
    let mega = |value: f64| value / images / 1e6;
    let floor = Work { bytes: all.floor, ..Work::default() };
    line("tensors, each once a pass", format!("{:.1} MB", mega(all.floor)), times(floor, 0));
    line("all that kernels move", format!("{:.1} MB", mega(all.work.bytes)), times(all.work, 0));
    line("multiply-adds on tensor cores", format!("{:.0} M", mega(all.work.tensor)), times(all.work, 1));
    line("fp32 instructions", format!("{:.0} M", mega(all.work.fp32)), times(all.work, 2));
    line("special functions", format!("{:.1} M", mega(all.work.special)), times(all.work, 3));
    line("**bound**: Σ of each launch's longest", String::new(), [0, 1].map(|card| all.microseconds(card)));
    let rate = |microseconds: f64| (images * 1e6 / microseconds).round();
    for (what, at) in [("floor", times(floor, 0)), ("bound", [0, 1].map(|card| all.microseconds(card)))] {
        let _ = writeln!(text, "| images/s by the {what} | | {} | {} |", rate(at[0]), rate(at[1]));
    }
    let _ = writeln!(
        text,
        "\n{} launches a step. If each costs {LAUNCH} µs besides its work, in a graph, that is {:.1} ms a step.",
        all.launches,
        all.launches as f64 * LAUNCH / 1e3
    );

    text.push_str("\nBy pass, of one step:\n\n| pass | launches | floor MB ");
    text.push_str(HEADER);
    let mut passes = rows(steps, |step, _| step.name.to_string());
    for (name, row) in &mut passes {
        row.floor = steps.iter().filter(|step| step.name == *name).map(|step| step.floor as f64).sum();
    }
    text.push_str("|---|---:|---:");
    text.push_str(ALIGNMENT);
    passes.push(("all".into(), all));
    for (name, row) in &passes {
        let _ = write!(text, "| {name} | {} | {:.1} ", row.launches, row.floor / 1e6);
        text.push_str(&columns(row));
    }
    text.push_str("\nBy kernel, of one step:\n\n");
    text.push_str(&kernels(steps));
    text
}

fn kernels(steps: &[Recorded]) -> String {
    let mut text = format!("| kernel | launches {HEADER}|---|---:{ALIGNMENT}");
    let mut kernels = rows(steps, |_, kernel| kernel.to_string());
    kernels.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, row) in &kernels {
        let _ = write!(text, "| `{name}` | {} ", row.launches);
        text.push_str(&columns(row));
    }
    text
}

/// What one of several ranks launches in addition.
pub fn rank(case: Case, steps: &[Recorded], ranks: usize) -> String {
    let launches = || steps.iter().flat_map(|step| &step.launches);
    let merges: Vec<f64> = launches().filter_map(|(launch, _)| launch.number("channels")).collect();
    let (least, most) = merges.iter().fold((f64::INFINITY, 0.0f64), |(a, b), c| (a.min(*c), b.max(*c)));
    let mut text = format!(
        "\n## One of {ranks} ranks: {case}\n\n\
        The launches of such a rank besides those above. If ranks share a step, the sums of their gradients are read once more\n\
        (`optimiser_finite`). The gradients of each rank were checked when they were computed, but a sum of finite numbers may be\n\
        infinite, and then all ranks skip the step. With `--sync-bn` a rank merges the parts of each of {} batch norms into one\n\
        (`batch_norm_merge`) and gathers those of the other ranks; `batch_norm_statistics` then merges these {ranks}. In the\n\
        backward pass the sums of `finish_gradients` are summed over the ranks. Each of these {} exchanges has two numbers a\n\
        channel, {:.1} to {:.1} kB from a rank, so only latency counts, and the passes wait for each. The exchanges themselves are\n\
        NCCL's, see [scaling.md](scaling.md).\n\n",
        merges.len(),
        2 * merges.len(),
        8.0 * least / 1e3,
        8.0 * most / 1e3,
    );
    text.push_str(&kernels(steps));
    text
}

const HEADER: &str = "| MB | tensor G | fp32 G | special M | H100 µs | bound by | RTX 3080 µs | bound by |\n";
const ALIGNMENT: &str = "|---:|---:|---:|---:|---:|---|---:|---|\n";

fn columns(row: &Row) -> String {
    let Work { bytes, tensor, fp32, special, .. } = row.work;
    let mut text =
        format!("| {:.1} | {:.2} | {:.2} | {:.1} ", bytes / 1e6, tensor / 1e9, fp32 / 1e9, special / 1e6);
    for card in [0, 1] {
        let _ = write!(text, "| {:.1} | {} ", row.microseconds(card), row.limit(card));
    }
    text.push_str("|\n");
    text
}

/// How each kernel is launched: threads, blocks and bytes of dynamic shared memory, from least to most.
pub fn launches<'a>(launches: impl Iterator<Item = &'a Launched>) -> Value {
    let mut kernels: BTreeMap<&str, Value> = BTreeMap::new();
    for launch in launches.filter(|launch| launch.threads > 0) {
        let entry = kernels.entry(&launch.kernel).or_insert_with(
            || json!({ "threads": launch.threads, "launches": 0, "blocks": [u64::MAX, 0], "shared": [] }),
        );
        entry["launches"] = json!(entry["launches"].as_u64().unwrap_or(0) + 1);
        let [least, most] = [0, 1].map(|i| entry["blocks"][i].as_u64().unwrap_or(0));
        entry["blocks"] = json!([least.min(launch.blocks()), most.max(launch.blocks())]);
        if let Some(sizes) = entry["shared"].as_array_mut()
            && !sizes.contains(&json!(launch.shared))
        {
            sizes.push(json!(launch.shared));
        }
    }
    json!(kernels)
}

/// Of a launch whose blocks do either of two things: where the second begins.
fn kinds(launch: &Launched) -> Vec<u64> {
    let [first, blocks] = ["first_data", "data_blocks"].map(|name| launch.number(name));
    let border = if first == Some(0.0) { blocks } else { first };
    border.into_iter().map(|at| at as u64).collect()
}

/// Every launch of a step with its argument, for `tools/count`, which runs the machine code of its blocks.
pub fn record(case: Case, steps: &[Recorded]) -> Value {
    let mut launches = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        for (launch, work) in &step.launches {
            let digits: String = launch.argument.iter().map(|byte| format!("{byte:02x}")).collect();
            launches.push(json!({
                "pass": number, "kernel": launch.kernel, "grid": launch.grid, "threads": launch.threads,
                "shared": launch.shared, "argument": digits, "addresses": launch.addresses, "bytes": work.bytes,
                "again": work.again, "tensor": work.tensor, "kinds": kinds(launch),
            }));
        }
    }
    let passes: Vec<_> =
        steps.iter().map(|step| json!({ "name": step.name, "written": step.written })).collect();
    json!({ "case": case.to_string(), "images": case.images, "passes": passes, "launches": launches })
}
