//! What a recipe says of the optimiser: its kind, what belongs to it, and which parameters decay.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::recipe::Recipe;
use super::recipe_limits::{ABOVE_0, RecipeError, SHARE, require};
use crate::model::{ParamRole, ParamTable};
use crate::names;
use crate::ops::{RmsPropForm, Rule};

/// The optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", parse_err_ty = String, parse_err_fn = Optimizer::unknown)]
pub enum Optimizer {
    /// As in PyTorch: epsilon outside the root, rate outside the momentum buffer, mean square starts at 0.
    Rmsprop,
    /// As in TensorFlow: epsilon inside the root, rate inside the momentum buffer, mean square starts at 1.
    RmspropTf,
    Sgd,
    /// As in PyTorch: the weight decay is decoupled from the gradient.
    Adamw,
}

impl Optimizer {
    fn unknown(name: &str) -> String {
        names::unknown::<Optimizer>("optimizer", name)
    }
}

/// The settings of an optimiser: an upper layer of settings that chooses another optimiser drops those of a lower one.
pub const PARTS: [&str; 4] = ["nesterov", "beta1", "beta2", "adam-eps"];

impl Recipe {
    /// How the optimiser moves a parameter.
    pub(super) fn rule(&self) -> Rule {
        let momentum = self.momentum as f32;
        let rms_prop =
            |form| Rule::RmsProp { form, alpha: self.alpha as f32, momentum, eps: self.rms_eps as f32 };
        match self.optimizer {
            Optimizer::Rmsprop => rms_prop(RmsPropForm::PyTorch),
            Optimizer::RmspropTf => rms_prop(RmsPropForm::TensorFlow),
            Optimizer::Sgd => Rule::Sgd { momentum, nesterov: self.nesterov },
            Optimizer::Adamw => Rule::AdamW {
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                eps: self.adam_eps.unwrap_or(1e-8) as f32,
            },
        }
    }

    /// The factor of each trainable parameter's weight decay; see [`Recipe::update`](Recipe::update).
    pub fn decay_factors(&self, table: &ParamTable) -> Vec<f32> {
        let mut factors = self.weight_decay_of.factors(table);
        let Some(rate) = self.weight_decay_bn else { return factors };
        factors.iter_mut().for_each(|factor| *factor *= self.weight_decay as f32);
        let norms = table.entries().iter().filter(|e| matches!(e.role, ParamRole::Scale | ParamRole::Shift));
        norms.for_each(|entry| factors[entry.range()].fill(rate as f32));
        factors
    }

    /// Checks the fields that only one optimiser has.
    ///
    /// # Errors
    /// The first that makes no sense or that this optimiser does not have.
    pub(super) fn validate_optimizer(&self) -> Result<(), RecipeError> {
        let kind = self.optimizer;
        let numbers = [
            ("beta1", self.beta1, SHARE),
            ("beta2", self.beta2, SHARE),
            ("adam-eps", self.adam_eps, ABOVE_0),
        ];
        for (flag, value, (holds, problem)) in numbers {
            let Some(value) = value else { continue };
            let used = kind == Optimizer::Adamw;
            require(flag, value, used, &format!("--optimizer {kind} has none; leave it out"))?;
            require(flag, value, holds(value), problem)?;
        }
        let allowed = !self.nesterov || (kind == Optimizer::Sgd && self.momentum > 0.0);
        require("nesterov", self.nesterov, allowed, "needs --optimizer sgd and a --momentum above 0")
    }
}

impl Recipe {
    /// Refuses settings that were `given`, by the names of their flags, though the optimiser does not have them. A recipe
    /// holds a value of each, whatever its optimiser.
    ///
    /// # Errors
    /// The first of them.
    pub fn refuse_unused(&self, given: impl Fn(&str) -> bool) -> Result<(), RecipeError> {
        let kind = self.optimizer;
        let mean_square = matches!(kind, Optimizer::Rmsprop | Optimizer::RmspropTf);
        for (flag, value, used) in [
            ("alpha", self.alpha, mean_square),
            ("rms-eps", self.rms_eps, mean_square),
            ("momentum", self.momentum, kind != Optimizer::Adamw),
        ] {
            let allowed = used || !given(flag);
            require(flag, value, allowed, &format!("--optimizer {kind} has none; leave it out"))?;
        }
        Ok(())
    }
}

