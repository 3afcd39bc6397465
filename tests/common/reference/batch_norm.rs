//! Batch norm in f64, as in Ioffe & Szegedy 2015 (algorithm 1 and the gradients of section 3).

/// A batch norm's numbers for one batch, each [C].
pub struct Norm {
    pub mean: Vec<f64>,
    /// 1/√(variance + eps).
    pub r: Vec<f64>,
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
}

/// Mean and biased variance of each channel, in two sweeps.
pub fn statistics(y: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (y.len() / channels) as f64;
    let (mut mean, mut variance) = (vec![0.0; channels], vec![0.0; channels]);
    for row in y.chunks_exact(channels) {
        mean.iter_mut().zip(row).for_each(|(mean, y)| *mean += y / rows);
    }
    for row in y.chunks_exact(channels) {
        for c in 0..channels {
            variance[c] += (row[c] - mean[c]) * (row[c] - mean[c]) / rows;
        }
    }
    (mean, variance)
}

impl Norm {
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    fn map(&self, y: &[f64], value: impl Fn(usize, f64) -> f64) -> Vec<f64> {
        y.iter().enumerate().map(|(at, &y)| value(at % self.channels(), y)).collect()
    }

    /// ŷ = (y − μ)·r.
    pub fn normalise(&self, y: &[f64]) -> Vec<f64> {
        self.map(y, |c, y| (y - self.mean[c]) * self.r[c])
    }

    /// z = γ·ŷ + β.
    pub fn forward(&self, y: &[f64]) -> Vec<f64> {
        self.map(y, |c, y| self.gamma[c] * (y - self.mean[c]) * self.r[c] + self.beta[c])
    }

    /// Gradients of β and γ: Σdu and Σdu·ŷ, where du is the gradient at z.
    pub fn parameter_gradients(&self, du: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let channels = self.channels();
        let (mut beta, mut gamma) = (vec![0.0; channels], vec![0.0; channels]);
        for (du, y) in du.chunks_exact(channels).zip(self.normalise(y).chunks_exact(channels)) {
            for c in 0..channels {
                beta[c] += du[c];
                gamma[c] += du[c] * y[c];
            }
        }
        (beta, gamma)
    }

    /// Gradient at y where mean and variance do not depend on y.
    pub fn backward_of_constants(&self, du: &[f64]) -> Vec<f64> {
        self.map(du, |c, du| du * self.gamma[c] * self.r[c])
    }

    /// Gradient at y by the chain rule through ŷ, the variance and the mean, where both are of this batch.
    pub fn backward(&self, du: &[f64], y: &[f64]) -> Vec<f64> {
        let channels = self.channels();
        let rows = (y.len() / channels) as f64;
        let (mut by_variance, mut by_mean) = (vec![0.0; channels], vec![0.0; channels]);
        let mut centred = vec![0.0; channels];
        for (du, y) in du.chunks_exact(channels).zip(y.chunks_exact(channels)) {
            for c in 0..channels {
                let slope = du[c] * self.gamma[c];
                by_variance[c] += slope * (y[c] - self.mean[c]) * -0.5 * self.r[c].powi(3);
                by_mean[c] -= slope * self.r[c];
                centred[c] += y[c] - self.mean[c];
            }
        }
        for c in 0..channels {
            by_mean[c] += by_variance[c] * -2.0 * centred[c] / rows;
        }
        let at_y = |(at, (du, y)): (usize, (&f64, &f64))| {
            let c = at % channels;
            let through_value = du * self.gamma[c] * self.r[c];
            through_value + by_variance[c] * 2.0 * (y - self.mean[c]) / rows + by_mean[c] / rows
        };
        du.iter().zip(y).enumerate().map(at_y).collect()
    }
}
