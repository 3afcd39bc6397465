// The stem: image [N, R, R, 3] to y [N, P, P, C] by a 3×3 convolution with stride 2, and its weight gradient.
//
// With only 27 products for each value, a matrix of patches does not pay, so the convolution is computed directly. A
// thread has eight channels. The image rows under a tile of consecutive output pixels are in shared memory as fp32,
// with zeros for the padding around them, so that the loops need no checks at borders. A part has several tiles of
// equal size, which depends only on C; they are consecutive over all images.
//
// Forward: a thread has seven pixels of eight channels in registers, as many as 128 registers allow. The 27·C weights
// are in shared memory. The epilogue takes statistics of the stored values, with the part's first value of each
// channel as the shift.
//
// Backward: dy is computed by batch norm's backward into shared memory. Then a thread sums, over its share of the
// pixels, the products of eight channels with the nine values under one row of the window. The shares are added at
// the end of the part.
//
// B0 at a batch of 1 (224²·3 → 112²·32): forward reads 0.30 MB and writes 0.80 MB in fp16, backward reads 1.9 MB;
// 10.8 M multiply-adds each, 13 M fp32 instructions with conversions, statistics and dy. Floors: 0.37 and 0.64 µs at
// 3.0 TB/s, 1.6 and 2.7 µs at 0.70 TB/s. The instructions take 0.44 µs on an H100, which bounds forward there, and
// 0.87 µs on an RTX 3080. Last measured share: not yet measured.
#include "numeric.cuh"

constexpr int STEM_THREADS = 256;
constexpr int SIDE = 3;
constexpr int STRIDE = 2;
constexpr int COLORS = 3;
constexpr int ROW_TAPS = SIDE * COLORS;
constexpr int TAPS = SIDE * ROW_TAPS;

// Sides of the maps, and the layout of image rows in shared memory.
struct StemMap {
    int input, output, pad;
    // Floats of a row: one more than a multiple of 32, so that neighbouring rows are in different banks.
    int pitch;

    __device__ __forceinline__ int pixels() const { return output * output; }
};

// A tile's output pixels [begin, end) of an image.
struct StemTile {
    size_t image;
    int begin, end;

    __device__ __forceinline__ static StemTile of(int number, int pixels, int tile_pixels) {
        const int tiles = (pixels + tile_pixels - 1) / tile_pixels;
        const int begin = number % tiles * tile_pixels;
        return {static_cast<size_t>(number / tiles), begin, begin + tile_pixels < pixels ? begin + tile_pixels : pixels};
    }

    // The first image row under the tile; negative above the image.
    __device__ __forceinline__ int top(const StemMap& map) const { return begin / map.output * STRIDE - map.pad; }
    __device__ __forceinline__ int rows(const StemMap& map) const {
        return ((end - 1) / map.output - begin / map.output) * STRIDE + SIDE;
    }
};

// Pixels of all tiles before this one, modulo 2^32: only differences are used.
__device__ __forceinline__ uint32_t pixels_before(int number, int pixels, int tile_pixels) {
    const int tiles = (pixels + tile_pixels - 1) / tile_pixels;
    return static_cast<uint32_t>(number / tiles) * pixels + number % tiles * tile_pixels;
}

// Goes through every `step`-th pixel of a tile without a division for each.
struct StemWalk {
    int step_rows, step_columns, row, column;

    __device__ __forceinline__ StemWalk(const StemMap& map, int step)
        : step_rows(step / map.output), step_columns(step % map.output), row(0), column(0) {}

    __device__ __forceinline__ void start(const StemMap& map, const StemTile& tile, int pixel) {
        row = (tile.begin + pixel) / map.output - tile.begin / map.output;
        column = (tile.begin + pixel) % map.output;
    }
    __device__ __forceinline__ void advance(const StemMap& map) {
        row += step_rows;
        column += step_columns;
        if (column >= map.output) {
            column -= map.output;
            row++;
        }
    }
    // Offset of the first value under the pixel.
    __device__ __forceinline__ int offset(const StemMap& map) const {
        return row * STRIDE * map.pitch + column * STRIDE * COLORS;
    }
};

