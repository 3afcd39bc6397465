// Backward of the expansion. One sweep makes both gradients if the accumulators of the weights' gradient fit beside
// those of the data gradient. Otherwise some blocks of a launch make the data gradient with its epilogue, the others
// the weights' gradient: neither waits for the other, and the one fills the places that the other leaves.
//
// Bytes, operations and floors at B0's shapes: expand.cu.
#pragma once

#include "pointwise_backward.cuh"

//   du, y [rows, outputs], weight [outputs, inputs], coefficients [4, outputs] and sums [2, outputs] of y's batch
//   norm; shortcut [rows, inputs] or null; of the block before: y [rows, inputs], coefficients and keep [images] or
//   null; dx [rows, inputs], partials [blocks, 2, inputs]; x [rows, inputs], weight_partials [blocks, outputs, inputs].
//   Grid: blocks, which divide the tiles of rows evenly.
#define EXPAND_BACKWARD_POINTERS(F)        \
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
    F(const void*, x)                      \
    F(float*, weight_partials)
#define EXPAND_BACKWARD_NUMBERS(F) \
    F(int, rows)                   \
    F(int, inputs)                 \
    F(int, outputs)                \
    F(int, pixels)                 \
    F(float, inverse_rows)
#define EXPAND_BACKWARD_FIELDS(F) \
    EXPAND_BACKWARD_POINTERS(F)   \
    EXPAND_BACKWARD_NUMBERS(F)
ARGUMENTS(ExpandBackwardArguments, EXPAND_BACKWARD_FIELDS)

//   The same with the gradients apart. The data gradient has `data_blocks`, from block `first_data` on. The other
//   blocks make the weights' gradient: `pieces` (see WeightPiece, with `slice` channels of dy) of each of `parts` parts
//   of the rows, weight_partials [parts, outputs, inputs]. Of both, those whose blocks take longer come first.
#define EXPAND_BACKWARD_SPLIT_FIELDS(F) \
    EXPAND_BACKWARD_POINTERS(F)         \
    EXPAND_BACKWARD_NUMBERS(F)          \
    F(int, data_blocks)                 \
    F(int, first_data)                  \
    F(int, slice)                       \
    F(int, pieces)                      \
    F(int, parts)
ARGUMENTS(ExpandBackwardSplitArguments, EXPAND_BACKWARD_SPLIT_FIELDS)

// ---- the data gradient's epilogue -------------------------------------------------------------------------

// dx (+ shortcut) is written to a tile in shared memory, where it is rounded, and from there to memory. Each thread
// has one octet of channels in every `groups`-th row, the same in all tiles, and keeps the sums for the previous
// batch norm in registers.
template <class Args, typename T, int ROWS, int COLUMNS, int THREADS>
struct NarrowGradient {
    static constexpr int STRIDE = ROW_STRIDE<T, COLUMNS>, SIZE = ROWS * STRIDE;
    static constexpr int IDLE = 1 << 30;
    // Floats that `finish` needs.
    static constexpr int SCRATCH = THREADS * 2 * LANES;

    const Args& args;
    T* tile;  // [ROWS, STRIDE]
    int channel, group, groups;
    float sums[2][LANES];
    uint4 ahead[LANES / Pack<T>::N];  // the previous y of this thread's first row of the tile

    __device__ __forceinline__ NarrowGradient(const Args& args, T* tile)
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
    // Begins to load what `store` reads first, so that it arrives while the tile is multiplied.
    __device__ __forceinline__ void begin_previous(int row, int rows) {
        if (group >= rows) return;
        const T* from = static_cast<const T*>(args.previous_y) + static_cast<size_t>(row + group) * args.inputs + channel;
#pragma unroll
        for (int part = 0; part < LANES; part += Pack<T>::N)
            ahead[part / Pack<T>::N] = *reinterpret_cast<const uint4*>(from + part);
    }
    // Writes the warp's sums, from the given row and column on, into the tile. The shortcut has arrived.
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
    // Stores the tile's rows and adds them to the sums. AHEAD: `begin_previous` was called.
    template <bool AHEAD>
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
            if (AHEAD && at == group)
                load_lanes(y, reinterpret_cast<const T*>(ahead));
            else
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
    // After a barrier: writes this block's part of the sums, the `number`-th.
    __device__ __forceinline__ void finish(float* scratch, int number) const {
        const int inputs = args.inputs;
        if (group < groups) {
            float* to = scratch + group * 2 * inputs + channel;
            store_lanes(to, sums[0]);
            store_lanes(to + inputs, sums[1]);
        }
        barrier();
        float* part = args.partials + static_cast<size_t>(number) * 2 * inputs;
#pragma unroll 1
        for (int own = threadIdx.x; own < 2 * inputs; own += THREADS) {
            float sum = 0.0f;
#pragma unroll 1
            for (int other = 0; other < groups; other++) sum += scratch[other * 2 * inputs + own];
            part[own] = sum;
        }
    }
};

