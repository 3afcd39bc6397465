// What the backward passes of both pointwise convolutions share. dy [M, N], the gradient at the convolution's output,
// exists only in tiles: batch norm's backward computes it from du and y while they are loaded.
//
//   data gradient     [M, K] = dy·W, W [N, K]: a block has rows and columns of it and goes through N in chunks;
//   weight gradient   [N, K] = dyᵀ·a, a [M, K]: a block has a piece of it and goes through its part of the rows;
//                     the parts' sums are written to the workspace and added in order.
//
// Pipeline of both. du is copied asynchronously to where dy will be, and y beside it. The thread that copied a vector
// also turns it into dy: so it waits only for its own copies. dy has two tiles, and the other factor two buffers, so a
// step has one barrier:
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

// Makes tiles [ROWS, COLUMNS] of dy in shared memory. A thread has one octet of channels in some of their rows.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct GradientTile {
    static constexpr int OCTETS = COLUMNS / LANES, STEP = THREADS / OCTETS;
    static constexpr int STRIDE = ROW_STRIDE<T, COLUMNS>, SIZE = ROWS * STRIDE;
    // Elements of shared memory: two tiles of dy, and y.
    static constexpr int ALL = 3 * SIZE;
    static_assert(OCTETS * STEP == THREADS, "a thread stays with its octet");
    static_assert(OCTETS != 4 || STEP % 8 == 0, "whole eights of rows");

    const T *du, *y;
    T* shared;  // [3, ROWS, STRIDE]: dy, first du, twice; y
    int channels;

    __device__ __forceinline__ GradientTile(const void* du, const void* y, int channels, T* shared)
        : du(static_cast<const T*>(du)), y(static_cast<const T*>(y)), shared(shared), channels(channels) {}

    __device__ __forceinline__ T* dy(int buffer) const { return shared + buffer * SIZE; }
    __device__ __forceinline__ const T* value() const { return shared + 2 * SIZE; }
    __device__ static int octet() { return threadIdx.x % OCTETS * LANES; }
    // Where eight lanes have two rows, these lie four apart: in different banks.
    __device__ static int first_row() {
        const int row = threadIdx.x / OCTETS;
        return OCTETS == 4 ? row / 8 * 8 + row % 2 * 4 + row % 8 / 2 : row;
    }

    // Begins the copies of the tile whose first row is `row`. This thread's octet begins at `channel`; from `end` on it
    // is zero.
    template <typename Rows>
    __device__ __forceinline__ void begin(int row, const Rows& rows, int channel, int end, int buffer) const {
        const size_t start = static_cast<size_t>(row) * channels + channel;
#pragma unroll 2
        for (int at = first_row(); at < ROWS; at += STEP) {
            const int source = source_row(rows, at);
            const bool valid = source >= 0 && channel < end;
            const size_t from = valid ? start + static_cast<size_t>(source) * channels : 0;
            T* to = shared + at * STRIDE + octet();
            copy_lanes(to + buffer * SIZE, du + from, valid);
            copy_lanes(to + 2 * SIZE, y + from, valid);
        }
    }
    // Computes dy, after this thread's copies have arrived. du is multiplied by `factor(row)`.
    template <typename Rows, typename F>
    __device__ __forceinline__ void form(
        int buffer, const Rows& rows, bool inside, const NormLanes& norm, F factor) const {
#pragma unroll 1
        for (int at = first_row(); at < ROWS; at += STEP) {
            T* own = dy(buffer) + at * STRIDE + octet();
            float dy[LANES] = {};
            if (inside && source_row(rows, at) >= 0) {
                float y[LANES];
                load_lanes(dy, own);
                load_lanes(y, value() + at * STRIDE + octet());
                const float by = factor(at);
#pragma unroll
                for (int i = 0; i < LANES; i++) dy[i] *= by;
                norm.apply(dy, y);
            }
            store_lanes(own, dy);
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

    // Elements of shared memory.
    static constexpr int ALL = Tile::ALL + 2 * WEIGHTS;

    Tile tile;
    T* weights;  // [2, CHUNK, STRIDE]
    const T* weight;  // at the block's first column
    const float *coefficients, *sums;
    int inputs, outputs, width;  // columns of W, its rows, columns of the block's result
    float inverse_rows;

    template <class Args>
    __device__ __forceinline__ DataChunks(const Args& args, const void* du, int column, int width, T* shared)
        : tile(du, args.y, args.outputs, shared),
          weights(shared + Tile::ALL),
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
        tile.begin(row, rows, first + Tile::octet(), outputs, buffer);
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
        tile.form(buffer, rows, channel < outputs, norm, factor);
    }
    __device__ __forceinline__ void multiply_into(typename S::Sums& c, int chunk, int buffer) const {
        const int left = (outputs - chunk * S::CHUNK + 15) / 16 * 16;
        multiply<false>(c, tile.dy(buffer) + S::warp_row() * Tile::STRIDE, Tile::STRIDE,
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

// A block's piece, of those of N × those of K (which are neighbours), and its part of the rows.
template <class S>
struct WeightPiece {
    int left, left_end, right, right_end;  // channels
    int part;
    int step, steps;                       // first step and end, of DEPTH rows each

    template <class Args>
    __device__ __forceinline__ WeightPiece(const Args& args, int piece, int part, int parts) : part(part) {
        const int across = (args.inputs + S::RIGHT - 1) / S::RIGHT;
        left = piece / across * args.slice;
        left_end = left + args.slice < args.outputs ? left + args.slice : args.outputs;
        right = piece % across * S::RIGHT;
        right_end = right + S::RIGHT < args.inputs ? right + S::RIGHT : args.inputs;
        const int64_t all = (static_cast<int64_t>(args.rows) + S::DEPTH - 1) / S::DEPTH;
        step = static_cast<int>(all * part / parts);
        steps = static_cast<int>(all * (part + 1) / parts);
    }
    __device__ __forceinline__ static int rows_of(int rows, int step) {
        const int left = rows - step * S::DEPTH;
        return left < S::DEPTH ? left : S::DEPTH;
    }
    // partials [parts, N, K].
    __device__ __forceinline__ void store(
        const typename S::Sums& c, float* partials, int outputs, int inputs) const {
        const int n = left + S::warp_left(), k = right + S::warp_right();
        float* to = partials + static_cast<size_t>(part) * outputs * inputs;
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
    const Args& args, const void* du, float* partials, const WeightPiece<S>& piece, SharedArena& arena, Right& right,
    Factor factor) {
    using T = typename S::T;
    using Tile = GradientTile<T, S::DEPTH, S::LEFT, S::THREADS>;
    const Tile tile(du, args.y, args.outputs, arena.take<T>(Tile::ALL));
    const int channel = piece.left + Tile::octet();
    const bool inside = channel < piece.left_end;
    NormLanes norm = {};
    if (inside) norm.load(args.coefficients, args.sums, args.outputs, channel, args.inverse_rows);

    const auto begin = [&](int step, int buffer) {
        if (step < piece.steps) {
            const int rows = piece.rows_of(args.rows, step);
            tile.begin(step * S::DEPTH, rows, channel, piece.left_end, buffer);
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
        tile.form(buffer, rows, inside, norm, factor(row));
        right.form(row, rows, buffer);
        barrier();
        begin(step + 1, buffer ^ 1);
        multiply<true>(c, tile.dy(buffer) + S::warp_left(), Tile::STRIDE, right.tile(buffer) + S::warp_right(),
                       Right::STRIDE, S::DEPTH);
    }
    piece.store(c, partials, args.outputs, args.inputs);
}
