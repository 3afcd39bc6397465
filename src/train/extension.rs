//! `--extend`: a run goes on to more epochs than it was planned for.
//!
//! From the step at which the run stands, all that follows from its length (learning rate, stages, evaluations) is that
//! of a run of the new length. The steps before had the rates of the shorter run. So the result is not that of a run
//! that was planned with the new length, unless the rate does not depend on it. A rate that had ended at 0 rises again,
//! to what the longer schedule has at this step.
//!
//! The checkpoint says the new length before the first further step. From then on the run resumes like any other, with
//! the same bytes.

use super::checkpoint::Metadata;
use super::recipe::Recipe;
use super::recipe_limits::{RecipeError, require};
use super::report::events::ExtensionRecord;
use super::schedule::Schedule;

/// The flag.
const EXTEND: &str = "extend";

/// The recipe of a run that goes on to so many epochs. `saved` is of its checkpoint, if there is one.
///
/// # Errors
/// Fewer epochs than the run has done or is planned for.
pub fn extend(recipe: &Recipe, to: f64, saved: Option<&Metadata>) -> Result<Recipe, RecipeError> {
    let (planned, done) = (recipe.epochs, saved.map_or(0.0, |saved| saved.epoch));
    let problem = if to < done {
        format!("the run has done {done:.2} of {planned} epochs; give more than {planned}")
    } else {
        format!("the run is planned for {planned} epochs; give more, or leave it out to go on")
    };
    require(EXTEND, to, to >= planned && to.is_finite(), &problem)?;
    Ok(Recipe { epochs: to, ..recipe.clone() })
}

/// Refuses to extend a run that its patience would end again before the first step.
///
/// # Errors
/// One line with the way out.
pub fn check_patience(recipe: &Recipe, schedule: &Schedule, metadata: &Metadata) -> Result<(), RecipeError> {
    let problem = format!(
        "the run ended by its --patience {}, and would end again at once; start another run from its weights \
         (--init-from)",
        recipe.patience.unwrap_or_default()
    );
    require(EXTEND, recipe.epochs, !schedule.patience_is_over(recipe.patience, metadata), &problem)
}

/// What the user should know: how the rate goes on, and what the result is.
pub fn line(before: &Schedule, after: &Schedule, stages: usize, record: &ExtensionRecord) -> String {
    let ExtensionRecord { step, extended_from, extended_to, .. } = *record;
    let same = |step: u64| {
        before.lr(step) == after.lr(step) && before.stage(step, stages) == after.stage(step, stages)
    };
    let result = if (0..step).all(same) {
        "its steps so far are those of a run of that length".to_string()
    } else {
        format!("the result is not that of a run planned for {extended_to} epochs from the start")
    };
    let (was, is) = (before.lr(step.min(before.steps())), after.lr(step));
    let rises = if is > was { ", so it rises" } else { "" };
    format!(
        "extended from {extended_from} to {extended_to} epochs ({} to {} steps): from step {step} on, the learning rate is \
         that of a run of {extended_to} epochs, {is:.3e} here instead of {was:.3e}{rises}; {result}",
        before.steps(),
        after.steps()
    )
}
