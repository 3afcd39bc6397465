// The pointwise expansion (and the head's convolution): y [M, N] = x [M, K]·W [N, K]ᵀ and y's statistics.
//
// Forward. The idea is in pointwise.cuh. N is about 6·K, so nearly all bytes are y's: a block writes whole pieces of
// its rows, at least 96 bytes of each. Column tiles of the same rows are neighbours in the grid: x comes from memory
// once, and from the second-level cache for the other column tiles. fp16, an image of B0 (224²):
//
//   map    K → N        layers   x MB    y MB   Mflop   tile            x read by
//   112²   16 → 96         1     0.401   2.408    38    128×96           1 column tile
//   56²    24 → 144        2     0.301   1.806    43    64×144           1
//   28²    40 → 240        2     0.125   0.753    30    64×80            3
//   14²    80 → 480        3     0.094   0.564    45    128×96, 64×96    5
//   14²    112 → 672       3     0.132   0.790    88    128×96, 64×96    7
//   7²     192 → 1152      4     0.075   0.452    87    128×128, 64×128  9
//   7²     320 → 1280      1     0.031   0.125    40    128×128, 64×128  10
//
// (layers of a kind together; the higher of two tiles where it leaves two blocks for each multiprocessor of the
// largest GPU). In all 8.06 MB and 0.37 Gflop an image: 2.7 µs at 3.0 TB/s, 11.5 µs at 0.70 TB/s. Weights come from the
// second-level cache, once a tile (0.8 MB for the largest layer). Statistics: 8·N bytes a part, at most 4 % of y with
// one tile a part. With tiles filled up 197 M multiply-adds, 0.8 µs on an H100's tensor cores at 1024 a cycle and
// multiprocessor, 6.6 µs on an RTX 3080's at 256, and 17 M fp32 instructions: on the latter, layers from 112
// inputs on are bound by products; on the former, those of 7² about as much as by memory. Last measured share: not yet
// measured.
//
// Backward. dx [M, K] = dy·W (+ the shortcut's gradient), dW [N, K] = dyᵀ·x and the sums of the batch norm before, with dy
// from du and y by batch norm's backward while they are loaded. Three idioms, see expand_backward.cuh and
// pointwise_backward.cuh: up to 240 wide and 48 narrow channels one sweep does it all and reads du and y once; beyond, dW's
// accumulators are too many for a block that must see all of N to make dx, and two kernels each read du and y. fp16,
// an image of B0 (224²), MB of du and y and of everything narrow (x, previous y, dx, shortcut):
//
//   map    K → N        layers   wide MB  narrow MB  Mflop   blocks
//   112²   16 → 96         1      4.817     1.204      77    sweep 96×16, 64 rows
//   56²    24 → 144        2      3.613     1.054      87    sweep 144×32, 32 rows
//   28²    40 → 240        2      1.505     0.439      60    sweep 240×48, 32 rows
//   14²    80 → 480        3      2.258     0.345      90    dx 128×80, dW 128×80 of dy by x
//   14²    112 → 672       3      3.161     0.483     177    dx 128×112, dW 128×112
//   7²     192 → 1152      4      1.806     0.282     173    dx 64×192, dW 64×192
//   7²     320 → 1280      1      0.502     0.094      80    dx 64×320, dW 64×320
//
// In all 21.6 MB (3.9 of them because of the second reading) and 0.75 Gflop an image: 7.2 µs at 3.0 TB/s, 31 µs at
// 0.70 TB/s. The parts' sums of dW add at most an eighth of du where there are rows enough to fill the GPU that way. With
// tiles filled up 405 M multiply-adds, 1.7 µs on an H100's tensor cores and 14 µs on an RTX 3080's, and 29 M fp32
// instructions: only 320 → 1280 on an RTX 3080 is bound by products. Last measured share: not yet measured.
#include "expand_backward.cuh"
#include "pointwise.cuh"

#define EXPAND_FORWARD_FIELDS(F) \
    POINTWISE_POINTERS(F)        \
    POINTWISE_NUMBERS(F)
ARGUMENTS(ExpandForwardArguments, EXPAND_FORWARD_FIELDS)

// One instance: the tile, its warps down and across, stages, blocks a multiprocessor. The table is in pointwise.rs.
#define EXPAND_FORWARD(rows, columns, down, across, stages, blocks, T, suffix)                \
    KERNEL_BLOCKS(expand_forward_##rows##x##columns##_##suffix, WARP * (down) * (across), blocks, \
                  ExpandForwardArguments) {                                                   \
        using Tile = PointwiseTile<rows, columns, down, across, stages>;                      \
        pointwise_forward<T, Tile>(args, PointwisePlain<T, Tile>());                          \
    }
#define EXPAND_FORWARD_HALF(rows, columns, down, across, stages, blocks)      \
    EXPAND_FORWARD(rows, columns, down, across, stages, blocks, f16, f16)     \
    EXPAND_FORWARD(rows, columns, down, across, stages, blocks, bf16, bf16)

