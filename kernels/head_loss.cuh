// The loss: cross-entropy with smoothed labels, one or two of an image and weights of the classes if there are any, and its
// gradient with respect to the logits. Exponentials are computed in fp32 and summed in double, so that a loss near zero and
// a gradient p − 1 near zero keep their digits. A block has one image. The last block adds up what all have found, in the
// order of the images.
#pragma once

#include "reduction.cuh"
#include "step.cuh"

constexpr int LOSS_THREADS = 128;
constexpr int LOSS_WARPS = LOSS_THREADS / WARP;

// The sum over all threads in a fixed order, in every thread. `scratch` has LOSS_WARPS places.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    barrier();
    double total = 0.0;
    for (int warp = 0; warp < LOSS_WARPS; warp++) total += scratch[warp];
    return total;
}

// The largest logit. NaN is ignored here and appears in the sums.
__device__ __forceinline__ float largest(const float* logits, int classes, float* scratch) {
    float most = -INFINITY;
    for (int c = static_cast<int>(threadIdx.x); c < classes; c += LOSS_THREADS) most = fmaxf(most, logits[c]);
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = most;
    barrier();
    for (int warp = 0; warp < LOSS_WARPS; warp++) most = fmaxf(most, scratch[warp]);
    return most;
}

// e^(logit − most). The rounding error of the difference would be a relative error of the power, so it is corrected.
__device__ __forceinline__ float power(float logit, float most) {
    const float shifted = logit - most;
    const float subtracted = shifted - logit;
    const float error = (logit - (shifted - subtracted)) - (most + subtracted);
    const float e = expf(shifted);
    return fmaf(e, error, e);
}

// losses [N] = −Σ w·target·ln softmax and dlogits [N, classes] = (softmax·Σ w·target − w·target)·scale·(the step's loss
// scale), with the target (1−ε)·(share·onehot(label) + (1−share)·onehot(second)) + ε/classes. Without shares they are 1,
// without weights of the classes these are 1; a label that is no class gives NaN. right [N] is 1 if the label's logit is
// greater than all others: ties and NaN count as wrong. One block for each image; the last one adds the sum of the losses
// and the number of correct images to the step's block. `arrivals` is one count.
#define HEAD_LOSS_FIELDS(F)        \
    F(StepBlock*, block)           \
    F(const float*, logits)        \
    F(const uint32_t*, labels)     \
    F(const uint32_t*, second)     \
    F(const float*, shares)        \
    F(const float*, class_weights) \
    F(float*, losses)              \
    F(float*, dlogits)             \
    F(uint32_t*, right)            \
    F(unsigned*, arrivals)         \
    F(int, classes)                \
    F(float, smoothing)            \
    F(float, scale)
ARGUMENTS(HeadLossArguments, HEAD_LOSS_FIELDS)

// What an image should be: two labels and the first one's share, which is 1 if the image is not mixed. Labels alone are a
// case of their own, so that what is not asked for costs nothing.
template <bool SOFT>
struct LossTarget {
    uint32_t label, second, classes;
    double share;
    const float* weights;

    __device__ __forceinline__ explicit LossTarget(const HeadLossArguments& args) {
        label = args.labels[blockIdx.x];
        const bool mixed = SOFT && args.shares != nullptr;
        second = mixed ? args.second[blockIdx.x] : label;
        share = mixed ? static_cast<double>(args.shares[blockIdx.x]) : 1.0;
        classes = static_cast<uint32_t>(args.classes);
        weights = SOFT ? args.class_weights : nullptr;
    }

    // A class's share before smoothing.
    __device__ __forceinline__ double certain(uint32_t c) const {
        return (c == label ? share : 0.0) + (c == second ? 1.0 - share : 0.0);
    }

    // A value times its class's weight. Without weights it keeps every bit.
    __device__ __forceinline__ double weighted(uint32_t c, double value) const {
        return weights == nullptr ? value : value * static_cast<double>(weights[c]);
    }

    // The mean of two numbers by the labels' shares. Where there is one part, the other has no influence.
    __device__ __forceinline__ double mean(double first, double other) const {
        return share == 1.0 ? first : share * first + (1.0 - share) * other;
    }

