//! What a recipe says of the learning rate after the warm-up: the kind of schedule and what belongs to it.
//!
//! [`Schedule`](super::schedule::Schedule) turns it into rates.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::recipe::Recipe;
use super::recipe_limits::{ABOVE_0, FROM_0, PART, RecipeError, require};
use crate::names;

/// How the learning rate falls.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", parse_err_ty = String, parse_err_fn = ScheduleKind::unknown)]
pub enum ScheduleKind {
    /// Half a cosine down to `min-lr`.
    #[default]
    Cosine,
    /// A straight line down to `min-lr`.
    Linear,
    /// Times `decay-rate` after every `decay-epochs`, counted from the start of the run, as in TensorFlow's recipe.
    Exponential,
    /// Times `decay-rate` at each of `milestones`.
    Steps,
    Constant,
}

impl ScheduleKind {
    fn unknown(name: &str) -> String {
        names::unknown::<ScheduleKind>("schedule", name)
    }

    pub fn is_cosine(&self) -> bool {
        *self == ScheduleKind::Cosine
    }
}

/// The settings of a schedule: an upper layer of settings that chooses another schedule drops those of a lower one.
pub const PARTS: [&str; 4] = ["min-lr", "decay-rate", "decay-epochs", "milestones"];

impl Recipe {
    /// Checks the fields of the schedule.
    ///
    /// # Errors
    /// The first field that makes no sense, that the schedule needs and does not have, or has and does not use.
    pub(super) fn validate_schedule(&self) -> Result<(), RecipeError> {
        use ScheduleKind::{Constant, Exponential, Steps};
        let kind = self.schedule;
        let milestones = self.milestones.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let given: [(&str, Option<String>, bool, bool); 4] = [
            ("min-lr", (self.min_lr != 0.0).then(|| self.min_lr.to_string()), kind != Constant, false),
            ("decay-rate", self.decay_rate.map(|v| v.to_string()), matches!(kind, Exponential | Steps), true),
            ("decay-epochs", self.decay_epochs.map(|v| v.to_string()), kind == Exponential, true),
            ("milestones", (!milestones.is_empty()).then_some(milestones), kind == Steps, true),
        ];
        for (flag, value, used, needed) in given {
            match value {
                Some(value) => {
                    require(flag, value, used, &format!("--schedule {kind} has none; leave it out"))?;
                }
                None => require("schedule", kind, !(used && needed), &format!("needs --{flag}"))?,
            }
        }
        let numbers = [
            ("min-lr", Some(self.min_lr), FROM_0),
            ("warmup-lr", self.warmup_lr, FROM_0),
            ("decay-rate", self.decay_rate, PART),
            ("decay-epochs", self.decay_epochs, ABOVE_0),
        ];
        for (flag, value, (holds, problem)) in numbers {
            value.map_or(Ok(()), |value| require(flag, value, holds(value), problem))?;
        }
        for (flag, value) in [("min-lr", Some(self.min_lr)), ("warmup-lr", self.warmup_lr)] {
            let problem = format!("must be at most --lr {}", self.lr);
            value.map_or(Ok(()), |value| require(flag, value, value <= self.lr, &problem))?;
        }
        let mut before = 0.0;
        for &milestone in &self.milestones {
            let rises = milestone > before && milestone.is_finite();
            require("milestones", milestone, rises, "must be epochs above 0, each after the one before")?;
            before = milestone;
        }
        Ok(())
    }

    /// The schedule in words: "×0.97 every 2.4 epochs"; none for the cosine down to 0.
    pub fn schedule_words(&self) -> Option<String> {
        let rate = self.decay_rate.unwrap_or_default();
        let mut words = match self.schedule {
            ScheduleKind::Cosine if self.min_lr == 0.0 => return None,
            ScheduleKind::Exponential => {
                format!("×{rate} every {} epochs", self.decay_epochs.unwrap_or_default())
            }
            ScheduleKind::Steps => {
                let epochs: Vec<String> = self.milestones.iter().map(f64::to_string).collect();
                format!("×{rate} after epochs {}", epochs.join(", "))
            }
            kind => kind.to_string(),
        };
        if self.min_lr > 0.0 {
            words += &format!(" down to {:e}", self.min_lr);
        }
        Some(words)
    }
}
