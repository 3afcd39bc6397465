// Backward of the expansion in two kernels, one for the data gradient with its epilogue, one for the weights'.
#pragma once

#include "pointwise_backward.cuh"

//   du, y [rows, outputs], weight [outputs, inputs], coefficients [4, outputs] and sums [2, outputs] of y's batch norm;
//   shortcut [rows, inputs] or null; of the block before y [rows, inputs], coefficients and keep [images] or null;
//   dx [rows, inputs], partials [blocks, 2, inputs]. Grid: blocks, which share the tiles of rows evenly.
#define EXPAND_BACKWARD_DATA_FIELDS(F)     \
    F(const void*, du)                     \
    F(const void*, y)                      \
    F(const void*, weight)                 \
    F(const float*, coefficients)          \
    F(const float*, sums)                  \
    F(const void*, shortcut)               \
    F(const void*, previous_y)             \
    F(const float*, previous_coefficients) \
    F(const float*, keep)                  \
    F(void*, dx)                           \
    F(float*, partials)                    \
    F(int, rows)                           \
    F(int, inputs)                         \
    F(int, outputs)                        \
    F(int, pixels)                         \
    F(float, inverse_rows)
ARGUMENTS(ExpandBackwardDataArguments, EXPAND_BACKWARD_DATA_FIELDS)

//   x [rows, inputs]; slice: channels of dy a block has; partials [parts, outputs, inputs]. Grid as in WeightPiece.
#define EXPAND_BACKWARD_WEIGHTS_FIELDS(F) \
    F(const void*, du)                    \
    F(const void*, y)                     \
    F(const void*, x)                     \
    F(const float*, coefficients)         \
    F(const float*, sums)                 \
    F(float*, partials)                   \
    F(int, rows)                          \
    F(int, inputs)                        \
    F(int, outputs)                       \
    F(int, slice)                         \
    F(float, inverse_rows)
ARGUMENTS(ExpandBackwardWeightsArguments, EXPAND_BACKWARD_WEIGHTS_FIELDS)

// ---- the data gradient's epilogue -------------------------------------------------------------------------

// dx (+ shortcut) leaves through a tile in shared memory, where it is rounded; then each thread stays with one octet of
// channels, in every so many-th row, and keeps the previous batch norm's sums of it in registers through all tiles.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct NarrowGradient {
    static constexpr int STRIDE = ROW_STRIDE<T, COLUMNS>, SIZE = ROWS * STRIDE;
    static constexpr int IDLE = 1 << 30;
    // Floats that `finish` needs.
    static constexpr int SCRATCH = THREADS * 2 * LANES;

    const ExpandBackwardDataArguments& args;
    T* tile;  // [ROWS, STRIDE]
    int channel, group, groups;
    float sums[2][LANES];

    __device__ __forceinline__ NarrowGradient(const ExpandBackwardDataArguments& args, T* tile)
        : args(args), tile(tile), sums() {
        const int octets = args.inputs / LANES;
        groups = THREADS / octets;
        channel = static_cast<int>(threadIdx.x) % octets * LANES;
        group = threadIdx.x / octets;
        if (group >= groups) group = IDLE;
    }

    __device__ __forceinline__ void begin_shortcut(int row, int rows) const {
        if (args.shortcut == nullptr) return;
        const T* from = static_cast<const T*>(args.shortcut) + static_cast<size_t>(row) * args.inputs + channel;
#pragma unroll 1
        for (int at = group; at < rows; at += groups)
            copy_lanes(tile + at * STRIDE + channel, from + static_cast<size_t>(at) * args.inputs, true);
    }
    // The warp's sums, whose first row and column are given; the shortcut has arrived.
    template <int M, int P>
    __device__ __forceinline__ void put(const WarpTile<M, P>& c, int row, int column, int rows) const {
        const bool add = args.shortcut != nullptr;
        c.visit([&](int down, int across, float first, float second) {
            T* at = tile + (row + down) * STRIDE + column + across;
            if (add && row + down < rows && column + across < args.inputs) {
                float more[2];
                load_pair(more, at);
                first += more[0];
                second += more[1];
            }
            store_pair(at, first, second);
        });
    }
    // Stores the tile's rows and takes their sums.
    __device__ __forceinline__ void store(int row, int rows) {
        if (group >= rows) return;
        float mean[LANES], r[LANES];
        load_lanes(mean, args.previous_coefficients + MEAN * args.inputs + channel);
        load_lanes(r, args.previous_coefficients + RECIPROCAL * args.inputs + channel);
        const size_t start = static_cast<size_t>(row) * args.inputs + channel;
        const T* previous = static_cast<const T*>(args.previous_y) + start;
        T* dx = static_cast<T*>(args.dx) + start;
#pragma unroll 1
        for (int at = group; at < rows; at += groups) {
            const size_t offset = static_cast<size_t>(at) * args.inputs;
            float y[LANES], du[LANES];
            load_lanes(y, previous + offset);
            load_lanes(du, tile + at * STRIDE + channel);
            store_lanes(dx + offset, du);
            const float by = args.keep == nullptr ? 1.0f : args.keep[(row + at) / args.pixels];
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                du[i] *= by;
                sums[0][i] += du[i];
                sums[1][i] = fmaf(du[i], (y[i] - mean[i]) * r[i], sums[1][i]);
            }
        }
    }
    // This block's part, after a barrier.
    __device__ __forceinline__ void finish(float* scratch) const {
        const int inputs = args.inputs;
        if (group < groups) {
            float* to = scratch + group * 2 * inputs + channel;
            store_lanes(to, sums[0]);
            store_lanes(to + inputs, sums[1]);
        }
        barrier();
        float* part = args.partials + static_cast<size_t>(blockIdx.x) * 2 * inputs;
#pragma unroll 1
        for (int own = threadIdx.x; own < 2 * inputs; own += THREADS) {
            float sum = 0.0f;
#pragma unroll 1
            for (int other = 0; other < groups; other++) sum += scratch[other * 2 * inputs + own];
            part[own] = sum;
        }
    }
};

