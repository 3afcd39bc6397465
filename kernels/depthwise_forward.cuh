// Depthwise convolution, forward: y[n, p, q, c] = Σ w[c, i, j] · a[n, p·s+i−pad, q·s+j−pad, c], a = silu(BN(x)) or x.
//
// A block has a slice of channels, some images and a strip of output rows. It slides down the rows. The input rows
// under the next few output rows are in a ring in shared memory. They are normalised and activated once, when they
// are loaded into the ring, with zeros for the padding (padding comes *after* the activation). So each input value is
// loaded once, except at the borders of strips. Maps of 14×14 and 7×7 fit the ring completely, several images at a
// time.
//
// The ring holds the storage type. For half types this rounds a once more, as a framework that stores a does, and as
// the matrix products do with their operands; in return twice as many blocks fit a multiprocessor.
//
// A thread computes 4 neighbouring columns of 8 channels: a value from the ring is used for up to 3 (or 5) taps in
// registers, and weights are loaded once for the 4 columns.
//
// Bytes, operations and floors at B0's shapes: depthwise.cu.
#pragma once

#include "numeric.cuh"

#define DEPTHWISE_FORWARD_FIELDS(F)                                                     \
    F(const void*, x)                                                                   \
    F(const float*, coefficients) /* of the input's batch norm; null: a = x */          \
    F(const float*, weight)       /* [C, K, K] */                                       \
    F(void*, y)                                                                         \
    F(float*, counts) /* [parts]; null: no statistics */                                \
    F(float*, moments)            /* [parts, 2, C] */                                   \
    F(int, images)                                                                      \
    F(int, channels)                                                                    \
    F(int, input)            /* side of the input */                                    \
    F(int, output)           /* side of the output */                                   \
    F(int, pad)              /* rows above, columns left */                             \
    F(int, vectors)          /* 8 channels each, of a slice: 1, 2 or 4 */               \
    F(int, rows)             /* output rows of an iteration */                          \
    F(int, together)         /* images of an iteration */                               \
    F(int, images_per_block)                                                            \
    F(int, strips)                                                                      \
    F(int, strip_rows)
ARGUMENTS(DepthwiseForwardArguments, DEPTHWISE_FORWARD_FIELDS)

// Threads of a block: 5×5 kernels need more registers than there are if two blocks of 256 threads share a
// multiprocessor.
constexpr int THREADS_3X3 = 256;
constexpr int THREADS_5X5 = 128;
constexpr __host__ __device__ int depthwise_threads(int k) { return k == 3 ? THREADS_3X3 : THREADS_5X5; }
// Neighbouring columns of a thread.
constexpr int DEPTHWISE_COLUMNS = 4;

// A thread's place while rows are loaded: it has a fixed vector of channels and fixed columns, so that the loop has no
// divisions. `columns` is a power of two.
struct DepthwiseLoader {
    int vector, column, columns, row, rows;

    __device__ __forceinline__ DepthwiseLoader(int threads, int vectors, int width) {
        const int pixels = threads / vectors, pixel = threadIdx.x / vectors;
        vector = threadIdx.x % vectors;
        columns = 1;
        while (columns < width && 2 * columns <= pixels) columns *= 2;
        column = pixel % columns;
        row = pixel / columns;
        rows = pixels / columns;
        // If the number of pixels is no multiple of the columns, the last threads would have a part of a row: they
        // idle.
        if (row >= rows) column = 1 << 30;
    }
};

// A thread's moments of 8 channels, with its first value as the shift.
struct DepthwiseMoments {
    float count;
    float shift[LANES], sum[LANES], squares[LANES];

    __device__ __forceinline__ DepthwiseMoments() : count(0.0f) {
#pragma unroll
        for (int i = 0; i < LANES; i++) shift[i] = sum[i] = squares[i] = 0.0f;
    }

    template <typename T>
    __device__ __forceinline__ void add(const float (&values)[LANES]) {
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float y = rounded<T>(values[i]);
            if (count == 0.0f) shift[i] = y;
            const float away = y - shift[i];
            sum[i] += away;
            squares[i] = fmaf(away, away, squares[i]);
        }
        count += 1.0f;
    }

    // From sums about the shift to mean (in `sum`) and Σ(y − mean)² (in `squares`).
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float mean, spread;
            Moments{shift[i], sum[i], squares[i]}.finish(count, mean, spread);
            sum[i] = mean;
            squares[i] = spread;
        }
    }
};

