// The optimiser step, one sweep over the flat buffers; and the update of the loss scale.
//
// Idea: memory is the limit, so each buffer is read and written once, in 16-byte vectors. The EMA is updated in the
// same sweep; a second kernel copies the pointwise weights in the storage type. All numbers that change from step to
// step are read from the step's block. If a gradient was not finite, the sweep changes no parameter and restores the
// running statistics that the forward pass has updated. It knows this at its start, because the kernels that complete
// gradients raise the flag.
//
// B0 (5.29 million parameters), fp16, RMSprop: 16 bytes read and 12 written of each, 148 MB, with the EMA 190 MB; and
// 6 for the copies of 3.15 million, 19 MB. Floor 56 µs a step at 3.0 TB/s, with the EMA 70 µs, for any batch size. A
// root, a reciprocal and some 22 fp32 instructions for each parameter take much less. Last measured share: not yet
// measured.
#include "numeric.cuh"
#include "reduction.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int CHUNK = THREADS * LANES;  // elements of a block

// WIDTH consecutive elements: a vector, or a single one after the last vector.
template <int WIDTH, typename T>
__device__ __forceinline__ void load(float (&out)[WIDTH], const T* from) {
    if constexpr (WIDTH == LANES) {
        load_lanes(out, from);
    } else {
        for (int i = 0; i < WIDTH; i++) out[i] = to_float(from[i]);
    }
}
template <int WIDTH, typename T>
__device__ __forceinline__ void store(T* to, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == LANES) {
        store_lanes(to, values);
    } else {
        for (int i = 0; i < WIDTH; i++) to[i] = from_float<T>(values[i]);
    }
}

// The first `count` of a thread's elements.
__device__ __forceinline__ void load_own(float (&out)[LANES], const float* from, int count) {
    if (count == LANES) return load(out, from);
    for (int i = 0; i < count; i++) out[i] = from[i];
}

// Number of a thread's elements, if `elements` are divided into chunks.
__device__ __forceinline__ int own_elements(size_t first, int elements) {
    const size_t all = elements, left = all > first ? all - first : 0;
    return left > LANES ? LANES : static_cast<int>(left);
}

}  // namespace

// trainable elements of each buffer and, in parameters, ema and running, `statistics` more after them. The first `frozen`
// and `frozen_statistics` of them stay as they are. `ema` may be null, and so may `decay_factors`: then each is 1. AdamW has
// its mean in `momentum`; the shares are 1 − beta, the logarithms those of the betas. `chunks`: those with elements that move.
#define OPTIMISER_UPDATE_FIELDS(F) \
    F(float*, parameters)          \
    F(const float*, gradients)     \
    F(float*, mean_square)         \
    F(float*, momentum)            \
    F(const float*, decay_factors) \
    F(float*, ema)                 \
    F(float*, running)             \
    F(const StepBlock*, block)     \
    F(int, trainable)              \
    F(int, frozen)                 \
    F(int, statistics)             \
    F(int, frozen_statistics)      \
    F(int, chunks)                 \
    F(float, alpha)                \
    F(float, momentum_factor)      \
    F(float, eps)                  \
    F(float, mean_share)           \
    F(float, square_share)         \
    F(float, mean_log)             \
    F(float, square_log)           \
    F(float, weight_decay)
ARGUMENTS(OptimiserUpdateArguments, OPTIMISER_UPDATE_FIELDS)

namespace {

// PyTorch's RMSprop adds epsilon after the root and multiplies the momentum by the learning rate. TensorFlow's adds
// epsilon under the root and multiplies the gradient by the learning rate.
enum class Rule { RmsPropPyTorch, RmsPropTensorFlow, Sgd, SgdNesterov, AdamW };

template <Rule RULE>
constexpr bool HAS_MEAN_SQUARE = RULE != Rule::Sgd && RULE != Rule::SgdNesterov;

// What AdamW multiplies its mean and the root of its mean square by, because both begin at 0: 1/(1 − beta1^t) and
// 1/√(1 − beta2^t), where t counts the steps that were not skipped.
struct Corrections {
    float mean = 1.0f, root = 1.0f;

