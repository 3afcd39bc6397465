// Backward of the projection: tiles aligned to images, the five sums, and the kernels for many narrow channels. If the
// accumulators of the weights' gradient fit, one sweep makes both gradients instead, see project_sweep.cuh.
//
// Bytes, operations and floors at B0's shapes: project.cu.
#pragma once

#include "pointwise_backward.cuh"

//   dout, y [rows, outputs], weight [outputs, inputs], coefficients [4, outputs] and sums [2, outputs] of y's batch
//   norm, keep [images] or null; x [rows, inputs], input_coefficients [4, inputs], gate [images, inputs];
//   da [rows, inputs], five_sums [segments, 5, images, inputs], partials [gridDim.y, outputs, inputs].
// Grid: (slices of `slice` channels of x, which are neighbours because they read the same dout and y; parts of the
// rows). A part is one of `segments` segments of an image or, if that is 1, `group` images.
#define PROJECT_BACKWARD_FIELDS(F)      \
    F(const void*, dout)                \
    F(const void*, y)                   \
    F(const void*, weight)              \
    F(const float*, coefficients)       \
    F(const float*, sums)               \
    F(const float*, keep)               \
    F(const void*, x)                   \
    F(const float*, input_coefficients) \
    F(const float*, gate)               \
    F(void*, da)                        \
    F(float*, five_sums)                \
    F(float*, partials)                 \
    F(int, images)                      \
    F(int, pixels)                      \
    F(int, inputs)                      \
    F(int, outputs)                     \
    F(int, slice)                       \
    F(int, segments)                    \
    F(int, group)                       \
    F(float, inverse_rows)
ARGUMENTS(ProjectBackwardArguments, PROJECT_BACKWARD_FIELDS)

//   The weights' gradient alone. slice: channels of dy of a block. Grid as in WeightPiece.
#define PROJECT_BACKWARD_WEIGHTS_FIELDS(F) \
    F(const void*, dout)                   \
    F(const void*, y)                      \
    F(const float*, coefficients)          \
    F(const float*, sums)                  \
    F(const float*, keep)                  \
    F(const void*, x)                      \
    F(const float*, input_coefficients)    \
    F(const float*, gate)                  \
    F(float*, partials)                    \
    F(int, rows)                           \
    F(int, pixels)                         \
    F(int, inputs)                         \
    F(int, outputs)                        \
    F(int, slice)                          \
    F(float, inverse_rows)
ARGUMENTS(ProjectBackwardWeightsArguments, PROJECT_BACKWARD_WEIGHTS_FIELDS)

// ---- tiles aligned to images -------------------------------------------------------------------------------

// The block's tiles of at most ROWS rows. A tile is within one image or, if several images fit, has whole images.
template <int ROWS>
struct ImageTiles {
    int pixels, whole;  // rows of an image, images of a tile
    int image, last_image, row, first_row, end_row;

    __device__ __forceinline__ explicit ImageTiles(const ProjectBackwardArguments& args) : pixels(args.pixels) {
        const int part = blockIdx.y, segments = args.segments;
        whole = pixels <= ROWS / 2 ? ROWS / pixels : 1;
        if (segments > 1) {
            const int tiles = (pixels + ROWS - 1) / ROWS, segment = part % segments;
            image = part / segments;
            last_image = image + 1;
            first_row = tiles * segment / segments * ROWS;
            end_row = tiles * (segment + 1) / segments * ROWS;
            if (end_row > pixels) end_row = pixels;
        } else {
            image = part * args.group;
            last_image = image + args.group < args.images ? image + args.group : args.images;
            first_row = 0;
            end_row = pixels;
        }
        row = first_row;
    }
    __device__ __forceinline__ bool done() const { return image >= last_image; }
    __device__ __forceinline__ void next() {
        row += ROWS;
        if (whole > 1 || row >= end_row) {
            row = first_row;
            image += whole;
        }
    }
    __device__ __forceinline__ int images() const { return last_image - image < whole ? last_image - image : whole; }
    __device__ __forceinline__ int start() const { return image * pixels + row; }
    __device__ __forceinline__ int rows() const {
        if (whole > 1) return images() * pixels;
        return end_row - row < ROWS ? end_row - row : ROWS;
    }
    __device__ __forceinline__ bool begins_image() const { return row == first_row; }
    __device__ __forceinline__ bool ends_image() const { return row + ROWS >= end_row; }
};

// The factor of a tile's row.
template <int ROWS>
struct KeepFactor {
    const float* keep;  // at the tile's first image, or null
    int pixels;         // 0 if the tile is within an image

