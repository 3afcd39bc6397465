// Squeeze-excite backward. See squeeze_excite.cu.
#pragma once

#include "squeeze_excite_forward.cuh"

// dz [N, C] = S0·gate·(1 − gate); active [N, S] = silu(hidden), dhidden [N, S] = (dz·W)·silu'(hidden) with W [C, S].
// A block has 8 images and 32 units: lanes are units, warps divide the channels.
#define SQUEEZE_HIDDEN_GRADIENT_FIELDS(F) \
    F(const float*, gate_gradient)        \
    F(const float*, gate)                 \
    F(const float*, hidden)               \
    F(const float*, weight)               \
    F(float*, dz)                         \
    F(float*, active)                     \
    F(float*, dhidden)                    \
    F(int, images)                        \
    F(int, channels)                      \
    F(int, units)
ARGUMENTS(SqueezeHiddenGradientArguments, SQUEEZE_HIDDEN_GRADIENT_FIELDS)

namespace {

// Writes dz of 8 images and THREADS channels from `first` on to `piece` [THREADS, IMAGES].
__device__ __forceinline__ void stage_dz(const SqueezeHiddenGradientArguments& args, int first, float* piece) {
    const int channel = first + threadIdx.x;
    const int images = channel < args.channels ? args.images - static_cast<int>(blockIdx.x) * IMAGES : 0;
    const size_t start = static_cast<size_t>(blockIdx.x) * IMAGES * args.channels + channel;
    float gate[IMAGES] = {}, dz[IMAGES] = {};
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
        if (i < images) {
            const size_t at = start + static_cast<size_t>(i) * args.channels;
            gate[i] = args.gate[at];
            dz[i] = args.gate_gradient[at];
        }
    }
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
        dz[i] *= gate[i] * (1.0f - gate[i]);
        if (blockIdx.y == 0 && i < images) args.dz[start + static_cast<size_t>(i) * args.channels] = dz[i];
    }
    store_lanes(piece + threadIdx.x * IMAGES, dz);
}

}  // namespace

