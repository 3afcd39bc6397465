// Depthwise convolution, backward, in one sweep: batch norm and silu of its output while loading, the gradient at its
// input, the gradient of its weights, and the sums for the batch norm before.
//
// The gradient dy at the convolution's output is computed once per element, when a row is loaded into a ring in
// shared memory: du = (da·gate + squeeze gradient)·silu'(z), then batch norm's backward. A thread has 4 neighbouring
// positions of the *input* map, and it alone loads their x. Each tap (i, j) that connects its position to an output
// gives two multiply-adds with the same dy: da1 += w[i, j]·dy, and dw[i, j] += a1·dy. So neither x nor a1 is shared
// between threads, and dx is stored from the registers in which it was computed. With stride 2 a position has only
// the taps of its parity: for columns this is decided by unrolling, for rows by a test.
//
// The ring holds the storage type (see depthwise_forward.cuh). A thread's sums of the taps stay in registers until the
// block ends: with 2 channels, 18 sums for 3×3 and 50 for 5×5.
//
// Bytes, operations and floors at B0's shapes: depthwise.cu.
#pragma once

#include "depthwise_forward.cuh"

#define DEPTHWISE_BACKWARD_FIELDS(F)                                                            \
    F(const void*, x)                                                                           \
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
    F(float*, sum_partials)           /* [parts, 2, C] */                                       \
    F(int, images)                                                                              \
    F(int, channels)                                                                            \
    F(int, input)                                                                               \
    F(int, output)                                                                              \
    F(int, pad)                                                                                 \
    F(int, vectors)                                                                             \
    F(int, rows) /* input rows of an iteration */                                               \
    F(int, together)                                                                            \
    F(int, images_per_block)                                                                    \
    F(int, strips)                                                                              \
    F(int, strip_rows)                                                                          \
    F(float, inverse_rows) /* of the output's batch norm */
ARGUMENTS(DepthwiseBackwardArguments, DEPTHWISE_BACKWARD_FIELDS)

// Rows of per-channel constants in shared memory.
enum DepthwiseConstant { OUT_SCALE, OUT_SHIFT, OUT_MEAN, OUT_B, OUT_C, IN_MEAN, IN_RECIPROCAL, IN_SCALE, IN_SHIFT,
                         END_OF_CONSTANTS };
constexpr int DEPTHWISE_CONSTANTS = 9;
static_assert(DEPTHWISE_CONSTANTS == END_OF_CONSTANTS, "each has a row");
// Channels of a thread.
constexpr int DEPTHWISE_CHANNELS = 2;

template <typename T, int K, int STRIDE, bool NORMALISED>
struct DepthwiseBackward {
    static constexpr int THREADS = depthwise_threads(K), WARPS = THREADS / WARP;
    static constexpr int C = DEPTHWISE_CHANNELS;
    using Stored = Group<T, C>;
    // Eight channels in their storage type.
    struct alignas(16) Vector {
        T v[LANES];
    };
    static constexpr int COLUMNS = DEPTHWISE_COLUMNS;
    // Output column `xo` and input column `x` are connected by tap x + pad − STRIDE·xo. For a thread's first column
    // x0, x0 + pad is divisible by the stride, so its columns need the output columns (x0 + pad)/STRIDE − BEFORE and
    // the following REACHED − 1.
    static constexpr int BEFORE = (K - 1) / STRIDE;
    static constexpr int REACHED = (COLUMNS - 1) / STRIDE + 1 + BEFORE;
    static constexpr int SUMS = K * K * C + 2 * C;

    const DepthwiseBackwardArguments& args;
    // First column of the first thread (0 or −1), threads along a row, output column of ring column 0.
    int origin, workers, base;
    int reach, ring_rows, slice_channels, first_channel;
    T* ring;
    float* weights;    // [K·K, slice_channels]
    float* constants;  // [DEPTHWISE_CONSTANTS, slice_channels]
    float* factors;    // [together, 2, slice_channels]: gate, squeeze gradient

