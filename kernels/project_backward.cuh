// Backward of the projection: tiles aligned to images, the five sums, and the kernels for many narrow channels. If the
// accumulators of the weights' gradient fit, one sweep makes both gradients instead, see project_sweep.cuh.
//
// Bytes, operations and floors at B0's shapes: project.cu.
#pragma once

#include "pointwise_backward.cuh"

//   dout, y [rows, outputs], weight [outputs, inputs], coefficients [4, outputs] and sums [2, outputs] of y's batch
//   norm, keep [images] or null; x [rows, inputs], input_coefficients [4, inputs], gate [images, inputs];
//   da [rows, inputs], five_sums [5, images, inputs], partials [gridDim.y, outputs, inputs].
// Grid: (slices of `slice` channels of x, which are neighbours because they read the same dout and y; parts of the
// rows). A part is one of `segments` segments of an image or, if that is 1, `group` images. If there are several segments,
// each has five sums of its own, segment_sums [segments, 5, images, inputs], and the last block of an image and slice adds
// them; arrivals [images, slices].
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
    F(float*, segment_sums)             \
    F(unsigned*, arrivals)              \
    F(float*, partials)                 \
    F(int, images)                      \
    F(int, pixels)                      \
    F(int, inputs)                      \
    F(int, outputs)                     \
    F(int, slice)                       \
    F(int, segments)                    \
    F(int, group)                       \
    F(int, whole)                       \
    F(int, span)                        \
    F(float, inverse_rows)
ARGUMENTS(ProjectBackwardArguments, PROJECT_BACKWARD_FIELDS)

// ---- tiles aligned to images -------------------------------------------------------------------------------

// The block's tiles of ROWS rows. A tile is within one image or, if several fit, has whole images. Their `span` is a power
// of two from 8 on: so the eight rows that the lanes of a warp have of a product are of one image, and an image is in the
// rows of one warp. What is the same for all tiles stays in the argument, where it takes no registers.
template <int ROWS>
struct ImageTiles {
    const ProjectBackwardArguments& args;
    int image, last_image, row, end_row;

    __device__ __forceinline__ explicit ImageTiles(const ProjectBackwardArguments& args) : args(args) {
        const int part = blockIdx.y, segments = args.segments;
        row = 0;
        end_row = args.pixels;
        if (segments > 1) {
            const int tiles = (args.pixels + ROWS - 1) / ROWS, segment = part % segments;
            image = part / segments;
            last_image = image + 1;
            row = tiles * segment / segments * ROWS;
            const int end = tiles * (segment + 1) / segments * ROWS;
            if (end < end_row) end_row = end;
        } else {
            image = part * args.group;
            last_image = image + args.group < args.images ? image + args.group : args.images;
        }
    }
    __device__ __forceinline__ bool done() const { return image >= last_image; }
    __device__ __forceinline__ void next() {
        row += ROWS;
        if (row >= end_row) {
            row = 0;
            image += args.whole;
        }
    }
    // To another tile of the same block.
    __device__ __forceinline__ void go_to(const ImageTiles& other) {
        image = other.image;
        row = other.row;
    }
    __device__ __forceinline__ bool many() const { return args.whole > 1; }
    __device__ __forceinline__ int images() const {
        return last_image - image < args.whole ? last_image - image : args.whole;
    }
    // In memory.
    __device__ __forceinline__ int start() const { return image * args.pixels + row; }
    // Rows of each image.
    __device__ __forceinline__ int rows() const { return end_row - row < ROWS ? end_row - row : ROWS; }
    __device__ __forceinline__ bool ends_image() const { return row + ROWS >= end_row; }
    // Rows of the tile before this one may be in memory.
    __device__ __forceinline__ int limit() const { return many() ? images() * args.span : rows(); }
    // Which row of memory, counted from `start`, row `at` is, if it is before `limit`; negative if none.
    __device__ __forceinline__ int place(int at) const {
        if (!many()) return at;
        const int own = at / args.span, pixel = at - own * args.span;
        return pixel < args.pixels ? own * args.pixels + pixel : -1;
    }
    __device__ __forceinline__ int source(int at) const { return at < limit() ? place(at) : -1; }
    // The factor of row `at`, which is in memory.
    __device__ __forceinline__ float factor(const float* keep, int at) const {
        if (keep == nullptr) return 1.0f;
        return keep[many() ? image + at / args.span : image];
    }
};

// ---- the five sums ----------------------------------------------------------------------------------------