/// The parameters that decay.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", parse_err_ty = String, parse_err_fn = Decayed::unknown)]
pub enum Decayed {
    /// Every parameter.
    #[default]
    All,
    /// Every parameter except the scale and shift of batch norm, as in TensorFlow's and NVIDIA's recipes.
    NoBatchNorm,
    /// The weights of convolutions and of the classifier only, as in timm's recipes.
    Weights,
}

impl Decayed {
    fn unknown(name: &str) -> String {
        names::unknown::<Decayed>("kind of parameters", name)
    }

    fn includes(self, role: ParamRole) -> bool {
        match self {
            Decayed::All => true,
            Decayed::NoBatchNorm => !matches!(role, ParamRole::Scale | ParamRole::Shift),
            Decayed::Weights => matches!(role, ParamRole::Convolution | ParamRole::Linear),
        }
    }

    /// The factor of each trainable parameter: 1 if it decays, otherwise 0.
    pub fn factors(self, table: &ParamTable) -> Vec<f32> {
        let mut factors = vec![0.0; table.trainable()];
        for entry in
            table.entries().iter().filter(|entry| entry.role.trainable() && self.includes(entry.role))
        {
            factors[entry.range()].fill(1.0);
        }
        factors
    }

    pub fn is_all(&self) -> bool {
        *self == Decayed::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, BatchNormConfig, Padding, Variant};

    #[test]
    fn batch_norm_decays_at_its_own_rate() {
        let recipe = Recipe {
            weight_decay: 1e-4,
            weight_decay_bn: Some(3e-6),
            weight_decay_of: Decayed::Weights,
            ..Recipe::reference(Variant::B0, 64)
        };
        let table = ParamTable::new(&recipe.architecture(10).unwrap());
        let update = recipe.update().weight_decay;
        assert!(update.by_parameter);
        let factors = recipe.decay_factors(&table);
        let mut seen = [0; 3];
        for entry in table.entries().iter().filter(|entry| entry.role.trainable()) {
            let (kind, rate) = match &entry.name {
                name if name.contains("bn") => (0, 3e-6),
                name if name.ends_with(".bias") => (1, 0.0),
                _ => (2, 1e-4),
            };
            seen[kind] += 1;
            let right = factors[entry.range()].iter().all(|factor| factor * update.rate == rate);
            assert!(right, "{}: not {rate}", entry.name);
        }
        assert!(seen.iter().all(|&entries| entries > 10), "{seen:?}");
    }

    /// Compares with timm's rules, which look at names and shapes.
    #[test]
    fn decayed_parameters_are_those_of_the_rule() {
        let arch = Architecture::new(Variant::B0, 1000, 224, Padding::Symmetric, BatchNormConfig::default());
        let table = ParamTable::new(&arch.unwrap());
        type Rule = fn(name: &str, axes: usize) -> bool;
        let rules: [(Decayed, Rule); 3] = [
            (Decayed::All, |_, _| true),
            (Decayed::NoBatchNorm, |name, _| !name.contains("bn")),
            (Decayed::Weights, |name, axes| axes > 1 && !name.ends_with(".bias")),
        ];
        for (decayed, rule) in rules {
            let factors = decayed.factors(&table);
            assert_eq!(factors.len(), table.trainable());
            for entry in table.entries().iter().filter(|entry| entry.role.trainable()) {
                let expected = if rule(&entry.name, entry.shape.len()) { 1.0 } else { 0.0 };
                let right = factors[entry.range()].iter().all(|factor| *factor == expected);
                assert!(right, "{decayed}: {}", entry.name);
            }
        }
    }
}
