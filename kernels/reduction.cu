// The second stage of a backward pass: partial sums of its blocks become a batch norm's sums and gradients.
//
// Idea: the cost is reading, and a launch. So one launch adds up all that is waiting: the first blocks have the batch
// norm's sums, for which the next pass waits, the others the gradients of up to three weights.
//
// Sums of a batch norm: a block has 8 columns (a 32-byte sector of every part's row) and divides the parts among 64 groups
// of threads. So few channels already fill the GPU. Gradients of weights: the partial sums [parts, elements] of a pass's
// blocks are added, four elements a thread, and the result is added to the gradient. If there are many parts, 8 or 32 groups
// of threads share them, so that few elements still fill the GPU. See reduction.cuh for the order.
//
// Bytes: 4·parts·columns read, 8·columns for the gradient; seven fp32 instructions a number. At 264 parts of 50,000
// elements 53 MB: floor 18 µs at 3.0 TB/s. B0's layers write 611 MB of partial sums in a step at batch 512: floor 0.20 ms,
// that is 1.2 MB and 0.4 µs an image, 1.7 µs at 0.70 TB/s; less if the second-level cache still has them. Those of batch
// norms are 19 MB of them, below half a megabyte a launch: they are bound by latency. Last measured share: not yet
// measured.
#include "numeric.cuh"
#include "reduction.cuh"

constexpr int FINISH_THREADS = 512;
// Elements of a gradient that a thread has.
constexpr int FINISH_ELEMENTS = 4;

// `partials` [parts, elements] of a weight's gradient, whose parts `groups` groups of threads share: 1, 8 or 32. No elements:
// there is none.
#define WEIGHT_GRADIENT_FIELDS(F) \
    F(const float*, partials)     \
    F(float*, gradient)           \
    F(int, parts)                 \
    F(int, elements)              \
    F(int, groups)
#define SECOND_WEIGHT_GRADIENT_FIELDS(F) \
    F(const float*, second_partials)     \
    F(float*, second_gradient)           \
    F(int, second_parts)                 \
    F(int, second_elements)              \
    F(int, second_groups)
#define THIRD_WEIGHT_GRADIENT_FIELDS(F) \
    F(const float*, third_partials)     \
    F(float*, third_gradient)           \
    F(int, third_parts)                 \
    F(int, third_elements)              \
    F(int, third_groups)
// norm_partials [norm_parts, 2, C] of Σdu and Σdu·ŷ → norm_sums [2, C], also added to the gradients of β and γ. No channels:
// there are none.
#define FINISH_GRADIENTS_FIELDS(F)   \
    F(const float*, norm_partials)   \
    F(float*, norm_sums)             \
    F(float*, bias_gradient)         \
    F(float*, norm_gradient)         \
    F(StepBlock*, block)             \
    F(int, norm_parts)               \
    F(int, channels)                 \
    WEIGHT_GRADIENT_FIELDS(F)        \
    SECOND_WEIGHT_GRADIENT_FIELDS(F) \
    THIRD_WEIGHT_GRADIENT_FIELDS(F)
ARGUMENTS(FinishGradientsArguments, FINISH_GRADIENTS_FIELDS)

namespace {

__device__ __forceinline__ void finish_norm(const FinishGradientsArguments& args, int block) {
    constexpr int GROUPS = FINISH_THREADS / LANES;
    SharedArena shared;
    double* totals = shared.take<double>(FINISH_THREADS);
    const int group = threadIdx.x / LANES, column = block * LANES + threadIdx.x % LANES;
    const size_t columns = 2 * static_cast<size_t>(args.channels);
    const double own = column_sum(args.norm_partials + column, columns, args.norm_parts, group, GROUPS).total();
    const double total = group_sum<LANES, GROUPS>(own, totals);
    if (group == 0) {
        float* gradient = column < args.channels ? args.bias_gradient + column
                                                 : args.norm_gradient + (column - args.channels);
        args.norm_sums[column] = static_cast<float>(total);
        add_to_gradient(gradient, static_cast<float>(total), args.block);
    }
}

struct WeightGradient {
    const float* partials;
    float* gradient;
    int parts, elements, groups;

    __device__ __forceinline__ int blocks() const {
        const int columns = FINISH_THREADS / groups * FINISH_ELEMENTS;
        return (elements + columns - 1) / columns;
    }
};

template <int GROUPS>
__device__ __forceinline__ void add_gradient(const WeightGradient& of, int block, StepBlock* step) {
    constexpr int COLUMNS = FINISH_THREADS / GROUPS;
    using Sums = CompensatedGroup<FINISH_ELEMENTS>;
    SharedArena shared;
    Sums* totals = shared.take<Sums>(FINISH_THREADS);
    const int group = threadIdx.x / COLUMNS;
    const size_t elements = of.elements;
    const size_t first = (static_cast<size_t>(block) * COLUMNS + threadIdx.x % COLUMNS) * FINISH_ELEMENTS;
    Sums own;
    if (first < elements)
        own = columns_sum<FINISH_ELEMENTS>(of.partials + first, elements, of.parts, group, GROUPS);
    const Sums total = group_sum<COLUMNS, GROUPS>(own, totals);
    if (group > 0 || first >= elements) return;
#pragma unroll
    for (int i = 0; i < FINISH_ELEMENTS; i++) add_to_gradient(of.gradient + first + i, total.v[i].rounded(), step);
}

}  // namespace

KERNEL(finish_gradients, FINISH_THREADS, FinishGradientsArguments) {
    int block = blockIdx.x;
    const int norm_blocks = 2 * args.channels / LANES;
    if (block < norm_blocks) return finish_norm(args, block);
    block -= norm_blocks;
    WeightGradient of = {args.partials, args.gradient, args.parts, args.elements, args.groups};
    if (block >= of.blocks()) {
        block -= of.blocks();
        of = {args.second_partials, args.second_gradient, args.second_parts, args.second_elements, args.second_groups};
        if (block >= of.blocks()) {
            block -= of.blocks();
            of = {args.third_partials, args.third_gradient, args.third_parts, args.third_elements, args.third_groups};
        }
    }
    if (of.groups == 1) return add_gradient<1>(of, block, args.block);
    if (of.groups == 8) return add_gradient<8>(of, block, args.block);
    add_gradient<32>(of, block, args.block);
}
