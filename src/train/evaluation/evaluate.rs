//! Accuracy and loss over a split.
//!
//! Counts are integers, and losses are also summed as integers, in units of 2⁻⁶⁴. The result therefore does not depend
//! on the order of the images or on the number of ranks, and `effnet-eval` prints exactly what training logged. The
//! rank of a label is the number of other classes whose logit is not *below* the label's logit. So ties count against
//! the network: a network that gives all classes the same logit, or NaN, is never correct by chance. Images that pad
//! the last batch are not counted, and the number of counted images is compared with the size of the split.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::{Batch, Loader, Normalise};
use crate::network::Inference;
use crate::ops::score::rank;
use crate::ops::{BatchInput, BatchTarget, Labels, Ops, Result as OpsResult, Sequence, Weights};
use crate::parallel::GroupError;
use crate::train::error::TrainError;
use crate::train::team::Team;

/// Accuracy and loss of one set of weights over one split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub images: u64,
    /// Shares of `images`. Top-5 is top-k with k the number of classes where there are fewer than five.
    pub top1: f64,
    pub top5: f64,
    /// Mean cross-entropy without label smoothing.
    pub loss: f64,
}

/// Cross-entropy of one image in nats, without smoothing, computed in f64 from the f32 logits.
pub fn cross_entropy(logits: &[f32], label: u32) -> f64 {
    let own = logits.get(label as usize).copied().map_or(f64::NAN, f64::from);
    let largest = logits.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(f64::from(v)));
    let sum: f64 = logits.iter().map(|&v| (f64::from(v) - largest).exp()).sum();
    largest + sum.ln() - own
}

/// Probabilities of the classes, computed in f64 from f32 logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(f64::from(v)));
    let powers: Vec<f64> = logits.iter().map(|&v| (f64::from(v) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    images: u64,
    top1: u64,
    top5: u64,
    /// In units of 2⁻⁶⁴.
    loss: i128,
    /// The sum of losses that do not fit these units: not finite or extremely large. The mean is then meaningless.
    beyond: f64,
}

/// 1 in the units of [`Sums::loss`].
const UNIT: f64 = 18_446_744_073_709_551_616.0;
/// Losses up to this value are summed exactly: eight billion such images do not overflow.
const MOST: f64 = 1e9;
/// Words of [`Sums::words`].
const WORDS: usize = 6;

impl Sums {
    fn add(&mut self, logits: &[f32], label: u32) {
        let rank = rank(logits, label);
        self.images += 1;
        self.top1 += u64::from(rank == 0);
        self.top5 += u64::from(rank < 5.min(logits.len()));
        let loss = cross_entropy(logits, label);
        if loss.abs() <= MOST {
            self.loss += (loss * UNIT) as i128;
        } else {
            self.beyond += loss;
        }
    }

    /// As words to send to other ranks.
    fn words(&self) -> [u64; WORDS] {
        let (low, high) = (self.loss as u64, (self.loss >> 64) as u64);
        [self.images, self.top1, self.top5, low, high, self.beyond.to_bits()]
    }

    /// Adds the sums of another rank.
    fn add_words(&mut self, words: &[u64; WORDS]) {
        let [images, top1, top5, low, high, beyond] = *words;
        self.images += images;
        self.top1 += top1;
        self.top5 += top5;
        self.loss += (i128::from(high as i64) << 64) | i128::from(low);
        self.beyond += f64::from_bits(beyond);
    }

    fn figures(self) -> Evaluation {
        let images = self.images.max(1) as f64;
        let (top1, top5) = (self.top1 as f64 / images, self.top5 as f64 / images);
        let loss = self.loss as f64 / UNIT + self.beyond;
        Evaluation { images: self.images, top1, top5, loss: loss / images }
    }
}

/// A split's images, and how to read them.
pub struct Images<'a> {
    /// In batches of the network's size, over the whole split or this rank's share of it, in order.
    pub loader: &'a mut Loader,
    pub normalise: Normalise,
    /// Images of the whole split.
    pub expected: u64,
}

/// An image as an evaluation sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which of the network's sets of weights gave the logits.
    pub weights: usize,
    /// The image's number in the split.
    pub index: u64,
    pub label: u32,
    /// [classes].
    pub logits: &'a [f32],
}

