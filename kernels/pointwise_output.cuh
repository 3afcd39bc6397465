// How pointwise.cuh stores a tile and takes its statistics.
#pragma once

#include "batch_norm.cuh"

// Count, mean and Σ(y − mean)² of some values.
struct PointwiseShare {
    float count, mean, spread;

    __device__ __forceinline__ void merge(const PointwiseShare& other) {
        count = merge_moments(count, mean, spread, other.count, other.mean, other.spread);
    }
};

// Stores a warp's tiles, eight rows at a time, and sums their statistics. A lane has one vector of eight channels in
// every LANE_ROWS-th row.
template <typename T, class Tile>
struct PointwiseOutput {
    static constexpr int VECTORS = Tile::N;  // of a row of the warp's channels
    static constexpr int LANE_ROWS = WARP / VECTORS < 8 ? WARP / VECTORS : 8;
    // Elements of a staged row, also an odd number of units.
    static constexpr int STRIDE = sizeof(T) == 2 ? (VECTORS | 1) * LANES : VECTORS * LANES + 4;

    T* y;
    T* staged;  // [8, STRIDE] a warp
    float* scratch;  // [WARPS_M, 3, COLUMNS], the same memory as `staged`
    int rows, outputs, vector, down, column;
    bool statistics, fresh;
    float count;
    Moments moments[LANES];

    template <class Args>
    __device__ __forceinline__ PointwiseOutput(const Args& args, SharedArena& arena) {
        T* all = arena.take<T>(Tile::WARPS * 8 * STRIDE);
        scratch = reinterpret_cast<float*>(all);
        staged = all + Tile::warp() * (8 * STRIDE);
        y = static_cast<T*>(args.y);
        rows = args.rows;
        outputs = args.outputs;
        vector = Tile::lane() % VECTORS;
        down = Tile::lane() / VECTORS;
        column = blockIdx.x * Tile::COLUMNS + Tile::warp_column() + vector * LANES;
        statistics = fresh = args.moments != nullptr;
        count = 0.0f;
#pragma unroll
        for (int i = 0; i < LANES; i++) moments[i] = {0.0f, 0.0f, 0.0f};
    }

    // The tile that begins at `row`.
    __device__ __forceinline__ void store(const typename Tile::Accumulators& c, int row) {
        T* write = staged + Tile::lane() / 4 * STRIDE + Tile::lane() % 4 * 2;
#pragma unroll
        for (int m = 0; m < Tile::M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int n = 0; n < Tile::N; n++)
                    store_pair(write + n * 8, c[m][n][2 * half], c[m][n][2 * half + 1]);
                warp_barrier();
                store_staged(row + Tile::warp_row() + m * 16 + half * 8, m == 0 && half == 0);
                warp_barrier();
            }
        }
    }

    // `first`: of a tile. A block's first row of each channel is the shift of all lanes of the warp.
    __device__ __forceinline__ void store_staged(int row, bool first) {
        constexpr int N = Pack<T>::N;
#pragma unroll
        for (int begin = 0; begin < 8; begin += LANE_ROWS) {
            const int at = begin + down;
            const bool own = down < LANE_ROWS && at < 8 && row + at < rows && column < outputs;
            Pack<float> raw[LANES / N] = {};  // 16 bytes each, of T
            if (own) {
                const size_t to = static_cast<size_t>(row + at) * outputs + column;
#pragma unroll
                for (int part = 0; part < LANES / N; part++) {
                    raw[part] = load_pack(reinterpret_cast<const float*>(staged + at * STRIDE + vector * LANES + part * N));
                    if (y != nullptr) store_pack(reinterpret_cast<float*>(y + to + part * N), raw[part]);
                }
            }
            if (!statistics) continue;
            float values[LANES];
            load_lanes(values, reinterpret_cast<const T*>(raw));
            if (first && begin == 0 && fresh) {
                fresh = false;
#pragma unroll
                for (int i = 0; i < LANES; i++) moments[i].shift = shuffle(values[i], vector);
            }
            if (!own) continue;
#pragma unroll
            for (int i = 0; i < LANES; i++) moments[i].add(values[i]);
            count += 1.0f;
        }
    }

    // After the last tile, called by all threads: writes the block's part of the statistics, added over lanes, merged
    // over warps. `shared` is memory that is no longer needed.
    template <class Args>
    __device__ __forceinline__ void finish(const Args& args, void* shared) {
        if (!statistics) return;
        float number = count, sums[LANES], squares[LANES];
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            sums[i] = moments[i].sum;
            squares[i] = moments[i].squares;
        }
#pragma unroll 1
        for (int other = 1; other < LANE_ROWS; other++) {
            const int from = vector + other * VECTORS;
            number += shuffle(count, from);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                sums[i] += shuffle(moments[i].sum, from);
                squares[i] += shuffle(moments[i].squares, from);
            }
        }
        barrier();  // no warp needs its staged rows any more
        if (down == 0) {
            float* to = scratch + Tile::warp() / Tile::WARPS_N * (3 * Tile::COLUMNS) + Tile::warp_column();
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const Moments all = {moments[i].shift, sums[i], squares[i]};
                float mean, spread;
                all.finish(number, mean, spread);
                to[vector * LANES + i] = number;
                to[Tile::COLUMNS + vector * LANES + i] = mean;
                to[2 * Tile::COLUMNS + vector * LANES + i] = spread;
            }
        }
        barrier();
        for (int own = threadIdx.x; own < Tile::COLUMNS; own += Tile::THREADS) {
            const int channel = blockIdx.x * Tile::COLUMNS + own;
            if (channel >= outputs) break;
            PointwiseShare all = {0.0f, 0.0f, 0.0f};
            for (int warp = 0; warp < Tile::WARPS_M; warp++) {
                const float* from = scratch + warp * (3 * Tile::COLUMNS) + own;
                all.merge({from[0], from[Tile::COLUMNS], from[2 * Tile::COLUMNS]});
            }
            float* to = args.moments + static_cast<size_t>(blockIdx.y) * 2 * outputs + channel;
            to[0] = all.mean;
            to[outputs] = all.spread;
        }
        constexpr int LEAST = Tile::STAGES * Tile::ROWS * (16 + Pack<T>::N) * sizeof(T) + 16;  // of the pipeline, in bytes
        static_assert(MomentsMerge<Tile::COLUMNS, Tile::THREADS>::FLOATS * 4 <= LEAST, "room for the merge");
        const EvenParts parts = {rows, args.row_tiles * Tile::ROWS};
        if (blockIdx.x == 0 && threadIdx.x == 0)
            args.counts[blockIdx.y] = static_cast<float>(parts.count(blockIdx.y, 1));
        finish_batch_norm<Tile::COLUMNS, Tile::THREADS>(
            args, static_cast<float*>(shared), blockIdx.x, outputs, blockIdx.y, gridDim.y, parts);
    }
};