KERNEL(squeeze_hidden_gradient, THREADS, SqueezeHiddenGradientArguments) {
    SharedArena shared;
    float* piece = shared.take<float>(THREADS * IMAGES);
    float* sums = shared.take<float>(WARPS * IMAGES * WARP);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, unit = blockIdx.y * WARP + lane;
    float sum[IMAGES] = {};
    for (int first = 0; first < args.channels; first += THREADS) {
        barrier();
        stage_dz(args, first, piece);
        barrier();
        if (unit >= args.units) continue;
        const int count = args.channels - first > THREADS ? THREADS : args.channels - first;
        const float* weight = args.weight + static_cast<size_t>(first) * args.units + unit;
#pragma unroll 8
        for (int c = warp; c < count; c += WARPS) {
            const float w = weight[static_cast<size_t>(c) * args.units];
            float dz[IMAGES];
            load_lanes(dz, piece + c * IMAGES);
#pragma unroll
            for (int i = 0; i < IMAGES; i++) sum[i] = fmaf(w, dz[i], sum[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < IMAGES; i++) sums[(warp * IMAGES + i) * WARP + lane] = sum[i];
    barrier();
    // From here on each warp has one image.
    const int image = blockIdx.x * IMAGES + warp;
    if (image < args.images && unit < args.units) {
        float total = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; from++) total += sums[(from * IMAGES + warp) * WARP + lane];
        const size_t at = static_cast<size_t>(image) * args.units + unit;
        float value, slope;
        silu_and_slope<float>(args.hidden[at], value, slope);
        args.active[at] = value;
        args.dhidden[at] = total * slope;
    }
}

// squeeze_gradient d [N, C] = dhidden·W/pixels with W [S, C], and the batch norm's partials [N/8, 2, C]: over 8 images
// Σ(gate·S1 + d·S2) and Σ(gate·S3 + d·S4). A block has 64 channels, a thread one channel of two images.
#define SQUEEZE_GRADIENT_FIELDS(F) \
    F(const float*, five_sums)     \
    F(const float*, gate)          \
    F(const float*, dhidden)       \
    F(const float*, weight)        \
    F(float*, squeeze_gradient)    \
    F(float*, partials)            \
    F(int, images)                 \
    F(int, channels)               \
    F(int, units)                  \
    F(float, inverse_pixels)
ARGUMENTS(SqueezeGradientArguments, SQUEEZE_GRADIENT_FIELDS)

namespace {

// Completes d of a thread's two images, and their terms of the sums.
__device__ __forceinline__ void finish_images(
    const SqueezeGradientArguments& args, int image, int channel, const float (&d)[2], float (&sum)[2]) {
    const size_t layer = static_cast<size_t>(args.images) * args.channels;
    float five[2][4] = {}, gate[2] = {};
    size_t at[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        at[i] = static_cast<size_t>(image + i * PAIRS) * args.channels + channel;
        if (image + i * PAIRS < args.images) {
            gate[i] = args.gate[at[i]];
#pragma unroll
            for (int k = 0; k < 4; k++) five[i][k] = args.five_sums[at[i] + (k + 1) * layer];
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (image + i * PAIRS < args.images) args.squeeze_gradient[at[i]] = d[i];
        sum[0] += fmaf(gate[i], five[i][0], d[i] * five[i][1]);
        sum[1] += fmaf(gate[i], five[i][2], d[i] * five[i][3]);
    }
}

}  // namespace

KERNEL(squeeze_gradient, THREADS, SqueezeGradientArguments) {
    SharedArena shared;
    const int units = args.units;
    float* dhidden = shared.take<float>(IMAGES * units);
    float* sums = shared.take<float>(2 * THREADS);
    const int first_image = blockIdx.x * IMAGES;
    for (int at = threadIdx.x; at < IMAGES * units; at += THREADS) {
        const bool inside = first_image + at / units < args.images;
        dhidden[at] = inside ? args.dhidden[static_cast<size_t>(first_image) * units + at] : 0.0f;
    }
    barrier();
    const int own = threadIdx.x % SLICE, pair = threadIdx.x / SLICE, channel = blockIdx.y * SLICE + own;
    float sum[2] = {};
    if (channel < args.channels) {
        const float *one = dhidden + pair * units, *other = dhidden + (pair + PAIRS) * units;
        float d[2] = {};
#pragma unroll 8
        for (int unit = 0; unit < units; unit++) {
            const float w = args.weight[static_cast<size_t>(unit) * args.channels + channel];
            d[0] = fmaf(w, one[unit], d[0]);
            d[1] = fmaf(w, other[unit], d[1]);
        }
        d[0] *= args.inverse_pixels;
        d[1] *= args.inverse_pixels;
        finish_images(args, first_image + pair, channel, d, sum);
    }
    sums[threadIdx.x] = sum[0];
    sums[THREADS + threadIdx.x] = sum[1];
    barrier();
    // Two of the four groups write one row each.
    if (pair < 2 && channel < args.channels) {
        float total = 0.0f;
#pragma unroll
        for (int from = 0; from < PAIRS; from++) total += sums[pair * THREADS + from * SLICE + own];
        args.partials[(2 * static_cast<size_t>(blockIdx.x) + pair) * args.channels + channel] = total;
    }
}

// Adds to the gradients of both layers, blockIdx.z = 0: We [C, S] += dzᵀ·active, be += Σ dz; 1: Wr [S, C] +=
// dhiddenᵀ·squeezed, br += Σ dhidden. A block has 32 channels and 8 units: lanes are channels, warps divide the
// images.
#define SQUEEZE_WEIGHTS_FIELDS(F) \
    F(const float*, dz)           \
    F(const float*, active)       \
    F(const float*, squeezed)     \
    F(const float*, dhidden)      \
    F(float*, expand_weight)      \
    F(float*, expand_bias)        \
    F(float*, reduce_weight)      \
    F(float*, reduce_bias)        \
    F(StepBlock*, block)          \
    F(int, images)                \
    F(int, channels)              \
    F(int, units)
ARGUMENTS(SqueezeWeightsArguments, SQUEEZE_WEIGHTS_FIELDS)

namespace {

constexpr int UNITS = 8;         // of a block
constexpr int BATCH = THREADS;   // images whose units are in shared memory at once
constexpr int ROW = WARP + 1;    // of the warps' sums: one word of padding, against bank conflicts
static_assert(UNITS == WARPS && UNITS == LANES, "how threads divide the units");

// Writes the units of the images from `first` on to `piece` [BATCH, UNITS].
__device__ __forceinline__ void stage_units(
    const SqueezeWeightsArguments& args, const float* narrow, int first, float* piece) {
    for (int at = threadIdx.x; at < BATCH * UNITS; at += THREADS) {
        const int image = first + at / UNITS, unit = blockIdx.y * UNITS + at % UNITS;
        const bool inside = image < args.images && unit < args.units;
        piece[at] = inside ? narrow[static_cast<size_t>(image) * args.units + unit] : 0.0f;
    }
}

// The sums of a thread.
struct WeightSums {
    float products[UNITS] = {};
    float wide = 0.0f;    // of its channel
    float narrow = 0.0f;  // of the unit with the warp's number, over every 32nd image
};

__device__ __forceinline__ void add_images(
    const SqueezeWeightsArguments& args, const float* wide, const float* piece, int first, WeightSums& sum) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, channel = blockIdx.x * WARP + lane;
    const int count = args.images - first > BATCH ? BATCH : args.images - first;
    if (channel < args.channels) {
        const float* value = wide + static_cast<size_t>(first) * args.channels + channel;
#pragma unroll 8
        for (int image = warp; image < count; image += WARPS) {
            const float x = value[static_cast<size_t>(image) * args.channels];
            float units[UNITS];
            load_lanes(units, piece + image * UNITS);
#pragma unroll
            for (int i = 0; i < UNITS; i++) sum.products[i] = fmaf(x, units[i], sum.products[i]);
            sum.wide += x;
        }
    }
    for (int image = lane; image < count; image += WARP) sum.narrow += piece[image * UNITS + warp];
}

__device__ __forceinline__ float over_warps(const float* sums, int row, int lane) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) total += sums[(warp * (UNITS + 1) + row) * ROW + lane];
    return total;
}

}  // namespace