// ---- kernels ----------------------------------------------------------------------------------------------

// `S` is a DataShape whose columns hold all of the narrow channels: du and y are read once. Where a tile has few chunks
// of channels (SEPARATE), dx's tile has a place of its own, so that the next tile's copies run beside the epilogue;
// else it lies over the weights.
template <class S, bool SEPARATE>
__device__ __forceinline__ void expand_backward_data(const ExpandBackwardDataArguments& args) {
    using T = typename S::T;
    using Output = NarrowGradient<T, S::ROWS, S::COLUMNS, S::THREADS>;
    SharedArena arena;
    const DataChunks<S> chunks(args, args.du, 0, args.inputs, SEPARATE ? 0 : Output::SIZE, arena);
    Output output(args, SEPARATE ? arena.take<T>(Output::SIZE) : chunks.weights);

    const int64_t tiles = (static_cast<int64_t>(args.rows) + S::ROWS - 1) / S::ROWS;
    const int first = static_cast<int>(tiles * blockIdx.x / gridDim.x) * S::ROWS;
    const int64_t last = tiles * (blockIdx.x + 1) / gridDim.x * S::ROWS;
    const int end = last < args.rows ? static_cast<int>(last) : args.rows;
    const int count = chunks.count();
    const auto rows_of = [&](int row) { return end - row < S::ROWS ? end - row : S::ROWS; };
    const auto begin = [&](int row, int chunk, int buffer) {
        if (row < end) chunks.begin(row, rows_of(row), chunk, buffer);
        copy_async_commit();
    };
    typename S::Sums c;
    int buffer = 0;
    begin(first, 0, 0);
    for (int row = first; row < end; row += S::ROWS) {
        const int rows = rows_of(row);
        c.clear();
        for (int chunk = 0; chunk < count; chunk++, buffer ^= 1) {
            chunks.form(rows, chunk, buffer, NoFactor());
            barrier();
            if (SEPARATE && chunk == 0) output.begin_shortcut(row, rows);
            if (chunk + 1 < count)
                begin(row, chunk + 1, buffer ^ 1);
            else if (SEPARATE)
                begin(row + S::ROWS, 0, buffer ^ 1);
            chunks.multiply_into(c, chunk, buffer);
        }
        if (!SEPARATE) {
            barrier();  // the weights have been used
            output.begin_shortcut(row, rows);
            copy_async_commit();
        }
        if (args.shortcut != nullptr && (!SEPARATE || count == 1)) {
            copy_async_wait<0>();
            barrier();
        }
        output.put(c, S::warp_row(), S::warp_column(), rows);
        barrier();
        output.store(row, rows);
        if (!SEPARATE) {
            barrier();
            begin(row + S::ROWS, 0, buffer);
        }
    }
    constexpr bool RAW_HOLDS = 2 * DataChunks<S>::Tile::RAW * sizeof(T) >= Output::SCRATCH * sizeof(float);
    static_assert(RAW_HOLDS || (!SEPARATE && (2 * DataChunks<S>::WEIGHTS > Output::SIZE ? 2 * DataChunks<S>::WEIGHTS : Output::SIZE) *
                                                     sizeof(T) >= Output::SCRATCH * sizeof(float)), "no place for the sums");
    barrier();
    output.finish(reinterpret_cast<float*>(RAW_HOLDS ? chunks.tile.raw : chunks.weights));
}

// x as it is.
template <class S>
struct PlainRight {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::RIGHT>, SIZE = S::DEPTH * STRIDE, OCTETS = S::RIGHT / LANES;

    const T* x;  // at the piece's first channel
    T* tiles;    // [2, DEPTH, STRIDE]
    int inputs, width;

    __device__ __forceinline__ PlainRight(const ExpandBackwardWeightsArguments& args, SharedArena& arena)
        : tiles(arena.take<T>(2 * SIZE)), inputs(args.inputs) {
        const WeightPiece<S> piece(args);
        x = static_cast<const T*>(args.x) + piece.right;
        width = piece.right_end - piece.right;
    }
    __device__ __forceinline__ T* tile(int buffer) const { return tiles + buffer * SIZE; }

    __device__ __forceinline__ void begin(int row, int rows, int buffer) const {
#pragma unroll 1
        for (int at = threadIdx.x; at < S::DEPTH * OCTETS; at += S::THREADS) {
            const int down = at / OCTETS, channel = at % OCTETS * LANES;
            const bool valid = down < rows && channel < width;
            const size_t from = valid ? static_cast<size_t>(row + down) * inputs + channel : 0;
            copy_lanes(tile(buffer) + down * STRIDE + channel, x + from, valid);
        }
    }
    __device__ __forceinline__ void form(int, int, int) const {}
};

template <class S>
__device__ __forceinline__ void expand_backward_weights(const ExpandBackwardWeightsArguments& args) {
    SharedArena arena;
    PlainRight<S> right(args, arena);
    weight_gradient<S>(args, args.du, arena, right, [](int) { return NoFactor(); });
}
