//! Buckets: the gradients that are summed over the ranks in one piece, and the pass that completes each.
//!
//! Gradients are stored in forward order, and the backward pass fills them from the end. So buckets are cut from the
//! end, and the sum of one can start while the backward pass continues with earlier layers. Every pass names the
//! gradients to which it adds ([`Pass::gradients`]); a bucket is complete after the last pass that adds to one of its
//! gradients.
//!
//! A bucket should be large enough that its bytes take longer than its latency, and small enough that a network has
//! several: a quarter of all gradients, from 4 to 25 MiB. The last one, with the first layers, has at most a sixteenth
//! of that size, since no passes remain to run in parallel with its sum.

use std::ops::Range;

use super::{Frozen, Param, Pass};

/// Gradients that are summed over the ranks in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The bucket's elements of the gradient buffer.
    pub elements: Range<usize>,
    /// What of the state the step leaves as it is. It is not exchanged: a mean over ranks of equal numbers may round.
    pub frozen: Frozen,
}

impl Bucket {
    /// Whether this is the last bucket: the running statistics and the step's figures are exchanged together with it.
    pub fn is_last(&self) -> bool {
        self.elements.start == self.frozen.parameters
    }
}

/// The buckets of one backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// In the order in which they become complete, each with the number of the pass that completes it.
    list: Vec<(usize, Bucket)>,
}

/// Bytes of a bucket for this many gradients of four bytes.
pub fn bucket_bytes(gradients: usize) -> usize {
    // A quarter of the bytes of gradients of four bytes is their number.
    gradients.clamp(4 << 20, 25 << 20)
}

impl Buckets {
    /// Cuts the gradients that `passes` fill into pieces of `bytes` or more, at the borders of tensors. They are those of
    /// the `trainable` elements but for the `frozen` ones.
    ///
    /// # Panics
    /// If no pass adds to a gradient: it would be summed before it is complete.
    pub fn new(passes: &[Pass], trainable: usize, frozen: Frozen, bytes: usize) -> Buckets {
        let mut filled: Vec<(Param, usize)> = Vec::new();
        for (number, pass) in passes.iter().enumerate() {
            pass.gradients(&mut |param| filled.push((param, number)));
        }
        // From the end. If several passes add to a tensor, it is complete after the last of them.
        filled.sort_by_key(|(param, number)| (std::cmp::Reverse(param.offset), *number));
        let small = bytes / 16;
        let mut list: Vec<(usize, Bucket)> = Vec::new();
        let (mut end, mut start, mut ready) = (trainable, trainable, 0);
        for (param, number) in filled {
            if param.offset != start {
                assert_eq!(param.range().end, start, "no pass adds to the gradients before {start}");
                let full = 4 * (end - start) >= bytes;
                // The first layers' gradients are complete last and are few: they must not wait in a large bucket.
                let tail = start < end && 4 * (start - frozen.parameters) <= small;
                if full || tail && 4 * (end - start) > small {
                    list.push((ready, Bucket { elements: start..end, frozen }));
                    end = start;
                }
                start = param.offset;
            }
            ready = ready.max(number);
        }
        assert_eq!(start, frozen.parameters, "no pass adds to the first gradients");
        list.push((ready, Bucket { elements: start..end, frozen }));
        Buckets { list }
    }

    /// The buckets that this pass completes.
    pub fn after(&self, pass: usize) -> impl Iterator<Item = &Bucket> {
        self.list.iter().filter(move |(ready, _)| *ready == pass).map(|(_, bucket)| bucket)
    }

    /// All buckets, in the order in which they become complete, each with the number of its last pass.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(usize, Bucket)> {
        self.list.iter()
    }
}
