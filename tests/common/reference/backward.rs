//! The backward passes: the chain rule through the layers of the forward pass, one layer at a time.

use super::Reference;
use super::layers::{Convolution, DenseLayer, Depthwise, sigmoid, silu, silu_slope};
use effnet::ops::*;

/// a·b, element by element.
fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

impl Reference {
    /// z = BN(y).
    fn normed(&self, bn: &BatchNorm, y: &[f64]) -> Vec<f64> {
        self.norm(bn, Reference::raw_weight).forward(y)
    }

    /// silu'(BN(y)).
    fn slopes(&self, bn: &BatchNorm, y: &[f64]) -> Vec<f64> {
        self.normed(bn, y).into_iter().map(silu_slope).collect()
    }

    /// Gradient at a batch norm's input.
    fn through_norm(&self, bn: &BatchNorm, y: &[f64], du: &[f64]) -> Vec<f64> {
        let norm = self.norm(bn, Reference::raw_weight);
        let (beta, gamma) = norm.parameter_gradients(du, y);
        self.sums.borrow_mut().insert(bn.sums.id, [beta, gamma].concat());
        match bn.statistics {
            Statistics::Batch => norm.backward(du, y),
            Statistics::Running => norm.backward_of_constants(du),
        }
    }

    /// dx with the shortcut's gradient, and du = keep·dx at the batch norm that ended the block before.
    fn narrow(
        &mut self,
        NarrowGradient { dx: to, shortcut, previous: p }: &NarrowGradient,
        mut dx: Vec<f64>,
    ) {
        if let Some(shortcut) = shortcut {
            dx.iter_mut().zip(self.get(*shortcut).iter()).for_each(|(dx, more)| *dx += more);
        }
        let channels = p.bn.channels;
        let keep = self.keep(p.keep, dx.len() / channels / p.pixels);
        let du: Vec<f64> =
            dx.iter().enumerate().map(|(at, dx)| dx * keep[at / channels / p.pixels]).collect();
        let y = self.get(p.y);
        self.finish_norm(&p.bn, &y, &du);
        self.put(*to, dx);
    }

    fn dense_gradient(&mut self, layer: &Dense, images: usize, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let shape = DenseLayer { images, inputs: layer.inputs, outputs: layer.outputs };
        let gradients = shape.backward(dy, x, &self.raw_weight(layer.weight));
        self.add_gradient(layer.weight, &gradients.weight);
        self.add_gradient(layer.bias, &gradients.bias);
        gradients.input
    }

    pub(super) fn head_gradient(&mut self, p: &HeadBackward) {
        let features = self.features(&self.get(p.pooled), p.dropout);
        let dlogits = self.get(p.dlogits);
        let dfeatures = self.dense_gradient(&p.classifier, p.images, &dlogits, &features);
        let Some(to) = p.du else { return };
        let dpooled = self.features(&dfeatures, p.dropout);
        let y = self.get(p.y);
        let mut du = self.slopes(&p.bn, &y);
        for (at, du) in du.iter_mut().enumerate() {
            let pooled = at / p.channels / p.pixels * p.channels + at % p.channels;
            *du *= dpooled[pooled] / p.pixels as f64;
        }
        self.finish_norm(&p.bn, &y, &du);
        self.put(to, du);
    }

    pub(super) fn project_gradient(&mut self, p: &ProjectBackward) {
        let keep = self.keep(p.keep, p.images);
        let mut du = self.get(p.dout).to_vec();
        for (at, du) in du.iter_mut().enumerate() {
            *du *= keep[at / p.outputs / p.pixels];
        }
        // Declared as read; computed again from their definition inside `through_norm`.
        self.get(p.bn.sums);
        let dy = self.through_norm(&p.bn, &self.get(p.y), &du);

        let x = self.get(p.x);
        let z = self.normed(&p.input_bn, &x);
        let a: Vec<f64> = z.iter().map(|&z| silu(z)).collect();
        let input = self.gated(a.clone(), p.gate, p.pixels, p.inputs);
        let layer = Convolution::pointwise(p.images * p.pixels, p.inputs, p.outputs);
        let da = layer.input_gradient(&dy, &self.raw_weight(p.weight));
        self.add_gradient(p.weight, &layer.weight_gradient(&dy, &input));

        let slope: Vec<f64> = z.iter().map(|&z| silu_slope(z)).collect();
        let normal = self.norm(&p.input_bn, Reference::raw_weight).normalise(&x);
        let (passed, sloped) = (product(&da, &slope), product(&slope, &normal));
        let terms = [product(&da, &a), passed.clone(), slope, product(&passed, &normal), sloped];
        let cells = p.images * p.inputs;
        let mut sums = vec![0.0; 5 * cells];
        for (number, terms) in terms.iter().enumerate() {
            for (at, term) in terms.iter().enumerate() {
                sums[number * cells + at / p.inputs / p.pixels * p.inputs + at % p.inputs] += term;
            }
        }
        self.put(p.five_sums, sums);
        self.put(p.da, da);
    }

