// Depthwise convolution, forward: y[n, p, q, c] = Σ w[c, i, j] · a[n, p·s+i−pad, q·s+j−pad, c], a = silu(BN(x)) or x.
//
// The input rows under the next few output rows are in a ring in shared memory. They are normalised and activated once,
// in place, by the warp whose copies brought them; columns beside the map stay zero, and rows above and below it are
// read from a row of zeros (padding comes *after* the activation). Each input value is loaded once, except at the
// borders of tiles and strips.
//
// With stride 1 the ring holds fp32: a value is read for several taps and converted once. With stride 2 it is read for
// a quarter as many outputs, and four times as many values have to fit: there the ring holds the storage type.
//
// A thread computes 7 neighbouring columns of 2 channels, with all weights of these in registers. Maps of 224² images are
// multiples of 7.
//
// RECOMPUTES: x is the narrow input of the expansion before, and a = silu(BN(x·Wᵀ)); see depthwise_recompute.cuh.
//
// The iterations are those of depthwise_backward.cuh. Bytes, operations, floors and the versions before this one:
// depthwise.cu, docs/depthwise.md.
#pragma once

#include "batch_norm.cuh"
#include "depthwise_recompute.cuh"
#include "depthwise_sums.cuh"

#define DEPTHWISE_FORWARD_FIELDS(F)                                                     \
    F(const void*, x)                                                                   \
    F(const void*, expand_weight) /* of the expansion, if it is computed again: [C, inputs] */ \
    F(const float*, coefficients) /* of the input's batch norm; null: a = x */          \
    F(const float*, weight)       /* [C, K, K] */                                       \
    F(void*, y)                                                                         \
    F(float*, counts)  /* [parts]; null: no statistics */                               \
    F(float*, moments) /* [parts + groups of them, 2, C] */                             \
    BATCH_NORM_FINISH_FIELDS(F)                                                         \
    F(int, images)                                                                      \
    F(int, channels)                                                                    \
    F(int, inputs)           /* of the expansion */                                     \
    F(int, input)            /* side of the input */                                    \
    F(int, output)           /* side of the output */                                   \
    F(int, pad)              /* rows above, columns left */                             \
    F(int, workers)          /* threads of a tile's row, for each pair of channels */   \
    F(int, tiles)                                                                       \
    F(int, rows)             /* output rows of an iteration */                          \
    F(int, ring_rows)                                                                   \
    F(int, images_per_block)                                                            \
    F(int, strips)                                                                      \
    F(int, strip_rows)
ARGUMENTS(DepthwiseForwardArguments, DEPTHWISE_FORWARD_FIELDS)

// Columns of a thread.
constexpr int DEPTHWISE_COLUMNS = 7;

// Floats in which the moments of all blocks are merged, in place of the ring.
constexpr int DEPTHWISE_MERGE = 2 * 16 * DEPTHWISE_SLICE + 16;

// Rows of the parts: a tile of columns, a strip of rows, some images.
struct DepthwiseParts {
    const DepthwiseForwardArguments& args;

    // Of all parts before this one.
    __device__ __forceinline__ int before(int part) const {
        const int side = args.output, strip = part / args.tiles % args.strips;
        const int image = part / args.tiles / args.strips * args.images_per_block;
        if (image >= args.images) return args.images * side * side;
        const int images = min(args.images_per_block, args.images - image);
        const int row = strip * args.strip_rows, rows = min(args.strip_rows, side - row);
        const int column = part % args.tiles * args.workers * DEPTHWISE_COLUMNS;
        return image * side * side + images * (row * side + rows * column);
    }
    __device__ __forceinline__ int count(int first, int parts) const { return before(first + parts) - before(first); }
};

// What the ring holds.
template <typename T, int STRIDE>
struct DepthwiseRing {
    using Value = float;
};
template <typename T>
struct DepthwiseRing<T, 2> {
    using Value = T;
};

