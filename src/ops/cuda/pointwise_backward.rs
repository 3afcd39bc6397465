//! How the backward pointwise convolutions are divided among blocks: the choice among the shapes that
//! `kernels/expand.cu` and `kernels/project.cu` list, see `kernels/pointwise_backward.cuh`. It depends on shapes only.

use super::precision::Precision;
use super::sources::device::WARP;
use super::sources::instances;
use super::sources::numeric::{LANES, SWEEP_THREADS};

/// Blocks that fill the largest GPU: two for each of an H100's multiprocessors.
const FULL: usize = 264;
/// Maximum number of blocks: with more work, each takes several tiles.
const PLENTY: usize = 2112;
/// Minimum rows of a part for each narrow channel. Then the parts' sums of the weights' gradient, written and read
/// once, cost at most an eighth of one half-precision tensor.
const THRIFTY: usize = 16;

/// Bytes of a shared row of `columns` elements: an odd number of 16-byte units.
fn row_bytes(columns: usize, precision: Precision) -> usize {
    ((columns * precision.bytes()).div_ceil(16) | 1) * 16
}

/// Number of parts of the rows if `slices` blocks share each part: as many blocks as fill the largest GPU once or several
/// times, or a few less, so that no block runs while most of the GPU is idle. Half of such a number fills an RTX 3080 as
/// well.
fn parts(rows: usize, narrow: usize, slices: usize, tile: usize) -> usize {
    let once = (FULL / slices).max(1);
    let times = (rows / (THRIFTY * narrow) / once).clamp(1, PLENTY / FULL);
    (times * once).min(rows.div_ceil(tile))
}

/// A block of the expansion's sweep, `ExpandSweepShape` in the kernels: it has all channels of both sides, in the
/// half types only. Rows are chosen so that two blocks of the smaller shapes fit 100 KiB of shared memory, of which
/// the system takes 1 KiB for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpandSweep {
    /// The end of the kernel's name.
    pub name: &'static str,
    wide: usize,
    narrow: usize,
    rows: usize,
}

/// Those that can compute y again, and those for more channels, which cannot.
const OR_RECOMPUTE: [&[ExpandSweep]; 2] = [&[], &instances!(EXPAND_SWEEP_OR_RECOMPUTE_HALF as ExpandSweep)];
const EXPAND_SWEEP: [&[ExpandSweep]; 2] = [&[], &instances!(EXPAND_SWEEP_HALF as ExpandSweep)];

impl ExpandSweep {
    /// None if there are too many channels.
    pub fn of(precision: Precision, inputs: usize, outputs: usize) -> Option<ExpandSweep> {
        let mut all = precision.of(OR_RECOMPUTE).iter().chain(precision.of(EXPAND_SWEEP));
        all.find(|shape| shape.fits(inputs, outputs)).copied()
    }

    /// Whether there is a sweep that computes y again.
    pub fn recomputes(precision: Precision, inputs: usize, outputs: usize) -> bool {
        precision.of(OR_RECOMPUTE).iter().any(|shape| shape.fits(inputs, outputs))
    }

    fn fits(&self, inputs: usize, outputs: usize) -> bool {
        self.narrow >= inputs && self.wide >= outputs
    }

    /// Each block writes its own sums, also those of the weights' gradient.
    pub fn blocks(&self, rows: usize, inputs: usize) -> usize {
        parts(rows, inputs, 1, self.rows)
    }

    pub fn shared(&self, precision: Precision) -> usize {
        self.shared_with(precision, 2 * self.rows * self.wide * precision.bytes())
    }

    /// If y is computed again: only du is copied, to rows that are as far apart as dy's.
    pub fn shared_to_recompute(&self, precision: Precision) -> usize {
        self.shared_with(precision, self.rows * row_bytes(self.wide, precision))
    }

    /// `copied`: bytes of the wide tensors' tiles.
    fn shared_with(&self, precision: Precision, copied: usize) -> usize {
        let tiles = (self.wide / 16).div_ceil(8);
        let covered = 16 * tiles * (self.wide / 16).div_ceil(tiles);
        let narrow = row_bytes(self.narrow, precision);
        let past = (covered - self.wide) * precision.bytes();
        // At the end the sums lie there.
        let copied = copied.max(SWEEP_THREADS * 2 * LANES * 4);
        copied + self.rows * (row_bytes(self.wide, precision) + 3 * narrow) + past + self.wide * (narrow + 16)
    }
}

