//! `--data synthetic`: images made up on the fly, for measuring speed and for tests that need no files.
//!
//! Each class has a coarse coloured pattern; an image is its class's pattern at its own brightness, under noise. A
//! network can learn it, so a falling loss shows that training works.

use super::normalise::Normalise;
use super::split::Split;
use crate::random::{Purpose, draw};

/// Cells of a class's pattern, each way.
const CELLS: usize = 4;

/// The size of a made-up set. Its content is a function of these numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    pub classes: usize,
    pub train: usize,
    pub val: usize,
    /// Width and height of every image, RGB.
    pub side: usize,
}

impl Synthetic {
    pub fn samples(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
            Split::Test => 0,
        }
    }

    pub fn label(&self, index: usize) -> u32 {
        (index % self.classes) as u32
    }

    /// A training and a validation image never share their noise.
    pub fn id(split: Split, index: usize) -> u64 {
        (index as u64) << 1 | split as u64
    }

    /// Draws the image into `out` (side×side×3 bytes, resized to fit).
    pub fn image(&self, split: Split, index: usize, out: &mut Vec<u8>) {
        let id = Synthetic::id(split, index);
        let label = self.label(index);
        out.resize(self.side * self.side * 3, 0);
        let brightness = draw(0, id, 0, Purpose::Synthetic, 1)[0] % 64;
        let mut cells = [[0; 3]; CELLS * CELLS];
        for (place, cell) in cells.iter_mut().enumerate() {
            let bits = draw(0, u64::from(label), place as u32, Purpose::Synthetic, 2);
            *cell = [0, 1, 2].map(|c| (bits[c] % 128 + brightness) as u8);
        }
        for (y, row) in out.chunks_exact_mut(self.side * 3).enumerate() {
            let above = y * CELLS / self.side * CELLS;
            // One block of draws gives sixteen bytes of noise below 64.
            for (group, values) in row.chunks_mut(16).enumerate() {
                let time = (y * self.side.div_ceil(5) + group) as u32;
                let bits = draw(0, id, time, Purpose::Synthetic, 0);
                let noise: &[u8] = bytemuck::bytes_of(&bits);
                for (at, (value, noise)) in values.iter_mut().zip(noise).enumerate() {
                    let x = (group * 16 + at) / 3;
                    let channel = (group * 16 + at) % 3;
                    *value = cells[above + x * CELLS / self.side][channel] + (noise & 63);
                }
            }
        }
    }

    /// Means and deviations of the distribution, not of the drawn images: 0..128 + 0..64 + 0..64.
    pub fn normalise(&self) -> Normalise {
        Normalise { mean: [126.5 / 255.0; 3], deviation: [45.2 / 255.0; 3] }
    }
}