template <typename T, int K, int STRIDE, bool RECOMPUTES>
struct DepthwiseForward {
    static constexpr int SLICE = DEPTHWISE_SLICE;
    static constexpr int C = DEPTHWISE_CHANNELS, GROUPS = DEPTHWISE_GROUPS, COLUMNS = DEPTHWISE_COLUMNS;
    using Value = typename DepthwiseRing<T, STRIDE>::Value;
    using Four = Group<T, 4>;
    // With where the image begins in x and in y, which take fewer registers than their computation.
    struct Step : DepthwiseStep {
        size_t x_at, y_at;
    };
    using Loaded = DepthwiseLoaded;
    // Input columns under the columns of a thread, and from one thread's first to the next one's.
    static constexpr int WINDOW = (COLUMNS - 1) * STRIDE + K, APART = COLUMNS * STRIDE;
    // A pixel of halves is half as wide as all banks. Where threads are an even number of such pixels apart, every other
    // thread has the pixels of each pair exchanged.
    static constexpr bool EXCHANGED = sizeof(Value) == 2 && APART % 2 == 0;
    // What computes the expansion again.
    using Expansion = RecomputeIf<RECOMPUTES, T, SLICE * sizeof(Value)>;

    const DepthwiseForwardArguments& args;
    const int lane;
    int first_channel;
    // First output column of the tile; input column of ring column 0; ring columns.
    int tile_first, base, reach;
    // Ring columns that are in the map: the first, and their number.
    int inner, inner_columns;
    Value* ring;    // [ring_rows, reach, SLICE]
    Value* zeros;   // [WINDOW + 1, SLICE]: read in place of rows outside the map
    float* norm;    // [2, SLICE]: scale, shift
    float* scratch;
    Expansion expansion;
    DepthwiseUnits units;

    // The thread's share of the product: its channels in the slice, its first column and its row of an iteration.
    int at, worker, own_row;
    bool works;
    float w[K * K][C];
    float count;  // of values of each channel
    Moments moments[C];

    __device__ __forceinline__ explicit DepthwiseForward(const DepthwiseForwardArguments& arguments)
        : args(arguments), lane(threadIdx.x % WARP), units(0), count(0.0f) {
        first_channel = blockIdx.x * SLICE;
        tile_first = static_cast<int>(blockIdx.y) % args.tiles * args.workers * COLUMNS;
        base = tile_first * STRIDE - args.pad;
        reach = (args.workers - 1) * APART + WINDOW;
        inner = base < 0 ? -base : 0;
        inner_columns = min(reach, args.input - base) - inner;
        if constexpr (EXCHANGED) reach += reach % 2;
        units = DepthwiseUnits(inner_columns, Expansion::UNIT);
        const int place = threadIdx.x / GROUPS;
        at = threadIdx.x % GROUPS * C;
        worker = place % args.workers;
        own_row = place / args.workers;
        works = own_row < args.rows && first_channel + at < args.channels &&
                tile_first + worker * COLUMNS < args.output;
#pragma unroll
        for (int i = 0; i < C; i++) moments[i] = {0.0f, 0.0f, 0.0f};
    }

    __device__ __forceinline__ void prepare() {
        SharedArena arena;
        const int cells = args.ring_rows * reach * SLICE;
        constexpr int MERGE = DEPTHWISE_MERGE * sizeof(float) / sizeof(Value);
        ring = arena.take<Value>(max(cells, MERGE));
        zeros = arena.take<Value>((WINDOW + 1) * SLICE);
        norm = arena.take<float>(2 * SLICE);
        scratch = arena.take<float>(DEPTHWISE_MOMENTS_SCRATCH);
        if constexpr (RECOMPUTES)
            expansion.prepare(
                arena.take<T>(Expansion::WEIGHTS), args.expand_weight, args.inputs, first_channel, args.channels);
        // Pixels beside the map are never copied, but computed with.
        clear(ring, cells);
        clear(zeros, (WINDOW + 1) * SLICE);
        const int channel = first_channel + threadIdx.x;
        if (threadIdx.x < SLICE) {
            const bool valid = channel < args.channels && args.coefficients != nullptr;
            norm[threadIdx.x] = valid ? args.coefficients[SCALE * args.channels + channel] : 0.0f;
            norm[SLICE + threadIdx.x] = valid ? args.coefficients[SHIFT * args.channels + channel] : 0.0f;
        }
        if (works) {
#pragma unroll
            for (int tap = 0; tap < K * K; tap++) {
#pragma unroll
                for (int i = 0; i < C; i++) w[tap][i] = args.weight[(first_channel + at + i) * K * K + tap];
            }
        }
        barrier();
    }

