// The pointwise projection: y [M, N] = (silu(BN(x))·gate)·W [N, K]ᵀ with x [M, K] and gate [images, K]; and y's
// statistics.
//
// Forward. The idea is in pointwise.cuh. K is about 6·N or more, so nearly all bytes are those of x. Up to N = 320
// one column tile has all outputs: each x is read and activated exactly once. With more outputs (B3 and up, 344 to
// 640 in the last maps) there are two column tiles, neighbours in the grid: x is read from memory once but activated
// twice. fp16, an image of B0 (224²):
//
//   map    K → N        layers   x MB    y MB   Mflop   tile
//   112²   32 → 16         1     0.803   0.401    13    128×16
//   56²    96 → 24         1     0.602   0.151    14    128×24
//   56²    144 → 24        1     0.903   0.151    22    128×24
//   28²    144 → 40        1     0.226   0.063     9    128×40
//   28²    240 → 40        1     0.376   0.063    15    128×40
//   14²    240 → 80        1     0.094   0.031     8    128×80, 64×80
//   14²    480 → 80        2     0.376   0.063    30    128×80, 64×80
//   14²    480 → 112       1     0.188   0.044    21    128×112, 64×112
//   14²    672 → 112       2     0.527   0.088    59    128×112, 64×112
//   7²     672 → 192       1     0.066   0.019    13    64×192, 32×192
//   7²     1152 → 192      3     0.339   0.056    65    64×192, 32×192
//   7²     1152 → 320      1     0.113   0.031    36    64×320, 32×320
//
// (Layers of the same shape together; of two tiles the higher is used if it leaves two blocks for each multiprocessor
// of the largest GPU.) Total: 5.77 MB, 0.30 Gflop and 2.3 million sigmoids an image: 1.9 µs at 3.0 TB/s, 8.2 µs at
// 0.70 TB/s. Weights are read from the second-level cache, once a tile (0.7 MB for the largest layer). The products
// take 0.6 µs on an H100's tensor cores at 1024 multiply-adds per cycle and multiprocessor and 5.1 µs on an RTX
// 3080's at 256, where layers from 112 outputs on are bound by them; 18 M fp32 instructions take 0.6 and 1.2 µs. Last
// measured share: not yet measured.
//
// Backward. dy is computed from dout·keep and y by batch norm's backward. With A = silu(BN(x))·gate: da [M, K] = dy·W,
// dW [N, K] = dyᵀ·A, and the five sums of each image and channel, from da as it is stored. Up to 192 narrow channels
// (fp32: 112) one sweep makes all of this (project_sweep.cuh) and reads x once. With more, there is no room for the
// accumulators of dW, and a second kernel computes A again (project_weights.cuh). fp16, an image of B0 (224²), MB of x
// and da (wide) and of dout and y (narrow):
//
//   map    K → N        layers   wide MB  narrow MB  Mflop   block          dout, y read by
//   112²   32 → 16         1      1.606     0.803      26    32×32          1 slice
//   56²    96 → 24         1      1.204     0.301      29    32×96          1
//   56²    144 → 24        1      1.806     0.301      43    32×80          2
//   28²    144 → 40        1      0.452     0.125      18    32×80          2
//   28²    240 → 40        1      0.753     0.125      30    32×80          3
//   14²    240 → 80        1      0.188     0.063      15    32×128         2
//   14²    480 → 80        2      0.753     0.125      60    32×128         4
//   14²    480 → 112       1      0.376     0.088      42    32×128         4
//   14²    672 → 112       2      1.054     0.176     118    32×128         6
//   7²     672 → 192       1      0.132     0.038      25    32×64          11
//   7²     1152 → 192      3      0.677     0.113     130    32×64          18
//   7²     1152 → 320      1      0.339     0.063      72    64×128, then dW 128×128
//
// Total: 11.7 MB, 0.61 Gflop and 2.4 million sigmoids an image: 3.9 µs at 3.0 TB/s, 17 µs at 0.70 TB/s. Tiles are
// aligned to images, because each image has its own gate. The five sums take 20 bytes for each channel and image
// (times the segments of a large image, the last of which adds them up). With the parts' sums of dW it is 12.5 MB.
// With padding to whole tiles there are 368 M multiply-adds, 1.6 µs on an H100's tensor cores and 12.4 µs on an RTX
// 3080's, where layers from 112 outputs on are bound by them; and 55 M fp32 instructions, 1.9 and 3.7 µs. Last
// measured share: not yet measured.
//
// Predicted by tools/count for a step of B0 (224², batch 512, fp16) on an H100, µs of all launches:
//
//   backward                                                                                             6814
//     copies one tile ahead, the five sums from the product's registers, one barrier a tile              4345
//     slices of 80 channels for 144 and 240, blocks that fill the GPU                                    3990
//     gates of the weights' gradient with the copies                                                     3820
//   forward                                                                                              2346
//     numbers in shared memory, gates ahead of the product, two stages of 64 channels in wide tiles      2170
//     blocks that fill the GPU evenly                                                                    1955
//     a gate is first used after the product that it is loaded ahead of, sums are cleared once a tile    1815
//
// Backward with 80 to 192 narrow channels is bound by shared memory and instructions now: each slice forms dy again.
#include "project_forward.cuh"
#include "project_sweep.cuh"
#include "project_weights.cuh"

