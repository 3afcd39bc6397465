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
// squeezed·Wᵀ + b with W [S, C]: parts [N/8, slices, S, 8]. The last slice → hidden, and the gates if there is memory
// for them. `arrivals` [N/8, slices + 1].
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

// Adds the slices' parts [slices, S, IMAGES] to hidden, and writes its silu to `active` [2, S, HALF].
__device__ __forceinline__ void finish_hidden(
    const SqueezePoolArguments& args, const ImageGroup& group, const float* parts, float* active) {
    const int units = args.units;
    for (int at = threadIdx.x; at < IMAGES * units; at += THREADS) {
        const int unit = at / IMAGES, image = at % IMAGES;
        float total = 0.0f;
#pragma unroll 5
        for (int slice = 0; slice < static_cast<int>(gridDim.x); slice++) total += parts[slice * IMAGES * units + at];
        total += args.reduce_bias[unit];
        const bool there = image < group.count;
        if (there) args.hidden[static_cast<size_t>(group.first + image) * units + unit] = total;
        active[(image / HALF * units + unit) * HALF + image % HALF] = there ? silu<float>(total) : 0.0f;
    }
}

constexpr int COLUMNS = 2;                             // channels of a lane
constexpr int GATE_TILE = COLUMNS * (WARP / IMAGES);   // of a warp
constexpr int GATE_CHANNELS = WARPS * GATE_TILE;       // of a block's round

// gate [N, C] = sigmoid(active·Wᵀ + b) with W [C, S], for channels from `first` to `end`. Eight neighbouring lanes divide
// the units, so that they read whole sectors of the weights; then each lane has one image.
template <class Args>
__device__ __forceinline__ void write_gates(
    const Args& args, const ImageGroup& group, const float* active, int first, int end) {
    const int lane = threadIdx.x % WARP, own = lane % IMAGES, units = args.units;
    for (int base = first + threadIdx.x / WARP * GATE_TILE; base < end; base += GATE_CHANNELS) {
        const int channel = base + lane / IMAGES * COLUMNS;
        const bool inside = channel < args.channels;
        const float* weight = args.expand_weight + static_cast<size_t>(inside ? channel : 0) * units;
        float sum[COLUMNS][IMAGES] = {};
#pragma unroll 2
        for (int unit = own; unit < units; unit += IMAGES) {
            float w[COLUMNS], values[IMAGES];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) w[j] = weight[j * units + unit];
            load_images(values, active, units, unit);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) add_products(w[j], values, sum[j]);
        }
        float gate[COLUMNS];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) gate[j] = spread_sums<IMAGES, IMAGES>(sum[j]);
        if (!inside || own >= group.count) continue;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) gate[j] = sigmoid<float>(gate[j] + args.expand_bias[channel + j]);
        store_group(args.gate + static_cast<size_t>(group.first + own) * args.channels + channel, gate);
    }
}

// What the last blocks do once the pool's sums are there.
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
    if (!last_to_arrive(arrivals + slices, slices)) return;
    finish_hidden(args, group, parts, shared);
    barrier();
    if (args.gate != nullptr) write_gates(args, group, shared, 0, args.channels);
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
    finish_group(args, slice, count, sums);
}

}  // namespace

// Four blocks a multiprocessor keep enough loads under way for memory's full speed.
KERNEL_BLOCKS(squeeze_pool_f32, THREADS, 3, SqueezePoolArguments) { squeeze_pool<float>(args); }
KERNEL_BLOCKS(squeeze_pool_f16, THREADS, 4, SqueezePoolArguments) { squeeze_pool<f16>(args); }
KERNEL_BLOCKS(squeeze_pool_bf16, THREADS, 4, SqueezePoolArguments) { squeeze_pool<bf16>(args); }

// The gates where the layer is too large for one block: one has GATE_CHANNELS channels.
#define SQUEEZE_GATE_FIELDS(F)     \
    F(const float*, hidden)        \
    F(const float*, expand_weight) \
    F(const float*, expand_bias)   \
    F(float*, gate)                \
    F(int, images)                 \
    F(int, channels)               \
    F(int, units)
ARGUMENTS(SqueezeGateArguments, SQUEEZE_GATE_FIELDS)

KERNEL(squeeze_gate, THREADS, SqueezeGateArguments) {
    SharedArena shared;
    float* active = shared.take<float>(IMAGES * args.units);
    const ImageGroup group(blockIdx.x, args.images);
    for (int at = threadIdx.x; at < IMAGES * args.units; at += THREADS) {
        const GroupElement of(at, args.units);
        const float* hidden = args.hidden + static_cast<size_t>(group.first + of.image) * args.units + of.row;
        active[at] = of.image < group.count ? silu<float>(*hidden) : 0.0f;
    }
    barrier();
    const int first = blockIdx.y * GATE_CHANNELS, end = first + GATE_CHANNELS;
    write_gates(args, group, active, first, end < args.channels ? end : args.channels);
}
