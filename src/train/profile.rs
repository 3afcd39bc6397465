//! `--profile`: where a step's time goes, as a table.
//!
//! A pass is bound by memory, so beside its time stand the bytes of the tensors that it names, each counted once, the
//! rate at which they moved, and what share of the time a plain copy of as many bytes would have taken: its *floor*.
//! A device with several kernels a pass lists them under it, with their times alone.

use crate::ops::{ProfileReport, ProfileRow};

/// The table's lines: passes by falling time, the kernels of each below it.
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
    lines
}

fn line(name: &str, row: &ProfileRow, steps: f64, all: f64, copy: f64) -> String {
    let (calls, time) = (row.calls as f64 / steps, row.microseconds / steps);
    let share = 100.0 * row.microseconds / all.max(1e-9);
    let head = format!("{name:<44} {calls:>6.1} {time:>9.1} µs {share:>5.1} %");
    if row.bytes == 0 {
        return head;
    }
    let (bytes, seconds) = (row.bytes as f64, row.microseconds.max(1e-9) / 1e6);
    let floor = 100.0 * bytes / copy / seconds;
    format!("{head} {:>10.2} {:>8.1} {floor:>6.1} %", bytes / steps / 1e6, bytes / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_comes_first_with_its_kernels_and_the_sum_last() {
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
        let report = ProfileReport { rows, exchange: Vec::new(), copy_bytes_per_second: 40e9 };
        let lines = lines(&report, 2);
        let words: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words.len(), 6, "{lines:#?}");
        // 6 MB in 300 µs are 20 GB/s, half of what a copy does; 300 of 400 µs are three quarters.
        assert_eq!(
            words[2],
            ["expand", "forward", "2.0", "150.0", "µs", "75.0", "%", "3.00", "20.0", "50.0", "%"]
        );
        assert_eq!(words[3], ["expand_forward_f16", "2.0", "125.0", "µs", "62.5", "%"]);
        assert_eq!(words[4][..2], ["squeeze", "forward"]);
        assert_eq!(words[5][..4], ["all", "4.0", "200.0", "µs"]);
    }
}
