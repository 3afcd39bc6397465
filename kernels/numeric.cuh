// Storage types, vectors of 16 bytes, and the formulas that several kernels apply while loading or storing.
//
// Activations and their gradients are NHWC matrices [rows, channels] of T (float, f16 or bf16); channels are a
// multiple of 8, so a vector never straddles a row. All arithmetic is fp32.
#pragma once

#include "device.cuh"

// ---- storage ----------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) { return __float2half_rn(v); }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }

// v rounded to the storage type, as it will be read back.
template <typename T>
__device__ __forceinline__ float rounded(float v) { return to_float(from_float<T>(v)); }

// Neighbouring values that are loaded and stored at once.
template <typename T, int N_>
struct alignas(N_ * sizeof(T)) Group {
    static constexpr int N = N_;
    T v[N];
};
// 16 bytes: 8 half values or 4 floats.
template <typename T>
using Pack = Group<T, 16 / sizeof(T)>;

// Eight channels: kernels divide their work in this unit for every storage type.
constexpr int LANES = 8;
// Threads of a block that sweeps over rows or pixels.
constexpr int SWEEP_THREADS = 256;

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T>*>(from);
}
template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
    *reinterpret_cast<Pack<T>*>(to) = pack;
}

// N neighbouring values as fp32, 2·N or 4·N bytes at once.
template <int N, typename T>
__device__ __forceinline__ void load_group(float (&out)[N], const T* from) {
    const auto group = *reinterpret_cast<const Group<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = to_float(group.v[i]);
}
template <int N, typename T>
__device__ __forceinline__ void store_group(T* to, const float (&values)[N]) {
    Group<T, N> group;
#pragma unroll
    for (int i = 0; i < N; i++) group.v[i] = from_float<T>(values[i]);
    *reinterpret_cast<Group<T, N>*>(to) = group;
}
// Two values. Written out, because for a loop the compiler needs more registers in some kernels.
template <typename T>
__device__ __forceinline__ void load_pair(float (&out)[2], const T* from) {
    const auto pair = *reinterpret_cast<const Group<T, 2>*>(from);
    out[0] = to_float(pair.v[0]);
    out[1] = to_float(pair.v[1]);
}
template <typename T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
    const Group<T, 2> pair = {{from_float<T>(first), from_float<T>(second)}};
    *reinterpret_cast<Group<T, 2>*>(to) = pair;
}

// Whole packs of consecutive channels as fp32: eight are one 16-byte load of halves or two of floats.
template <int N, typename T>
__device__ __forceinline__ void load_lanes(float (&out)[N], const T* from) {
#pragma unroll
    for (int part = 0; part < N / Pack<T>::N; part++) {
        const Pack<T> pack = load_pack(from + part * Pack<T>::N);
#pragma unroll
        for (int i = 0; i < Pack<T>::N; i++) out[part * Pack<T>::N + i] = to_float(pack.v[i]);
    }
}
// Two values in one register.
__device__ __forceinline__ uint32_t packed(__half2 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}
__device__ __forceinline__ uint32_t packed(__nv_bfloat162 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}
template <typename T>
__device__ __forceinline__ uint32_t packed(float first, float second);
template <>
__device__ __forceinline__ uint32_t packed<f16>(float first, float second) {
    return packed(__floats2half2_rn(first, second));
}
template <>
__device__ __forceinline__ uint32_t packed<bf16>(float first, float second) {
    return packed(__floats2bfloat162_rn(first, second));
}

// Halves are put together as words first: a vector of single halves would be stored in three pieces.
template <typename T>
__device__ __forceinline__ uint4 packed_lanes(const float (&v)[LANES]) {
    return make_uint4(
        packed<T>(v[0], v[1]), packed<T>(v[2], v[3]), packed<T>(v[4], v[5]), packed<T>(v[6], v[7]));
}
template <typename T>
__device__ __forceinline__ void store_lanes(T* to, const float (&v)[LANES]) {
    if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint4*>(to) = packed_lanes<T>(v);
    } else {
#pragma unroll
        for (int part = 0; part < LANES; part += Pack<T>::N) {
            Pack<T> pack;
#pragma unroll
            for (int i = 0; i < Pack<T>::N; i++) pack.v[i] = v[part + i];
            store_pack(to + part, pack);
        }
    }
}

