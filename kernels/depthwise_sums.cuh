// What a block of a depthwise pass leaves for the second stage: sums of the taps and of the batch norm before, and moments
// of the output. Threads whose numbers are of the same channels are added up in a fixed order: first the two lanes of a
// warp, then the warps.
#pragma once

#include "depthwise_tile.cuh"

// Lanes with different channels: lanes l and l + GROUPS have the same.
constexpr int DEPTHWISE_GROUPS = DEPTHWISE_SLICE / DEPTHWISE_CHANNELS;
constexpr int DEPTHWISE_WARPS = DEPTHWISE_THREADS / WARP;

// Adds up `own` of all threads of the block, NUMBERS for each of their channels, and gives each sum to `store` with its
// number and its channel in the slice. `scratch` is [warps, NUMBERS, DEPTHWISE_SLICE].
template <int NUMBERS, typename Store>
__device__ __forceinline__ void add_up_block(
    const float (&own)[NUMBERS][DEPTHWISE_CHANNELS], float* scratch, const Store& store) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float* to = scratch + warp * NUMBERS * DEPTHWISE_SLICE + lane * DEPTHWISE_CHANNELS;
#pragma unroll
    for (int number = 0; number < NUMBERS; number++) {
        float both[DEPTHWISE_CHANNELS];
#pragma unroll
        for (int i = 0; i < DEPTHWISE_CHANNELS; i++) {
            both[i] = own[number][i] + shuffle_xor(own[number][i], DEPTHWISE_GROUPS);
        }
        if (lane < DEPTHWISE_GROUPS) store_group(to + number * DEPTHWISE_SLICE, both);
    }
    barrier();
    constexpr int ALL = NUMBERS * DEPTHWISE_SLICE;
    for (int i = threadIdx.x; i < ALL; i += DEPTHWISE_THREADS) {
        float sum = 0.0f;
        for (int other = 0; other < DEPTHWISE_WARPS; other++) sum += scratch[other * ALL + i];
        store(i / DEPTHWISE_SLICE, i % DEPTHWISE_SLICE, sum);
    }
}

// Floats of scratch memory for the moments: [warps, groups] and twice [warps, slice].
constexpr int DEPTHWISE_MOMENTS_SCRATCH = DEPTHWISE_WARPS * (DEPTHWISE_GROUPS + 2 * DEPTHWISE_SLICE);

// Merges the moments of all threads, each of `count` values a channel, and gives those of each channel of the slice to
// `store`: channel, count, mean, Σ(y − mean)².
template <typename Store>
__device__ __forceinline__ void merge_block(
    float count, const Moments (&own)[DEPTHWISE_CHANNELS], float* scratch, const Store& store) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *counts = scratch, *means = counts + DEPTHWISE_WARPS * DEPTHWISE_GROUPS;
    float* spreads = means + DEPTHWISE_WARPS * DEPTHWISE_SLICE;
    float both = count;
#pragma unroll
    for (int i = 0; i < DEPTHWISE_CHANNELS; i++) {
        float mean, spread;
        own[i].finish(count, mean, spread);
        const float other = shuffle_xor(count, DEPTHWISE_GROUPS);
        const float other_mean = shuffle_xor(mean, DEPTHWISE_GROUPS);
        const float other_spread = shuffle_xor(spread, DEPTHWISE_GROUPS);
        both = merge_moments(count, mean, spread, other, other_mean, other_spread);
        if (lane >= DEPTHWISE_GROUPS) continue;
        means[warp * DEPTHWISE_SLICE + lane * DEPTHWISE_CHANNELS + i] = mean;
        spreads[warp * DEPTHWISE_SLICE + lane * DEPTHWISE_CHANNELS + i] = spread;
    }
    if (lane < DEPTHWISE_GROUPS) counts[warp * DEPTHWISE_GROUPS + lane] = both;
    barrier();
    const int channel = threadIdx.x;
    if (channel >= DEPTHWISE_SLICE) return;
    float number = counts[channel / DEPTHWISE_CHANNELS], mean = means[channel], spread = spreads[channel];
    for (int next = 1; next < DEPTHWISE_WARPS; next++) {
        const int at = next * DEPTHWISE_SLICE + channel;
        const float more = counts[next * DEPTHWISE_GROUPS + channel / DEPTHWISE_CHANNELS];
        number = merge_moments(number, mean, spread, more, means[at], spreads[at]);
    }
    store(channel, number, mean, spread);
}