// The rows of the `number`-th of `blocks` blocks: the tiles are divided evenly.
struct RowRange {
    int first, end;

    __device__ __forceinline__ RowRange(int rows, int tile_rows, int number, int blocks) {
        const int64_t tiles = (static_cast<int64_t>(rows) + tile_rows - 1) / tile_rows;
        first = static_cast<int>(tiles * number / blocks) * tile_rows;
        const int64_t last = tiles * (number + 1) / blocks * tile_rows;
        end = last < rows ? static_cast<int>(last) : rows;
    }
};

// ---- the gradients apart ----------------------------------------------------------------------------------

// Batch norm's numbers of two chunks in shared memory. They are copied two steps ahead, because a thread reads what
// others copied: the barrier of the step between is on the way. With one warp across a warp's sums leave no registers for
// that; there each thread loads them when it needs them.
template <class S>
struct ChunkNorms {
    static constexpr bool AHEAD = S::ACROSS > 1;
    static constexpr int ROWS = 5, SIZE = ROWS * S::CHUNK;  // mean, r and scale; the two sums
    static_assert(MEAN == 0 && RECIPROCAL == 1 && SCALE == 2, "the coefficients' first rows");

    const ExpandBackwardSplitArguments& args;
    float* shared;  // [2, ROWS, CHUNK]

    __device__ __forceinline__ ChunkNorms(const ExpandBackwardSplitArguments& args, SharedArena& arena)
        : args(args), shared(AHEAD ? arena.take<float>(2 * SIZE) : nullptr) {}

    __device__ __forceinline__ void begin(int chunk, int buffer) const {
        constexpr int UNITS = S::CHUNK / 4;
        static_assert(ROWS * UNITS <= S::THREADS, "one vector a thread");
        if (!AHEAD) return;
        const int unit = threadIdx.x, row = unit / UNITS, channel = chunk * S::CHUNK + unit % UNITS * 4;
        if (row >= ROWS) return;
        const float* from = row < 3 ? args.coefficients + row * args.outputs : args.sums + (row - 3) * args.outputs;
        const bool valid = channel < args.outputs;
        copy_async_16(shared + buffer * SIZE + unit * 4, from + (valid ? channel : 0), valid);
    }
    // This thread's share of dy, four channels at a time, because the sums leave few registers. Lanes whose vectors are
    // in the same banks, see first_row, begin with different halves of them.
    __device__ __forceinline__ void form(const DataChunks<S>& chunks, int rows, int chunk, int buffer) const {
        using T = typename S::T;
        using Tile = typename DataChunks<S>::Tile;
        const int lane = threadIdx.x % WARP, second = lane / 8 % 2 * 4;
        if (chunk * S::CHUNK + Tile::octet() >= args.outputs) rows = 0;
#pragma unroll 1
        for (int half = 0; half < LANES; half += 4) {
            const int part = Tile::octet() + (half ^ second);
            const float* from = shared + buffer * SIZE + part;
            Pack<float> row[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) row[i] = load_pack(from + i * S::CHUNK);
            NormBackward norm[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float a = row[SCALE].v[i];
                norm[i] = {a, row[4].v[i] * (-a * row[RECIPROCAL].v[i] * args.inverse_rows),
                           row[3].v[i] * (-a * args.inverse_rows), row[MEAN].v[i]};
            }
#pragma unroll
            for (int at = Tile::first_row(); at < S::ROWS; at += Tile::STEP) {
                T* own = chunks.tile.dy(buffer) + at * Tile::STRIDE + part;
                float dy[4] = {};
                if (at < rows) {
                    float value[4];
                    load_group(dy, own);
                    load_group(value, chunks.tile.value() + at * Tile::STRIDE + part);
#pragma unroll
                    for (int i = 0; i < 4; i++) dy[i] = norm[i].dy(dy[i], value[i]);
                }
                store_group(own, dy);
            }
        }
    }
};

