// CUDA's types and functions of one thread, as far as kernels use them: half types that round exactly like the
// device's, small vectors, intrinsics. Half types have no arithmetic on purpose: kernels compute in fp32.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

// ---- half types -------------------------------------------------------------------------------------------

struct alignas(2) __half {
    uint16_t bits;
};
struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __half2float(__half v) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(v.bits))); }
// To the nearest, ties to even; a NaN is the device's.
static inline __half __float2half_rn(float v) {
    if (v != v) return {0x7fff};
    return {static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(v), _MM_FROUND_TO_NEAREST_INT)))};
}
static inline __half __float2half(float v) { return __float2half_rn(v); }

static inline float __bfloat162float(__nv_bfloat16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    if (v != v) return {0x7fff};
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }

static inline uint16_t __half_as_ushort(__half v) { return v.bits; }
static inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
static inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
static inline float __low2float(__half2 v) { return __half2float(v.x); }
static inline float __high2float(__half2 v) { return __half2float(v.y); }
static inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
static inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }

// ---- vectors ----------------------------------------------------------------------------------------------

#define EFFNET_HOST_VECTORS(type, name)                                                  \
    struct alignas(2 * sizeof(type)) name##2 {                                           \
        type x, y;                                                                       \
    };                                                                                   \
    struct name##3 {                                                                     \
        type x, y, z;                                                                    \
    };                                                                                   \
    struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 {              \
        type x, y, z, w;                                                                 \
    };                                                                                   \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; }              \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }   \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EFFNET_HOST_VECTORS(float, float)
EFFNET_HOST_VECTORS(int, int)
EFFNET_HOST_VECTORS(unsigned, uint)
EFFNET_HOST_VECTORS(unsigned char, uchar)
EFFNET_HOST_VECTORS(unsigned short, ushort)
#undef EFFNET_HOST_VECTORS
static inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {__bfloat162float(v.x), __bfloat162float(v.y)};
}

// ---- functions --------------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// Names that the C library has taken.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Of equal types only: CUDA's mixed overloads convert in ways that are easy to get wrong.
#define EFFNET_HOST_ORDER(type)                                    \
    static inline type min(type a, type b) { return b < a ? b : a; } \
    static inline type max(type a, type b) { return a < b ? b : a; }
EFFNET_HOST_ORDER(int)
EFFNET_HOST_ORDER(unsigned)
EFFNET_HOST_ORDER(long)
EFFNET_HOST_ORDER(unsigned long)
EFFNET_HOST_ORDER(long long)
EFFNET_HOST_ORDER(unsigned long long)
#undef EFFNET_HOST_ORDER
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

template <typename To, typename From>
static inline To effnet_host_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline unsigned __float_as_uint(float v) { return effnet_host_cast<unsigned>(v); }
static inline int __float_as_int(float v) { return effnet_host_cast<int>(v); }
static inline float __uint_as_float(unsigned v) { return effnet_host_cast<float>(v); }
static inline float __int_as_float(int v) { return effnet_host_cast<float>(v); }

static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
    return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }

template <typename T>
static inline T __ldg(const T* from) {
    return *from;
}
template <typename T>
static inline T __ldcs(const T* from) {
    return *from;
}
template <typename T>
static inline void __stcs(T* to, T value) {
    *to = value;
}
