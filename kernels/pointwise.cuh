// Pointwise convolutions forward: y [M, N] = A·Wᵀ with A [M, K] = x or silu(BN(x))·gate, W [N, K], and y's statistics.
//
// A block has COLUMNS output channels and goes through several tiles of ROWS rows. One pipeline of steps runs through
// all of its tiles. A step is a chunk of `chunk` input channels of one tile. While the tensor cores multiply one step,
// the copies of the next STAGES − 1 steps are running, also across the border between tiles. The weights are loaded
// chunk by chunk, or, if all of the block's weights fit beside the pipeline, only once with the first tile. The loop:
//
//   barrier · begin the copies of step s + STAGES − 1 · multiply step s · [store the tile] · await own copies of s + 1
//   and activate them in place · barrier · …
//
// Each thread activates the vectors that it copied itself. So activation needs no further barrier, happens once for
// each element of a column tile, and overlaps with the products of other warps. A thread has one fixed vector of
// channels of the chunk, so it loads batch norm's coefficients once a step and the gate once an image.
//
// Shared rows have an odd number of 16-byte units: eight rows of a matrix are in eight different groups of banks. K is
// padded with zeros to a multiple of 16. A tile is stored through a few hundred bytes of shared memory per warp: from
// there whole rows of the warp's channels are stored in vectors, and their statistics are taken. A lane has the same
// vector of eight channels in all tiles, so its sums stay in registers. The last blocks make the coefficients of them.
//
// fp32 storage runs the same pipeline with fused multiply-adds instead of tensor cores: exact fp32.
//
// Bytes, operations and floors at B0's shapes: expand.cu and project.cu.
#pragma once

#include "pointwise_output.cuh"

// Fields of the argument structs: first the pointers, last the numbers.
//   x [rows, inputs], weight [outputs, inputs], y [rows, outputs] in the storage type, null if only its statistics are
//   wanted; counts [parts] and moments [parts + groups of them, 2, outputs], null if no statistics are wanted. Grid:
//   (column tiles, parts).
#define POINTWISE_POINTERS(F) \
    F(const void*, x)         \
    F(const void*, weight)    \
    F(void*, y)               \
    F(float*, counts)         \
    F(float*, moments)        \
    BATCH_NORM_FINISH_FIELDS(F)
//   chunk: input channels of a step, a multiple of 16; row_tiles: tiles of a part; weight_slots: chunks of weights in
//   shared memory, either all of them or one for each stage.
#define POINTWISE_NUMBERS(F) \
    F(int, rows)             \
    F(int, inputs)           \
    F(int, outputs)          \
    F(int, chunk)            \
    F(int, row_tiles)        \
    F(int, weight_slots)

// How rows × columns outputs are divided among warps: a warp has M × N tiles of 16×8.
template <class Shape>
struct PointwiseTile {
    static constexpr int ROWS = Shape::rows, COLUMNS = Shape::columns;
    static constexpr int WARPS_M = Shape::down, WARPS_N = Shape::across, STAGES = Shape::stages;
    static constexpr int WARPS = WARPS_M * WARPS_N, THREADS = WARPS * WARP;
    static constexpr int M = ROWS / WARPS_M / 16, N = COLUMNS / WARPS_N / 8;
    // Of a thread, beside its sums.
    static constexpr int REGISTERS = 65536 / (THREADS * Shape::blocks) - 4 * M * N;
    static_assert(M * WARPS_M * 16 == ROWS && N * WARPS_N * 8 == COLUMNS, "whole tensor-core tiles");

    using Accumulators = float[M][N][4];

    __device__ static int warp() { return threadIdx.x / WARP; }
    __device__ static int lane() { return threadIdx.x % WARP; }
    // First row and column of this warp within the block's tile.
    __device__ static int warp_row() { return warp() / WARPS_N * (M * 16); }
    __device__ static int warp_column() { return warp() % WARPS_N * (N * 8); }
};

// ---- the product ------------------------------------------------------------------------------------------

