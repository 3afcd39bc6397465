// Squeeze-excite forward, and the constants that both passes share. See squeeze_excite.cu.
#pragma once

#include "numeric.cuh"
#include "reduction.cuh"

namespace {

constexpr int THREADS = SWEEP_THREADS;
constexpr int WARPS = THREADS / WARP;
constexpr int IMAGES = 8;  // of a block
constexpr int SLICE = 64;  // channels of a block
constexpr int PAIRS = THREADS / SLICE;
static_assert(IMAGES == 2 * PAIRS && IMAGES == LANES && IMAGES == WARPS, "how threads divide the images");

}  // namespace

// y [N, P, C] → partials [N, splits, C], sums over `run` pixels. A block has `rows` rows of `width` vectors.
#define SQUEEZE_POOL_FIELDS(F)    \
    F(const void*, y)             \
    F(const float*, coefficients) \
    F(float*, partials)           \
    F(int, pixels)                \
    F(int, channels)              \
    F(int, width)                 \
    F(int, rows)                  \
    F(int, run)
ARGUMENTS(SqueezePoolArguments, SQUEEZE_POOL_FIELDS)

namespace {

// Adds silu(BN(y)) of pixels first, first + rows, … < end, in pairs of pairs.
template <typename T>
__device__ __forceinline__ void pool_pixels(
    const SqueezePoolArguments& args, const T* image, int channel, int first, int end, float (&sum)[LANES]) {
    float scale[LANES], shift[LANES];
    load_lanes(scale, args.coefficients + SCALE * args.channels + channel);
    load_lanes(shift, args.coefficients + SHIFT * args.channels + channel);
    constexpr int BATCH = 4;
    for (; first < end; first += BATCH * args.rows) {
        float y[BATCH][LANES];
        bool there[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int pixel = first + u * args.rows;
            there[u] = pixel < end;
            load_lanes(y[u], image + static_cast<size_t>(there[u] ? pixel : first) * args.channels + channel);
        }
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float a[BATCH];
#pragma unroll
            for (int u = 0; u < BATCH; u++) a[u] = there[u] ? silu<T>(fmaf(scale[i], y[u][i], shift[i])) : 0.0f;
            sum[i] += (a[0] + a[1]) + (a[2] + a[3]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void squeeze_pool(const SqueezePoolArguments& args) {
    SharedArena shared;
    float* sums = shared.take<float>(THREADS * LANES);
    const int thread = threadIdx.x, vector = thread % args.width, row = thread / args.width;
    const int slice = blockIdx.x * args.width * LANES, channel = slice + vector * LANES;
    const int begin = blockIdx.y * args.run;
    const int end = args.pixels - begin > args.run ? begin + args.run : args.pixels;
    const T* image = static_cast<const T*>(args.y) + static_cast<size_t>(blockIdx.z) * args.pixels * args.channels;
    float sum[LANES] = {};
    if (row < args.rows && channel < args.channels) pool_pixels(args, image, channel, begin + row, end, sum);
    store_lanes(sums + thread * LANES, sum);
    barrier();
    if (thread < args.width * LANES && slice + thread < args.channels) {
        float total = 0.0f;
        for (int row = 0; row < args.rows; row++) total += sums[row * args.width * LANES + thread];
        const size_t part = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
        args.partials[part * args.channels + slice + thread] = total;
    }
}

}  // namespace

STORED_KERNELS(squeeze_pool, THREADS, SqueezePoolArguments)

// partials [N, splits, C] → squeezed [N, C]; hidden [N, S] = squeezed·Wᵀ + b with W [S, C]. A warp has one hidden
// unit and 8 images, and reads `piece` channels at a time.
#define SQUEEZE_HIDDEN_FIELDS(F) \
    F(const float*, partials)    \
    F(const float*, weight)      \
    F(const float*, bias)        \
    F(float*, squeezed)          \
    F(float*, hidden)            \
    F(int, images)               \
    F(int, splits)               \
    F(int, channels)             \
    F(int, units)                \
    F(int, piece)                \
    F(float, inverse_pixels)
ARGUMENTS(SqueezeHiddenArguments, SQUEEZE_HIDDEN_FIELDS)

namespace {

// Writes squeezed of 8 images and `count` channels from `first` on to `piece` [IMAGES, count]; zero for missing
// images.
__device__ __forceinline__ void stage_squeezed(
    const SqueezeHiddenArguments& args, int first, int count, float* piece) {
    const size_t image = static_cast<size_t>(args.splits) * args.channels;
    for (int c = threadIdx.x; c < count; c += THREADS) {
        const float* part = args.partials + blockIdx.x * IMAGES * image + first + c;
        float sum[IMAGES] = {};
        for (int split = 0; split < args.splits; split++) {
#pragma unroll
            for (int i = 0; i < IMAGES; i++) {
                if (static_cast<int>(blockIdx.x) * IMAGES + i < args.images) sum[i] += part[i * image];
            }
            part += args.channels;
        }
#pragma unroll
        for (int i = 0; i < IMAGES; i++) piece[i * count + c] = sum[i] * args.inverse_pixels;
    }
}

__device__ __forceinline__ void write_squeezed(
    const SqueezeHiddenArguments& args, int first, int count, const float* piece) {
    const int first_image = blockIdx.x * IMAGES;
    const int images = args.images - first_image < IMAGES ? args.images - first_image : IMAGES;
    float* squeezed = args.squeezed + static_cast<size_t>(first_image) * args.channels + first;
    for (int at = threadIdx.x; at < images * count; at += THREADS) {
        squeezed[static_cast<size_t>(at / count) * args.channels + at % count] = piece[at];
    }
}

}  // namespace

KERNEL(squeeze_hidden, THREADS, SqueezeHiddenArguments) {
    SharedArena shared;
    float* piece = shared.take<float>(IMAGES * args.piece);
    const int lane = threadIdx.x % WARP, unit = blockIdx.y * WARPS + threadIdx.x / WARP;
    float sum[IMAGES] = {};
    for (int first = 0; first < args.channels; first += args.piece) {
        const int count = args.channels - first > args.piece ? args.piece : args.channels - first;
        barrier();
        stage_squeezed(args, first, count, piece);
        barrier();
        if (blockIdx.y == 0) write_squeezed(args, first, count, piece);
        if (unit >= args.units) continue;
        const float* weight = args.weight + static_cast<size_t>(unit) * args.channels + first;
#pragma unroll 8
        for (int c = lane; c < count; c += WARP) {
#pragma unroll
            for (int i = 0; i < IMAGES; i++) sum[i] = fmaf(weight[c], piece[i * count + c], sum[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
        const float total = warp_sum(sum[i]);
        const int image = blockIdx.x * IMAGES + i;
        if (lane == i && unit < args.units && image < args.images) {
            args.hidden[static_cast<size_t>(image) * args.units + unit] = args.bias[unit] + total;
        }
    }
}

// gate [N, C] = sigmoid(silu(hidden)·Wᵀ + b) with W [C, S]. A block has 64 channels, a thread one channel of two
// images.
#define SQUEEZE_GATE_FIELDS(F) \
    F(const float*, hidden)    \
    F(const float*, weight)    \
    F(const float*, bias)      \
    F(float*, gate)            \
    F(int, images)             \
    F(int, channels)           \
    F(int, units)
ARGUMENTS(SqueezeGateArguments, SQUEEZE_GATE_FIELDS)

KERNEL(squeeze_gate, THREADS, SqueezeGateArguments) {
    SharedArena shared;
    const int units = args.units, stride = units | 1;  // odd, so that lanes read different banks
    float* active = shared.take<float>(IMAGES * units);
    float* weights = shared.take<float>(SLICE * stride);
    const int first_image = blockIdx.x * IMAGES, first_channel = blockIdx.y * SLICE;
    for (int at = threadIdx.x; at < IMAGES * units; at += THREADS) {
        const int image = first_image + at / units;
        active[at] =
            image < args.images ? silu<float>(args.hidden[static_cast<size_t>(first_image) * units + at]) : 0.0f;
    }
    for (int at = threadIdx.x; at < SLICE * units; at += THREADS) {
        const int row = at / units;
        const bool inside = first_channel + row < args.channels;
        weights[row * stride + at % units] =
            inside ? args.weight[static_cast<size_t>(first_channel) * units + at] : 0.0f;
    }
    barrier();
    const int own = threadIdx.x % SLICE, pair = threadIdx.x / SLICE, channel = first_channel + own;
    if (channel >= args.channels) return;
    const float* weight = weights + own * stride;
    const float *one = active + pair * units, *other = active + (pair + PAIRS) * units;
    float z[2] = {args.bias[channel], args.bias[channel]};
#pragma unroll 4
    for (int unit = 0; unit < units; unit++) {
        z[0] = fmaf(weight[unit], one[unit], z[0]);
        z[1] = fmaf(weight[unit], other[unit], z[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int image = first_image + pair + i * PAIRS;
        if (image < args.images) {
            args.gate[static_cast<size_t>(image) * args.channels + channel] = sigmoid<float>(z[i]);
        }
    }
}