// `S` is a DataShape whose columns include all narrow channels, so du and y are read once. dx's tile lies where dy and
// the weights were.
template <class S>
__device__ __forceinline__ void expand_backward_data(const ExpandBackwardSplitArguments& args, int number) {
    using T = typename S::T;
    using Chunks = DataChunks<S>;
    using Output = NarrowGradient<ExpandBackwardSplitArguments, T, S::ROWS, S::COLUMNS, S::THREADS>;
    constexpr int ALL = Chunks::ALL > Output::SIZE ? Chunks::ALL : Output::SIZE;
    static_assert(ALL * sizeof(T) >= Output::SCRATCH * sizeof(float), "room for the sums");
    SharedArena arena;
    T* const shared = arena.take<T>(ALL);
    const Chunks chunks(args, args.du, 0, args.inputs, shared);
    Output output(args, shared);
    const ChunkNorms<S> norms(args, arena);

    const RowRange range(args.rows, S::ROWS, number, args.data_blocks);
    const int end = range.end;
    const int count = chunks.count();
    const auto rows_of = [&](int row) { return end - row < S::ROWS ? end - row : S::ROWS; };
    const auto begin = [&](int row, int chunk, int buffer) {
        if (row < end) chunks.begin(row, rows_of(row), chunk, buffer);
        copy_async_commit();
    };
    typename S::Sums c;
    int buffer = 0;
    norms.begin(0, 0);
    norms.begin(count > 1 ? 1 : 0, 1);
    begin(range.first, 0, 0);
    if (ChunkNorms<S>::AHEAD) {
        copy_async_wait<0>();
        barrier();
    }
    for (int row = range.first; row < end; row += S::ROWS) {
        const int rows = rows_of(row);
        c.clear();
        for (int chunk = 0; chunk < count; chunk++, buffer ^= 1) {
            if constexpr (ChunkNorms<S>::AHEAD) {
                copy_async_wait<0>();
                norms.form(chunks, rows, chunk, buffer);
            } else {
                chunks.form(rows, chunk, buffer, NoFactor());
            }
            barrier();
            // Of the step after the next one.
            const int second = chunk + 2 < count ? chunk + 2 : chunk + 2 - count;
            norms.begin(second < count ? second : 0, buffer);
            if (chunk + 1 < count) begin(row, chunk + 1, buffer ^ 1);
            chunks.multiply_into(c, chunk, buffer);
        }
        barrier();  // dy and the weights are no longer needed
        output.begin_shortcut(row, rows);
        copy_async_commit();
        if (args.shortcut != nullptr) {
            copy_async_wait<0>();
            barrier();
        }
        output.put(c, S::warp_row(), S::warp_column(), rows);
        barrier();
        output.template store<false>(row, rows);
        barrier();
        begin(row + S::ROWS, 0, buffer);
    }
    copy_async_wait<0>();  // of numbers that no step needs any more
    // No thread has used this memory since the last barrier.
    output.finish(reinterpret_cast<float*>(shared), number);
}

// x as it is.
template <class S>
struct PlainRight {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::RIGHT>, SIZE = S::DEPTH * STRIDE, OCTETS = S::RIGHT / LANES;

    const T* x;  // at the piece's first channel
    T* tiles;    // [2, DEPTH, STRIDE]
    int inputs, width;

    __device__ __forceinline__ PlainRight(const void* x, int inputs, const WeightPiece<S>& piece, SharedArena& arena)
        : x(static_cast<const T*>(x) + piece.right),
          tiles(arena.take<T>(2 * SIZE)),
          inputs(inputs),
          width(piece.right_end - piece.right) {}
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
__device__ __forceinline__ void expand_backward_weights(const ExpandBackwardSplitArguments& args, int number) {
    SharedArena arena;
    const WeightPiece<S> piece(args, number % args.pieces, number / args.pieces, args.parts);
    PlainRight<S> right(args.x, args.inputs, piece, arena);
    weight_gradient<S>(args, args.du, args.weight_partials, piece, arena, right, [](int) { return NoFactor(); });
}

// Both have the same number of threads.
template <class Data, class Weights>
__device__ __forceinline__ void expand_backward_split(const ExpandBackwardSplitArguments& args) {
    static_assert(Data::THREADS == Weights::THREADS, "one launch");
    const int block = blockIdx.x, data = block - args.first_data;
    if (data >= 0 && data < args.data_blocks)
        expand_backward_data<Data>(args, data);
    else
        expand_backward_weights<Weights>(args, args.first_data == 0 ? block - args.data_blocks : block);
}
