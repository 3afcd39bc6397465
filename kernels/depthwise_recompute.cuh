// The expansion again, inside the depthwise passes: where the expanded tensor is not stored, they make it from the
// expansion's narrow input.
//
// A warp copies 16 pixels of a row with their narrow channels and multiplies them with the weights of the block's 32
// channels on the tensor cores. The narrow pixel is copied to the place of the expanded one, which is at least as large,
// so the product needs no room but for the weights. Products are added in the order of pointwise.cuh and rounded as that
// stores them: the expanded values are the same bits as if they had been stored.
#pragma once

#include "depthwise_tile.cuh"
#include "tile_product.cuh"

// Pixels of a product; narrow channels at most.
constexpr int RECOMPUTE_UNIT = 16;
constexpr int RECOMPUTE_INPUTS = 32;

// `CELL`: bytes of a pixel's place.
template <typename T, int CELL>
struct Recompute {
    static constexpr int UNIT = RECOMPUTE_UNIT;
    static constexpr int SLICE = DEPTHWISE_SLICE, PIECE = LANES * sizeof(T), STRIDE = ROW_STRIDE<T, RECOMPUTE_INPUTS>;
    static constexpr int WEIGHTS = SLICE * STRIDE;
    static_assert(sizeof(T) == 2 && PIECE == 16 && CELL >= RECOMPUTE_INPUTS * 2, "a place holds a narrow pixel");

    T* weights;  // [SLICE, STRIDE]

    // Loads the weights [channels, inputs] from the block's first channel on. A barrier must follow.
    __device__ __forceinline__ void prepare(T* shared, const void* from, int inputs, int first_channel, int channels) {
        constexpr int PIECES = RECOMPUTE_INPUTS / LANES;
        static_assert(SLICE * PIECES == DEPTHWISE_THREADS, "one piece a thread");
        weights = shared;
        const int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * LANES;
        const int channel = first_channel + channel_of(row);
        Pack<float> piece = {};  // 16 bytes of T
        if (channel < channels && column < inputs)
            piece = load_pack(reinterpret_cast<const float*>(static_cast<const T*>(from) + channel * inputs + column));
        store_pack(reinterpret_cast<float*>(weights + row * STRIDE + column), piece);
    }

    // The slice's channel in a row of the weights: a lane's sums are then of eight neighbouring channels.
    static __device__ __forceinline__ int channel_of(int row) { return row % 8 / 2 * 8 + row / 8 * 2 + row % 2; }

    // Where a piece of eight narrow channels lies in its cell. Pieces of eight pixels in neighbouring places use all banks.
    static __device__ __forceinline__ int in_cell(int place, int piece) {
        return (piece ^ (CELL == 128 ? place % 8 : place / 2 % 4)) * LANES;
    }

    // Narrow channels with the zeros that the product needs.
    static __device__ __forceinline__ int pieces(int inputs) { return inputs > 16 ? 4 : 2; }

    // Begins the copies of the warp's pixels of a row, of which `count` are in the map. `cells`: the row's places;
    // `place(pixel)`: that of a pixel of the unit.
    template <typename Place>
    static __device__ __forceinline__ void fetch(T* cells, const T* x, int inputs, int count, const Place& place) {
        const int lane = threadIdx.x % WARP, pixel = lane / 2, at = place(pixel);
        if (pixel >= count) return;
        x += pixel * inputs;
        T* cell = cells + at * (CELL / 2);
#pragma unroll 1
        for (int piece = lane % 2; piece < pieces(inputs); piece += 2) {
            const bool inside = piece * LANES < inputs;
            copy_async_16(cell + in_cell(at, piece), x + (inside ? piece * LANES : 0), inside);
        }
    }

    // Eight channels, from 8·(lane%4) on, of pixels lane/4 and lane/4 + 8, not yet rounded.
    template <typename Place>
    __device__ __forceinline__ void expand(
        float (&y)[2][LANES], const T* cells, int inputs, int count, const Place& place) const {
        const int lane = threadIdx.x % WARP, pixel = lane % 16, at = place(pixel < count ? pixel : count - 1);
        const T* cell = cells + at * (CELL / 2);
        const T* w = weights + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * LANES;
        float c[1][4][4] = {};
#pragma unroll 1
        for (int piece = 0; piece < pieces(inputs); piece += 2) {
            uint32_t left[1][4], right[4][2];
            load_matrix_x4(left[0], cell + in_cell(at, piece + lane / 16));
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                uint32_t pair[4];
                load_matrix_x4(pair, w + n * 8 * STRIDE + piece * LANES);
                right[n][0] = pair[0];
                right[n][1] = pair[1];
                right[n + 1][0] = pair[2];
                right[n + 1][1] = pair[3];
            }
            mma_tiles<T>(c, left, right);
        }
#pragma unroll
        for (int i = 0; i < 2 * LANES; i++)
            y[i / LANES][i % LANES] = c[0][i % LANES / 2][i / LANES * 2 + i % 2];
    }
};