    // Where ring column `column` is in a row.
    static __device__ __forceinline__ int place_of(int column) {
        return EXCHANGED ? column ^ (column / APART % 2) : column;
    }

    // Begins the copies of the input rows that the step needs and that are not in the ring yet.
    __device__ __forceinline__ void fetch(const Step& step, Loaded& loaded) {
        const int last = min((step.start + args.rows - 1) * STRIDE - args.pad + K, args.input) - 1;
        const int count = max(last - loaded.next + 1, 0);
        if constexpr (RECOMPUTES)
            fetch_narrow(step, loaded, count);
        else
            fetch_stored(step, loaded, count);
        copy_async_commit();
        loaded.fresh = loaded.head;
        loaded.fresh_count = count;
        loaded.head = ring_slot(loaded.head, count, args.ring_rows);
        loaded.next += count;
    }

    __device__ __forceinline__ void fetch_stored(const Step& step, const Loaded& loaded, int count) const {
        const int channel = first_channel + lane % 4 * LANES, pixel = units.pixel + lane / 4, column = inner + pixel;
        if (channel >= args.channels || pixel >= inner_columns) return;
        const int at_row = args.input * args.channels, first = loaded.next + units.row;
        const T* x = static_cast<const T*>(args.x) + step.x_at +
                     static_cast<unsigned>(first * at_row + (base + column) * args.channels + channel);
        Value* cells = ring + place_of(column) * SLICE + lane % 4 * LANES;
        int slot = ring_slot(loaded.head, units.row, args.ring_rows);
#pragma unroll 1
        for (int row = units.row; row < count; row += units.rows) {
            copy_async_lanes(reinterpret_cast<T*>(cells + slot * reach * SLICE) + raw_in_cell(column), x);
            x += units.rows * at_row;
            slot = ring_slot(slot, units.rows, args.ring_rows);
        }
    }

    __device__ __forceinline__ void fetch_narrow(const Step& step, const Loaded& loaded, int count) const {
        const int at_row = args.input * args.inputs, first = loaded.next + units.row, column = inner + units.pixel;
        const T* x = static_cast<const T*>(args.x) + step.x_at +
                     static_cast<unsigned>(first * at_row + (base + column) * args.inputs);
        const auto place = [&](int pixel) { return place_of(column + pixel); };
        int slot = ring_slot(loaded.head, units.row, args.ring_rows);
#pragma unroll 1
        for (int row = units.row; row < count; row += units.rows) {
            T* cells = reinterpret_cast<T*>(ring + slot * reach * SLICE);
            Expansion::fetch(cells, x, args.inputs, inner_columns - units.pixel, place);
            x += units.rows * at_row;
            slot = ring_slot(slot, units.rows, args.ring_rows);
        }
    }

    // Where x lies in a cell that is larger: neighbouring pixels have it in opposite halves, so that copies and loads
    // use all banks.
    static __device__ __forceinline__ int raw_in_cell(int column) {
        return sizeof(Value) > sizeof(T) ? column % 2 * LANES : 0;
    }