    template <Rule RULE>
    static __device__ __forceinline__ Corrections of(const OptimiserUpdateArguments& args) {
        Corrections found;
        if constexpr (RULE == Rule::AdamW) {
            const float made = static_cast<float>(args.block->step - args.block->skipped + 1);
            found.mean = 1.0f / -expm1f(made * args.mean_log);
            found.root = 1.0f / sqrtf(-expm1f(made * args.square_log));
        }
        return found;
    }
};

__device__ __forceinline__ void move_by_adamw(
    const OptimiserUpdateArguments& args, const Corrections& corrections, float rate, float decay, float g, float& p,
    float& square, float& mean) {
    square = fmaf(args.square_share, g * g - square, square);
    mean = fmaf(args.mean_share, g - mean, mean);
    p = fmaf(-rate * decay, p, p);
    p -= rate * (mean * corrections.mean / fmaf(sqrtf(square), corrections.root, args.eps));
}

// Updates one parameter; `decay` is its weight decay.
template <Rule RULE>
__device__ __forceinline__ void move_parameter(
    const OptimiserUpdateArguments& args, const Corrections& corrections, float rate, float decay, float gradient,
    float& p, float& square, float& momentum) {
    if constexpr (RULE == Rule::AdamW) {
        return move_by_adamw(args, corrections, rate, decay, gradient, p, square, momentum);
    }
    const float g = fmaf(p, decay, gradient);
    if constexpr (HAS_MEAN_SQUARE<RULE>) {
        square = fmaf(g * (1.0f - args.alpha), g, square * args.alpha);
    }
    if constexpr (RULE == Rule::RmsPropPyTorch) {
        momentum = fmaf(momentum, args.momentum_factor, g / (sqrtf(square) + args.eps));
    } else if constexpr (RULE == Rule::RmsPropTensorFlow) {
        momentum = fmaf(momentum, args.momentum_factor, g * rate / sqrtf(square + args.eps));
    } else {
        momentum = fmaf(momentum, args.momentum_factor, g);
    }
    const float push = RULE == Rule::SgdNesterov ? fmaf(momentum, args.momentum_factor, g) : momentum;
    p -= RULE == Rule::RmsPropTensorFlow ? push : rate * push;
}

// WIDTH trainable elements from `at` on.
template <Rule RULE, int WIDTH>
__device__ __forceinline__ void update_parameters(const OptimiserUpdateArguments& args, size_t at) {
    float p[WIDTH], g[WIDTH], momentum[WIDTH], square[WIDTH] = {}, ema[WIDTH] = {}, weight_decay[WIDTH];
    load(p, args.parameters + at);
    load(g, args.gradients + at);
    load(momentum, args.momentum + at);
    if constexpr (HAS_MEAN_SQUARE<RULE>) load(square, args.mean_square + at);
    if (args.ema != nullptr) load(ema, args.ema + at);
    const bool by_parameter = args.decay_factors != nullptr;
    if (by_parameter) load(weight_decay, args.decay_factors + at);
    const float classifier_rate = args.block->learning_rate, body_rate = args.block->body_rate;
    const size_t body = args.block->body;
    const float decay = args.block->ema_decay;
    const float unscale = (1.0f / args.block->loss_scale) * args.block->clip_factor;
    const Corrections corrections = Corrections::of<RULE>(args);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        weight_decay[i] = by_parameter ? weight_decay[i] * args.weight_decay : args.weight_decay;
        const float gradient = g[i] * unscale;
        const float rate = at + i < body ? body_rate : classifier_rate;
        move_parameter<RULE>(args, corrections, rate, weight_decay[i], gradient, p[i], square[i], momentum[i]);
        ema[i] = fmaf(ema[i], decay, p[i] * (1.0f - decay));
    }
    store(args.parameters + at, p);
    store(args.momentum + at, momentum);
    if constexpr (HAS_MEAN_SQUARE<RULE>) store(args.mean_square + at, square);
    if (args.ema != nullptr) store(args.ema + at, ema);
}

