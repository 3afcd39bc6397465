//! Counts what compiled kernels do on a GPU, without one: *predicted, not measured*.
//!
//! Some [blocks](block) of each launch of a training step run on the CPU: their machine code, instruction by instruction,
//! with the launch's own argument. So it is known how often each instruction is issued, which words of shared memory and
//! which sectors of global memory each access touches, and how long a block takes alone. A [model] of each [card] makes
//! times of that.
//!
//! ```sh
//! cargo run --example predict -- --record target/step.json > /dev/null
//! cargo run -p effnet-count -- --step target/step.json    # of the newest build; --kernels FOLDER for another
//! ```

mod block;
mod card;
mod check;
mod code;
mod conflicts;
mod disassemble;
mod family;
mod floats;
mod flow;
mod instruction;
mod integers;
mod latency;
mod listing;
mod memory;
mod model;
mod operand;
mod pipe;
mod report;
mod run;
mod step;
#[cfg(test)]
mod tests;
mod warp;

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::PathBuf;

use card::{CARDS, Card};
use listing::Listing;
use model::{Count, Time};
use step::{Launch, Likeness, Step};

/// What was asked for.
pub struct Options {
    step: PathBuf,
    kernels: PathBuf,
    cards: Vec<&'static Card>,
    only: Vec<String>,
    lines: bool,
    check: bool,
    conflicts: bool,
    family: bool,
    sample: u64,
}

const USAGE: &str = "count --step FILE [--kernels FOLDER] [--card NAME]... [--only KERNEL-PREFIX]... [--sample N]\n\
    [--lines] [--check] [--conflicts] [--family]\n\
  FILE    from `cargo run --example predict -- --record FILE`\n\
  FOLDER  has NAME.sm_90.cubin, or *.fatbin; without it: the newest build below the target folder\n\
  --lines source lines with what they cost on the first card, and their share of a block's time\n\
  --check runs all blocks of a small batch: an error if a kernel does not store what its pass must write\n\
  --conflicts  bank conflicts above two on the first card are an error, but for those that are known\n\
  --family  images a second of each network: FILE from `cargo run --example predict -- family --record FILE`";

fn options() -> Result<Options, String> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    let [mut lines, mut check, mut conflicts, mut family] = [false; 4];
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--lines" => lines = true,
            "--check" => check = true,
            "--conflicts" => conflicts = true,
            "--family" => family = true,
            "--step" | "--kernels" | "--card" | "--only" | "--sample" => {
                let value = arguments.next().ok_or_else(|| format!("{flag} needs a value\n{USAGE}"))?;
                values.entry(flag).or_default().push(value);
            }
            _ => return Err(format!("{flag}: not known\n{USAGE}")),
        }
    }
    let mut one = |flag: &str| values.get_mut(flag).and_then(Vec::pop);
    let step = one("--step").ok_or(USAGE)?.into();
    let kernels = one("--kernels").map_or_else(disassemble::newest, |folder| Ok(folder.into()))?;
    let sample = one("--sample")
        .map_or(Ok(3), |text| text.parse().map_err(|_| format!("--sample {text}: a number")))?;
    let only = values.remove("--only").unwrap_or_default();
    let mut cards = Vec::new();
    for name in values.remove("--card").unwrap_or_default() {
        cards.push(CARDS.iter().find(|card| card.name == name).ok_or_else(|| {
            let known: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
            format!("--card {name}: known are {}", known.join(", "))
        })?);
    }
    if cards.is_empty() {
        cards = CARDS.iter().collect();
    }
    Ok(Options { step, kernels, cards, only, lines, check, conflicts, family, sample })
}

/// Launches that are equal, with their number, count and time.
#[derive(Clone)]
pub struct Counted<'a> {
    pub launch: &'a Launch,
    pub number: f64,
    pub count: Count,
    pub time: Time,
}

