// Depthwise convolution, backward, in one sweep: batch norm and silu of its output while loading, the gradient at its
// input, the gradient of its weights, and the sums for the batch norm before.
//
// The gradient dy at the convolution's output is computed once per element, from da and y as they arrive in a ring of
// rows in shared memory: du = (da·gate + squeeze gradient)·silu'(z), then batch norm's backward. A thread has 2 channels
// of a few neighbouring positions of the *input* map. Each tap (i, j) that connects its position to an output gives two
// multiply-adds with the same dy: da1 += w[i, j]·dy, and dw[i, j] += a1·dy. So neither x nor a1 is shared between
// threads, and dx is stored from the registers in which it was computed.
//
// With stride 1 a thread has 7 columns of a row: maps of 224² images are multiples of 7. With stride 2 it has 4 columns
// of 2 rows, so that which taps meet which position is known when compiling.
//
// A thread's sums of the taps stay in registers until the block ends: 18 for 3×3, 50 for 5×5.
//
// An iteration: wait for the copies, make dy of the fresh rows, barrier, begin the copies of the next iteration, compute.
// One barrier is enough, because the copies go to rows that nothing has read since the barrier before.
//
// Bytes, operations, floors and the versions before this one: depthwise.cu, docs/depthwise.md.
#pragma once

#include "depthwise_tile.cuh"

#define DEPTHWISE_BACKWARD_FIELDS(F)                                                            \
    F(const void*, x)                                                                           \
    F(const void*, y)                                                                           \
    F(const void*, da)                                                                          \
    F(void*, dx)                                                                                \
    F(const float*, coefficients)     /* of the output's batch norm */                          \
    F(const float*, sums)             /* of it, [2, C] */                                       \
    F(const float*, gate)             /* [images, C] */                                         \
    F(const float*, squeeze_gradient) /* [images, C] */                                         \
    F(const float*, weight)           /* [C, K, K] */                                           \
    F(const float*, previous)         /* coefficients of the batch norm whose sums are taken */ \
    F(const void*, previous_y)        /* identity input: what those are the coefficients of */  \
    F(const void*, shortcut)          /* identity input: added to dx; may be null */            \
    F(const float*, keep)             /* identity input: [images]; null: all one */             \
    F(float*, weight_partials)        /* [parts, C, K, K] */                                    \
    F(float*, sum_partials)           /* [parts, 2, C] */                                       \
    F(int, images)                                                                              \
    F(int, channels)                                                                            \
    F(int, input)                                                                               \
    F(int, output)                                                                              \
    F(int, pad)                                                                                 \
    F(int, workers) /* threads of a tile's row, for each pair of channels */                    \
    F(int, tiles)                                                                               \
    F(int, rows)    /* input rows of an iteration */                                            \
    F(int, ring_rows)                                                                           \
    F(int, images_per_block)                                                                    \
    F(int, strips)                                                                              \
    F(int, strip_rows)                                                                          \
    F(float, inverse_rows) /* of the output's batch norm */
ARGUMENTS(DepthwiseBackwardArguments, DEPTHWISE_BACKWARD_FIELDS)

// Rows of per-channel constants in shared memory. `OUT_C` is dy's part that depends on neither da nor y.
enum DepthwiseConstant { OUT_SCALE, OUT_SHIFT, OUT_B, OUT_C, IN_MEAN, IN_RECIPROCAL, IN_SCALE, IN_SHIFT,
                         END_OF_CONSTANTS };
constexpr int DEPTHWISE_CONSTANTS = 8;
static_assert(DEPTHWISE_CONSTANTS == END_OF_CONSTANTS, "each has a row");
// Columns and rows of a thread.
constexpr int DEPTHWISE_COLUMNS_STRIDE1 = 7;
constexpr int DEPTHWISE_COLUMNS_STRIDE2 = 4;