// One running statistic: commits it to the parameters, or restores it from them.
__device__ __forceinline__ void update_statistic(const OptimiserUpdateArguments& args, int at, bool skip) {
    float* committed = args.parameters + args.trainable + at;
    if (skip) {
        args.running[at] = *committed;
        return;
    }
    const float now = args.running[at], decay = args.block->ema_decay;
    *committed = now;
    if (args.ema != nullptr) {
        float* ema = args.ema + args.trainable + at;
        *ema = fmaf(*ema, decay, now * (1.0f - decay));
    }
}

// The first `chunks` blocks have the trainable elements, the others the running statistics; both but for the frozen ones.
template <Rule RULE>
__device__ __forceinline__ void optimiser_update(const OptimiserUpdateArguments& args) {
    const bool skip = args.block->not_finite != 0;
    const int block = blockIdx.x;
    if (block < args.chunks) {
        const int chunk = block + args.frozen / CHUNK;
        const size_t first = static_cast<size_t>(chunk) * CHUNK + threadIdx.x * LANES;
        // Of the thread's elements, from `begin` to `count`: a border may be within a vector.
        const int begin = own_elements(first, args.frozen), count = own_elements(first, args.trainable);
        if (skip) return;
        if (count - begin == LANES) return update_parameters<RULE, LANES>(args, first);
        for (int i = begin; i < count; i++) update_parameters<RULE, 1>(args, first + i);
    } else {
        const int at = args.frozen_statistics + (block - args.chunks) * THREADS + threadIdx.x;
        if (at < args.statistics) update_statistic(args, at, skip);
    }
}

}  // namespace

KERNEL(optimiser_rmsprop_pytorch, THREADS, OptimiserUpdateArguments) { optimiser_update<Rule::RmsPropPyTorch>(args); }
KERNEL(optimiser_rmsprop_tensorflow, THREADS, OptimiserUpdateArguments) {
    optimiser_update<Rule::RmsPropTensorFlow>(args);
}
KERNEL(optimiser_sgd, THREADS, OptimiserUpdateArguments) { optimiser_update<Rule::Sgd>(args); }
KERNEL(optimiser_sgd_nesterov, THREADS, OptimiserUpdateArguments) { optimiser_update<Rule::SgdNesterov>(args); }
KERNEL(optimiser_adamw, THREADS, OptimiserUpdateArguments) { optimiser_update<Rule::AdamW>(args); }

// Sums of the squares of the gradients, one for each chunk: the first of two stages of their norm. No number of fp32
// overflows a double. 4 bytes read of each parameter: B0 21 MB, floor 7 µs at 3.0 TB/s. Two double operations each, which
// take an RTX 3080 about 23 µs.
#define OPTIMISER_SQUARES_FIELDS(F) \
    F(const float*, gradients)      \
    F(double*, squares)             \
    F(int, trainable)
ARGUMENTS(OptimiserSquaresArguments, OPTIMISER_SQUARES_FIELDS)

KERNEL(optimiser_squares, THREADS, OptimiserSquaresArguments) {
    SharedArena shared;
    double* totals = shared.take<double>(THREADS);
    const size_t first = static_cast<size_t>(blockIdx.x) * CHUNK + threadIdx.x * LANES;
    const int count = own_elements(first, args.trainable);
    float g[LANES] = {};
    load_own(g, args.gradients + first, count);
    double own = 0.0;
#pragma unroll
    for (int i = 0; i < LANES; i++) own += static_cast<double>(g[i]) * g[i];
    const double total = group_sum<1, THREADS>(own, totals);
    if (threadIdx.x == 0) args.squares[blockIdx.x] = total;
}

// The second stage, in one block: the norm, and from it what the update multiplies gradients by, as in PyTorch. If a
// gradient is not finite the norm is not either; then the update is skipped and uses no factor. Bytes: 8 for each of `chunks`
// sums (B0: 2,583), which the second-level cache has: only the time of a launch. Last measured share: not yet measured.
#define OPTIMISER_CLIP_FIELDS(F) \
    F(const double*, squares)    \
    F(StepBlock*, block)         \
    F(int, chunks)               \
    F(float, most)
ARGUMENTS(OptimiserClipArguments, OPTIMISER_CLIP_FIELDS)

