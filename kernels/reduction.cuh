// Sums over the parts that the blocks of a pass have written, in an order that depends on shapes only.
//
// Partial sums are [parts, columns]. A block of COLUMNS·GROUPS threads owns COLUMNS columns, or fours of columns; thread
// group·COLUMNS + column adds parts group, group + GROUPS, … of its column, then the groups are added by a tree.
// Neighbouring threads read neighbouring columns, and 8 columns are a whole 32-byte sector.
//
// Within a thread the rounding error of each addition is summed in fp32 too (Knuth's two-sum). Here this is as exact
// as double, and faster on consumer GPUs, which have 1/64 as many double units: in double, the tree of the gradients alone
// would take an RTX 3080 about as long as their traffic. So the tree of the gradients adds such pairs too. The sums of batch
// norms are few; there the tree, and what follows it, is in double.
//
// Bytes, operations and floors at B0's shapes: reduction.cu and batch_norm.cu.
#pragma once

#include <cfloat>

#include "step.cuh"

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= FLT_MAX; }

// Adds a micro-batch's part to a gradient, and raises the step's flag if the result is not finite. The part is rounded
// first. So two micro-batches give the same bits as two ranks, which add their rounded gradients.
__device__ __forceinline__ void add_to_gradient(float* gradient, float by, StepBlock* block) {
    const float grown = *gradient + by;
    *gradient = grown;
    if (!is_finite(grown)) raise_flag(&block->not_finite, 1);
}

// The sum over the warp's lanes, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// A sum in fp32 with its error. Once it is infinite or NaN, it stays not finite.
struct Compensated {
    float sum = 0.0f, error = 0.0f;

    __device__ __forceinline__ void add(float value) {
        const float next = sum + value;
        const float added = next - sum;
        error += (sum - (next - added)) + (value - added);
        sum = next;
    }
    __device__ __forceinline__ void add(const Compensated& other) {
        add(other.sum);
        error += other.error;
    }
    __device__ __forceinline__ double total() const { return static_cast<double>(sum) + error; }
    __device__ __forceinline__ float rounded() const { return sum + error; }
};

// Those of neighbouring columns.
template <int N>
struct CompensatedGroup {
    Compensated v[N];
};

__device__ __forceinline__ void add_in_tree(double& own, double other) { own += other; }
__device__ __forceinline__ void add_in_tree(Compensated& own, const Compensated& other) { own.add(other); }
template <int N>
__device__ __forceinline__ void add_in_tree(CompensatedGroup<N>& own, const CompensatedGroup<N>& other) {
#pragma unroll
    for (int i = 0; i < N; i++) own.v[i].add(other.v[i]);
}

// Parts first, first + step, … of a column whose parts lie `stride` apart.
__device__ __forceinline__ Compensated column_sum(const float* column, size_t stride, int parts, int first, int step) {
    Compensated sum;
#pragma unroll 8
    for (int part = first; part < parts; part += step) sum.add(column[part * stride]);
    return sum;
}

// The same for N neighbouring columns, which are loaded at once.
template <int N>
__device__ __forceinline__ CompensatedGroup<N> columns_sum(
    const float* columns, size_t stride, int parts, int first, int step) {
    CompensatedGroup<N> sums;
#pragma unroll 4
    for (int part = first; part < parts; part += step) {
        float values[N];
        load_group(values, columns + part * stride);
#pragma unroll
        for (int i = 0; i < N; i++) sums.v[i].add(values[i]);
    }
    return sums;
}

// The sum over the groups of a column, in each of its threads. All threads of the block call this, each time with
// another piece of `shared` [COLUMNS·GROUPS].
template <int COLUMNS, int GROUPS, typename Sum>
__device__ __forceinline__ Sum group_sum(Sum own, Sum* shared) {
    static_assert((GROUPS & (GROUPS - 1)) == 0, "the tree halves");
    if constexpr (GROUPS == 1) return own;
    const int thread = threadIdx.x;
    shared[thread] = own;
#pragma unroll
    for (int half = GROUPS / 2; half > 0; half /= 2) {
        barrier();
        if (thread < half * COLUMNS) add_in_tree(shared[thread], shared[thread + half * COLUMNS]);
    }
    barrier();
    return shared[thread % COLUMNS];
}