// Writes zeros to the parts of a tile's rows outside the image.
__device__ __forceinline__ void clear_borders(const StemMap& map, int top, int rows, float* shared) {
    const int left = map.pad * COLORS, right = (map.pad + map.input) * COLORS;
    for (int row = 0; row < rows; row++) {
        const bool inside = top + row >= 0 && top + row < map.input;
        // In a row inside the image only the few columns left and right of it.
        const int gap = inside ? map.pitch - (right - left) : map.pitch;
        for (int i = static_cast<int>(threadIdx.x); i < gap; i += STEM_THREADS) {
            const int column = inside && i >= left ? i + right - left : i;
            shared[row * map.pitch + column] = 0.0f;
        }
    }
}

// Loads the image rows under a tile. They are consecutive in memory, so they are read in vectors for any R. `total` is
// the number of elements of the whole tensor.
template <typename T>
__device__ __forceinline__ void load_rows(
    const StemMap& map, const StemTile& tile, const T* image, size_t total, float* shared) {
    const int top = tile.top(map), rows = tile.rows(map);
    clear_borders(map, top, rows, shared);
    const int first = top > 0 ? top : 0;
    const int last = top + rows < map.input ? top + rows : map.input;
    const int row_values = map.input * COLORS;
    const size_t start = (tile.image * map.input + first) * row_values;
    const size_t stop = (tile.image * map.input + last) * row_values;
    const size_t aligned = start / LANES * LANES;
    const int vectors = static_cast<int>((stop - aligned + LANES - 1) / LANES);
    for (int vector = static_cast<int>(threadIdx.x); vector < vectors; vector += STEM_THREADS) {
        const size_t at = aligned + static_cast<size_t>(vector) * LANES;
        float values[LANES] = {};
        if (at + LANES <= total) {
            load_lanes(values, image + at);
        } else {
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                if (at + i < total) values[i] = to_float(image[at + i]);
            }
        }
        // Negative before `start`. Division rounds towards zero, so row and column are right from `start` on.
        const int from = vector * LANES - static_cast<int>(start - aligned);
        int row = from / row_values, column = from % row_values;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            if (at + i >= start && at + i < stop) {
                shared[(row + first - top) * map.pitch + map.pad * COLORS + column] = values[i];
            }
            if (++column == row_values) {
                column = 0;
                row++;
            }
        }
    }
}

// ---- forward ----------------------------------------------------------------------------------------------

// Pixels of a thread.
constexpr int STEM_PIXELS = 7;

// Grid: parts. A tile has 7·⌊256/(C/8)⌋ pixels, fewer if its rows would not fit. `counts` [parts] and `moments`
// [parts, 2, C], or null.
#define STEM_FORWARD_FIELDS(F) \
    F(const void*, image)      \
    F(const float*, weight)    \
    F(void*, y)                \
    F(float*, counts)          \
    F(float*, moments)         \
    F(int, images)             \
    F(int, input)              \
    F(int, output)             \
    F(int, pad)                \
    F(int, pitch)              \
    F(int, rows)               \
    F(int, channels)           \
    F(int, tile_pixels)        \
    F(int, tiles)              \
    F(int, tiles_per_part)
ARGUMENTS(StemForwardArguments, STEM_FORWARD_FIELDS)

// Loads the weights into shared memory as [27, 2, C/2]: for each tap (ky, kx, colour) the first four channels of every
// eight, then the other four, so that the lanes of a warp read neighbouring vectors.
__device__ __forceinline__ void load_weights(const float* weight, int channels, float* shared) {
    for (int i = static_cast<int>(threadIdx.x); i < TAPS * channels; i += STEM_THREADS) {
        const int channel = i / TAPS, color = i % TAPS / 9, window = i % 9;
        const int tap = window * COLORS + color;
        shared[tap * channels + channel % LANES / 4 * (channels / 2) + channel / LANES * 4 + channel % 4] = weight[i];
    }
}

// A thread's place: eight channels, and pixels `lane`, `lane` + `lanes`, … of the tile.
struct StemThread {
    int groups, lanes, group, lane;

    __device__ __forceinline__ explicit StemThread(int channels) {
        groups = channels / LANES;
        lanes = STEM_THREADS / groups;
        group = static_cast<int>(threadIdx.x) % groups;
        lane = static_cast<int>(threadIdx.x) / groups;
    }
    __device__ __forceinline__ bool idle() const { return lane >= lanes; }
};

