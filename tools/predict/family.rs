//! What each network of the family needs, as Markdown: the first table of docs/family.md. *Predicted, not measured.*
//!
//! Multiply-adds and parameters are those of `--summary`, memory is that of the planner of a run, with expanded tensors stored
//! and computed again. The steps of the largest batches are recorded, so that `tools/count --family` makes images a second of
//! them.

use std::fmt::Write;

use effnet::model::{ParamTable, Variant, summary};
use effnet::ops::cuda::Precision;
use effnet::ops::{OpsError, Result};
use effnet::parallel::World;
use effnet::train::device::Cuda;
use effnet::train::{MemoryPlan, Recipe, RecomputeChoice, memory_plan};
use serde_json::{Value, json};

use crate::recorder::RecordingGpu;
use crate::report;
use crate::step::{self, Case};

/// GiB of the cards, of which the driver's context takes about half a one.
const MEMORIES: [u64; 4] = [10, 24, 40, 80];
const CONTEXT: u64 = 512 << 20;
const CLASSES: usize = 1000;

/// The table, and the steps as JSON.
///
/// # Errors
/// If a network cannot be planned or recorded.
pub fn tables(precision: Precision) -> Result<(String, Value)> {
    let mut text = format!(
        "| network | resolution | parameters M | multiply-adds G | kept MB | moved MB |{}\n|---|---:|---:|---:|---:|---:|{}\n",
        MEMORIES.map(|memory| format!(" images in {memory} GB |")).concat(),
        MEMORIES.map(|_| "---:|").concat()
    );
    let mut records = Vec::new();
    for model in Variant::ALL {
        let mut plans = Vec::new();
        for memory in MEMORIES {
            let mut of = |recompute| -> Result<(MemoryPlan, f64)> {
                let plan = plan(model, precision, recompute, (memory << 30) - CONTEXT)?;
                let recomputes = recompute == RecomputeChoice::On;
                let stored = Case::new(model, model.scaling().resolution, plan.micro_batch, precision);
                let case = Case { recomputes, ..stored };
                let steps = step::record(case)?;
                let mut record = report::record(case, &steps);
                record["memory"] = json!(memory);
                record["model"] = json!(model.name());
                record["recomputes"] = json!(recomputes);
                records.push(record);
                let launches = steps.iter().flat_map(|step| &step.launches);
                let moved: f64 = launches.map(|(_, work)| work.bytes).sum();
                Ok((plan, moved / case.images as f64 / 1e6))
            };
            plans.push([of(RecomputeChoice::Off)?, of(RecomputeChoice::On)?]);
        }
        text += &row(model, &plans)?;
    }
    Ok((text, Value::from(records)))
}

/// `plans`, and MB that an image moves: stored, and computed again.
fn row(model: Variant, plans: &[[(MemoryPlan, f64); 2]]) -> Result<String> {
    let recipe = Recipe::reference(model, 1);
    let net = recipe.architecture(CLASSES).map_err(wrong)?;
    let facts = summary::json(&net, &ParamTable::new(&net), None);
    let number = |name: &str| facts[name].as_f64().unwrap_or(f64::NAN);
    let largest = &plans[plans.len() - 1];
    let kept = |plan: &MemoryPlan| plan.saved as f64 / plan.micro_batch as f64 / 1e6;
    let [[kept, moved], [kept_again, moved_again]] =
        largest.each_ref().map(|(plan, moved)| [kept(plan), *moved]);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "| {} | {} | {:.1} | {:.2} | {kept:.1} / {kept_again:.1} | {moved:.0} / {moved_again:.0} |",
        model.name().to_uppercase(),
        net.resolution,
        number("parameters") / 1e6,
        number("multiply_adds") / 1e9,
    );
    for pair in plans {
        let cell = |(plan, _): &(MemoryPlan, f64)| {
            format!("{} ({:.1})", plan.micro_batch, plan.total() as f64 / f64::from(1 << 30))
        };
        let _ = write!(text, " {} |", pair.each_ref().map(cell).join(" / "));
    }
    text.push('\n');
    Ok(text)
}

/// The plan of the largest batch that fits, in whole eights of images where there are so many.
fn plan(model: Variant, precision: Precision, recompute: RecomputeChoice, memory: u64) -> Result<MemoryPlan> {
    let of = |images: usize| {
        let recipe = Recipe::reference(model, images);
        let card = Cuda::new(RecordingGpu::with_memory(memory), precision, "a card of this memory");
        let mut card = card.with_recompute(recompute);
        memory_plan(&recipe, CLASSES, &mut card, World::ALONE, 1).map_err(wrong)
    };
    let largest = of(1)?.largest.unwrap_or(0);
    let images = if largest >= 16 { largest / 8 * 8 } else { largest };
    if images == 0 {
        return Err(OpsError::Device(format!("{}: not one image fits {memory} bytes", model.name())));
    }
    of(images)
}

fn wrong(error: impl std::fmt::Display) -> OpsError {
    OpsError::Device(error.to_string())
}