EXPAND_FORWARD_HALF(64, 144, 2, 3, 3, 2)
EXPAND_FORWARD_HALF(128, 128, 4, 2, 3, 2)
EXPAND_FORWARD_HALF(64, 128, 2, 2, 3, 3)
EXPAND_FORWARD_HALF(128, 96, 4, 2, 3, 2)
EXPAND_FORWARD_HALF(64, 96, 2, 2, 3, 4)
EXPAND_FORWARD_HALF(64, 80, 4, 1, 3, 4)
EXPAND_FORWARD(64, 96, 2, 2, 3, 3, float, f32)
EXPAND_FORWARD(64, 80, 4, 1, 3, 3, float, f32)

// ---- backward ---------------------------------------------------------------------------------------------

#define EXPAND_DATA(columns, down, across, m, p, chunk, separate, blocks, T, suffix)                             \
    KERNEL_BLOCKS(expand_backward_data_##columns##_##suffix, WARP * (down) * (across), blocks,                   \
                  ExpandBackwardDataArguments) {                                                                 \
        using Shape = DataShape<T, down, across, m, p, chunk>;                                                   \
        static_assert(Shape::COLUMNS == columns, "the name says the columns");                                   \
        expand_backward_data<Shape, separate>(args);                                                             \
    }
#define EXPAND_DATA_HALF(columns, down, across, m, p, chunk, separate, blocks)    \
    EXPAND_DATA(columns, down, across, m, p, chunk, separate, blocks, f16, f16)   \
    EXPAND_DATA(columns, down, across, m, p, chunk, separate, blocks, bf16, bf16)

EXPAND_DATA_HALF(48, 4, 1, 1, 3, 64, true, 4)
EXPAND_DATA_HALF(80, 8, 1, 1, 5, 32, false, 2)
EXPAND_DATA_HALF(112, 8, 1, 1, 7, 32, false, 2)
EXPAND_DATA_HALF(160, 4, 2, 1, 5, 32, false, 2)
EXPAND_DATA_HALF(192, 2, 4, 2, 3, 32, false, 2)
EXPAND_DATA_HALF(320, 2, 4, 2, 5, 32, false, 1)
EXPAND_DATA_HALF(640, 1, 8, 2, 5, 32, false, 1)
EXPAND_DATA(32, 4, 1, 1, 2, 32, true, 1, float, f32)
EXPAND_DATA(112, 8, 1, 1, 7, 16, false, 1, float, f32)
EXPAND_DATA(320, 2, 4, 1, 5, 16, false, 1, float, f32)
EXPAND_DATA(640, 1, 8, 1, 5, 16, false, 1, float, f32)

#define EXPAND_WEIGHTS(left, right, down, across, m, p, depth, blocks, T, suffix)                          \
    KERNEL_BLOCKS(expand_backward_weights_##left##x##right##_##suffix, WARP * (down) * (across), blocks,   \
                  ExpandBackwardWeightsArguments) {                                                        \
        using Shape = WeightShape<T, down, across, m, p, depth>;                                           \
        static_assert(Shape::LEFT == left && Shape::RIGHT == right, "the name says the piece");            \
        expand_backward_weights<Shape>(args);                                                              \
    }
#define EXPAND_WEIGHTS_HALF(left, right, down, across, m, p, depth, blocks)    \
    EXPAND_WEIGHTS(left, right, down, across, m, p, depth, blocks, f16, f16)   \
    EXPAND_WEIGHTS(left, right, down, across, m, p, depth, blocks, bf16, bf16)

EXPAND_WEIGHTS_HALF(128, 48, 8, 1, 1, 3, 32, 2)
EXPAND_WEIGHTS_HALF(128, 80, 8, 1, 1, 5, 32, 2)
EXPAND_WEIGHTS_HALF(128, 112, 8, 1, 1, 7, 32, 2)
EXPAND_WEIGHTS_HALF(64, 160, 4, 2, 1, 5, 32, 2)
EXPAND_WEIGHTS_HALF(64, 192, 4, 2, 1, 6, 32, 2)
EXPAND_WEIGHTS_HALF(64, 320, 4, 2, 1, 10, 32, 1)
EXPAND_WEIGHTS(128, 32, 8, 1, 1, 2, 16, 1, float, f32)
EXPAND_WEIGHTS(128, 112, 8, 1, 1, 7, 16, 1, float, f32)
EXPAND_WEIGHTS(64, 320, 4, 2, 1, 10, 16, 1, float, f32)

#define EXPAND_SWEEP(wide, narrow, rows, blocks, T, suffix)                                                    \
    KERNEL_BLOCKS(expand_backward_##wide##x##narrow##_##suffix, 256, blocks, ExpandBackwardArguments) {       \
        expand_backward<ExpandSweepShape<T, wide, narrow, rows>>(args);                                        \
    }
#define EXPAND_SWEEP_HALF(wide, narrow, rows, blocks)     \
    EXPAND_SWEEP(wide, narrow, rows, blocks, f16, f16)    \
    EXPAND_SWEEP(wide, narrow, rows, blocks, bf16, bf16)

EXPAND_SWEEP_HALF(96, 16, 48, 2)
EXPAND_SWEEP_HALF(144, 32, 32, 2)
EXPAND_SWEEP_HALF(240, 48, 32, 2)
