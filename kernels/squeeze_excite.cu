// Squeeze-excite: the mean of silu(BN(y)) over each image, two small dense layers, and their gradients.
//
// Forward: `squeeze_pool` is the only pass over a wide tensor. A thread has one vector of 8 channels, so scale and
// shift stay in registers, and reads four pixels at a time, so that loads overlap. The block's rows and then the
// image's splits are added in order. `squeeze_hidden` and `squeeze_gate` are the layers: a block has 8 images, so
// each weight is read once for all of them, and neighbouring lanes read neighbouring weights.
//
// Backward: no wide tensor at all, see the five sums in src/ops/passes.rs. `squeeze_hidden_gradient` computes the
// gradients of the gate's sigmoid and its layer. `squeeze_gradient` computes that of the pooled features and the
// partial sums of the batch norm. `squeeze_weights` computes the weights' gradients, each in one block over all
// images, so they need no partial sums in memory.
//
// B0's sixteen blocks, batch 1, fp16: the pool reads 4.6 MB (2.3 million values, one tanh and six fp32 instructions
// each): floor 1.5 µs an image at 3.0 TB/s, 6.6 µs at 0.70 TB/s. The layers have 0.63 million weights and as many
// multiply-adds; the backward pass has twice as many again. With the five sums, gates and intermediate tensors they
// move 0.14 MB forward and 0.44 MB backward: floor 0.2 µs, in 64 launches a step that are bound by latency unless the
// batch is large. Last measured share: not yet measured.
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

// ---- forward ----------------------------------------------------------------------------------------------

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

// ---- backward ---------------------------------------------------------------------------------------------

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
