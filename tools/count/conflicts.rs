//! Bank conflicts: source lines whose accesses to shared memory take more than twice the wavefronts that they need, and a
//! hundredth or more of their kernel's.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::Counted;
use crate::listing::Listing;
use crate::report;

/// Such a line of a kernel.
pub struct Conflict {
    pub kernel: String,
    pub file: String,
    pub line: u32,
    /// Wavefronts of a request, and what they would be without conflicts.
    pub taken: f64,
    pub least: f64,
    /// Of all wavefronts of the kernel.
    pub share: f64,
}

/// Conflicts that stay: the beginning of the kernels' name, the file of the line, and why.
const KNOWN: [(&str, &str, &str); 10] = [
    ("expand_backward_144x32", "numeric.cuh", MEND),
    ("expand_backward_240x48", "numeric.cuh", MEND),
    ("expand_backward_split", "numeric.cuh", PARTIAL),
    ("expand_forward_128x96", "device.cuh", SWIZZLE),
    ("expand_forward_64x80", "pointwise_output.cuh", ONCE),
    ("image_prepare", "image.cuh", TABLE),
    ("project_forward_128x24", "device.cuh", SWIZZLE),
    ("project_forward_128x40", "device.cuh", SWIZZLE),
    ("stem_backward", "numeric.cuh", MEND),
    ("stem_forward", "stem_planes.cuh", MEMORY),
];
const MEND: &str = "known, to be mended";
const SWIZZLE: &str = "places by exclusive or would mend it, but project_forward_128x24 spills then";
const PARTIAL: &str =
    "partial sums: that line stores them to global memory, and other values to shared memory";
const ONCE: &str = "statistics of a block, written once";
const TABLE: &str = "bytes of an image pick numbers of a small table; memory binds all the same";
const MEMORY: &str = "memory binds the kernel all the same";

pub fn all(listing: &Listing, counted: &[Counted]) -> Vec<Conflict> {
    let rows = report::by_line(listing, counted);
    let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
    rows.iter().for_each(|((kernel, _), line)| *totals.entry(kernel).or_default() += line.wavefronts);
    let mut found = Vec::new();
    for ((kernel, line), row) in &rows {
        let share = row.wavefronts / totals[kernel];
        // Of global memory alone: sectors say more.
        let shared = row.sectors == 0.0 || row.wavefronts > row.sectors;
        if row.wavefronts > 2.0 * row.least && share >= 0.01 && shared {
            let (file, number) = &listing.lines[*line];
            let (taken, least) = (row.wavefronts / row.requests, row.least / row.requests);
            let (kernel, file, line) = (kernel.to_string(), file.clone(), *number);
            found.push(Conflict { kernel, file, line, taken, least, share });
        }
    }
    found
}

pub fn table(conflicts: &[Conflict]) -> String {
    let mut text = String::from(
        "\nLines that take more than twice the wavefronts that they need, of their kernel's:\n\n\
         | kernel | line | wavefronts a request | without conflicts | share |\n|---|---|---:|---:|---:|\n",
    );
    for Conflict { kernel, file, line, taken, least, share } in conflicts {
        let share = 100.0 * share;
        let _ = writeln!(text, "| `{kernel}` | {file}:{line} | {taken:.1} | {least:.1} | {share:.0} % |");
    }
    text
}

/// Conflicts that are not known, and known ones that are no longer there.
pub fn faults(conflicts: &[Conflict]) -> Vec<String> {
    let is = |conflict: &Conflict, (kernel, file, _): &(&str, &str, &str)| {
        conflict.kernel.starts_with(kernel) && conflict.file == *file
    };
    let new = conflicts.iter().filter(|conflict| !KNOWN.iter().any(|known| is(conflict, known)));
    let new = new.map(|Conflict { kernel, file, line, taken, least, .. }| {
        format!(
            "{file}:{line} in {kernel}: {taken:.1} wavefronts a request, {least:.1} without bank conflicts"
        )
    });
    let gone = KNOWN.iter().filter(|known| !conflicts.iter().any(|conflict| is(conflict, known)));
    let gone = gone
        .map(|(kernel, file, _)| format!("{kernel}…, {file}: no conflict any more; take it from the list"));
    new.chain(gone).collect()
}