template <typename T, int K, int STRIDE, bool NORMALISED>
struct DepthwiseBackward {
    static constexpr int THREADS = DEPTHWISE_THREADS, WARPS = THREADS / WARP, SLICE = DEPTHWISE_SLICE;
    static constexpr int C = DEPTHWISE_CHANNELS, GROUPS = SLICE / C;
    static constexpr int COLUMNS = STRIDE == 1 ? DEPTHWISE_COLUMNS_STRIDE1 : DEPTHWISE_COLUMNS_STRIDE2;
    static constexpr int ROWS = STRIDE;
    using Stored = Two<T>;
    using Four = Group<T, 4>;
    // Output column `xo` and input column `x` are connected by tap x + pad − STRIDE·xo. For a thread's first column
    // x0, x0 + pad is divisible by the stride, so its columns need the output columns (x0 + pad)/STRIDE − BEFORE and
    // the following REACHED − 1. Rows likewise.
    static constexpr int BEFORE = (K - 1) / STRIDE;
    static constexpr int REACHED = (COLUMNS - 1) / STRIDE + 1 + BEFORE;
    static constexpr int ROWS_REACHED = (ROWS - 1) / STRIDE + 1 + BEFORE;
    static constexpr int SUMS = K * K * C + 2 * C;
    // Floats of a cell of eight channels, which has room for da and y as stored, and of a pixel.
    static constexpr int CELL = LANES * 2 * sizeof(T) / sizeof(float), PIXEL = SLICE / LANES * CELL;
    // x in shared memory: threads of a warp are an odd number of columns apart, so that they read from all banks.
    static constexpr int STAGED = COLUMNS | 1;

    const DepthwiseBackwardArguments& args;
    const int lane, warp;
    int first_channel;
    // First input column and end of the tile; output column of ring column 0; ring columns.
    int tile_first, tile_end, base, reach;
    // Ring columns that are in the map: the first, and their number.
    int inner, inner_columns;
    // Of a row, in elements.
    int ring_row, stage_row;
    float* ring;       // [ring_rows, reach, SLICE]
    float* zeros;      // [REACHED, SLICE]: read in place of rows outside the map
    T* stage;          // [2, rows, workers · STAGED, SLICE]: x of this iteration and of the next
    float* weights;    // [K·K, SLICE]
    float* constants;  // [DEPTHWISE_CONSTANTS, SLICE]
    float* factors;    // [WARPS, 2, SLICE]: gate and squeeze gradient of the image whose rows a warp copied last

    // The thread's share of the product: its channels in the slice, its first column and its first row of an iteration.
    int at, worker, own_row;
    bool works;
    float taps[K * K][C], sums[2][C];

    // The thread's share of the copies: of rows of dy, and of x.
    DepthwiseUnits dy_units, x_units;

    // What an iteration does: the image, where it begins in x and in y, the first input row, and the slot of the first
    // output row that it needs.
    struct Step {
        int image;
        size_t x_at, y_at;
        int start, tail;
    };
    // How far the rows are loaded: the next output row and its slot; the slots that the last copies fill.
    struct Loaded {
        int next, head;
        int fresh, fresh_count;
    };

    __device__ __forceinline__ explicit DepthwiseBackward(const DepthwiseBackwardArguments& arguments)
        : args(arguments), lane(threadIdx.x % WARP), warp(threadIdx.x / WARP), dy_units(0), x_units(0) {
        first_channel = blockIdx.x * SLICE;
        const int width = args.workers * COLUMNS;
        tile_first = -(args.pad % STRIDE) + static_cast<int>(blockIdx.y) % args.tiles * width;
        tile_end = min(tile_first + width, args.input);
        base = (tile_first + args.pad) / STRIDE - BEFORE;
        reach = (args.workers - 1) * (COLUMNS / STRIDE) + REACHED;
        inner = base < 0 ? -base : 0;
        inner_columns = min(reach, args.output - base) - inner;
        ring_row = reach * PIXEL;
        stage_row = args.workers * STAGED * SLICE;
        dy_units = DepthwiseUnits(inner_columns);
        x_units = DepthwiseUnits(tile_end - max(tile_first, 0));

        const int place = threadIdx.x / GROUPS;
        at = threadIdx.x % GROUPS * C;
        worker = place % args.workers;
        own_row = place / args.workers * ROWS;
        works = own_row < args.rows && first_channel + at < args.channels;
#pragma unroll
        for (int i = 0; i < C; i++) {
#pragma unroll
            for (int tap = 0; tap < K * K; tap++) taps[tap][i] = 0.0f;
            sums[0][i] = sums[1][i] = 0.0f;
        }
    }

    // Where channel `channel` of the slice is in a pixel of the ring.
    static __device__ __forceinline__ int in_pixel(int channel) {
        return channel / LANES * CELL + channel % LANES;
    }