// ---- silu -------------------------------------------------------------------------------------------------

// 1/(1+e^-z). For fp32 storage it is exact to fp32 rounding. For half storage it is made by the special-function unit, and
// relative to the value as right as fp32's rounding of z·log₂e lets it be, far below what a half type can hold.
// ½·tanh(½z)+½ with `tanh.approx` would be one special-function operation instead of two, but in the negative tail the sum
// cancels and the unit's error of 2⁻¹¹ is as large as the value itself. Of four networks trained with tanh wrong to one
// side, three had a higher validation loss on exact hardware than any seed of the exact one: docs/checks.md.
template <typename T>
__device__ __forceinline__ float sigmoid(float z) {
    constexpr float MINUS_LOG2_E = -1.44269504f;
    return reciprocal_approximate(1.0f + exp2_approximate(MINUS_LOG2_E * z));
}
template <>
__device__ __forceinline__ float sigmoid<float>(float z) {
    return 1.0f / (1.0f + expf(-z));
}

template <typename T>
__device__ __forceinline__ float silu(float z) {
    return z * sigmoid<T>(z);
}

// One sigmoid serves silu and its derivative σ(z)·(1 + z·(1−σ(z))).
template <typename T>
__device__ __forceinline__ void silu_and_slope(float z, float& value, float& slope) {
    const float s = sigmoid<T>(z);
    value = z * s;
    slope = fmaf(value, 1.0f - s, s);
}

// ---- batch norm -------------------------------------------------------------------------------------------

// Rows of a coefficient tensor [4, C]: mean μ, r = 1/√(variance+eps), scale = γ·r, shift = β − μ·scale.
enum CoefficientRow { MEAN = 0, RECIPROCAL = 1, SCALE = 2, SHIFT = 3 };

// Batch norm's backward for one channel, dy = γ·r·(du − Σdu/M − ŷ·Σ(du·ŷ)/M), as dy = a·du + b·(y − μ) + c.
struct NormBackward {
    float a, b, c, mean;

    // `coefficients` [4, C]; `sums` [2, C]: Σdu and Σdu·ŷ; `inverse_rows` 1/M.
    __device__ __forceinline__ static NormBackward of(
        const float* coefficients, const float* sums, int channels, int channel, float inverse_rows) {
        const float scale = coefficients[SCALE * channels + channel];
        const float r = coefficients[RECIPROCAL * channels + channel];
        return {scale, -scale * r * sums[channels + channel] * inverse_rows, -scale * sums[channel] * inverse_rows,
                coefficients[MEAN * channels + channel]};
    }

    __device__ __forceinline__ float dy(float du, float y) const { return fmaf(a, du, fmaf(b, y - mean, c)); }
};

// Statistics of a part of a stored tensor, per channel. A pass that stores y writes for each of its `parts` the
// number of rows and, per channel, their mean and Σ(y − mean)². They are merged in the parts' order (Chan, Golub &
// LeVeque 1979), in batch_norm.cu or .cuh. Within a part, fp32 sums are taken of y − shift. The shift is any value
// near the data; it prevents cancellation if the mean is much larger than the deviation.
//   counts [parts] (float, exact integers), moments [parts, 2, C].
struct Moments {
    float shift, sum, squares;

    __device__ __forceinline__ void add(float y) {
        const float away = y - shift;
        sum += away;
        squares = fmaf(away, away, squares);
    }
    // Mean and Σ(y − mean)² of the `count` values added.
    __device__ __forceinline__ void finish(float count, float& mean, float& spread) const {
        const float away = count > 0.0f ? sum / count : 0.0f;
        mean = shift + away;
        spread = squares - sum * away;
        if (spread < 0.0f) spread = 0.0f;  // unlike fmaxf this keeps a NaN
    }
};

// Adds n2 values of mean m2 and spread s2 = Σ(y − mean)² to n1 values of m1 and s1, by Chan's formula. Returns their
// number.
__device__ __forceinline__ float merge_moments(float n1, float& m1, float& s1, float n2, float m2, float s2) {
    const float n = n1 + n2;
    if (n2 == 0.0f) return n1;
    const float away = m2 - m1, share = n2 / n;
    m1 = fmaf(away, share, m1);
    s1 += fmaf(away * away, n1 * share, s2);
    return n;
}