// Merges the moments of all threads with the same vector, first lanes, then warps, in order; writes the block's part.
template <int WARPS>
__device__ __forceinline__ void store_moments(
    DepthwiseMoments& own, const DepthwiseForwardArguments& args, int slice, int part, float* scratch) {
    own.finish();
    const int vectors = args.vectors;
    for (int distance = vectors; distance < WARP; distance *= 2) {
        const float count = shuffle_xor(own.count, distance);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float mean = shuffle_xor(own.sum[i], distance), spread = shuffle_xor(own.squares[i], distance);
            merge_moments(own.count, own.sum[i], own.squares[i], count, mean, spread);
        }
        own.count += count;
    }
    // [warps, vectors, 1 + 8 + 8].
    constexpr int NUMBERS = 1 + 2 * LANES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane < vectors) {
        float* to = scratch + (warp * vectors + lane) * NUMBERS;
        to[0] = own.count;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            to[1 + i] = own.sum[i];
            to[1 + LANES + i] = own.squares[i];
        }
    }
    barrier();
    const int thread = threadIdx.x, channel = slice * vectors * LANES + thread;
    if (thread < vectors * LANES && channel < args.channels) {
        const float* from = scratch + thread / LANES * NUMBERS;
        float count = from[0], mean = from[1 + thread % LANES], spread = from[1 + LANES + thread % LANES];
        for (int other = 1; other < WARPS; other++) {
            const float* next = from + other * vectors * NUMBERS;
            merge_moments(count, mean, spread, next[0], next[1 + thread % LANES], next[1 + LANES + thread % LANES]);
            count += next[0];
        }
        float* to = args.moments + static_cast<size_t>(part) * 2 * args.channels + channel;
        to[0] = mean;
        to[args.channels] = spread;
        if (channel == 0) args.counts[part] = count;
    }
}

template <typename T, int K, int STRIDE>
struct DepthwiseForward {
    static constexpr int THREADS = depthwise_threads(K), WARPS = THREADS / WARP;

    const DepthwiseForwardArguments& args;
    // Input columns of a ring row, including those past the map that the last thread reads; rows of the ring.
    int reach, ring_rows, slice_channels, first_channel;
    T* ring;         // [together, ring_rows, reach, slice_channels]
    float* weights;  // [K·K, slice_channels]
    float* norm;     // [2, slice_channels]: scale, shift

    __device__ __forceinline__ explicit DepthwiseForward(const DepthwiseForwardArguments& arguments) : args(arguments) {
        const int workers = (args.output + DEPTHWISE_COLUMNS - 1) / DEPTHWISE_COLUMNS;
        reach = (workers * DEPTHWISE_COLUMNS - 1) * STRIDE + K;
        if (reach < args.pad + args.input) reach = args.pad + args.input;
        ring_rows = (args.rows - 1) * STRIDE + K;
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
        for (int i = threadIdx.x; i < slice_channels && args.coefficients != nullptr; i += THREADS) {
            const int channel = first_channel + i;
            const bool valid = channel < args.channels;
            norm[i] = valid ? args.coefficients[SCALE * args.channels + channel] : 0.0f;
            norm[slice_channels + i] = valid ? args.coefficients[SHIFT * args.channels + channel] : 0.0f;
        }
        barrier();
    }

    // Loads input rows `first` to `last` of the images from `image` on, activated, into the ring.
    __device__ __forceinline__ void load_rows(const DepthwiseLoader& own, int image, int first, int last) {
        const int count = last - first + 1, channel = first_channel + own.vector * LANES;
        if (channel >= args.channels) return;
        const T* x = static_cast<const T*>(args.x);
        for (int number = own.row; number < count * args.together; number += own.rows) {
            const int which = number / count, row = first + number % count;
            const bool inside = row >= 0 && row < args.input && image + which < args.images;
            T* to = ring + ((which * ring_rows + (row + args.pad) % ring_rows) * reach + args.pad) * slice_channels;
            const size_t start = (static_cast<size_t>(image + which) * args.input + row) * args.input;
#pragma unroll 2
            for (int column = own.column; column < args.input; column += own.columns) {
                float values[LANES] = {};
                if (inside) {
                    load_lanes(values, x + (start + column) * args.channels + channel);
                    if (args.coefficients != nullptr) activate(values, own.vector);
                }
                store_lanes(to + column * slice_channels + own.vector * LANES, values);
            }
        }
    }

