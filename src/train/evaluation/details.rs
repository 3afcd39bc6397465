//! What an evaluation shows beside its accuracy: which classes are confused, how far the network's confidence can be
//! believed, and which images are worth a look.
//!
//! [`Details`] is fed with the logits of one image after the other and keeps only what a page needs: counts for each
//! class, one count for each pair of classes that was confused, the bins of the calibration, and a few images by their
//! number. For 50,000 images of 1000 classes that is at most some megabytes, where the logits would be 200 MB.
//!
//! An image is correct as in [`rank`]: its label's logit is above all others. Otherwise the prediction is the first of
//! the other classes with the largest logit. Logits with a NaN predict nothing.
//!
//! Calibration: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599), section 2. The
//! confidence of an image is the softmax's probability p of the predicted class. The images are divided by their
//! confidence into M = 15 bins of equal width, ((m − 1) / M, m / M]. The expected calibration error is
//! ECE = Σ |B_m| / n · |acc(B_m) − conf(B_m)|, with n images, the accuracy and the mean confidence of each bin.

use std::collections::BTreeMap;

use super::evaluate::softmax;
use crate::ops::score::rank;

/// Bins of the calibration, as many as in the paper.
pub const BINS: usize = 15;

/// Counts of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// Images with this label.
    pub images: u64,
    /// Those of them that are correct.
    pub correct: u64,
    /// Images of any label that are taken for this class.
    pub predicted: u64,
}

/// One bin of the calibration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    pub images: u64,
    pub correct: u64,
    /// Sum of the confidences.
    pub confidence: f64,
}

/// An image to look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The image's number in the split.
    pub index: u64,
    pub label: u32,
    pub predicted: u32,
    /// Probabilities of the predicted class and of the label.
    pub confidence: f64,
    pub of_label: f64,
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// [classes].
    pub classes: Vec<ClassCounts>,
    /// Images by label and prediction, where these differ.
    pub confused: BTreeMap<(u32, u32), u64>,
    /// Images whose logits predict nothing.
    pub without_prediction: u64,
    pub bins: [Bin; BINS],
    /// The most confident mistakes, the most confident first.
    pub mistakes: Vec<Pick>,
    /// The correct images of least confidence, the least first.
    pub unsure: Vec<Pick>,
    /// The most images in each of these two.
    picks: usize,
}

impl Details {
    pub fn new(classes: usize, picks: usize) -> Details {
        Details {
            classes: vec![ClassCounts::default(); classes],
            confused: BTreeMap::new(),
            without_prediction: 0,
            bins: [Bin::default(); BINS],
            mistakes: Vec::new(),
            unsure: Vec::new(),
            picks,
        }
    }

    /// Adds an image. `logits` has as many elements as there are classes, and `label` is one of them.
    pub fn add(&mut self, index: u64, label: u32, logits: &[f32]) {
        self.classes[label as usize].images += 1;
        let Some(predicted) = prediction(logits, label) else {
            self.without_prediction += 1;
            return;
        };
        let correct = predicted == label;
        self.classes[predicted as usize].predicted += 1;
        self.classes[label as usize].correct += u64::from(correct);
        if !correct {
            *self.confused.entry((label, predicted)).or_default() += 1;
        }
        let shares = softmax(logits);
        let [confidence, of_label] = [predicted, label].map(|class| shares[class as usize]);
        // Infinite logits have no probabilities.
        if !confidence.is_finite() {
            return;
        }
        let bin = &mut self.bins[bin(confidence)];
        bin.images += 1;
        bin.correct += u64::from(correct);
        bin.confidence += confidence;
        let pick = Pick { index, label, predicted, confidence, of_label };
        if correct {
            keep(&mut self.unsure, pick, self.picks, |a, b| a.confidence < b.confidence);
        } else {
            keep(&mut self.mistakes, pick, self.picks, |a, b| a.confidence > b.confidence);
        }
    }

