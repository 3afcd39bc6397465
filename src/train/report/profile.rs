//! `--profile`: a table of the time that each pass of a step takes.
//!
//! Passes are limited by memory bandwidth. So the table also shows the bytes of the tensors that a pass names, each
//! counted once, the rate at which they moved, and the *floor*: the time of a plain copy of as many bytes, as a share
//! of the pass's time. If a device runs several kernels in a pass, they are listed below it, with their times only.
//!
//! One line says how long the host takes to hand the images of a step over to the device: to a GPU it copies them.
//!
//! With several ranks, a table of the gradient buckets follows: when each bucket was complete, and when its sum over the
//! ranks began and ended. A sum that ends before the backward pass costs no extra time: it is *hidden*.

use crate::ops::{BucketTime, ProfileReport, ProfileRow};

/// The lines of the table: passes by falling time, with their kernels below them.
pub fn lines(report: &ProfileReport, steps: u64) -> Vec<String> {
    let steps = steps.max(1) as f64;
    let passes = || report.rows.iter().filter(|row| row.kernel.is_none());
    let kernels = |pass: &ProfileRow| {
        let mut rows: Vec<&ProfileRow> =
            report.rows.iter().filter(|row| row.pass == pass.pass && row.kernel.is_some()).collect();
        rows.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        rows
    };
    let all: f64 = passes().map(|row| row.microseconds).sum();
    let mut sorted: Vec<&ProfileRow> = passes().collect();
    sorted.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));

    let copy = report.copy_bytes_per_second;
    let mut lines = vec![
        format!("profile of {steps} steps, times of one step; a copy moves {:.1} GB/s here", copy / 1e9),
        format!(
            "{:<44} {:>6} {:>12} {:>7} {:>10} {:>8} {:>8}",
            "pass", "calls", "time", "share", "MB", "GB/s", "of floor"
        ),
    ];
    for pass in sorted.iter().copied() {
        lines.push(line(pass.pass, pass, steps, all, copy));
        for kernel in kernels(pass) {
            lines.push(line(
                &format!("  {}", kernel.kernel.as_deref().unwrap_or_default()),
                kernel,
                steps,
                all,
                copy,
            ));
        }
    }
    let whole = ProfileRow {
        pass: "all",
        kernel: None,
        calls: passes().map(|row| row.calls).sum(),
        microseconds: all,
        bytes: passes().map(|row| row.bytes).sum(),
    };
    lines.push(line("all", &whole, steps, all, copy));
    lines.push(format!("the host hands a step's images over in {:.2} ms", report.handover / steps / 1e3));
    lines.extend(exchange_lines(&report.exchange));
    lines
}

/// The table of the buckets, with means over the steps; empty if there are none.
fn exchange_lines(times: &[BucketTime]) -> Vec<String> {
    let steps: Vec<&[BucketTime]> = times.chunk_by(|a, b| a.step == b.step).collect();
    let Some(first) = steps.first() else { return Vec::new() };
    let buckets = first.len();
    let mean = |of: &dyn Fn(&[BucketTime]) -> f64| {
        steps.iter().map(|step| of(step)).sum::<f64>() / steps.len() as f64 / 1e3
    };
    let mut lines = vec![
        "gradients summed over the ranks, bucket by bucket, in ms since the step began".to_string(),
        format!("{:<8} {:>10} {:>10} {:>10} {:>10}", "bucket", "MB", "complete", "start", "end"),
    ];
    for number in 0..buckets {
        let [ready, start, end] = [
            mean(&|step| step[number].ready),
            mean(&|step| step[number].start),
            mean(&|step| step[number].end),
        ];
        let bytes = first[number].bytes as f64 / 1e6;
        lines.push(format!("{:<8} {bytes:>10.2} {ready:>10.2} {start:>10.2} {end:>10.2}", number + 1));
    }
    let busy = mean(&|step| overlap(step).0);
    let hidden = mean(&|step| overlap(step).1);
    lines.push(format!(
        "the backward pass ends at {:.2} ms; of {busy:.2} ms that sums were under way, {hidden:.2} ms ({:.0} %) were \
         hidden behind it",
        mean(&|step| step[0].backward_end),
        100.0 * hidden / busy.max(1e-9)
    ));
    lines
}

