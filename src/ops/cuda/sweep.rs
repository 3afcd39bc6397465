//! How blocks share a tensor [images, pixels, channels] if each thread keeps one vector of channels.

pub use super::sources::numeric::{LANES, SWEEP_THREADS};

/// Maximum number of vectors of channels of a block.
const WIDEST: usize = 32;

/// A block has `rows` rows of `width` vectors, and `run` pixels of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub width: usize,
    pub rows: usize,
    pub run: usize,
    /// Blocks along the channels.
    pub slices: usize,
    /// Blocks along the pixels of an image.
    pub splits: usize,
}

impl Sweep {
    /// About `each` pixels per thread, more if an image would otherwise need more than `most_splits` blocks.
    pub fn new(pixels: usize, channels: usize, each: usize, most_splits: usize) -> Sweep {
        assert_eq!(channels % LANES, 0, "channels come in vectors");
        let vectors = channels / LANES;
        let width = vectors.div_ceil(vectors.div_ceil(WIDEST));
        let rows = SWEEP_THREADS / width;
        let run = pixels.div_ceil(pixels.div_ceil(rows * each).min(most_splits));
        Sweep { width, rows, run, slices: vectors.div_ceil(width), splits: pixels.div_ceil(run) }
    }

    pub fn grid(&self, images: usize) -> [usize; 3] {
        [self.slices, self.splits, images]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_pixel_and_channel_once() {
        for channels in (8..4000).step_by(8) {
            for pixels in [1, 2, 49, 196, 784, 3136, 12_544, 90_000] {
                for (each, most) in [(8, usize::MAX), (16, 16)] {
                    let s = Sweep::new(pixels, channels, each, most);
                    assert!(s.width * s.rows <= SWEEP_THREADS && s.width * LANES <= SWEEP_THREADS, "{s:?}");
                    let covered = s.slices * s.width * LANES;
                    assert!(covered >= channels && covered - channels < s.width * LANES, "{s:?}");
                    assert!(s.splits <= most && s.splits * s.run >= pixels, "{s:?}");
                    assert!((s.splits - 1) * s.run < pixels, "{s:?}");
                }
            }
        }
    }
}
