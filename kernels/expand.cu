// The pointwise expansion (and the head's convolution): y [M, N] = x [M, K]·W [N, K]ᵀ and y's statistics.
//
// Forward. The idea is in pointwise.cuh. N is about 6·K, so nearly all bytes are those of y: a block writes at least
// 96 consecutive bytes of each of its rows. Column tiles of the same rows are neighbours in the grid, so x is read
// from memory once, and from the second-level cache by the other column tiles. fp16, an image of B0 (224²):
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
// (Layers of the same shape together; of two tiles the higher is used if it leaves two blocks for each multiprocessor
// of the largest GPU.) Total: 8.06 MB and 0.37 Gflop an image: 2.7 µs at 3.0 TB/s, 11.5 µs at 0.70 TB/s. Weights are
// read from the second-level cache, once a tile (0.8 MB for the largest layer). Statistics: 8·N bytes a part, at most
// 4 % of y with one tile a part. With padding to whole tiles there are 197 M multiply-adds: 0.8 µs on an H100's
// tensor cores at 1024 per cycle and multiprocessor, 6.6 µs on an RTX 3080's at 256; and 17 M fp32 instructions. On
// an RTX 3080 layers from 112 inputs on are bound by products; on an H100 those of 7² are bound by products and
// memory about equally. Last measured share: not yet measured.
//
// Backward. dx [M, K] = dy·W (+ the shortcut's gradient), dW [N, K] = dyᵀ·x and the sums of the batch norm before. dy
// is computed from du and y by batch norm's backward while they are loaded, see expand_backward.cuh, expand_sweep.cuh
// and pointwise_backward.cuh. Up to 240 wide and 48 narrow channels one sweep makes both gradients and reads du and y
// once. With more channels, a block that sees all of N to make dx has no room for the accumulators of dW: some blocks
// of the launch make dx, the others dW, and both read du and y. fp16, an image of B0 (224²), MB of du and y (wide) and
// of x, previous y, dx and shortcut (narrow):
//
//   map    K → N        layers   wide MB  narrow MB  Mflop   blocks
//   112²   16 → 96         1      4.817     1.204      77    sweep 96×16, 48 rows
//   56²    24 → 144        2      3.613     1.054      87    sweep 144×32, 32 rows
//   28²    40 → 240        2      1.505     0.439      60    sweep 240×48, 32 rows
//   14²    80 → 480        3      2.258     0.345      90    dx 128×80, dW 128×80 of dy by x
//   14²    112 → 672       3      3.161     0.483     177    dx 128×112, dW 128×112
//   7²     192 → 1152      4      1.806     0.282     173    dx 64×192, dW 64×192
//   7²     320 → 1280      1      0.502     0.094      80    dx 64×320, dW 64×320
//
// Total: 21.6 MB (3.9 of them for the second reading) and 0.75 Gflop an image: 7.2 µs at 3.0 TB/s, 31 µs at 0.70
// TB/s. The parts' sums of dW add at most an eighth of du if there are enough rows to fill the GPU that way. With
// padding to whole tiles there are 405 M multiply-adds: 1.7 µs on an H100's tensor cores and 14 µs on an RTX 3080's;
// and 29 M fp32 instructions. Only 320 → 1280 on an RTX 3080 is bound by products. Last measured share: not yet
// measured.
//
// Predicted by tools/count for the eleven layers from 80 narrow channels on, µs a step, launches at 3 µs each included:
//
//                                                      launches  H100, 512   H100, 32   RTX 3080, 512   RTX 3080, 32
//   1. dx, then dW                                        22       2003        510          7041            958
//   2. both in a launch, dW with as many blocks as
//      fill what dx leaves of the GPU                     11       1891        424          7042             –
//   3. the same, dW with as many blocks as dx, at
//      most half of the GPU's places                      11       1973        424          6937            643
//
// 2 writes 97 MB more of partial sums, and the launches that add them take 32 µs more on an H100, 138 on an RTX 3080.
// In 1 dx's tile has shared memory of its own and du is staged beside dy: then an RTX 3080 has room for one block of 80
// or 112 channels, in 2 and 3 for two.
#include "expand_sweep.cuh"
#include "pointwise.cuh"

#define EXPAND_FORWARD_FIELDS(F) \
    POINTWISE_POINTERS(F)        \
    POINTWISE_NUMBERS(F)
ARGUMENTS(ExpandForwardArguments, EXPAND_FORWARD_FIELDS)

// A tile of rows × columns, its warps down and across, the stages of its pipeline; src/ops/cuda/pointwise.rs chooses.
#define EXPAND_FORWARD(T, name, Shape)                                                      \
    KERNEL_BLOCKS(expand_forward_##name, WARP * Shape::down * Shape::across, Shape::blocks, \
                  ExpandForwardArguments) {                                                 \
        using Tile = PointwiseTile<Shape>;                                                  \
        pointwise_forward<T, Tile>(args, PointwisePlain<T, Tile>());                        \
    }