    __device__ __forceinline__ explicit DepthwiseBackward(const DepthwiseBackwardArguments& arguments)
        : args(arguments) {
        origin = -(args.pad % STRIDE);
        workers = (args.input - origin + COLUMNS - 1) / COLUMNS;
        base = (origin + args.pad) / STRIDE - BEFORE;
        reach = (workers - 1) * COLUMNS / STRIDE + REACHED;
        if (reach < args.output - base) reach = args.output - base;
        ring_rows = (args.rows - 1 + K - 1) / STRIDE + 2;
        slice_channels = args.vectors * LANES;
        first_channel = blockIdx.x * slice_channels;
    }

    __device__ __forceinline__ void prepare() {
        const int cells = args.together * ring_rows * reach * args.vectors;
        const float zero[LANES] = {};
        for (int i = threadIdx.x; i < cells; i += THREADS) store_lanes(ring + i * LANES, zero);
        for (int i = threadIdx.x; i < K * K * slice_channels; i += THREADS) {
            const int tap = i / slice_channels, channel = first_channel + i % slice_channels;
            weights[i] = channel < args.channels ? args.weight[channel * K * K + tap] : 0.0f;
        }
        for (int i = threadIdx.x; i < slice_channels; i += THREADS) {
            const int channel = first_channel + i;
            if (channel < args.channels) set_constants(i, channel);
        }
        // The barrier after the first factors also covers these.
    }

    __device__ __forceinline__ void set_constants(int i, int channel) {
        const auto norm =
            NormBackward::of(args.coefficients, args.sums, args.channels, channel, args.inverse_rows);
        constants[OUT_SCALE * slice_channels + i] = norm.a;
        constants[OUT_SHIFT * slice_channels + i] = args.coefficients[SHIFT * args.channels + channel];
        constants[OUT_MEAN * slice_channels + i] = norm.mean;
        constants[OUT_B * slice_channels + i] = norm.b;
        constants[OUT_C * slice_channels + i] = norm.c;
#pragma unroll
        for (int row = 0; row < 4; row++) {
            constants[(IN_MEAN + row) * slice_channels + i] = args.previous[row * args.channels + channel];
        }
    }

    static __device__ __forceinline__ void load_vector(Vector& out, const T* from) {
        constexpr int PACK = Pack<T>::N;
#pragma unroll
        for (int part = 0; part < LANES; part += PACK) {
            const Pack<T> pack = load_pack(from + part);
#pragma unroll
            for (int i = 0; i < PACK; i++) out.v[part + i] = pack.v[i];
        }
    }

    // Loads output rows `first` to `last` of the images from `image` on, as dy, into the ring.
    __device__ __forceinline__ void load_rows(const DepthwiseLoader& own, int image, int first, int last) {
        const int count = last - first + 1, channel = first_channel + own.vector * LANES;
        if (channel >= args.channels) return;
        const T *y = static_cast<const T*>(args.y), *da = static_cast<const T*>(args.da);
        for (int number = own.row; number < count * args.together; number += own.rows) {
            const int which = number / count, row = first + number % count;
            const bool inside = row >= 0 && row < args.output && image + which < args.images;
            T* to = ring + ((which * ring_rows + slot_of(row)) * reach - base) * slice_channels;
            const size_t start = (static_cast<size_t>(image + which) * args.output + row) * args.output;
            const float* factors_of = factors + which * 2 * slice_channels + own.vector * LANES;
#pragma unroll 1
            for (int column = own.column; column < args.output; column += own.columns) {
                T* cell = to + column * slice_channels + own.vector * LANES;
                if (inside) {
                    const size_t at = (start + column) * args.channels + channel;
                    Vector out, gradient;
                    load_vector(gradient, da + at);
                    load_vector(out, y + at);
#pragma unroll
                    for (int half = 0; half < LANES; half += 4) {
                        output_gradient(cell + half, gradient.v + half, out.v + half, factors_of + half,
                                        own.vector * LANES + half);
                    }
                } else {
                    const float zero[LANES] = {};
                    store_lanes(cell, zero);
                }
            }
        }
    }