    // From x, as the warp's own copies brought it, to the convolution's input. A lane has 4 channels of two pixels of a
    // unit.
    __device__ __forceinline__ void activate(const Loaded& loaded) {
        const int channel = lane % 8 * 4, pixel = units.pixel + lane / 8, column = inner + pixel;
        const bool valid = first_channel + channel < args.channels, normalised = args.coefficients != nullptr;
        float scale[4], shift[4];
        load_group(scale, norm + channel);
        load_group(shift, norm + SLICE + channel);
        const bool inside[2] = {valid && pixel < inner_columns, valid && pixel + 4 < inner_columns};
        const int places[2] = {place_of(column) * SLICE, place_of(column + 4) * SLICE};
        const int raw = raw_in_cell(column) + channel % LANES;
        int slot = ring_slot(loaded.fresh, units.row, args.ring_rows);
#pragma unroll 1
        for (int row = units.row; row < loaded.fresh_count; row += units.rows) {
            Value* cells = ring + slot * reach * SLICE + channel / LANES * LANES;
            slot = ring_slot(slot, units.rows, args.ring_rows);
            Four x[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (!inside[i]) continue;
                x[i] = *reinterpret_cast<const Four*>(reinterpret_cast<const T*>(cells + places[i]) + raw);
            }
            // A lane's result lies where other lanes find x.
            warp_barrier();
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (!inside[i]) continue;
                float a[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    a[k] = to_float(x[i].v[k]);
                    if (normalised) a[k] = silu<T>(fmaf(a[k], scale[k], shift[k]));
                }
                store_group(cells + places[i] + channel % LANES, a);
            }
        }
    }

    // The same from the expansion's input. A lane has 8 channels of two pixels of a unit.
    __device__ __forceinline__ void activate_expanded(const Loaded& loaded) const {
        const int channel = lane % 4 * LANES, column = inner + units.pixel, left = inner_columns - units.pixel;
        const bool valid = first_channel + channel < args.channels;
        const auto place = [&](int pixel) { return place_of(column + pixel); };
        int slot = ring_slot(loaded.fresh, units.row, args.ring_rows);
#pragma unroll 1
        for (int row = units.row; row < loaded.fresh_count; row += units.rows) {
            Value* cells = ring + slot * reach * SLICE;
            slot = ring_slot(slot, units.rows, args.ring_rows);
            float y[2][LANES];
            expansion.expand(y, reinterpret_cast<const T*>(cells), args.inputs, left, place);
#pragma unroll
            for (int i = 0; i < 2 * LANES; i++) y[i / LANES][i % LANES] = rounded<T>(y[i / LANES][i % LANES]);
            // A lane's result lies where other lanes find x.
            warp_barrier();
            // Not before the loop: with the taps' weights there would be too few registers.
            float scale[LANES], shift[LANES];
            load_lanes(scale, norm + channel);
            load_lanes(shift, norm + SLICE + channel);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int pixel = lane / 4 + half * 8;
                if (!valid || pixel >= left) continue;
#pragma unroll
                for (int i = 0; i < LANES; i++) y[half][i] = silu<T>(fmaf(y[half][i], scale[i], shift[i]));
                Recomputed<Value>::store(cells + place(pixel) * SLICE + channel, y[half]);
            }
            // All lanes come together for the next product.
            warp_barrier();
        }
    }

    // Of a row's columns.
    __device__ __forceinline__ void convolve(float (&y)[COLUMNS][C], int row, int slot) const {
        const int first = row * STRIDE - args.pad, ring_row = reach * SLICE, size = args.ring_rows * ring_row;
        const int zero = static_cast<int>(zeros - ring) + at;
        int at_row = slot * ring_row + worker * APART * SLICE + at;
        const int exchange = EXCHANGED ? worker % 2 * SLICE : 0;
#pragma unroll
        for (int ky = 0; ky < K; ky++) {
            const bool inside = static_cast<unsigned>(first + ky) < static_cast<unsigned>(args.input);
            const Value* from = ring + (inside ? at_row : zero);
            at_row += ring_row;
            if (at_row >= size) at_row -= size;
#pragma unroll
            for (int j = 0; j < WINDOW; j++) {
                float v[C];
                // Past the thread's own columns begin the next one's, which are exchanged if its own are not.
                const int off = j < APART ? exchange : SLICE - exchange;
                load_group(v, from + j * SLICE + (!EXCHANGED ? 0 : j % 2 == 0 ? off : -off));
#pragma unroll
                for (int t = 0; t < COLUMNS; t++) {
                    const int kx = j - t * STRIDE;
                    if (kx < 0 || kx >= K) continue;
#pragma unroll
                    for (int i = 0; i < C; i++) y[t][i] = fmaf(v[i], w[ky * K + kx][i], y[t][i]);
                }
            }
        }
    }

    // Computes and stores the thread's outputs of this step, and adds them to its moments, as stored.
    __device__ __forceinline__ void positions(const Step& step) {
        const int row = step.start + own_row, column = tile_first + worker * COLUMNS;
        if (row >= args.output) return;
        float y[COLUMNS][C] = {};
        convolve(y, row, ring_slot(step.tail, own_row * STRIDE, args.ring_rows));
        const int from = (row * args.output + column) * args.channels + first_channel + at;
        T* to = static_cast<T*>(args.y) + step.y_at + from;
        Two<T> stored[COLUMNS];
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            stored[t] = Two<T>::of(y[t][0], y[t][1]);
            stored[t].get(y[t]);
        }
        // The shift is the thread's first value.
        if (count == 0.0f) {
#pragma unroll
            for (int i = 0; i < C; i++) moments[i].shift = y[0][i];
        }
        count += static_cast<float>(min(args.output - column, COLUMNS));
        // A column beside the map counts as the shift: it adds nothing.
        if (column + COLUMNS > args.output) {
#pragma unroll
            for (int t = 1; t < COLUMNS; t++) {
                if (column + t < args.output) continue;
#pragma unroll
                for (int i = 0; i < C; i++) y[t][i] = moments[i].shift;
            }
        }
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            if (column + t < args.output) *reinterpret_cast<Two<T>*>(to) = stored[t];
            to += args.channels;
