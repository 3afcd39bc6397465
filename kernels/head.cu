// The head: pooled = mean of silu(BN(y)), logits = (pooled·dropout)·Wᵀ + b, cross-entropy, and the way back to du at
// the last batch norm's output.
//
// y [N·P, C] is read once forward and once backward. A block has 256 channels (a warp's 32 lanes of 8) of one or a
// few images; its 8 warps divide the pixels. The classifier is three products of fp32 matrices (dense.cuh). If the
// depth is divided among blocks, the next reader adds the partial products: for the logits a small kernel, for the
// pooled gradient the kernel that computes du. The loss is in head_loss.cuh.
//
// B0 at a batch of 1 (7×7×1280, 1000 classes): forward reads y, 0.13 MB in fp16, and computes 63 k sigmoids and 1.3 M
// products; backward reads y and writes du, 0.25 MB, with 63 k sigmoids and 2.6 M products. The weight, 5.1 MB, is
// read once a batch forward; backward reads it once and reads and writes its gradient once. Floors at a batch of 256
// and 3.0 TB/s: 13 µs forward, 26 µs backward. The products need 11 and 22 µs on the fp32 units, in addition to the
// maps' time, because they are separate kernels; on an RTX 3080 they are bound by fp32, too (22 and 45 µs). Last
// measured share: not yet measured.
#include "dense.cuh"
#include "head_loss.cuh"
#include "reduction.cuh"
#include "step.cuh"

constexpr int POOL_THREADS = 256;
constexpr int POOL_WARPS = POOL_THREADS / WARP;
// Channels of a block: eight for each lane.
constexpr int SLICE = WARP * LANES;
static_assert(SLICE == POOL_THREADS, "at the end every thread has one channel");

// ---- forward ----------------------------------------------------------------------------------------------

// Eight channels' coefficients from one row of [4, C].
__device__ __forceinline__ void load_row(float (&out)[LANES], const float* coefficients, int row, int channels, int channel) {
    load_lanes(out, coefficients + static_cast<size_t>(row) * channels + channel);
}

// pooled [N, C] from y [N, P, C]. Grid: images, slices.
#define HEAD_POOL_FIELDS(F)       \
    F(const void*, y)             \
    F(const float*, coefficients) \
    F(float*, pooled)             \
    F(int, pixels)                \
    F(int, channels)
ARGUMENTS(HeadPoolArguments, HEAD_POOL_FIELDS)

template <typename T>
__device__ __forceinline__ void head_pool(const HeadPoolArguments& args) {
    SharedArena arena;
    float* sums = arena.take<float>(POOL_WARPS * SLICE);
    const int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    const int first = static_cast<int>(blockIdx.y) * SLICE, channel = first + lane * LANES;
    const size_t image = blockIdx.x, channels = args.channels;
    if (channel < args.channels) {
        float scale[LANES], shift[LANES], total[LANES] = {};
        load_row(scale, args.coefficients, SCALE, args.channels, channel);
        load_row(shift, args.coefficients, SHIFT, args.channels, channel);
        const T* y = static_cast<const T*>(args.y) + image * args.pixels * channels + channel;
#pragma unroll 4
        for (int pixel = warp; pixel < args.pixels; pixel += POOL_WARPS) {
            float values[LANES];
            load_lanes(values, y + pixel * channels);
#pragma unroll
            for (int i = 0; i < LANES; i++) total[i] += silu<T>(fmaf(scale[i], values[i], shift[i]));
        }
        store_lanes(sums + warp * SLICE + lane * LANES, total);
    }
    barrier();
    const int own = static_cast<int>(threadIdx.x);
    if (first + own < args.channels) {
        float total = 0.0f;
        for (int w = 0; w < POOL_WARPS; w++) total += sums[w * SLICE + own];
        args.pooled[image * channels + first + own] = total / static_cast<float>(args.pixels);
    }
}

STORED_KERNELS(head_pool, POOL_THREADS, HeadPoolArguments)

// Products whose depth is divided into parts of `depth_per_part`: partials [parts, rows, columns].
// Grid: columns/64, rows/64, parts.
#define HEAD_PRODUCT_FIELDS(F) \
    F(const float*, a)         \
    F(const float*, a_scale)   \
    F(const float*, b)         \
    F(float*, partials)        \
    F(int, rows)               \
    F(int, columns)            \
    F(int, depth)              \
    F(int, depth_per_part)
ARGUMENTS(HeadProductArguments, HEAD_PRODUCT_FIELDS)

