// The stem's passes for half types, by tensor cores. See stem.cu; the image as a matrix is in stem_planes.cuh.
#pragma once

#include "pointwise_backward.cuh"
#include "stem_planes.cuh"

// ---- forward ----------------------------------------------------------------------------------------------

// Grid: parts. `counts` [parts] and `moments` [parts + groups of them, 2, C], or null.
#define STEM_BAND_FORWARD_FIELDS(F) \
    F(const void*, image)           \
    F(const float*, weight)         \
    F(void*, y)                     \
    F(float*, counts)               \
    F(float*, moments)              \
    BATCH_NORM_FINISH_FIELDS(F)     \
    STEM_BAND_NUMBERS(F)
ARGUMENTS(StemBandForwardArguments, STEM_BAND_FORWARD_FIELDS)

// Rows of the parts, which are some tiles each.
struct StemBandParts {
    int output, rows, columns, tiles, tiles_per_part;

    // Output pixels of the tiles before a part, modulo 2^32: only differences are used.
    __device__ __forceinline__ uint32_t before(int part) const {
        const int tile = part * tiles_per_part;
        const StemBand band = StemBand::of(*this, tile < tiles ? tile : tiles);
        return (static_cast<uint32_t>(band.image) * output + band.row) * output + band.rows * band.column;
    }
    __device__ __forceinline__ int count(int first, int parts) const {
        return static_cast<int>(before(first + parts) - before(first));
    }
};

// Floats of the memory in which pixels are staged, and a block's statistics are merged, and those of all blocks.
constexpr int STEM_STAGED = 2 * 32 * STEM_SLICE + 32;

// Elements from one channel's weights to the next.
constexpr int STEM_WEIGHT_STRIDE = STEM_TAPS + LANES;

// A slice's weights as the right factor. Each is the sum of two halves, so that the product is nearly that of fp32.
template <typename T>
struct StemWeights {
    uint32_t v[2][STEM_TAPS / 16][STEM_SLICE / LANES][2];

    // Both halves into shared memory as [2, channels, stride], zero past the taps and channels.
    __device__ __forceinline__ static void share(const float* weight, int channels, int slices, T* shared) {
        const int all = slices * STEM_SLICE * STEM_TAPS;
        // Two taps at a time: pairs are converted together.
        for (int at = 2 * static_cast<int>(threadIdx.x); at < all; at += 2 * STEM_THREADS) {
            const int channel = at / STEM_TAPS;
            float value[2], stored[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int tap = at % STEM_TAPS + i;
                const int ky = tap / ROW_TAPS, kx = tap % ROW_TAPS / COLORS, color = tap % COLORS;
                const bool valid = channel < channels && tap < TAPS;
                value[i] = valid ? weight[((channel * COLORS + color) * SIDE + ky) * SIDE + kx] : 0.0f;
            }
            T* to = shared + channel * STEM_WEIGHT_STRIDE + at % STEM_TAPS;
            *reinterpret_cast<uint32_t*>(to) = packed<T>(value[0], value[1]);
            load_pair(stored, to);
            to += slices * STEM_SLICE * STEM_WEIGHT_STRIDE;
            *reinterpret_cast<uint32_t*>(to) = packed<T>(value[0] - stored[0], value[1] - stored[1]);
        }
    }
    __device__ __forceinline__ void load(const T* shared, const StemWarp& warp) {
        const int lane = threadIdx.x % WARP;
        const int channel = warp.slice * STEM_SLICE + lane % 8 + lane / 16 * 8;
        const T* from = shared + channel * STEM_WEIGHT_STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int half = 0; half < 2; half++, from += warp.slices * STEM_SLICE * STEM_WEIGHT_STRIDE)
#pragma unroll
            for (int k = 0; k < STEM_TAPS / 16; k++)
#pragma unroll
                for (int n = 0; n < STEM_SLICE / LANES; n += 2) {
                    uint32_t pair[4];
                    load_matrix_x4(pair, from + n * LANES * STEM_WEIGHT_STRIDE + k * 16);
                    v[half][k][n][0] = pair[0];
                    v[half][k][n][1] = pair[1];
                    v[half][k][n + 1][0] = pair[2];
                    v[half][k][n + 1][1] = pair[3];
                }
    }
};

