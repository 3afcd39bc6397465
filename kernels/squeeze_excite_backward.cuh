// Squeeze-excite backward. See squeeze_excite.cu.
#pragma once

#include "batch_norm_sums.cuh"
#include "squeeze_excite_forward.cuh"

namespace {

constexpr int SLICE = 64;        // channels of a block, where a block has images of one group
constexpr int UNITS = 8;         // of a tile of narrow tensors
static_assert(SLICE * HALF == THREADS, "how threads divide a slice");
static_assert(UNITS == LANES && UNITS == WARPS, "how threads divide the units");

// Narrow tensors are [S/8, N, 8] here, with N filled up to whole groups and S to whole tiles. So a block that has eight
// units of many images reads neighbouring numbers.
__device__ __forceinline__ size_t narrow_place(int images, int image, int unit) {
    const size_t padded = (images + IMAGES - 1) / IMAGES * IMAGES;
    return (unit / UNITS * padded + image) * UNITS + unit % UNITS;
}

}  // namespace

// dz [N, C] = S0·gate·(1 − gate); active = silu(hidden), dhidden = (dz·W)·silu'(hidden) with W [C, S], both narrow. A
// block has a group of images, a slice of channels and at most THREADS units. It writes what the slice adds to dz·W,
// parts [N/8, blocks of units, slices, 8, units]; the last slice adds them. `arrivals` [N/8, blocks of units].
#define SQUEEZE_HIDDEN_GRADIENT_FIELDS(F) \
    F(const float*, gate_gradient)        \
    F(const float*, gate)                 \
    F(const float*, hidden)               \
    F(const float*, weight)               \
    F(float*, parts)                      \
    F(unsigned*, arrivals)                \
    F(float*, dz)                         \
    F(float*, active)                     \
    F(float*, dhidden)                    \
    F(int, images)                        \
    F(int, channels)                      \
    F(int, units)
ARGUMENTS(SqueezeHiddenGradientArguments, SQUEEZE_HIDDEN_GRADIENT_FIELDS)

