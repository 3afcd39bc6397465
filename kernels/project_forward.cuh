// The prologue of the projection's pipeline, see pointwise.cuh: it activates x.
//
// A step of the pipeline has few vectors for each thread, so what is the same for all of them must cost little. Batch
// norm's numbers of all channels are in shared memory. The gate is loaded before the product, during which it arrives.
#pragma once

#include "pointwise.cuh"

// A = silu(scale·x + shift)·gate, in place of what this thread copied. Rows past the end and channels of the padding
// to 16 stay zero.
//
// For the half types it is t/(1+2^t)·(−gate/log₂e) with t = −log₂e·(scale·x + shift): the factors are multiplied once,
// not with each value.
template <typename T, class Tile>
struct PointwiseGatedSilu {
    static constexpr bool NUMBERS = true;
    // Whether there are registers to load gates during the product, and for two vectors at once.
    static constexpr bool EARLY = Tile::REGISTERS >= 80;
    static constexpr int AT_ONCE = EARLY ? 2 : 1;
    static constexpr int UNIT = Pack<T>::N;
    static constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
    const float* coefficients;  // [4, channels]
    const float* gate;          // [images, channels]
    int channels, pixels;
    float* numbers;  // [2, UNIT / 4, units, 4]: scale and shift; the fours of units next to each other are in other banks
    int image;       // of this thread's first row of a tile
    float factor[UNIT];

    __device__ __forceinline__ PointwiseGatedSilu(const float* c, const float* g, int channels, int pixels)
        : coefficients(c), gate(g), channels(channels), pixels(pixels) {}

    __device__ __forceinline__ void take(SharedArena& arena) { numbers = arena.take<float>(2 * channels); }
    // A barrier comes before the numbers are needed.
    __device__ __forceinline__ void begin() const {
        const float by = sizeof(T) == 2 ? -LOG2_E : 1.0f;
        for (int channel = threadIdx.x; channel < channels; channel += Tile::THREADS) {
            float* to = numbers + channel % UNIT / 4 * (channels / UNIT * 4) + channel / UNIT * 4 + channel % 4;
            to[0] = coefficients[SCALE * channels + channel] * by;
            to[channels] = coefficients[SHIFT * channels + channel] * by;
        }
    }
    __device__ __forceinline__ void load_numbers(float (&out)[UNIT], const float* from) const {
#pragma unroll
        for (int part = 0; part < UNIT / 4; part++) {
            float four[4];
            load_group(four, from + part * (channels / UNIT * 4));
#pragma unroll
            for (int i = 0; i < 4; i++) out[4 * part + i] = four[i];
        }
    }
    __device__ __forceinline__ void load_gate(int of, int channel) {
        load_lanes(factor, gate + static_cast<size_t>(of) * channels + channel);
    }
    __device__ __forceinline__ void scale_gate() {
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int i = 0; i < UNIT; i++) factor[i] *= -LN_2;
        }
    }
    // Begins to load the gate of this thread's first row of a step, so early that it is there when it is needed. Nothing is
    // computed with it here: that would wait for it.
    __device__ __forceinline__ void prefetch(const PointwiseCopies<T, Tile>& copies, const PointwiseStep& step) {
        if constexpr (EARLY) {
            const int first = step.row + copies.down, channel = step.chunk * copies.chunk + copies.unit * UNIT;
            if (first >= copies.rows || copies.down >= Tile::ROWS) return;
            if (step.chunk == 0) image = first / pixels;
            if (channel < channels) load_gate(image, channel);
        }
    }
    __device__ __forceinline__ void activate(T* at, const float (&scale)[UNIT], const float (&shift)[UNIT]) const {
        Pack<T> pack = load_pack(at);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            const float z = fmaf(scale[i], to_float(pack.v[i]), shift[i]);
            if constexpr (sizeof(T) == 2)
                pack.v[i] = from_float<T>(z * reciprocal_approximate(1.0f + exp2_approximate(z)) * factor[i]);
            else
                pack.v[i] = from_float<T>(silu<T>(z) * factor[i]);
        }
        store_pack(at, pack);
    }
    __device__ __forceinline__ void apply(const PointwiseCopies<T, Tile>& copies, const PointwiseStep& step) {
        const int channel = step.chunk * copies.chunk + copies.unit * UNIT;
        const int left = copies.rows - step.row, rows = left < Tile::ROWS ? left : Tile::ROWS;
        if (channel >= channels || copies.down >= rows) return;
        float scale[UNIT], shift[UNIT];
        const float* from = numbers + channel / UNIT * 4;
        load_numbers(scale, from);
        load_numbers(shift, from + channels);
        T* at = copies.a_of(step) + copies.unit * UNIT + copies.down * copies.stride;
        const int below = copies.threads_down * copies.stride;
        int row = copies.down;
        if constexpr (!EARLY) {
            image = (step.row + row) / pixels;
            load_gate(image, channel);
        }
        scale_gate();
        int border = (image + 1) * pixels - step.row;
        if (EARLY && border >= rows) {
#pragma unroll AT_ONCE
            for (; row < rows; row += copies.threads_down, at += below) activate(at, scale, shift);
            return;
        }
#pragma unroll 1
        for (int now = image; row < rows; row += copies.threads_down, at += below) {
            if (row >= border) {
                for (; row >= border; border += pixels) now++;
                load_gate(now, channel);
                scale_gate();
            }
            activate(at, scale, shift);
        }
    }
};