    pub fn images(&self) -> u64 {
        self.classes.iter().map(|class| class.images).sum()
    }

    /// Expected calibration error, and the mean confidence and the accuracy of the images in the bins; none without
    /// any.
    pub fn calibration(&self) -> Option<Calibration> {
        let images: u64 = self.bins.iter().map(|bin| bin.images).sum();
        let all = images as f64;
        let error = |bin: &Bin| (bin.correct as f64 - bin.confidence).abs() / all;
        (images > 0).then(|| Calibration {
            error: self.bins.iter().map(error).sum(),
            confidence: self.bins.iter().map(|bin| bin.confidence).sum::<f64>() / all,
            accuracy: self.bins.iter().map(|bin| bin.correct).sum::<u64>() as f64 / all,
        })
    }

    /// The pairs that were confused most often, at most `count`: label, prediction and images. Pairs of the same count
    /// stand in the order of their classes.
    pub fn worst_pairs(&self, count: usize) -> Vec<(u32, u32, u64)> {
        let mut pairs: Vec<_> =
            self.confused.iter().map(|(&(label, predicted), &images)| (label, predicted, images)).collect();
        pairs.sort_by_key(|&(label, predicted, images)| (std::cmp::Reverse(images), label, predicted));
        pairs.truncate(count);
        pairs
    }
}

/// Shares of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    pub error: f64,
    pub confidence: f64,
    pub accuracy: f64,
}

fn prediction(logits: &[f32], label: u32) -> Option<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    if rank(logits, label) == 0 {
        return Some(label);
    }
    let mut largest = None::<usize>;
    for (class, logit) in logits.iter().enumerate().filter(|(class, _)| *class != label as usize) {
        if largest.is_none_or(|largest| *logit > logits[largest]) {
            largest = Some(class);
        }
    }
    largest.map(|class| class as u32)
}

/// The number of a confidence's bin, from 0.
fn bin(confidence: f64) -> usize {
    ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1
}