namespace {

// Writes dz of the group and the slice from `first` on to memory and to `piece` [2, SLICE, HALF].
__device__ __forceinline__ void stage_dz(
    const SqueezeHiddenGradientArguments& args, const ImageGroup& group, int first, float* piece) {
    const int thread = threadIdx.x, channel = first + thread / HALF;
    float gate[2] = {}, dz[2] = {};
    bool there[2];
    size_t at[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int image = half * HALF + thread % HALF;
        there[half] = image < group.count && channel < args.channels;
        at[half] = static_cast<size_t>(group.first + image) * args.channels + channel;
        if (there[half]) {
            gate[half] = args.gate[at[half]];
            dz[half] = args.gate_gradient[at[half]];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        dz[half] *= gate[half] * (1.0f - gate[half]);
        piece[half * THREADS + thread] = dz[half];
        if (blockIdx.z == 0 && there[half]) args.dz[at[half]] = dz[half];
    }
}

// How a block's threads divide [channels of the slice, units]: neighbouring threads have neighbouring weights.
struct UnitRows {
    static constexpr int MOST = 16;
    int width, rows, row, unit;

    __device__ __forceinline__ explicit UnitRows(int units) {
        const int left = units - static_cast<int>(blockIdx.z) * THREADS;
        width = left < THREADS ? left : THREADS;
        rows = THREADS / width < MOST ? THREADS / width : MOST;
        row = threadIdx.x / width;
        unit = blockIdx.z * THREADS + threadIdx.x % width;
    }
};

// Adds the products of every `rows`-th channel of the slice. The first weights are loaded before `stage` has the other
// factor, so both are under way at once.
template <class Stage>
__device__ __forceinline__ void add_channels(
    const float* weights, int units, int count, const UnitRows& own, const float* piece, float (&sum)[IMAGES],
    Stage stage) {
    constexpr int BATCH = 8;
    const int left = own.row < own.rows ? count - own.row : 0, step = own.rows * units;
    weights += own.row * units + own.unit;
    for (int first = 0; first < count; first += BATCH * own.rows) {
        float w[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) w[k] = first + k * own.rows < left ? weights[k * step] : 0.0f;
        weights += BATCH * step;
        if (first == 0) {
            stage();
            barrier();
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int c = first + k * own.rows;
            if (c >= count) break;
            float dz[IMAGES];
            load_images(dz, piece, SLICE, c < left ? c + own.row : 0);
            add_products(w[k], dz, sum);
        }
    }
}

// Adds the slices' parts, and writes both narrow tensors of the group.
__device__ __forceinline__ void finish_dhidden(
    const SqueezeHiddenGradientArguments& args, const ImageGroup& group, const float* parts, int size) {
    const int first = blockIdx.z * THREADS, left = args.units - first, width = left < THREADS ? left : THREADS;
    const int whole = (width + UNITS - 1) / UNITS * UNITS;
    for (int at = threadIdx.x; at < IMAGES * whole; at += THREADS) {
        const int own = at / IMAGES % UNITS + at / (IMAGES * UNITS) * UNITS, image = at % IMAGES, unit = first + own;
        float total = 0.0f, value = 0.0f, slope = 0.0f;
        if (own < width && image < group.count) {
            const float* part = parts + (image / HALF * width + own) * HALF + image % HALF;
#pragma unroll 9
            for (int slice = 0; slice < static_cast<int>(gridDim.y); slice++) total += part[slice * size];
            silu_and_slope<float>(
                args.hidden[static_cast<size_t>(group.first + image) * args.units + unit], value, slope);
        }
        const size_t to = narrow_place(args.images, group.first + image, unit);
        args.active[to] = value;
        args.dhidden[to] = total * slope;
    }
}

}  // namespace

KERNEL(squeeze_hidden_gradient, THREADS, SqueezeHiddenGradientArguments) {
    SharedArena shared;
    float* piece = shared.take<float>(IMAGES * SLICE);
    float* sums = shared.take<float>(IMAGES * THREADS);
    const ImageGroup group(blockIdx.x, args.images);
    const UnitRows own(args.units);
    const int first = blockIdx.y * SLICE, count = args.channels - first < SLICE ? args.channels - first : SLICE;
    float sum[IMAGES] = {};
    const float* weights = args.weight + static_cast<size_t>(first) * args.units;
    add_channels(weights, args.units, count, own, piece, sum, [&] { stage_dz(args, group, first, piece); });
    store_images(sums, THREADS, threadIdx.x, sum);
    barrier();
    const size_t block = blockIdx.x * gridDim.z + blockIdx.z;
    const int size = IMAGES * (args.units < THREADS ? args.units : THREADS);  // of a part
    float* parts = args.parts + block * gridDim.y * size;
    float* part = parts + blockIdx.y * size;
    for (int at = threadIdx.x; at < IMAGES * own.width; at += THREADS) {
        const GroupElement of(at, own.width);
        const float* from = sums + (of.image / HALF * THREADS + of.row) * HALF + of.image % HALF;
        float total = 0.0f;
#pragma unroll 8
        for (int row = 0; row < own.rows; row++) total += from[row * own.width * HALF];
        part[at] = total;
    }
    if (last_to_arrive(args.arrivals + block, gridDim.y)) finish_dhidden(args, group, parts, size);
}

// All else in one launch, since neither needs the other. First the gradients of both layers: We [C, S] += dzᵀ·active, be
// += Σ dz; Wr [S, C] += dhiddenᵀ·squeezed, br += Σ dhidden. A block has 64 channels and 8 units over all images.
// Then d [N, C] = dhidden·W/pixels with W [S, C], and the batch norm's partials [N/8, 2, C]: over a group of images
// Σ(gate·S1 + d·S2) and Σ(gate·S3 + d·S4). A block has a group and a slice of channels. The last group adds the partials
// to the sums [2, C], and these to the gradients of β and γ. `arrivals` [slices].
#define SQUEEZE_GRADIENTS_FIELDS(F)   \
    F(const float*, five_sums)        \
    F(const float*, gate)             \
    F(const float*, squeezed)         \
    F(const float*, dz)               \
    F(const float*, active)           \
    F(const float*, dhidden)          \
    F(const float*, weight)           \
    F(float*, squeeze_gradient)       \
    F(float*, partials)               \
    BATCH_NORM_SUMS_FIELDS(F)         \
    F(float*, expand_weight)          \
    F(float*, expand_bias)            \
    F(float*, reduce_weight)          \
    F(float*, reduce_bias)            \
    F(int, images)                    \
    F(int, channels)                  \
    F(int, units)                     \
    F(int, weight_blocks)             \
    F(float, inverse_pixels)
ARGUMENTS(SqueezeGradientsArguments, SQUEEZE_GRADIENTS_FIELDS)

namespace {

constexpr int PAIR = 2;                       // channels of a lane, 32 apart
constexpr int WEIGHT_CHANNELS = PAIR * WARP;  // of a block
constexpr int BATCH = 128;                    // images whose units are in shared memory at once
constexpr int ROW = WEIGHT_CHANNELS + 4;      // of the warps' sums, padded so that 8 units of 4 channels lie in 32 banks
constexpr int WEIGHT_FLOATS = BATCH * UNITS + WARPS * (UNITS + 1) * ROW + WARPS * UNITS;
static_assert(BATCH * UNITS == THREADS * 4, "16 bytes of the piece for each thread");

// Which weights a block has.
struct WeightTile {
    bool expand;
    int channel, unit;  // the first