// Of a pass that reads a stored tensor.
struct RecomputeNothing {
    static constexpr int UNIT = DEPTHWISE_UNIT;
};
template <bool RECOMPUTES, typename T, int CELL>
struct RecomputeOf {
    using Type = RecomputeNothing;
};
template <typename T, int CELL>
struct RecomputeOf<true, T, CELL> {
    using Type = Recompute<T, CELL>;
};
template <bool RECOMPUTES, typename T, int CELL>
using RecomputeIf = typename RecomputeOf<RECOMPUTES, T, CELL>::Type;

// Stores eight channels of a pixel. Lanes of eight pixels store at once; pixels of fp32 are all banks apart, so every other
// lane begins with the second half.
template <typename Value>
struct Recomputed {
    static __device__ __forceinline__ void store(Value* to, const float (&v)[LANES]) { store_lanes(to, v); }
};
template <>
struct Recomputed<float> {
    static __device__ __forceinline__ void store(float* to, const float (&v)[LANES]) {
        const bool second = threadIdx.x / 4 % 2 != 0;
        float parts[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            parts[0][i] = second ? v[4 + i] : v[i];
            parts[1][i] = second ? v[i] : v[4 + i];
        }
        store_group(to + (second ? 4 : 0), parts[0]);
        store_group(to + (second ? 0 : 4), parts[1]);
    }
};

// ---- the backward pass, whose x waits in `stage` ------------------------------------------------------------

// The warp's share of the rows. Not kept, for registers are scarce.
template <class Pass>
__device__ __forceinline__ DepthwiseUnits narrow_units(const Pass& pass) {
    return DepthwiseUnits(pass.tile_end - max(pass.tile_first, 0), RECOMPUTE_UNIT);
}

// Begins the copies of the step's narrow rows.
template <class Pass>
__device__ __forceinline__ void fetch_narrow(const Pass& pass, const DepthwiseStep& step, int half) {
    using T = typename Pass::Element;
    const auto& args = pass.args;
    const DepthwiseUnits units = narrow_units(pass);
    const int left = max(pass.tile_first, 0) + units.pixel, at_row = args.input * args.inputs;
    const auto place = [&](int pixel) { return Pass::staged_place(left - pass.tile_first + pixel); };
    const T* image = static_cast<const T*>(args.x) + step.at(args.input, args.inputs);
#pragma unroll 1
    for (int row = units.row; row < args.rows; row += units.rows) {
        if (!pass.in_map(step.start + row)) continue;
        T* cells = pass.stage + (half * args.rows + row) * pass.stage_row;
        const T* x = image + ((step.start + row) * at_row + left * args.inputs);
        Pass::Expansion::fetch(cells, x, args.inputs, pass.tile_end - left, place);
    }
}

// Makes x of the narrow rows, as the warp's own copies brought them, in their place.
template <class Pass>
__device__ __forceinline__ void expand_narrow(const Pass& pass, const DepthwiseStep& step, int half) {
    using T = typename Pass::Element;
    const auto& args = pass.args;
    const DepthwiseUnits units = narrow_units(pass);
    const int left = max(pass.tile_first, 0) + units.pixel, lane = pass.lane, channel = lane % 4 * LANES;
    const bool valid = pass.first_channel + channel < args.channels;
    const auto place = [&](int pixel) { return Pass::staged_place(left - pass.tile_first + pixel); };
#pragma unroll 1
    for (int row = units.row; row < args.rows; row += units.rows) {
        if (!pass.in_map(step.start + row)) continue;
        T* cells = pass.stage + (half * args.rows + row) * pass.stage_row;
        float x[2][LANES];
        pass.expansion.expand(x, cells, args.inputs, pass.tile_end - left, place);
        warp_barrier();
#pragma unroll
        for (int both = 0; both < 2; both++) {
            const int pixel = lane / 4 + both * 8;
            if (valid && left + pixel < pass.tile_end)
                store_shared_16(cells + place(pixel) * DEPTHWISE_SLICE + channel, packed_lanes<T>(x[both]));
        }
        // All lanes come together for the next product.
        warp_barrier();
    }
}
