// What the backward passes of both pointwise convolutions share. dy [M, N], the gradient at the convolution's output,
// exists only in tiles: batch norm's backward computes it from du and y while they are loaded.
//
//   data gradient     [M, K] = dy·W, W [N, K]: a block has rows and columns of it and goes through N in chunks;
//   weight gradient   [N, K] = dyᵀ·a, a [M, K]: a block has a piece of it and goes through its part of the rows;
//                     the parts' sums are written to the workspace and added in order.
//
// Pipeline of both. du and y are copied asynchronously to a staging buffer. The thread that copied a vector also
// turns it into dy: so it waits only for its own copies, and begins those of the next step as soon as it is done. dy
// is written to one of two tiles, and the other factor to one of two buffers, so a step has one barrier:
//
//   await own copies · form dy · barrier · begin the copies of the next step · multiply · …
//
// dy is rounded to the storage type before it is multiplied. Rows past the end and channels past the last are zero.
//
// Bytes, operations and floors at B0's shapes: expand.cu and project.cu.
#pragma once

#include "tile_product.cuh"

// Begins the copy of eight channels, or writes zeros.
template <typename T>
__device__ __forceinline__ void copy_lanes(T* to, const T* from, bool valid) {
#pragma unroll
    for (int part = 0; part < LANES; part += Pack<T>::N) copy_async_16(to + part, from + part, valid);
}

// `NormBackward` of eight neighbouring channels.
struct NormLanes {
    float a[LANES], b[LANES], c[LANES], mean[LANES];

    __device__ __forceinline__ void load(
        const float* coefficients, const float* sums, int channels, int channel, float inverse_rows) {
        float r[LANES];
        load_lanes(a, coefficients + SCALE * channels + channel);
        load_lanes(r, coefficients + RECIPROCAL * channels + channel);
        load_lanes(mean, coefficients + MEAN * channels + channel);
        load_lanes(b, sums + channels + channel);
        load_lanes(c, sums + channel);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            b[i] *= -a[i] * r[i] * inverse_rows;
            c[i] *= -a[i] * inverse_rows;
        }
    }
    // du becomes dy.
    __device__ __forceinline__ void apply(float (&du)[LANES], const float (&y)[LANES]) const {
#pragma unroll
        for (int i = 0; i < LANES; i++) du[i] = fmaf(a[i], du[i], fmaf(b[i], y[i] - mean[i], c[i]));
    }
};

// Row `at` of a tile is a row of memory, counted from the tile's first one, or none: then it is negative. A tile has its
// first `rows` rows, or says itself which.
__device__ __forceinline__ int source_row(int rows, int at) { return at < rows ? at : -1; }
template <class Tiles>
__device__ __forceinline__ int source_row(const Tiles& tiles, int at) {
    return tiles.source(at);
}

// A factor of one for every row.
struct NoFactor {
    __device__ __forceinline__ float operator()(int) const { return 1.0f; }
};

// Makes a tile [ROWS, COLUMNS] of dy in shared memory. A thread has one octet of channels in some of its rows.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct GradientTile {
    static constexpr int OCTETS = COLUMNS / LANES, STEP = THREADS / OCTETS;
    static constexpr int STRIDE = ROW_STRIDE<T, COLUMNS>, RAW = ROWS * COLUMNS;
    static_assert(OCTETS * STEP == THREADS, "a thread stays with its octet");

    const T *du, *y;
    T* raw;  // [2, ROWS, COLUMNS]: du, y
    int channels;

    __device__ __forceinline__ GradientTile(const void* du, const void* y, int channels, SharedArena& arena)
        : du(static_cast<const T*>(du)), y(static_cast<const T*>(y)), raw(arena.take<T>(2 * RAW)), channels(channels) {}

    __device__ static int octet() { return threadIdx.x % OCTETS * LANES; }
    __device__ static int first_row() { return threadIdx.x / OCTETS; }

    // Begins the copies of the tile whose first row is `row`. This thread's octet begins at `channel`; from `end` on it
    // is zero.
    template <typename Rows>
    __device__ __forceinline__ void begin(int row, const Rows& rows, int channel, int end) const {
        const size_t start = static_cast<size_t>(row) * channels + channel;
#pragma unroll 2
        for (int at = first_row(); at < ROWS; at += STEP) {
            const int source = source_row(rows, at);
            const bool valid = source >= 0 && channel < end;
            const size_t from = valid ? start + static_cast<size_t>(source) * channels : 0;
            T* to = raw + at * COLUMNS + octet();
            copy_lanes(to, du + from, valid);
            copy_lanes(to + RAW, y + from, valid);
        }
    }
    // Computes dy, after this thread's copies have arrived. du is multiplied by `factor(row)`.
    template <typename Rows, typename F>
    __device__ __forceinline__ void form(T* tile, const Rows& rows, bool inside, const NormLanes& norm, F factor) const {
#pragma unroll 1
        for (int at = first_row(); at < ROWS; at += STEP) {
            float dy[LANES] = {};
            if (inside && source_row(rows, at) >= 0) {
                float value[LANES];
                const T* from = raw + at * COLUMNS + octet();
                load_lanes(dy, from);
                load_lanes(value, from + RAW);
                const float by = factor(at);
#pragma unroll
                for (int i = 0; i < LANES; i++) dy[i] *= by;
                norm.apply(dy, value);
            }
            store_lanes(tile + at * STRIDE + octet(), dy);
        }
    }
};