/// Microseconds of a step in which at least one bucket was being summed, and how many of them were before the end of the
/// backward pass.
pub fn overlap(step: &[BucketTime]) -> (f64, f64) {
    let (mut busy, mut hidden, mut reached) = (0.0, 0.0, f64::NEG_INFINITY);
    // Sums begin in order; the next one may begin before the previous one ends.
    for time in step {
        let start = time.start.max(reached);
        busy += (time.end - start).max(0.0);
        hidden += (time.end.min(time.backward_end) - start).max(0.0);
        reached = reached.max(time.end);
    }
    (busy, hidden)
}

fn line(name: &str, row: &ProfileRow, steps: f64, all: f64, copy: f64) -> String {
    let calls = row.calls as f64 / steps;
    let time = row.microseconds / steps;
    let share = 100.0 * row.microseconds / all.max(1e-9);
    let head = format!("{name:<44} {calls:>6.1} {time:>9.1} µs {share:>5.1} %");
    if row.bytes == 0 {
        return head;
    }
    let bytes = row.bytes as f64;
    let seconds = row.microseconds.max(1e-9) / 1e6;
    let floor = 100.0 * bytes / copy / seconds;
    format!("{head} {:>10.2} {:>8.1} {floor:>6.1} %", bytes / steps / 1e6, bytes / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_begins_with_the_slowest_pass_and_ends_with_the_sum() {
        let row = |pass, kernel: Option<&str>, microseconds, bytes| ProfileRow {
            pass,
            kernel: kernel.map(String::from),
            calls: 4,
            microseconds,
            bytes,
        };
        let rows = vec![
            row("squeeze forward", None, 100.0, 1_000_000),
            row("expand forward", None, 300.0, 6_000_000),
            row("expand forward", Some("expand_forward_f16"), 250.0, 0),
        ];
        let report =
            ProfileReport { rows, handover: 3000.0, copy_bytes_per_second: 40e9, ..Default::default() };
        let lines = lines(&report, 2);
        let words: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words.len(), 7, "{lines:#?}");
        // 6 MB in 300 µs are 20 GB/s, half the rate of a copy; 300 of 400 µs are three quarters.
        assert_eq!(
            words[2],
            ["expand", "forward", "2.0", "150.0", "µs", "75.0", "%", "3.00", "20.0", "50.0", "%"]
        );
        assert_eq!(words[3], ["expand_forward_f16", "2.0", "125.0", "µs", "62.5", "%"]);
        assert_eq!(words[4][..2], ["squeeze", "forward"]);
        assert_eq!(words[5][..4], ["all", "4.0", "200.0", "µs"]);
        assert!(lines[6].ends_with("in 1.50 ms"), "{}", lines[6]);
    }

    #[test]
    fn overlap_counts_the_time_before_the_backward_pass_ends() {
        let time = |step, (ready, start, end)| {
            let (bytes, backward_end) = (5_000_000, 1000.0);
            BucketTime { step, bytes, ready, start, end, backward_end }
        };
        // The second sum begins before the first ends; the third begins before the backward pass ends and ends after it.
        let step = |number| {
            let times = [(100.0, 110.0, 300.0), (200.0, 210.0, 400.0), (900.0, 900.0, 1100.0)];
            times.map(|times| time(number, times))
        };
        assert_eq!(overlap(&step(0)), (490.0, 390.0));
        let alone = [time(0, (1000.0, 1000.0, 1200.0))];
        assert_eq!(overlap(&alone), (200.0, 0.0));
        let exchange = [step(0), step(1)].concat();
        let lines = exchange_lines(&exchange);
        assert_eq!(lines.len(), 6, "{lines:#?}");
        let words: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!(words, ["2", "5.00", "0.20", "0.21", "0.40"]);
        assert!(lines[5].contains("1.00 ms") && lines[5].contains("(80 %)"), "{}", lines[5]);
        assert!(exchange_lines(&[]).is_empty());
    }
}