KERNEL(optimiser_clip, THREADS, OptimiserClipArguments) {
    SharedArena shared;
    double* totals = shared.take<double>(THREADS);
    double own = 0.0;
    for (int chunk = threadIdx.x; chunk < args.chunks; chunk += THREADS) own += args.squares[chunk];
    const double total = group_sum<1, THREADS>(own, totals);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(total) / args.block->loss_scale;
    const double factor = args.most / (norm + 1e-6);
    args.block->gradient_norm = static_cast<float>(norm);
    args.block->clip_factor = factor < 1.0 ? static_cast<float>(factor) : 1.0f;
}

// After gradients were summed over ranks: raises the flag if a sum is not finite. Large gradients of the same sign
// may be finite on each rank and overflow fp32 in the sum. On one rank, the kernel that accumulates them would notice
// that. 4 bytes read of each parameter: B0 21 MB, floor 7 µs at 3.0 TB/s.
#define OPTIMISER_FINITE_FIELDS(F) \
    F(const float*, gradients)     \
    F(StepBlock*, block)           \
    F(int, trainable)
ARGUMENTS(OptimiserFiniteArguments, OPTIMISER_FINITE_FIELDS)

KERNEL(optimiser_finite, THREADS, OptimiserFiniteArguments) {
    const size_t first = static_cast<size_t>(blockIdx.x) * CHUNK + threadIdx.x * LANES;
    const int count = own_elements(first, args.trainable);
    float g[LANES] = {};
    load_own(g, args.gradients + first, count);
    bool finite = true;
#pragma unroll
    for (int i = 0; i < LANES; i++) finite = finite && is_finite(g[i]);
    if (!finite) raise_flag(&args.block->not_finite, 1);
}

// After the update: counts the step and clears the flag. With `dynamic` the loss scale halves on overflow and doubles
// after `growth_interval` good steps. It stays a power of two, so scaling rounds nothing.
#define OPTIMISER_SCALE_FIELDS(F) \
    F(StepBlock*, block)          \
    F(uint32_t, dynamic)          \
    F(uint32_t, growth_interval)
ARGUMENTS(OptimiserScaleArguments, OPTIMISER_SCALE_FIELDS)

KERNEL(optimiser_scale, 32, OptimiserScaleArguments) {
    constexpr float LEAST = 1.0f, MOST = 16777216.0f;  // 2^24
    if (threadIdx.x != 0) return;
    StepBlock& block = *args.block;
    const bool skipped = block.not_finite != 0;
    block.not_finite = 0;
    block.clip_factor = 1.0f;
    if (skipped) block.skipped++;
    if (args.dynamic == 0) return;
    block.good_steps = skipped ? 0 : block.good_steps + 1;
    if (skipped && block.loss_scale > LEAST) block.loss_scale *= 0.5f;
    if (block.good_steps >= args.growth_interval) {
        block.good_steps = 0;
        if (block.loss_scale < MOST) block.loss_scale *= 2.0f;
    }
}

// Copies the pointwise weights in the storage type, each tensor aligned. Each block copies one chunk; `table` has for
// each the first element among the weights, the first in the copy, and the number. Sources have any alignment, so
// elements are copied one by one; they are few compared with the activations (B0: 12 MB read, 6 MB written).
#define OPTIMISER_STORE_FIELDS(F) \
    F(const float*, weights)      \
    F(void*, storage)             \
    F(const uint32_t*, table)
ARGUMENTS(OptimiserStoreArguments, OPTIMISER_STORE_FIELDS)

namespace {

template <typename T>
__device__ __forceinline__ void optimiser_store(const OptimiserStoreArguments& args) {
    const uint32_t* chunk = args.table + 3 * static_cast<size_t>(blockIdx.x);
    const float* from = args.weights + chunk[0];
    T* to = static_cast<T*>(args.storage) + chunk[1];
    const int count = static_cast<int>(chunk[2]);
    for (int i = threadIdx.x; i < count; i += THREADS) to[i] = from_float<T>(from[i]);
}

}  // namespace

STORED_KERNELS(optimiser_store, THREADS, OptimiserStoreArguments)
