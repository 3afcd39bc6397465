//! How the backward pointwise convolutions are cut into blocks: the tables of tiles, and the choice among them. See
//! `kernels/pointwise_backward.cuh`. All of it follows from shapes alone.

use super::precision::Precision;

/// Blocks that fill the largest GPU: two for each of an H100's multiprocessors.
const FULL: usize = 264;
/// Blocks beyond which none takes less than several tiles.
const PLENTY: usize = 2112;
/// Rows of a part for each channel of the narrow side: the part's sums of the weights' gradient are written and read
/// once, which costs an eighth of one half-precision tensor then.
const THRIFTY: usize = 16;

/// Bytes of a shared row of `columns` elements: an odd number of 16-byte units.
fn row_bytes(columns: usize, precision: Precision) -> usize {
    ((columns * precision.bytes()).div_ceil(16) | 1) * 16
}

/// Parts of the rows for `slices` blocks beside each other.
fn parts(rows: usize, narrow: usize, slices: usize, tile: usize) -> usize {
    let (least, most) = ((FULL / slices).max(1), PLENTY.div_ceil(slices));
    (rows / (THRIFTY * narrow)).clamp(least, most).min(rows.div_ceil(tile))
}

/// A block of the expansion's data gradient: `DataShape` with all narrow channels as columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpandData {
    pub columns: usize,
    rows: usize,
    pub threads: usize,
    chunk: usize,
    separate: bool,
}

const fn expand_data(
    columns: usize,
    rows: usize,
    threads: usize,
    chunk: usize,
    separate: bool,
) -> ExpandData {
    ExpandData { columns, rows, threads, chunk, separate }
}

const EXPAND_DATA_HALF: [ExpandData; 7] = [
    expand_data(48, 64, 128, 64, true),
    expand_data(80, 128, 256, 32, false),
    expand_data(112, 128, 256, 32, false),
    expand_data(160, 64, 256, 32, false),
    expand_data(192, 64, 256, 32, false),
    expand_data(320, 64, 256, 32, false),
    expand_data(640, 32, 256, 32, false),
];
const EXPAND_DATA_FP32: [ExpandData; 4] = [
    expand_data(32, 64, 128, 32, true),
    expand_data(112, 128, 256, 16, false),
    expand_data(320, 32, 256, 16, false),
    expand_data(640, 16, 256, 16, false),
];

impl ExpandData {
    pub fn of(precision: Precision, inputs: usize) -> ExpandData {
        let table: &[ExpandData] =
            if precision == Precision::Fp32 { &EXPAND_DATA_FP32 } else { &EXPAND_DATA_HALF };
        *table.iter().find(|shape| shape.columns >= inputs).expect("no more than 640 narrow channels")
    }

    pub fn blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows).min(PLENTY)
    }

    pub fn shared(&self, precision: Precision) -> usize {
        let (weights, tile) = (
            2 * self.chunk * row_bytes(self.columns, precision),
            self.rows * row_bytes(self.columns, precision),
        );
        let output = if self.separate { weights + tile } else { weights.max(tile) };
        2 * self.rows * (self.chunk * precision.bytes() + row_bytes(self.chunk, precision)) + output
    }
}

/// A block of the expansion's sweep, `ExpandSweepShape`: all channels on both sides, in half precision alone. Rows are
/// so many that two blocks of the smaller shapes fit 100 KiB of shared memory, with the KiB that each takes beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpandSweep {
    wide: usize,
    narrow: usize,
    rows: usize,
}

const fn expand_sweep(wide: usize, narrow: usize, rows: usize) -> ExpandSweep {
    ExpandSweep { wide, narrow, rows }
}

const EXPAND_SWEEP: [ExpandSweep; 3] =
    [expand_sweep(96, 16, 48), expand_sweep(144, 32, 32), expand_sweep(240, 48, 32)];

impl ExpandSweep {
    pub const THREADS: usize = 256;

    /// None where the channels are too many.
    pub fn of(precision: Precision, inputs: usize, outputs: usize) -> Option<ExpandSweep> {
        let fits = |shape: &&ExpandSweep| shape.narrow >= inputs && shape.wide >= outputs;
        EXPAND_SWEEP.iter().find(fits).filter(|_| precision != Precision::Fp32).copied()
    }

    pub fn variant(&self) -> String {
        format!("{}x{}", self.wide, self.narrow)
    }

    /// Each leaves sums of its own, of the weights' gradient too.
    pub fn blocks(&self, rows: usize, inputs: usize) -> usize {
        parts(rows, inputs, 1, self.rows)
    }