// Stores a warp's octets of pixels and sums their statistics. A lane has one pixel of each, and eight channels of the
// slice, the same in all tiles.
template <typename T>
struct StemOutput {
    static constexpr int VECTORS = STEM_SLICE / LANES;
    static_assert(STEM_WARPS * 3 * STEM_SLICE <= STEM_STAGED, "a place for each warp's statistics");
    static_assert(STEM_THREADS * LANES * sizeof(T) <= STEM_STAGED * sizeof(float), "a vector for each thread");
    static_assert(MomentsMerge<STEM_SLICE, STEM_THREADS>::FLOATS == STEM_STAGED, "room for the merge");

    T* y;
    T* staged;  // [8, 32] of the warp
    int output, channels, vector, down, channel;
    bool statistics;
    float count;
    Moments moments[LANES];

    __device__ __forceinline__ StemOutput(const StemBandForwardArguments& args, const StemWarp& warp, T* all)
        : y(static_cast<T*>(args.y)), output(args.output), channels(args.channels), count(0.0f) {
        const int lane = threadIdx.x % WARP;
        staged = all + threadIdx.x / WARP * (LANES * STEM_SLICE);
        vector = lane % VECTORS;
        down = lane / VECTORS;
        channel = warp.slice * STEM_SLICE + vector * LANES;
        statistics = args.moments != nullptr;
#pragma unroll
        for (int i = 0; i < LANES; i++) moments[i] = {0.0f, 0.0f, 0.0f};
    }

    // The vectors of a staged row change places, in another order in every second row: no access has bank conflicts.
    __device__ __forceinline__ static int place(int row, int vector) {
        return row * STEM_SLICE + (vector ^ (row / 2 % VECTORS)) * LANES;
    }

    __device__ __forceinline__ void store(const float (&c)[VECTORS][4], int half, const StemBand& band, int octet) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int n = 0; n < VECTORS; n++)
            store_pair(staged + place(lane / 4, n) + lane % 4 * 2, c[n][2 * half], c[n][2 * half + 1]);
        warp_barrier();
        const int row = band.across.quotient(octet), column = (octet - row * band.across.by) * LANES + down;
        if (column < band.width && channel < channels) {
            float values[LANES];
            load_lanes(values, staged + place(down, vector));
            const size_t pixel = (band.image * output + band.row + row) * output + band.column + column;
            store_lanes(y + pixel * channels + channel, values);
            if (statistics) {
#pragma unroll
                for (int i = 0; i < LANES; i++) {
                    if (count == 0.0f) moments[i].shift = values[i];
                    moments[i].add(values[i]);
                }
                count += 1.0f;
            }
        }
        warp_barrier();
    }

    // The block's part of the statistics, merged over lanes, then warps, in their order. The last block makes the coefficients
    // of all. All threads call this.
    __device__ __forceinline__ void finish(
        const StemBandForwardArguments& args, const StemWarp& warp, float* scratch) {
        float mean[LANES], spread[LANES], number = count;
#pragma unroll
        for (int i = 0; i < LANES; i++) moments[i].finish(count, mean[i], spread[i]);
#pragma unroll 1
        for (int other = 1; other < LANES; other++) {
            const int from = vector + other * VECTORS;
            const float more = shuffle(count, from);
            const float before = number;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float other_mean = shuffle(mean[i], from), other_spread = shuffle(spread[i], from);
                if (down == 0) number = merge_moments(before, mean[i], spread[i], more, other_mean, other_spread);
            }
        }
        barrier();  // no warp needs its staged pixels any more
        if (down == 0) {
            float* to = scratch + threadIdx.x / WARP * (3 * STEM_SLICE) + vector * LANES;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                to[i] = number;
                to[STEM_SLICE + i] = mean[i];
                to[2 * STEM_SLICE + i] = spread[i];
            }
        }
        barrier();
        const int own = static_cast<int>(threadIdx.x);
        if (own < channels) {
            float all = 0.0f, all_mean = 0.0f, all_spread = 0.0f;
            for (int piece = 0; piece < warp.step; piece++) {
                const int other = piece * warp.slices + own / STEM_SLICE;
                const float* from = scratch + other * (3 * STEM_SLICE) + own % STEM_SLICE;
                all = merge_moments(all, all_mean, all_spread, from[0], from[STEM_SLICE], from[2 * STEM_SLICE]);
            }
            float* out = args.moments + 2 * static_cast<size_t>(blockIdx.x) * channels;
            out[own] = all_mean;
            out[channels + own] = all_spread;
        }
        const StemBandParts parts = {args.output, args.rows, args.columns, args.tiles, args.tiles_per_part};
        if (own == 0) args.counts[blockIdx.x] = static_cast<float>(parts.count(blockIdx.x, 1));
        for (int slice = 0; slice < warp.slices; slice++) {
            finish_batch_norm<STEM_SLICE, STEM_THREADS>(
                args, scratch, slice, channels, blockIdx.x, gridDim.x, parts);
        }
    }
};