    __device__ __forceinline__ explicit WeightTile(const SqueezeGradientsArguments& args) {
        const int block = blockIdx.x, half = args.weight_blocks / 2, tiles = (args.units + UNITS - 1) / UNITS;
        expand = block < half;
        channel = (expand ? block : block - half) / tiles * WEIGHT_CHANNELS;
        unit = (expand ? block : block - half) % tiles * UNITS;
    }
};

// The sums of a thread.
struct WeightSums {
    float products[PAIR][UNITS] = {};
    float wide[PAIR] = {};  // of its channels
    float narrow = 0.0f;    // of the unit thread % 8, over every 32nd image
};

// Adds BATCH images from `first` on; missing ones are zero. All threads call this.
__device__ __forceinline__ void add_images(
    const SqueezeGradientsArguments& args, const WeightTile& tile, int first, float* piece, WeightSums& sum) {
    constexpr int STEPS = BATCH / WARPS;
    const int thread = threadIdx.x, warp = thread / WARP, channel = tile.channel + thread % WARP;
    const float* narrow = tile.expand ? args.active : args.dhidden;
    float x[PAIR][STEPS], units[4] = {};
#pragma unroll
    for (int c = 0; c < PAIR; c++) {
        const int own = channel + c * WARP, left = own < args.channels ? args.images - first - warp : 0;
        const float* wide = tile.expand ? args.dz : args.squeezed;
        wide += (first + static_cast<size_t>(warp)) * args.channels + own;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            x[c][step] = step * WARPS < left ? *wide : 0.0f;
            wide += WARPS * args.channels;
        }
    }
    const int image = first + thread * 4 / UNITS, padded = (args.images + IMAGES - 1) / IMAGES * IMAGES;
    if (image < padded) {
        load_lanes(units, narrow + narrow_place(args.images, image, tile.unit) + thread * 4 % UNITS);
    }
    barrier();
    store_group(piece + thread * 4, units);
    barrier();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (first + step * WARPS >= args.images) break;
        float values[UNITS];
        load_lanes(values, piece + (step * WARPS + warp) * UNITS);
#pragma unroll
        for (int c = 0; c < PAIR; c++) {
            add_products(x[c][step], values, sum.products[c]);
            sum.wide[c] += x[c][step];
        }
    }
    if (!tile.expand && tile.channel == 0) {
#pragma unroll
        for (int at = 0; at < BATCH * UNITS; at += THREADS) sum.narrow += piece[at + thread];
    }
}