    __device__ __forceinline__ KeepFactor(const float* all, const ImageTiles<ROWS>& at)
        : keep(all == nullptr ? nullptr : all + at.image), pixels(at.whole > 1 ? at.pixels : 0) {}
    __device__ __forceinline__ float operator()(int row) const {
        if (keep == nullptr) return 1.0f;
        return keep[pixels == 0 ? 0 : row / pixels];
    }
};

// ---- the five sums ----------------------------------------------------------------------------------------

// A thread has two channels of the slice in every `groups`-th row of a tile; da and x are in shared memory. Between
// tiles its sums are kept in shared memory too, until the image (or the block's segment of it) ends, because the
// products need the registers. If a tile has several images, each is summed by one thread.
template <typename T, int ROWS, int STRIDE, int THREADS>
struct FiveSums {
    static constexpr int IDLE = 1 << 30, COUNT = 5, SCRATCH = 2 * COUNT * THREADS;

    const ProjectBackwardArguments& args;
    float* scratch;  // [groups, 5, width]
    int first, width, column, group, groups;  // the slice's channels; this thread's two and its first row

    using Sums = float[COUNT][2];
    // A thread's numbers of its channels, loaded again for each tile so that they take no registers during the
    // products.
    struct Channels {
        float scale[2], shift[2], mean[2], r[2], gate[2];

        __device__ __forceinline__ Channels(const ProjectBackwardArguments& args, int channel, int image) {
            const float* from = args.input_coefficients + channel;
            load_pair(scale, from + SCALE * args.inputs);
            load_pair(shift, from + SHIFT * args.inputs);
            load_pair(mean, from + MEAN * args.inputs);
            load_pair(r, from + RECIPROCAL * args.inputs);
            load_pair(gate, args.gate + static_cast<size_t>(image) * args.inputs + channel);
        }
    };

    __device__ __forceinline__ FiveSums(const ProjectBackwardArguments& args, int first, int width, SharedArena& arena)
        : args(args), scratch(arena.take<float>(SCRATCH)), first(first), width(width) {
        const int pairs = width / 2;
        groups = THREADS / pairs;
        column = static_cast<int>(threadIdx.x) % pairs * 2;
        group = threadIdx.x / pairs;
        if (group >= groups) group = IDLE;
    }
    // Adds one row. With ACTIVATE, x is replaced by silu(BN(x))·gate.
    template <bool ACTIVATE>
    __device__ __forceinline__ static void add(Sums& sums, const Channels& of, const T* da, T* x) {
        float gradient[2], value[2], a[2];
        load_pair(gradient, da);
        load_pair(value, x);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float slope;
            silu_and_slope<T>(fmaf(of.scale[i], value[i], of.shift[i]), a[i], slope);
            const float normal = (value[i] - of.mean[i]) * of.r[i], product = gradient[i] * slope;
            sums[0][i] = fmaf(gradient[i], a[i], sums[0][i]);
            sums[1][i] += product;
            sums[2][i] += slope;
            sums[3][i] = fmaf(product, normal, sums[3][i]);
            sums[4][i] = fmaf(slope, normal, sums[4][i]);
        }
        if constexpr (ACTIVATE) store_pair(x, a[0] * of.gate[0], a[1] * of.gate[1]);
    }
    __device__ __forceinline__ float* at(int sum, int image) const {
        const int segment = args.segments > 1 ? static_cast<int>(blockIdx.y) % args.segments : 0;
        const size_t line = static_cast<size_t>(segment * COUNT + sum) * args.images + image;
        return args.five_sums + line * args.inputs + first;
    }
    template <bool ACTIVATE>
    __device__ __forceinline__ void add_small_images(const ImageTiles<ROWS>& tile, const T* da, T* x) const {
        for (int own = group; own < tile.images(); own += groups) {
            const Channels of(args, first + column, tile.image + own);
            Sums sums = {};
#pragma unroll 1
            for (int row = own * tile.pixels; row < (own + 1) * tile.pixels; row++)
                add<ACTIVATE>(sums, of, da + row * STRIDE + column, x + row * STRIDE + column);
#pragma unroll
            for (int i = 0; i < COUNT; i++) store_pair(at(i, tile.image + own) + column, sums[i][0], sums[i][1]);
        }
    }
    template <bool ACTIVATE>
    __device__ __forceinline__ void add_tile(const ImageTiles<ROWS>& tile, const T* da, T* x) const {
        if (tile.whole > 1) return add_small_images<ACTIVATE>(tile, da, x);
        if (group >= groups) return;
        const Channels of(args, first + column, tile.image);
        float* own = scratch + group * COUNT * width + column;
        Sums sums = {};
        if (!tile.begins_image()) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) load_pair(sums[i], own + i * width);
        }
        const int rows = tile.rows();
