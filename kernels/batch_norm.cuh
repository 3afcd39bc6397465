// Batch norm's coefficients, made by the pass itself from the statistics that its blocks have written.
//
// Idea: a launch of its own costs three to four microseconds, whatever it does, and must wait for the whole pass. Here the
// blocks merge their statistics (Chan, Golub & LeVeque 1979) where they come to their end: 64 neighbouring parts of the
// same channels are a group, and the last of its blocks to arrive merges them to one; the last group to arrive merges the
// groups and writes the coefficients. Nobody waits: a block that is not the last is done. What is merged in which order
// follows from the parts' numbers, never from the order in which blocks arrive, so results have the same bits each time.
//
// Bytes: 8 a part and channel, once more from the second-level cache. At 3136 parts of 144 channels, a group's last block
// reads 74 kB. Other blocks compute meanwhile, but for the last block of all: that merges its group and then 49 groups, 130 kB
// in some three microseconds.
#pragma once

#include "numeric.cuh"

// What becomes of the statistics: coefficients [4, C], and the running statistics, which are moved.
#define BATCH_NORM_FIELDS(F)     \
    F(const float*, norm_weight) \
    F(const float*, norm_bias)   \
    F(float*, running_mean)      \
    F(float*, running_var)       \
    F(float*, norm_coefficients) \
    F(float, momentum)           \
    F(float, eps)
// The fields of a pass that does so. `arrivals` counts, [slices of channels, groups + 1], zero before and after; null if
// other kernels make the coefficients, as with statistics over several ranks. `moments` [parts + groups, 2, C].
#define BATCH_NORM_FINISH_FIELDS(F) \
    F(unsigned*, arrivals)          \
    BATCH_NORM_FIELDS(F)

// Parts of a group.
constexpr int FAN = 64;

// `Rows` says how many rows `parts` neighbouring parts have together, of which `first` is the first: those that have `most`
// each, but for the last.
struct EvenParts {
    int rows, most;

    __device__ __forceinline__ int count(int first, int parts) const {
        const int left = rows - first * most, all = parts * most;
        return left < all ? left : all;
    }
};

// Writes the four coefficients of one channel.
template <class Args>
__device__ __forceinline__ void write_coefficients(
    const Args& args, int channels, int channel, double mean, double variance) {
    const double r = 1.0 / sqrt(variance + args.eps);
    const double scale = args.norm_weight[channel] * r;
    float* to = args.norm_coefficients + channel;
    to[MEAN * channels] = static_cast<float>(mean);
    to[RECIPROCAL * channels] = static_cast<float>(r);
    to[SCALE * channels] = static_cast<float>(scale);
    to[SHIFT * channels] = static_cast<float>(args.norm_bias[channel] - mean * scale);
}

// The coefficients of one channel with this spread over `rows` values; moves its running statistics.
template <class Args>
__device__ __forceinline__ void finish_channel(
    const Args& args, int channels, int channel, double rows, double mean, double spread) {
    const double share = args.momentum, unbiased = spread / (rows > 1.0 ? rows - 1.0 : 1.0);
    float* running_mean = args.running_mean + channel;
    float* running_var = args.running_var + channel;
    *running_mean = static_cast<float>((1.0 - share) * *running_mean + share * mean);
    *running_var = static_cast<float>((1.0 - share) * *running_var + share * unbiased);
    write_coefficients(args, channels, channel, mean, spread / rows);
}

// Merges statistics of COLUMNS neighbouring channels in a block of THREADS threads. A thread has four channels of every
// GROUPS-th part; then the groups of threads are merged by a tree in shared memory.
template <int COLUMNS, int THREADS>
struct MomentsMerge {
    static constexpr int WIDE = 4, VECTORS = COLUMNS / WIDE;
    // The largest power of two of thread groups.
    static constexpr int power_below(int most) { return most >= 2 ? 2 * power_below(most / 2) : 1; }
    static constexpr int GROUPS = power_below(THREADS / VECTORS);
    static constexpr int FLOATS = 2 * GROUPS * COLUMNS + (GROUPS + WIDE - 1) / WIDE * WIDE;
    static_assert(COLUMNS % WIDE == 0 && VECTORS <= THREADS, "a thread for each vector of channels");

    float *means, *spreads, *counts;  // [GROUPS, COLUMNS], [GROUPS, COLUMNS], [GROUPS]

    __device__ __forceinline__ explicit MomentsMerge(float* shared)
        : means(shared), spreads(means + GROUPS * COLUMNS), counts(spreads + GROUPS * COLUMNS) {}

