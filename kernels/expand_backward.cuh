// Backward of the expansion. One sweep makes both gradients if the accumulators of the weights' gradient fit beside
// those of the data gradient. Otherwise there are two kernels: one for the data gradient with its epilogue, one for
// the weights' gradient.
//
// Bytes, operations and floors at B0's shapes: expand.cu.
#pragma once

#include "pointwise_backward.cuh"

//   du, y [rows, outputs], weight [outputs, inputs], coefficients [4, outputs] and sums [2, outputs] of y's batch
//   norm; shortcut [rows, inputs] or null; of the block before: y [rows, inputs], coefficients and keep [images] or
//   null; dx [rows, inputs], partials [blocks, 2, inputs]. Grid: blocks, which divide the tiles of rows evenly.
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
    F(float*, partials)
#define EXPAND_BACKWARD_NUMBERS(F) \
    F(int, rows)                   \
    F(int, inputs)                 \
    F(int, outputs)                \
    F(int, pixels)                 \
    F(float, inverse_rows)
#define EXPAND_BACKWARD_DATA_FIELDS(F) \
    EXPAND_BACKWARD_POINTERS(F)        \
    EXPAND_BACKWARD_NUMBERS(F)
ARGUMENTS(ExpandBackwardDataArguments, EXPAND_BACKWARD_DATA_FIELDS)

//   Both at once: also x [rows, inputs], weight_partials [blocks, outputs, inputs].
#define EXPAND_BACKWARD_FIELDS(F) \
    EXPAND_BACKWARD_POINTERS(F)   \
    F(const void*, x)             \
    F(float*, weight_partials)    \
    EXPAND_BACKWARD_NUMBERS(F)
ARGUMENTS(ExpandBackwardArguments, EXPAND_BACKWARD_FIELDS)

//   x [rows, inputs]; slice: channels of dy of a block; partials [parts, outputs, inputs]. Grid as in WeightPiece.
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
    // Stores the tile's rows and adds them to the sums.
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
    // After a barrier: writes this block's part of the sums.
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

// The block's rows: the tiles are divided evenly.
struct RowRange {
    int first, end;

    __device__ __forceinline__ RowRange(int rows, int tile_rows) {
        const int64_t tiles = (static_cast<int64_t>(rows) + tile_rows - 1) / tile_rows;
        first = static_cast<int>(tiles * blockIdx.x / gridDim.x) * tile_rows;
        const int64_t last = tiles * (blockIdx.x + 1) / gridDim.x * tile_rows;
        end = last < rows ? static_cast<int>(last) : rows;
    }
};

// ---- two kernels ------------------------------------------------------------------------------------------

