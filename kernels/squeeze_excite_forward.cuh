// Squeeze-excite forward, and what both passes share. See squeeze_excite.cu.
#pragma once

#include "numeric.cuh"
#include "reduction.cuh"

namespace {

constexpr int THREADS = SWEEP_THREADS;
constexpr int WARPS = THREADS / WARP;
constexpr int IMAGES = 8;         // of a group, for all of which a weight is read once
constexpr int HALF = IMAGES / 2;  // of them: 16 bytes of floats
static_assert(IMAGES == LANES && IMAGES == WARPS, "how threads divide the images");

// One number of each image of a group, for every row: [2, rows, HALF] in shared memory. So rows of a half are 16 bytes
// apart, and neighbouring lanes read neighbouring rows without bank conflicts; 32 bytes apart they would meet two by two.
__device__ __forceinline__ void load_images(float (&out)[IMAGES], const float* values, int rows, int row) {
    float halves[2][HALF];
#pragma unroll
    for (int half = 0; half < 2; half++) load_lanes(halves[half], values + (half * rows + row) * HALF);
#pragma unroll
    for (int i = 0; i < IMAGES; i++) out[i] = halves[i / HALF][i % HALF];
}
__device__ __forceinline__ void store_images(float* values, int rows, int row, const float (&images)[IMAGES]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float part[HALF];
#pragma unroll
        for (int i = 0; i < HALF; i++) part[i] = images[half * HALF + i];
        store_group(values + (half * rows + row) * HALF, part);
    }
}
// What element `at` of such values is.
struct GroupElement {
    int row, image;

    __device__ __forceinline__ GroupElement(int at, int rows)
        : row((at >= HALF * rows ? at - HALF * rows : at) / HALF), image((at >= HALF * rows ? HALF : 0) + at % HALF) {}
};

__device__ __forceinline__ void add_products(float weight, const float (&values)[IMAGES], float* sum) {
#pragma unroll
    for (int i = 0; i < IMAGES; i++) sum[i] = fmaf(weight, values[i], sum[i]);
}

// The sums of N values over WIDTH neighbouring lanes: lane l of them gets sum l·N/WIDTH. Each step halves the values
// that a lane still has, so it takes about N shuffles and not N·log2(WIDTH).
template <int N, int WIDTH>
__device__ __forceinline__ float spread_sums(float (&part)[N]) {
    const int lane = threadIdx.x % WARP;
    int left = N;
#pragma unroll
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) {
        if (left == 1) {
            part[0] += shuffle_xor(part[0], mask);
            continue;
        }
        left /= 2;
        const bool upper = lane & mask;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= left) break;
            const float kept = upper ? part[i + left] : part[i], given = upper ? part[i] : part[i + left];
            part[i] = kept + shuffle_xor(given, mask);
        }
    }
    return part[0];
}

// A group of eight images, of which the last one may have fewer.
struct ImageGroup {
    int number, first, count;

    __device__ __forceinline__ ImageGroup(int number, int images)
        : number(number), first(number * IMAGES), count(images - first < IMAGES ? images - first : IMAGES) {}
};

}  // namespace

// y [N, P, C] → partials [N, splits, C], sums over `run` pixels. A block has `rows` rows of `width` vectors, that is a
// slice of channels. Its last block for a group of images → squeezed [N, C], and the slice's part of hidden [N, S] =
// squeezed·Wᵀ + b with W [S, C]: parts [N/8, slices, S, 8]. The last slice → hidden and the gates, unless `gate` is null:
// then squeeze_gate does. `arrivals` [N/8, slices + 1].
#define SQUEEZE_POOL_FIELDS(F)      \
    F(const void*, y)               \
    F(const float*, coefficients)   \
    F(float*, partials)             \
    F(float*, parts)                \
    F(unsigned*, arrivals)          \
    F(const float*, reduce_weight)  \
    F(const float*, reduce_bias)    \
    F(const float*, expand_weight)  \
    F(const float*, expand_bias)    \
    F(float*, squeezed)             \
    F(float*, hidden)               \
    F(float*, gate)                 \
    F(int, images)                  \
    F(int, pixels)                  \
    F(int, channels)                \
    F(int, units)                   \
    F(int, width)                   \
    F(int, rows)                    \
    F(int, run)                     \
    F(float, inverse_pixels)
