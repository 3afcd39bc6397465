//! The optimiser step, element by element.

use super::{Reference, decimal};
use effnet::ops::*;

impl Reference {
    pub(super) fn optimise(&mut self, p: &Update) {
        let (step, frozen) = (self.step, p.frozen);
        let rate = |i: usize| decimal(if i < step.body { step.body_rate } else { step.learning_rate });
        let trainable = self.gradients.len();
        let mut gradients = self.gradients.clone();
        if let Some(most) = p.clip_norm {
            let norm = gradients.iter().map(|gradient| gradient * gradient).sum::<f64>().sqrt();
            let factor = (decimal(most) / (norm + 1e-6)).min(1.0);
            gradients.iter_mut().for_each(|gradient| *gradient *= factor);
        }
        for (i, gradient) in gradients.iter_mut().enumerate() {
            // AdamW takes its decay from the parameter.
            if matches!(p.rule, Rule::AdamW { .. }) {
                break;
            }
            let factor = if p.weight_decay.by_parameter { self.decay_factors[i] } else { 1.0 };
            *gradient += decimal(p.weight_decay.rate) * factor * self.parameters[i];
        }
        let parameters = &mut self.parameters[..trainable];
        match p.rule {
            Rule::Sgd { momentum, nesterov } => {
                let momentum = decimal(momentum);
                let [buffer, _] = &mut self.slots;
                for (i, gradient) in gradients.into_iter().enumerate().skip(frozen.parameters) {
                    buffer[i] = momentum * buffer[i] + gradient;
                    let push = if nesterov { gradient + momentum * buffer[i] } else { buffer[i] };
                    parameters[i] -= rate(i) * push;
                }
            }
            Rule::AdamW { beta1, beta2, eps } => {
                let made = self.step.step as i32 - self.skipped as i32 + 1;
                let decay = decimal(p.weight_decay.rate);
                let [mean_square, mean] = &mut self.slots;
                for (i, gradient) in gradients.into_iter().enumerate().skip(frozen.parameters) {
                    let factor = if p.weight_decay.by_parameter { self.decay_factors[i] } else { 1.0 };
                    parameters[i] *= 1.0 - rate(i) * decay * factor;
                    mean[i] = beta1 * mean[i] + (1.0 - beta1) * gradient;
                    mean_square[i] = beta2 * mean_square[i] + (1.0 - beta2) * gradient * gradient;
                    let corrected = mean_square[i] / (1.0 - beta2.powi(made));
                    let push = mean[i] / (1.0 - beta1.powi(made)) / (corrected.sqrt() + decimal(eps));
                    parameters[i] -= rate(i) * push;
                }
            }
            Rule::RmsProp { form, alpha, momentum, eps } => {
                let (alpha, momentum, eps) = (decimal(alpha), decimal(momentum), decimal(eps));
                let [mean_square, buffer] = &mut self.slots;
                for (i, gradient) in gradients.into_iter().enumerate().skip(frozen.parameters) {
                    let square = alpha * mean_square[i] + (1.0 - alpha) * gradient * gradient;
                    mean_square[i] = square;
                    let (push, factor) = match form {
                        RmsPropForm::PyTorch => (gradient / (square.sqrt() + eps), rate(i)),
                        RmsPropForm::TensorFlow => (rate(i) * gradient / (square + eps).sqrt(), 1.0),
                    };
                    buffer[i] = momentum * buffer[i] + push;
                    parameters[i] -= factor * buffer[i];
                }
            }
        }
        if p.ema {
            let decay = decimal(self.step.ema_decay);
            let statistics = trainable + frozen.statistics..self.parameters.len();
            for i in (frozen.parameters..trainable).chain(statistics) {
                self.ema[i] = decay * self.ema[i] + (1.0 - decay) * self.parameters[i];
            }
        }
    }
}
