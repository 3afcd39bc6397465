// The projection backward in one sweep: a block has a slice of the wide channels and all narrow channels. Its weights
// stay in shared memory, its weights' gradient in the registers of eight warps. The steps for a tile of rows:
//
//   form dy · barrier · da = dy·W into shared memory · barrier · the five sums, A in place of x, da to memory ·
//   barrier · begin the copies of the next x in place of da · dW += dyᵀ·A · barrier
//
// x is read once and its sigmoid is computed once. dout and y are read directly from memory by every slice: they are
// narrow, and all slices but the first get them from the second-level cache.
//
// Bytes, operations and floors at B0's shapes: project.cu.
#pragma once

#include "project_backward.cuh"

// A block has SLICE wide channels and all narrow ones, at most DEPTH, and goes through tiles of ROWS rows. How its
// eight warps divide the product da [ROWS, SLICE] and the accumulators dW [DEPTH, SLICE].
template <typename T_, class Shape>
struct SweepShape {
    using T = T_;
    static constexpr int DEPTH = Shape::depth, SLICE = Shape::slice, ROWS = Shape::rows;
    static constexpr int THREADS = SWEEP_THREADS, WARPS = THREADS / WARP;
    static constexpr int PAIRS = SLICE / 16;
    static constexpr int DATA_DOWN = ROWS / 16, DATA_ACROSS = largest_divisor(PAIRS, WARPS / DATA_DOWN);
    static constexpr int WEIGHT_ACROSS = largest_divisor(PAIRS, WARPS);
    static constexpr int WEIGHT_DOWN = WARPS / WEIGHT_ACROSS < DEPTH / 16 ? WARPS / WEIGHT_ACROSS : DEPTH / 16;
    using Data = WarpTile<1, PAIRS / DATA_ACROSS>;
    static constexpr int WEIGHT_M = (DEPTH / 16 + WEIGHT_DOWN - 1) / WEIGHT_DOWN;
    using Weights = WarpTile<WEIGHT_M, PAIRS / WEIGHT_ACROSS>;
    // Narrow channels in shared memory, zeros past the last.
    static constexpr int NARROW = 16 * WEIGHT_M * WEIGHT_DOWN;
};

template <class S>
struct ProjectSweep {
    using T = typename S::T;
    using Tiles = ImageTiles<S::ROWS>;
    using Rows = SliceRows<T, S::ROWS, S::SLICE, S::THREADS>;
    static constexpr int STRIDE = Rows::STRIDE, NARROW = S::NARROW, DY_STRIDE = ROW_STRIDE<T, NARROW>;

    const ProjectBackwardArguments& args;
    int first, width, depth;  // the slice; narrow channels padded to 16
    T* weights;               // [DEPTH, STRIDE]
    T* dy;                    // [ROWS, DY_STRIDE]
    T* wide;                  // [2, ROWS, STRIDE]: x and, in its place, A; da
    float* norm;              // [4, NARROW]