// Of row `row` of the warps' sums [WARPS, UNITS + 1, ROW].
__device__ __forceinline__ float over_warps(const float* sums, int row, int channel) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) total += sums[(warp * (UNITS + 1) + row) * ROW + channel];
    return total;
}

// Adds to the block's gradients what the warps have summed: `sums`, and `narrow` [WARPS, UNITS].
__device__ __forceinline__ void finish_weights(
    const SqueezeGradientsArguments& args, const WeightTile& tile, const float* sums, const float* narrow) {
    const int thread = threadIdx.x;
    // Neighbouring threads write neighbouring elements: units of [C, S], channels of [S, C].
#pragma unroll
    for (int at = thread; at < WEIGHT_CHANNELS * UNITS; at += THREADS) {
        const int row = tile.expand ? at % UNITS : at / WEIGHT_CHANNELS;
        const int column = tile.expand ? at / UNITS : at % WEIGHT_CHANNELS;
        const int channel = tile.channel + column, unit = tile.unit + row;
        if (channel >= args.channels || unit >= args.units) continue;
        float* gradient = tile.expand ? args.expand_weight + static_cast<size_t>(channel) * args.units + unit
                                      : args.reduce_weight + static_cast<size_t>(unit) * args.channels + channel;
        add_to_gradient(gradient, over_warps(sums, row, column), args.block);
    }
    if (tile.expand && tile.unit == 0 && thread < WEIGHT_CHANNELS && tile.channel + thread < args.channels) {
        add_to_gradient(args.expand_bias + tile.channel + thread, over_warps(sums, UNITS, thread), args.block);
    }
    if (!tile.expand && tile.channel == 0 && thread < UNITS && tile.unit + thread < args.units) {
        float total = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; from++) total += narrow[from * UNITS + thread];
        add_to_gradient(args.reduce_bias + tile.unit + thread, total, args.block);
    }
}

__device__ __forceinline__ void add_weights(const SqueezeGradientsArguments& args, float* shared) {
    float* sums = shared + BATCH * UNITS;
    float* narrow = sums + WARPS * (UNITS + 1) * ROW;
    const WeightTile tile(args);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    WeightSums own;
    for (int first = 0; first < args.images; first += BATCH) add_images(args, tile, first, shared, own);
#pragma unroll
    for (int c = 0; c < PAIR; c++) {
        float* to = sums + warp * (UNITS + 1) * ROW + c * WARP + lane;
#pragma unroll
        for (int i = 0; i < UNITS; i++) to[i * ROW] = own.products[c][i];
        to[UNITS * ROW] = own.wide[c];
    }
    own.narrow += shuffle_xor(own.narrow, UNITS);
    own.narrow += shuffle_xor(own.narrow, 2 * UNITS);
    if (lane < UNITS) narrow[warp * UNITS + lane] = own.narrow;
    barrier();
    finish_weights(args, tile, sums, narrow);
}

constexpr int QUARTERS = THREADS / SLICE;   // of the units, in the product with Wr
static_assert(IMAGES == 2 * QUARTERS, "a thread completes two images");

// What the batch norm's sums need of a thread's two images.
struct TwoImages {
    float gate[2] = {}, five[2][4] = {};

    __device__ __forceinline__ TwoImages(
        const SqueezeGradientsArguments& args, const ImageGroup& group, int own, int channel) {
        const size_t at = static_cast<size_t>(group.first + own) * args.channels + channel;
        const float* five_sums = args.five_sums + at;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (own + i * QUARTERS < group.count && channel < args.channels) {
                gate[i] = args.gate[at + i * QUARTERS * args.channels];
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            five_sums += static_cast<size_t>(args.images) * args.channels;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (own + i * QUARTERS < group.count && channel < args.channels) {
                    five[i][k] = five_sums[i * QUARTERS * args.channels];
                }
            }
        }
    }
};

