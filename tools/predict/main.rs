//! The least time of a training step on a GPU: *predicted, not measured*.
//!
//! The launchers of a whole step run on a [GPU that only records](recorder), so launches, grids and shared memory
//! are facts; the work of each launch follows from its arguments by [formulas](work) that were counted in the kernels'
//! sources; and a launch takes at least the longest of its times on memory, tensor cores, fp32 units and
//! special-function units of a [card].
//!
//! `cargo run --example predict` prints tables for B0 at 224², batch 512, with expanded tensors stored and computed again, and B4
//! at 380², batch 64, in fp16;
//! `-- --model b2 --resolution 260 --batch 128 --precision bf16` one case; `--launches FILE` writes the launch
//! configurations, from which `tools/check_kernels.py --table --launches FILE` makes a table of occupancy.
//!
//! What editing an image costs besides is [counted](edits) in its own table.
//!
//! `cargo run --example predict -- scaling` prints how a step scales over cards: when its buckets of gradients are
//! complete, and how much of [their sums](exchange) remains when the backward pass has ended. `-- family` prints what
//! [each network of the family](family) needs.

mod card;
mod edits;
mod exchange;
mod family;
mod layers;
mod pointwise;
mod recorder;
mod report;
mod scaling;
mod scaling_report;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod windows;
mod work;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Parser, Subcommand};
use effnet::model::Variant;
use effnet::ops::cuda::Precision;
use recorder::Launched;
use step::Case;

/// Ranks that share a step.
const RANKS: usize = 8;

/// What to predict. Without a model: the usual two cases.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    #[arg(long, value_parser = Variant::from_str)]
    model: Option<Variant>,
    /// The model's own if not given.
    #[arg(long)]
    resolution: Option<usize>,
    #[arg(long, default_value_t = 128)]
    batch: usize,
    #[arg(long, default_value = "fp16", value_parser = Precision::from_str)]
    precision: Precision,
    /// Expanded tensors are computed again where kernels can.
    #[arg(long)]
    recompute: bool,
    /// Writes how each kernel is launched, as JSON: the first case's, its ranks', those of edited images, and those that compute
    /// expanded tensors again.
    #[arg(long)]
    launches: Option<PathBuf>,
    /// Writes every launch of each case with its argument, as JSON, for `tools/count`.
    #[arg(long)]
    record: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// The tables of docs/scaling.md: a step on several cards.
    Scaling,
    /// The first table of docs/family.md: what each network needs.
    Family {
        /// Writes the steps of the largest batches, as JSON, for `tools/count --family`.
        #[arg(long)]
        record: Option<PathBuf>,
    },
}

fn cases(flags: &Flags) -> Vec<Case> {
    let precision = flags.precision;
    let mut cases = match flags.model {
        Some(model) => {
            let side = flags.resolution.unwrap_or(model.scaling().resolution);
            vec![Case::new(model, side, flags.batch, precision)]
        }
        None => {
            let [b0, b4] = [(Variant::B0, 224, 512), (Variant::B4, 380, 64)]
                .map(|(model, side, images)| Case::new(model, side, images, precision));
            if flags.recompute { vec![b0, b4] } else { vec![b0, Case { recomputes: true, ..b0 }, b4] }
        }
    };
    cases.iter_mut().for_each(|case| case.recomputes |= flags.recompute);
    cases
}

fn run(flags: &Flags) -> Result<(), String> {
    match &flags.command {
        Some(Command::Scaling) => {
            print!("{}", scaling_report::tables().map_err(|error| error.to_string())?);
            return Ok(());
        }
        Some(Command::Family { record }) => {
            let (table, steps) = family::tables(flags.precision).map_err(|error| error.to_string())?;
            print!("{table}");
            return record.as_deref().map_or(Ok(()), |path| write(path, &steps.to_string()));
        }
        None => {}
    }
    let mut all = Vec::new();
    for case in cases(flags) {
        let steps = step::record(case).map_err(|error| error.to_string())?;
        all.push((case, steps));
    }
    let (first, steps) = &all[0];
    let rank = step::record_rank(*first, RANKS).map_err(|error| error.to_string())?;
    if let Some(path) = &flags.launches {
        let edited = step::record_editing(*first).map_err(|error| error.to_string())?;
        let of = |steps: &[step::Recorded]| -> Vec<Launched> {
            steps.iter().flat_map(|step| &step.launches).map(|(launch, _)| launch.clone()).collect()
        };
        let mut launches = [of(steps), of(&rank), edited].concat();
        // The same network once more, for kernels of its own.
        if let Some((_, again)) = all.iter().skip(1).find(|(case, _)| case.recomputes) {
            let mut own = of(again);
            own.retain(|launch| launches.iter().all(|other| other.kernel != launch.kernel));
            launches.append(&mut own);
        }
        let text = report::launches(launches.iter()).to_string();
        write(path, &text)?;
    }
    if let Some(path) = &flags.record {
        let steps: Vec<_> = all.iter().map(|(case, steps)| report::record(*case, steps)).collect();
        write(path, &serde_json::Value::from(steps).to_string())?;
    }
    print!("{}", report::preface());
    all.iter().for_each(|(case, steps)| print!("{}", report::network(*case, steps)));
    print!("{}", report::rank(*first, &rank, RANKS));
    print!("{}", edits::table(*first, steps));
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn main() {
    if let Err(error) = run(&Flags::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
