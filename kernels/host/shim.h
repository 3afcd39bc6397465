// What `device.cuh` sees instead of CUDA when g++ compiles the kernels for the CPU.
//
// Every thread of a block is a fiber (fibers.cpp), so a barrier is a switch to the next fiber. All communication between
// threads goes through the functions below, which check what CUDA leaves undefined.
#pragma once

#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define __launch_bounds__(...)
#define __constant__ static const

using dim3 = uint3;
extern thread_local constinit uint3 threadIdx;
extern thread_local constinit uint3 blockIdx;
extern thread_local constinit uint3 blockDim;
extern thread_local constinit uint3 gridDim;
constexpr int warpSize = 32;

namespace host {

// ---- the table of kernels ---------------------------------------------------------------------------------

struct Field {
    const char* name;
    size_t offset;
    size_t size;
};

// Enters a kernel into the table before main begins.
struct Registration {
    Registration(const char* name, const char* file, unsigned threads, size_t size, const Field* fields,
                 size_t field_count, void (*run)(const void*));
};


// ---- what passes between threads --------------------------------------------------------------------------

void sync_threads(const char* file, int line);
void sync_warp(unsigned mask, const char* file, int line);

enum class WarpOperation { Barrier, ShuffleXor, Shuffle, ShuffleDown, ShuffleUp, Ballot, LoadMatrix, Multiply };

// Waits for the other lanes. Operands and `result` are those of this lane; the lane that arrives last does the work.
struct Exchange {
    WarpOperation operation;
    unsigned mask;
    // What must be equal in all lanes: delta or mask of a shuffle, transposition, number of tiles.
    int argument;
    int bytes;
    const void* value;
    const void* second;
    void* result;
};
void exchange(const Exchange& mine);

template <typename T>
T shuffle(WarpOperation operation, unsigned mask, T value, int argument, int own) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    T result;
    exchange({operation, mask, operation == WarpOperation::Shuffle ? 0 : argument, int(sizeof(T)), &value, &own,
              &result});
    return result;
}

unsigned ballot(unsigned mask, bool value);

// ---- shared memory and copies -----------------------------------------------------------------------------

void* take_shared(size_t piece, size_t bytes);
void copy_async_16(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(int groups, const char* file, int line);

// ---- tensor cores -----------------------------------------------------------------------------------------

void load_matrix_x4(uint32_t (&registers)[4], const void* row, bool transposed);

enum class Half { F16, Bf16 };
void multiply(float* c, const uint32_t* a, const uint32_t* b, int m, int n, Half type);

template <typename T>
void mma_tiles(float* c, const uint32_t* a, const uint32_t* b, int m, int n) {
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
    multiply(c, a, b, m, n, std::is_same_v<T, __half> ? Half::F16 : Half::Bf16);
}

// ---- functions --------------------------------------------------------------------------------------------

// As far off as the special-function unit may be, by two and one units of the last place, so that tests detect code
// that needs more.
float exp2_approximate(float x);
float reciprocal_approximate(float x);

void atomic_or(unsigned* word, unsigned bits);
bool last_to_arrive(unsigned* arrivals, unsigned blocks, const char* file, int line);
void atomic_add(unsigned* word, unsigned by);

}  // namespace host

#define __syncthreads() host::sync_threads(__FILE__, __LINE__)
#define __syncwarp(mask) host::sync_warp(mask, __FILE__, __LINE__)

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return host::shuffle(host::WarpOperation::ShuffleXor, mask, value, lanes, lanes);
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int lane) {
    return host::shuffle(host::WarpOperation::Shuffle, mask, value, lane, lane);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
    return host::shuffle(host::WarpOperation::ShuffleDown, mask, value, int(delta), int(delta));
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
    return host::shuffle(host::WarpOperation::ShuffleUp, mask, value, int(delta), int(delta));
}
static inline unsigned __ballot_sync(unsigned mask, bool value) { return host::ballot(mask, value); }
static inline bool __any_sync(unsigned mask, bool value) { return host::ballot(mask, value) != 0; }
static inline bool __all_sync(unsigned mask, bool value) { return host::ballot(mask, value) == mask; }

// ---- declarations of arguments and kernels ----------------------------------------------------------------

#define EFFNET_HOST_FIELD(type, name) {#name, offsetof(EffnetSelf, name), sizeof(EffnetSelf::name)},
#define EFFNET_HOST_ARGUMENTS(Name, FIELDS)                          \
    struct Name {                                                    \
        FIELDS(EFFNET_DECLARE_FIELD)                                 \
        using EffnetSelf = Name;                                     \
        static const host::Field* effnet_fields(size_t& count) {     \
            static const host::Field all[] = {FIELDS(EFFNET_HOST_FIELD)}; \
            count = sizeof(all) / sizeof(all[0]);                    \
            return all;                                              \
        }                                                            \
    };

#define EFFNET_HOST_KERNEL(name, threads, Args)                                                               \
    static void name##_on_host(const Args& args);                                                             \
    [[maybe_unused]] static const host::Registration name##_registration = [] {                               \
        size_t count = 0;                                                                                     \
        const host::Field* fields = Args::effnet_fields(count);                                               \
        return host::Registration(#name, __FILE__, threads, sizeof(Args), fields, count,                      \
                                  [](const void* args) { name##_on_host(*static_cast<const Args*>(args)); }); \
    }();                                                                                                      \
    static void name##_on_host(const Args& args)