/// Keeps the first `most` picks by `before`; of equal ones those that came first.
fn keep(picks: &mut Vec<Pick>, new: Pick, most: usize, before: impl Fn(&Pick, &Pick) -> bool) {
    let at = picks.partition_point(|old| !before(&new, old));
    if at < most {
        picks.insert(at, new);
        picks.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose softmax is these probabilities.
    fn logits(shares: &[f64]) -> Vec<f32> {
        shares.iter().map(|share| share.ln() as f32).collect()
    }

    #[test]
    fn prediction_follows_the_definition_of_correct() {
        assert_eq!(prediction(&[1.0, 3.0, 2.0], 1), Some(1));
        assert_eq!(prediction(&[1.0, 3.0, 2.0], 2), Some(1));
        // A tie with the label is a mistake.
        assert_eq!(prediction(&[3.0, 3.0, 2.0], 0), Some(1));
        assert_eq!(prediction(&[3.0, 3.0, 2.0], 1), Some(0));
        assert_eq!(prediction(&[0.0; 4], 0), Some(1));
        assert_eq!(prediction(&[f32::NAN, 3.0, 2.0], 1), None);
        let mut details = Details::new(3, 4);
        details.add(0, 1, &[f32::NAN, 3.0, 2.0]);
        details.add(1, 1, &[f32::INFINITY, 3.0, 2.0]);
        assert_eq!((details.without_prediction, details.images()), (1, 2));
        assert_eq!((details.calibration(), details.confused[&(1, 0)]), (None, 1));
    }

    /// Three images with confidences 0.9, 0.9 and 0.55, of which the second is wrong. In fifteenths these lie in bins
    /// 14 and 9: ECE = 2/3·|0.5 − 0.9| + 1/3·|1 − 0.55|.
    #[test]
    fn calibration_is_the_paper_s() {
        let mut details = Details::new(2, 4);
        details.add(0, 0, &logits(&[0.9, 0.1]));
        details.add(1, 1, &logits(&[0.9, 0.1]));
        details.add(2, 1, &logits(&[0.45, 0.55]));
        let counts: Vec<(usize, u64, u64)> = (details.bins.iter().enumerate())
            .filter(|(_, bin)| bin.images > 0)
            .map(|(number, bin)| (number, bin.images, bin.correct))
            .collect();
        assert_eq!(counts, [(8, 1, 1), (13, 2, 1)]);
        let found = details.calibration().unwrap();
        // fp32 logits are exact to 6e-8 of their size.
        assert!((found.error - (2.0 / 3.0 * 0.4 + 0.45 / 3.0)).abs() < 1e-6, "{found:?}");
        assert!((found.confidence - (0.9 + 0.9 + 0.55) / 3.0).abs() < 1e-6);
        assert_eq!(found.accuracy, 2.0 / 3.0);
        // The bins are open below and closed above.
        assert_eq!([0.0, 1e-9, 1.0 / 15.0, 0.0667, 1.0].map(bin), [0, 0, 0, 1, 14]);
    }

    #[test]
    fn picks_are_the_extremes_in_order() {
        let mut details = Details::new(2, 3);
        let confidences = [0.6, 0.9, 0.7, 0.9, 0.8, 0.99, 0.55];
        for (number, share) in confidences.into_iter().enumerate() {
            details.add(number as u64, 0, &logits(&[1.0 - share, share]));
            details.add(100 + number as u64, 1, &logits(&[1.0 - share, share]));
        }
        let numbers = |picks: &[Pick]| picks.iter().map(|pick| pick.index).collect::<Vec<_>>();
        // Of two equal ones the first comes first.
        assert_eq!(numbers(&details.mistakes), [5, 1, 3]);
        assert_eq!(numbers(&details.unsure), [106, 100, 102]);
        let Pick { label, predicted, confidence, of_label, .. } = details.mistakes[0];
        assert_eq!((label, predicted), (0, 1));
        assert!((confidence - 0.99).abs() < 1e-6 && (of_label - 0.01).abs() < 1e-6);
    }

    /// Against a count that keeps every prediction.
    #[test]
    fn counts_agree_with_a_naive_count() {
        let classes = 7;
        let mut details = Details::new(classes, 5);
        let mut pairs = Vec::new();
        for index in 0..500u64 {
            let logits: Vec<f32> = (0..classes as u64)
                .map(|class| ((index * 37 + class * 101 + index * class) % 29) as f32)
                .collect();
            let label = (index % 5) as u32;
            details.add(index, label, &logits);
            let others = || (0..classes).filter(|&class| class != label as usize);
            let best = others().fold(f32::MIN, |most, class| most.max(logits[class]));
            let taken = if logits[label as usize] > best {
                label
            } else {
                others().find(|&class| logits[class] == best).unwrap() as u32
            };
            pairs.push((label, taken));
        }
        for class in 0..classes as u32 {
            let count =
                |of: &dyn Fn(&(u32, u32)) -> bool| pairs.iter().filter(|pair| of(pair)).count() as u64;
            let expected = ClassCounts {
                images: count(&|pair| pair.0 == class),
                correct: count(&|pair| *pair == (class, class)),
                predicted: count(&|pair| pair.1 == class),
            };
            assert_eq!(details.classes[class as usize], expected, "class {class}");
        }
        assert_eq!(details.classes[6].images, 0);
        let wrong = pairs.iter().filter(|(label, taken)| label != taken).count() as u64;
        assert_eq!(details.confused.values().sum::<u64>(), wrong);
        let worst = details.worst_pairs(4);
        assert!(worst.is_sorted_by(|a, b| a.2 >= b.2) && worst.len() == 4);
        let (label, taken, images) = worst[0];
        assert_eq!(images, pairs.iter().filter(|pair| **pair == (label, taken)).count() as u64);
    }
}