template <typename T>
__device__ __forceinline__ void stem_forward_half(const StemBandForwardArguments& args) {
    SharedArena arena;
    const StemWarp warp(args.channels);
    T* shared_weights = arena.take<T>(2 * warp.slices * STEM_SLICE * STEM_WEIGHT_STRIDE);
    const StemPlanes<T> planes(args, arena);
    float* scratch = arena.take<float>(STEM_STAGED);
    StemOutput<T> output(args, warp, reinterpret_cast<T*>(scratch));
    StemWeights<T>::share(args.weight, args.channels, warp.slices, shared_weights);
    planes.clear();
    const int begin = static_cast<int>(blockIdx.x) * args.tiles_per_part;
    const int end = begin + args.tiles_per_part < args.tiles ? begin + args.tiles_per_part : args.tiles;
    StemBand next = StemBand::of(args, begin);
    planes.begin(next);
    copy_async_commit();
    barrier();
    StemWeights<T> weights;
    weights.load(shared_weights, warp);

    const int lane = threadIdx.x % WARP, tap = lane % 8 + lane / 16 * 8;
#pragma unroll 1
    for (int number = begin; number < end; number++) {
        const StemBand band = next;
        next = band.next(args);
        copy_async_wait<0>();
        barrier();
        planes.form(band);
        barrier();
        if (number + 1 < end) planes.begin(next);
        copy_async_commit();
        const int octets = warp.idle() ? 0 : band.octets();
#pragma unroll 1
        for (int octet = 2 * warp.first; octet < octets; octet += 2 * warp.step) {
            const bool both = octet + 1 < octets;  // otherwise the same pixels are multiplied twice
            const T* from = planes.matrix(band, octet + (both ? lane / 8 % 2 : 0)) + tap * planes.pitch;
            float c[1][StemOutput<T>::VECTORS][4] = {};
#pragma unroll
            for (int k = 0; k < STEM_TAPS / 16; k++) {
                uint32_t left[1][4];
                load_matrix_x4_transposed(left[0], from + k * 16 * planes.pitch);
                mma_tiles<T>(c, left, weights.v[0][k]);
                mma_tiles<T>(c, left, weights.v[1][k]);
            }
            output.store(c[0], 0, band, octet);
            if (both) output.store(c[0], 1, band, octet + 1);
        }
    }
    if (args.moments != nullptr) output.finish(args, warp, scratch);
}

// ---- backward ---------------------------------------------------------------------------------------------

// Grid: parts. `partials` [parts, C, 3, 3, 3].
#define STEM_BAND_BACKWARD_FIELDS(F) \
    F(const void*, image)            \
    F(const void*, y)                \
    F(const void*, du)               \
    F(const float*, coefficients)    \
    F(const float*, sums)            \
    F(float*, partials)              \
    STEM_BAND_NUMBERS(F)             \
    F(float, inverse_rows)