// What becomes of da where the product leaves it: in the registers of a warp that has 16 columns of the slice. `S` is a
// SweepShape or a DataShape. A thread has four channels: four neighbours if the columns of the product are PERMUTED,
// else two pairs. It stores da, adds to the sums of its channels, and may replace x by A = silu(BN(x))·gate: nobody else
// needs these values of x. At the end of an image the sums of eight lanes, and of warps below each other, are added.
template <class S>
struct FiveSums {
    using T = typename S::T;
    using Tiles = ImageTiles<S::ROWS>;
    static constexpr int COUNT = 5, OWN = 4;

    const ProjectBackwardArguments& args;
    float* numbers;    // [3, COLUMNS]: batch norm's scale, shift and mean
    float* scratch;    // [DOWN, 5, COLUMNS], if warps are below each other
    int first, width;  // the slice's channels
    int column, row;   // this thread's first column of the slice, and first row of a tile
    int second;        // from its first to its second two channels; 0 if these are past the last
    bool inside;
    float sums[COUNT][OWN];

    // The numbers of a thread's channels, loaded again for each tile: they take no registers during the products.
    struct Channels {
        float scale[OWN], shift[OWN], mean[OWN], gate[OWN];
    };

    __device__ __forceinline__ FiveSums(const ProjectBackwardArguments& args, int first, int width, SharedArena& arena)
        : args(args), numbers(arena.take<float>(3 * S::COLUMNS)), scratch(nullptr), first(first), width(width) {
        if constexpr (S::DOWN > 1) scratch = arena.take<float>(S::DOWN * COUNT * S::COLUMNS);
        const int lane = threadIdx.x % WARP;
        column = S::warp_column() + lane % 4 * (S::PERMUTED ? 4 : 2);
        row = S::warp_row() + S::row_of(lane / 4);
        inside = column < width;
        second = S::PERMUTED ? 2 : column + 8 < width ? 8 : 0;
        clear();
        // A barrier comes before these are needed.
        const float* from = args.input_coefficients + first;
#pragma unroll 1
        for (int at = threadIdx.x; at < S::COLUMNS; at += S::THREADS) {
            const bool valid = at < width;
            numbers[at] = valid ? from[SCALE * args.inputs + at] : 0.0f;
            numbers[S::COLUMNS + at] = valid ? from[SHIFT * args.inputs + at] : 0.0f;
            numbers[2 * S::COLUMNS + at] = valid ? from[MEAN * args.inputs + at] : 0.0f;
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int sum = 0; sum < COUNT; sum++)
#pragma unroll
            for (int i = 0; i < OWN; i++) sums[sum][i] = 0.0f;
    }
    __device__ __forceinline__ void load(Channels& of, int image) const {
        const float* from = numbers + column;
        load_own(of.scale, from);
        load_own(of.shift, from + S::COLUMNS);
        load_own(of.mean, from + 2 * S::COLUMNS);
        load_own(of.gate, args.gate + static_cast<size_t>(image) * args.inputs + first + (inside ? column : 0));
    }
    template <typename V>
    __device__ __forceinline__ void load_own(float (&out)[OWN], const V* from) const {
        if constexpr (S::PERMUTED) {
            load_group(out, from);
        } else {
            float pair[2];
#pragma unroll
            for (int i = 0; i < OWN; i += 2) {
                load_pair(pair, from + (i == 0 ? 0 : second));
                out[i] = pair[0];
                out[i + 1] = pair[1];
            }
        }
    }
    // Rounds da to the storage type, and stores it.
    __device__ __forceinline__ void store_own(T* to, float (&values)[OWN]) const {
        Group<T, OWN> own;
#pragma unroll
        for (int i = 0; i < OWN; i++) own.v[i] = from_float<T>(values[i]);
        if constexpr (S::PERMUTED) {
            *reinterpret_cast<Group<T, OWN>*>(to) = own;
        } else {
            *reinterpret_cast<Group<T, 2>*>(to) = {{own.v[0], own.v[1]}};
            if (second > 0) *reinterpret_cast<Group<T, 2>*>(to + second) = {{own.v[2], own.v[3]}};
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) values[i] = to_float(own.v[i]);
    }
    // One row: stores da, and replaces x if ACTIVATE.
    template <bool ACTIVATE>
    __device__ __forceinline__ void add(const Channels& of, float (&gradient)[OWN], T* x, T* da) {
        float value[OWN], a[OWN];
        load_own(value, x);
        store_own(da, gradient);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            float slope;
            silu_and_slope<T>(fmaf(of.scale[i], value[i], of.shift[i]), a[i], slope);
            const float away = value[i] - of.mean[i], product = gradient[i] * slope;
            sums[0][i] = fmaf(gradient[i], a[i], sums[0][i]);
            sums[1][i] += product;
            sums[2][i] += slope;
            sums[3][i] = fmaf(product, away, sums[3][i]);
            sums[4][i] = fmaf(slope, away, sums[4][i]);
            a[i] *= of.gate[i];
        }
        if constexpr (ACTIVATE) store_group(x, a);
    }
    // Adds a warp's rows of da.
    template <bool ACTIVATE>
    __device__ __forceinline__ void add_tile(const Tiles& tile, const typename S::Sums& c, T* x) {
        T* const da = static_cast<T*>(args.da) + first + column;
        const int images = tile.images();
        int own = 0, end = 1;
        if (tile.many()) {
            own = S::warp_row() / args.span;
            end = (S::warp_row() + S::WARP_ROWS) / args.span;
            if (end > images) end = images;
        }
#pragma unroll 1
        for (; own < end; own++) {
            Channels of;
            load(of, tile.image + own);
            const int rows = tile.rows(), above = row - own * args.span;
            T* const to = da + static_cast<size_t>(tile.start() + own * args.pixels) * args.inputs;
#pragma unroll
            for (int m = 0; m < S::M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int below = 16 * m + 8 * half, pixel = above + below;
                    if (!inside || static_cast<unsigned>(pixel) >= static_cast<unsigned>(rows)) continue;
                    float gradient[OWN];
#pragma unroll
                    for (int i = 0; i < OWN; i++) gradient[i] = c.v[0][m][i / 2][2 * half + i % 2];
                    add<ACTIVATE>(of, gradient, x + (row + below) * S::STRIDE + column, to + pixel * args.inputs);
                }
            if (!tile.many() && !tile.ends_image()) continue;
            end_image(tile, own);
            clear();
        }
    }
    // The sums over the eight lanes that have the same channels: after each exchange a lane goes on with half of them.
    __device__ __forceinline__ void end_image(const Tiles& tile, int own) const {
        const int lane = threadIdx.x % WARP;
        const bool two = lane & 16, one = lane & 8;
        float all[COUNT];
#pragma unroll
        for (int sum = 0; sum < COUNT; sum++) {
            const float(&of)[OWN] = sums[sum];
            float pair[2];
#pragma unroll
            for (int i = 0; i < 2; i++) pair[i] = (two ? of[2 + i] : of[i]) + shuffle_xor(two ? of[i] : of[2 + i], 16);
            all[sum] = (one ? pair[1] : pair[0]) + shuffle_xor(one ? pair[0] : pair[1], 8);
            all[sum] += shuffle_xor(all[sum], 4);
        }
        if (!inside || lane & 4 || (two && second == 0)) return;
        const int at = column + (two ? second : 0) + (one ? 1 : 0);
        const float r = args.input_coefficients[RECIPROCAL * args.inputs + first + at];
        all[3] *= r;
        all[4] *= r;
        if (S::DOWN > 1 && !tile.many()) {
            float* to = scratch + S::warp_row() / S::WARP_ROWS * (COUNT * S::COLUMNS) + at;
#pragma unroll
            for (int sum = 0; sum < COUNT; sum++) to[sum * S::COLUMNS] = all[sum];
        } else {
#pragma unroll
            for (int sum = 0; sum < COUNT; sum++) *result(sum, tile.image + own, at) = all[sum];
        }
    }
    __device__ __forceinline__ float* result(int sum, int image, int at) const {
        const bool whole = args.segments == 1;
        const int segment = whole ? 0 : static_cast<int>(blockIdx.y) % args.segments;
        const size_t line = static_cast<size_t>(segment * COUNT + sum) * args.images + image;
        return (whole ? args.five_sums : args.segment_sums) + line * args.inputs + first + at;
    }
    // Adds the sums of warps below each other: after a barrier, and before the one that the next tile begins with.
    __device__ __forceinline__ void end_tile(const Tiles& tile) const {
        if (S::DOWN == 1 || tile.many() || !tile.ends_image()) return;
#pragma unroll 1
        for (int at = threadIdx.x; at < COUNT * S::COLUMNS; at += S::THREADS) {
            if (at % S::COLUMNS >= width) continue;
            float sum = 0.0f;
#pragma unroll
            for (int down = 0; down < S::DOWN; down++) sum += scratch[down * COUNT * S::COLUMNS + at];
            *result(at / S::COLUMNS, tile.image, at % S::COLUMNS) = sum;
        }
    }
    // When all else of the block is done: the last segment of an image adds what all of them have, in order.
    __device__ __forceinline__ void add_segments() const {
        constexpr int WIDE = 4;
        const int segments = args.segments, image = blockIdx.y / segments;
        if (segments == 1 || !last_to_arrive(args.arrivals + image * gridDim.x + blockIdx.x, segments)) return;
        const size_t segment = static_cast<size_t>(COUNT) * args.images * args.inputs;
#pragma unroll 1
        for (int at = threadIdx.x; at < COUNT * width / WIDE; at += S::THREADS) {
            const int sum = at / (width / WIDE), channel = first + at % (width / WIDE) * WIDE;
            const size_t place = (static_cast<size_t>(sum) * args.images + image) * args.inputs + channel;
            const float* from = args.segment_sums + place;
            float total[WIDE] = {};
#pragma unroll 8
            for (int number = 0; number < segments; number++, from += segment) {
                float more[WIDE];
                load_group(more, from);
#pragma unroll
                for (int i = 0; i < WIDE; i++) total[i] += more[i];
            }
            store_group(args.five_sums + place, total);
        }
    }
};

