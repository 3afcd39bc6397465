//! Fold: in evaluation a batch norm's coefficients depend on the weights alone, so they are computed before the first
//! batch and not with each.
//!
//! The passes that compute them leave the itinerary. Their tensors must then live as long as the evaluation does,
//! and several sets of weights that take turns (raw and averaged) need coefficients of their own.

use std::collections::HashMap;

use crate::network::itinerary::{Entry, Itinerary};
use crate::ops::{Part, Pass, Tensor, Tensors};

/// A list whose coefficients are computed apart.
#[derive(Clone, Debug)]
pub struct Folded {
    /// Compute the coefficients: run once, before the first batch.
    pub coefficients: Vec<Pass>,
    /// The rest: run with each batch.
    pub itinerary: Itinerary,
}

/// Takes the passes that compute coefficients out of an itinerary.
pub fn fold(recorded: &Itinerary) -> Folded {
    let entries = recorded.entries().iter().copied();
    let (once, rest): (Vec<Entry>, Vec<Entry>) =
        entries.partition(|entry| matches!(entry.pass, Pass::BatchNormInference(_)));
    Folded {
        coefficients: once.iter().map(|entry| entry.pass).collect(),
        itinerary: rest.into_iter().collect(),
    }
}

impl Folded {
    /// The tensors that must keep their contents from batch to batch.
    pub fn kept(&self) -> Vec<Tensor> {
        self.coefficients.iter().flat_map(Pass::written).collect()
    }

    /// The same passes with coefficients in new tensors, for another set of weights.
    pub fn with_own_coefficients(&self, tensors: &mut Tensors) -> Folded {
        let mut own: HashMap<Tensor, Tensor> = HashMap::new();
        for tensor in self.kept() {
            let label = format!("{} of other weights", tensors.label(tensor));
            own.insert(tensor, tensors.new_tensor(label, tensor.elements, tensor.kind));
        }
        let renamed = |mut pass: Pass| {
            pass.parts_mut(&mut |part| {
                if let Part::Tensor { tensor, .. } = part {
                    *tensor = own.get(tensor).copied().unwrap_or(*tensor);
                }
            });
            pass
        };
        let mut folded = self.clone();
        folded.coefficients.iter_mut().for_each(|pass| *pass = renamed(*pass));
        let entries = self.itinerary.entries().iter().copied();
        folded.itinerary = entries.map(|entry| Entry { pass: renamed(entry.pass), ..entry }).collect();
        folded
    }
}
