//! Finds the first layer whose output is not finite.
//!
//! A normal step does not check every tensor, because that would read all of them once more. It only learns that the
//! loss or a gradient is not finite. This module runs the step again, with the same batch and the same masks, pass by
//! pass, and checks what each pass wrote. An asynchronous device may have executed the next step in the meantime; then
//! the weights are those after that step.

use crate::data::{Batch, Normalise};
use crate::model::ParamTable;
use crate::network::Network;
use crate::ops::{BatchInput, BatchTarget, Buffer, Kind, Ops, Pass, Result, StepParams, Tensor};
use crate::train::checkpoint::first_not_finite;

/// A training step to examine.
pub struct Search<'a> {
    pub network: &'a Network,
    /// The passes of one micro-batch, in order.
    pub passes: &'a [Pass],
    pub table: &'a ParamTable,
    pub normalise: Normalise,
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
            ops.send_batch(0, &BatchInput { pixels, labels, target })?;
            ops.receive_batch(0, &target)?;
            for pass in self.passes {
                pass.run(ops)?;
                if found.is_none()
                    && let Some(tensor) = written(pass, ops)?
                {
                    found = Some(self.name(ops, pass, tensor)?);
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

    fn name<O: Ops>(&self, ops: &mut O, pass: &Pass, tensor: Tensor) -> Result<String> {
        let (layer, forward) = self.layer(pass);
        if !forward {
            // A weight gradient may have come first: no later value is computed from it.
            return Ok(match self.first_gradient(ops)? {
                Some(name) => format!("the gradient of {name}"),
                None => format!("the gradient at the input of {layer}"),
            });
        }
        let statistics = self.network.tensors.label(tensor).ends_with("coefficients");
        let what = if statistics { "the batch's statistics" } else { "the output" };
        let mut weights = vec![0.0; self.table.total()];
        ops.read_state(Buffer::Parameters, &mut weights)?;
        // Only trainable weights: the running statistics already contain the bad values.
        let weight = first_not_finite(&weights[..self.table.trainable()], self.table);
        let weight = weight.map_or(String::new(), |name| format!("; of the weights, {name}"));
        Ok(format!("{what} of {layer}{weight}"))
    }

    /// The layer of a pass, with its block under timm's name, such as `blocks.3.1 depthwise`, and whether the pass is
    /// a forward pass.
    fn layer(&self, pass: &Pass) -> (String, bool) {
        let name = pass.name();
        let (operator, forward) = match name.strip_suffix(" backward") {
            Some(operator) => (operator, false),
            None => (name.strip_suffix(" forward").unwrap_or(name), true),
        };
        let Some(own) = own_tensor(pass) else { return (operator.to_string(), forward) };
        // Such as "blocks.3.1 y2".
        let label = self.network.tensors.label(own);
        let block = label.split(' ').next().unwrap_or(label);
        (format!("{block} {operator}"), forward)
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

/// The first tensor written by a pass that is not finite.
fn written<O: Ops>(pass: &Pass, ops: &mut O) -> Result<Option<Tensor>> {
    let mut tensors = Vec::new();
    pass.tensors(&mut |tensor, writes| {
        if writes && tensor.kind != Kind::Index {
            tensors.push(tensor);
        }
    });
    for tensor in tensors {
        let mut values = vec![0.0; tensor.elements];
        ops.download(tensor, &mut values)?;
        if !finite(&values) {
            return Ok(Some(tensor));
        }
    }
    Ok(None)
}

/// A tensor whose label names the block of the pass; none for passes that occur once in the network.
fn own_tensor(pass: &Pass) -> Option<Tensor> {
    match pass {
        Pass::ExpandForward(p) => Some(p.y),
        Pass::ExpandBackward(p) => Some(p.y),
        Pass::DepthwiseForward(p) | Pass::ExpandDepthwiseForward(_, p) => Some(p.y),
        Pass::DepthwiseBackward(p) | Pass::ExpandDepthwiseBackward(_, p) => Some(p.y),
        Pass::SqueezeForward(p) => Some(p.gate),
        Pass::SqueezeBackward(p) => Some(p.gate),
        Pass::ProjectForward(p) => Some(p.y),
        Pass::ProjectBackward(p) => Some(p.y),
        Pass::ResidualForward(p) => Some(p.out),
        Pass::DropPathMask(p) => Some(p.keep),
        Pass::StemForward(_)
        | Pass::HeadForward(_)
        | Pass::Loss(_)
        | Pass::HeadBackward(_)
        | Pass::StemBackward(_)
        | Pass::DropoutMask(_)
        | Pass::BatchNormInference(_)
        | Pass::Update(_) => None,
    }
}
