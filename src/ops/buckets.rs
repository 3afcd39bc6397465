//! Buckets: the gradients that are summed over the ranks in one piece, and when each is complete.
//!
//! Gradients lie in forward order, and the backward pass fills them from the end; so buckets are cut from the end, and
//! the sum of one can begin while earlier layers are still at work. Which pass completes what is not written by hand:
//! every pass says whose gradients it adds to ([`Pass::gradients`]), and a bucket is complete after the last pass that
//! adds to anything in it.
//!
//! A bucket should be large enough that its bytes count more than its latency, and small enough that there are
//! several: a quarter of all gradients, from 4 to 25 MiB. What is left for the last one, the first layers, is small: no
//! more than a sixteenth, since nothing is left to hide it behind.

use std::ops::Range;

use super::{Param, Pass};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its place among the gradients.
    pub elements: Range<usize>,
    /// Whether no more gradients come: the running statistics and the step's figures go along.
    pub last: bool,
}

/// The buckets of one backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// In the order in which they become complete, each with the number of the pass that completes it.
    list: Vec<(usize, Bucket)>,
}

/// Bytes of a bucket for this many gradients of four bytes.
pub fn bucket_bytes(gradients: usize) -> usize {
    // A quarter of their bytes is as many bytes as there are gradients.
    gradients.clamp(4 << 20, 25 << 20)
}

impl Buckets {
    /// Cuts the `trainable` gradients that `passes` fill into pieces of `bytes` or more, at the borders of tensors.
    ///
    /// # Panics
    /// Where a gradient is no pass's: it would be summed before it is there.
    pub fn new(passes: &[Pass], trainable: usize, bytes: usize) -> Buckets {
        let mut filled: Vec<(Param, usize)> = Vec::new();
        for (number, pass) in passes.iter().enumerate() {
            pass.gradients(&mut |param| filled.push((param, number)));
        }
        // From the end; a tensor that several passes add to is complete after the last of them.
        filled.sort_by_key(|(param, number)| (std::cmp::Reverse(param.offset), *number));
        let small = bytes / 16;
        let mut list: Vec<(usize, Bucket)> = Vec::new();
        let (mut end, mut start, mut ready) = (trainable, trainable, 0);
        for (param, number) in filled {
            if param.offset != start {
                assert_eq!(param.range().end, start, "the gradients before {start} are no pass's");
                let full = 4 * (end - start) >= bytes;
                // The first layers' gradients come last and are few: they must not wait in a large bucket.
                let tail = start < end && 4 * start <= small;
                if full || tail && 4 * (end - start) > small {
                    list.push((ready, Bucket { elements: start..end, last: false }));
                    end = start;
                }
                start = param.offset;
            }
            ready = ready.max(number);
        }
        assert_eq!(start, 0, "the first gradients are no pass's");
        list.push((ready, Bucket { elements: 0..end, last: true }));
        Buckets { list }
    }

    /// Those that are complete after this pass.
    pub fn after(&self, pass: usize) -> impl Iterator<Item = &Bucket> {
        self.list.iter().filter(move |(ready, _)| *ready == pass).map(|(_, bucket)| bucket)
    }

    /// All, in the order in which they become complete, each with the number of its last pass.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(usize, Bucket)> {
        self.list.iter()
    }
}
