// What a launch of the backward pass is given, and what a block makes of it per channel.
#pragma once

#include "batch_norm_sums.cuh"

#define DEPTHWISE_BACKWARD_FIELDS(F)                                                            \
    F(const void*, x)                                                                           \
    F(const void*, expand_weight)     /* of the expansion, if it is computed again */           \
    F(const void*, y)                                                                           \
    F(const void*, da)                                                                          \
    F(void*, dx)                                                                                \
    F(const float*, coefficients)     /* of the output's batch norm */                          \
    F(const float*, sums)             /* of it, [2, C] */                                       \
    F(const float*, gate)             /* [images, C] */                                         \
    F(const float*, squeeze_gradient) /* [images, C] */                                         \
    F(const float*, weight)           /* [C, K, K] */                                           \
    F(const float*, previous)         /* coefficients of the batch norm whose sums are taken */ \
    F(const void*, previous_y)        /* identity input: what those are the coefficients of */  \
    F(const void*, shortcut)          /* identity input: added to dx; may be null */            \
    F(const float*, keep)             /* identity input: [images]; null: all one */             \
    F(float*, weight_partials)        /* [parts, C, K, K] */                                    \
    F(float*, sum_partials)           /* [parts + 2·groups of them, 2, C] */                    \
    BATCH_NORM_SUMS_FIELDS(F)         /* of the batch norm whose sums are taken */              \
    F(int, images)                                                                              \
    F(int, channels)                                                                            \
    F(int, inputs) /* of the expansion */                                                       \
    F(int, input)                                                                               \
    F(int, output)                                                                              \
    F(int, pad)                                                                                 \
    F(int, workers) /* threads of a tile's row, for each pair of channels */                    \
    F(int, tiles)                                                                               \
    F(int, rows)    /* input rows of an iteration */                                            \
    F(int, ring_rows)                                                                           \
    F(int, images_per_block)                                                                    \
    F(int, strips)                                                                              \
    F(int, strip_rows)                                                                          \
    F(float, inverse_rows) /* of the output's batch norm */
ARGUMENTS(DepthwiseBackwardArguments, DEPTHWISE_BACKWARD_FIELDS)

// Rows of per-channel constants in shared memory. `OUT_C` is dy's part that depends on neither da nor y.
enum DepthwiseConstant { OUT_SCALE, OUT_SHIFT, OUT_B, OUT_C, IN_MEAN, IN_RECIPROCAL, IN_SCALE, IN_SHIFT,
                         END_OF_CONSTANTS };
constexpr int DEPTHWISE_CONSTANTS = 8;
static_assert(DEPTHWISE_CONSTANTS == END_OF_CONSTANTS, "each has a row");

// Columns of a thread.
constexpr int DEPTHWISE_COLUMNS_STRIDE1 = 7;
constexpr int DEPTHWISE_COLUMNS_STRIDE2 = 4;

// What x is: the block's own input; or the input of a batch norm, stored, or made again of the expansion's input
// (depthwise_recompute.cuh).
enum class DepthwiseBefore { IDENTITY, STORED, RECOMPUTED };

// Whether the gradient at the input is made: not where the layers before are not trained and this convolution is the network's
// first. That is 3×3 with stride 1; the other kernels have no registers for the question.
template <int K, int STRIDE, DepthwiseBefore BEFORE>
__device__ __forceinline__ bool has_dx(const DepthwiseBackwardArguments& args) {
    constexpr bool FIRST = K == 3 && STRIDE == 1 && BEFORE == DepthwiseBefore::STORED;
    return !FIRST || args.dx != nullptr;
}
