// Kernels with one mistake each, for `tests/operators/harness.rs`, which expects every one of them to be noticed; and a few
// without, in which nothing may be found. They all take the same arguments.
#include "numeric.cuh"

#define PLANTED_FIELDS(F) \
    F(const float*, in)   \
    F(float*, out)        \
    F(int, count)         \
    F(int, zero)
ARGUMENTS(PlantedArguments, PLANTED_FIELDS)

constexpr int PLANTED_THREADS = 64;

// ---- without mistakes -------------------------------------------------------------------------------------

// out[i] = in[i]; counted bytes are known.
KERNEL(planted_copy, 64, PlantedArguments) {
    const int i = blockIdx.x * PLANTED_THREADS + threadIdx.x;
    if (i < args.count) args.out[i] = args.in[i];
}

// out[block] = the sum of the block's 64 values, by a copy beside the computation, warps and shared memory.
KERNEL(planted_sum, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    float* sums = arena.take<float>(PLANTED_THREADS / WARP);
    if (threadIdx.x < PLANTED_THREADS / 4)
        copy_async_16(values + 4 * threadIdx.x, args.in + blockIdx.x * PLANTED_THREADS + 4 * threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
    barrier();
    float sum = values[threadIdx.x];
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    barrier();
    if (threadIdx.x == 0) args.out[blockIdx.x] = sums[0] + sums[1];
}

// Lanes of one warp hand values on through shared memory, round after round.
KERNEL(planted_warp, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    float own = args.in[threadIdx.x];
    for (int round = 0; round < 3; round++) {
        values[threadIdx.x] = own;
        warp_barrier();
        own = values[threadIdx.x ^ 1] + 1.0f;
        warp_barrier();
    }
    args.out[threadIdx.x] = own;
}

// out[i] = 2: every thread counts in two bins of others.
KERNEL(planted_count, 64, PlantedArguments) {
    SharedArena arena;
    unsigned* counts = arena.take<unsigned>(PLANTED_THREADS);
    counts[threadIdx.x] = 0;
    barrier();
    add_shared(counts + (threadIdx.x + 1) % PLANTED_THREADS, 1);
    add_shared(counts + (threadIdx.x + 40) % PLANTED_THREADS, 1);
    barrier();
    args.out[threadIdx.x] = static_cast<float>(counts[threadIdx.x]);
}

// Three counts of arrivals: the last numbers of the input, which are zeros.
__device__ __forceinline__ unsigned* planted_arrivals(const PlantedArguments& args) {
    return reinterpret_cast<unsigned*>(const_cast<float*>(args.in + args.count - 3));
}

// out[0] is the sum of in[block] over four blocks: by pairs, whose last block adds them, and by the last pair.
KERNEL(planted_last, 64, PlantedArguments) {
    unsigned* arrivals = planted_arrivals(args);
    const int pair = blockIdx.x / 2;
    if (threadIdx.x == 5) args.out[1 + blockIdx.x] = args.in[blockIdx.x];
    if (!last_to_arrive(arrivals + pair, 2)) return;
    if (threadIdx.x == 40) args.out[5 + pair] = args.out[1 + 2 * pair] + args.out[2 + 2 * pair];
    if (!last_to_arrive(arrivals + 2, gridDim.x / 2)) return;
    // What a block of the other pair wrote is there too.
    if (threadIdx.x == 7) args.out[0] = args.out[5] + args.out[6] + 0.0f * args.out[1] + 0.0f * args.out[4];
}

// out [16·M, 8·N] of two matrices in [16·M, 16] and [8·N, 16] rounded to T, by one warp with tensor-core tiles.
template <typename T, int M, int N>
__device__ __forceinline__ void planted_product(const PlantedArguments& args) {
    SharedArena arena;
    T* a = arena.take<T>(16 * M * 16);
    T* b = arena.take<T>(8 * N * 16);
    T* b_transposed = arena.take<T>(16 * 8 * N);
    const int lane = threadIdx.x;
    for (int i = lane; i < 16 * M * 16; i += WARP) a[i] = from_float<T>(args.in[i]);
    for (int i = lane; i < 8 * N * 16; i += WARP) {
        const T v = from_float<T>(args.in[16 * M * 16 + i]);
        b[i] = v;
        b_transposed[i % 16 * (8 * N) + i / 16] = v;
    }
    barrier();
    float c[M][N][4] = {};
    uint32_t fragments[M][4], columns[N][2];
    for (int m = 0; m < M; m++) {
        // Registers are the quarters (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15).
        load_matrix_x4(fragments[m], a + (m * 16 + lane % 16) * 16 + lane / 16 * 8);
    }
    for (int n = 0; n < N; n += 2) {
        uint32_t r[4];
        if (n % 4 == 0) {
            // Two tiles of 8 columns, b by rows of columns.
            load_matrix_x4(r, b + (n * 8 + lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
        } else {
            // The same from b by rows of k.
            load_matrix_x4_transposed(r, b_transposed + (lane % 16) * (8 * N) + n * 8 + lane / 16 * 8);
        }
        columns[n][0] = r[0];
        columns[n][1] = r[1];
        columns[n + 1][0] = r[2];
        columns[n + 1][1] = r[3];
    }
    mma_tiles<T>(c, fragments, columns);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 4; i++) {
                const int row = m * 16 + lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
                args.out[row * 8 * N + column] = c[m][n][i];
            }
}
KERNEL(planted_product_f16, 32, PlantedArguments) { planted_product<f16, 2, 4>(args); }
KERNEL(planted_product_bf16, 32, PlantedArguments) { planted_product<bf16, 2, 4>(args); }

// out[i] = in[i] rounded to a half type.
KERNEL(planted_round_f16, 64, PlantedArguments) {
    const int i = blockIdx.x * PLANTED_THREADS + threadIdx.x;
    if (i < args.count) args.out[i] = rounded<f16>(args.in[i]);
}
KERNEL(planted_round_bf16, 64, PlantedArguments) {
    const int i = blockIdx.x * PLANTED_THREADS + threadIdx.x;
    if (i < args.count) args.out[i] = rounded<bf16>(args.in[i]);
}

// ---- memory -----------------------------------------------------------------------------------------------

// Writes the piece beside its own.
KERNEL(planted_neighbour, 64, PlantedArguments) {
    SharedArena arena;
    float* one = arena.take<float>(PLANTED_THREADS);
    float* other = arena.take<float>(PLANTED_THREADS);
    other[threadIdx.x] = 1.0f;
    barrier();
    one[threadIdx.x + 1] = args.in[threadIdx.x];
    barrier();
    args.out[threadIdx.x] = other[threadIdx.x] + one[threadIdx.x == 0 ? 1 : threadIdx.x];
}

KERNEL(planted_write_beyond, 64, PlantedArguments) {
    const int i = blockIdx.x * PLANTED_THREADS + threadIdx.x;
    if (i <= args.count) args.out[i] = 1.0f;
}

// The input has as many values as the output. What is read beyond does not even change the result.
KERNEL(planted_read_beyond, 64, PlantedArguments) {
    const int i = blockIdx.x * PLANTED_THREADS + threadIdx.x;
    if (i <= args.count) {
        const float value = args.in[i];
        if (i < args.count) args.out[i] = value;
        else if (value == 1e30f) args.out[0] = value;
    }
}

KERNEL(planted_far_away, 64, PlantedArguments) {
    if (threadIdx.x == 7) args.out[size_t(1) << 28] = 1.0f;
}

KERNEL(planted_misaligned, 64, PlantedArguments) {
    float values[LANES];
    load_lanes(values, args.in + 1 + 8 * (threadIdx.x % 4));
    args.out[threadIdx.x] = values[threadIdx.x % LANES];
}

KERNEL(planted_division, 64, PlantedArguments) { args.out[threadIdx.x] = float(args.count / args.zero); }

KERNEL(planted_uninitialised, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    if (threadIdx.x != 5) values[threadIdx.x] = 1.0f;
    barrier();
    args.out[threadIdx.x] = values[threadIdx.x];
}

// Threads that do not agree how large a piece is.
KERNEL(planted_pieces, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS - threadIdx.x / WARP);
    args.out[threadIdx.x] = values[0] = 0.0f;
}

// ---- barriers ---------------------------------------------------------------------------------------------

// The value of the thread before, which has long written it when threads run forward.
KERNEL(planted_barrier, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    values[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = values[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}

// The second barrier of a round is missing: values are overwritten while others still read.
KERNEL(planted_second_barrier, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    float own = args.in[threadIdx.x];
    for (int round = 0; round < 3; round++) {
        values[threadIdx.x] = own;
        barrier();
        own = values[threadIdx.x < PLANTED_THREADS - 1 ? threadIdx.x + 1 : threadIdx.x] + 1.0f;
    }
    args.out[threadIdx.x] = own;
}

// Bins are emptied while others count in them.
KERNEL(planted_count_emptied, 64, PlantedArguments) {
    SharedArena arena;
    unsigned* counts = arena.take<unsigned>(PLANTED_THREADS);
    counts[threadIdx.x] = 0;
    add_shared(counts + (threadIdx.x + 1) % PLANTED_THREADS, 1);
    barrier();
    args.out[threadIdx.x] = static_cast<float>(counts[threadIdx.x]);
}

// Bins are read while others count in them.
KERNEL(planted_count_read, 64, PlantedArguments) {
    SharedArena arena;
    unsigned* counts = arena.take<unsigned>(PLANTED_THREADS);
    counts[threadIdx.x] = 0;
    barrier();
    add_shared(counts + (threadIdx.x + 1) % PLANTED_THREADS, 1);
    args.out[threadIdx.x] = static_cast<float>(counts[threadIdx.x]);
}

KERNEL(planted_warp_barrier, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    values[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = values[threadIdx.x % WARP == 0 ? threadIdx.x : threadIdx.x - 1];
}

KERNEL(planted_divergent, 64, PlantedArguments) {
    if (threadIdx.x < WARP) {
        args.out[threadIdx.x] = 1.0f;
        barrier();
    } else {
        args.out[threadIdx.x] = 2.0f;
        barrier();
    }
}

KERNEL(planted_half_barrier, 64, PlantedArguments) {
    if (threadIdx.x < 48) barrier();
    args.out[threadIdx.x] = 1.0f;
}

KERNEL(planted_shuffle, 64, PlantedArguments) {
    float value = args.in[threadIdx.x];
    if (threadIdx.x % WARP < 16) value = shuffle_xor(value, 1);
    else value = shuffle_down(value, 1);
    args.out[threadIdx.x] = value;
}

KERNEL(planted_half_shuffle, 64, PlantedArguments) {
    float value = args.in[threadIdx.x];
    if (threadIdx.x < 48) value = shuffle_xor(value, 1);
    barrier();
    args.out[threadIdx.x] = value;
}

// ---- copies -----------------------------------------------------------------------------------------------

KERNEL(planted_wait, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    if (threadIdx.x < PLANTED_THREADS / 4) copy_async_16(values + 4 * threadIdx.x, args.in + 4 * threadIdx.x);
    copy_async_commit();
    barrier();
    args.out[threadIdx.x] = values[threadIdx.x];
    copy_async_wait<0>();
}

// The barrier after the wait is missing.
KERNEL(planted_wait_barrier, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    const int from = PLANTED_THREADS / 4 - 1 - threadIdx.x;
    if (from >= 0) copy_async_16(values + 4 * from, args.in + 4 * from);
    copy_async_commit();
    copy_async_wait<0>();
    args.out[threadIdx.x] = values[threadIdx.x];
}

// The next copy is begun while others still read the buffer.
KERNEL(planted_buffer, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    float sum = 0.0f;
    for (int round = 0; round < 2; round++) {
        if (threadIdx.x < PLANTED_THREADS / 4)
            copy_async_16(values + 4 * threadIdx.x, args.in + round * PLANTED_THREADS + 4 * threadIdx.x);
        copy_async_commit();
        copy_async_wait<0>();
        barrier();
        sum += values[threadIdx.x];
    }
    args.out[threadIdx.x] = sum;
}

KERNEL(planted_never_waited, 64, PlantedArguments) {
    SharedArena arena;
    float* values = arena.take<float>(PLANTED_THREADS);
    if (threadIdx.x < PLANTED_THREADS / 4) copy_async_16(values + 4 * threadIdx.x, args.in + 4 * threadIdx.x);
    args.out[threadIdx.x] = 1.0f;
}

// ---- blocks -----------------------------------------------------------------------------------------------

// Right as long as blocks run one after another.
KERNEL(planted_blocks_add, 64, PlantedArguments) {
    if (threadIdx.x == 0) args.out[0] += args.in[blockIdx.x];
}

// Reads what another block of the same launch writes.
KERNEL(planted_blocks_read, 64, PlantedArguments) {
    if (threadIdx.x == 0) args.out[blockIdx.x] = blockIdx.x == 0 ? 1.0f : args.out[blockIdx.x - 1] + 1.0f;
}

// Writes what the last block reads only after it has arrived itself.
KERNEL(planted_late_write, 64, PlantedArguments) {
    const bool last = last_to_arrive(planted_arrivals(args), gridDim.x);
    if (threadIdx.x == 0) args.out[1 + blockIdx.x] = args.in[blockIdx.x];
    if (last && threadIdx.x == 0) args.out[0] = args.out[1] + args.out[2] + args.out[3];
}

// A block that is not the last reads what the others have written.
KERNEL(planted_not_last, 64, PlantedArguments) {
    if (threadIdx.x == 0) args.out[1 + blockIdx.x] = args.in[blockIdx.x];
    if (!last_to_arrive(planted_arrivals(args), gridDim.x) && threadIdx.x == 0 && blockIdx.x == 1)
        args.out[0] = args.out[1] + args.out[2];
}

// Expects fewer blocks than come.
KERNEL(planted_too_many, 64, PlantedArguments) {
    if (threadIdx.x == 0) args.out[blockIdx.x] = args.in[blockIdx.x];
    const bool last = last_to_arrive(planted_arrivals(args), gridDim.x - 1);
    if (last && threadIdx.x == 0) args.out[0] = args.out[2];
}
