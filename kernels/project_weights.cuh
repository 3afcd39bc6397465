// The projection's weights' gradient alone, if there are too many narrow channels for a sweep: see pointwise_backward.cuh.
//
// Bytes, operations and floors at B0's shapes: project.cu.
#pragma once

#include "pointwise_backward.cuh"

//   The weights' gradient alone. slice: channels of dy of a block. Grid: (pieces, see
//   WeightPiece; parts of the rows).
#define PROJECT_BACKWARD_WEIGHTS_FIELDS(F) \
    F(const void*, dout)                   \
    F(const void*, y)                      \
    F(const float*, coefficients)          \
    F(const float*, sums)                  \
    F(const float*, keep)                  \
    F(const void*, x)                      \
    F(const float*, input_coefficients)    \
    F(const float*, gate)                  \
    F(float*, partials)                    \
    F(int, rows)                           \
    F(int, pixels)                         \
    F(int, inputs)                         \
    F(int, outputs)                        \
    F(int, slice)                          \
    F(float, inverse_rows)
ARGUMENTS(ProjectBackwardWeightsArguments, PROJECT_BACKWARD_WEIGHTS_FIELDS)

// A = silu(BN(x))·gate, computed again.
template <class S>
struct GatedSiluRight {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::RIGHT>, SIZE = S::DEPTH * STRIDE, OCTETS = S::RIGHT / LANES;
    static constexpr int STEP = S::THREADS / OCTETS, EACH = S::DEPTH / STEP;
    static_assert(OCTETS * STEP == S::THREADS && EACH * STEP == S::DEPTH, "a thread stays with its octet");

    const ProjectBackwardWeightsArguments& args;
    T* raw;    // [DEPTH, RIGHT]
    T* tiles;  // [2, DEPTH, STRIDE]
    int channel, octet;
    bool inside;
    float gate[EACH][LANES];  // of this thread's rows, loaded with the copies

    __device__ __forceinline__ GatedSiluRight(
        const ProjectBackwardWeightsArguments& args, const WeightPiece<S>& piece, SharedArena& arena)
        : args(args), raw(arena.take<T>(S::DEPTH * S::RIGHT)), tiles(arena.take<T>(2 * SIZE)) {
        octet = static_cast<int>(threadIdx.x) % OCTETS * LANES;
        channel = piece.right + octet;
        inside = channel < piece.right_end;
    }
    __device__ __forceinline__ T* tile(int buffer) const { return tiles + buffer * SIZE; }

    __device__ __forceinline__ void begin(int row, int rows, int) {
        const T* x = static_cast<const T*>(args.x);
#pragma unroll
        for (int own = 0; own < EACH; own++) {
            const int at = static_cast<int>(threadIdx.x) / OCTETS + own * STEP;
            const bool valid = inside && at < rows;
            const size_t from = valid ? static_cast<size_t>(row + at) * args.inputs + channel : 0;
            copy_lanes(raw + at * S::RIGHT + octet, x + from, valid);
            if (valid)
                load_lanes(gate[own],
                           args.gate + static_cast<size_t>((row + at) / args.pixels) * args.inputs + channel);
        }
    }
    __device__ __forceinline__ void form(int, int rows, int buffer) const {
        float scale[LANES] = {}, shift[LANES] = {};
        if (inside) {
            load_lanes(scale, args.input_coefficients + SCALE * args.inputs + channel);
            load_lanes(shift, args.input_coefficients + SHIFT * args.inputs + channel);
        }
#pragma unroll
        for (int own = 0; own < EACH; own++) {
            const int at = static_cast<int>(threadIdx.x) / OCTETS + own * STEP;
            float value[LANES] = {};
            if (inside && at < rows) {
                load_lanes(value, raw + at * S::RIGHT + octet);
#pragma unroll
                for (int i = 0; i < LANES; i++) value[i] = silu<T>(fmaf(scale[i], value[i], shift[i])) * gate[own][i];
            }
            store_lanes(tile(buffer) + at * STRIDE + octet, value);
        }
    }
};

template <class S>
__device__ __forceinline__ void project_backward_weights(const ProjectBackwardWeightsArguments& args) {
    struct Factor {
        const float* keep;
        int pixels, row;
        __device__ __forceinline__ float operator()(int at) const {
            return keep == nullptr ? 1.0f : keep[(row + at) / pixels];
        }
    };
    SharedArena arena;
    const WeightPiece<S> piece(args, blockIdx.x, blockIdx.y, gridDim.y);
    GatedSiluRight<S> right(args, piece, arena);
    weight_gradient<S>(args, args.dout, args.partials, piece, arena, right,
                       [&](int row) { return Factor{args.keep, args.pixels, row}; });
}