/// Evaluates each of the network's sets of weights while reading the images once; each rank takes its share. The network's
/// plan is bound. Returns none if `stop` was set at any rank during the evaluation.
///
/// # Errors
/// [`TrainError`]; a damaged sample is named by file and number.
pub fn evaluate<O: Ops>(
    ops: &mut O,
    inference: &Inference,
    images: Images,
    stop: &AtomicBool,
    team: &Team,
) -> Result<Option<Vec<Evaluation>>, TrainError> {
    evaluate_seen(ops, inference, images, stop, team, &mut |_| {})
}

/// [`evaluate`], which also shows each image's logits to `seen`: those of this rank's images, by each set of weights in
/// the order of the split.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_seen<O: Ops>(
    ops: &mut O,
    inference: &Inference,
    images: Images,
    stop: &AtomicBool,
    team: &Team,
    seen: &mut dyn FnMut(Seen),
) -> Result<Option<Vec<Evaluation>>, TrainError> {
    let network = &inference.network;
    let classes = network.logits.elements / network.config.images;
    let mut logits = vec![0.0; network.logits.elements];
    let weights = inference.weights();
    let count = weights.len();
    let mut sums = vec![Sums::default(); weights.len()];
    let Images { loader, normalise, expected } = images;
    let mut stopped = false;
    inference.fold(ops)?;
    let passes = Passes { inference, normalise };
    let ahead = ops.keeps_batches();
    let (mut slot, mut next) = (0, loader.next()?);
    if let (true, Some(batch)) = (ahead, &next) {
        passes.send(ops, slot, batch)?;
    }
    while let Some(batch) = next.take() {
        stopped = stop.load(Ordering::Relaxed);
        if stopped {
            break;
        }
        for (number, (&weights, sums)) in weights.iter().zip(&mut sums).enumerate() {
            if !ahead {
                passes.send(ops, slot, &batch)?;
            }
            passes.start(ops, slot, weights)?;
            if number + 1 == count {
                // While the passes run, the next batch is awaited, and travels if the device keeps this one.
                next = loader.next()?;
                if let (true, Some(batch)) = (ahead, &next) {
                    passes.send(ops, slot ^ 1, batch)?;
                }
            }
            passes.finish(ops, &mut logits)?;
            let scored = logits.chunks_exact(classes).zip(&batch.labels).take(batch.images);
            for (index, (logits, &label)) in (batch.first_position..).zip(scored) {
                sums.add(logits, label);
                seen(Seen { weights: number, index, label, logits });
            }
        }
        loader.recycle(batch);
        slot ^= usize::from(ahead);
        team.progress()?;
    }
    if team.any("stopping an evaluation", stopped)? {
        return Ok(None);
    }
    let sums = over_ranks(&sums, team)?;
    match sums.iter().find(|sums| sums.images != expected) {
        Some(sums) => Err(TrainError::Count { seen: sums.images, expected }),
        None => Ok(Some(sums.into_iter().map(Sums::figures).collect())),
    }
}

/// The sums of all ranks.
fn over_ranks(own: &[Sums], team: &Team) -> Result<Vec<Sums>, GroupError> {
    let words: Vec<[u64; WORDS]> = own.iter().map(Sums::words).collect();
    let mut all = vec![Sums::default(); own.len()];
    for part in team.gather("an evaluation's counts", bytemuck::cast_slice(&words))? {
        // All ranks run this program, so each sends as many sums as this one.
        for (sums, words) in all.iter_mut().zip(part.chunks_exact(8 * WORDS)) {
            sums.add_words(&bytemuck::pod_read_unaligned(words));
        }
    }
    Ok(all)
}

/// How batches pass through the network.
pub(super) struct Passes<'a> {
    pub inference: &'a Inference,
    pub normalise: Normalise,
}

