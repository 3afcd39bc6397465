// The projection backward in one sweep: a block has a slice of the wide channels and all narrow channels, and a warp 16
// of the slice's. The block's weights stay in shared memory; its weights' gradient, the five sums and batch norm's numbers
// of x stay in registers. The steps for a tile of rows:
//
//   await own copies · form dy · barrier · begin the copies of the next tile · da = dy·W, in registers · from them and x
//   the five sums and A, in place of x; da to memory · dW += dyᵀ·A
//
// Only dy passes between warps, and it has two buffers: one barrier. If warps divide the rows of a tile (DOWN > 1), A does
// too: two barriers. dout is copied to where dy will be, and y beside it; the thread that copied a vector makes dy of it.
// x has two buffers. Shared rows have an odd number of 16-byte units, see tile_product.cuh.
//
// The tensor cores leave a lane two neighbouring channels of eight. The weights' columns are permuted in shared memory so
// that a lane's two pairs of sixteen are four neighbours: it loads and stores 8 bytes of x, A and da.
//
// x is read once and its sigmoid is computed once. dout and y are read by every slice: they are narrow, and all slices but
// the first get them from the second-level cache.
//
// Bytes, operations and floors at B0's shapes: project.cu.
#pragma once

#include "project_backward.cuh"

// A block has SLICE wide channels and all narrow ones, at most DEPTH, and goes through tiles of ROWS rows. DOWN warps
// divide the rows of a tile and the narrow channels of the weights' gradient.
template <typename T_, class Shape>
struct SweepShape {
    using T = T_;
    static constexpr int DEPTH = Shape::depth, COLUMNS = Shape::slice, ROWS = Shape::rows, DOWN = Shape::down;
    static constexpr int ACROSS = COLUMNS / 16, THREADS = WARP * ACROSS * DOWN, WARP_ROWS = ROWS / DOWN;
    static constexpr int M = WARP_ROWS / 16, WEIGHT_M = (DEPTH / 16 + DOWN - 1) / DOWN;
    // Narrow channels in shared memory, zeros past the last.
    static constexpr int NARROW = 16 * WEIGHT_M * DOWN;
    static constexpr int STRIDE = ROW_STRIDE<T, COLUMNS>, DY_STRIDE = ROW_STRIDE<T, NARROW>;
    static constexpr bool PERMUTED = true;
    static_assert(16 * M * DOWN == ROWS && 16 * ACROSS == COLUMNS, "whole tensor-core tiles");
    using Sums = WarpTile<M, 1>;
    using Weights = WarpTile<WEIGHT_M, 1>;

    __device__ static int warp_row() { return threadIdx.x / WARP / ACROSS * WARP_ROWS; }
    // Which of eight rows a lane's i-th one of a product is. Rows two apart are in different banks for vectors of 8 bytes
    // of four rows as well.
    __device__ static int row_of(int i) { return sizeof(T) == 2 ? i % 4 * 2 + i / 4 : i; }
    __device__ static int warp_column() { return threadIdx.x / WARP % ACROSS * 16; }
    // The first narrow channel of the warp's part of the weights' gradient.
    __device__ static int warp_line() { return threadIdx.x / WARP / ACROSS * (16 * WEIGHT_M); }
};

// dy of a tile, [ROWS, NARROW]. A thread has the same octet of every step-th row.
template <class S>
struct NarrowRows {
    using T = typename S::T;
    using Tiles = ImageTiles<S::ROWS>;
    static constexpr int SIZE = S::ROWS * S::DY_STRIDE;

    const ProjectBackwardArguments& args;
    T* dy;        // [2, ROWS, DY_STRIDE], first dout
    T* y;         // [ROWS, DEPTH]
    float* norm;  // [3, 2, octets, 4]: dy = a·du + b·y + c
    int octet, row, step;