ARGUMENTS(SqueezePoolArguments, SQUEEZE_POOL_FIELDS)

namespace {

// Adds silu(BN(y)) of pixels first, first + rows, … < end, in pairs of pairs.
template <typename T>
__device__ __forceinline__ void pool_pixels(
    const SqueezePoolArguments& args, const T* image, int channel, int first, int end, float (&sum)[LANES]) {
    float scale[LANES], shift[LANES];
    load_lanes(scale, args.coefficients + SCALE * args.channels + channel);
    load_lanes(shift, args.coefficients + SHIFT * args.channels + channel);
    constexpr int BATCH = 4;
    for (; first < end; first += BATCH * args.rows) {
        float y[BATCH][LANES];
        bool there[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int pixel = first + u * args.rows;
            there[u] = pixel < end;
            load_lanes(y[u], image + static_cast<size_t>(there[u] ? pixel : first) * args.channels + channel);
        }
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float a[BATCH];
#pragma unroll
            for (int u = 0; u < BATCH; u++) a[u] = there[u] ? silu<T>(fmaf(scale[i], y[u][i], shift[i])) : 0.0f;
            sum[i] += (a[0] + a[1]) + (a[2] + a[3]);
        }
    }
}

// Writes the means of the group's images to memory and to `means` [2, count, HALF], for `count` channels from `first` on.
__device__ __forceinline__ void finish_pool(
    const SqueezePoolArguments& args, const ImageGroup& group, int first, int count, float* means) {
    const int own = threadIdx.x;
    if (own >= count) return;
    const size_t channels = args.channels, image = gridDim.y * channels;
    const float* part = args.partials + group.first * image + first + own;
    float sum[IMAGES] = {};
#pragma unroll 4
    for (int split = 0; split < static_cast<int>(gridDim.y); split++) {
#pragma unroll
        for (int i = 0; i < IMAGES; i++) {
            if (i < group.count) sum[i] += part[i * image];
        }
        part += channels;
    }
    float* squeezed = args.squeezed + group.first * channels + first + own;
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
        sum[i] *= args.inverse_pixels;
        if (i < group.count) squeezed[i * channels] = sum[i];
    }
    store_images(means, count, own, sum);
}

// Writes what `count` channels from `first` on add to all hidden units: `part` [S, IMAGES]. A warp has two units, its
// lanes divide the channels.
__device__ __forceinline__ void add_slice(
    const SqueezePoolArguments& args, const float* means, int first, int count, float* part) {
    constexpr int STEPS = THREADS / WARP, TOGETHER = 2;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, units = args.units;
    for (int unit = TOGETHER * warp; unit < units; unit += TOGETHER * WARPS) {
        const float* weight = args.reduce_weight + static_cast<size_t>(unit) * args.channels + first;
        const int other = unit + 1 < units ? args.channels : 0;
        float w[STEPS][TOGETHER], sum[TOGETHER * IMAGES] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int c = step * WARP + lane;
            w[step][0] = c < count ? weight[c] : 0.0f;
            w[step][1] = c < count ? weight[other + c] : 0.0f;
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int c = step * WARP + lane;
            if (step * WARP >= count) break;
            float mean[IMAGES];
            load_images(mean, means, count, c < count ? c : 0);
            add_products(w[step][0], mean, sum);
            add_products(w[step][1], mean, sum + IMAGES);
        }
        const float total = spread_sums<TOGETHER * IMAGES, WARP>(sum);
        if (lane % 2 == 0 && unit + lane / (2 * IMAGES) < units) part[unit * IMAGES + lane / 2] = total;
    }
}