/// A block of a weights' gradient: `WeightShape` in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightShape {
    /// The end of the kernel's name.
    pub name: &'static str,
    /// Channels of dy, and of the tensor by which dy is multiplied.
    left: usize,
    pub right: usize,
    /// Warps along both.
    down: usize,
    across: usize,
    depth: usize,
}

const PROJECT_WEIGHTS: [WeightShape; 2] =
    [instances!(PROJECT_WEIGHTS_FP32 as WeightShape)[0], instances!(PROJECT_WEIGHTS_HALF as WeightShape)[0]];

impl WeightShape {
    pub fn threads(&self) -> usize {
        self.down * self.across * WARP
    }
}

/// The blocks of a weights' gradient: pieces of the gradient × parts of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightPieces {
    pub shape: WeightShape,
    /// Channels of dy of a block.
    pub slice: usize,
    pub pieces: usize,
    pub parts: usize,
}

impl WeightPieces {
    pub fn project(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> WeightPieces {
        let pieces = WeightPieces::of(precision.of(PROJECT_WEIGHTS), inputs, outputs);
        let parts = parts(rows, outputs, pieces.pieces, 2 * pieces.shape.depth);
        WeightPieces { parts, ..pieces }
    }

    fn of(shape: WeightShape, inputs: usize, outputs: usize) -> WeightPieces {
        let slice = outputs.div_ceil(outputs.div_ceil(shape.left)).next_multiple_of(16);
        let pieces = outputs.div_ceil(slice) * inputs.div_ceil(shape.right);
        WeightPieces { shape, slice, pieces, parts: 1 }
    }

    pub fn grid(&self) -> [usize; 3] {
        [self.pieces, self.parts, 1]
    }

    /// `raw`: channels that are staged besides those of dy.
    pub fn shared(&self, precision: Precision, raw: usize) -> usize {
        let WeightShape { left, right, depth, .. } = self.shape;
        let [left, right] = [left, right].map(|channels| row_bytes(channels, precision));
        depth * (raw * precision.bytes() + 3 * left + 2 * right)
    }
}

/// Blocks of the expansion's backward pass with the gradients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SplitShape {
    /// The end of the kernel's name.
    name: &'static str,
    /// Of the data gradient: `DataShape` in the kernels. `columns`: maximum of narrow channels.
    rows: usize,
    columns: usize,
    /// Warps down and across.
    down: usize,
    across: usize,
    chunk: usize,
    /// Maximum number of the weights' gradient's blocks: about as many as half of the largest GPU has places for.
    max: usize,
}

impl SplitShape {
    /// `SplitWeights` in the kernels.
    fn weights(&self) -> WeightShape {
        let [left, right] = [if self.columns > 112 { 64 } else { 128 }, self.columns.min(320)];
        let across = if right > 128 { 2 } else { 1 };
        let down = self.down * self.across / across;
        WeightShape { name: self.name, left, right, down, across, depth: self.chunk }
    }
}

const EXPAND_SPLIT: [&[SplitShape]; 2] =
    [&instances!(EXPAND_SPLIT_FP32 as SplitShape), &instances!(EXPAND_SPLIT_HALF as SplitShape)];

/// The blocks of a launch that makes both gradients of the expansion, each in blocks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpandSplit {
    shape: SplitShape,
    /// Of the data gradient.
    pub data_blocks: usize,
    pub weights: WeightPieces,
    /// Whether the data gradient's blocks are the first.
    pub data_first: bool,
}

impl ExpandSplit {
    pub fn new(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> ExpandSplit {
        let fits = |shape: &&SplitShape| shape.columns >= inputs;
        let shape = *precision.of(EXPAND_SPLIT).iter().find(fits).expect("no more than 640 narrow channels");
        let tiles = rows.div_ceil(shape.rows);
        let data_blocks = tiles.min(PLENTY);
        let weights = WeightPieces::of(shape.weights(), inputs, outputs);
        // Together the pieces have as many values of dy as the data gradient's blocks: these are of equal length, or there are
        // so many of them that few and long ones beside them do no harm and leave few partial sums.
        let parts = data_blocks.min(shape.max) / weights.pieces;
        let parts = parts.clamp(1, rows.div_ceil(2 * shape.chunk));
        let weights = WeightPieces { parts, ..weights };
        // Values of dy: of a block of the data gradient, and of all parts of a piece.
        let [work, all] = [tiles.div_ceil(data_blocks) * shape.rows * outputs, rows * weights.slice];
        ExpandSplit { shape, data_blocks, weights, data_first: work * weights.parts > all }
    }

    /// The same without the data gradient's blocks.
    pub fn weights_alone(self) -> ExpandSplit {
        ExpandSplit { data_blocks: 0, ..self }
    }

    pub fn name(&self) -> &'static str {
        self.shape.name
    }