impl Passes<'_> {
    fn target(&self) -> BatchTarget {
        let Normalise { mean, deviation } = self.normalise;
        BatchTarget { image: self.inference.network.image, labels: None, mean, deviation }
    }

    pub fn send<O: Ops>(&self, ops: &mut O, slot: usize, batch: &Batch) -> OpsResult {
        // A batch fits into one pass.
        let mut parts = batch.parts(self.inference.network.config.images);
        let target = self.target();
        parts.try_for_each(|(pixels, _)| {
            ops.send_batch(slot, &BatchInput { pixels, labels: Labels::default(), target })
        })
    }

    /// Submits the passes of the batch that was sent as `slot`, with weights that [`Inference::fold`] has seen.
    pub fn start<O: Ops>(&self, ops: &mut O, slot: usize, weights: Weights) -> OpsResult {
        let target = self.target();
        ops.use_weights(weights)?;
        ops.replay(Sequence::Inference { slot }, |ops| {
            ops.unpack_batch(slot, &target)?;
            self.inference.forward(ops, weights)
        })
    }

    /// Waits for the logits [N, classes].
    pub fn finish<O: Ops>(&self, ops: &mut O, logits: &mut [f32]) -> OpsResult {
        let downloaded = ops.download(self.inference.network.logits, logits);
        ops.use_weights(Weights::Raw)?;
        downloaded
    }
}

/// Images per second since `since`.
pub fn rate(images: u64, since: Instant) -> f64 {
    images as f64 / since.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_and_cross_entropy_follow_the_definition() {
        let logits = [1.0, 3.0, 2.0];
        assert_eq!([0, 1, 2].map(|label| rank(&logits, label)), [2, 0, 1]);
        let loss = ((-2f64).exp() + 1.0 + (-1f64).exp()).ln();
        assert!((cross_entropy(&logits, 1) - loss).abs() < 1e-15);
        assert!((cross_entropy(&logits, 0) - loss - 2.0).abs() < 1e-15);
        // Large logits cause no overflow.
        assert!(cross_entropy(&[1e30, 0.0], 0).abs() < 1e-12);
    }

    #[test]
    fn rank_of_ties_and_nan_is_never_first() {
        assert_eq!(rank(&[0.0; 10], 3), 9);
        assert!(rank(&[f32::NAN, 1.0], 0) > 0);
        assert!(rank(&[f32::NAN, 1.0], 1) > 0);
        assert!(rank(&[f32::NAN; 3], 2) >= 3);
        assert!(rank(&[1.0, 0.0], 7) >= 2);
        let mut sums = Sums::default();
        sums.add(&[f32::NAN; 4], 0);
        let figures = sums.figures();
        assert_eq!((figures.images, figures.top1, figures.top5), (1, 0.0, 0.0));
    }

    #[test]
    fn sums_take_top_three_for_top_five_of_three_classes() {
        let mut sums = Sums::default();
        sums.add(&[3.0, 2.0, 1.0], 2);
        sums.add(&[3.0, 2.0, 1.0], 0);
        sums.add(&[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 5);
        sums.add(&[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4);
        let figures = sums.figures();
        assert_eq!((figures.top1, figures.top5), (0.25, 0.75));
    }

    /// Any order and any division among ranks gives the same result, and it follows the definition.
    #[test]
    fn sums_do_not_depend_on_the_order() {
        let logits =
            |image: u32| [0.37 * image as f32, -11.0, (image % 7) as f32, 40.0 / (1.0 + image as f32)];
        let mut whole = Sums::default();
        (0..100).for_each(|image| whole.add(&logits(image), image % 4));
        let mut parts = [Sums::default(); 3];
        (0..100).rev().for_each(|image| parts[image as usize % 3].add(&logits(image), image % 4));
        let mut together = Sums::default();
        parts.iter().for_each(|part| together.add_words(&part.words()));
        assert_eq!(whole, together);
        let expected: f64 = (0..100).map(|image| cross_entropy(&logits(image), image % 4)).sum();
        assert!((whole.figures().loss - expected / 100.0).abs() < 1e-13);
        // Negative sums are transferred too: rounding may put a label's logit above the log of the sum.
        let negative = Sums { loss: -5, ..Sums::default() };
        let mut read = Sums::default();
        read.add_words(&negative.words());
        assert_eq!(read, negative);
        // A loss that is not finite remains visible.
        whole.add(&[f32::NAN, 0.0], 0);
        assert!(whole.figures().loss.is_nan());
        whole = Sums::default();
        whole.add(&[0.0, f32::INFINITY], 0);
        assert!(!whole.figures().loss.is_finite());
    }

    #[test]
    fn softmax_adds_up_to_one() {
        let p = softmax(&[0.0, (2f32).ln(), -1e4]);
        assert!((p[0] - 1.0 / 3.0).abs() < 1e-7 && (p.iter().sum::<f64>() - 1.0).abs() < 1e-15);
    }
}