    pub fn shared(&self, precision: Precision) -> usize {
        let tiles = (self.wide / 16).div_ceil(8);
        let covered = 16 * tiles * (self.wide / 16).div_ceil(tiles);
        let narrow = row_bytes(self.narrow, precision);
        let wide = 2 * self.wide * precision.bytes() + row_bytes(self.wide, precision);
        let past = (covered - self.wide) * precision.bytes();
        self.rows * (wide + 3 * narrow) + past + self.wide * (narrow + 16)
    }
}

/// A block of a weights' gradient: `WeightShape`, and the channels of dy that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightPieces {
    pub left: usize,
    pub right: usize,
    depth: usize,
    pub slice: usize,
    pub pieces: usize,
    pub parts: usize,
}

const EXPAND_WEIGHTS_HALF: [(usize, usize); 6] =
    [(128, 48), (128, 80), (128, 112), (64, 160), (64, 192), (64, 320)];
const EXPAND_WEIGHTS_FP32: [(usize, usize); 3] = [(128, 32), (128, 112), (64, 320)];

impl WeightPieces {
    pub const THREADS: usize = 256;

    pub fn expand(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> WeightPieces {
        let table: &[(usize, usize)] =
            if precision == Precision::Fp32 { &EXPAND_WEIGHTS_FP32 } else { &EXPAND_WEIGHTS_HALF };
        let shape = table.iter().find(|(_, right)| *right >= inputs).or(table.last());
        WeightPieces::of(precision, *shape.expect("a table"), rows, inputs, outputs, inputs)
    }

    pub fn project(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> WeightPieces {
        WeightPieces::of(precision, (128, 128), rows, inputs, outputs, outputs)
    }

    fn of(
        precision: Precision,
        (left, right): (usize, usize),
        rows: usize,
        inputs: usize,
        outputs: usize,
        narrow: usize,
    ) -> WeightPieces {
        let depth = if precision == Precision::Fp32 { 16 } else { 32 };
        let slice = outputs.div_ceil(outputs.div_ceil(left)).next_multiple_of(16);
        let pieces = outputs.div_ceil(slice) * inputs.div_ceil(right);
        WeightPieces { left, right, depth, slice, pieces, parts: parts(rows, narrow, pieces, 2 * depth) }
    }

    pub fn variant(&self) -> String {
        format!("{}x{}", self.left, self.right)
    }

    pub fn grid(&self) -> [usize; 3] {
        [self.pieces, self.parts, 1]
    }

    /// With the staging of `raw` channels more than dy's.
    pub fn shared(&self, precision: Precision, raw: usize) -> usize {
        let rows = [self.left, self.right].map(|channels| 2 * row_bytes(channels, precision));
        self.depth * ((2 * self.left + raw) * precision.bytes() + rows[0] + rows[1])
    }
}

/// A block of the projection's sweep, `SweepShape`; or of its data gradient alone, `DataShape`, where the
/// accumulators of `depth` narrow channels would be too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// None of the data gradient alone.
    depth: Option<usize>,
    columns: usize,
    rows: usize,
}

const fn sweep(depth: usize, columns: usize, rows: usize) -> Sweep {
    Sweep { depth: Some(depth), columns, rows }
}

/// For few wide channels, then for all; by narrow channels.
const SWEEP_FEW: [Sweep; 2] = [sweep(32, 32, 64), sweep(32, 64, 64)];
const SWEEP_HALF: [Sweep; 5] =
    [sweep(32, 96, 64), sweep(48, 128, 32), sweep(96, 128, 32), sweep(112, 128, 32), sweep(192, 64, 32)];
const SWEEP_FP32: [Sweep; 3] = [sweep(32, 48, 32), sweep(80, 64, 32), sweep(192, 32, 32)];
/// Channels of dy at a time, where the data gradient is made alone.
const DATA_CHUNK_BYTES: usize = 64;
/// Floats of five sums of two channels a thread.
const SUMS_BYTES: usize = 10 * Sweep::THREADS * 4;

impl Sweep {
    pub const THREADS: usize = 256;

    pub fn of(precision: Precision, inputs: usize, outputs: usize) -> Sweep {
        let half = precision != Precision::Fp32;
        let few = SWEEP_FEW.iter().filter(|shape| half && shape.columns >= inputs);
        let all: &[Sweep] = if half { &SWEEP_HALF } else { &SWEEP_FP32 };
        let mut fitting = few.chain(all).filter(|shape| shape.depth >= Some(outputs));
        let alone = Sweep { depth: None, columns: 128, rows: if half { 64 } else { 32 } };
        *fitting.next().unwrap_or(&alone)
    }

    /// Whether the weights' gradient comes along.
    pub fn has_weights(&self) -> bool {
        self.depth.is_some()
    }

    pub fn variant(&self) -> String {
        match self.depth {
            Some(depth) => format!("{depth}x{}", self.columns),
            None => format!("data_{}", self.columns),
        }
    }

