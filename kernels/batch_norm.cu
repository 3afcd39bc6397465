// Batch norm between passes: from the partial results of a pass's blocks to coefficients. The passes of one rank alone finish
// their statistics themselves, see batch_norm.cuh; sums of the backward passes are added in reduction.cu.
//
// Idea: a block has 8 channels (a 32-byte sector of every part's row) and divides the parts among 64 groups. So few
// channels already fill the GPU, and no thread reads more than parts/64 parts. Statistics are merged by Chan's formula
// (Chan, Golub & LeVeque 1979): with the merged mean μ, the spread is Σ spreadᵢ + Σ nᵢ·(meanᵢ − μ)². Within a thread
// this is done in fp32 relative to the mean of its first part, where differences are small. The groups are merged in
// double. See reduction.cuh for the order.
//
// At 1000 parts of 1152 channels a kernel reads 9.2 MB, mostly from the second-level cache, where the previous kernel
// has just written it: floor 3 µs at 3.0 TB/s. With several ranks, B0's 49 batch norms have below a megabyte each. So they are
// bound by latency, some 4 µs each. Last measured share: not yet measured.
#include "batch_norm.cuh"
#include "reduction.cuh"

namespace {

constexpr int GROUPS = 64;
constexpr int BATCH_NORM_THREADS = LANES * GROUPS;

// The merged statistics of one channel.
struct Merged {
    double count, mean, spread;
};

// Merges parts group, group + GROUPS, … of a channel. Parts without rows may contain anything.
__device__ __forceinline__ Merged merge_parts(
    const float* counts, const float* moments, int parts, int channels, int channel, int group) {
    float shift = 0.0f, sum = 0.0f, squares = 0.0f;
    int rows = 0;
#pragma unroll 4
    for (int part = group; part < parts; part += GROUPS) {
        const float* moment = moments + static_cast<size_t>(part) * 2 * channels + channel;
        const float count = counts[part], mean = moment[0], spread = moment[channels];
        const bool some = count > 0.0f;
        shift = some && rows == 0 ? mean : shift;
        const float away = some ? mean - shift : 0.0f;
        sum = fmaf(count, away, sum);
        squares += fmaf(count * away, away, some ? spread : 0.0f);
        rows += static_cast<int>(count);
    }
    if (rows == 0) return {0.0, 0.0, 0.0};
    const float count = static_cast<float>(rows), away = sum / count;
    float spread = squares - sum * away;
    if (spread < 0.0f) spread = 0.0f;  // unlike fmaxf this keeps a NaN
    return {static_cast<double>(rows), static_cast<double>(shift) + away, spread};
}

// Merges the groups: all `rows` rows of the channel, in each of its threads.
__device__ __forceinline__ Merged merge_groups(const Merged& own, double rows, double* means, double* spreads) {
    const double mean = group_sum<LANES, GROUPS>(own.count * own.mean, means) / rows;
    const double away = own.mean - mean;
    return {rows, mean, group_sum<LANES, GROUPS>(own.spread + own.count * away * away, spreads)};
}

}  // namespace

// counts [parts], moments [parts, 2, C] → coefficients [4, C]; the running statistics [C] are updated in place.
#define BATCH_NORM_STATISTICS_FIELDS(F) \
    F(const float*, counts)             \
    F(const float*, moments)            \
    BATCH_NORM_FIELDS(F)                \
    F(int, parts)                       \
    F(int, channels)                    \
    F(int, rows)
ARGUMENTS(BatchNormStatisticsArguments, BATCH_NORM_STATISTICS_FIELDS)

KERNEL(batch_norm_statistics, BATCH_NORM_THREADS, BatchNormStatisticsArguments) {
    SharedArena shared;
    double* means = shared.take<double>(BATCH_NORM_THREADS);
    double* spreads = shared.take<double>(BATCH_NORM_THREADS);
    const int group = threadIdx.x / LANES, channel = blockIdx.x * LANES + threadIdx.x % LANES;
    const Merged own = merge_parts(args.counts, args.moments, args.parts, args.channels, channel, group);
    const double rows = args.rows;
    const Merged all = merge_groups(own, rows, means, spreads);
    if (group == 0) finish_channel(args, args.channels, channel, rows, all.mean, all.spread);
}

// The same parts → one part, moments [2, C]. The parts of several ranks are merged next; ranks have equal numbers of
// rows: counts [ranks]. A rank's part is small, so the time is that of the exchange.
#define BATCH_NORM_MERGE_FIELDS(F) \
    F(const float*, counts)        \
    F(const float*, moments)       \
    F(float*, merged)              \
    F(float*, rank_counts)         \
    F(int, parts)                  \
    F(int, channels)               \
    F(int, rows)                   \
    F(int, ranks)
ARGUMENTS(BatchNormMergeArguments, BATCH_NORM_MERGE_FIELDS)

KERNEL(batch_norm_merge, BATCH_NORM_THREADS, BatchNormMergeArguments) {
    SharedArena shared;
    double* means = shared.take<double>(BATCH_NORM_THREADS);
    double* spreads = shared.take<double>(BATCH_NORM_THREADS);
    const int group = threadIdx.x / LANES, channel = blockIdx.x * LANES + threadIdx.x % LANES;
    const Merged own = merge_parts(args.counts, args.moments, args.parts, args.channels, channel, group);
    const Merged all = merge_groups(own, args.rows, means, spreads);
    if (group == 0) {
        args.merged[channel] = static_cast<float>(all.mean);
        args.merged[args.channels + channel] = static_cast<float>(all.spread);
    }
    if (blockIdx.x == 0) {
        for (int rank = threadIdx.x; rank < args.ranks; rank += BATCH_NORM_THREADS) {
            args.rank_counts[rank] = static_cast<float>(args.rows);
        }
    }
}

// Coefficients from running statistics, one thread for each channel.
#define BATCH_NORM_INFERENCE_FIELDS(F) \
    F(const float*, norm_weight)       \
    F(const float*, norm_bias)         \
    F(const float*, running_mean)      \
    F(const float*, running_var)       \
    F(float*, norm_coefficients)       \
    F(int, channels)                   \
    F(float, eps)
ARGUMENTS(BatchNormInferenceArguments, BATCH_NORM_INFERENCE_FIELDS)

KERNEL(batch_norm_inference, 256, BatchNormInferenceArguments) {
    const int channel = blockIdx.x * 256 + threadIdx.x;
    if (channel >= args.channels) return;
    write_coefficients(args, args.channels, channel, args.running_mean[channel], args.running_var[channel]);
}
