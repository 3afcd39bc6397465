// Products of tiles in shared memory, by one warp: the base of the pointwise backward kernels.
//
// The right factor is stored as [depth, columns]. The left one is stored as [rows, depth] for data gradients, and as
// [depth, rows] for weight gradients, whose depth is the rows of the activations: `TRANSPOSED`. ldmatrix transposes
// while loading if necessary. A shared row has an odd number of 16-byte units, so that eight rows of a matrix are in
// eight different groups of banks. fp32 storage multiplies with fused multiply-adds and keeps the sums in the same
// registers as the tensor cores would: exact fp32, with the same epilogue.
#pragma once

#include "numeric.cuh"

// Elements from one shared row of `COLUMNS` to the next.
template <typename T, int COLUMNS>
constexpr int ROW_STRIDE = ((COLUMNS + Pack<T>::N - 1) / Pack<T>::N | 1) * Pack<T>::N;

// The largest number of warps, at most `most`, that divides `of` tiles evenly.
constexpr int largest_divisor(int of, int most) { return of % most == 0 ? most : largest_divisor(of, most - 1); }

// A warp's sums: 16·M rows by 16·P columns. v[p][m][n][i] as in `mma_tiles`, column tile 2·p + n.
template <int M, int P>
struct WarpTile {
    float v[P][M][2][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int p = 0; p < P; p++)
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 8; i++) v[p][m][i / 4][i % 4] = 0.0f;
    }

    // Calls f(row, column, value, next) for all pairs of neighbouring columns that this lane has.
    template <typename F>
    __device__ __forceinline__ void visit(F f) const {
        const int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int p = 0; p < P; p++)
#pragma unroll
                    for (int n = 0; n < 2; n++)
                        f(16 * m + 8 * half + row, 16 * p + 8 * n + column, v[p][m][n][2 * half],
                          v[p][m][n][2 * half + 1]);
    }
};

// c += left·right over `depth` (a multiple of 16). `left` and `right` are the warp's first row and first column.
template <bool TRANSPOSED, typename T, int M, int P>
__device__ __forceinline__ void multiply_half(
    WarpTile<M, P>& c, const T* left, int left_stride, const T* right, int right_stride, int depth) {
    const int lane = threadIdx.x % WARP;
    left += TRANSPOSED ? (lane % 8 + lane / 16 * 8) * left_stride + lane / 8 % 2 * 8
                       : lane % 16 * left_stride + lane / 16 * 8;
    right += lane % 16 * right_stride + lane / 16 * 8;
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            if constexpr (TRANSPOSED)
                load_matrix_x4_transposed(a[m], left + k * left_stride + 16 * m);
            else
                load_matrix_x4(a[m], left + 16 * m * left_stride + k);
        }
#pragma unroll
        for (int p = 0; p < P; p++) {
            uint32_t pair[4];
            load_matrix_x4_transposed(pair, right + k * right_stride + 16 * p);
            const uint32_t b[2][2] = {{pair[0], pair[1]}, {pair[2], pair[3]}};
            mma_tiles<T>(c.v[p], a, b);
        }
    }
}

template <bool TRANSPOSED, int M, int P>
__device__ __forceinline__ void multiply_float(
    WarpTile<M, P>& c, const float* left, int left_stride, const float* right, int right_stride, int depth) {
    const int row = threadIdx.x % WARP / 4;
    left += TRANSPOSED ? row : row * left_stride;
    right += threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int k = 0; k < depth; k++) {
        float a[M][2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = 16 * m + 8 * half;
                a[m][half] = TRANSPOSED ? left[k * left_stride + at] : left[at * left_stride + k];
            }
#pragma unroll
        for (int p = 0; p < P; p++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float b[2];
                load_pair(b, right + k * right_stride + 16 * p + 8 * n);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) c.v[p][m][n][i] = fmaf(a[m][i / 2], b[i % 2], c.v[p][m][n][i]);
            }
    }
}

template <bool TRANSPOSED, typename T, int M, int P>
__device__ __forceinline__ void multiply(
    WarpTile<M, P>& c, const T* left, int left_stride, const T* right, int right_stride, int depth) {
    if constexpr (sizeof(T) == 2)
        multiply_half<TRANSPOSED>(c, left, left_stride, right, right_stride, depth);
    else
        multiply_float<TRANSPOSED>(c, left, left_stride, right, right_stride, depth);
}