#define PROJECT_FORWARD_FIELDS(F) \
    POINTWISE_POINTERS(F)         \
    F(const float*, coefficients) \
    F(const float*, gate)         \
    POINTWISE_NUMBERS(F)          \
    F(int, pixels)
ARGUMENTS(ProjectForwardArguments, PROJECT_FORWARD_FIELDS)

// A tile of rows × columns, its warps down and across, the stages of its pipeline; src/ops/cuda/pointwise.rs chooses.
#define PROJECT_FORWARD(T, name, Shape)                                                                     \
    KERNEL_BLOCKS(project_forward_##name, WARP * Shape::down * Shape::across, Shape::blocks,                \
                  ProjectForwardArguments) {                                                                \
        using Tile = PointwiseTile<Shape>;                                                                  \
        using Prologue = PointwiseGatedSilu<T, Tile>;                                                       \
        pointwise_forward<T, Tile>(args, Prologue(args.coefficients, args.gate, args.inputs, args.pixels)); \
    }
INSTANCE_HALF(PROJECT_FORWARD, 128x16, rows = 128, columns = 16, down = 8, across = 1, stages = 3, blocks = 3)
INSTANCE_HALF(PROJECT_FORWARD, 128x24, rows = 128, columns = 24, down = 8, across = 1, stages = 3, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 128x40, rows = 128, columns = 40, down = 8, across = 1, stages = 3, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 128x48, rows = 128, columns = 48, down = 8, across = 1, stages = 3, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 128x80, rows = 128, columns = 80, down = 4, across = 2, stages = 2, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 64x80, rows = 64, columns = 80, down = 2, across = 2, stages = 3, blocks = 4)
INSTANCE_HALF(PROJECT_FORWARD, 128x112, rows = 128, columns = 112, down = 4, across = 2, stages = 2, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 64x112, rows = 64, columns = 112, down = 2, across = 2, stages = 3, blocks = 3)
INSTANCE_HALF(PROJECT_FORWARD, 64x192, rows = 64, columns = 192, down = 2, across = 4, stages = 2, blocks = 2)
INSTANCE_HALF(PROJECT_FORWARD, 32x192, rows = 32, columns = 192, down = 1, across = 4, stages = 3, blocks = 4)
INSTANCE_HALF(PROJECT_FORWARD, 64x320, rows = 64, columns = 320, down = 2, across = 4, stages = 2, blocks = 1)
INSTANCE_HALF(PROJECT_FORWARD, 32x320, rows = 32, columns = 320, down = 1, across = 4, stages = 2, blocks = 3)
INSTANCE_FP32(PROJECT_FORWARD, 128x16, rows = 128, columns = 16, down = 8, across = 1, stages = 3, blocks = 2)
INSTANCE_FP32(PROJECT_FORWARD, 128x24, rows = 128, columns = 24, down = 8, across = 1, stages = 3, blocks = 2)
INSTANCE_FP32(PROJECT_FORWARD, 64x80, rows = 64, columns = 80, down = 2, across = 2, stages = 3, blocks = 3)
INSTANCE_FP32(PROJECT_FORWARD, 32x192, rows = 32, columns = 192, down = 1, across = 4, stages = 3, blocks = 3)
INSTANCE_FP32(PROJECT_FORWARD, 32x320, rows = 32, columns = 320, down = 1, across = 4, stages = 2, blocks = 2)