    pub fn shared(&self, precision: Precision) -> usize {
        let wide = row_bytes(self.columns, precision);
        let Some(depth) = self.depth else {
            let chunk = DATA_CHUNK_BYTES / precision.bytes();
            let dy = 2 * self.rows * (DATA_CHUNK_BYTES + row_bytes(chunk, precision));
            return dy + 2 * chunk * wide + 2 * self.rows * wide + SUMS_BYTES;
        };
        let narrow = self.narrow(depth);
        depth * wide
            + self.rows * row_bytes(narrow, precision)
            + 2 * self.rows * wide
            + 16 * narrow
            + SUMS_BYTES
    }

    /// Narrow channels in shared memory: what the warps' accumulators cover.
    fn narrow(&self, depth: usize) -> usize {
        let pairs = self.columns / 16;
        let across = (1..=8).rev().find(|across| pairs.is_multiple_of(*across)).unwrap_or(1);
        let down = (8 / across).min(depth / 16);
        16 * (depth / 16).div_ceil(down) * down
    }
}

/// The sweep's blocks: slices of the wide channels by parts of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepCut {
    pub shape: Sweep,
    /// Wide channels of a block, and how many such slices.
    pub slice: usize,
    pub slices: usize,
    /// Segments of an image; or, where that is one, images of a part.
    pub segments: usize,
    pub group: usize,
    pub parts: usize,
}

impl SweepCut {
    pub fn new(
        precision: Precision,
        images: usize,
        pixels: usize,
        inputs: usize,
        outputs: usize,
    ) -> SweepCut {
        let shape = Sweep::of(precision, inputs, outputs);
        let slice = inputs.div_ceil(inputs.div_ceil(shape.columns)).next_multiple_of(16);
        let slices = inputs.div_ceil(slice);
        let wanted = parts(images * pixels, outputs, slices, shape.rows);
        let whole = if 2 * pixels <= shape.rows { shape.rows / pixels } else { 1 };
        let (segments, group) = if wanted > images && whole == 1 {
            (wanted.div_ceil(images).min(pixels.div_ceil(shape.rows)), 1)
        } else {
            (1, images.div_ceil(wanted.min(images)).next_multiple_of(whole))
        };
        SweepCut { shape, slice, slices, segments, group, parts: images.div_ceil(group) * segments }
    }

    pub fn grid(&self) -> [usize; 3] {
        [self.slices, self.parts, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block may have on compute capability 8.6 and 8.9.
    const MOST: usize = 99 * 1024;

    #[test]
    fn blocks_fit_shared_memory() {
        for precision in Precision::ALL {
            for narrow in (8..=640).step_by(8) {
                let data = ExpandData::of(precision, narrow);
                assert!(data.shared(precision) <= MOST, "{data:?} {precision}");
                let weights = WeightPieces::expand(precision, 6272, narrow, 6 * narrow);
                assert!(weights.shared(precision, 0) <= MOST, "{weights:?} {precision}");
                assert!(weights.slice <= weights.left, "{weights:?}");
                if let Some(sweep) = ExpandSweep::of(precision, narrow, 6 * narrow) {
                    assert!(sweep.shared(precision) <= MOST, "{sweep:?} {precision}");
                }
                let sweep = Sweep::of(precision, 6 * narrow, narrow);
                assert!(sweep.shared(precision) <= MOST, "{sweep:?} {precision}");
                // The data gradient alone counts on a second chunk.
                let chunk = DATA_CHUNK_BYTES / precision.bytes();
                assert!(sweep.has_weights() || narrow > chunk, "{sweep:?} {precision}");
                let weights = WeightPieces::project(precision, 6272, 6 * narrow, narrow);
                assert!(weights.shared(precision, weights.right) <= MOST, "{weights:?} {precision}");
            }
        }
    }

    #[test]
    fn sweeps_cover_every_row() {
        for precision in Precision::ALL {
            for images in [1, 2, 3, 7, 64, 512] {
                for pixels in [1, 4, 9, 16, 25, 49, 196, 784, 12544] {
                    for (inputs, outputs) in [(32, 16), (96, 24), (240, 40), (672, 112), (1152, 320)] {
                        let cut = SweepCut::new(precision, images, pixels, inputs, outputs);
                        assert!(
                            cut.slice <= cut.shape.columns && cut.slice * cut.slices >= inputs,
                            "{cut:?}"
                        );
                        assert!(cut.segments == 1 || cut.group == 1, "{cut:?}");
                        assert!(cut.segments <= pixels.div_ceil(cut.shape.rows), "{cut:?}");
                        assert!(
                            cut.group * cut.parts >= images * cut.segments && cut.parts <= 65_535,
                            "{cut:?}"
                        );
                    }
                }
            }
        }
    }
}