#pragma unroll
            for (int i = 0; i < C; i++) moments[i].add(y[t][i]);
        }
    }

    // Writes the block's part of the statistics; the last block makes the coefficients of them.
    __device__ __forceinline__ void finish_moments() {
        merge_block(count, moments, scratch, [&](int in_slice, float number, float mean, float spread) {
            const int channel = first_channel + in_slice;
            if (channel >= args.channels) return;
            float* to = args.moments + static_cast<size_t>(blockIdx.y) * 2 * args.channels + channel;
            to[0] = mean;
            to[args.channels] = spread;
            if (channel == 0) args.counts[blockIdx.y] = number;
        });
        static_assert(MomentsMerge<SLICE, DEPTHWISE_THREADS>::FLOATS == DEPTHWISE_MERGE, "room for the merge");
        finish_batch_norm<SLICE, DEPTHWISE_THREADS>(
            args, reinterpret_cast<float*>(ring), blockIdx.x, args.channels, blockIdx.y, gridDim.y,
            DepthwiseParts{args});
    }

    __device__ __forceinline__ void run() {
        prepare();
        const int part = static_cast<int>(blockIdx.y) / args.tiles;
        const int first_image = part / args.strips * args.images_per_block;
        const int end_image = min(first_image + args.images_per_block, args.images);
        const int first_row = part % args.strips * args.strip_rows;
        const int end_row = min(first_row + args.strip_rows, args.output);
        // The first input row that the strip needs, perhaps above the map.
        const int top = first_row * STRIDE - args.pad, above = top < 0 ? -top : 0;

        const int x_channels = RECOMPUTES ? args.inputs : args.channels;
        const size_t x_image = static_cast<size_t>(args.input) * args.input * x_channels;
        const size_t y_image = static_cast<size_t>(args.output) * args.output * args.channels;
        Step next = {{first_image, first_row, 0}, first_image * x_image, first_image * y_image}, step = next;
        Loaded loaded = {top + above, above % args.ring_rows, 0, 0};
        for (bool first = true;; first = false) {
            const bool more = next.image < end_image;
            if (more) fetch(next, loaded);
            if (!first && works) positions(step);
            if (!more) break;
            copy_async_wait<0>();
            warp_barrier();
            if constexpr (RECOMPUTES)
                activate_expanded(loaded);
            else
                activate(loaded);
            barrier();
            step = next;
            next.start += args.rows;
            next.tail = ring_slot(next.tail, args.rows * STRIDE, args.ring_rows);
            if (next.start >= end_row) {
                next.image++;
                next.x_at += x_image;
                next.y_at += y_image;
                next.start = first_row;
                next.tail = ring_slot(loaded.head, args.ring_rows - above, args.ring_rows);
                loaded.next = top + above;
            }
        }
        if (args.counts != nullptr) finish_moments();
    }
};
