//! The forward passes, each a composition of textbook layers.

use super::layers::{Convolution, DenseLayer, Depthwise, average_pool, sigmoid, silu};
use super::{Reference, decimal};
use effnet::ops::*;

impl Reference {
    /// silu(BN(y)) with the weights of the forward pass.
    fn activated(&self, bn: &BatchNorm, y: Tensor) -> Vec<f64> {
        self.norm(bn, Reference::weight).forward(&self.get(y)).into_iter().map(silu).collect()
    }

    fn store(&mut self, y: Tensor, bn: &BatchNorm, values: Vec<f64>) {
        self.take_statistics(bn, &values);
        self.put(y, values);
    }

    pub(super) fn stem(&mut self, p: &StemForward) {
        let layer = Convolution { images: p.images, window: p.window, inputs: 3, outputs: p.channels };
        let y = layer.forward(&self.get(p.image), &self.weight(p.weight));
        self.store(p.y, &p.bn, y);
    }

    pub(super) fn expand(&mut self, p: &ExpandForward) {
        let layer = Convolution::pointwise(p.rows, p.inputs, p.outputs);
        let y = layer.forward(&self.get(p.x), &self.weight(p.weight));
        self.store(p.y, &p.bn, y);
    }

    /// The raw output of a depthwise convolution.
    fn convolved(
        &self,
        layer: Depthwise,
        x: Tensor,
        input_bn: Option<&BatchNorm>,
        weight: Param,
    ) -> Vec<f64> {
        let input = match input_bn {
            Some(bn) => self.activated(bn, x),
            None => self.get(x).to_vec(),
        };
        layer.forward(&input, &self.weight(weight))
    }

    pub(super) fn depthwise(&mut self, p: &DepthwiseForward) {
        let layer = Depthwise { images: p.images, window: p.window, channels: p.channels };
        let y = self.convolved(layer, p.x, p.input_bn.as_ref(), p.weight);
        self.store(p.y, &p.bn, y);
    }

    pub(super) fn depthwise_inference(&mut self, p: &DepthwiseInference) {
        let layer = Depthwise { images: p.images, window: p.window, channels: p.channels };
        let y = self.convolved(layer, p.x, p.input_bn.as_ref(), p.weight);
        self.store_activated(p, &y);
    }

    /// The expanded tensor is a value of its own here, too.
    pub(super) fn expand_depthwise_inference(&mut self, p: &ExpandDepthwiseInference) {
        let ExpandDepthwiseInference { expand, depthwise } = p;
        let layer = Convolution::pointwise(expand.rows, expand.inputs, expand.outputs);
        let expanded = layer.forward(&self.get(expand.x), &self.weight(expand.weight));
        let bn = depthwise.input_bn.as_ref().expect("an expanded tensor is normalised");
        let z = self.norm(bn, Reference::weight).forward(&expanded);
        let input: Vec<f64> = z.into_iter().map(silu).collect();
        let DepthwiseInference { images, window, channels, .. } = *depthwise;
        let y = Depthwise { images, window, channels }.forward(&input, &self.weight(depthwise.weight));
        self.store_activated(depthwise, &y);
    }

    /// silu(BN(y)) and its means.
    fn store_activated(&mut self, p: &DepthwiseInference, y: &[f64]) {
        let z = self.norm(&p.bn, Reference::weight).forward(y);
        let a: Vec<f64> = z.into_iter().map(silu).collect();
        self.put(p.squeezed, average_pool(&a, p.images, p.window.output_pixels(), p.channels));
        self.put(p.a, a);
    }

    pub(super) fn squeeze(&mut self, p: &SqueezeForward) {
        let squeezed = average_pool(&self.activated(&p.bn, p.y), p.images, p.pixels, p.channels);
        self.excite(p.images, &squeezed, [&p.reduce, &p.expand], [p.hidden, p.gate]);
        self.put(p.squeezed, squeezed);
    }

    pub(super) fn squeeze_inference(&mut self, p: &SqueezeInference) {
        let squeezed = self.get(p.squeezed);
        self.excite(p.images, &squeezed, [&p.reduce, &p.expand], [p.hidden, p.gate]);
    }

    /// The two dense layers of squeeze-excite.
    fn excite(
        &mut self,
        images: usize,
        squeezed: &[f64],
        [reduce, expand]: [&Dense; 2],
        [hidden, gate]: [Tensor; 2],
    ) {
        let dense = |layer: &Dense, x: &[f64]| {
            let shape = DenseLayer { images, inputs: layer.inputs, outputs: layer.outputs };
            shape.forward(x, &self.weight(layer.weight), &self.weight(layer.bias))
        };
        let values = dense(reduce, squeezed);
        let active: Vec<f64> = values.iter().map(|&h| silu(h)).collect();
        let gates = dense(expand, &active).into_iter().map(sigmoid).collect();
        self.put(hidden, values);
        self.put(gate, gates);
    }

