// Σdu and Σdu·ŷ of a batch norm, added by the backward pass itself from what its blocks have written: as batch_norm.cuh makes
// the coefficients of a forward pass. Every addition carries its error, and the order follows from the parts' numbers.
#pragma once

#include "batch_norm.cuh"
#include "reduction.cuh"

// The fields of a pass that does so. Its partial sums are [parts + 2·groups of them, 2, C], of which each group has a row of
// sums and one of errors. The sums [2, C] are also added to the gradients of β and γ. `arrivals` as in batch_norm.cuh.
#define BATCH_NORM_SUMS_FIELDS(F) \
    F(unsigned*, arrivals)        \
    F(float*, norm_sums)          \
    F(float*, bias_gradient)      \
    F(float*, norm_gradient)      \
    F(StepBlock*, block)

// Adds rows [2, channels] of COLUMNS neighbouring channels in a block of THREADS threads. A thread has four columns of every
// GROUPS-th row; then the groups of threads are added by a tree in shared memory.
template <int COLUMNS, int THREADS>
struct SumsOfRows {
    static constexpr int WIDE = 4, VECTORS = 2 * COLUMNS / WIDE, GROUPS = THREADS / VECTORS;
    static constexpr int FLOATS = GROUPS / 2 * 2 * COLUMNS * static_cast<int>(sizeof(Compensated) / sizeof(float));
    static_assert((GROUPS & (GROUPS - 1)) == 0 && GROUPS * VECTORS == THREADS, "the tree halves");

    Compensated* shared;  // [GROUPS / 2, 2 · COLUMNS]
    // Of the thread: Σdu or Σdu·ŷ of four channels.
    int group, which, channel;
    bool valid;
    Compensated own[WIDE];

    __device__ __forceinline__ SumsOfRows(float* memory, int columns) : shared(reinterpret_cast<Compensated*>(memory)) {
        const int column = static_cast<int>(threadIdx.x) % VECTORS * WIDE;
        group = threadIdx.x / VECTORS;
        which = column / COLUMNS;
        channel = column % COLUMNS;
        valid = channel < columns;
    }

    // `rows` from the slice's first channel on. With ERRORS each row is followed by one of errors. All threads call this.
    template <bool ERRORS>
    __device__ __forceinline__ void add(const float* rows, int channels, int count) {
        constexpr int EACH = ERRORS ? 2 : 1;
#pragma unroll
        for (int i = 0; i < WIDE; i++) own[i] = Compensated();
        const size_t row = 2 * static_cast<size_t>(channels);
        const float* from = rows + which * channels + channel;
#pragma unroll 2
        for (int number = group; valid && number < count; number += GROUPS) {
            float values[WIDE];
            load_group(values, from + number * EACH * row);
#pragma unroll
            for (int i = 0; i < WIDE; i++) own[i].add(values[i]);
            if constexpr (ERRORS) {
                load_group(values, from + (number * EACH + 1) * row);
#pragma unroll
                for (int i = 0; i < WIDE; i++) own[i].error += values[i];
            }
        }
        Compensated* to = shared + which * COLUMNS + channel;
#pragma unroll
        for (int half = GROUPS / 2; half > 0; half /= 2) {
            barrier();
            if (group >= half && group < 2 * half)
                for (int i = 0; i < WIDE; i++) to[(group - half) * 2 * COLUMNS + i] = own[i];
            barrier();
            if (group < half)
                for (int i = 0; i < WIDE; i++) own[i].add(to[group * 2 * COLUMNS + i]);
        }
    }
};

// Called by all threads when the block's part of `partials` is written, for the slice of COLUMNS channels: the last block of
// all makes the sums. `shared` [SumsOfRows::FLOATS] is memory that is no longer needed.
template <int COLUMNS, int THREADS, class Args>
__device__ __forceinline__ void finish_norm_sums(
    const Args& args, float* partials, float* shared, int slice, int channels, int part, int parts) {
    const int first = slice * COLUMNS, left = channels - first;
    const int groups = (parts + FAN - 1) / FAN, group = part / FAN, begin = group * FAN;
    const int members = parts - begin < FAN ? parts - begin : FAN;
    unsigned* arrivals = args.arrivals + slice * (groups + 1);
    if (!last_to_arrive(arrivals + group, members)) return;
    const size_t row = 2 * static_cast<size_t>(channels);
    partials += first;
    SumsOfRows<COLUMNS, THREADS> sums(shared, left < COLUMNS ? left : COLUMNS);
    const bool writes = sums.group == 0 && sums.valid;
    const int at = sums.which * channels + sums.channel;
    sums.template add<false>(partials + begin * row, channels, members);
    if (groups > 1) {
        float* to = partials + (parts + 2 * group) * row + at;
        for (int i = 0; writes && i < sums.WIDE; i++) {
            to[i] = sums.own[i].sum;
            to[row + i] = sums.own[i].error;
        }
        if (!last_to_arrive(arrivals + groups, groups)) return;
        sums.template add<true>(partials + parts * row, channels, groups);
    }
    float* gradient = (sums.which == 0 ? args.bias_gradient : args.norm_gradient) + first + sums.channel;
    for (int i = 0; writes && i < sums.WIDE; i++) {
        const float total = sums.own[i].rounded();
        args.norm_sums[first + at + i] = total;
        add_to_gradient(gradient + i, total, args.block);
    }
}
