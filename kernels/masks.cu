// Stochastic-depth and dropout factors: Philox4x32-10 (Salmon et al. 2011), with the same counters and the same bits
// as `src/random.rs`. A factor is a pure function of (seed, position of the sample, step, layer). So it does not
// depend on how the batch is divided, and a captured graph draws new factors in every step: the seed, the step and
// the position of the micro-batch's first sample are read from the step's block.
//
// One launch draws all masks of a micro-batch: the first blocks those of stochastic depth, one after the other, the rest that
// of dropout.
//
// Bytes: 4 a factor. B0 at a batch of 1: 9 masks of one factor and 1280 of dropout: only the time of the launch.
// Last measured share: not yet measured.
#include "step.cuh"

constexpr int MASK_THREADS = 128;

// `Purpose` of src/random.rs.
constexpr uint32_t DROPOUT = 3;
constexpr uint32_t DROP_PATH = 4;

struct Draw {
    uint32_t v[4];
};

// Four draws of 32 bits. `index` is the sample's position, `layer` is below 65,536.
__device__ __forceinline__ Draw draw(const StepBlock* block, uint64_t index, uint32_t purpose, uint32_t layer) {
    uint32_t key0 = static_cast<uint32_t>(block->seed), key1 = static_cast<uint32_t>(block->seed >> 32);
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
    uint32_t c2 = block->step, c3 = purpose << 16 | layer;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t{0xD2511F53u} * c0;
        const uint64_t b = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key0;
        c1 = static_cast<uint32_t>(b);
        c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key1;
        c3 = static_cast<uint32_t>(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// 0 if the draw, as a number in [0, 1) of 24 bits, is below the rate.
__device__ __forceinline__ float factor(uint32_t bits, float rate, float kept) {
    return static_cast<float>(bits >> 8) * (1.0f / 16777216.0f) < rate ? 0.0f : kept;
}

// Masks of stochastic depth that one launch draws at most: B7 has 48.
constexpr int MOST_MASKS = 64;

struct MaskPointers {
    float* v[MOST_MASKS];
};
struct MaskLayers {
    uint32_t v[MOST_MASKS];
};
struct MaskRates {
    float v[MOST_MASKS];
};

// Stochastic depth of `masks` blocks: keep [N] each. Dropout: dropout [N, C], or null. `kept` is 1/(1−rate).
#define MASKS_FIELDS(F)        \
    F(const StepBlock*, block) \
    F(int, images)             \
    F(int, masks)              \
    F(MaskPointers, keep)      \
    F(MaskLayers, layer)       \
    F(MaskRates, rate)         \
    F(MaskRates, kept)         \
    F(float*, dropout)         \
    F(int, channels)           \
    F(float, dropout_rate)     \
    F(float, dropout_kept)
ARGUMENTS(MasksArguments, MASKS_FIELDS)

namespace {

__device__ __forceinline__ void draw_depth(const MasksArguments& args, int mask, int image) {
    if (image >= args.images) return;
    const Draw bits = draw(args.block, args.block->first_position + image, DROP_PATH, args.layer.v[mask]);
    args.keep.v[mask][image] = factor(bits.v[0], args.rate.v[mask], args.kept.v[mask]);
}

// The factors of four features, from one draw.
__device__ __forceinline__ void draw_dropout(const MasksArguments& args, size_t at) {
    const int groups = (args.channels + 3) / 4;
    const int image = static_cast<int>(at / groups), group = static_cast<int>(at % groups);
    if (image >= args.images) return;
    const Draw bits = draw(args.block, args.block->first_position + image, DROPOUT, group);
    float* mask = args.dropout + static_cast<size_t>(image) * args.channels + 4 * group;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (4 * group + i < args.channels) mask[i] = factor(bits.v[i], args.dropout_rate, args.dropout_kept);
    }
}

}  // namespace

KERNEL(masks, MASK_THREADS, MasksArguments) {
    const int block = blockIdx.x, thread = threadIdx.x;
    const int blocks = (args.images + MASK_THREADS - 1) / MASK_THREADS, depth = args.masks * blocks;
    if (block < depth) {
        draw_depth(args, block / blocks, block % blocks * MASK_THREADS + thread);
    } else {
        draw_dropout(args, static_cast<size_t>(block - depth) * MASK_THREADS + thread);
    }
}