// Computes y of a thread's pixels, whose values in shared memory begin at `offsets`.
__device__ __forceinline__ void convolve(
    float (&y)[STEM_PIXELS][LANES], const float* rows, int pitch, const int (&offsets)[STEM_PIXELS], const float* weights,
    int channels) {
#pragma unroll
    for (int p = 0; p < STEM_PIXELS; p++)
#pragma unroll
        for (int i = 0; i < LANES; i++) y[p][i] = 0.0f;
#pragma unroll 1
    for (int window = 0; window < SIDE * SIDE; window++) {
        const float* x_row = rows + window / SIDE * pitch + window % SIDE * COLORS;
#pragma unroll
        for (int color = 0; color < COLORS; color++) {
            const float* w = weights + (window * COLORS + color) * channels;
            const Pack<float> low = load_pack(w), high = load_pack(w + channels / 2);
#pragma unroll
            for (int p = 0; p < STEM_PIXELS; p++) {
                const float x = x_row[offsets[p] + color];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    y[p][i] = fmaf(x, low.v[i], y[p][i]);
                    y[p][4 + i] = fmaf(x, high.v[i], y[p][4 + i]);
                }
            }
        }
    }
}

// Adds one pixel's values, as stored.
template <typename T>
__device__ __forceinline__ void add_moments(
    float (&sums)[LANES], float (&squares)[LANES], const float (&y)[LANES], const float* shifts) {
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        Moments moments = {shifts[i], sums[i], squares[i]};
        moments.add(rounded<T>(y[i]));
        sums[i] = moments.sum;
        squares[i] = moments.squares;
    }
}

// Writes the part's moments from those of its threads, which all use the same shifts [C].
__device__ __forceinline__ void finish_moments(
    const StemForwardArguments& args, const StemThread& thread, const float (&sums)[LANES],
    const float (&squares)[LANES], const float* shifts, float count, float* scratch) {
    const int channels = args.channels;
    if (!thread.idle()) {
        store_lanes(scratch + thread.lane * channels + thread.group * LANES, sums);
        store_lanes(scratch + (thread.lanes + thread.lane) * channels + thread.group * LANES, squares);
    }
    barrier();
    const int own = static_cast<int>(threadIdx.x);
    if (own < channels) {
        Moments total = {shifts[own], 0.0f, 0.0f};
        for (int lane = 0; lane < thread.lanes; lane++) {
            total.sum += scratch[lane * channels + own];
            total.squares += scratch[(thread.lanes + lane) * channels + own];
        }
        float mean, spread;
        total.finish(count, mean, spread);
        float* out = args.moments + 2 * static_cast<size_t>(blockIdx.x) * channels;
        out[own] = mean;
        out[channels + own] = spread;
    }
    if (own == 0) args.counts[blockIdx.x] = count;
}

template <typename T>
__device__ __forceinline__ void stem_forward(const StemForwardArguments& args) {
    SharedArena arena;
    float* weights = arena.take<float>(TAPS * args.channels);
    float* shifts = arena.take<float>(args.channels);
    // The threads' moments are added in the same memory.
    float* rows = arena.take<float>(args.rows * args.pitch > 2 * STEM_THREADS * LANES ? args.rows * args.pitch
                                                                                  : 2 * STEM_THREADS * LANES);
    const StemMap map = {args.input, args.output, args.pad, args.pitch};
    const StemThread thread(args.channels);
    const size_t total = static_cast<size_t>(args.images) * args.input * args.input * COLORS;
    const bool batch = args.moments != nullptr;
    load_weights(args.weight, args.channels, weights);

    StemWalk walk(map, thread.lanes);
    // The shifts stay in shared memory, because registers are few.
    float sums[LANES] = {}, squares[LANES] = {};
    const int begin = static_cast<int>(blockIdx.x) * args.tiles_per_part;
    const int end = begin + args.tiles_per_part < args.tiles ? begin + args.tiles_per_part : args.tiles;
    for (int number = begin; number < end; number++) {
        const StemTile tile = StemTile::of(number, map.pixels(), args.tile_pixels);
        load_rows(map, tile, static_cast<const T*>(args.image), total, rows);
        barrier();
        int offsets[STEM_PIXELS];
        walk.start(map, tile, thread.lane);
#pragma unroll
        for (int p = 0; p < STEM_PIXELS; p++) {
            // A thread past the end computes the first pixel again and does not store it.
            offsets[p] = tile.begin + p * thread.lanes + thread.lane < tile.end ? walk.offset(map) : 0;
            walk.advance(map);
        }
        float y[STEM_PIXELS][LANES];
        convolve(y, rows, map.pitch, offsets, weights + thread.group * 4, args.channels);
        if (batch && number == begin) {
            if (thread.lane == 0) {
#pragma unroll
                for (int i = 0; i < LANES; i++) shifts[thread.group * LANES + i] = rounded<T>(y[0][i]);
            }
            barrier();
        }
        T* out = static_cast<T*>(args.y) + (tile.image * map.pixels() + tile.begin) * args.channels;
#pragma unroll
        for (int p = 0; p < STEM_PIXELS; p++) {
            const int pixel = p * thread.lanes + thread.lane;
            if (!thread.idle() && tile.begin + pixel < tile.end) {
                store_lanes(out + static_cast<size_t>(pixel) * args.channels + thread.group * LANES, y[p]);
                if (batch) add_moments<T>(sums, squares, y[p], shifts + thread.group * LANES);
            }
        }
        barrier();
    }
    if (batch) {
        const uint32_t before = pixels_before(begin, map.pixels(), args.tile_pixels);
        const uint32_t count = pixels_before(end, map.pixels(), args.tile_pixels) - before;
        finish_moments(args, thread, sums, squares, shifts, static_cast<float>(count), rows);
    }
}