// c += A·Wᵀ over `depth` channels (a multiple of 16) of a step: `a` and `w` are shared rows `stride` apart. Unlike in
// tile_product.cuh the depth runs along the rows of both, and the columns may be an odd number of eights.
template <class Tile, typename T>
__device__ __forceinline__ void multiply_rows_half(
    typename Tile::Accumulators& c, const T* a, const T* w, int stride, int depth) {
    constexpr int M = Tile::M, N = Tile::N;
    const int lane = Tile::lane();
    a += (Tile::warp_row() + lane % 16) * stride + lane / 16 * 8;
    w += (Tile::warp_column() + lane % 8) * stride + lane / 8 % 2 * 8;
    const int second = lane / 16 * 8 * stride;  // the other eight channels of a pair of tiles
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) {
        uint32_t left[M][4], right[N][2];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrix_x4(left[m], a + m * 16 * stride + k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t pair[4];
            const bool both = n + 1 < N;  // otherwise the same eight rows are loaded twice
            load_matrix_x4(pair, w + n * 8 * stride + k + (both ? second : 0));
            right[n][0] = pair[0];
            right[n][1] = pair[1];
            if (both) {
                right[n + 1][0] = pair[2];
                right[n + 1][1] = pair[3];
            }
        }
        mma_tiles<T>(c, left, right);
    }
}

// The same in fp32, with the accumulators where the tensor cores would leave them. `depth` is a multiple of 4.
template <class Tile>
__device__ __forceinline__ void multiply_rows_float(
    typename Tile::Accumulators& c, const float* a, const float* w, int stride, int depth) {
    constexpr int M = Tile::M, N = Tile::N;
    const int lane = Tile::lane();
    a += (Tile::warp_row() + lane / 4) * stride;
    w += (Tile::warp_column() + lane % 4 * 2) * stride;
#pragma unroll 1
    for (int k = 0; k < depth; k += 4) {
        Pack<float> left[M][2];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left[m][0] = load_pack(a + m * 16 * stride + k);
            left[m][1] = load_pack(a + (m * 16 + 8) * stride + k);
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            const Pack<float> right[2] = {load_pack(w + n * 8 * stride + k), load_pack(w + (n * 8 + 1) * stride + k)};
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        c[m][n][i] = fmaf(left[m][i / 2].v[e], right[i % 2].v[e], c[m][n][i]);
        }
    }
}

// ---- the pipeline's copies --------------------------------------------------------------------------------

// One step of the pipeline.
struct PointwiseStep {
    int index;  // among the block's steps
    int row;    // first row of x
    int chunk;  // number of the chunk of channels
    int stage;  // its place in shared memory

    template <class Tile>
    __device__ __forceinline__ void advance(int chunks) {
        index++;
        stage = stage + 1 == Tile::STAGES ? 0 : stage + 1;
        if (++chunk == chunks) {
            chunk = 0;
            row += Tile::ROWS;
        }
    }
};

// Copies from x and W. A thread has one 16-byte unit of the chunk, in every `threads_down`-th row.
template <typename T, class Tile>
struct PointwiseCopies {
    static constexpr int UNIT = Pack<T>::N;

    const T* x;
    const T* weight;  // of the block's first channel
    T* a;             // [STAGES, ROWS, stride], and one unit: room for the merge of statistics
    T* w;             // [weight_slots, COLUMNS, stride]
    int rows, inputs, columns;
    int chunk, stride, depth, chunks;
    int unit, down, threads_down;  // this thread's unit and first row; for idle threads past all rows
    bool resident;

    template <class Args>
    __device__ __forceinline__ PointwiseCopies(const Args& args, SharedArena& arena) {
        const int column = blockIdx.x * Tile::COLUMNS;
        x = static_cast<const T*>(args.x);
        weight = static_cast<const T*>(args.weight) + static_cast<size_t>(column) * args.inputs;
        rows = args.rows;
        inputs = args.inputs;
        columns = args.outputs - column;
        chunk = args.chunk;
        stride = chunk + UNIT;
        depth = sizeof(T) == 2 ? (inputs + 15) / 16 * 16 : inputs;
        chunks = (depth + chunk - 1) / chunk;
        a = arena.take<T>(static_cast<size_t>(Tile::STAGES) * Tile::ROWS * stride + UNIT);
        w = arena.take<T>(static_cast<size_t>(args.weight_slots) * Tile::COLUMNS * stride);
        resident = args.weight_slots == chunks;
        const int units = chunk / UNIT, thread = threadIdx.x;
        unit = thread % units;
        threads_down = Tile::THREADS / units;
        down = thread / units;
        if (down >= threads_down) down = Tile::ROWS + Tile::COLUMNS;
    }