    __device__ __forceinline__ NarrowRows(const ProjectBackwardArguments& args, SharedArena& arena)
        : args(args),
          dy(arena.take<T>(2 * SIZE)),
          y(arena.take<T>(S::ROWS * S::DEPTH)),
          norm(arena.take<float>(3 * S::DEPTH)) {
        const int octets = args.outputs / LANES, thread = threadIdx.x;
        step = S::THREADS / octets;
        octet = thread % octets * LANES;
        row = thread / octets;
        if (row >= step) row = S::ROWS;
    }
    // Batch norm's numbers, and zeros past the last channel. y·b − μ·b is as exact as (y − μ)·b with a y that was rounded
    // to the storage type.
    __device__ __forceinline__ void begin() const {
#pragma unroll 1
        for (int n = threadIdx.x; n < args.outputs; n += S::THREADS) {
            const NormBackward of =
                NormBackward::of(args.coefficients, args.sums, args.outputs, n, args.inverse_rows);
            // The halves of all octets are neighbours: lanes next to each other load from different banks.
            float* to = norm + n % LANES / 4 * (args.outputs / 2) + n / LANES * 4 + n % 4;
            to[0] = of.a;
            to[args.outputs] = of.b;
            to[2 * args.outputs] = fmaf(-of.b, of.mean, of.c);
        }
        const int octets = (S::NARROW - args.outputs) / LANES;
        const float zeros[LANES] = {};
#pragma unroll 1
        for (int unit = threadIdx.x; unit < 2 * S::ROWS * octets; unit += S::THREADS)
            store_lanes(dy + unit / octets * S::DY_STRIDE + args.outputs + unit % octets * LANES, zeros);
    }
    // Begins the copies of a tile.
    __device__ __forceinline__ void begin(const Tiles& at, int buffer) const {
        const size_t start = static_cast<size_t>(at.start()) * args.outputs;
        const T* gradient = static_cast<const T*>(args.dout) + start;
        const T* value = static_cast<const T*>(args.y) + start;
        T* to = dy + buffer * SIZE + octet;
        const int limit = at.limit();
#pragma unroll 1
        for (int own = row; own < S::ROWS; own += step) {
            const int place = at.place(own);
            const bool valid = own < limit && place >= 0;
            const int from = valid ? place * args.outputs + octet : 0;
            copy_lanes(to + own * S::DY_STRIDE, gradient + from, valid);
            copy_lanes(y + own * S::DEPTH + octet, value + from, valid);
        }
    }
    // Makes dy of what this thread copied. Batch norm's numbers are loaded for each row: kept, they would be the registers
    // that a block has too few of.
    __device__ __forceinline__ void form(const Tiles& at, int buffer) const {
        T* to = dy + buffer * SIZE + octet;
        const int limit = at.limit();
#pragma unroll 1
        for (int own = row; own < S::ROWS; own += step) {
            constexpr int UNIT = Pack<T>::N;
            Pack<T> result[LANES / UNIT] = {};
            if (own < limit && at.place(own) >= 0) {
                float gradient[LANES], value[LANES];
                load_lanes(gradient, to + own * S::DY_STRIDE);
                load_lanes(value, y + own * S::DEPTH + octet);
                const float by = at.factor(args.keep, own);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float* from = norm + half * (args.outputs / 2) + octet / 2;
                    float a[4], b[4], c[4];
                    load_group(a, from);
                    load_group(b, from + args.outputs);
                    load_group(c, from + 2 * args.outputs);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int lane = 4 * half + i;
                        result[lane / UNIT].v[lane % UNIT] =
                            from_float<T>(fmaf(a[i] * by, gradient[lane], fmaf(b[i], value[lane], c[i])));
                    }
                }
            }
#pragma unroll
            for (int part = 0; part < LANES / UNIT; part++)
                store_pack(to + own * S::DY_STRIDE + part * UNIT, result[part]);
        }
    }
};

// The slice's weights [DEPTH, STRIDE], zeros past the last narrow channel. Of 16 columns, pair p of two lies at 4·(p mod 2)
// + p/2.
template <class S>
__device__ __forceinline__ void load_weights(
    const ProjectBackwardArguments& args, int first, int width, typename S::T* weights) {
    using T = typename S::T;
    using Pair = Group<T, 2>;
    constexpr int OCTETS = S::COLUMNS / LANES, UNIT = Pack<T>::N;
    const T* from = static_cast<const T*>(args.weight) + first;
    const int units = (args.outputs + 15) / 16 * 16 * OCTETS;
#pragma unroll 4
    for (int unit = threadIdx.x; unit < units; unit += S::THREADS) {
        const int line = unit / OCTETS, octet = unit % OCTETS;
        Pack<T> own[LANES / UNIT] = {};
        if (line < args.outputs && octet * LANES < width)
#pragma unroll
            for (int part = 0; part < LANES / UNIT; part++)
                own[part] = load_pack(from + static_cast<size_t>(line) * args.inputs + octet * LANES + part * UNIT);
        T* to = weights + line * S::STRIDE + octet / 2 * 16 + octet % 2 * 4;
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const int at = 2 * p % UNIT;
            const Pack<T>& pack = own[2 * p / UNIT];
            *reinterpret_cast<Pair*>(to + p % 2 * 8 + p / 2 * 2) = Pair{{pack.v[at], pack.v[at + 1]}};
        }
    }
}