    // The weighted logit of a label, less the largest.
    __device__ __forceinline__ double below(const float* logits, uint32_t c, float most) const {
        if (c >= classes) return NAN;
        return weighted(c, static_cast<double>(logits[c]) - static_cast<double>(most));
    }
};

// The sum of the losses and the number of correct images, added to the step's block.
__device__ __forceinline__ void tally(const HeadLossArguments& args, double* loss_scratch, double* right_scratch) {
    double loss = 0.0, right = 0.0;
    for (uint32_t image = threadIdx.x; image < gridDim.x; image += LOSS_THREADS) {
        loss += args.losses[image];
        right += args.right[image];
    }
    loss = block_sum(loss, loss_scratch);
    right = block_sum(right, right_scratch);
    if (threadIdx.x == 0) {
        args.block->loss += loss;
        args.block->correct += static_cast<uint32_t>(right);
    }
}

template <bool SOFT>
__device__ __forceinline__ void cross_entropy(const HeadLossArguments& args) {
    SharedArena arena;
    double* power_scratch = arena.take<double>(LOSS_WARPS);
    double* shifted_scratch = arena.take<double>(LOSS_WARPS);
    double* rank_scratch = arena.take<double>(LOSS_WARPS);
    double* weight_scratch = arena.take<double>(LOSS_WARPS);
    float* most_scratch = arena.take<float>(LOSS_WARPS);
    const size_t start = static_cast<size_t>(blockIdx.x) * args.classes;
    const float* logits = args.logits + start;
    float* dlogits = args.dlogits + start;
    const LossTarget<SOFT> target(args);
    const uint32_t label = target.label, classes = target.classes;
    const float own = label < classes ? logits[label] : NAN;

    const float most = largest(logits, args.classes, most_scratch);
    double powers = 0.0, shifted = 0.0, not_below = 0.0, weights = 0.0;
    for (uint32_t c = threadIdx.x; c < classes; c += LOSS_THREADS) {
        const float logit = logits[c], e = power(logit, most);
        dlogits[c] = e;
        powers += e;
        shifted += target.weighted(c, static_cast<double>(logit) - static_cast<double>(most));
        if (target.weights != nullptr) weights += target.weights[c];
        if (c != label && !(logit < own)) not_below += 1.0;
    }
    powers = block_sum(powers, power_scratch);
    shifted = block_sum(shifted, shifted_scratch);
    not_below = block_sum(not_below, rank_scratch);

    const double everywhere = static_cast<double>(args.smoothing) / args.classes;
    const double extra = 1.0 - static_cast<double>(args.smoothing);
    const double scale = static_cast<double>(args.scale) * static_cast<double>(args.block->loss_scale);
    // Σ w·target.
    double total = 1.0;
    if (target.weights != nullptr && label < classes && target.second < classes) {
        weights = block_sum(weights, weight_scratch);
        const double mean = target.mean(target.weighted(label, 1.0), target.weighted(target.second, 1.0));
        total = extra * mean + everywhere * weights;
    }
    const double share = total / powers;
    for (uint32_t c = threadIdx.x; c < classes; c += LOSS_THREADS) {
        const double wanted = target.weighted(c, everywhere + extra * target.certain(c));
        dlogits[c] = static_cast<float>((dlogits[c] * share - wanted) * scale);
    }
    if (threadIdx.x == 0) {
        const double below =
            target.mean(target.below(logits, label, most), target.below(logits, target.second, most));
        double entropy = log(powers);
        if (target.weights != nullptr) entropy *= total;
        args.losses[blockIdx.x] = static_cast<float>(entropy - extra * below - everywhere * shifted);
        args.right[blockIdx.x] = not_below == 0.0 && own == own ? 1 : 0;
    }
    if (last_to_arrive(args.arrivals, gridDim.x)) tally(args, power_scratch, shifted_scratch);
}

KERNEL(head_loss, LOSS_THREADS, HeadLossArguments) { cross_entropy<false>(args); }
KERNEL(head_loss_soft, LOSS_THREADS, HeadLossArguments) { cross_entropy<true>(args); }