    /// The gate's gradient is S0; from there two dense layers, textbook fashion. What follows for BN2 can only
    /// be told from the sums, as the definition of this pass says; finite differences confirm it.
    pub(super) fn squeeze_gradient(&mut self, p: &SqueezeBackward) {
        let sums = self.get(p.five_sums);
        let row = |number: usize| &sums[number * p.images * p.channels..][..p.images * p.channels];
        let gate = self.get(p.gate);
        let at_gate: Vec<f64> = row(0).iter().zip(gate.iter()).map(|(s, g)| s * g * (1.0 - g)).collect();
        let hidden = self.get(p.hidden);
        let active: Vec<f64> = hidden.iter().map(|&h| silu(h)).collect();
        let dactive = self.dense_gradient(&p.expand, p.images, &at_gate, &active);
        let dhidden: Vec<f64> = dactive.iter().zip(hidden.iter()).map(|(d, &h)| d * silu_slope(h)).collect();
        let squeezed = self.get(p.squeezed);
        let dsqueezed = self.dense_gradient(&p.reduce, p.images, &dhidden, &squeezed);
        let d: Vec<f64> = dsqueezed.iter().map(|d| d / p.pixels as f64).collect();

        let (mut beta, mut gamma) = (vec![0.0; p.channels], vec![0.0; p.channels]);
        for at in 0..p.images * p.channels {
            beta[at % p.channels] += gate[at] * row(1)[at] + d[at] * row(2)[at];
            gamma[at % p.channels] += gate[at] * row(3)[at] + d[at] * row(4)[at];
        }
        self.fill_sums(&p.bn, beta, gamma);
        self.put(p.squeeze_gradient, d);
    }

    pub(super) fn depthwise_gradient(&mut self, p: &DepthwiseBackward) {
        let pixels = p.window.output_pixels();
        let y = self.get(p.y);
        let mut du = self.gated(self.get(p.da).to_vec(), p.gate, pixels, p.channels);
        let through_squeeze = self.get(p.squeeze_gradient);
        for (at, (du, slope)) in du.iter_mut().zip(self.slopes(&p.bn, &y)).enumerate() {
            *du = (*du + through_squeeze[at / p.channels / pixels * p.channels + at % p.channels]) * slope;
        }
        self.get(p.bn.sums);
        let dy = self.through_norm(&p.bn, &y, &du);

        let x = self.get(p.x);
        let input = match &p.input {
            DepthwiseInput::Normalised { bn, .. } => {
                self.normed(bn, &x).into_iter().map(|z| z * sigmoid(z)).collect()
            }
            DepthwiseInput::Identity(_) => x.to_vec(),
        };
        let layer = Depthwise { images: p.images, window: p.window, channels: p.channels };
        self.add_gradient(p.weight, &layer.weight_gradient(&dy, &input));
        let da = layer.input_gradient(&dy, &self.raw_weight(p.weight));
        match &p.input {
            DepthwiseInput::Normalised { bn, du: Some(to) } => {
                let du = product(&da, &self.slopes(bn, &x));
                self.finish_norm(bn, &x, &du);
                self.put(*to, du);
            }
            DepthwiseInput::Normalised { du: None, .. } => {}
            DepthwiseInput::Identity(narrow) => self.narrow(narrow, da),
        }
    }

    pub(super) fn expand_gradient(&mut self, p: &ExpandBackward) {
        self.get(p.bn.sums);
        let dy = self.through_norm(&p.bn, &self.get(p.y), &self.get(p.du));
        let layer = Convolution::pointwise(p.rows, p.inputs, p.outputs);
        self.add_gradient(p.weight, &layer.weight_gradient(&dy, &self.get(p.x)));
        if let Some(narrow) = &p.narrow {
            self.narrow(narrow, layer.input_gradient(&dy, &self.raw_weight(p.weight)));
        }
    }

    /// Without y, which is computed again.
    pub(super) fn expand_depthwise_gradient(&mut self, p: &ExpandDepthwiseBackward) {
        let ExpandBackward { rows, inputs, outputs, x, weight, y, .. } = p.expand;
        let layer = Convolution::pointwise(rows, inputs, outputs);
        self.put(y, layer.forward(&self.get(x), &self.raw_weight(weight)));
        self.depthwise_gradient(&p.depthwise);
        self.expand_gradient(&p.expand);
    }

    pub(super) fn stem_gradient(&mut self, p: &StemBackward) {
        self.get(p.bn.sums);
        let dy = self.through_norm(&p.bn, &self.get(p.y), &self.get(p.du));
        let layer = Convolution { images: p.images, window: p.window, inputs: 3, outputs: p.channels };
        self.add_gradient(p.weight, &layer.weight_gradient(&dy, &self.get(p.image)));
    }
}