// ---- data gradients ---------------------------------------------------------------------------------------

// A block's result is [rows, columns], 16·M × 16·P a warp; `chunk` channels of dy are multiplied at a time.
template <typename T_, class Shape>
struct DataShape {
    using T = T_;
    static constexpr int ROWS = Shape::rows, COLUMNS = Shape::columns, CHUNK = Shape::chunk;
    static constexpr int DOWN = Shape::down, ACROSS = Shape::across, THREADS = WARP * DOWN * ACROSS;
    static constexpr int M = ROWS / 16 / DOWN, P = COLUMNS / 16 / ACROSS;
    static_assert(16 * M * DOWN == ROWS && 16 * P * ACROSS == COLUMNS, "whole tensor-core tiles");
    using Sums = WarpTile<M, P>;

    __device__ static int warp_row() { return threadIdx.x / WARP / ACROSS * (16 * M); }
    __device__ static int warp_column() { return threadIdx.x / WARP % ACROSS * (16 * P); }
};

// The chunks of dy and W. `S` is a DataShape.
template <class S>
struct DataChunks {
    using T = typename S::T;
    using Tile = GradientTile<T, S::ROWS, S::CHUNK, S::THREADS>;
    static constexpr int STRIDE = ROW_STRIDE<T, S::COLUMNS>;
    static constexpr int WEIGHTS = S::CHUNK * STRIDE;

    Tile tile;
    T* dy;       // [2, ROWS, Tile::STRIDE]
    T* weights;  // [2, CHUNK, STRIDE]
    const T* weight;  // at the block's first column
    const float *coefficients, *sums;
    int inputs, outputs, width;  // columns of W, its rows, columns of the block's result
    float inverse_rows;

    // At least `most` elements of shared memory are taken for the weights.
    template <class Args>
    __device__ __forceinline__ DataChunks(
        const Args& args, const void* du, int column, int width, int most, SharedArena& arena)
        : tile(du, args.y, args.outputs, arena),
          dy(arena.take<T>(2 * S::ROWS * Tile::STRIDE)),
          weights(arena.take<T>(most > 2 * WEIGHTS ? most : 2 * WEIGHTS)),
          weight(static_cast<const T*>(args.weight) + column),
          coefficients(args.coefficients),
          sums(args.sums),
          inputs(args.inputs),
          outputs(args.outputs),
          width(width),
          inverse_rows(args.inverse_rows) {}

    __device__ __forceinline__ int count() const { return (outputs + S::CHUNK - 1) / S::CHUNK; }

    // Begins the copies of chunk `chunk` of the rows from `row` on.
    template <typename Rows>
    __device__ __forceinline__ void begin(int row, const Rows& rows, int chunk, int buffer) const {
        const int first = chunk * S::CHUNK;
        tile.begin(row, rows, first + Tile::octet(), outputs);
        T* to = weights + buffer * WEIGHTS;
        constexpr int OCTETS = S::COLUMNS / LANES;
#pragma unroll 1
        for (int at = threadIdx.x; at < S::CHUNK * OCTETS; at += S::THREADS) {
            const int line = at / OCTETS, column = at % OCTETS * LANES;
            const bool valid = first + line < outputs && column < width;
            const size_t from = valid ? static_cast<size_t>(first + line) * inputs + column : 0;
            copy_lanes(to + line * STRIDE + column, weight + from, valid);
        }
    }
    // Waits for this thread's copies and computes its share of dy.
    template <typename Rows, typename F>
    __device__ __forceinline__ void form(const Rows& rows, int chunk, int buffer, F factor) const {
        const int channel = chunk * S::CHUNK + Tile::octet();
        NormLanes norm = {};
        if (channel < outputs) norm.load(coefficients, sums, outputs, channel, inverse_rows);
        copy_async_wait<0>();
        tile.form(dy + buffer * (S::ROWS * Tile::STRIDE), rows, channel < outputs, norm, factor);
    }
    __device__ __forceinline__ void multiply_into(typename S::Sums& c, int chunk, int buffer) const {
        const int left = (outputs - chunk * S::CHUNK + 15) / 16 * 16;
        multiply<false>(c, dy + (buffer * S::ROWS + S::warp_row()) * Tile::STRIDE, Tile::STRIDE,
                        weights + buffer * WEIGHTS + S::warp_column(), STRIDE, left < S::CHUNK ? left : S::CHUNK);
    }
};