    __device__ __forceinline__ ProjectSweep(const ProjectBackwardArguments& args, SharedArena& arena) : args(args) {
        first = blockIdx.x * args.slice;
        width = args.inputs - first < args.slice ? args.inputs - first : args.slice;
        depth = (args.outputs + 15) / 16 * 16;
        weights = arena.take<T>(S::DEPTH * STRIDE);
        dy = arena.take<T>(S::ROWS * DY_STRIDE);
        wide = arena.take<T>(2 * Rows::SIZE);
        norm = arena.take<float>(4 * NARROW);
    }
    // Loads the block's weights and batch norm's numbers; channels past the last are zero.
    __device__ __forceinline__ void begin() const {
        const T* from = static_cast<const T*>(args.weight) + first;
#pragma unroll 1
        for (int unit = threadIdx.x; unit < depth * Rows::OCTETS; unit += S::THREADS) {
            const int line = unit / Rows::OCTETS, column = unit % Rows::OCTETS * LANES;
            const bool valid = line < args.outputs && column < width;
            copy_lanes(weights + line * STRIDE + column,
                       from + (valid ? static_cast<size_t>(line) * args.inputs + column : 0), valid);
        }
#pragma unroll 1
        for (int n = threadIdx.x; n < args.outputs; n += S::THREADS) {
            const NormBackward of =
                NormBackward::of(args.coefficients, args.sums, args.outputs, n, args.inverse_rows);
            norm[n] = of.a;
            norm[NARROW + n] = of.b;
            norm[2 * NARROW + n] = of.c;
            norm[3 * NARROW + n] = of.mean;
        }
        const float zeros[LANES] = {};
        for (int unit = threadIdx.x; unit < S::ROWS * (NARROW / LANES); unit += S::THREADS)
            store_lanes(dy + unit / (NARROW / LANES) * DY_STRIDE + unit % (NARROW / LANES) * LANES, zeros);
    }
    // Computes dy of a tile, directly from memory (the other slices read the same).
    __device__ __forceinline__ void form(const Tiles& at) const {
        const int octets = args.outputs / LANES, step = S::THREADS / octets;
        const int channel = static_cast<int>(threadIdx.x) % octets * LANES;
        int row = threadIdx.x / octets;
        if (row >= step) return;
        const int rows = at.rows();
        const size_t start = static_cast<size_t>(at.start()) * args.outputs + channel;
        const KeepFactor<S::ROWS> factor(args.keep, at);
        NormLanes lanes;
        load_lanes(lanes.a, norm + channel);
        load_lanes(lanes.b, norm + NARROW + channel);
        load_lanes(lanes.c, norm + 2 * NARROW + channel);
        load_lanes(lanes.mean, norm + 3 * NARROW + channel);
#pragma unroll 1
        for (; row < S::ROWS; row += step) {
            float gradient[LANES] = {};
            if (row < rows) {
                float value[LANES];
                const size_t from = start + static_cast<size_t>(row) * args.outputs;
                load_lanes(gradient, static_cast<const T*>(args.dout) + from);
                load_lanes(value, static_cast<const T*>(args.y) + from);
                const float by = factor(row);
#pragma unroll
                for (int i = 0; i < LANES; i++) gradient[i] *= by;
                lanes.apply(gradient, value);
            }
            store_lanes(dy + row * DY_STRIDE + channel, gradient);
        }
    }
    __device__ __forceinline__ void multiply_data(T* to) const {
        const int warp = threadIdx.x / WARP;
        if (warp >= S::DATA_DOWN * S::DATA_ACROSS) return;
        const int row = warp / S::DATA_ACROSS * 16, column = warp % S::DATA_ACROSS * (S::SLICE / S::DATA_ACROSS);
        typename S::Data c;
        c.clear();
        multiply<false>(c, dy + row * DY_STRIDE, DY_STRIDE, weights + column, STRIDE, depth);
        c.visit([&](int down, int across, float one, float two) {
            store_pair(to + (row + down) * STRIDE + column + across, one, two);
        });
    }
    // This warp's accumulators: their first narrow channel and first column of the slice.
    __device__ static bool has_weights() { return threadIdx.x / WARP < S::WEIGHT_DOWN * S::WEIGHT_ACROSS; }
    __device__ static int weight_line() { return threadIdx.x / WARP / S::WEIGHT_ACROSS * (16 * S::WEIGHT_M); }
    __device__ static int weight_column() {
        return threadIdx.x / WARP % S::WEIGHT_ACROSS * (S::SLICE / S::WEIGHT_ACROSS);
    }
    __device__ __forceinline__ void store_weights(const typename S::Weights& c) const {
        if (!has_weights()) return;
        float* to = args.partials + static_cast<size_t>(blockIdx.y) * args.outputs * args.inputs + first;
        c.visit([&](int down, int across, float one, float two) {
            const int line = weight_line() + down, column = weight_column() + across;
            if (line < args.outputs && column < width)
                store_pair(to + static_cast<size_t>(line) * args.inputs + column, one, two);
        });
    }
};

// While the weights' gradient is summed, x of the next tile is copied to the place of this tile's da.
template <class S>
__device__ __forceinline__ void project_backward(const ProjectBackwardArguments& args) {
    using T = typename S::T;
    using Sweep = ProjectSweep<S>;
    SharedArena arena;
    const Sweep sweep(args, arena);
    const FiveSums<T, S::ROWS, Sweep::STRIDE, S::THREADS> sums(args, sweep.first, sweep.width, arena);
    const typename Sweep::Rows slice(args, sweep.first, sweep.width);
    ImageTiles<S::ROWS> tile(args);
    typename S::Weights c;
    c.clear();
    sweep.begin();
    if (!tile.done()) slice.begin(sweep.wide, tile);
    copy_async_commit();
    barrier();
    for (int now = 0; !tile.done(); now ^= 1) {
        T* x = sweep.wide + now * Sweep::Rows::SIZE;
        T* da = sweep.wide + (now ^ 1) * Sweep::Rows::SIZE;
        sweep.form(tile);
        copy_async_wait<0>();
        barrier();
        sweep.multiply_data(da);
        barrier();
        sums.template add_tile<true>(tile, da, x);
        slice.store(da, tile);
        barrier();
        sums.finish_tile(tile);
        tile.next();
        if (!tile.done()) slice.begin(da, tile);
        copy_async_commit();
        if (Sweep::has_weights())
            multiply<true>(c, sweep.dy + Sweep::weight_line(), Sweep::DY_STRIDE, x + Sweep::weight_column(),
                           Sweep::STRIDE, S::ROWS);
        barrier();
    }
    sweep.store_weights(c);
}
