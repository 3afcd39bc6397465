//! How the forward pointwise convolutions are divided among blocks: the choice among the tiles that
//! `kernels/expand.cu` and `kernels/project.cu` list. It depends on shapes only.
//!
//! A block owns `columns` output channels and some tiles of `rows` rows, see `kernels/pointwise.cuh`. The expansion
//! writes much, and its rows of outputs are wide. The projection reads much; it reads and activates each input only
//! once if one tile holds all outputs. If there are few rows, tiles are lower, so that every multiprocessor has work.

use super::precision::Precision;
use super::sources::device::WARP;
use super::sources::instances;
use super::sources::numeric::LANES;

/// Shared memory of a block if two shall fit a multiprocessor of compute capability 8.6 (100 KiB, of which the system
/// takes 1 KiB for each block), and the maximum for one block there.
const COMFORTABLE: usize = 49 * 1024;
const MOST: usize = 99 * 1024;
/// Blocks that fill the largest GPU: two for each of an H100's multiprocessors.
const FULL: usize = 264;
/// Maximum number of tiles of rows of a block; maximum number of parts of the statistics.
const MOST_TILES: usize = 8;
const MOST_PARTS: usize = 4096;

/// The tile of a block: an instance of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The end of the kernel's name.
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    /// Warps down and across.
    down: usize,
    across: usize,
    /// Steps that are in the pipeline at once.
    stages: usize,
}

/// Tiles for wide outputs. Those of 80 and 144 columns are for few inputs (B0's 40 and 24): they divide those rows
/// evenly.
const EXPAND: [&[Tile]; 2] =
    [&instances!(EXPAND_FORWARD_FP32 as Tile), &instances!(EXPAND_FORWARD_HALF as Tile)];
/// Number of inputs from which products would slow down a block of 144 or 80 columns.
const DEEP: usize = 96;

/// Tiles for narrow outputs: up to 320 outputs fit one tile.
const PROJECT: [&[Tile]; 2] =
    [&instances!(PROJECT_FORWARD_FP32 as Tile), &instances!(PROJECT_FORWARD_HALF as Tile)];

impl Tile {
    pub fn threads(&self) -> usize {
        self.down * self.across * WARP
    }

    /// Bytes of a row of a chunk.
    fn stride(chunk: usize, precision: Precision) -> usize {
        chunk * precision.bytes() + 16
    }

    /// With room for the merge of statistics.
    fn shared(&self, chunk: usize, weight_slots: usize, precision: Precision) -> usize {
        let lines = self.stages * self.rows + weight_slots * self.columns;
        let vectors = self.columns / self.across / LANES;
        let staged = match precision {
            Precision::Fp32 => vectors * 32 + 16,
            _ => (vectors | 1) * 16,
        };
        lines * Self::stride(chunk, precision) + self.down * self.across * 8 * staged + 16
    }

    /// Input channels of a step: as many as leave room for two blocks, but at least 32 if one block has room for them.
    /// With only two stages at least 64: as many are under way as with three stages of 32.
    fn chunk(&self, inputs: usize, numbers: usize, precision: Precision) -> usize {
        let depth = inputs.next_multiple_of(16);
        let whole = if precision == Precision::Fp32 || depth > 80 { 64 } else { depth };
        let choices = [whole, 64, 48, 32, 16].map(|chunk| chunk.min(depth));
        let least = if self.stages == 2 { 64 } else { 32 };
        let fits =
            |most: usize| move |chunk: &usize| self.shared(*chunk, self.stages, precision) + numbers <= most;
        let comfortable =
            choices.iter().copied().filter(|&chunk| chunk >= depth.min(least)).find(fits(COMFORTABLE));
        comfortable
            .or_else(|| choices.iter().copied().filter(|&chunk| chunk <= least).find(fits(MOST)))
            .expect("every tile has room for 16 channels")
    }
}

/// The tile of this width for these rows: the highest that leaves enough blocks, otherwise the lowest.
fn of_width(table: &[Tile], columns: usize, rows: usize, outputs: usize) -> Tile {
    let tiles = || table.iter().filter(|t| t.columns == columns);
    let full = |t: &&Tile| rows.div_ceil(t.rows) * outputs.div_ceil(columns) >= FULL;
    tiles()
        .filter(full)
        .max_by_key(|t| t.rows)
        .or_else(|| tiles().min_by_key(|t| t.rows))
        .copied()
        .expect("a width of the table")
}

/// Tiles of rows of a block, so that the GPU is done soonest: as many tiles one after the other as blocks come one after
/// the other, times those of a block. Of equal numbers the larger, because each block begins and ends with work of its
/// own; but not so large that a quarter of the GPU is idle.
fn row_tiles(all: usize, column_tiles: usize) -> usize {
    let least = all.div_ceil(MOST_PARTS).max(1);
    let blocks = |tiles: usize| all.div_ceil(tiles) * column_tiles;
    let turns = |tiles: &usize| blocks(*tiles).div_ceil(FULL) * tiles;
    let choices = (least..=MOST_TILES.max(2 * least)).rev();
    let full = |tiles: &usize| *tiles == least || 4 * blocks(*tiles) >= 3 * FULL;
    choices.filter(full).min_by_key(turns).expect("the least number")
}

/// A launch: the work of a block and the number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub tile: Tile,
    /// Input channels of a step.
    pub chunk: usize,
    /// Chunks of weights in shared memory.
    pub weight_slots: usize,
    /// Tiles of rows of a part.
    pub row_tiles: usize,
    pub parts: usize,
    pub column_tiles: usize,
    /// Bytes.
    pub shared: usize,
}

