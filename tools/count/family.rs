//! Images a second of the whole family on each card, as Markdown: the second table of docs/family.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::Options;
use crate::card::LAUNCH;
use crate::disassemble;
use crate::step::Step;

/// Images of ImageNet's training set, epochs of the reference recipe, and its cards.
const IMAGENET: f64 = 1_281_167.0;
const EPOCHS: f64 = 400.0;
const TOGETHER: f64 = 8.0;

/// # Errors
/// If a step was not recorded for a card's memory, or its kernels cannot be counted.
pub fn table(options: &Options, steps: &[Step]) -> Result<String, String> {
    let mut models: Vec<&str> = Vec::new();
    for step in steps.iter().filter(|step| !step.model.is_empty()) {
        if !models.contains(&step.model.as_str()) {
            models.push(&step.model);
        }
    }
    if models.is_empty() {
        return Err(
            "no family in the record; `cargo run --example predict -- family --record FILE` writes it".into(),
        );
    }
    let wanted =
        |name: &str| steps.iter().flat_map(|step| &step.launches).any(|launch| launch.kernel == name);
    let mut listings = BTreeMap::new();
    for architecture in options.cards.iter().map(|card| card.architecture) {
        if let std::collections::btree_map::Entry::Vacant(place) = listings.entry(architecture) {
            place.insert(disassemble::read(&options.kernels, architecture, &wanted)?);
        }
    }
    let names = options.cards.iter().map(|card| format!(" {} |", card.name)).collect::<String>();
    let mut text = format!("| network |{names}\n|---|{}\n", "---:|".repeat(options.cards.len()));
    for model in models {
        let _ = write!(text, "| {} |", model.to_uppercase());
        for card in &options.cards {
            let suits = |step: &&Step| {
                step.model == model && step.memory == card.memory && step.recomputes == card.recomputes
            };
            let step = steps.iter().find(suits);
            let step = step.ok_or_else(|| format!("{model}: no step for {} GB", card.memory))?;
            let counted = crate::counted(options, card, &listings[&card.architecture], step)?;
            let launches: f64 = counted.iter().map(|one| one.number).sum();
            let busy: f64 = counted.iter().map(|one| one.number * one.time.longest().0).sum();
            let rate = step.images * 1e6 / (busy + launches * LAUNCH);
            let hours = IMAGENET * EPOCHS / TOGETHER / rate / 3600.0;
            let _ = write!(text, " {rate:.0} ({hours:.0} h) |");
        }
        text.push('\n');
    }
    Ok(text)
}