KERNEL(squeeze_weights, THREADS, SqueezeWeightsArguments) {
    SharedArena shared;
    float* piece = shared.take<float>(BATCH * UNITS);
    float* sums = shared.take<float>(WARPS * (UNITS + 1) * ROW);
    const bool expand = blockIdx.z == 0;
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const int first_channel = blockIdx.x * WARP, first_unit = blockIdx.y * UNITS;
    WeightSums own;
    for (int first = 0; first < args.images; first += BATCH) {
        barrier();
        stage_units(args, expand ? args.active : args.dhidden, first, piece);
        barrier();
        add_images(args, expand ? args.dz : args.squeezed, piece, first, own);
    }
#pragma unroll
    for (int i = 0; i < UNITS; i++) sums[(warp * (UNITS + 1) + i) * ROW + lane] = own.products[i];
    sums[(warp * (UNITS + 1) + UNITS) * ROW + lane] = own.wide;
    const float narrow = warp_sum(own.narrow);
    barrier();
    // Neighbouring threads write neighbouring elements: units of [C, S], channels of [S, C].
    const int row = expand ? thread % UNITS : warp, column = expand ? thread / UNITS : lane;
    const int channel = first_channel + column, unit = first_unit + row;
    if (channel < args.channels && unit < args.units) {
        float* gradient = expand ? args.expand_weight + static_cast<size_t>(channel) * args.units + unit
                                 : args.reduce_weight + static_cast<size_t>(unit) * args.channels + channel;
        add_to_gradient(gradient, over_warps(sums, row, column), args.block);
    }
    if (expand && blockIdx.y == 0 && warp == 0 && first_channel + lane < args.channels) {
        add_to_gradient(args.expand_bias + first_channel + lane, over_warps(sums, UNITS, lane), args.block);
    }
    if (!expand && blockIdx.x == 0 && lane == 0 && first_unit + warp < args.units) {
        add_to_gradient(args.reduce_bias + first_unit + warp, narrow, args.block);
    }
}