#pragma unroll 2
        for (int row = group; row < rows; row += groups)
            add<ACTIVATE>(sums, of, da + row * STRIDE + column, x + row * STRIDE + column);
#pragma unroll
        for (int i = 0; i < COUNT; i++) store_pair(own + i * width, sums[i][0], sums[i][1]);
    }
    // Call after a barrier; another must follow before the next tile is added.
    __device__ __forceinline__ void finish_tile(const ImageTiles<ROWS>& tile) const {
        if (tile.whole > 1 || !tile.ends_image()) return;
#pragma unroll 1
        for (int own = threadIdx.x; own < COUNT * width; own += THREADS) {
            float sum = 0.0f;
#pragma unroll 1
            for (int other = 0; other < groups; other++) sum += scratch[other * COUNT * width + own];
            at(own / width, tile.image)[own % width] = sum;
        }
    }
};

// Copies tiles of x into shared memory and tiles of da out of it, in whole vectors.
template <typename T, int ROWS, int SLICE, int THREADS>
struct SliceRows {
    static constexpr int STRIDE = ROW_STRIDE<T, SLICE>, SIZE = ROWS * STRIDE, OCTETS = SLICE / LANES;

    const T* x;  // at the slice's first channel
    T* da;
    int inputs, width;

    __device__ __forceinline__ SliceRows(const ProjectBackwardArguments& args, int first, int width)
        : x(static_cast<const T*>(args.x) + first),
          da(static_cast<T*>(args.da) + first),
          inputs(args.inputs),
          width(width) {}

    __device__ __forceinline__ void begin(T* tile, const ImageTiles<ROWS>& at) const {
        const size_t start = static_cast<size_t>(at.start()) * inputs;
        const int rows = at.rows();
#pragma unroll 1
        for (int unit = threadIdx.x; unit < ROWS * OCTETS; unit += THREADS) {
            const int row = unit / OCTETS, column = unit % OCTETS * LANES;
            const bool valid = row < rows && column < width;
            const size_t from = valid ? start + static_cast<size_t>(row) * inputs + column : 0;
            copy_lanes(tile + row * STRIDE + column, x + from, valid);
        }
    }
    __device__ __forceinline__ void store(const T* tile, const ImageTiles<ROWS>& at) const {
        const size_t start = static_cast<size_t>(at.start()) * inputs;
        const int rows = at.rows();
#pragma unroll 1
        for (int unit = threadIdx.x; unit < rows * OCTETS; unit += THREADS) {
            const int row = unit / OCTETS, column = unit % OCTETS * LANES;
            if (column >= width) continue;
            const T* from = tile + row * STRIDE + column;
            T* to = da + start + static_cast<size_t>(row) * inputs + column;
#pragma unroll
            for (int part = 0; part < LANES; part += Pack<T>::N) store_pack(to + part, load_pack(from + part));
        }
    }
};

// ---- many narrow channels ---------------------------------------------------------------------------------

// Only da and the five sums. `S` is a DataShape whose columns are the slice.
template <class S>
__device__ __forceinline__ void project_backward_data(const ProjectBackwardArguments& args) {
    using T = typename S::T;
    using Rows = SliceRows<T, S::ROWS, S::COLUMNS, S::THREADS>;
    SharedArena arena;
    const int first = blockIdx.x * args.slice;
    const int width = args.inputs - first < args.slice ? args.inputs - first : args.slice;
    const DataChunks<S> chunks(args, args.dout, first, width, 0, arena);
    T* x = arena.take<T>(Rows::SIZE);
    T* da = arena.take<T>(Rows::SIZE);
    const FiveSums<T, S::ROWS, Rows::STRIDE, S::THREADS> sums(args, first, width, arena);
    const Rows slice(args, first, width);
    const int count = chunks.count();
    const auto begin = [&](const ImageTiles<S::ROWS>& tile, int chunk, int buffer) {
        if (!tile.done()) chunks.begin(tile.start(), tile.rows(), chunk, buffer);
        copy_async_commit();
    };
    typename S::Sums c;
    int buffer = 0;
    ImageTiles<S::ROWS> tile(args), next = tile;
    begin(tile, 0, 0);
    for (; !tile.done(); tile = next) {
        next.next();
        const KeepFactor<S::ROWS> factor(args.keep, tile);
        c.clear();
        for (int chunk = 0; chunk < count; chunk++, buffer ^= 1) {
            chunks.form(tile.rows(), chunk, buffer, factor);
            barrier();
            if (chunk == 0) slice.begin(x, tile);
            if (chunk + 1 < count)
                begin(tile, chunk + 1, buffer ^ 1);
            else
                begin(next, 0, buffer ^ 1);
            chunks.multiply_into(c, chunk, buffer);
        }
        // There are at least two chunks: x has arrived with the second.
        c.visit([&](int down, int across, float one, float two) {
            store_pair(da + (S::warp_row() + down) * Rows::STRIDE + S::warp_column() + across, one, two);
        });
        barrier();
        sums.template add_tile<false>(tile, da, x);
        slice.store(da, tile);
        barrier();
        sums.finish_tile(tile);
    }
}