    pub fn threads(&self) -> usize {
        self.shape.down * self.shape.across * WARP
    }

    pub fn blocks(&self) -> usize {
        self.data_blocks + self.weights.pieces * self.weights.parts
    }

    /// Number of the data gradient's first block.
    pub fn first_data(&self) -> usize {
        if self.data_first { 0 } else { self.blocks() - self.data_blocks }
    }

    pub fn shared(&self, precision: Precision) -> usize {
        let SplitShape { rows, columns, across, chunk, .. } = self.shape;
        let row = row_bytes(columns, precision);
        let factors = 3 * rows * row_bytes(chunk, precision) + 2 * chunk * row;
        // Five numbers of batch norm for each channel of two chunks, see `ChunkNorms`.
        let norms = if across > 1 { 2 * 5 * chunk * 4 } else { 0 };
        (factors.max(rows * row) + norms).max(self.weights.shared(precision, 0))
    }
}

/// A block of the projection's sweep: `SweepShape` in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectSweep {
    name: &'static str,
    /// Maximum of narrow channels, and of wide ones.
    depth: usize,
    slice: usize,
    rows: usize,
    /// Warps that divide the rows; a warp has 16 wide channels.
    down: usize,
}

/// A block of the projection's data gradient alone, `DataShape` in the kernels, for so many narrow channels that their
/// accumulators would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectData {
    name: &'static str,
    rows: usize,
    columns: usize,
    down: usize,
    across: usize,
    chunk: usize,
}

const PROJECT_SWEEP: [&[ProjectSweep]; 2] =
    [&instances!(PROJECT_SWEEP_FP32 as ProjectSweep), &instances!(PROJECT_SWEEP_HALF as ProjectSweep)];
/// The first shapes of each table are for few wide channels only: how many.
const FEW: [usize; 2] = [0, 3];
const PROJECT_DATA: [ProjectData; 2] =
    [instances!(PROJECT_DATA_FP32 as ProjectData)[0], instances!(PROJECT_DATA_HALF as ProjectData)[0]];

/// A block of the projection's backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectShape {
    Sweep(ProjectSweep),
    Data(ProjectData),
}

impl ProjectShape {
    pub fn of(precision: Precision, inputs: usize, outputs: usize) -> ProjectShape {
        let (few, all) = precision.of(PROJECT_SWEEP).split_at(precision.of(FEW));
        let few = few.iter().filter(|shape| shape.slice >= inputs);
        match few.chain(all).find(|shape| shape.depth >= outputs) {
            Some(shape) => ProjectShape::Sweep(*shape),
            None => ProjectShape::Data(precision.of(PROJECT_DATA)),
        }
    }

    /// Whether the kernel also makes the weights' gradient.
    pub fn has_weights(&self) -> bool {
        matches!(self, ProjectShape::Sweep(_))
    }

    /// The end of the kernel's name.
    pub fn name(&self) -> String {
        match self {
            ProjectShape::Sweep(shape) => shape.name.into(),
            ProjectShape::Data(shape) => format!("data_{}", shape.name),
        }
    }

    pub fn threads(&self) -> usize {
        match self {
            ProjectShape::Sweep(shape) => shape.slice / 16 * shape.down * WARP,
            ProjectShape::Data(shape) => shape.down * shape.across * WARP,
        }
    }

    /// Wide channels and rows of a tile.
    fn tile(&self) -> [usize; 2] {
        match self {
            ProjectShape::Sweep(shape) => [shape.slice, shape.rows],
            ProjectShape::Data(shape) => [shape.columns, shape.rows],
        }
    }