/// All launches of a step on a card.
fn counted<'a>(
    options: &Options,
    card: &Card,
    listing: &Listing,
    step: &'a Step,
) -> Result<Vec<Counted<'a>>, String> {
    let mut known: HashMap<Likeness, usize> = HashMap::new();
    let mut all: Vec<Counted> = Vec::new();
    for launch in step.launches.iter().filter(|launch| wanted(options, &launch.kernel)) {
        let likeness = launch.likeness();
        if let Some(&at) = known.get(&likeness) {
            all[at].number += 1.0;
            continue;
        }
        let kernel = listing.kernels.get(&launch.kernel).ok_or_else(|| {
            format!(
                "{}: no machine code of {} for sm_{}",
                options.kernels.display(),
                launch.kernel,
                card.architecture
            )
        })?;
        let count = run::count(card, kernel, launch, options.sample)?;
        let resident = model::resident(card.architecture, kernel.registers, launch.threads, launch.shared);
        let resident = resident.ok_or_else(|| format!("sm_{}: not known", card.architecture))?;
        let time = model::time(card, &count, launch.bytes, resident);
        known.insert(likeness, all.len());
        all.push(Counted { launch, number: 1.0, count, time });
    }
    Ok(all)
}

/// Not what the driver does by itself, such as a copy.
fn wanted(options: &Options, kernel: &str) -> bool {
    let chosen = options.only.is_empty() || options.only.iter().any(|prefix| kernel.starts_with(prefix));
    chosen && !kernel.starts_with('(')
}

/// All blocks of a small step: an error if a kernel does not store what its pass must write.
fn check(options: &Options, listings: &BTreeMap<u32, Listing>, step: &Step) -> Result<(), String> {
    let mut faults = Vec::new();
    for card in &options.cards {
        let wanted = |launch: &Launch| wanted(options, &launch.kernel);
        faults.extend(check::faults(card, &listings[&card.architecture], step, &wanted)?);
    }
    let tensors: usize = step.passes.iter().map(|pass| pass.written.len()).sum();
    println!("{}: {} launches, {tensors} tensors, {} faults", step.case, step.launches.len(), faults.len());
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn main() {
    if let Err(error) = options().and_then(|options| work(&options)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn work(options: &Options) -> Result<(), String> {
    let text = std::fs::read_to_string(&options.step);
    let text = text.map_err(|error| format!("{}: {error}", options.step.display()))?;
    let steps = step::read(&text)?;
    if options.family {
        print!("{}", family::table(options, &steps)?);
        return Ok(());
    }
    let step = steps.first().ok_or("no step in the record")?;
    let mut listings: BTreeMap<u32, Listing> = BTreeMap::new();
    for card in &options.cards {
        if let Entry::Vacant(place) = listings.entry(card.architecture) {
            let wanted = |name: &str| step.launches.iter().any(|l| l.kernel == name) && wanted(options, name);
            place.insert(disassemble::read(&options.kernels, card.architecture, &wanted)?);
        }
    }
    if options.check {
        return check(options, &listings, step);
    }
    if options.only.is_empty() {
        print!("{}", report::PREFACE);
    }
    let mut faults = Vec::new();
    // Cards of one architecture, clock, latency and cache run the same.
    let mut known: BTreeMap<String, Vec<Counted>> = BTreeMap::new();
    for card in &options.cards {
        let listing = &listings[&card.architecture];
        let key = format!("{} {} {} {}", card.architecture, card.clock, card.latency, card.cache);
        let mut counted = match known.entry(key) {
            Entry::Occupied(place) => place.get().clone(),
            Entry::Vacant(place) => place.insert(counted(options, card, listing, step)?).clone(),
        };
        for one in &mut counted {
            one.time = model::time(card, &one.count, one.launch.bytes, one.time.resident as u32);
        }
        println!("\n### Counted: {} on {}\n", step.case, card.name);
        print!("{}", report::kernels(&counted, step.images));
        if card.name == options.cards[0].name {
            print!("{}", report::pipes(&counted));
            let conflicts = conflicts::all(listing, &counted);
            print!("{}", conflicts::table(&conflicts));
            if options.conflicts {
                faults.extend(conflicts::faults(&conflicts));
            }
        }
        if options.lines && card.name == options.cards[0].name {
            print!("{}", report::lines(listing, &counted));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}
