//! A network made ready to evaluate one or several sets of weights in turn.

use super::rewrite::fold::{Folded, fold};
use super::{Itinerary, Network, NetworkConfig, Phase};
use crate::model::{Architecture, ParamTable};
use crate::ops::{Device, Ops, Pass, Plan, Result, Weights};

/// A network in which all batch norms are [folded](super::rewrite::fold), for each set of weights.
pub struct Inference {
    pub network: Network,
    sets: Vec<(Weights, Folded)>,
}

impl Inference {
    /// For batches of `images`.
    pub fn new(
        arch: &Architecture,
        params: &ParamTable,
        images: usize,
        device: &impl Device,
        weights: &[Weights],
    ) -> Inference {
        let mut network = Network::new(arch, params, NetworkConfig::inference(images));
        let folded = fold(&network.itinerary(device));
        let mut sets: Vec<(Weights, Folded)> = Vec::new();
        for &weights in weights {
            let own = match sets.is_empty() {
                true => folded.clone(),
                false => folded.with_own_coefficients(&mut network.tensors),
            };
            sets.push((weights, own));
        }
        Inference { network, sets }
    }

    /// The sets of weights.
    pub fn weights(&self) -> Vec<Weights> {
        self.sets.iter().map(|(weights, _)| *weights).collect()
    }

    /// The memory plan. Sets differ in their coefficients alone, so one set's passes stand for all.
    pub fn plan(&self, device: &impl Device) -> Plan {
        let once = self.sets.iter().flat_map(|(_, folded)| &folded.coefficients);
        let each_batch = self.sets.first().map_or_else(Vec::new, |(_, folded)| folded.itinerary.passes());
        let passes = [once.copied().collect(), each_batch].concat();
        // The head's input is read after it, for maps of classes; it lives as long anyway.
        let mut outputs = vec![self.network.logits];
        outputs.extend(self.sets.first().map(|(weights, _)| self.head(*weights).y));
        outputs.extend(self.sets.iter().flat_map(|(_, folded)| folded.kept()));
        Plan::new(device, &passes, &self.network.tensors, &outputs)
    }

    /// Computes the coefficients of each set, which the bound plan keeps until another is bound. To be called whenever
    /// weights have changed.
    pub fn fold<O: Ops>(&self, ops: &mut O) -> Result {
        for (weights, folded) in &self.sets {
            ops.use_weights(*weights)?;
            folded.coefficients.iter().try_for_each(|pass| ops.run(pass))?;
        }
        ops.use_weights(Weights::Raw)
    }

    /// Image → logits, with weights that are in use and of one of the sets.
    pub fn forward<O: Ops>(&self, ops: &mut O, weights: Weights) -> Result {
        self.itinerary(weights).run(Phase::Forward, ops)
    }

    /// The passes that compute a set's coefficients.
    ///
    /// # Panics
    /// For weights that are none of the sets.
    pub fn coefficients(&self, weights: Weights) -> &[Pass] {
        &self.set(weights).coefficients
    }

    /// The passes of a batch.
    ///
    /// # Panics
    /// For weights that are none of the sets.
    pub fn itinerary(&self, weights: Weights) -> &Itinerary {
        &self.set(weights).itinerary
    }

    fn set(&self, weights: Weights) -> &Folded {
        let set = self.sets.iter().find(|(own, _)| *own == weights);
        &set.unwrap_or_else(|| panic!("{weights:?} weights are not among the sets")).1
    }
}
