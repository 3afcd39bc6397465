//! Checks of compiled kernels that need no card: all of a small step's blocks run.
//!
//! Each tensor that a pass writes must be stored whole, no launch may store a byte twice, and tensor cores must do as many
//! multiply-adds as follow from the shapes. So a kernel whose compiled addresses are wrong is seen, and an interpreter that
//! reads an instruction wrongly, too.

use std::collections::{BTreeMap, HashMap};

use crate::block::Last;
use crate::card::Card;
use crate::code::Code;
use crate::listing::Listing;
use crate::model;
use crate::run;
use crate::step::{Launch, Step};

/// Kernels that keep something else in their result's place first.
const TWICE: [&str; 1] = ["head_loss"]; // e^x of each logit, until their sum is known

/// A set of bytes, as ranges that do not touch: start and end.
#[derive(Default)]
pub struct Bytes(BTreeMap<u64, u64>);

impl Bytes {
    /// Adds a range; the number of its bytes that were there already.
    pub fn add(&mut self, start: u64, bytes: u64) -> u64 {
        let (mut first, mut end) = (start, start + bytes);
        let mut twice = 0;
        while let Some((&begin, &stop)) = self.0.range(..=end).next_back()
            && stop >= first
        {
            twice += stop.min(start + bytes).saturating_sub(begin.max(start));
            (first, end) = (first.min(begin), end.max(stop));
            self.0.remove(&begin);
        }
        self.0.insert(first, end);
        twice
    }

    /// How many bytes of a range are in it.
    pub fn of(&self, start: u64, bytes: u64) -> u64 {
        let end = start + bytes;
        let parts = self.0.range(..end).rev().take_while(|(_, stop)| **stop > start);
        parts.map(|(begin, stop)| (*stop).min(end) - (*begin).max(start)).sum()
    }
}

/// What is wrong with the kernels of a step, a line each.
pub fn faults(
    card: &Card,
    listing: &Listing,
    step: &Step,
    wanted: &dyn Fn(&Launch) -> bool,
) -> Result<Vec<String>, String> {
    let mut faults = unknown(card, listing);
    let mut stored: Vec<Bytes> = step.passes.iter().map(|_| Bytes::default()).collect();
    for launch in step.launches.iter().filter(|launch| wanted(launch)) {
        let kernel = &listing.kernels[&launch.kernel];
        let (mut own, mut twice) = (Bytes::default(), 0);
        let mut last = Last::Counted(HashMap::new());
        let mut products = 0.0;
        for number in 0..launch.blocks() {
            let done = run::block(card, kernel, launch, number, true, last)?;
            products += model::products(kernel, &done);
            last = done.last;
            for (at, bytes) in done.stores {
                twice += own.add(at, u64::from(bytes));
                stored[launch.pass].add(at, u64::from(bytes));
            }
        }
        // Backward, tiles end with an image or a part, and some of their rows are empty. Rows at the border of two tiles are
        // computed again by both.
        let exact = launch.kernel.contains("_forward") && !launch.kernel.contains("_recompute");
        if products < launch.tensor || exact && products != launch.tensor {
            let (kernel, grid, tensor) = (&launch.kernel, launch.grid, launch.tensor);
            faults.push(format!(
                "{kernel}, grid {grid:?}: {products} multiply-adds on tensor cores, {tensor} expected"
            ));
        }
        if (twice > 0) != TWICE.iter().any(|name| launch.kernel.starts_with(name)) {
            faults.push(format!("{}, grid {:?}: stores {twice} bytes twice", launch.kernel, launch.grid));
        }
    }
    for (pass, stored) in step.passes.iter().zip(&stored) {
        for (at, bytes) in &pass.written {
            let there = stored.of(*at, *bytes);
            if there != *bytes {
                faults.push(format!("{}: stores {there} of a tensor's {bytes} bytes", pass.name));
            }
        }
    }
    Ok(faults)
}

/// Instructions that the interpreter does not know, of all kernels of the step.
fn unknown(card: &Card, listing: &Listing) -> Vec<String> {
    let mut faults = Vec::new();
    for kernel in listing.kernels.values() {
        let unknown = kernel.instructions.iter().filter(|instruction| instruction.code == Code::Unknown);
        faults.extend(unknown.map(|instruction| {
            format!("{} for sm_{}: unknown instruction {}", kernel.name, card.architecture, instruction.text)
        }));
    }
    faults.sort();
    faults
}