// Writes the products with a quarter of the units, of all images of the group, to `sums` [QUARTERS, IMAGES, SLICE].
__device__ __forceinline__ void add_units(
    const SqueezeGradientsArguments& args, const ImageGroup& group, int channel, float* dhidden, float* sums) {
    constexpr int STEPS = 12;
    const int own = threadIdx.x % SLICE, quarter = threadIdx.x / SLICE, units = args.units;
    const int left = channel < args.channels ? units - quarter : 0;
    const float* weight = args.weight + (channel < args.channels ? quarter * args.channels + channel : 0);
    float sum[IMAGES] = {};
    for (int first = 0; first < units; first += STEPS * QUARTERS) {
        float w[STEPS];
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            w[step] = first + step * QUARTERS < left ? *weight : 0.0f;
            weight += QUARTERS * args.channels;
        }
        if (first == 0) {
            for (int at = threadIdx.x; at < IMAGES * units; at += THREADS) {
                const GroupElement of(at, units);
                dhidden[at] = args.dhidden[narrow_place(args.images, group.first + of.image, of.row)];
            }
            barrier();
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int unit = first + step * QUARTERS;
            if (unit >= units) break;
            float values[IMAGES];
            load_images(values, dhidden, units, unit + quarter < units ? unit + quarter : 0);
            add_products(w[step], values, sum);
        }
    }
#pragma unroll
    for (int i = 0; i < IMAGES; i++) sums[(quarter * IMAGES + i) * SLICE + own] = sum[i];
}

__device__ __forceinline__ void pass_on(const SqueezeGradientsArguments& args, float* shared) {
    const int slices = (args.channels + SLICE - 1) / SLICE, block = blockIdx.x - args.weight_blocks;
    const int slice = block % slices, groups = (args.images + IMAGES - 1) / IMAGES;
    const ImageGroup group(block / slices, args.images);
    float* sums = shared;                                       // [QUARTERS, IMAGES, SLICE]
    float* norm_sums = sums + QUARTERS * IMAGES * SLICE;        // [2, QUARTERS, SLICE]
    float* dhidden = norm_sums + 2 * THREADS;                   // [2, units, HALF]
    const int own = threadIdx.x % SLICE, quarter = threadIdx.x / SLICE, channel = slice * SLICE + own;
    const TwoImages images(args, group, quarter, channel);
    add_units(args, group, channel, dhidden, sums);
    barrier();
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int image = quarter + i * QUARTERS;
        float d = 0.0f;
#pragma unroll
        for (int from = 0; from < QUARTERS; from++) d += sums[(from * IMAGES + image) * SLICE + own];
        d *= args.inverse_pixels;
        if (image < group.count && channel < args.channels) {
            args.squeeze_gradient[static_cast<size_t>(group.first + image) * args.channels + channel] = d;
        }
        sum[0] += fmaf(images.gate[i], images.five[i][0], d * images.five[i][1]);
        sum[1] += fmaf(images.gate[i], images.five[i][2], d * images.five[i][3]);
    }
    norm_sums[threadIdx.x] = sum[0];
    norm_sums[THREADS + threadIdx.x] = sum[1];
    barrier();
    // Two of the four quarters write one row each.
    if (quarter < 2 && channel < args.channels) {
        float total = 0.0f;
#pragma unroll
        for (int from = 0; from < QUARTERS; from++) total += norm_sums[(quarter * QUARTERS + from) * SLICE + own];
        args.partials[(2 * static_cast<size_t>(group.number) + quarter) * args.channels + channel] = total;
    }
    static_assert(SumsOfRows<SLICE, THREADS>::FLOATS <= QUARTERS * IMAGES * SLICE, "a place for the sums");
    finish_norm_sums<SLICE, THREADS>(args, args.partials, shared, slice, args.channels, group.number, groups);
}

}  // namespace

KERNEL_BLOCKS(squeeze_gradients, THREADS, 3, SqueezeGradientsArguments) {
    SharedArena shared;
    const int floats = QUARTERS * IMAGES * SLICE + 2 * THREADS + IMAGES * args.units;
    float* all = shared.take<float>(floats > WEIGHT_FLOATS ? floats : WEIGHT_FLOATS);
    if (static_cast<int>(blockIdx.x) < args.weight_blocks) {
        add_weights(args, all);
    } else {
        pass_on(args, all);
    }
}