    pub fn shared(&self, precision: Precision) -> usize {
        let [slice, rows] = self.tile();
        let wide = row_bytes(slice, precision);
        // Batch norm's numbers of x.
        let numbers = 3 * 4 * slice;
        numbers
            + match self {
                ProjectShape::Sweep(ProjectSweep { depth, down, .. }) => {
                    let narrow = 16 * (depth / 16).div_ceil(*down) * down;
                    let dy = 2 * row_bytes(narrow, precision) + depth * precision.bytes();
                    let sums = if *down > 1 { down * 5 * slice * 4 } else { 0 };
                    depth * (wide + 3 * 4) + rows * (2 * wide + dy) + sums
                }
                ProjectShape::Data(ProjectData { chunk, .. }) => {
                    rows * (wide + 3 * row_bytes(*chunk, precision)) + 2 * chunk * wide
                }
            }
    }
}

/// The sweep's blocks: slices of the wide channels × parts of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepCut {
    pub shape: ProjectShape,
    /// Wide channels of a block, and the number of such slices.
    pub slice: usize,
    pub slices: usize,
    /// Segments of an image; if there is one, the images of a part.
    pub segments: usize,
    pub group: usize,
    /// Images of a tile of rows, and how many rows each has there.
    pub whole: usize,
    pub span: usize,
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
        let shape = ProjectShape::of(precision, inputs, outputs);
        let [widest, rows] = shape.tile();
        let slice = inputs.div_ceil(inputs.div_ceil(widest)).next_multiple_of(16);
        let slices = inputs.div_ceil(slice);
        let wanted = parts(images * pixels, outputs, slices, rows);
        let span = pixels.next_power_of_two().max(8);
        let whole = (rows / span).max(1);
        let (segments, group) = if wanted >= 2 * images && whole == 1 {
            (wanted.div_ceil(images).min(pixels.div_ceil(rows)), 1)
        } else {
            (1, images.div_ceil(wanted.min(images)).next_multiple_of(whole))
        };
        let parts = images.div_ceil(group) * segments;
        SweepCut { shape, slice, slices, segments, group, whole, span, parts }
    }

    pub fn grid(&self) -> [usize; 3] {
        [self.slices, self.parts, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::batch_norm::MOST_ARRIVALS;

    /// Maximum shared memory of a block on compute capability 8.6 and 8.9.
    const MOST: usize = 99 * 1024;

    #[test]
    fn blocks_fit_shared_memory() {
        for precision in Precision::ALL {
            for narrow in (8..=640).step_by(8) {
                let split = ExpandSplit::new(precision, 6272, narrow, 6 * narrow);
                assert!(split.shared(precision) <= MOST, "{split:?} {precision}");
                let weights = split.weights;
                assert!(weights.slice <= weights.shape.left, "{split:?}");
                assert!(weights.pieces * weights.parts <= split.shape.max.max(weights.pieces), "{split:?}");
                if let Some(sweep) = ExpandSweep::of(precision, narrow, 6 * narrow) {
                    let most = sweep.shared(precision).max(sweep.shared_to_recompute(precision));
                    assert!(most <= MOST, "{sweep:?} {precision}");
                }
                let sweep = ProjectShape::of(precision, 6 * narrow, narrow);
                assert!(sweep.shared(precision) <= MOST, "{sweep:?} {precision}");
                // The data gradient alone needs at least two chunks.
                assert!(
                    !matches!(sweep, ProjectShape::Data(shape) if narrow <= shape.chunk),
                    "{sweep:?} {precision}"
                );
                let weights = WeightPieces::project(precision, 6272, 6 * narrow, narrow);
                assert!(weights.shared(precision, weights.shape.right) <= MOST, "{weights:?} {precision}");
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
                            cut.slice <= cut.shape.tile()[0] && cut.slice * cut.slices >= inputs,
                            "{cut:?}"
                        );
                        assert!(cut.segments == 1 || cut.group == 1, "{cut:?}");
                        assert!(cut.segments == 1 || images * cut.slices <= MOST_ARRIVALS, "{cut:?}");
                        let fits = cut.span >= pixels && cut.whole * cut.span <= cut.shape.tile()[1];
                        assert!(cut.whole == 1 || fits && cut.group.is_multiple_of(cut.whole), "{cut:?}");
                        assert!(cut.segments <= pixels.div_ceil(cut.shape.tile()[1]), "{cut:?}");
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
