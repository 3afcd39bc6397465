// Products of fp32 matrices for the classifier, where half precision would cost accuracy and tensor cores would need
// it: C [rows, columns] = Σ over depth of A(row, depth)·B(column, depth), a 64×64 tile of C a block, 8×4 sums a
// thread, the factors' 16-deep pieces in shared memory. Each piece is fetched into registers while the one before is
// multiplied. Depth may be cut among blocks, whose sums the caller adds up in order: a classifier's C alone has
// too few tiles to fill a GPU.
//
// Bytes, operations and floors at B0's shapes: head.cu.
#pragma once

#include "numeric.cuh"

constexpr int PRODUCT_THREADS = 128;
constexpr int PRODUCT_TILE = 64;
constexpr int PRODUCT_DEPTH = 16;
// Floats between the depths of a piece: a multiple of 4, and 4 banks further for each depth.
constexpr int PRODUCT_PITCH = PRODUCT_TILE + 4;

// A factor of a product, [outer, inner] in memory with `stride` elements a row; multiplied elementwise by `scale`
// where that is not null.
struct Factor {
    const float* values;
    const float* scale;
    int stride;
    // Rows or columns of C that it has.
    int extent;
};

// One thread's share of a 64×16 piece. INNER_DEPTH: depth runs along memory, else rows (or columns) of C do.
template <bool INNER_DEPTH>
struct FactorPiece {
    static constexpr int COUNT = PRODUCT_TILE * PRODUCT_DEPTH / PRODUCT_THREADS;
    float v[COUNT];

    // Depth and row of element i. Along memory eight lanes take 32 bytes of each of four rows, which makes the
    // transposed store free of bank conflicts.
    __device__ __forceinline__ static int depth(int i) {
        const int at = static_cast<int>(threadIdx.x) + i * PRODUCT_THREADS;
        return INNER_DEPTH ? at % 8 + at / (8 * PRODUCT_TILE) * 8 : at / PRODUCT_TILE;
    }
    __device__ __forceinline__ static int row(int i) {
        const int at = static_cast<int>(threadIdx.x) + i * PRODUCT_THREADS;
        return INNER_DEPTH ? at / 8 % PRODUCT_TILE : at % PRODUCT_TILE;
    }

    __device__ __forceinline__ void load(const Factor& factor, int first_row, int first_depth, int end_depth) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int r = first_row + row(i), d = first_depth + depth(i);
            v[i] = 0.0f;
            if (r < factor.extent && d < end_depth) {
                const size_t stride = static_cast<size_t>(factor.stride);
                const size_t at = INNER_DEPTH ? r * stride + d : d * stride + r;
                v[i] = factor.values[at];
                if (factor.scale != nullptr) v[i] *= factor.scale[at];
            }
        }
    }

    __device__ __forceinline__ void store(float* shared) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) shared[depth(i) * PRODUCT_PITCH + row(i)] = v[i];
    }
};

// A block's tile. Thread t has rows 8·(t/16).. and columns 4·(t%16)...
struct ProductTile {
    float sums[8][4];
    // Σ over depth of A's row `threadIdx.x`, in the threads below 64, if asked for.
    float row_sum;

    __device__ __forceinline__ static int row(int i) { return static_cast<int>(threadIdx.x) / 16 * 8 + i; }
    __device__ __forceinline__ static int column(int j) { return static_cast<int>(threadIdx.x) % 16 * 4 + j; }

    __device__ __forceinline__ void multiply(const float* a, const float* b) {
#pragma unroll
        for (int d = 0; d < PRODUCT_DEPTH; d++) {
            const Pack<float> low = load_pack(a + d * PRODUCT_PITCH + row(0));
            const Pack<float> high = load_pack(a + d * PRODUCT_PITCH + row(4));
            const Pack<float> across = load_pack(b + d * PRODUCT_PITCH + column(0));
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[i][j] = fmaf(low.v[i], across.v[j], sums[i][j]);
                    sums[4 + i][j] = fmaf(high.v[i], across.v[j], sums[4 + i][j]);
                }
            }
        }
    }

    // Depths [begin, end) of A's rows from `first_row` times B's columns from `first_column`.
    template <bool A_INNER_DEPTH, bool B_INNER_DEPTH, bool ROW_SUMS>
    __device__ __forceinline__ void run(
        SharedArena& arena, const Factor& a, const Factor& b, int first_row, int first_column, int begin, int end) {
        float* shared_a = arena.take<float>(PRODUCT_DEPTH * PRODUCT_PITCH);
        float* shared_b = arena.take<float>(PRODUCT_DEPTH * PRODUCT_PITCH);
        row_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
        FactorPiece<A_INNER_DEPTH> piece_a;
        FactorPiece<B_INNER_DEPTH> piece_b;
        piece_a.load(a, first_row, begin, end);
        piece_b.load(b, first_column, begin, end);
        for (int depth = begin; depth < end; depth += PRODUCT_DEPTH) {
            piece_a.store(shared_a);
            piece_b.store(shared_b);
            barrier();
            if (depth + PRODUCT_DEPTH < end) {
                piece_a.load(a, first_row, depth + PRODUCT_DEPTH, end);
                piece_b.load(b, first_column, depth + PRODUCT_DEPTH, end);
            }
            multiply(shared_a, shared_b);
            if (ROW_SUMS && threadIdx.x < PRODUCT_TILE) {
#pragma unroll
                for (int d = 0; d < PRODUCT_DEPTH; d++) row_sum += shared_a[d * PRODUCT_PITCH + threadIdx.x];
            }
            barrier();
        }
    }
};