impl Cut {
    /// For the expansion: the tile that leaves the fewest columns unused, and the wider of two equal ones.
    pub fn expand(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> Cut {
        let suits = |t: &&Tile| inputs < DEEP || ![80, 144].contains(&t.columns);
        let table = precision.of(EXPAND);
        let columns = table
            .iter()
            .filter(suits)
            .map(|t| t.columns)
            .min_by_key(|&columns| (outputs.next_multiple_of(columns), usize::MAX - columns))
            .expect("the table has tiles");
        Cut::new(of_width(table, columns, rows, outputs), precision, rows, inputs, outputs, 0)
    }

    /// For the projection: the fewest column tiles (each reads and activates all inputs), then the narrowest.
    pub fn project(precision: Precision, rows: usize, inputs: usize, outputs: usize) -> Cut {
        let table = precision.of(PROJECT);
        let columns = table
            .iter()
            .map(|t| t.columns)
            .min_by_key(|&columns| (outputs.div_ceil(columns), columns))
            .expect("the table has tiles");
        // Scale and shift of the input's batch norm.
        let numbers = 2 * 4 * inputs;
        Cut::new(of_width(table, columns, rows, outputs), precision, rows, inputs, outputs, numbers)
    }

    /// `numbers`: bytes of shared memory beside the pipeline's.
    fn new(
        tile: Tile,
        precision: Precision,
        rows: usize,
        inputs: usize,
        outputs: usize,
        numbers: usize,
    ) -> Cut {
        let chunk = tile.chunk(inputs, numbers, precision);
        let chunks = inputs.div_ceil(chunk);
        let column_tiles = outputs.div_ceil(tile.columns);
        let all = rows.div_ceil(tile.rows);
        let row_tiles = row_tiles(all, column_tiles);
        // All weights stay in shared memory if a second block still fits.
        let shared = |weight_slots| tile.shared(chunk, weight_slots, precision) + numbers;
        let stay = row_tiles > 1 && shared(chunks) <= COMFORTABLE;
        let weight_slots = if chunks <= tile.stages || stay { chunks } else { tile.stages };
        Cut {
            tile,
            chunk,
            weight_slots,
            row_tiles,
            parts: all.div_ceil(row_tiles),
            column_tiles,
            shared: shared(weight_slots),
        }
    }

    pub fn grid(&self) -> [usize; 3] {
        [self.column_tiles, self.parts, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, BatchNormConfig, Padding, Variant};
    use crate::ops::cuda::batch_norm::MOST_ARRIVALS;
    use crate::ops::cuda::sources::batch_norm::FAN;

    /// Rows, inputs and outputs of all expansions (and heads), and of all projections.
    fn layers(images: usize) -> [Vec<[usize; 3]>; 2] {
        let mut layers = [Vec::new(), Vec::new()];
        for variant in Variant::ALL {
            let size = variant.scaling().resolution;
            let net = Architecture::new(variant, 1000, size, Padding::Symmetric, BatchNormConfig::default())
                .unwrap();
            for block in &net.blocks {
                let [before, after] =
                    [block.window.input, block.window.output].map(|side| images * side * side);
                if block.expands {
                    layers[0].push([before, block.input, block.expanded]);
                }
                layers[1].push([after, block.expanded, block.output]);
            }
            let side = net.blocks.last().unwrap().window.output;
            layers[0].push([images * side * side, net.final_channels(), net.head_channels]);
        }
        layers
    }

    fn cuts(images: usize, precision: Precision) -> impl Iterator<Item = ([usize; 3], Cut)> {
        let [expand, project] = layers(images);
        let cut = move |of: fn(Precision, usize, usize, usize) -> Cut| {
            move |layer: [usize; 3]| (layer, of(precision, layer[0], layer[1], layer[2]))
        };
        expand.into_iter().map(cut(Cut::expand)).chain(project.into_iter().map(cut(Cut::project)))
    }

    #[test]
    fn cuts_of_all_layers_fit_shared_memory_and_cover_the_rows() {
        for (images, precision) in
            [1, 3, 64, 512].into_iter().flat_map(|i| Precision::ALL.map(|precision| (i, precision)))
        {
            for ([rows, inputs, outputs], cut) in cuts(images, precision) {
                let what = format!("{rows}×{inputs} to {outputs} in {precision}: {cut:?}");
                assert!(cut.shared <= MOST && cut.chunk % 16 == 0, "{what}");
                assert!(cut.parts <= MOST_PARTS && cut.column_tiles * cut.tile.columns >= outputs, "{what}");
                let own = cut.row_tiles * cut.tile.rows;
                assert!(cut.parts * own >= rows && (cut.parts - 1) * own < rows, "{what}");
                let arrivals = cut.column_tiles * (cut.parts.div_ceil(FAN) + 1);
                assert!(arrivals <= MOST_ARRIVALS, "{what}");
                let slots = [inputs.div_ceil(cut.chunk), cut.tile.stages];
                assert!(slots.contains(&cut.weight_slots), "{what}");
            }
        }
    }

    /// In the half types each wide element is read and activated once, up to 320 outputs.
    #[test]
    fn projections_have_one_column_tile_up_to_320_outputs() {
        for [rows, inputs, outputs] in layers(128)[1].iter().copied() {
            let cut = Cut::project(Precision::Fp16, rows, inputs, outputs);
            assert_eq!(cut.column_tiles, outputs.div_ceil(320), "{inputs} to {outputs}");
        }
    }

    #[test]
    fn blocks_of_large_batches_fill_the_largest_gpu() {
        for ([rows, inputs, outputs], cut) in cuts(128, Precision::Fp16) {
            let blocks = cut.parts * cut.column_tiles;
            assert!(blocks >= 192, "{rows}×{inputs} to {outputs}: {blocks} blocks, {cut:?}");
        }
    }
}
