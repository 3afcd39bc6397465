//! Which layer was the first to give a number that is not finite.
//!
//! A step watches none of this, which would cost it a sweep over every tensor: it learns only that its loss or a
//! gradient is not finite. So the step is run again, the same batch with the same masks, pass by pass, and what each
//! pass wrote is looked at. A device that runs a step behind may have taken the step after it meanwhile; then the
//! weights are those of that one.

use super::checkpoint::first_not_finite;
use crate::data::{Batch, Normalise};
use crate::model::ParamTable;
use crate::network::Network;
use crate::ops::{BatchInput, BatchTarget, Buffer, Kind, Ops, Pass, Result, StepParams, Tensor};

/// A training step to be looked into.
pub struct Search<'a> {
    pub network: &'a Network,
    /// Those of one micro-batch, in order.
    pub passes: &'a [Pass],
    pub table: &'a ParamTable,
    pub normalise: Normalise,
    pub params: StepParams,
}

impl Search<'_> {
    /// The first output in forward order that is not finite; or else, in the order of the backward pass, the first
    /// gradient. None if all is finite. The step's plan is bound; what it left on the device is overwritten.
    pub fn run<O: Ops>(&self, ops: &mut O, batch: &Batch) -> Result<Option<String>> {
        let Network { image, labels, config, .. } = self.network;
        let Normalise { mean, deviation } = self.normalise;
        let target = BatchTarget { image: *image, labels: Some(*labels), mean, deviation };
        ops.begin_step()?;
        // Ranks that take their statistics together need each other's passes to the end.
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
            // A gradient of the weights may have been first: no other gradient is made of it.
            return Ok(match self.first_gradient(ops)? {
                Some(name) => format!("the gradient of {name}"),
                None => format!("the gradient at the input of {layer}"),
            });
        }
        let statistics = self.network.tensors.label(tensor).ends_with("coefficients");
        let what = if statistics { "the batch's statistics" } else { "the output" };
        let mut weights = vec![0.0; self.table.total()];
        ops.read_state(Buffer::Parameters, &mut weights)?;
        // Running statistics have moved with what was found.
        let weight = first_not_finite(&weights[..self.table.trainable()], self.table);
        let weight = weight.map_or(String::new(), |name| format!("; of the weights, {name}"));
        Ok(format!("{what} of {layer}{weight}"))
    }

    /// A pass as a layer, its block by timm's name, such as `blocks.3.1 depthwise`, and whether it is one of the forward
    /// pass.
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

    /// The backward pass comes to the last parameter first.
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

/// The first tensor that a pass wrote and that is not finite.
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

/// A tensor that belongs to the block of a pass, where several blocks have such a pass.
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
