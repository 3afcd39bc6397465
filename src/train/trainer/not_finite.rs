//! Finds the first layer whose output is not finite.
//!
//! A normal step does not check every tensor, because that would read all of them once more. It only learns that the
//! loss or a gradient is not finite. This module runs the step again, with the same batch and the same masks, pass by
//! pass, and checks what each pass wrote. An asynchronous device may have executed the next step in the meantime; then
//! the weights are those after that step.

use crate::data::{Batch, Normalise};
use crate::model::ParamTable;
use crate::network::{Entry, Itinerary, Layer, Network};
use crate::ops::{
    Access, BatchInput, BatchTarget, Buffer, Direction, Kind, Labels, Ops, Part, Pass, Result, Role,
    StepParams, Tensor,
};
use crate::train::checkpoint::first_not_finite;

/// A training step to examine.
pub struct Search<'a> {
    pub network: &'a Network,
    pub itinerary: &'a Itinerary,
    pub table: &'a ParamTable,
    pub normalise: Normalise,
    pub class_weights: Option<&'a [f32]>,
    pub params: StepParams,
}

impl Search<'_> {
    /// The first output in forward order that is not finite; otherwise the first gradient in backward order. None if
    /// all values are finite. The training plan must be bound; the step's values on the device are overwritten.
    pub fn run<O: Ops>(&self, ops: &mut O, batch: &Batch) -> Result<Option<String>> {
        let Network { image, labels, config, .. } = self.network;
        let Normalise { mean, deviation } = self.normalise;
        let target = BatchTarget { image: *image, labels: Some(*labels), mean, deviation };
        ops.begin_step()?;
        // With synchronised batch norm every rank must run all passes: the others wait for its statistics.
        let mut found = None;
        for (number, (pixels, labels)) in batch.parts(config.images).enumerate() {
            let first_position = self.params.first_position + (number * config.images) as u64;
            ops.set_step(StepParams { first_position, ..self.params })?;
            let labels = Labels { class_weights: self.class_weights, ..labels };
            ops.send_batch(0, &BatchInput { pixels, labels, target })?;
            ops.receive_batch(0, &target)?;
            for entry in self.itinerary.entries() {
                ops.run(&entry.pass)?;
                if found.is_none()
                    && let Some(role) = first_written(&entry.pass, ops)?
                {
                    found = Some(self.name(ops, entry, role)?);
                }
                if found.is_some() && config.statistics_ranks == 1 {
                    return Ok(found);
                }
            }
        }
        if found.is_some() {
            return Ok(found);
        }
        Ok(self.first_gradient(ops)?.map(|name| format!("the gradient of {name}")))
    }

    /// Describes the first value that is not finite: one in a tensor of this role that the pass wrote.
    fn name<O: Ops>(&self, ops: &mut O, entry: &Entry, role: Role) -> Result<String> {
        let layer = self.layer(entry);
        if entry.pass.about().direction == Direction::Backward {
            // A weight gradient may have come first: no later value is computed from it.
            return Ok(match self.first_gradient(ops)? {
                Some(name) => format!("the gradient of {name}"),
                None => format!("the gradient at the input of {layer}"),
            });
        }
        let what = if role == Role::Statistic { "the batch's statistics" } else { "the output" };
        let mut weights = vec![0.0; self.table.total()];
        ops.read_state(Buffer::Parameters, &mut weights)?;
        // Only trainable weights: the running statistics already contain the bad values.
        let weight = first_not_finite(&weights[..self.table.trainable()], self.table);
        let weight = weight.map_or(String::new(), |name| format!("; of the weights, {name}"));
        Ok(format!("{what} of {layer}{weight}"))
    }

    /// The layer of a pass, its block by timm's name: `blocks.3.1 depthwise`.
    fn layer(&self, entry: &Entry) -> String {
        let operator = entry.pass.about().operator;
        match entry.layer {
            Some(Layer::Block(index)) => format!("{} {operator}", self.network.blocks[index]),
            Some(Layer::Head) => format!("head {operator}"),
            None => operator.to_string(),
        }
    }

    /// The first parameter in backward order (the last parameter first) whose gradient is not finite.
    fn first_gradient<O: Ops>(&self, ops: &mut O) -> Result<Option<&str>> {
        let mut gradients = vec![0.0; self.table.trainable()];
        ops.read_state(Buffer::Gradients, &mut gradients)?;
        let entries = self.table.entries().iter().rev().filter(|entry| entry.range().end <= gradients.len());
        let mut bad = entries.filter(|entry| !finite(&gradients[entry.range()]));
        Ok(bad.next().map(|entry| entry.name.as_str()))
    }
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// The role of the first tensor that a pass wrote and that is not finite.
fn first_written<O: Ops>(pass: &Pass, ops: &mut O) -> Result<Option<Role>> {
    let mut written: Vec<(Tensor, Role)> = Vec::new();
    pass.parts(&mut |part| match part {
        Part::Tensor { tensor, role, access: Access::Write } if tensor.kind != Kind::Index => {
            written.push((*tensor, role));
        }
        _ => {}
    });
    for (tensor, role) in written {
        let mut values = vec![0.0; tensor.elements];
        ops.download(tensor, &mut values)?;
        if !finite(&values) {
            return Ok(Some(role));
        }
    }
    Ok(None)
}