// Adds the slices' parts [slices, S, IMAGES] to hidden, writes it if `write`, and its silu to `active` [2, S, HALF].
template <class Args>
__device__ __forceinline__ void finish_hidden(
    const Args& args, const ImageGroup& group, const float* parts, int slices, bool write, float* active) {
    const int units = args.units;
    for (int at = threadIdx.x; at < IMAGES * units; at += THREADS) {
        const int unit = at / IMAGES, image = at % IMAGES;
        float total = 0.0f;
#pragma unroll 5
        for (int slice = 0; slice < slices; slice++) total += parts[slice * IMAGES * units + at];
        total += args.reduce_bias[unit];
        const bool there = image < group.count;
        if (there && write) args.hidden[static_cast<size_t>(group.first + image) * units + unit] = total;
        active[(image / HALF * units + unit) * HALF + image % HALF] = there ? silu<float>(total) : 0.0f;
    }
}

constexpr int COLUMNS = 2;                             // channels of a lane
constexpr int GATE_TILE = COLUMNS * (WARP / IMAGES);   // of a warp
constexpr int GATE_CHANNELS = WARPS * GATE_TILE;       // of a block's round
static_assert(GATE_TILE == LANES, "a warp's channels all exist, or none does");

// The weights of a lane's channels for every eighth unit: all loads are under way at once.
struct GateWeights {
    static constexpr int STEPS = 3;
    float w[STEPS][COLUMNS];

    template <class Args>
    __device__ __forceinline__ void load(const Args& args, int channel, int unit) {
        const float* weight = args.expand_weight + static_cast<size_t>(channel) * args.units + unit;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const bool there = unit + step * IMAGES < args.units;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) w[step][j] = there ? weight[j * args.units + step * IMAGES] : 0.0f;
        }
    }
};

// gate [N, C] = sigmoid(active·Wᵀ + b) with W [C, S], for channels from `first` to `end`. Eight neighbouring lanes divide
// the units, so that they read whole sectors of the weights; then each lane has one image. While a lane computes, its next
// weights are under way.
template <typename T, class Args>
__device__ __forceinline__ void write_gates(
    const Args& args, const ImageGroup& group, const float* active, int first, int end) {
    constexpr int PIECE = GateWeights::STEPS * IMAGES;
    const int own = threadIdx.x % IMAGES, units = args.units;
    int channel = first + threadIdx.x / IMAGES * COLUMNS, from = 0;
    if (channel >= end) return;
    float sum[COLUMNS][IMAGES] = {};
    GateWeights weights;
    weights.load(args, channel, own);
    while (channel < end) {
        const bool whole = from + PIECE >= units;
        const int next_channel = whole ? channel + GATE_CHANNELS : channel, next_from = whole ? 0 : from + PIECE;
        float bias[COLUMNS];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) bias[j] = args.expand_bias[channel + j];
        GateWeights next = {};
        if (next_channel < end) next.load(args, next_channel, next_from + own);
#pragma unroll
        for (int step = 0; step < GateWeights::STEPS; step++) {
            const int unit = from + step * IMAGES;
            if (unit >= units) break;
            float values[IMAGES];
            load_images(values, active, units, unit + own < units ? unit + own : 0);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) add_products(weights.w[step][j], values, sum[j]);
        }
        if (whole) {
            float gate[COLUMNS];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                gate[j] = sigmoid<T>(spread_sums<IMAGES, IMAGES>(sum[j]) + bias[j]);
#pragma unroll
                for (int i = 0; i < IMAGES; i++) sum[j][i] = 0.0f;
            }
            if (own < group.count) {
                store_group(args.gate + static_cast<size_t>(group.first + own) * args.channels + channel, gate);
            }
        }
        weights = next;
        channel = next_channel;
        from = next_from;
    }
}

