// What kernels use of the machine. This is the only header with code for two machines.
//
// Every kernel of this folder is compiled twice: by nvcc for GPUs, and by g++ with `host/shim.h`, where each CUDA
// thread is a fiber. So tests run the same sources. Therefore a kernel uses the hardware only through the functions
// below: those that need PTX have a second body for the host. They are few on purpose, because the emulation cannot
// test the PTX text.
//
// Rules for kernels
//  1. No inline PTX, `__CUDA_ARCH__`, `<<<>>>` or cooperative groups outside this header.
//  2. Shared memory comes from `SharedArena` only, the same pieces in the same order in every thread.
//  3. Templates are `__device__` bodies; `KERNEL` makes them `extern "C"` functions of ONE argument, a struct
//     declared by `ARGUMENTS`. `build.rs` reads these declarations, and `constexpr int NAME = …` that begins a line,
//     and writes them as Rust for the launchers: src/ops/cuda/sources.rs.
//  4. Blocks have a multiple of 32 threads, masks are full, and no thread returns before a barrier.
//  5. Data passed between lanes through shared memory needs `warp_barrier()`.
//  6. Blocks of one launch do not wait for each other, and there are no floating-point atomics.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#else
#include "host/shim.h"
#endif

using f16 = __half;
using bf16 = __nv_bfloat16;

// ---- kernels and their arguments --------------------------------------------------------------------------

#define EFFNET_DECLARE_FIELD(type, name) type name;
// A struct in device memory that the host reads or writes.
#define LAYOUT(Name, FIELDS)         \
    struct Name {                    \
        FIELDS(EFFNET_DECLARE_FIELD) \
    };

#if defined(__CUDACC__)
// `ARGUMENTS(Name, FIELDS)` with `#define FIELDS(F) F(const float*, x) F(int, rows)` declares `struct Name`.
#define ARGUMENTS(Name, FIELDS)      \
    struct Name {                    \
        FIELDS(EFFNET_DECLARE_FIELD) \
    };
// A kernel of `threads` threads a block, at least `blocks` of which fit a multiprocessor.
#define KERNEL_BLOCKS(name, threads, blocks, Args) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args)
#define KERNEL(name, threads, Args) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args)
#else
// The same on the host, where fields and kernels are also entered into the harness's table.
#define ARGUMENTS(Name, FIELDS) EFFNET_HOST_ARGUMENTS(Name, FIELDS)
#define KERNEL_BLOCKS(name, threads, blocks, Args) EFFNET_HOST_KERNEL(name, threads, Args)
#define KERNEL(name, threads, Args) EFFNET_HOST_KERNEL(name, threads, Args)
#endif

// ---- kernels that exist several times ---------------------------------------------------------------------

// `name_f32`, `name_f16` and `name_bf16` from the template `name`.
#define STORED_KERNELS(name, threads, Args)                  \
    KERNEL(name##_f32, threads, Args) { name<float>(args); } \
    KERNEL(name##_f16, threads, Args) { name<f16>(args); }   \
    KERNEL(name##_bf16, threads, Args) { name<bf16>(args); }

// One shape of a kernel for both half types, or for fp32. `INSTANCE_HALF(FORWARD, 64x80, rows = 64, blocks = 4)` gives
// FORWARD(f16, 64x80_f16, Shape) and the same for bf16, with Shape::rows = 64 and Shape::blocks = 4. FORWARD makes the
// kernel, whose name ends with the second parameter. The launchers choose among the same lines: `build.rs` reads all
// numbers but `blocks`, the least number of blocks that must fit a multiprocessor, which is for the compiler alone.
#define INSTANCE(KERNEL_OF, name, T, suffix, ...) \
    struct KERNEL_OF##_##name##_##suffix {        \
        enum : int { __VA_ARGS__ };               \
    };                                            \
    KERNEL_OF(T, name##_##suffix, KERNEL_OF##_##name##_##suffix)
#define INSTANCE_HALF(KERNEL_OF, name, ...)          \
    INSTANCE(KERNEL_OF, name, f16, f16, __VA_ARGS__) \
    INSTANCE(KERNEL_OF, name, bf16, bf16, __VA_ARGS__)
#define INSTANCE_FP32(KERNEL_OF, name, ...) INSTANCE(KERNEL_OF, name, float, f32, __VA_ARGS__)

// ---- shared memory ----------------------------------------------------------------------------------------

// Hands out the block's dynamic shared memory piece by piece, each aligned to 16 bytes. On the device this is
// plain arithmetic; on the host every piece is filled with NaN and surrounded by guarded bytes.
class SharedArena {
public:
    __device__ __forceinline__ SharedArena() {
#if defined(__CUDACC__)
        extern __shared__ __align__(16) unsigned char effnet_shared_memory[];
        next_ = effnet_shared_memory;
#endif
    }

    template <typename T>
    __device__ __forceinline__ T* take(size_t count) {
#if defined(__CUDACC__)
        T* piece = reinterpret_cast<T*>(next_);
        next_ += (count * sizeof(T) + 15) / 16 * 16;
        return piece;
#else
        return static_cast<T*>(host::take_shared(piece_++, count * sizeof(T)));
#endif
    }

private:
#if defined(__CUDACC__)
    unsigned char* next_;
#else
    size_t piece_ = 0;
#endif
};

// ---- threads ----------------------------------------------------------------------------------------------

constexpr int WARP = 32;
constexpr unsigned FULL_MASK = 0xffffffffu;

// All threads of the block wait for each other.
#define barrier() __syncthreads()
// All lanes of the warp wait for each other and see the shared memory that was written before.
#define warp_barrier() __syncwarp(FULL_MASK)

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(FULL_MASK, value, mask);
}
template <typename T>
__device__ __forceinline__ T shuffle(T value, int lane) {
    return __shfl_sync(FULL_MASK, value, lane);
}
template <typename T>
__device__ __forceinline__ T shuffle_down(T value, int delta) {
    return __shfl_down_sync(FULL_MASK, value, delta);
}

// ---- copies from global to shared memory, in parallel with the computation -----------------------------------

// Copies 16 bytes, or writes zeros if `valid` is false; then `global` is not read.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true) {
#if defined(__CUDACC__)
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
    host::copy_async_16(shared, global, valid);
#endif
}

// Closes the group of all copies begun since the last group.
__device__ __forceinline__ void copy_async_commit() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    host::copy_async_commit();
#endif
}

