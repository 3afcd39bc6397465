//! How a depthwise pass divides the maps among blocks and threads. It depends on shapes only.

use crate::ops::cuda::sources::depthwise::{
    DEPTHWISE_CHANNELS, DEPTHWISE_PIXELS, DEPTHWISE_SLICE, DEPTHWISE_THREADS, DEPTHWISE_UNIT,
};

/// Maximum of a block's shared memory: two blocks fit the smallest multiprocessor, that of compute capability 8.6.
const SHARED: usize = 49 << 10;
/// Minimum rows of a strip: the rows at its border are loaded twice.
const STRIP: usize = 8;
/// Threads of a block with the same channels.
const PLACES: usize = DEPTHWISE_THREADS / (DEPTHWISE_SLICE / DEPTHWISE_CHANNELS);

/// What the division has to know of a pass.
pub struct Sweep<'a> {
    pub images: usize,
    pub channels: usize,
    /// Of the map whose positions are divided among threads.
    pub width: usize,
    pub height: usize,
    /// Positions of a thread.
    pub columns: usize,
    pub thread_rows: usize,
    /// Pixels that a tile of so many threads takes of a row that is loaded.
    pub reach: &'a dyn Fn(usize) -> usize,
    /// Such rows that an iteration of so many rows brings.
    pub fresh: &'a dyn Fn(usize) -> usize,
    /// Bytes of shared memory, by the threads of a tile's row and the rows of an iteration.
    pub need: &'a dyn Fn(usize, usize) -> usize,
    /// Instructions of a warp for its positions, and for a unit of pixels: counted in the machine code, roughly.
    pub warp_cost: usize,
    pub unit_cost: usize,
    /// How many blocks there should be: enough for all multiprocessors of a large card, a whole number of times.
    pub blocks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    pub slices: usize,
    /// Threads of a tile's row, for each pair of channels.
    pub workers: usize,
    pub tiles: usize,
    /// Rows of an iteration.
    pub rows: usize,
    pub images_per_block: usize,
    pub strips: usize,
    pub strip_rows: usize,
    pub parts: usize,
    pub shared: usize,
}

impl Sweep<'_> {
    fn rows(&self, workers: usize) -> usize {
        (PLACES / workers).min(self.height.div_ceil(self.thread_rows)) * self.thread_rows
    }

    /// Instructions of all warps for an image: the fewest decide.
    fn cost(&self, workers: usize) -> usize {
        /// Of the four warps for an iteration, whatever they do.
        const ITERATION: usize = 600;
        let rows = self.rows(workers);
        // Two places are a warp.
        let warps = (workers * rows / self.thread_rows).div_ceil(2);
        let units = (self.fresh)(rows) * (self.reach)(workers).div_ceil(DEPTHWISE_UNIT);
        let iteration = ITERATION + warps * self.warp_cost + units * self.unit_cost;
        self.width.div_ceil(workers * self.columns) * self.height.div_ceil(rows) * iteration
    }

    pub fn divide(&self) -> Tiles {
        let fits = |workers: usize| {
            workers * self.columns <= DEPTHWISE_PIXELS
                && (self.reach)(workers) <= DEPTHWISE_PIXELS
                && (self.need)(workers, self.rows(workers)) <= SHARED
        };
        // Of equal ones the widest, which has the fewest borders. One thread a row always fits, in fp32 perhaps with more shared memory.
        let best =
            (1..=PLACES).rev().filter(|workers| fits(*workers)).min_by_key(|workers| self.cost(*workers));
        let workers = best.unwrap_or(1);
        let rows = self.rows(workers);
        let tiles = self.width.div_ceil(workers * self.columns);
        let slices = self.channels.div_ceil(DEPTHWISE_SLICE);
        let images_per_block = (self.images * slices * tiles).div_ceil(self.blocks).min(self.images);
        let image_parts = self.images.div_ceil(images_per_block);
        // A block with several images has one strip: the ring has no room for a strip's last rows beside the first
        // ones of the next image, if no border of the map is between them.
        let strips = match images_per_block {
            1 => (self.blocks / 4).div_ceil(image_parts * slices * tiles).min(self.height.div_ceil(STRIP)),
            _ => 1,
        };
        let strip_rows = self.height.div_ceil(strips).next_multiple_of(rows);
        let strips = self.height.div_ceil(strip_rows);
        let parts = image_parts * strips * tiles;
        let shared = (self.need)(workers, rows);
        Tiles { slices, workers, tiles, rows, images_per_block, strips, strip_rows, parts, shared }
    }
}

impl Tiles {
    pub fn grid(&self) -> [usize; 3] {
        [self.slices, self.parts, 1]
    }
}