// What the last blocks do once the pool's sums are there.
template <typename T>
__device__ __forceinline__ void finish_group(const SqueezePoolArguments& args, int first, int count, float* shared) {
    const ImageGroup group(blockIdx.z / IMAGES, args.images);
    const int slices = gridDim.x;
    unsigned* arrivals = args.arrivals + group.number * (slices + 1);
    if (!last_to_arrive(arrivals + blockIdx.x, group.count * gridDim.y)) return;
    finish_pool(args, group, first, count, shared);
    barrier();
    const size_t part = static_cast<size_t>(IMAGES) * args.units;
    float* parts = args.parts + group.number * slices * part;
    add_slice(args, shared, first, count, parts + blockIdx.x * part);
    if (args.gate == nullptr) return;
    if (slices == 1) {
        barrier();
    } else if (!last_to_arrive(arrivals + slices, slices)) {
        return;
    }
    finish_hidden(args, group, parts, slices, true, shared);
    barrier();
    write_gates<T>(args, group, shared, 0, args.channels);
}

template <typename T>
__device__ __forceinline__ void squeeze_pool(const SqueezePoolArguments& args) {
    SharedArena shared;
    const int thread = threadIdx.x, vector = thread % args.width, row = thread / args.width;
    const int wide = args.width * LANES, slice = blockIdx.x * wide, channel = slice + vector * LANES;
    float* sums = shared.take<float>(THREADS * LANES > IMAGES * args.units ? THREADS * LANES : IMAGES * args.units);
    const int begin = blockIdx.y * args.run;
    const int end = args.pixels - begin > args.run ? begin + args.run : args.pixels;
    const T* image = static_cast<const T*>(args.y) + static_cast<size_t>(blockIdx.z) * args.pixels * args.channels;
    float sum[LANES] = {};
    if (row < args.rows && channel < args.channels) pool_pixels(args, image, channel, begin + row, end, sum);
    store_lanes(sums + thread * LANES, sum);
    barrier();
    const int count = args.channels - slice < wide ? args.channels - slice : wide;
    if (thread < count) {
        float total = 0.0f;
        for (int row = 0; row < args.rows; row++) total += sums[row * wide + thread];
        const size_t part = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
        args.partials[part * args.channels + slice + thread] = total;
    }
    finish_group<T>(args, slice, count, sums);
}

}  // namespace

// Four blocks a multiprocessor keep enough loads under way for memory's full speed.
KERNEL_BLOCKS(squeeze_pool_f32, THREADS, 3, SqueezePoolArguments) { squeeze_pool<float>(args); }
KERNEL_BLOCKS(squeeze_pool_f16, THREADS, 4, SqueezePoolArguments) { squeeze_pool<f16>(args); }
KERNEL_BLOCKS(squeeze_pool_bf16, THREADS, 4, SqueezePoolArguments) { squeeze_pool<bf16>(args); }

// Hidden units and gates where the layer is too large for one block: a block has a group of images and GATE_CHANNELS
// channels, and adds up the hidden units itself.
#define SQUEEZE_GATE_FIELDS(F)     \
    F(const float*, parts)         \
    F(const float*, reduce_bias)   \
    F(const float*, expand_weight) \
    F(const float*, expand_bias)   \
    F(float*, hidden)              \
    F(float*, gate)                \
    F(int, images)                 \
    F(int, channels)               \
    F(int, units)                  \
    F(int, slices)
ARGUMENTS(SqueezeGateArguments, SQUEEZE_GATE_FIELDS)

KERNEL(squeeze_gate, THREADS, SqueezeGateArguments) {
    SharedArena shared;
    float* active = shared.take<float>(IMAGES * args.units);
    const ImageGroup group(blockIdx.x, args.images);
    const float* parts = args.parts + static_cast<size_t>(group.number) * args.slices * IMAGES * args.units;
    finish_hidden(args, group, parts, args.slices, blockIdx.y == 0, active);
    barrier();
    const int first = blockIdx.y * GATE_CHANNELS, end = first + GATE_CHANNELS;
    write_gates<float>(args, group, active, first, end < args.channels ? end : args.channels);
}