ARGUMENTS(StemBandBackwardArguments, STEM_BAND_BACKWARD_FIELDS)

// dy of a tile in shared memory, [pixels, stride]. A thread has eight channels of some pixels, whose du and y it copies
// and turns into dy.
template <typename T>
struct StemGradient {
    const T *du, *y;
    T* raw;   // [2, pixels, C]: du, y; at the end the warps' sums
    T* tile;  // [pixels and 8 more, stride], and room for a slice that is not full
    int output, channels, stride, half;
    int channel, lane, lanes;  // the thread's channels, its first pixel and the step to the next
    NormLanes norm;

    __device__ __forceinline__ StemGradient(const StemBandBackwardArguments& args, float* scratch, SharedArena& arena)
        : du(static_cast<const T*>(args.du)), y(static_cast<const T*>(args.y)), raw(reinterpret_cast<T*>(scratch)) {
        output = args.output;
        channels = args.channels;
        stride = (channels / LANES | 1) * LANES;
        half = args.rows * args.columns * channels;
        tile = arena.take<T>((args.rows * args.columns + LANES) * stride + STEM_SLICE);
        const int octets = channels / LANES;
        lanes = STEM_THREADS / octets;
        lane = static_cast<int>(threadIdx.x) / octets;
        channel = static_cast<int>(threadIdx.x) % octets * LANES;
        norm.load(args.coefficients, args.sums, channels, channel, args.inverse_rows);
        if (lane >= lanes) lane = 1 << 30;
    }

    // Zeros, also where a slice is not full and no tile writes: products read it.
    __device__ __forceinline__ void clear(const StemBandBackwardArguments& args) const {
        const float zeros[LANES] = {};
        const int size = (args.rows * args.columns + LANES) * stride + STEM_SLICE;
        for (int at = static_cast<int>(threadIdx.x) * LANES; at < size; at += STEM_THREADS * LANES)
            store_lanes(tile + at, zeros);
    }
    __device__ __forceinline__ void begin(const StemBand& band) const {
        const int width = band.across.by * LANES, all = band.rows * width;
#pragma unroll 1
        for (int at = lane; at < all; at += lanes) {
            const int row = band.across.quotient(at / LANES), column = at - row * width;
            if (column >= band.width) continue;
            const size_t pixel = (band.image * output + band.row + row) * output + band.column + column;
            copy_async_16(raw + at * channels + channel, du + pixel * channels + channel);
            copy_async_16(raw + half + at * channels + channel, y + pixel * channels + channel);
        }
    }
    // Pixels past a row's end are zero, and those that make the number of octets even.
    __device__ __forceinline__ void form(const StemBand& band) const {
        const int width = band.across.by * LANES, all = band.rows * width, even = (all + 15) / 16 * 16;
#pragma unroll 1
        for (int at = lane; at < even; at += lanes) {
            float dy[LANES] = {};
            if (at < all && at - band.across.quotient(at / LANES) * width < band.width) {
                float value[LANES];
                load_lanes(dy, raw + at * channels + channel);
                load_lanes(value, raw + half + at * channels + channel);
                norm.apply(dy, value);
            }
            store_lanes(tile + at * stride + channel, dy);
        }
    }
};

// The sums of a warp: 32 channels by 32 taps.
using StemSums = float[STEM_SLICE / 16][STEM_TAPS / LANES][4];

