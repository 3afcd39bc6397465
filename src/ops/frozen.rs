//! Frozen: what of the state training leaves as it is, bit by bit.
//!
//! Layers are frozen from the first one on, and parameters lie in the order of the layers. So both kinds of state, trained
//! parameters and running statistics, have a frozen beginning: one number each. Both numbers follow from the passes of
//! a step, which name the gradients that they fill and the batch norms whose statistics they take.

use super::pass::{NormUse, Part, Pass, Statistics};

/// The elements that neither an update nor an exchange between ranks touches: parameters, slots and moving average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// So many of the trainable elements, the first ones.
    pub parameters: usize,
    /// So many of the running statistics, which follow the trainable elements.
    pub statistics: usize,
}

impl Frozen {
    pub const NOTHING: Frozen = Frozen { parameters: 0, statistics: 0 };

    /// What a step of these passes leaves as it is, in a state of so many trainable elements and so many in all.
    ///
    /// # Panics
    /// If the running statistics that move are not those after the frozen ones: they would be lost.
    pub fn of(passes: &[Pass], trainable: usize, total: usize) -> Frozen {
        let (mut parameters, mut statistics, mut moved) = (trainable, total, 0);
        for pass in passes {
            pass.parts(&mut |part| match part {
                Part::Gradient(param) => parameters = parameters.min(param.offset),
                Part::Norm { bn, used: NormUse::TakesStatistics { .. } }
                    if bn.statistics == Statistics::Batch =>
                {
                    for param in [bn.running_mean, bn.running_var] {
                        statistics = statistics.min(param.offset);
                        moved += param.elements;
                    }
                }
                _ => {}
            });
        }
        assert_eq!(
            total - statistics,
            moved,
            "running statistics after {statistics}, of which some do not move"
        );
        Frozen { parameters, statistics: statistics - trainable }
    }
}