// Copies tiles of x into shared memory, in whole vectors. A thread has the same octet of every STEP-th row.
template <class S>
struct WideRows {
    using T = typename S::T;
    static constexpr int OCTETS = S::COLUMNS / LANES, STEP = S::THREADS / OCTETS, SIZE = S::ROWS * S::STRIDE;
    static_assert(OCTETS * STEP == S::THREADS, "a thread stays with its octet");


    const ProjectBackwardArguments& args;
    int first, width;  // the slice's channels

    __device__ __forceinline__ void begin(T* tile, const ImageTiles<S::ROWS>& at) const {
        const T* x = static_cast<const T*>(args.x) + static_cast<size_t>(at.start()) * args.inputs + first;
        const int octet = static_cast<int>(threadIdx.x) % OCTETS * LANES, row = threadIdx.x / OCTETS;
        const int limit = octet < width ? at.limit() : 0;
#pragma unroll
        for (int above = 0; above < S::ROWS; above += STEP) {
            const int to = above + row, place = at.place(to);
            if (S::ROWS % STEP != 0 && to >= S::ROWS) break;
            const bool valid = to < limit && place >= 0;
            copy_lanes(tile + to * S::STRIDE + octet, x + (valid ? place * args.inputs + octet : 0), valid);
        }
    }
};