// `S` is a DataShape whose columns include all narrow channels, so du and y are read once. For tiles of few chunks
// (SEPARATE) dx's tile has its own shared memory, so that the next tile's copies overlap with the epilogue. Otherwise
// it uses the memory of the weights.
template <class S, bool SEPARATE>
__device__ __forceinline__ void expand_backward_data(const ExpandBackwardDataArguments& args) {
    using T = typename S::T;
    using Output = NarrowGradient<ExpandBackwardDataArguments, T, S::ROWS, S::COLUMNS, S::THREADS>;
    SharedArena arena;
    const DataChunks<S> chunks(args, args.du, 0, args.inputs, SEPARATE ? 0 : Output::SIZE, arena);
    Output output(args, SEPARATE ? arena.take<T>(Output::SIZE) : chunks.weights);

    const RowRange range(args.rows, S::ROWS);
    const int end = range.end;
    const int count = chunks.count();
    const auto rows_of = [&](int row) { return end - row < S::ROWS ? end - row : S::ROWS; };
    const auto begin = [&](int row, int chunk, int buffer) {
        if (row < end) chunks.begin(row, rows_of(row), chunk, buffer);
        copy_async_commit();
    };
    typename S::Sums c;
    int buffer = 0;
    begin(range.first, 0, 0);
    for (int row = range.first; row < end; row += S::ROWS) {
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
            barrier();  // the weights are no longer needed
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
    constexpr size_t NEED = Output::SCRATCH * sizeof(float), RAW = 2 * DataChunks<S>::Tile::RAW * sizeof(T);
    constexpr size_t WEIGHTS = 2 * DataChunks<S>::WEIGHTS * sizeof(T), TILE = Output::SIZE * sizeof(T);
    static_assert(RAW >= NEED || (!SEPARATE && (WEIGHTS > TILE ? WEIGHTS : TILE) >= NEED), "room for the sums");
    // No thread has used this memory since the last barrier.
    output.finish(reinterpret_cast<float*>(RAW >= NEED ? chunks.tile.raw : chunks.weights));
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

// ---- one sweep --------------------------------------------------------------------------------------------

// A block has all channels, at most WIDE and NARROW, and goes through tiles of ROWS rows. How its eight warps divide
// the product dx [ROWS, NARROW] and the accumulators dW [WIDE, NARROW].
template <typename T_, class Shape>
struct ExpandSweepShape {
    using T = T_;
    static constexpr int WIDE = Shape::wide, NARROW = Shape::narrow, ROWS = Shape::rows;
    static constexpr int THREADS = SWEEP_THREADS, WARPS = THREADS / WARP;
    static constexpr int DATA_DOWN = ROWS / 16, DATA_ACROSS = largest_divisor(NARROW / 16, WARPS / DATA_DOWN);
    static constexpr int WEIGHT_M = (WIDE / 16 + WARPS - 1) / WARPS;
    static constexpr int WEIGHT_WARPS = (WIDE / 16 + WEIGHT_M - 1) / WEIGHT_M;
    using Data = WarpTile<1, NARROW / 16 / DATA_ACROSS>;
    using Weights = WarpTile<WEIGHT_M, NARROW / 16>;
    // Channels of dy that the warps' accumulators cover. Those past WIDE read the next row, and their sums are not
    // stored.
    static constexpr int COVERED = 16 * WEIGHT_M * WEIGHT_WARPS;
};

template <class S>
struct ExpandSweep {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::NARROW>, DY_STRIDE = ROW_STRIDE<T, S::WIDE>;
    static constexpr int OCTETS = S::NARROW / LANES, RAW = S::ROWS * S::WIDE, PAST = S::COVERED - S::WIDE;

    const ExpandBackwardArguments& args;
    T* raw;      // [2, ROWS, WIDE]: du, y; each thread reads what it copied
    T* dy;       // [ROWS, DY_STRIDE], then PAST more
    T* weights;  // [WIDE, STRIDE]
    T* x;        // [2, ROWS, STRIDE]
    float* norm;  // [4, WIDE]
    int channel, group, groups;  // this thread's octet of wide channels, its first row and the step to the next

    __device__ __forceinline__ ExpandSweep(const ExpandBackwardArguments& args, SharedArena& arena) : args(args) {
        raw = arena.take<T>(2 * RAW);
        dy = arena.take<T>(S::ROWS * DY_STRIDE + PAST);
        weights = arena.take<T>(S::WIDE * STRIDE);
        x = arena.take<T>(2 * S::ROWS * STRIDE);
        norm = arena.take<float>(4 * S::WIDE);
        const int octets = args.outputs / LANES;
        groups = S::THREADS / octets;
        channel = static_cast<int>(threadIdx.x) % octets * LANES;
        group = threadIdx.x / octets;
        if (group >= groups) group = S::ROWS;
    }
    // Loads the weights and batch norm's numbers; channels past the last are zero.
    __device__ __forceinline__ void begin() const {
        const T* from = static_cast<const T*>(args.weight);
#pragma unroll 1
        for (int unit = threadIdx.x; unit < S::WIDE * OCTETS; unit += S::THREADS) {
            const int line = unit / OCTETS, column = unit % OCTETS * LANES;
            const bool valid = line < args.outputs && column < args.inputs;
            copy_lanes(weights + line * STRIDE + column, from + (valid ? line * args.inputs + column : 0), valid);
        }
#pragma unroll 1
        for (int n = threadIdx.x; n < args.outputs; n += S::THREADS) {
            const NormBackward of =
                NormBackward::of(args.coefficients, args.sums, args.outputs, n, args.inverse_rows);
            norm[n] = of.a;
            norm[S::WIDE + n] = of.b;
            norm[2 * S::WIDE + n] = of.c;
            norm[3 * S::WIDE + n] = of.mean;
        }
        const float zeros[LANES] = {};
#pragma unroll 1
        for (int unit = threadIdx.x; unit < (S::ROWS * DY_STRIDE + PAST) / LANES; unit += S::THREADS)
            store_lanes(dy + unit * LANES, zeros);
    }
    __device__ __forceinline__ void begin_tile(int row, int rows, int buffer) const {
        const size_t start = static_cast<size_t>(row) * args.outputs + channel;
#pragma unroll 1
        for (int at = group; at < rows; at += groups) {
            const size_t from = start + static_cast<size_t>(at) * args.outputs;
            T* to = raw + at * S::WIDE + channel;
            copy_lanes(to, static_cast<const T*>(args.du) + from, true);
            copy_lanes(to + RAW, static_cast<const T*>(args.y) + from, true);
        }
        T* to = x + buffer * (S::ROWS * STRIDE);
#pragma unroll 1
        for (int unit = threadIdx.x; unit < S::ROWS * OCTETS; unit += S::THREADS) {
            const int at = unit / OCTETS, column = unit % OCTETS * LANES;
            const bool valid = at < rows && column < args.inputs;
            const size_t from = valid ? static_cast<size_t>(row + at) * args.inputs + column : 0;
            copy_lanes(to + at * STRIDE + column, static_cast<const T*>(args.x) + from, valid);
        }
    }
    // Four channels at a time: batch norm's numbers of eight would take registers that the accumulators need.
    __device__ __forceinline__ void form(int rows) const {
        if (group >= S::ROWS) return;
#pragma unroll 1
        for (int part = channel; part < channel + LANES; part += 4) {
            const Pack<float> a = load_pack(norm + part), b = load_pack(norm + S::WIDE + part);
            const Pack<float> c = load_pack(norm + 2 * S::WIDE + part), mean = load_pack(norm + 3 * S::WIDE + part);
#pragma unroll 1
            for (int at = group; at < S::ROWS; at += groups) {
                T* to = dy + at * DY_STRIDE + part;
                if (at >= rows) {
                    store_pair(to, 0.0f, 0.0f);
                    store_pair(to + 2, 0.0f, 0.0f);
                    continue;
                }
                const T* from = raw + at * S::WIDE + part;
                const Group<T, 4> gradient = *reinterpret_cast<const Group<T, 4>*>(from);
                const Group<T, 4> value = *reinterpret_cast<const Group<T, 4>*>(from + RAW);
                Group<T, 4> result;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const NormBackward of = {a.v[i], b.v[i], c.v[i], mean.v[i]};
                    result.v[i] = from_float<T>(of.dy(to_float(gradient.v[i]), to_float(value.v[i])));
                }
                *reinterpret_cast<Group<T, 4>*>(to) = result;
            }
        }
    }
    template <class Output>
    __device__ __forceinline__ void put_data(const typename S::Data& c, const Output& output, int rows) const {
        const int warp = threadIdx.x / WARP;
        if (warp < S::DATA_DOWN * S::DATA_ACROSS)
            output.put(c, warp / S::DATA_ACROSS * 16, warp % S::DATA_ACROSS * (S::NARROW / S::DATA_ACROSS), rows);
    }
    __device__ __forceinline__ void multiply_data(typename S::Data& c) const {
        const int warp = threadIdx.x / WARP;
        if (warp >= S::DATA_DOWN * S::DATA_ACROSS) return;
        const int row = warp / S::DATA_ACROSS * 16, column = warp % S::DATA_ACROSS * (S::NARROW / S::DATA_ACROSS);
        c.clear();
        multiply<false>(c, dy + row * DY_STRIDE, DY_STRIDE, weights + column, STRIDE, (args.outputs + 15) / 16 * 16);
    }
    // This warp's accumulators of the weights' gradient.
    __device__ __forceinline__ void multiply_weights(typename S::Weights& c, int buffer) const {
        const int warp = threadIdx.x / WARP;
        if (warp < S::WEIGHT_WARPS)
            multiply<true>(
                c, dy + warp * (16 * S::WEIGHT_M), DY_STRIDE, x + buffer * (S::ROWS * STRIDE), STRIDE, S::ROWS);
    }
    __device__ __forceinline__ void store_weights(const typename S::Weights& c) const {
        const int warp = threadIdx.x / WARP;
        if (warp >= S::WEIGHT_WARPS) return;
        float* to = args.weight_partials + static_cast<size_t>(blockIdx.x) * args.outputs * args.inputs;
        c.visit([&](int down, int column, float one, float two) {
            const int line = warp * (16 * S::WEIGHT_M) + down;
            if (line < args.outputs && column < args.inputs) store_pair(to + line * args.inputs + column, one, two);
        });
    }
};

// While the tensor cores multiply and dx is stored, du, y and x of the next tile are copied.
template <class S>
__device__ __forceinline__ void expand_backward(const ExpandBackwardArguments& args) {
    using T = typename S::T;
    using Output = NarrowGradient<ExpandBackwardArguments, T, S::ROWS, S::NARROW, S::THREADS>;
    SharedArena arena;
    const ExpandSweep<S> sweep(args, arena);
    Output output(args, arena.take<T>(Output::SIZE));
    const RowRange range(args.rows, S::ROWS);
    const auto rows_of = [&](int row) { return range.end - row < S::ROWS ? range.end - row : S::ROWS; };
    typename S::Weights weights;
    typename S::Data data;
    weights.clear();
    sweep.begin();
    if (range.first < range.end) sweep.begin_tile(range.first, rows_of(range.first), 0);
    copy_async_commit();
    barrier();
    int buffer = 0;
    for (int row = range.first; row < range.end; row += S::ROWS, buffer ^= 1) {
        const int rows = rows_of(row), next = row + S::ROWS;
        copy_async_wait<0>();
        sweep.form(rows);
        barrier();
        output.begin_shortcut(row, rows);
        copy_async_commit();
        if (next < range.end) sweep.begin_tile(next, rows_of(next), buffer ^ 1);
        copy_async_commit();
        sweep.multiply_data(data);
        sweep.multiply_weights(weights, buffer);
        if (args.shortcut != nullptr) {
            copy_async_wait<1>();
            barrier();
        }
        sweep.put_data(data, output, rows);
        barrier();
        output.store(row, rows);
    }
    static_assert(2 * ExpandSweep<S>::RAW * sizeof(T) >= Output::SCRATCH * sizeof(float), "a place for the sums");
    sweep.store_weights(weights);
    output.finish(reinterpret_cast<float*>(sweep.raw));
}