INSTANCE_HALF(EXPAND_FORWARD, 64x144, rows = 64, columns = 144, down = 2, across = 3, stages = 3, blocks = 2)
INSTANCE_HALF(EXPAND_FORWARD, 128x128, rows = 128, columns = 128, down = 4, across = 2, stages = 3, blocks = 2)
INSTANCE_HALF(EXPAND_FORWARD, 64x128, rows = 64, columns = 128, down = 2, across = 2, stages = 3, blocks = 3)
INSTANCE_HALF(EXPAND_FORWARD, 128x96, rows = 128, columns = 96, down = 4, across = 2, stages = 3, blocks = 2)
INSTANCE_HALF(EXPAND_FORWARD, 64x96, rows = 64, columns = 96, down = 2, across = 2, stages = 3, blocks = 4)
INSTANCE_HALF(EXPAND_FORWARD, 64x80, rows = 64, columns = 80, down = 4, across = 1, stages = 3, blocks = 4)
INSTANCE_FP32(EXPAND_FORWARD, 64x96, rows = 64, columns = 96, down = 2, across = 2, stages = 3, blocks = 3)
INSTANCE_FP32(EXPAND_FORWARD, 64x80, rows = 64, columns = 80, down = 4, across = 1, stages = 3, blocks = 3)

// ---- backward ---------------------------------------------------------------------------------------------

// How the other blocks divide the weights' gradient: `left` channels of dy by all narrow ones, or by half of 640.
template <class Shape>
struct SplitWeights {
    static constexpr int left = Shape::columns > 112 ? 64 : 128, right = Shape::columns < 320 ? Shape::columns : 320;
    static constexpr int across = right > 128 ? 2 : 1, down = Shape::down * Shape::across / across;
    static constexpr int depth = Shape::chunk;
};

// The gradients apart; src/ops/cuda/pointwise_backward.rs chooses among these and the following. The numbers are those
// of the data gradient's blocks, and how many blocks of the weights' gradient there are beside them at most.
#define EXPAND_SPLIT(T, name, Shape)                                                                          \
    KERNEL_BLOCKS(expand_backward_split_##name, WARP * Shape::down * Shape::across, Shape::blocks,            \
                  ExpandBackwardSplitArguments) {                                                             \
        expand_backward_split<DataShape<T, Shape>, WeightShape<T, SplitWeights<Shape>>>(args);                \
    }
INSTANCE_HALF(EXPAND_SPLIT, 128x48, rows = 128, columns = 48, down = 8, across = 1, chunk = 32, max = 132, blocks = 2)
INSTANCE_HALF(EXPAND_SPLIT, 128x80, rows = 128, columns = 80, down = 8, across = 1, chunk = 32, max = 132, blocks = 2)
INSTANCE_HALF(EXPAND_SPLIT, 128x112, rows = 128, columns = 112, down = 8, across = 1, chunk = 32, max = 132, blocks = 2)
INSTANCE_HALF(EXPAND_SPLIT, 64x160, rows = 64, columns = 160, down = 4, across = 2, chunk = 32, max = 132, blocks = 2)
INSTANCE_HALF(EXPAND_SPLIT, 64x192, rows = 64, columns = 192, down = 1, across = 4, chunk = 32, max = 198, blocks = 3)
INSTANCE_HALF(EXPAND_SPLIT, 64x320, rows = 64, columns = 320, down = 2, across = 4, chunk = 32, max = 132, blocks = 1)
INSTANCE_HALF(EXPAND_SPLIT, 64x640, rows = 32, columns = 640, down = 1, across = 8, chunk = 32, max = 132, blocks = 1)
INSTANCE_FP32(EXPAND_SPLIT, 128x32, rows = 128, columns = 32, down = 8, across = 1, chunk = 16, max = 132, blocks = 1)
INSTANCE_FP32(EXPAND_SPLIT, 128x112, rows = 128, columns = 112, down = 8, across = 1, chunk = 16, max = 132, blocks = 1)
INSTANCE_FP32(EXPAND_SPLIT, 64x320, rows = 32, columns = 320, down = 2, across = 4, chunk = 16, max = 132, blocks = 1)
INSTANCE_FP32(EXPAND_SPLIT, 64x640, rows = 16, columns = 640, down = 1, across = 8, chunk = 16, max = 132, blocks = 1)

// Both.
#define EXPAND_SWEEP(T, name, Shape)                                                               \
    KERNEL_BLOCKS(expand_backward_##name, SWEEP_THREADS, Shape::blocks, ExpandBackwardArguments) { \
        expand_backward<ExpandSweepShape<T, Shape, false>>(args);                                  \
    }
INSTANCE_HALF(EXPAND_SWEEP, 240x48, wide = 240, narrow = 48, rows = 32, blocks = 2)

// The same, and with y made again: for so few narrow channels that the depthwise passes can do that too.
#define EXPAND_SWEEP_OR_RECOMPUTE(T, name, Shape)                                                            \
    EXPAND_SWEEP(T, name, Shape)                                                                             \
    KERNEL_BLOCKS(expand_backward_recompute_##name, SWEEP_THREADS, Shape::blocks, ExpandBackwardArguments) { \
        expand_backward<ExpandSweepShape<T, Shape, true>>(args);                                             \
    }
INSTANCE_HALF(EXPAND_SWEEP_OR_RECOMPUTE, 96x16, wide = 96, narrow = 16, rows = 48, blocks = 2)
INSTANCE_HALF(EXPAND_SWEEP_OR_RECOMPUTE, 144x32, wide = 144, narrow = 32, rows = 32, blocks = 2)
INSTANCE_HALF(EXPAND_SWEEP_OR_RECOMPUTE, 192x32, wide = 192, narrow = 32, rows = 32, blocks = 2)