// ---- many narrow channels ---------------------------------------------------------------------------------

// A DataShape whose columns are the slice, of which a warp has 16.
template <typename T, class Shape>
struct ProjectDataShape : DataShape<T, Shape> {
    using Base = DataShape<T, Shape>;
    static_assert(Base::P == 1 && Base::DOWN == 1, "16 columns and all rows");
    static constexpr bool PERMUTED = false;
    static constexpr int WARP_ROWS = Base::ROWS, STRIDE = ROW_STRIDE<T, Base::COLUMNS>;

    __device__ static int row_of(int i) { return i; }
};

// Only da and the five sums.
template <class S>
__device__ __forceinline__ void project_backward_data(const ProjectBackwardArguments& args) {
    using T = typename S::T;
    using Tiles = ImageTiles<S::ROWS>;
    SharedArena arena;
    const int first = blockIdx.x * args.slice;
    const int width = args.inputs - first < args.slice ? args.inputs - first : args.slice;
    const DataChunks<S> chunks(args, args.dout, first, width, arena.take<T>(DataChunks<S>::ALL));
    T* x = arena.take<T>(WideRows<S>::SIZE);
    FiveSums<S> sums(args, first, width, arena);
    const WideRows<S> wide = {args, first, width};
    const int count = chunks.count();
    const auto begin = [&](const Tiles& tile, int chunk, int buffer) {
        if (!tile.done()) chunks.begin(tile.start(), tile, chunk, buffer);
        copy_async_commit();
    };
    typename S::Sums c;
    int buffer = 0;
    Tiles tile(args), next = tile;
    begin(tile, 0, 0);
    for (; !tile.done(); tile.go_to(next)) {
        next.next();
        c.clear();
        for (int chunk = 0; chunk < count; chunk++, buffer ^= 1) {
            chunks.form(tile, chunk, buffer, [&](int at) { return tile.factor(args.keep, at); });
            barrier();
            if (chunk == 0) wide.begin(x, tile);
            if (chunk + 1 < count)
                begin(tile, chunk + 1, buffer ^ 1);
            else
                begin(next, 0, buffer ^ 1);
            chunks.multiply_into(c, chunk, buffer);
        }
        // There are at least two chunks: x has arrived with the second.
        sums.template add_tile<false>(tile, c, x);
    }
    sums.add_segments();
}