// A = silu(BN(x))·gate, computed again.
template <class S>
struct GatedSiluRight {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::RIGHT>, SIZE = S::DEPTH * STRIDE, OCTETS = S::RIGHT / LANES;
    static constexpr int STEP = S::THREADS / OCTETS;
    static_assert(OCTETS * STEP == S::THREADS, "a thread stays with its octet");

    const ProjectBackwardWeightsArguments& args;
    T* raw;    // [DEPTH, RIGHT]
    T* tiles;  // [2, DEPTH, STRIDE]
    int channel, octet;
    bool inside;

    __device__ __forceinline__ GatedSiluRight(const ProjectBackwardWeightsArguments& args, SharedArena& arena)
        : args(args), raw(arena.take<T>(S::DEPTH * S::RIGHT)), tiles(arena.take<T>(2 * SIZE)) {
        const WeightPiece<S> piece(args);
        octet = static_cast<int>(threadIdx.x) % OCTETS * LANES;
        channel = piece.right + octet;
        inside = channel < piece.right_end;
    }
    __device__ __forceinline__ T* tile(int buffer) const { return tiles + buffer * SIZE; }

    __device__ __forceinline__ void begin(int row, int rows, int) const {
        const T* x = static_cast<const T*>(args.x);
#pragma unroll 1
        for (int at = threadIdx.x / OCTETS; at < S::DEPTH; at += STEP) {
            const bool valid = inside && at < rows;
            const size_t from = valid ? static_cast<size_t>(row + at) * args.inputs + channel : 0;
            copy_lanes(raw + at * S::RIGHT + octet, x + from, valid);
        }
    }
    __device__ __forceinline__ void form(int row, int rows, int buffer) const {
        float scale[LANES] = {}, shift[LANES] = {};
        if (inside) {
            load_lanes(scale, args.input_coefficients + SCALE * args.inputs + channel);
            load_lanes(shift, args.input_coefficients + SHIFT * args.inputs + channel);
        }
#pragma unroll 1
        for (int at = threadIdx.x / OCTETS; at < S::DEPTH; at += STEP) {
            float value[LANES] = {};
            if (inside && at < rows) {
                float gate[LANES];
                load_lanes(gate, args.gate + static_cast<size_t>((row + at) / args.pixels) * args.inputs + channel);
                load_lanes(value, raw + at * S::RIGHT + octet);
#pragma unroll
                for (int i = 0; i < LANES; i++) value[i] = silu<T>(fmaf(scale[i], value[i], shift[i])) * gate[i];
            }
            store_lanes(tile(buffer) + at * STRIDE + octet, value);
        }
    }
};

template <class S>
__device__ __forceinline__ void project_backward_weights(const ProjectBackwardWeightsArguments& args) {
    struct Factor {
        const float* keep;
        int pixels, row;
        __device__ __forceinline__ float operator()(int at) const {
            return keep == nullptr ? 1.0f : keep[(row + at) / pixels];
        }
    };
    SharedArena arena;
    GatedSiluRight<S> right(args, arena);
    weight_gradient<S>(args, args.dout, arena, right,
                       [&](int row) { return Factor{args.keep, args.pixels, row}; });
}

// ---- the segments of an image -----------------------------------------------------------------------------

//   parts [segments, elements] → five_sums [elements], elements a multiple of 8.
#define PROJECT_BACKWARD_SEGMENTS_FIELDS(F) \
    F(const float*, parts)                  \
    F(float*, five_sums)                    \
    F(int, segments)                        \
    F(int, elements)
ARGUMENTS(ProjectBackwardSegmentsArguments, PROJECT_BACKWARD_SEGMENTS_FIELDS)