KERNEL_BLOCKS(stem_forward_f32, STEM_THREADS, 2, StemForwardArguments) { stem_forward<float>(args); }
KERNEL_BLOCKS(stem_forward_f16, STEM_THREADS, 2, StemForwardArguments) { stem_forward<f16>(args); }
KERNEL_BLOCKS(stem_forward_bf16, STEM_THREADS, 2, StemForwardArguments) { stem_forward<bf16>(args); }

// ---- backward ---------------------------------------------------------------------------------------------

// Grid: parts. A tile has 8·⌊256/(3·C/8)⌋ pixels, fewer if its rows would not fit. `partials` [parts, C, 3, 3, 3].
#define STEM_BACKWARD_FIELDS(F)   \
    F(const void*, image)         \
    F(const void*, y)             \
    F(const void*, du)            \
    F(const float*, coefficients) \
    F(const float*, sums)         \
    F(float*, partials)           \
    F(int, images)                \
    F(int, input)                 \
    F(int, output)                \
    F(int, pad)                   \
    F(int, pitch)                 \
    F(int, rows)                  \
    F(int, channels)              \
    F(int, tile_pixels)           \
    F(int, dy_pixels)             \
    F(int, tiles)                 \
    F(int, tiles_per_part)        \
    F(float, inverse_rows)
ARGUMENTS(StemBackwardArguments, STEM_BACKWARD_FIELDS)

// A thread's place: eight channels and a row of the window, and pixels `lane`, `lane` + `lanes`, … of the tile.
struct StemBackwardThread {
    int groups, lanes, group, ky, lane;

    __device__ __forceinline__ explicit StemBackwardThread(int channels) {
        groups = channels / LANES;
        lanes = STEM_THREADS / (SIDE * groups);
        const int role = static_cast<int>(threadIdx.x) % (SIDE * groups);
        group = role % groups;
        ky = role / groups;
        lane = static_cast<int>(threadIdx.x) / (SIDE * groups);
    }
    __device__ __forceinline__ bool idle() const { return lane >= lanes; }
};

// Writes dy of a tile to shared memory as [pixels, C]; a thread has eight channels.
template <typename T>
__device__ __forceinline__ void load_gradient(
    const StemBackwardArguments& args, const StemTile& tile, int pixels, const NormBackward* norms, float* shared) {
    const int groups = args.channels / LANES;
    const size_t start = (tile.image * pixels + tile.begin) * args.channels;
    const T* y = static_cast<const T*>(args.y) + start;
    const T* du = static_cast<const T*>(args.du) + start;
    const int vectors = (tile.end - tile.begin) * groups;
#pragma unroll 1
    for (int vector = static_cast<int>(threadIdx.x); vector < vectors; vector += STEM_THREADS) {
        const NormBackward* norm = norms + vector % groups * LANES;
        // Four channels at a time, because the sums leave few registers.
        constexpr int N = Pack<T>::N;
#pragma unroll
        for (int part = 0; part < LANES; part += N) {
            const Pack<T> values = load_pack(y + static_cast<size_t>(vector) * LANES + part);
            const Pack<T> gradients = load_pack(du + static_cast<size_t>(vector) * LANES + part);
#pragma unroll
            for (int four = 0; four < N; four += 4) {
                Pack<float> out;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float gradient = to_float(gradients.v[four + i]), value = to_float(values.v[four + i]);
                    out.v[i] = norm[part + four + i].dy(gradient, value);
                }
                store_pack(shared + vector * LANES + part + four, out);
            }
        }
    }
}

