// Products of fp32 matrices for the classifier. Tensor cores would need half precision, which would cost accuracy
// here. C [rows, columns] = Σ over depth of A(row, depth)·B(column, depth): a block has a 64×64 tile of C, a thread
// 8×4 sums, and pieces of both factors, 16 deep, are in shared memory. Each piece is loaded into registers while the
// previous one is multiplied. The depth may be divided among blocks, whose sums the caller adds in order: the C of a
// classifier has too few tiles to fill a GPU.
//
// Bytes, operations and floors at B0's shapes: head.cu.
#pragma once

#include "numeric.cuh"

constexpr int PRODUCT_THREADS = 128;
constexpr int PRODUCT_TILE = 64;
constexpr int PRODUCT_DEPTH = 16;
// Floats from one depth of a piece to the next: a multiple of 4, and 4 banks further for each depth.
constexpr int PRODUCT_PITCH = PRODUCT_TILE + 4;

// A factor of a product, [outer, inner] in memory with `stride` elements in a row. If `scale` is not null, the factor
// is multiplied by it elementwise.
struct Factor {
    const float* values;
    const float* scale;
    int stride;
    // Number of its rows or columns in C.
    int extent;
};

// One thread's share of a 64×16 piece. INNER_DEPTH: consecutive elements in memory are depths, otherwise they are rows
// (or columns) of C.
template <bool INNER_DEPTH>
struct FactorPiece {
    static constexpr int COUNT = PRODUCT_TILE * PRODUCT_DEPTH / PRODUCT_THREADS;
    float v[COUNT], scale[COUNT];

    // Depth and row of element i. With INNER_DEPTH eight lanes load 32 bytes of each of four rows; then the transposed
    // store has no bank conflicts.
    __device__ __forceinline__ static int depth(int i) {
        const int at = static_cast<int>(threadIdx.x) + i * PRODUCT_THREADS;
        return INNER_DEPTH ? at % 8 + at / (8 * PRODUCT_TILE) * 8 : at / PRODUCT_TILE;
    }
    __device__ __forceinline__ static int row(int i) {
        const int at = static_cast<int>(threadIdx.x) + i * PRODUCT_THREADS;
        return INNER_DEPTH ? at / 8 % PRODUCT_TILE : at % PRODUCT_TILE;
    }

    // All loads are under way together, the scale's too: nothing is computed of them before `store`.
    __device__ __forceinline__ void load(const Factor& factor, int first_row, int first_depth, int end_depth) {
        load(v, factor.values, factor, first_row, first_depth, end_depth);
        if (factor.scale != nullptr) load(scale, factor.scale, factor, first_row, first_depth, end_depth);
    }
    __device__ __forceinline__ static void load(
        float (&out)[COUNT], const float* values, const Factor& factor, int first_row, int first_depth, int end_depth) {
        const uint32_t stride = factor.stride;
        const int rows = factor.extent - first_row, depths = end_depth - first_depth;
        const float* from = values + (INNER_DEPTH ? first_row * static_cast<size_t>(stride) + first_depth
                                                  : first_depth * static_cast<size_t>(stride) + first_row);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const uint32_t r = row(i), d = depth(i), at = INNER_DEPTH ? r * stride + d : d * stride + r;
            out[i] = row(i) < rows && depth(i) < depths ? from[at] : 0.0f;
        }
    }

    __device__ __forceinline__ void store(const Factor& factor, float* shared) {
        if (factor.scale != nullptr) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) v[i] *= scale[i];
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) shared[depth(i) * PRODUCT_PITCH + row(i)] = v[i];
    }
};

// A block's tile. Thread t has rows 8·(t/16).. and columns 4·(t%16)...
struct ProductTile {
    float sums[8][4];
    // With ROW_SUMS: Σ over depth of A's row `threadIdx.x`, in the threads below 64.
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
            piece_a.store(a, shared_a);
            piece_b.store(b, shared_b);
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