// ---- weight gradients -------------------------------------------------------------------------------------

// A block's piece is [left, right] channels of dy by channels of a, 16·M × 16·P a warp; `depth` rows at a time.
template <typename T_, class Shape>
struct WeightShape {
    using T = T_;
    static constexpr int LEFT = Shape::left, RIGHT = Shape::right, DEPTH = Shape::depth;
    static constexpr int DOWN = Shape::down, ACROSS = Shape::across, THREADS = WARP * DOWN * ACROSS;
    static constexpr int M = LEFT / 16 / DOWN, P = RIGHT / 16 / ACROSS;
    static_assert(16 * M * DOWN == LEFT && 16 * P * ACROSS == RIGHT, "whole tensor-core tiles");
    using Sums = WarpTile<M, P>;

    __device__ static int warp_left() { return threadIdx.x / WARP / ACROSS * (16 * M); }
    __device__ static int warp_right() { return threadIdx.x / WARP % ACROSS * (16 * P); }
};

// The block's piece and its rows. Grid: (pieces of N × pieces of K, those of K are neighbours; parts of the rows).
template <class S>
struct WeightPiece {
    int left, left_end, right, right_end;  // channels
    int step, steps;                       // first step and end, of DEPTH rows each

    template <class Args>
    __device__ __forceinline__ explicit WeightPiece(const Args& args) {
        const int across = (args.inputs + S::RIGHT - 1) / S::RIGHT;
        left = static_cast<int>(blockIdx.x) / across * args.slice;
        left_end = left + args.slice < args.outputs ? left + args.slice : args.outputs;
        right = static_cast<int>(blockIdx.x) % across * S::RIGHT;
        right_end = right + S::RIGHT < args.inputs ? right + S::RIGHT : args.inputs;
        const int64_t all = (static_cast<int64_t>(args.rows) + S::DEPTH - 1) / S::DEPTH;
        step = static_cast<int>(all * blockIdx.y / gridDim.y);
        steps = static_cast<int>(all * (blockIdx.y + 1) / gridDim.y);
    }
    __device__ __forceinline__ static int rows_of(int rows, int step) {
        const int left = rows - step * S::DEPTH;
        return left < S::DEPTH ? left : S::DEPTH;
    }
    // partials [parts, N, K].
    __device__ __forceinline__ void store(
        const typename S::Sums& c, float* partials, int outputs, int inputs) const {
        const int n = left + S::warp_left(), k = right + S::warp_right();
        float* to = partials + static_cast<size_t>(blockIdx.y) * outputs * inputs;
        c.visit([&](int row, int column, float first, float second) {
            if (n + row < left_end && k + column < right_end)
                store_pair(to + static_cast<size_t>(n + row) * inputs + k + column, first, second);
        });
    }
};

// `Right` loads the right factor: begin(row, rows, buffer) begins the copies, form(row, rows, buffer) completes what
// this thread copied, tile(buffer) is the result with Right::STRIDE. `factor(row)` returns the functor whose value
// multiplies du in the rows from `row` on.
template <class S, class Args, class Right, typename Factor>
__device__ __forceinline__ void weight_gradient(
    const Args& args, const void* du, SharedArena& arena, Right& right, Factor factor) {
    using T = typename S::T;
    using Tile = GradientTile<T, S::DEPTH, S::LEFT, S::THREADS>;
    constexpr int SIZE = S::DEPTH * Tile::STRIDE;
    WeightPiece<S> piece(args);
    const Tile tile(du, args.y, args.outputs, arena);
    T* dy = arena.take<T>(2 * SIZE);
    const int channel = piece.left + Tile::octet();
    const bool inside = channel < piece.left_end;
    NormLanes norm = {};
    if (inside) norm.load(args.coefficients, args.sums, args.outputs, channel, args.inverse_rows);

    const auto begin = [&](int step, int buffer) {
        if (step < piece.steps) {
            const int rows = piece.rows_of(args.rows, step);
            tile.begin(step * S::DEPTH, rows, channel, piece.left_end);
            right.begin(step * S::DEPTH, rows, buffer);
        }
        copy_async_commit();
    };
    typename S::Sums c;
    c.clear();
    begin(piece.step, 0);
    int buffer = 0;
    for (int step = piece.step; step < piece.steps; step++, buffer ^= 1) {
        const int row = step * S::DEPTH, rows = piece.rows_of(args.rows, step);
        copy_async_wait<0>();
        tile.form(dy + buffer * SIZE, rows, inside, norm, factor(row));
        right.form(row, rows, buffer);
        barrier();
        begin(step + 1, buffer ^ 1);
        multiply<true>(c, dy + buffer * SIZE + S::warp_left(), Tile::STRIDE, right.tile(buffer) + S::warp_right(),
                       Right::STRIDE, S::DEPTH);
    }
    piece.store(c, args.partials, args.outputs, args.inputs);
}