// Writes the part's gradient from those of its threads, one tap of the window's row at a time.
__device__ __forceinline__ void finish_gradient(
    const StemBackwardArguments& args, const StemBackwardThread& thread, const float (&sums)[ROW_TAPS][LANES],
    float* scratch) {
    const int width = SIDE * args.channels;
    float* out = args.partials + static_cast<size_t>(blockIdx.x) * TAPS * args.channels;
    const int own = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int tap = 0; tap < ROW_TAPS; tap++) {
        if (!thread.idle()) {
            store_lanes(scratch + thread.lane * width + thread.ky * args.channels + thread.group * LANES, sums[tap]);
        }
        barrier();
        if (own < width) {
            float total = 0.0f;
            for (int lane = 0; lane < thread.lanes; lane++) total += scratch[lane * width + own];
            const int ky = own / args.channels, channel = own % args.channels;
            out[((channel * COLORS + tap % COLORS) * SIDE + ky) * SIDE + tap / COLORS] = total;
        }
        barrier();
    }
}

template <typename T>
__device__ __forceinline__ void stem_backward(const StemBackwardArguments& args) {
    SharedArena arena;
    const StemMap map = {args.input, args.output, args.pad, args.pitch};
    const StemBackwardThread thread(args.channels);
    NormBackward* norms = arena.take<NormBackward>(args.channels);
    float* rows = arena.take<float>(args.rows * args.pitch);
    // At least three pixels for each lane, so that the sums fit the same memory.
    float* dy = arena.take<float>(args.dy_pixels * args.channels);
    const size_t total = static_cast<size_t>(args.images) * args.input * args.input * COLORS;
    const int own = static_cast<int>(threadIdx.x);
    if (own < args.channels) {
        norms[own] = NormBackward::of(args.coefficients, args.sums, args.channels, own, args.inverse_rows);
    }
    barrier();

    StemWalk walk(map, thread.lanes);
    float sums[ROW_TAPS][LANES] = {};
    const int begin = static_cast<int>(blockIdx.x) * args.tiles_per_part;
    const int end = begin + args.tiles_per_part < args.tiles ? begin + args.tiles_per_part : args.tiles;
    for (int number = begin; number < end; number++) {
        const StemTile tile = StemTile::of(number, map.pixels(), args.tile_pixels);
        load_gradient<T>(args, tile, map.pixels(), norms, dy);
        load_rows(map, tile, static_cast<const T*>(args.image), total, rows);
        barrier();
        const int pixels = thread.idle() ? 0 : tile.end - tile.begin;
        walk.start(map, tile, thread.lane);
#pragma unroll 1
        for (int pixel = thread.lane; pixel < pixels; pixel += thread.lanes) {
            const float* x = rows + walk.offset(map) + thread.ky * map.pitch;
            walk.advance(map);
            float d[LANES];
            load_lanes(d, dy + pixel * args.channels + thread.group * LANES);
#pragma unroll
            for (int tap = 0; tap < ROW_TAPS; tap++) {
                const float value = x[tap];
#pragma unroll
                for (int i = 0; i < LANES; i++) sums[tap][i] = fmaf(value, d[i], sums[tap][i]);
            }
        }
        barrier();
    }
    finish_gradient(args, thread, sums, dy);
}

KERNEL_BLOCKS(stem_backward_f32, STEM_THREADS, 1, StemBackwardArguments) { stem_backward<float>(args); }
KERNEL_BLOCKS(stem_backward_f16, STEM_THREADS, 2, StemBackwardArguments) { stem_backward<f16>(args); }
KERNEL_BLOCKS(stem_backward_bf16, STEM_THREADS, 2, StemBackwardArguments) { stem_backward<bf16>(args); }