// Waits until at most `N` of this thread's groups are unfinished. A barrier must follow before other threads read.
#if defined(__CUDACC__)
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
#else
template <int N>
inline void copy_async_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    host::copy_async_wait(N, file, line);
}
#endif

// 16 bytes to shared memory at once, where the compiler would make four stores of them.
__device__ __forceinline__ void store_shared_16(void* shared, uint4 value) {
#if defined(__CUDACC__)
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = value;
#endif
}

// ---- tensor cores -----------------------------------------------------------------------------------------

// Four 8×8 matrices of 16-bit values from shared memory: lane l gives the address of row l%8 of matrix l/8
// (16 bytes, aligned); register i of a lane receives row lane/4, columns 2·(lane%4) and +1, of matrix i.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#else
    host::load_matrix_x4(r, row, false);
#endif
}

// The same, with each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#else
    host::load_matrix_x4(r, row, true);
#endif
}

#if defined(__CUDACC__)
template <typename T>
__device__ __forceinline__ void mma_one(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_one<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_one<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// c[m][n] += a[m]·b[n] for all of a warp's M×N tiles of 16×8, K = 16, fp32 accumulation (mma.m16n8k16). With
// g = lane/4 and t = lane%4, a lane holds
//   a: {(g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)}   two 16-bit values a register, row-major A
//   b: {(k 2t.., n g), (k 2t+8.., n g)}
//   c: {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}
// One call handles all tiles, because that is several times cheaper to emulate.
template <typename T, int M, int N>
__device__ __forceinline__ void mma_tiles(float (&c)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2]) {
#if defined(__CUDACC__)
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) mma_one<T>(c[m][n], a[m], b[n]);
#else
    host::mma_tiles<T>(&c[0][0][0], &a[0][0], &b[0][0], M, N);
#endif
}

// ---- functions --------------------------------------------------------------------------------------------

// 2^x and 1/x by the special-function unit, two and one units of the last place off at most: for kernels that store a
// half type. Results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
#else
    return host::exp2_approximate(x);
#endif
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
#if defined(__CUDACC__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
#else
    return host::reciprocal_approximate(x);
#endif
}

// Whether this block is the last of `blocks` that come here with these `arrivals`, which are 0 before and after. It then sees
// what all of them wrote to global memory before. Nobody waits for another block. All threads call this.
#if defined(__CUDACC__)
__device__ __forceinline__ bool last_to_arrive(unsigned* arrivals, unsigned blocks) {
    barrier();
    bool last = false;
    if (threadIdx.x == 0) {
        // What the block's threads wrote before the barrier is released by the fence of this one, and acquired likewise.
        __threadfence();
        last = atomicInc(arrivals, blocks - 1) == blocks - 1;
        __threadfence();
    }
    return __syncthreads_or(last);
}
#else
inline bool last_to_arrive(
    unsigned* arrivals, unsigned blocks, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return host::last_to_arrive(arrivals, blocks, file, line);
}
#endif

// Sets bits of a word in global memory. The order does not matter, so results stay deterministic.
__device__ __forceinline__ void raise_flag(unsigned* flag, unsigned bits) {
#if defined(__CUDACC__)
    atomicOr(flag, bits);
#else
    host::atomic_or(flag, bits);
#endif
}

// Adds to a count in shared memory. The order does not matter, so results stay deterministic.
__device__ __forceinline__ void add_shared(unsigned* count, unsigned by) {
#if defined(__CUDACC__)
    atomicAdd(count, by);
#else
    host::atomic_add(count, by);
#endif
}
