//! What was counted, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::Counted;
use crate::card::LAUNCH;
use crate::listing::Listing;
use crate::model::LIMITS;
use crate::pipe::PIPES;

/// What the tables mean.
pub const PREFACE: &str = "
## Counted from the machine code

`tools/count` runs the machine code of some blocks of each launch on the CPU, instruction by instruction, with the launch's
own argument. So instructions, wavefronts of shared memory with their conflicts, and sectors are counted, not estimated.
Global memory has no contents there; where data would steer, a branch goes one fixed way. How it is checked: by tests of
short programs and known bank conflicts, counted by hand; and by `--check`, which runs all blocks of a small step. There each
tensor that a pass writes is stored whole, no byte twice, and the multiply-adds on tensor cores are exactly those of the
shapes in every forward kernel.

**µs** of a launch is the longest of these times, and of a row the sum over its launches:

- **memory**: the bytes of the tables above by the speed of a copy.
- **latency**: waves of blocks (whole ones, while there are at most 8) times the time of a block that has the card for
  itself: stalls and scoreboards as the machine code says, and the card's latency for what the block loads first. A launch
  whose bytes fill at most half of the second-level cache is taken to find them there. Where the last block to arrive does
  more than the others, its time comes on top. Where blocks do either of two things (`expand_backward_split`), both are
  counted, and a place that becomes free takes the next block.
- **issue**: warp instructions, four a cycle. **fp32 and integer units**, **fp64**, **special functions**, **tensor
  cores**: the instructions of each at the card's own rate. An A100 has 64 fp32 lanes, a GeForce two for fp64.
- **shared memory**: wavefronts of shared memory and of the first-level cache, one a cycle.

**KiB under way**: what a multiprocessor's blocks load in one latency, of the first launch; memory at full speed needs the
second number (Little's law). A launch takes the given microseconds besides. Fills and copies by the driver are left out.
";

/// One row a kernel: the sum of its launches.
pub fn kernels(counted: &[Counted], images: f64) -> String {
    let mut rows: BTreeMap<&str, Vec<&Counted>> = BTreeMap::new();
    counted.iter().for_each(|one| rows.entry(&one.launch.kernel).or_default().push(one));
    let mut text = String::from("| kernel | launches | µs | bound by |");
    LIMITS.iter().for_each(|limit| text += &format!(" {limit} |"));
    text += " blocks | waves | KiB under way of |\n|---|---:|---:|---|";
    text += &"---:|".repeat(LIMITS.len() + 3);
    text.push('\n');
    let mut all = [0.0; 2];
    for (kernel, launches) in &rows {
        let sum =
            |of: &dyn Fn(&Counted) -> f64| -> f64 { launches.iter().map(|one| one.number * of(one)).sum() };
        let number = sum(&|_| 1.0);
        let mut bound = [0.0; LIMITS.len()];
        for one in launches {
            let (time, limit) = one.time.longest();
            bound[limit] += one.number * time;
        }
        let time: f64 = bound.iter().sum();
        let longest = (0..LIMITS.len()).max_by(|&a, &b| bound[a].total_cmp(&bound[b])).unwrap_or(0);
        let _ = write!(text, "| `{kernel}` | {number} | {time:.0} | {} |", LIMITS[longest]);
        for limit in 0..LIMITS.len() {
            let _ = write!(text, " {:.0} |", sum(&|one| one.time.by[limit]));
        }
        let first = &launches[0].time;
        let waves: Vec<f64> = launches.iter().map(|one| one.time.waves).collect();
        let (least, most) = waves.iter().fold((f64::MAX, 0.0f64), |(a, b), w| (a.min(*w), b.max(*w)));
        let _ = writeln!(
            text,
            " {} | {least:.1}–{most:.1} | {:.1} of {:.1} |",
            first.resident, first.under_way, first.needed
        );
        all[0] += number;
        all[1] += time;
    }
    let total = all[1] + all[0] * LAUNCH;
    let _ = writeln!(
        text,
        "\n{} launches, {:.0} µs and {LAUNCH} µs a launch: {total:.0} µs, {:.0} images/s",
        all[0],
        all[1],
        images * 1e6 / total
    );
    text
}

/// Warp instructions of each kernel, by the unit that they go to.
pub fn pipes(counted: &[Counted]) -> String {
    let mut rows: BTreeMap<&str, [f64; PIPES.len() + 1]> = BTreeMap::new();
    for one in counted {
        let row = rows.entry(&one.launch.kernel).or_default();
        row[0] += one.number * one.count.issued;
        for (number, (pipe, _)) in PIPES.iter().enumerate() {
            row[number + 1] += one.number * one.count.pipes[pipe.index()];
        }
    }
    let mut text =
        String::from("\nMillions of warp instructions, by the unit that does them:\n\n| kernel | all |");
    PIPES.iter().for_each(|(_, name)| text += &format!(" {name} |"));
    text += "\n|---|";
    text += &"---:|".repeat(PIPES.len() + 1);
    text.push('\n');
    for (kernel, row) in rows {
        let _ = write!(text, "| `{kernel}` |");
        row.iter().for_each(|count| text += &format!(" {:.1} |", count / 1e6));
        text.push('\n');
    }
    text
}

/// Of one source line in one kernel.
#[derive(Default)]
pub struct Line {
    pub issued: f64,
    pub requests: f64,
    pub wavefronts: f64,
    pub least: f64,
    pub sectors: f64,
    pub cycles: f64,
}

pub fn by_line<'a>(listing: &'a Listing, counted: &[Counted]) -> BTreeMap<(&'a str, usize), Line> {
    let mut rows: BTreeMap<(&str, usize), Line> = BTreeMap::new();
    for one in counted {
        let Some(kernel) = listing.kernels.get(&one.launch.kernel) else { continue };
        for (instruction, share) in kernel.instructions.iter().zip(&one.count.tallies) {
            let line = rows.entry((&kernel.name, instruction.line)).or_default();
            line.issued += share.issued * one.number;
            line.requests += share.requests * one.number;
            line.wavefronts += share.wavefronts * one.number;
            line.least += share.least * one.number;
            line.sectors += share.sectors * one.number;
            line.cycles += share.cycles * one.number;
        }
    }
    rows
}

/// The lines of each kernel that take most, of a block's time or of the instructions, with their memory accesses.
pub fn lines(listing: &Listing, counted: &[Counted]) -> String {
    let rows = by_line(listing, counted);
    let mut text = String::from(
        "\n| kernel | line | time | M instructions | share | requests | wavefronts a request | without conflicts | sectors a request |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut totals: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for ((kernel, _), line) in &rows {
        let total = totals.entry(kernel).or_default();
        total[0] += line.cycles;
        total[1] += line.issued;
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| a.0.0.cmp(b.0.0).then(b.1.cycles.total_cmp(&a.1.cycles)));
    for ((kernel, line), row) in rows {
        let [cycles, issued] = totals[kernel];
        let [time, share] = [row.cycles / cycles, row.issued / issued];
        if time.max(share) < 0.005 {
            continue;
        }
        let (file, number) = &listing.lines[line];
        let each = |value: f64| if row.requests > 0.0 { value / row.requests } else { 0.0 };
        let _ = writeln!(
            text,
            "| `{kernel}` | {file}:{number} | {:.1} % | {:.1} | {:.1} % | {:.1} | {:.1} | {:.1} | {:.1} |",
            100.0 * time,
            row.issued / 1e6,
            100.0 * share,
            row.requests / 1e6,
            each(row.wavefronts),
            each(row.least),
            each(row.sectors)
        );
    }
    text
}
