//! Counts launches: some blocks of each, evenly spread over its grid.

use crate::block::{Block, Done, Last, Run};
use crate::card::Card;
use crate::latency::Latency;
use crate::listing::Kernel;
use crate::model::Count;
use crate::step::Launch;
use crate::warp::Setting;

/// Two half-precision ones: a small positive number as fp32, too.
const FILL: u32 = 0x3c00_3c00;
/// Kernels that read integers which say how much there is to do.
const INTEGERS: [&str; 4] = ["image_", "head_loss", "optimiser_", "step_"];

/// Constant bank 0: what the driver writes, then the argument.
pub fn constants(architecture: u32, launch: &Launch) -> Vec<u8> {
    let first = if architecture >= 90 { 0x210 } else { 0x160 };
    let mut bank = vec![0; first];
    let mut put = |at: usize, value: u32| bank[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, launch.threads);
    put(4, 1);
    put(8, 1);
    (0..3).for_each(|side| put(12 + 4 * side, launch.grid[side]));
    bank.extend(&launch.argument);
    bank
}

/// Runs one block.
pub fn block(
    card: &Card,
    kernel: &Kernel,
    launch: &Launch,
    number: u64,
    keep: bool,
    last: Last,
) -> Result<Done, String> {
    let latency = Latency::of_card(card.latency, card.clock);
    let setting = Setting {
        block: launch.block(number),
        threads: launch.threads,
        constants: constants(card.architecture, launch),
    };
    let integers = INTEGERS.iter().any(|prefix| launch.kernel.starts_with(prefix));
    // Half of the cache for what the kernel before has written, half for what else lies there.
    let cached = launch.bytes - launch.again <= card.cache * 1e6 / 2.0;
    let run = Run { fill: if integers { 0 } else { FILL }, keep, last, cached };
    Block::new(kernel, &setting, &latency, run).run()
}

/// The work of a launch, from `sample` blocks of each kind of its work.
pub fn count(card: &Card, kernel: &Kernel, launch: &Launch, sample: u64) -> Result<Count, String> {
    let mut kinds = Vec::new();
    for border in launch.borders().windows(2) {
        let (first, blocks) = (border[0], border[1] - border[0]);
        let sample = sample.min(blocks);
        let mut done = Vec::new();
        for i in 0..sample {
            let number = first + (2 * i + 1) * blocks / (2 * sample);
            done.extend(as_often(card, kernel, launch, number)?);
        }
        kinds.push((blocks as f64, done));
    }
    Ok(Count::of(kernel, &kinds))
}

/// A block that is never the last, is the last once, …, with how many of its launch's blocks are so.
fn as_often(card: &Card, kernel: &Kernel, launch: &Launch, number: u64) -> Result<Vec<(f64, Done)>, String> {
    let mut all = Vec::new();
    let mut share = 1.0;
    for last_at in 0.. {
        let done = block(card, kernel, launch, number, false, Last::At(last_at))?;
        let last = done.arrivals.get(last_at).map_or(0.0, |blocks| share / f64::from(*blocks));
        all.push((share - last, done));
        share = last;
        if last == 0.0 {
            break;
        }
    }
    Ok(all)
}