// da = dy·W, for the warp's rows and columns.
template <class S>
__device__ __forceinline__ void multiply_data(
    typename S::Sums& c, const typename S::T* dy, const typename S::T* weights, int depth) {
    using T = typename S::T;
    if constexpr (sizeof(T) == 2) {
        const int lane = threadIdx.x % WARP;
        dy += (S::row_of(lane % 8) + lane / 8 % 2 * 8) * S::DY_STRIDE + lane / 16 * 8;
        weights += lane % 16 * S::STRIDE + lane / 16 * 8;
#pragma unroll 2
        for (int k = 0; k < depth; k += 16, dy += 16, weights += 16 * S::STRIDE) {
            uint32_t pair[4], a[S::M][4];
#pragma unroll
            for (int m = 0; m < S::M; m++) load_matrix_x4(a[m], dy + 16 * m * S::DY_STRIDE);
            load_matrix_x4_transposed(pair, weights);
            const uint32_t b[2][2] = {{pair[0], pair[1]}, {pair[2], pair[3]}};
            mma_tiles<T>(c.v[0], a, b);
        }
    } else {
        multiply_float<false>(c, dy, S::DY_STRIDE, weights, S::STRIDE, depth);
    }
}

// gradient += dyᵀ·A, over the rows of a tile. `left` and `right` are the warp's first channels of both. One matrix of dy is
// loaded while the one before is multiplied: all at once would take the registers of a block.
template <class S>
__device__ __forceinline__ void multiply_weights(
    typename S::Weights& gradient, const typename S::T* left, const typename S::T* right) {
    using T = typename S::T;
    if constexpr (sizeof(T) == 2) {
        const int lane = threadIdx.x % WARP;
        left += (lane % 8 + lane / 16 * 8) * S::DY_STRIDE + lane / 8 % 2 * 8;
        right += lane % 16 * S::STRIDE + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < S::ROWS; k += 16, left += 16 * S::DY_STRIDE, right += 16 * S::STRIDE) {
            uint32_t pair[4], a[2][1][4];
            load_matrix_x4_transposed(pair, right);
            load_matrix_x4_transposed(a[0][0], left);
            const uint32_t b[2][2] = {{pair[0], pair[1]}, {pair[2], pair[3]}};
#pragma unroll
            for (int m = 0; m < S::WEIGHT_M; m++) {
                if (m + 1 < S::WEIGHT_M) load_matrix_x4_transposed(a[(m + 1) % 2][0], left + 16 * (m + 1));
                mma_tiles<T>(reinterpret_cast<float(&)[1][2][4]>(gradient.v[0][m]), a[m % 2], b);
            }
        }
    } else {
        multiply_float<true>(gradient, left, S::DY_STRIDE, right, S::STRIDE, S::ROWS);
    }
}

template <class S>
__device__ __forceinline__ void project_backward(const ProjectBackwardArguments& args) {
    using T = typename S::T;
    using Wide = WideRows<S>;
    using Narrow = NarrowRows<S>;
    SharedArena arena;
    const int first = blockIdx.x * args.slice;
    const int width = args.inputs - first < args.slice ? args.inputs - first : args.slice;
    T* weights = arena.take<T>(S::DEPTH * S::STRIDE);
    T* wide = arena.take<T>(2 * Wide::SIZE);  // x and, in its place, A
    const Narrow narrow(args, arena);
    const Wide rows = {args, first, width};
    FiveSums<S> sums(args, first, width, arena);
    ImageTiles<S::ROWS> tile(args), next = tile;
    const auto begin = [&](int buffer) {
        if (!next.done()) {
            narrow.begin(next, buffer);
            rows.begin(wide + buffer * Wide::SIZE, next);
        }
        copy_async_commit();
    };
    begin(0);
    narrow.begin();
    load_weights<S>(args, first, width, weights);
    barrier();
    typename S::Weights gradient;
    gradient.clear();
    for (int now = 0; !tile.done(); now ^= 1, tile.go_to(next)) {
        T* x = wide + now * Wide::SIZE;
        const T* dy = narrow.dy + now * Narrow::SIZE;
        copy_async_wait<0>();
        narrow.form(tile, now);
        barrier();
        next.next();
        begin(now ^ 1);
        typename S::Sums c;
        c.clear();
        multiply_data<S>(c, dy + S::warp_row() * S::DY_STRIDE, weights + S::warp_column(),
                         (args.outputs + 15) / 16 * 16);
        sums.template add_tile<true>(tile, c, x);
        if constexpr (S::DOWN > 1) {
            barrier();
            sums.end_tile(tile);
        } else {
            warp_barrier();
        }
        multiply_weights<S>(gradient, dy + S::warp_line(), x + S::warp_column());
    }
    float* to = args.partials + static_cast<size_t>(blockIdx.y) * args.outputs * args.inputs + first;
    gradient.visit([&](int down, int across, float one, float two) {
        const int line = S::warp_line() + down, column = S::warp_column() + across;
        if (line < args.outputs && column < width)
            store_pair(to + static_cast<size_t>(line) * args.inputs + column, one, two);
    });
    sums.add_segments();
}
