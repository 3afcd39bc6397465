// The stem's forward pass, and what both passes share: the map of the image in shared memory. See stem.cu.
#pragma once

#include "batch_norm.cuh"

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
// [parts + groups of them, 2, C], or null.
#define STEM_FORWARD_FIELDS(F)  \
    F(const void*, image)       \
    F(const float*, weight)     \
    F(void*, y)                 \
    F(float*, counts)           \
    F(float*, moments)          \
    BATCH_NORM_FINISH_FIELDS(F) \
    F(int, images)              \
    F(int, input)               \
    F(int, output)              \
    F(int, pad)                 \
    F(int, pitch)               \
    F(int, rows)                \
    F(int, channels)            \
    F(int, tile_pixels)         \
    F(int, tiles)               \
    F(int, tiles_per_part)
ARGUMENTS(StemForwardArguments, STEM_FORWARD_FIELDS)

// Channels whose moments are merged at once: B7's.
constexpr int STEM_MERGED = 64;

// Rows of the parts, which are some tiles each.
struct StemParts {
    int pixels, tile_pixels, tiles, tiles_per_part;

    __device__ __forceinline__ uint32_t before(int part) const {
        const int tile = part * tiles_per_part;
        return pixels_before(tile < tiles ? tile : tiles, pixels, tile_pixels);
    }
    __device__ __forceinline__ int count(int first, int parts) const {
        return static_cast<int>(before(first + parts) - before(first));
    }
};

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

// Writes the part's moments from those of its threads, which all use the same shifts [C]. The last block makes the
// coefficients of all.
__device__ __forceinline__ void finish_moments(
    const StemForwardArguments& args, const StemThread& thread, const float (&sums)[LANES],
    const float (&squares)[LANES], const float* shifts, const StemParts& parts, float* scratch) {
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
        total.finish(static_cast<float>(parts.count(blockIdx.x, 1)), mean, spread);
        float* out = args.moments + 2 * static_cast<size_t>(blockIdx.x) * channels;
        out[own] = mean;
        out[channels + own] = spread;
    }
    if (own == 0) args.counts[blockIdx.x] = static_cast<float>(parts.count(blockIdx.x, 1));
    static_assert(MomentsMerge<STEM_MERGED, STEM_THREADS>::FLOATS <= 2 * STEM_THREADS * LANES, "room for the merge");
    for (int slice = 0; slice * STEM_MERGED < channels; slice++) {
        finish_batch_norm<STEM_MERGED, STEM_THREADS>(args, scratch, slice, channels, blockIdx.x, gridDim.x, parts);
    }
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
        const StemParts parts = {map.pixels(), args.tile_pixels, args.tiles, args.tiles_per_part};
        finish_moments(args, thread, sums, squares, shifts, parts, rows);
    }
}