template <bool B_INNER_DEPTH>
__device__ __forceinline__ void product(const HeadProductArguments& args) {
    SharedArena arena;
    const int first_row = static_cast<int>(blockIdx.y) * PRODUCT_TILE;
    const int first_column = static_cast<int>(blockIdx.x) * PRODUCT_TILE;
    const int part = static_cast<int>(blockIdx.z), begin = part * args.depth_per_part;
    const int end = begin + args.depth_per_part < args.depth ? begin + args.depth_per_part : args.depth;
    const Factor a = {args.a, args.a_scale, args.depth, args.rows};
    const Factor b = {args.b, nullptr, B_INNER_DEPTH ? args.depth : args.columns, args.columns};
    ProductTile tile;
    tile.run<true, B_INNER_DEPTH, false>(arena, a, b, first_row, first_column, begin, end);
    float* out = args.partials + static_cast<size_t>(part) * args.rows * args.columns;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = first_row + tile.row(i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int column = first_column + tile.column(j);
            if (row < args.rows && column < args.columns) {
                out[static_cast<size_t>(row) * args.columns + column] = tile.sums[i][j];
            }
        }
    }
}

// Features [N, C] (times dropout) by the weight [classes, C].
KERNEL_BLOCKS(head_logit_products, PRODUCT_THREADS, 4, HeadProductArguments) { product<true>(args); }
// dlogits [N, classes] by the weight [classes, C].
KERNEL_BLOCKS(head_feature_products, PRODUCT_THREADS, 3, HeadProductArguments) { product<false>(args); }

// logits [N, classes] = bias + Σ over the parts.
#define HEAD_LOGITS_FIELDS(F) \
    F(const float*, partials) \
    F(const float*, bias)     \
    F(float*, logits)         \
    F(int, images)            \
    F(int, classes)           \
    F(int, parts)
ARGUMENTS(HeadLogitsArguments, HEAD_LOGITS_FIELDS)

constexpr int LOGITS_THREADS = 256;

KERNEL(head_logits, LOGITS_THREADS, HeadLogitsArguments) {
    const size_t at = static_cast<size_t>(blockIdx.x) * LOGITS_THREADS + threadIdx.x;
    const size_t count = static_cast<size_t>(args.images) * args.classes;
    if (at < count) {
        float total = 0.0f;
        for (int part = 0; part < args.parts; part++) total += args.partials[part * count + at];
        args.logits[at] = total + args.bias[at % args.classes];
    }
}

// ---- backward ---------------------------------------------------------------------------------------------

// dW [classes, C] += dlogitsᵀ·(pooled·dropout), db += Σ dlogits; raises the step's flag if one is not finite.
// Grid: C/64, classes/64.
#define HEAD_WEIGHTS_FIELDS(F)    \
    F(StepBlock*, block)          \
    F(const float*, dlogits)      \
    F(const float*, pooled)       \
    F(const float*, dropout)      \
    F(float*, weight_gradient)    \
    F(float*, bias_gradient)      \
    F(int, images)                \
    F(int, channels)              \
    F(int, classes)
ARGUMENTS(HeadWeightsArguments, HEAD_WEIGHTS_FIELDS)

// Adds to a gradient; true if the result is not finite.
__device__ __forceinline__ bool grow(float* gradient, float old, float value) {
    const float total = old + value;
    *gradient = total;
    return !is_finite(total);
}

KERNEL_BLOCKS(head_weights, PRODUCT_THREADS, 4, HeadWeightsArguments) {
    SharedArena arena;
    const int first_class = static_cast<int>(blockIdx.y) * PRODUCT_TILE;
    const int first_channel = static_cast<int>(blockIdx.x) * PRODUCT_TILE;
    const Factor a = {args.dlogits, nullptr, args.classes, args.classes};
    const Factor b = {args.pooled, args.dropout, args.channels, args.channels};
    ProductTile tile;
    tile.run<false, false, true>(arena, a, b, first_class, first_channel, 0, args.images);
    // All that a thread adds to is loaded before it stores anything: a store might change what a later load reads.
    float old[8][4];
    const auto visit = [&](auto f) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = first_class + tile.row(i);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = first_channel + tile.column(j);
                const size_t at = static_cast<size_t>(row) * args.channels + column;
                if (row < args.classes && column < args.channels) f(args.weight_gradient + at, i, j);
            }
        }
    };
    visit([&](const float* gradient, int i, int j) { old[i][j] = *gradient; });
    bool broken = false;
    visit([&](float* gradient, int i, int j) { broken |= grow(gradient, old[i][j], tile.sums[i][j]); });
    const int row = first_class + static_cast<int>(threadIdx.x);
    if (blockIdx.x == 0 && threadIdx.x < PRODUCT_TILE && row < args.classes) {
        float* gradient = args.bias_gradient + row;
        broken |= grow(gradient, *gradient, tile.row_sum);
    }
    if (broken) raise_flag(&args.block->not_finite, 1);
}