// Adds the products of a tile.
template <typename T>
__device__ __forceinline__ void add_products(
    StemSums& c, const StemBand& band, const StemWarp& warp, const StemPlanes<T>& planes,
    const StemGradient<T>& gradient) {
    const int lane = threadIdx.x % WARP, octets = warp.idle() ? 0 : band.octets();
    const T* dy = gradient.tile + (lane % 8 + lane / 16 * 8) * gradient.stride + lane / 8 % 2 * 8;
    dy += warp.slice * STEM_SLICE;
#pragma unroll 1
    for (int octet = 2 * warp.first; octet < octets; octet += 2 * warp.step) {
        uint32_t left[STEM_SLICE / 16][4], right[STEM_TAPS / LANES][2];
#pragma unroll
        for (int m = 0; m < STEM_SLICE / 16; m++)
            load_matrix_x4_transposed(left[m], dy + octet * LANES * gradient.stride + 16 * m);
        // Past the last octet dy is zero, and any values will do.
        const int own = octet + 1 < octets ? octet + lane / 8 % 2 : octet;
        const T* from = planes.matrix(band, own) + (lane % 8 + lane / 16 * 8) * planes.pitch;
#pragma unroll
        for (int n = 0; n < STEM_TAPS / LANES; n += 2) {
            uint32_t pair[4];
            load_matrix_x4(pair, from + n * LANES * planes.pitch);
            right[n][0] = pair[0];
            right[n][1] = pair[1];
            right[n + 1][0] = pair[2];
            right[n + 1][1] = pair[3];
        }
        mma_tiles<T>(c, left, right);
    }
}

// Floats in which the warps' sums are added.
constexpr int STEM_SCRATCH = STEM_WARPS * 16 * STEM_TAPS;

// Writes the part's gradient from the warps' sums, 16 channels of each slice at a time.
__device__ __forceinline__ void finish_products(
    const StemBandBackwardArguments& args, const StemWarp& warp, const StemSums& c, float* scratch) {
    const int lane = threadIdx.x % WARP;
    float* own = scratch + threadIdx.x / WARP * (16 * STEM_TAPS) + lane / 4 * STEM_TAPS + lane % 4 * 2;
    float* out = args.partials + static_cast<size_t>(blockIdx.x) * TAPS * args.channels;
#pragma unroll
    for (int m = 0; m < STEM_SLICE / 16; m++) {
        barrier();
#pragma unroll
        for (int n = 0; n < STEM_TAPS / LANES; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                store_pair(own + half * 8 * STEM_TAPS + n * LANES, c[m][n][2 * half], c[m][n][2 * half + 1]);
        barrier();
        for (int at = threadIdx.x; at < warp.slices * 16 * TAPS; at += STEM_THREADS) {
            const int tap = at % TAPS, line = at / TAPS % 16, slice = at / (16 * TAPS);
            const int channel = slice * STEM_SLICE + m * 16 + line;
            if (channel >= args.channels) continue;
            float total = 0.0f;
            for (int piece = 0; piece < warp.step; piece++)
                total += scratch[((piece * warp.slices + slice) * 16 + line) * STEM_TAPS + tap];
            const int ky = tap / ROW_TAPS, kx = tap % ROW_TAPS / COLORS;
            out[((channel * COLORS + tap % COLORS) * SIDE + ky) * SIDE + kx] = total;
        }
    }
}

template <typename T>
__device__ __forceinline__ void stem_backward_half(const StemBandBackwardArguments& args) {
    SharedArena arena;
    const StemWarp warp(args.channels);
    const StemPlanes<T> planes(args, arena);
    const int raw = args.rows * args.columns * args.channels;  // floats for two halves of each
    float* scratch = arena.take<float>(raw > STEM_SCRATCH ? raw : STEM_SCRATCH);
    const StemGradient<T> gradient(args, scratch, arena);
    planes.clear();
    gradient.clear(args);
    const int begin = static_cast<int>(blockIdx.x) * args.tiles_per_part;
    const int end = begin + args.tiles_per_part < args.tiles ? begin + args.tiles_per_part : args.tiles;
    const auto copy = [&](const StemBand& band) {
        gradient.begin(band);
        planes.begin(band);
    };
    StemBand next = StemBand::of(args, begin);
    copy(next);
    copy_async_commit();
    StemSums c = {};
#pragma unroll 1
    for (int number = begin; number < end; number++) {
        const StemBand band = next;
        next = band.next(args);
        copy_async_wait<0>();
        barrier();
        gradient.form(band);
        planes.form(band);
        barrier();
        if (number + 1 < end) copy(next);
        copy_async_commit();
        add_products(c, band, warp, planes, gradient);
    }
    finish_products(args, warp, c, scratch);
}