// ---- backward ---------------------------------------------------------------------------------------------

// Both gradients; src/ops/cuda/pointwise_backward.rs chooses among these and the following. The first ones are for few
// wide channels.
#define PROJECT_SWEEP(T, name, Shape)                                                                       \
    KERNEL_BLOCKS(project_backward_##name, WARP * (Shape::slice / 16) * Shape::down, Shape::blocks,         \
                  ProjectBackwardArguments) {                                                               \
        project_backward<SweepShape<T, Shape>>(args);                                                       \
    }
INSTANCE_HALF(PROJECT_SWEEP, 32x32, depth = 32, slice = 32, rows = 32, down = 1, blocks = 8)
INSTANCE_HALF(PROJECT_SWEEP, 32x64, depth = 32, slice = 64, rows = 32, down = 1, blocks = 4)
INSTANCE_HALF(PROJECT_SWEEP, 32x96, depth = 32, slice = 96, rows = 32, down = 1, blocks = 2)
INSTANCE_HALF(PROJECT_SWEEP, 32x80, depth = 32, slice = 80, rows = 32, down = 1, blocks = 3)
INSTANCE_HALF(PROJECT_SWEEP, 48x80, depth = 48, slice = 80, rows = 32, down = 1, blocks = 3)
INSTANCE_HALF(PROJECT_SWEEP, 96x128, depth = 96, slice = 128, rows = 32, down = 2, blocks = 1)
INSTANCE_HALF(PROJECT_SWEEP, 112x128, depth = 112, slice = 128, rows = 32, down = 2, blocks = 1)
INSTANCE_HALF(PROJECT_SWEEP, 192x64, depth = 192, slice = 64, rows = 32, down = 2, blocks = 2)
INSTANCE_FP32(PROJECT_SWEEP, 32x48, depth = 32, slice = 48, rows = 32, down = 2, blocks = 1)
INSTANCE_FP32(PROJECT_SWEEP, 80x64, depth = 80, slice = 64, rows = 32, down = 2, blocks = 1)
INSTANCE_FP32(PROJECT_SWEEP, 112x64, depth = 112, slice = 64, rows = 32, down = 2, blocks = 1)

// The data gradient.
#define PROJECT_DATA(T, name, Shape)                                                               \
    KERNEL_BLOCKS(project_backward_data_##name, WARP * Shape::down * Shape::across, Shape::blocks, \
                  ProjectBackwardArguments) {                                                      \
        project_backward_data<ProjectDataShape<T, Shape>>(args);                                   \
    }
INSTANCE_HALF(PROJECT_DATA, 128, rows = 64, columns = 128, down = 1, across = 8, chunk = 32, blocks = 2)
INSTANCE_FP32(PROJECT_DATA, 128, rows = 32, columns = 128, down = 1, across = 8, chunk = 16, blocks = 1)

// The weights' gradient.
#define PROJECT_WEIGHTS(T, name, Shape)                                         \
    KERNEL(project_backward_weights_##name, WARP * Shape::down * Shape::across, \
           ProjectBackwardWeightsArguments) {                                   \
        project_backward_weights<WeightShape<T, Shape>>(args);                  \
    }
INSTANCE_HALF(PROJECT_WEIGHTS, 128x128, left = 128, right = 128, down = 4, across = 2, depth = 32)
INSTANCE_FP32(PROJECT_WEIGHTS, 128x128, left = 128, right = 128, down = 4, across = 2, depth = 16)