    __device__ __forceinline__ void prepare() {
        SharedArena arena;
        const int cells = args.ring_rows * ring_row, scratch = WARPS * (SUMS / C) * SLICE;
        ring = arena.take<float>(cells > scratch ? cells : scratch);
        zeros = arena.take<float>(REACHED * PIXEL);
        stage = arena.take<T>(2 * args.rows * stage_row);
        weights = arena.take<float>(K * K * SLICE);
        constants = arena.take<float>(DEPTHWISE_CONSTANTS * SLICE);
        factors = arena.take<float>(WARPS * 2 * SLICE);
        // Pixels and channels beside the map's are never copied, but computed with.
        clear(ring, cells);
        clear(zeros, REACHED * PIXEL);
        clear(stage, 2 * args.rows * stage_row);
        clear(factors, WARPS * 2 * SLICE);
        for (int i = threadIdx.x; i < K * K * SLICE; i += THREADS) {
            const int channel = first_channel + i % SLICE;
            weights[i] = channel < args.channels ? args.weight[channel * K * K + i / SLICE] : 0.0f;
        }
        if (threadIdx.x < SLICE) set_constants(first_channel + threadIdx.x, constants + threadIdx.x);
        barrier();
    }

    __device__ __forceinline__ void set_constants(int channel, float* to) {
        if (channel >= args.channels) {
            for (int row = 0; row < DEPTHWISE_CONSTANTS; row++) to[row * SLICE] = 0.0f;
            return;
        }
        const auto norm =
            NormBackward::of(args.coefficients, args.sums, args.channels, channel, args.inverse_rows);
        to[OUT_SCALE * SLICE] = norm.a;
        to[OUT_SHIFT * SLICE] = args.coefficients[SHIFT * args.channels + channel];
        to[OUT_B * SLICE] = norm.b;
        to[OUT_C * SLICE] = fmaf(-norm.b, norm.mean, norm.c);
#pragma unroll
        for (int row = 0; row < 4; row++) to[(IN_MEAN + row) * SLICE] = args.previous[row * args.channels + channel];
    }

    // ---- copies ---------------------------------------------------------------------------------------------

    // Begins the copies of what the step needs and is not in the ring yet: rows of da and y, and its rows of x.
    __device__ __forceinline__ void fetch(const Step& step, Loaded& loaded, int half) {
        const int last = min((step.start + args.rows - ROWS + args.pad) / STRIDE, args.output - 1);
        const int count = max(last - loaded.next + 1, 0);
        const int channel = first_channel + lane % 4 * LANES;
        if (channel < args.channels) {
            fetch_gradients(step, loaded, count, channel);
            fetch_inputs(step, half, channel);
        }
        copy_async_commit();
        loaded.fresh = loaded.head;
        loaded.fresh_count = count;
        loaded.head = ring_slot(loaded.head, count, args.ring_rows);
        loaded.next += count;
    }

    __device__ __forceinline__ void fetch_gradients(const Step& step, const Loaded& loaded, int count, int channel) const {
        const int pixel = dy_units.pixel + lane / 4, column = inner + pixel;
        if (pixel >= inner_columns) return;
        const int at_row = args.output * args.channels, first = loaded.next + dy_units.row;
        const size_t from = step.y_at + static_cast<unsigned>(first * at_row + (base + column) * args.channels + channel);
        const T *da = static_cast<const T*>(args.da) + from, *y = static_cast<const T*>(args.y) + from;
        float* cells = ring + column * PIXEL + lane % 4 * CELL;
        // Neighbouring pixels have da and y in opposite halves, so that copies and loads use all banks.
        const int da_half = column % 2 * (CELL / 2), y_half = CELL / 2 - da_half;
        int slot = ring_slot(loaded.head, dy_units.row, args.ring_rows);
#pragma unroll 1
        for (int row = dy_units.row; row < count; row += dy_units.rows) {
            float* cell = cells + slot * ring_row;
            copy_async_lanes(cell + da_half, da);
            copy_async_lanes(cell + y_half, y);
            da += dy_units.rows * at_row;
            y += dy_units.rows * at_row;
            slot = ring_slot(slot, dy_units.rows, args.ring_rows);
        }
    }

    __device__ __forceinline__ void fetch_inputs(const Step& step, int half, int channel) const {
        const int left = max(tile_first, 0), pixel = x_units.pixel + lane / 4;
        if (left + pixel >= tile_end) return;
        const int column = left - tile_first + pixel, place = column + column / COLUMNS * (STAGED - COLUMNS);
        const int at_row = args.input * args.channels;
        // Row −1, which is not read, may begin before the tensor.
        const T* x = static_cast<const T*>(args.x) + step.x_at +
                     ((step.start + x_units.row) * at_row + (left + pixel) * args.channels + channel);
        T* to = stage + (half * args.rows + x_units.row) * stage_row + place * SLICE + lane % 4 * LANES;
#pragma unroll 1
        for (int row = x_units.row; row < args.rows; row += x_units.rows) {
            if (in_map(step.start + row)) copy_async_lanes(to, x);
            x += x_units.rows * at_row;
            to += x_units.rows * stage_row;
        }
    }