    // Channels of a step.
    __device__ __forceinline__ int depth_of(const PointwiseStep& step) const {
        const int left = depth - step.chunk * chunk;
        return left < chunk ? left : chunk;
    }
    __device__ __forceinline__ T* a_of(const PointwiseStep& step) const {
        return a + step.stage * (Tile::ROWS * stride);
    }
    __device__ __forceinline__ T* w_of(const PointwiseStep& step) const {
        return w + (resident ? step.chunk : step.stage) * (Tile::COLUMNS * stride);
    }

    __device__ __forceinline__ void begin(const PointwiseStep& step) const {
        const int channel = step.chunk * chunk + unit * UNIT;
        if (channel >= depth) return;
        const bool inside = channel < inputs;
        T* to = a_of(step) + unit * UNIT;
        for (int row = down; row < Tile::ROWS; row += threads_down) {
            const bool valid = inside && step.row + row < rows;
            const size_t from = valid ? static_cast<size_t>(step.row + row) * inputs + channel : 0;
            copy_async_16(to + row * stride, x + from, valid);
        }
        if (resident && step.index >= chunks) return;
        to = w_of(step) + unit * UNIT;
        for (int column = down; column < Tile::COLUMNS; column += threads_down) {
            const bool valid = inside && column < columns;
            const T* from = weight + (valid ? static_cast<size_t>(column) * inputs + channel : 0);
            copy_async_16(to + column * stride, from, valid);
        }
    }
};

// ---- the prologue -----------------------------------------------------------------------------------------

// A = x.
template <typename T, class Tile>
struct PointwisePlain {
    static constexpr bool NUMBERS = false;  // whether all threads need what `begin` has made

    __device__ __forceinline__ void take(SharedArena&) {}
    __device__ __forceinline__ void begin() const {}
    __device__ __forceinline__ void prefetch(const PointwiseCopies<T, Tile>&, const PointwiseStep&) {}
    __device__ __forceinline__ void apply(const PointwiseCopies<T, Tile>&, const PointwiseStep&) {}
};

// ---- the kernels' body ------------------------------------------------------------------------------------

template <typename T, class Tile, class Prologue, class Args>
__device__ __forceinline__ void pointwise_forward(const Args& args, Prologue prologue) {
    SharedArena arena;
    prologue.take(arena);
    const PointwiseCopies<T, Tile> copies(args, arena);
    PointwiseOutput<T, Tile> output(args, arena);

    const int first_row = blockIdx.y * args.row_tiles * Tile::ROWS;
    const int tiles = (args.rows - first_row + Tile::ROWS - 1) / Tile::ROWS;
    const int steps = (tiles < args.row_tiles ? tiles : args.row_tiles) * copies.chunks;
    PointwiseStep ahead = {0, first_row, 0, 0}, next = ahead;
    for (int stage = 0; stage < Tile::STAGES - 1; stage++) {
        if (ahead.index < steps) copies.begin(ahead);
        copy_async_commit();
        ahead.template advance<Tile>(copies.chunks);
    }
    prologue.begin();
    prologue.prefetch(copies, next);
    copy_async_wait<Tile::STAGES - 2>();
    if constexpr (Prologue::NUMBERS) barrier();
    prologue.apply(copies, next);

    typename Tile::Accumulators c = {};
    while (next.index < steps) {
        const PointwiseStep now = next;
        next.template advance<Tile>(copies.chunks);
        if (next.index < steps) prologue.prefetch(copies, next);
        barrier();
        if (ahead.index < steps) copies.begin(ahead);
        copy_async_commit();
        ahead.template advance<Tile>(copies.chunks);
        if constexpr (sizeof(T) == 2)
            multiply_rows_half<Tile>(c, copies.a_of(now), copies.w_of(now), copies.stride, copies.depth_of(now));
        else
            multiply_rows_float<Tile>(c, copies.a_of(now), copies.w_of(now), copies.stride, copies.depth_of(now));
        if (next.chunk == 0) {
            output.store(c, now.row);
#pragma unroll
            for (int m = 0; m < Tile::M; m++)
#pragma unroll
                for (int n = 0; n < Tile::N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
        }
        copy_async_wait<Tile::STAGES - 2>();
        if (next.index < steps) prologue.apply(copies, next);
    }
    output.finish(args, copies.a);
}
