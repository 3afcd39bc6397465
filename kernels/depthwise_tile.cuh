// What both depthwise passes share: how a block's pixels come from global memory.
//
// A block has 32 channels, a tile of columns and a strip of rows of some images. It slides down the rows. The rows that
// an iteration needs are copied to shared memory by `cp.async` while the iteration before computes, so no warp waits for
// memory with nothing under way.
//
// A warp copies *units*: 8 neighbouring pixels of a row, 32 channels each, 16 bytes a lane and copy. The same warp then
// prepares what it copied (batch norm, silu), in place: a cell of eight channels holds them first as stored and then as
// fp32. So a value is converted once, however many taps read it, and the copy needs no room of its own.
#pragma once

#include "numeric.cuh"

// Channels of a block; threads; pixels of a unit; channels of a thread of the product.
constexpr int DEPTHWISE_SLICE = 32;
constexpr int DEPTHWISE_THREADS = 128;
constexpr int DEPTHWISE_UNIT = 8;
constexpr int DEPTHWISE_CHANNELS = 2;

// Pixels of a row that a block copies at most: a warp copies at most one unit of a row.
constexpr int DEPTHWISE_PIXELS = 32;

// The unit of a row that a warp copies, and the rows: `row`, `row + rows`, …. Short rows leave warps for other rows.
struct DepthwiseUnits {
    int pixel, row, rows;

    __device__ __forceinline__ explicit DepthwiseUnits(int columns, int unit = DEPTHWISE_UNIT) {
        constexpr int WARPS = DEPTHWISE_THREADS / WARP;
        static_assert(DEPTHWISE_PIXELS == WARPS * DEPTHWISE_UNIT, "a row has at most a unit for each warp");
        const int warp = threadIdx.x / WARP;
        const int shift = columns > 2 * unit ? 2 : columns > unit ? 1 : 0;
        pixel = (warp & ((1 << shift) - 1)) * unit;
        row = warp >> shift;
        rows = WARPS >> shift;
    }
};

// Two neighbouring channels as stored, in one register for half types. The compiler makes two stores of a pair that is
// put together from single values.
template <typename T>
struct Two;
template <>
struct Two<float> {
    float2 v;
    __device__ __forceinline__ static Two of(float first, float second) { return {make_float2(first, second)}; }
    __device__ __forceinline__ void get(float (&out)[2]) const { out[0] = v.x, out[1] = v.y; }
};
template <>
struct Two<f16> {
    __half2 v;
    __device__ __forceinline__ static Two of(float first, float second) { return {__floats2half2_rn(first, second)}; }
    __device__ __forceinline__ void get(float (&out)[2]) const { out[0] = __low2float(v), out[1] = __high2float(v); }
};
template <>
struct Two<bf16> {
    __nv_bfloat162 v;
    __device__ __forceinline__ static Two of(float first, float second) {
        return {__floats2bfloat162_rn(first, second)};
    }
    __device__ __forceinline__ void get(float (&out)[2]) const { out[0] = __low2float(v), out[1] = __high2float(v); }
};

// Eight channels in their storage type.
template <typename T>
__device__ __forceinline__ void copy_async_lanes(void* shared, const T* global) {
#pragma unroll
    for (int part = 0; part < LANES; part += Pack<T>::N) {
        copy_async_16(static_cast<T*>(shared) + part, global + part);
    }
}

// What an iteration does: the image, the first row that it makes, and the ring slot of the first row that it needs for that.
struct DepthwiseStep {
    int image, start, tail;

    // Where the image begins in a tensor of maps of this side. A map has less than 2³¹ elements.
    __device__ __forceinline__ size_t at(int side, int channels) const {
        return static_cast<size_t>(image) * static_cast<unsigned>(side * side * channels);
    }
};

// How far the rows are loaded: the next row of the map and its slot; the slots that the last copies fill.
struct DepthwiseLoaded {
    int next, head;
    int fresh, fresh_count;
};

// `slot + by` in a ring of `rows`, both below `rows`.
__device__ __forceinline__ int ring_slot(int slot, int by, int rows) {
    slot += by;
    return slot >= rows ? slot - rows : slot;
}

// Zeros for a number of values that is a multiple of four, by all threads.
template <typename T>
__device__ __forceinline__ void clear(T* to, int values) {
    const float zero[4] = {};
    for (int i = threadIdx.x * 4; i < values; i += DEPTHWISE_THREADS * 4) store_group(to + i, zero);
}