// du [N·P, C] = dpooled·dropout/pixels·silu'(z), where dpooled is the sum of `splits` partials [splits, N, C]; and the
// part's Σdu and Σdu·ŷ: sums [parts, 2, C]. Grid: parts of `images_per_part` images, slices.
#define HEAD_BACKWARD_FIELDS(F)   \
    F(const void*, y)             \
    F(const float*, coefficients) \
    F(const float*, partials)     \
    F(const float*, dropout)      \
    F(void*, du)                  \
    F(float*, sums)               \
    F(int, images)                \
    F(int, images_per_part)       \
    F(int, pixels)                \
    F(int, channels)              \
    F(int, splits)
ARGUMENTS(HeadBackwardArguments, HEAD_BACKWARD_FIELDS)

// One warp's pixels of one image, eight channels a lane.
template <typename T>
struct MapGradient {
    float mean[LANES], r[LANES], scale[LANES], shift[LANES];
    float sum[LANES], sum_y[LANES];

    __device__ __forceinline__ void begin(const float* coefficients, int channels, int channel) {
        load_row(mean, coefficients, MEAN, channels, channel);
        load_row(r, coefficients, RECIPROCAL, channels, channel);
        load_row(scale, coefficients, SCALE, channels, channel);
        load_row(shift, coefficients, SHIFT, channels, channel);
#pragma unroll
        for (int i = 0; i < LANES; i++) sum[i] = sum_y[i] = 0.0f;
    }

    __device__ __forceinline__ void add(const T* y, T* du, const float (&d)[LANES]) {
        float values[LANES], out[LANES];
        load_lanes(values, y);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float value, slope;
            silu_and_slope<T>(fmaf(scale[i], values[i], shift[i]), value, slope);
            out[i] = rounded<T>(d[i] * slope);
            sum[i] += out[i];
            sum_y[i] = fmaf(out[i], (values[i] - mean[i]) * r[i], sum_y[i]);
        }
        store_lanes(du, out);
    }
};

// Writes the gradient at each pixel's activation of one image, for the slice's channels, to shared memory.
__device__ __forceinline__ void share_out(const HeadBackwardArguments& args, int image, int channel, float* shared) {
    if (channel < args.channels) {
        const size_t at = static_cast<size_t>(image) * args.channels + channel;
        const size_t split = static_cast<size_t>(args.images) * args.channels;
        float d = 0.0f;
        for (int s = 0; s < args.splits; s++) d += args.partials[s * split + at];
        if (args.dropout != nullptr) d *= args.dropout[at];
        shared[threadIdx.x] = d / static_cast<float>(args.pixels);
    }
}

template <typename T>
__device__ __forceinline__ void head_backward(const HeadBackwardArguments& args) {
    SharedArena arena;
    float* shared_d = arena.take<float>(SLICE);
    float* shared_sums = arena.take<float>(2 * POOL_WARPS * SLICE);
    const int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    const int first = static_cast<int>(blockIdx.y) * SLICE, channel = first + lane * LANES;
    const bool inside = channel < args.channels;
    const size_t channels = args.channels;
    MapGradient<T> map;
    if (inside) map.begin(args.coefficients, args.channels, channel);
    const int begin = static_cast<int>(blockIdx.x) * args.images_per_part;
    const int end = begin + args.images_per_part < args.images ? begin + args.images_per_part : args.images;
    for (int image = begin; image < end; image++) {
        share_out(args, image, first + static_cast<int>(threadIdx.x), shared_d);
        barrier();
        if (inside) {
            float d[LANES];
            load_lanes(d, shared_d + lane * LANES);
            const size_t start = static_cast<size_t>(image) * args.pixels * channels + channel;
            const T* y = static_cast<const T*>(args.y) + start;
            T* du = static_cast<T*>(args.du) + start;
#pragma unroll 2
            for (int pixel = warp; pixel < args.pixels; pixel += POOL_WARPS) {
                map.add(y + pixel * channels, du + pixel * channels, d);
            }
        }
        barrier();
    }
    if (inside) {
        store_lanes(shared_sums + warp * SLICE + lane * LANES, map.sum);
        store_lanes(shared_sums + (POOL_WARPS + warp) * SLICE + lane * LANES, map.sum_y);
    }
    barrier();
    const int own = first + static_cast<int>(threadIdx.x);
    if (own < args.channels) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float total = 0.0f;
            for (int w = 0; w < POOL_WARPS; w++) total += shared_sums[(row * POOL_WARPS + w) * SLICE + threadIdx.x];
            args.sums[(2 * static_cast<size_t>(blockIdx.x) + row) * channels + own] = total;
        }
    }
}

STORED_KERNELS(head_backward, POOL_THREADS, HeadBackwardArguments)