    /// a·gate, with the gate of each image and channel.
    pub(super) fn gated(&self, mut a: Vec<f64>, gate: Tensor, pixels: usize, channels: usize) -> Vec<f64> {
        let gate = self.get(gate);
        for (at, a) in a.iter_mut().enumerate() {
            *a *= gate[at / channels / pixels * channels + at % channels];
        }
        a
    }

    pub(super) fn project(&mut self, p: &ProjectForward) {
        let input = self.gated(self.activated(&p.input_bn, p.x), p.gate, p.pixels, p.inputs);
        let layer = Convolution::pointwise(p.images * p.pixels, p.inputs, p.outputs);
        let y = layer.forward(&input, &self.weight(p.weight));
        self.store(p.y, &p.bn, y);
    }

    pub(super) fn project_inference(&mut self, p: &ProjectInference) {
        let ProjectInference { images, pixels, inputs, outputs, a, gate, weight, bn, shortcut, out } = *p;
        let input = self.gated(self.get(a).to_vec(), gate, pixels, inputs);
        let layer = Convolution::pointwise(images * pixels, inputs, outputs);
        let y = layer.forward(&input, &self.weight(weight));
        let mut z = self.norm(&bn, Reference::weight).forward(&y);
        if let Some(shortcut) = shortcut {
            z.iter_mut().zip(self.get(shortcut).iter()).for_each(|(z, x)| *z += x);
        }
        self.put(out, z);
    }

    pub(super) fn residual(&mut self, p: &ResidualForward) {
        let mut out = self.norm(&p.bn, Reference::weight).forward(&self.get(p.y));
        let keep = self.keep(p.keep, p.images);
        for (at, out) in out.iter_mut().enumerate() {
            *out *= keep[at / p.channels / p.pixels];
        }
        if let Some(shortcut) = p.shortcut {
            out.iter_mut().zip(self.get(shortcut).iter()).for_each(|(out, x)| *out += x);
        }
        self.put(p.out, out);
    }

    /// What enters the classifier: the pooled features after dropout.
    pub(super) fn features(&self, pooled: &[f64], dropout: Option<Tensor>) -> Vec<f64> {
        match dropout {
            Some(mask) => pooled.iter().zip(self.get(mask).iter()).map(|(x, mask)| x * mask).collect(),
            None => pooled.to_vec(),
        }
    }

    pub(super) fn head(&mut self, p: &HeadForward) {
        let pooled = average_pool(&self.activated(&p.bn, p.y), p.images, p.pixels, p.channels);
        let features = self.features(&pooled, p.dropout);
        let shape = DenseLayer { images: p.images, inputs: p.channels, outputs: p.classes };
        let (weight, bias) = (self.weight(p.classifier.weight), self.weight(p.classifier.bias));
        let logits = shape.forward(&features, &weight, &bias);
        self.put(p.pooled, pooled);
        self.put(p.logits, logits);
    }

    /// −Σ target·log softmax, and its gradient at the logits.
    pub(super) fn cross_entropy(&mut self, p: &Loss) {
        let logits = self.get(p.logits);
        let words = self.labels.get(&p.labels.id).expect("labels are uploaded before the loss").clone();
        self.touched.borrow_mut().read.insert(p.labels.id);
        let smoothing = decimal(p.smoothing);
        let (mut losses, mut dlogits) = (Vec::new(), Vec::new());
        for (image, logits) in logits.chunks_exact(p.classes).enumerate() {
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            // The target as timm's `mixup_target` makes it: both labels smoothed, then mixed; then weighted.
            let target: Vec<f64> = (0..p.classes)
                .map(|class| {
                    let smoothed = |number: usize| {
                        let certain =
                            if words[number * p.images + image] as usize == class { 1.0 } else { 0.0 };
                        (1.0 - smoothing) * certain + smoothing / p.classes as f64
                    };
                    let share = |word: u32| f64::from(f32::from_bits(word));
                    let target = if p.form.mixed {
                        let share = share(words[2 * p.images + image]);
                        share * smoothed(0) + (1.0 - share) * smoothed(1)
                    } else {
                        smoothed(0)
                    };
                    let weights = if p.form.mixed { 3 } else { 1 } * p.images;
                    target * if p.form.weighted { share(words[weights + class]) } else { 1.0 }
                })
                .collect();
            let total: f64 = target.iter().sum();
            let mut loss = 0.0;
            for (x, target) in logits.iter().zip(target) {
                loss -= target * (x - log_sum);
                dlogits.push(((x - log_sum).exp() * total - target) * decimal(p.scale));
            }
            losses.push(loss);
        }
        self.put(p.losses, losses);
        self.put(p.dlogits, dlogits);
    }
}