    // From da to dy, four channels at a time, because the taps' sums leave few registers.
    __device__ __forceinline__ void output_gradient(
        T* to, const T* da, const T* y, const float* factors_of, int at) const {
        float values[4], out[4], scale[4], other[4], gate[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[i] = to_float(da[i]);
            out[i] = to_float(y[i]);
        }
        load_group(scale, constants + OUT_SCALE * slice_channels + at);
        load_group(other, constants + OUT_SHIFT * slice_channels + at);
        float slope[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float unused;
            silu_and_slope<T>(fmaf(scale[i], out[i], other[i]), unused, slope[i]);
        }
        load_group(gate, factors_of);
        load_group(other, factors_of + slice_channels);
#pragma unroll
        for (int i = 0; i < 4; i++) values[i] = scale[i] * (fmaf(values[i], gate[i], other[i]) * slope[i]);
        // dy = a·du + b·(y − μ) + c, where a is the scale.
        load_group(scale, constants + OUT_MEAN * slice_channels + at);
        load_group(other, constants + OUT_B * slice_channels + at);
        load_group(gate, constants + OUT_C * slice_channels + at);
#pragma unroll
        for (int i = 0; i < 4; i++) values[i] = fmaf(other[i], out[i] - scale[i], values[i]) + gate[i];
        store_group(to, values);
    }

    // Loads gates and squeeze gradients of the images from `image` on.
    __device__ __forceinline__ void load_factors(int image) {
        for (int i = threadIdx.x; i < args.together * slice_channels; i += THREADS) {
            const int which = i / slice_channels, at = i % slice_channels, channel = first_channel + at;
            if (channel >= args.channels || image + which >= args.images) continue;
            const size_t from = static_cast<size_t>(image + which) * args.channels + channel;
            factors[which * 2 * slice_channels + at] = args.gate[from];
            factors[(which * 2 + 1) * slice_channels + at] = args.squeeze_gradient[from];
        }
        barrier();
    }

    // Output rows begin at −K at the earliest.
    __device__ __forceinline__ int slot_of(int row) const { return (row + K) % ring_rows; }

    // A thread's state over the whole block.
    struct Own {
        int column, row, which, at;  // `at`: first channel within the slice
        float taps[K * K][C], sums[2][C];
    };