    __device__ __forceinline__ void activate(float (&values)[LANES], int vector) const {
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const int at = vector * LANES + i;
            values[i] = silu<T>(fmaf(values[i], norm[at], norm[slice_channels + at]));
        }
    }

    // Computes output row `row`, four columns from `column` on, of the image with number `which` in the ring.
    __device__ __forceinline__ void convolve(
        float (&sums)[DEPTHWISE_COLUMNS][LANES], int which, int row, int column, int vector) const {
        int slot = row * STRIDE % ring_rows;
        // Not unrolled: the compiler would load the weights of all rows at once, and spill.
#pragma unroll 1
        for (int ky = 0; ky < K; ky++) {
            const T* from =
                ring + ((which * ring_rows + slot) * reach + column * STRIDE) * slice_channels + vector * LANES;
            slot = slot + 1 == ring_rows ? 0 : slot + 1;
            // Twice four channels, so that the weights of a row of taps fit the registers.
#pragma unroll
            for (int half = 0; half < LANES; half += 4) {
                float w[K][4];
#pragma unroll
                for (int kx = 0; kx < K; kx++) {
                    const float* taps = weights + (ky * K + kx) * slice_channels + vector * LANES;
                    load_group(w[kx], taps + half);
                }
#pragma unroll
                for (int j = 0; j < (DEPTHWISE_COLUMNS - 1) * STRIDE + K; j++) {
                    float v[4];
                    load_group(v, from + j * slice_channels + half);
#pragma unroll
                    for (int t = 0; t < DEPTHWISE_COLUMNS; t++) {
                        const int kx = j - t * STRIDE;
                        if (kx < 0 || kx >= K) continue;
#pragma unroll
                        for (int i = 0; i < 4; i++) sums[t][half + i] = fmaf(v[i], w[kx][i], sums[t][half + i]);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void run() {
        const int workers = (args.output + DEPTHWISE_COLUMNS - 1) / DEPTHWISE_COLUMNS;
        const int part = blockIdx.y, strip = part % args.strips;
        const int first_image = part / args.strips * args.images_per_block;
        const int first_row = strip * args.strip_rows;
        const int end_row = min(first_row + args.strip_rows, args.output);
        const int end_image = min(first_image + args.images_per_block, args.images);

        SharedArena arena;
        ring = arena.take<T>(args.together * ring_rows * reach * slice_channels);
        weights = arena.take<float>(K * K * slice_channels);
        norm = arena.take<float>(2 * slice_channels);
        float* scratch = arena.take<float>(WARPS * args.vectors * (1 + 2 * LANES));
        prepare();

        const DepthwiseLoader loader(THREADS, args.vectors, args.input);
        const int vector = threadIdx.x % args.vectors, place = threadIdx.x / args.vectors;
        const int column = place % workers * DEPTHWISE_COLUMNS;
        const int row_of = place / workers % args.rows, which = place / workers / args.rows;
        const int channel = first_channel + vector * LANES;
        const bool works = which < args.together && channel < args.channels;
        DepthwiseMoments own;

        for (int image = first_image; image < end_image; image += args.together) {
            int loaded = first_row * STRIDE - args.pad;
            for (int start = first_row; start < end_row; start += args.rows) {
                const int last = (start + args.rows - 1) * STRIDE - args.pad + K - 1;
                load_rows(loader, image, loaded, last);
                loaded = last + 1;
                barrier();
                const int row = start + row_of;
                if (works && row < end_row && image + which < end_image) {
                    float sums[DEPTHWISE_COLUMNS][LANES] = {};
                    convolve(sums, which, row, column, vector);
                    T* y = static_cast<T*>(args.y) +
                           ((static_cast<size_t>(image + which) * args.output + row) * args.output + column) *
                               args.channels +
                           channel;
#pragma unroll
                    for (int t = 0; t < DEPTHWISE_COLUMNS; t++) {
                        if (column + t >= args.output) break;
                        store_lanes(y + static_cast<size_t>(t) * args.channels, sums[t]);
                        if (args.counts != nullptr) own.add<T>(sums[t]);
                    }
                }
                barrier();
            }
        }
        if (args.counts != nullptr) store_moments<WARPS>(own, args, blockIdx.x, part, scratch);
    }
};