    // Begins the copies of the image's gate and squeeze gradient, each warp for itself.
    __device__ __forceinline__ void fetch_factors(int image) {
        const int channel = lane % 8 * 4;
        if (lane >= 16 || first_channel + channel >= args.channels) return;
        const float* from = lane < 8 ? args.gate : args.squeeze_gradient;
        copy_async_16(factors + (warp * 2 + lane / 8) * SLICE + channel,
                      from + static_cast<size_t>(image) * args.channels + first_channel + channel);
    }

    // ---- dy -------------------------------------------------------------------------------------------------

    // From da and y, as the warp's own copies brought them, to dy. A lane has 4 channels of two pixels of a unit.
    __device__ __forceinline__ void form(const Loaded& loaded) {
        const int channel = lane % 8 * 4;
        const bool valid = first_channel + channel < args.channels;
        float scale[4], shift[4], b[4], c[4], gate[4], squeeze[4];
        load_group(scale, constants + OUT_SCALE * SLICE + channel);
        load_group(shift, constants + OUT_SHIFT * SLICE + channel);
        load_group(b, constants + OUT_B * SLICE + channel);
        load_group(c, constants + OUT_C * SLICE + channel);
        load_group(gate, factors + warp * 2 * SLICE + channel);
        load_group(squeeze, factors + (warp * 2 + 1) * SLICE + channel);
        const int pixel = dy_units.pixel + lane / 8, column = inner + pixel;
        float* cells = ring + column * PIXEL + channel / LANES * CELL;
        // In elements of a cell.
        const int da_half = column % 2 * LANES + channel % LANES, y_half = (column + 1) % 2 * LANES + channel % LANES;
        constexpr int APART = 4 * PIXEL;
        const bool inside[2] = {valid && pixel < inner_columns, valid && pixel + 4 < inner_columns};
        int slot = ring_slot(loaded.fresh, dy_units.row, args.ring_rows);
#pragma unroll 1
        for (int row = dy_units.row; row < loaded.fresh_count; row += dy_units.rows) {
            float* cell = cells + slot * ring_row;
            slot = ring_slot(slot, dy_units.rows, args.ring_rows);
            Four da[2], y[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (!inside[i]) continue;
                const T* raw = reinterpret_cast<const T*>(cell + i * APART);
                da[i] = *reinterpret_cast<const Four*>(raw + da_half);
                y[i] = *reinterpret_cast<const Four*>(raw + y_half);
            }
            // dy of a lane lies where other lanes find da and y.
            warp_barrier();
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (!inside[i]) continue;
                float dy[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const float out = to_float(y[i].v[k]);
                    float unused, slope;
                    silu_and_slope<T>(fmaf(scale[k], out, shift[k]), unused, slope);
                    const float du = fmaf(to_float(da[i].v[k]), gate[k], squeeze[k]) * slope;
                    dy[k] = fmaf(scale[k], du, fmaf(b[k], out, c[k]));
                }
                store_group(cell + i * APART + channel % LANES, dy);
            }
        }
    }

    // ---- the product ----------------------------------------------------------------------------------------

    // Both products of each tap.
    __device__ __forceinline__ void correlate(
        float (&gradient)[ROWS][COLUMNS][C], const float (&a)[ROWS][COLUMNS][C], int row, int slot) {
        const int own = worker * (COLUMNS / STRIDE) * PIXEL + in_pixel(at);
        const int first = (row + args.pad) / STRIDE - BEFORE;
#pragma unroll
        for (int jy = 0; jy < ROWS_REACHED; jy++) {
            const bool inside = static_cast<unsigned>(first + jy) < static_cast<unsigned>(args.output);
            const float* from = inside ? ring + slot * ring_row + own : zeros + in_pixel(at);
            slot = ring_slot(slot, 1, args.ring_rows);
            float w[ROWS][K][C];
#pragma unroll
            for (int ty = 0; ty < ROWS; ty++) {
                const int ky = ty + STRIDE * (BEFORE - jy);
                if (ky < 0 || ky >= K) continue;
#pragma unroll
                for (int kx = 0; kx < K; kx++) load_group(w[ty][kx], weights + (ky * K + kx) * SLICE + at);
            }
#pragma unroll
            for (int j = 0; j < REACHED; j++) {
                float dy[C];
                load_group(dy, from + j * PIXEL);
#pragma unroll
                for (int ty = 0; ty < ROWS; ty++) {
                    const int ky = ty + STRIDE * (BEFORE - jy);
                    if (ky < 0 || ky >= K) continue;
#pragma unroll
                    for (int t = 0; t < COLUMNS; t++) {
                        const int kx = t + STRIDE * (BEFORE - j);
                        if (kx < 0 || kx >= K) continue;
#pragma unroll
                        for (int i = 0; i < C; i++) {
                            gradient[ty][t][i] = fmaf(dy[i], w[ty][kx][i], gradient[ty][t][i]);
                            taps[ky * K + kx][i] = fmaf(dy[i], a[ty][t][i], taps[ky * K + kx][i]);
                        }
                    }
                }
            }
        }
    }

    // Of the thread's positions in this step: their part of all sums, and dx.
    __device__ __forceinline__ void positions(const Step& step, int half) {
        const int row = step.start + own_row, column = tile_first + worker * COLUMNS;
        if (row >= args.input || column >= args.input) return;
        Stored x[ROWS][COLUMNS];
        float a[ROWS][COLUMNS][C], slope[ROWS][COLUMNS][C], gradient[ROWS][COLUMNS][C] = {};
        load_inputs(x, a, slope, half);
        // Positions outside the map add nothing to any sum.
        if (row < 0 || row + ROWS > args.input || column < 0 || column + COLUMNS > args.input) {
#pragma unroll
            for (int ty = 0; ty < ROWS; ty++) {
#pragma unroll
                for (int t = 0; t < COLUMNS; t++) {
                    if (in_map(row + ty) && in_map(column + t)) continue;
#pragma unroll
                    for (int i = 0; i < C; i++) a[ty][t][i] = slope[ty][t][i] = 0.0f;
                }
            }
        }
        correlate(gradient, a, row, ring_slot(step.tail, own_row / STRIDE, args.ring_rows));
        float mean[C];
        load_group(mean, constants + IN_MEAN * SLICE + at);
        const float keep = !NORMALISED && args.keep != nullptr ? args.keep[step.image] : 1.0f;
#pragma unroll
        for (int ty = 0; ty < ROWS; ty++) {
            // Position −1, which is not written, may begin before the tensor.
            const int from = ((row + ty) * args.input + column) * args.channels + first_channel + at;
            T* to = static_cast<T*>(args.dx) + step.x_at + from;
#pragma unroll
            for (int t = 0; t < COLUMNS; t++) {
                const bool inside = (STRIDE == 1 || in_map(row + ty)) && in_map(column + t);
                if (NORMALISED || inside) finish(gradient[ty][t], x[ty][t], slope[ty][t], mean, to, keep, inside);
                to += args.channels;
            }
        }
    }

    __device__ __forceinline__ bool in_map(int place) const {
        return (STRIDE == 1 || place >= 0) && place < args.input;
    }

    // x as stored, the convolution's input, and silu's slope there.
    __device__ __forceinline__ void load_inputs(Stored (&x)[ROWS][COLUMNS], float (&a)[ROWS][COLUMNS][C],
                                                float (&slope)[ROWS][COLUMNS][C], int half) const {
        const T* staged = stage + (half * args.rows + own_row) * stage_row + worker * STAGED * SLICE + at;
        float scale[C], shift[C];
        load_group(scale, constants + IN_SCALE * SLICE + at);
        load_group(shift, constants + IN_SHIFT * SLICE + at);
#pragma unroll
        for (int ty = 0; ty < ROWS; ty++) {
#pragma unroll
            for (int t = 0; t < COLUMNS; t++) {
                x[ty][t] = *reinterpret_cast<const Stored*>(staged + t * SLICE);
                x[ty][t].get(a[ty][t]);
#pragma unroll
                for (int i = 0; i < C; i++) {
                    slope[ty][t][i] = 1.0f;
                    if constexpr (NORMALISED) {
                        silu_and_slope<T>(fmaf(scale[i], a[ty][t][i], shift[i]), a[ty][t][i], slope[ty][t][i]);
                    }
                }
            }
            staged += stage_row;
        }
    }

    // Stores dx of a position and adds to the sums, from the value as stored.
    __device__ __forceinline__ void finish(float (&gradient)[C], const Stored& x, const float (&slope)[C],
                                           const float (&mean)[C], T* to, float keep, bool inside) {
        float y[C];
        if constexpr (NORMALISED) {
            x.get(y);
#pragma unroll
            for (int i = 0; i < C; i++) gradient[i] *= slope[i];
        } else {
            const ptrdiff_t at_dx = to - static_cast<const T*>(args.dx);
            load_group(y, static_cast<const T*>(args.previous_y) + at_dx);
            if (args.shortcut != nullptr) {
                float around[C];
                load_group(around, static_cast<const T*>(args.shortcut) + at_dx);
#pragma unroll
                for (int i = 0; i < C; i++) gradient[i] += around[i];
            }
        }
        const Stored stored = Stored::of(gradient[0], gradient[1]);
        if (inside) *reinterpret_cast<Stored*>(to) = stored;
        stored.get(gradient);
#pragma unroll
        for (int i = 0; i < C; i++) {
            const float du = keep * gradient[i];
            sums[0][i] += du;
            sums[1][i] = fmaf(du, y[i] - mean[i], sums[1][i]);
        }
    }

    // ---- the block ------------------------------------------------------------------------------------------

    // Writes the block's part of the taps' and the batch norm's sums. `scratch` is [warps, SUMS/C, SLICE].
    __device__ __forceinline__ void store_sums(float* scratch) {
        barrier();
#pragma unroll
        for (int i = 0; i < C; i++) sums[1][i] *= constants[IN_RECIPROCAL * SLICE + at + i];
        float* to = scratch + warp * (SUMS / C) * SLICE + at;
#pragma unroll
        for (int number = 0; number < SUMS / C; number++) {
            float both[C];
#pragma unroll
            for (int i = 0; i < C; i++) {
                const float own = number < K * K ? taps[number < K * K ? number : 0][i]
                                                 : sums[number < K * K ? 0 : number - K * K][i];
                both[i] = own + shuffle_xor(own, GROUPS);
            }
            if (lane < GROUPS) store_group(to + number * SLICE, both);
        }
        barrier();
        constexpr int NUMBERS = SUMS / C * SLICE;
        const size_t part = blockIdx.y;
        for (int i = threadIdx.x; i < NUMBERS; i += THREADS) {
            const int number = i / SLICE, channel = first_channel + i % SLICE;
            if (channel >= args.channels) continue;
            float sum = 0.0f;
            for (int other = 0; other < WARPS; other++) sum += scratch[other * NUMBERS + i];
            if (number < K * K) {
                args.weight_partials[(part * args.channels + channel) * K * K + number] = sum;
            } else {
                args.sum_partials[(part * 2 + number - K * K) * args.channels + channel] = sum;
            }
        }
    }

    __device__ __forceinline__ void run() {
        prepare();
        const int part = static_cast<int>(blockIdx.y) / args.tiles;
        const int first_image = part / args.strips * args.images_per_block;
        const int end_image = min(first_image + args.images_per_block, args.images);
        const int first_row = part % args.strips * args.strip_rows - args.pad % STRIDE;
        const int end_row = min(first_row + args.strip_rows, args.input);
        // The first output row that the strip needs, perhaps above the map.
        const int top = (first_row + args.pad) / STRIDE - BEFORE, above = top < 0 ? -top : 0;

        const size_t x_image = static_cast<size_t>(args.input) * args.input * args.channels;
        const size_t y_image = static_cast<size_t>(args.output) * args.output * args.channels;
        Step next = {first_image, first_image * x_image, first_image * y_image, first_row, 0}, step = next;
        Loaded loaded = {top + above, above % args.ring_rows, 0, 0};
        for (int count = 0;; count++) {
            const bool more = next.image < end_image;
            if (more) {
                if (next.start == first_row) fetch_factors(next.image);
                fetch(next, loaded, count & 1);
            }
            if (count > 0 && works) positions(step, ~count & 1);
            if (!more) break;
            copy_async_wait<0>();
            warp_barrier();
            form(loaded);
            barrier();
            step = next;
            next.start += args.rows;
            next.tail = ring_slot(next.tail, args.rows / STRIDE, args.ring_rows);
            if (next.start >= end_row) {
                next.image++;
                next.x_at += x_image;
                next.y_at += y_image;
                next.start = first_row;
                next.tail = ring_slot(loaded.head, args.ring_rows - above, args.ring_rows);
                loaded.next = top + above;
            }
        }
        store_sums(ring);
    }
};