    // `moments` [count, 2, channels], from the slice's first channel on, of which `columns` exist; `rows.count(part)` are
    // those of a part. Afterwards means[0..COLUMNS] and spreads[0..COLUMNS] are those of all. All threads call this.
    template <class Rows>
    __device__ __forceinline__ void merge(const float* moments, int channels, int columns, int count, Rows rows) {
        const int vector = threadIdx.x % VECTORS, group = threadIdx.x / VECTORS;
        float own = 0.0f, mean[WIDE] = {}, spread[WIDE] = {};
        if (vector * WIDE < columns && group < GROUPS) {
            const float* from = moments + vector * WIDE;
#pragma unroll 8
            for (int part = group; part < count; part += GROUPS) {
                float other_mean[WIDE], other_spread[WIDE];
                load_lanes(other_mean, from + static_cast<size_t>(part) * 2 * channels);
                load_lanes(other_spread, from + (static_cast<size_t>(part) * 2 + 1) * channels);
                add(own, mean, spread, rows.count(part), other_mean, other_spread);
            }
        }
        if (group < GROUPS) put(group, vector, own, mean, spread);
#pragma unroll
        for (int half = GROUPS / 2; half > 0; half /= 2) {
            barrier();
            if (group >= half) continue;
            float other_mean[WIDE], other_spread[WIDE];
            load_lanes(other_mean, means + (group + half) * COLUMNS + vector * WIDE);
            load_lanes(other_spread, spreads + (group + half) * COLUMNS + vector * WIDE);
            add(own, mean, spread, counts[group + half], other_mean, other_spread);
            put(group, vector, own, mean, spread);
        }
        barrier();
    }

private:
    __device__ __forceinline__ static void add(
        float& rows, float (&mean)[WIDE], float (&spread)[WIDE], float other_rows, const float (&other_mean)[WIDE],
        const float (&other_spread)[WIDE]) {
        float all = rows;
#pragma unroll
        for (int i = 0; i < WIDE; i++)
            all = merge_moments(rows, mean[i], spread[i], other_rows, other_mean[i], other_spread[i]);
        rows = all;
    }

    __device__ __forceinline__ void put(
        int group, int vector, float rows, const float (&mean)[WIDE], const float (&spread)[WIDE]) {
        store_group(means + group * COLUMNS + vector * WIDE, mean);
        store_group(spreads + group * COLUMNS + vector * WIDE, spread);
        if (vector == 0) counts[group] = rows;
    }
};

// Rows of the parts from `begin` on, and of whole groups of parts.
template <class Rows>
struct RowsFrom {
    Rows rows;
    int begin;

    __device__ __forceinline__ int count(int part) const { return rows.count(begin + part, 1); }
};
template <class Rows>
struct RowsOfGroups {
    Rows rows;
    int parts;

    __device__ __forceinline__ int count(int group) const {
        const int first = group * FAN;
        return rows.count(first, parts - first < FAN ? parts - first : FAN);
    }
};

// Called by all threads when the block's part of the moments is written, for the slice of COLUMNS channels:
// in the last block of all, writes the coefficients. `shared` [MomentsMerge::FLOATS] is memory that is no longer needed.
template <int COLUMNS, int THREADS, class Args, class Rows>
__device__ __forceinline__ void finish_batch_norm(
    const Args& args, float* shared, int slice, int channels, int part, int parts, Rows rows) {
    if (args.arrivals == nullptr) return;
    const int first = slice * COLUMNS, left = channels - first, columns = left < COLUMNS ? left : COLUMNS;
    const int groups = (parts + FAN - 1) / FAN, group = part / FAN;
    unsigned* arrivals = args.arrivals + slice * (groups + 1);
    const int begin = group * FAN, members = parts - begin < FAN ? parts - begin : FAN;
    if (!last_to_arrive(arrivals + group, members)) return;
    MomentsMerge<COLUMNS, THREADS> merged(shared);
    const size_t row = 2 * static_cast<size_t>(channels);
    float* moments = args.moments + first;
    merged.merge(moments + begin * row, channels, columns, members, RowsFrom<Rows>{rows, begin});
    if (groups > 1) {
        float* of_group = moments + (parts + group) * row;
        for (int own = threadIdx.x; own < columns; own += THREADS) {
            of_group[own] = merged.means[own];
            of_group[channels + own] = merged.spreads[own];
        }
        if (!last_to_arrive(arrivals + groups, groups)) return;
        merged.merge(moments + parts * row, channels, columns, groups, RowsOfGroups<Rows>{rows, parts});
    }
#pragma unroll
    for (int base = 0; base < COLUMNS; base += THREADS) {
        const int own = base + static_cast<int>(threadIdx.x);
        if (own < columns)
            finish_channel(args, channels, first + own, rows.count(0, parts), merged.means[own], merged.spreads[own]);
    }
}