    // The four positions' values as stored, and in `a` the convolution's input. x stays in its storage type and silu's
    // slope is computed later with a second sigmoid: this saves registers, which the taps' sums need.
    __device__ __forceinline__ void load_inputs(
        Stored (&x)[COLUMNS], float (&a)[COLUMNS][C], const Own& own, size_t pixel, int channel) const {
        float scale[C], shift[C];
        load_group(scale, constants + IN_SCALE * slice_channels + own.at);
        load_group(shift, constants + IN_SHIFT * slice_channels + own.at);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const int column = own.column + t;
#pragma unroll
            for (int i = 0; i < C; i++) x[t].v[i] = from_float<T>(0.0f);
            if (column < 0 || column >= args.input) continue;
            const T* from = static_cast<const T*>(args.x) + (pixel + column) * args.channels + channel;
            x[t] = *reinterpret_cast<const Stored*>(from);
        }
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const int column = own.column + t;
#pragma unroll
            for (int i = 0; i < C; i++) {
                a[t][i] = to_float(x[t].v[i]);
                if constexpr (NORMALISED) a[t][i] = silu<T>(fmaf(scale[i], a[t][i], shift[i]));
                if (column < 0 || column >= args.input) a[t][i] = 0.0f;
            }
        }
    }

    // Both products of each tap.
    __device__ __forceinline__ void correlate(
        float (&gradient)[COLUMNS][C], Own& own, const float (&a)[COLUMNS][C], int row) const {
#pragma unroll
        for (int ky = 0; ky < K; ky++) {
            const int above = row + args.pad - ky;
            if (above < 0 || above % STRIDE != 0) continue;
            // Rows past the last output are in the ring as zeros.
            const T* from = ring +
                            ((own.which * ring_rows + slot_of(above / STRIDE)) * reach +
                             (own.column - origin) / STRIDE) * slice_channels + own.at;
            float w[K][C];
#pragma unroll
            for (int kx = 0; kx < K; kx++) {
                load_group(w[kx], weights + (ky * K + kx) * slice_channels + own.at);
            }
#pragma unroll
            for (int j = 0; j < REACHED; j++) {
                float dy[C];
                load_group(dy, from + j * slice_channels);
#pragma unroll
                for (int t = 0; t < COLUMNS; t++) {
                    const int kx = t + STRIDE * (BEFORE - j);
                    if (kx < 0 || kx >= K) continue;
#pragma unroll
                    for (int i = 0; i < C; i++) {
                        gradient[t][i] = fmaf(dy[i], w[kx][i], gradient[t][i]);
                        own.taps[ky * K + kx][i] = fmaf(dy[i], a[t][i], own.taps[ky * K + kx][i]);
                    }
                }
            }
        }
    }

    // Stores dx of the four positions and adds to the sums, from the values as stored.
    __device__ __forceinline__ void finish(
        float (&gradient)[COLUMNS][C], Own& own, const Stored (&x)[COLUMNS], size_t pixel, int channel,
        float keep) const {
        float mean[C], reciprocal[C], scale[C], shift[C];
        load_group(scale, constants + IN_SCALE * slice_channels + own.at);
        load_group(shift, constants + IN_SHIFT * slice_channels + own.at);
        load_group(mean, constants + IN_MEAN * slice_channels + own.at);
        load_group(reciprocal, constants + IN_RECIPROCAL * slice_channels + own.at);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const int column = own.column + t;
            if (column < 0 || column >= args.input) continue;
            const size_t at = (pixel + column) * args.channels + channel;
            float y[C];
            if constexpr (NORMALISED) {
#pragma unroll
                for (int i = 0; i < C; i++) {
                    float unused, slope;
                    y[i] = to_float(x[t].v[i]);
                    silu_and_slope<T>(fmaf(scale[i], y[i], shift[i]), unused, slope);
                    gradient[t][i] *= slope;
                }
            } else {
                load_group(y, static_cast<const T*>(args.previous_y) + at);
                if (args.shortcut != nullptr) {
                    float around[C];
                    load_group(around, static_cast<const T*>(args.shortcut) + at);
#pragma unroll
                    for (int i = 0; i < C; i++) gradient[t][i] += around[i];
                }
            }
            store_group(static_cast<T*>(args.dx) + at, gradient[t]);
#pragma unroll
            for (int i = 0; i < C; i++) {
                const float du = keep * rounded<T>(gradient[t][i]);
                own.sums[0][i] += du;
                own.sums[1][i] = fmaf(du, (y[i] - mean[i]) * reciprocal[i], own.sums[1][i]);
            }
        }
    }

    __device__ __forceinline__ void positions(Own& own, int image, int row) const {
        const int channel = first_channel + own.at;
        const size_t pixel = (static_cast<size_t>(image) * args.input + row) * args.input;
        Stored x[COLUMNS];
        float a[COLUMNS][C], gradient[COLUMNS][C] = {};
        load_inputs(x, a, own, pixel, channel);
        correlate(gradient, own, a, row);
        const float keep = !NORMALISED && args.keep != nullptr ? args.keep[image] : 1.0f;
        finish(gradient, own, x, pixel, channel, keep);
    }

    // The sum of one number over the lanes with the same channels. The caller adds the warps.
    __device__ __forceinline__ float over_lanes(float value) const {
        for (int distance = slice_channels / C; distance < WARP; distance *= 2) value += shuffle_xor(value, distance);
        return value;
    }

    // Writes the block's part of the taps' and the batch norm's sums. `scratch` is [warps, SUMS/C, slice_channels].
    __device__ __forceinline__ void store_sums(const Own& own, int part, float* scratch) const {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, groups = slice_channels / C;
        float* to = scratch + warp * (SUMS / C) * slice_channels + lane * C;
#pragma unroll
        for (int number = 0; number < SUMS / C; number++) {
#pragma unroll
            for (int i = 0; i < C; i++) {
                const float value =
                    over_lanes(number < K * K ? own.taps[number < K * K ? number : 0][i]
                                              : own.sums[number < K * K ? 0 : number - K * K][i]);
                if (lane < groups) to[number * slice_channels + i] = value;
            }
        }
        barrier();
        const int numbers = SUMS / C * slice_channels;
        for (int at = threadIdx.x; at < numbers; at += THREADS) {
            const int number = at / slice_channels, channel = first_channel + at % slice_channels;
            if (channel >= args.channels) continue;
            float sum = 0.0f;
            for (int other = 0; other < WARPS; other++) sum += scratch[other * numbers + at];
            if (number < K * K) {
                args.weight_partials[(static_cast<size_t>(part) * args.channels + channel) * K * K + number] = sum;
            } else {
                args.sum_partials[(static_cast<size_t>(part) * 2 + number - K * K) * args.channels + channel] = sum;
            }
        }
    }

    __device__ __forceinline__ void run() {
        const int part = blockIdx.y, strip = part % args.strips;
        const int first_image = part / args.strips * args.images_per_block;
        const int first_row = strip * args.strip_rows;
        const int end_row = min(first_row + args.strip_rows, args.input);
        const int end_image = min(first_image + args.images_per_block, args.images);

        SharedArena arena;
        ring = arena.take<T>(args.together * ring_rows * reach * slice_channels);
        weights = arena.take<float>(K * K * slice_channels);
        constants = arena.take<float>(DEPTHWISE_CONSTANTS * slice_channels);
        factors = arena.take<float>(args.together * 2 * slice_channels);
        float* scratch = arena.take<float>(WARPS * (SUMS / C) * slice_channels);
        prepare();

        const DepthwiseLoader loader(THREADS, args.vectors, args.output);
        const int groups = slice_channels / C, place = threadIdx.x / groups;
        Own own;
        own.at = threadIdx.x % groups * C;
        const int places = THREADS / groups, end_column = origin + workers * COLUMNS;
        const int column = origin + place % workers * COLUMNS;
        own.row = place / workers % args.rows;
        own.which = place / workers / args.rows;
#pragma unroll
        for (int i = 0; i < C; i++) {
#pragma unroll
            for (int tap = 0; tap < K * K; tap++) own.taps[tap][i] = 0.0f;
            own.sums[0][i] = own.sums[1][i] = 0.0f;
        }
        const bool works = own.which < args.together && first_channel + own.at < args.channels;

        for (int image = first_image; image < end_image; image += args.together) {
            load_factors(image);
            // The first output row that the strip's first input row needs. The following rows slide.
            int loaded = (first_row + args.pad + STRIDE * K - (K - 1)) / STRIDE - K;
            for (int start = first_row; start < end_row; start += args.rows) {
                const int last = (start + args.rows - 1 + args.pad) / STRIDE;
                load_rows(loader, image, loaded, last);
                loaded = last + 1;
                barrier();
                const int row = start + own.row;
                if (works && row < end_row && image + own.which < end_image) {
                    // More than once only if a row has more columns than the block has threads for.
                    for (own.column = column; own.column < end_column; own.column += places * COLUMNS) {
                        positions(own, image + own.which, row);
                    }
                }
                barrier();
            }
        }
        store_sums(own, part, scratch);
    }
};
