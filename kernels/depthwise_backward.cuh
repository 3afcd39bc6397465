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

#include "depthwise_backward_arguments.cuh"
#include "depthwise_recompute.cuh"
#include "depthwise_sums.cuh"

template <typename T, int K, int STRIDE, DepthwiseBefore BEFORE_IT>
struct DepthwiseBackward {
    static constexpr bool NORMALISED = BEFORE_IT != DepthwiseBefore::IDENTITY;
    static constexpr bool RECOMPUTES = BEFORE_IT == DepthwiseBefore::RECOMPUTED;
    static constexpr int THREADS = DEPTHWISE_THREADS, WARPS = DEPTHWISE_WARPS, SLICE = DEPTHWISE_SLICE;
    static constexpr int C = DEPTHWISE_CHANNELS, GROUPS = DEPTHWISE_GROUPS;
    static constexpr int COLUMNS = STRIDE == 1 ? DEPTHWISE_COLUMNS_STRIDE1 : DEPTHWISE_COLUMNS_STRIDE2;
    static constexpr int ROWS = STRIDE;
    using Element = T;
    using Stored = Two<T>;
    using Four = Group<T, 4>;
    using Step = DepthwiseStep;
    using Loaded = DepthwiseLoaded;
    // Output column `xo` and input column `x` are connected by tap x + pad − STRIDE·xo. For a thread's first column
    // x0, x0 + pad is divisible by the stride, so its columns need the output columns (x0 + pad)/STRIDE − BEFORE and
    // the following REACHED − 1. Rows likewise.
    static constexpr int BEFORE = (K - 1) / STRIDE;
    static constexpr int REACHED = (COLUMNS - 1) / STRIDE + 1 + BEFORE;
    static constexpr int ROWS_REACHED = (ROWS - 1) / STRIDE + 1 + BEFORE;
    static constexpr int NUMBERS = K * K + 2;
    // Floats of a cell of eight channels, which has room for da and y as stored, and of a pixel.
    static constexpr int CELL = LANES * 2 * sizeof(T) / sizeof(float), PIXEL = SLICE / LANES * CELL;
    // x in shared memory: threads of a warp are an odd number of columns apart, so that they read from all banks.
    static constexpr int STAGED = COLUMNS | 1;
    // What computes the expansion again.
    using Expansion = RecomputeIf<RECOMPUTES, T, SLICE * sizeof(T)>;

    const DepthwiseBackwardArguments& args;
    const int lane, warp;
    int first_channel;
    // First input column and end of the tile; output column of ring column 0; ring columns.
    int tile_first, tile_end, base, reach;
    int inner, inner_columns;  // ring columns that are in the map: the first, and their number
    int ring_row, stage_row;  // elements
    float* ring;       // [ring_rows, reach, SLICE]
    float* zeros;      // [REACHED, SLICE]: read in place of rows outside the map
    T* stage;          // [2, rows, workers · STAGED, SLICE]: x of this iteration and of the next
    float* weights;    // [K·K, SLICE]
    float* constants;  // [DEPTHWISE_CONSTANTS, SLICE]
    float* factors;    // [WARPS, 2, SLICE]: gate and squeeze gradient of the image whose rows a warp copied last

    // The thread's share of the product: its channels in the slice, its first column and its first row of an iteration.
    int at, worker, own_row;
    bool works;
    float numbers[NUMBERS][C];  // sums of the taps, and the two of the batch norm

    DepthwiseUnits dy_units, x_units;  // the thread's share of the copies
    Expansion expansion;

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
            for (int number = 0; number < NUMBERS; number++) numbers[number][i] = 0.0f;
        }
    }

    // Where channel `channel` of the slice is in a pixel of the ring.
    static __device__ __forceinline__ int in_pixel(int channel) {
        return channel / LANES * CELL + channel % LANES;
    }

    __device__ __forceinline__ void prepare() {
        SharedArena arena;
        const int cells = args.ring_rows * ring_row, scratch = WARPS * NUMBERS * SLICE;
        ring = arena.take<float>(cells > scratch ? cells : scratch);
        zeros = arena.take<float>(REACHED * PIXEL);
        stage = arena.take<T>(2 * args.rows * stage_row);
        weights = arena.take<float>(K * K * SLICE);
        constants = arena.take<float>(DEPTHWISE_CONSTANTS * SLICE);
        factors = arena.take<float>(WARPS * 2 * SLICE);
        if constexpr (RECOMPUTES)
            expansion.prepare(
                arena.take<T>(Expansion::WEIGHTS), args.expand_weight, args.inputs, first_channel, args.channels);
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

    // Begins the copies of what the step needs and is not in the ring yet: rows of da and y, and its rows of x.
    __device__ __forceinline__ void fetch(const Step& step, Loaded& loaded, int half) {
        const int last = min((step.start + args.rows - ROWS + args.pad) / STRIDE, args.output - 1);
        const int count = max(last - loaded.next + 1, 0);
        const int channel = first_channel + lane % 4 * LANES;
        if (channel < args.channels) {
            fetch_gradients(step, loaded, count, channel);
            if constexpr (!RECOMPUTES) fetch_inputs(step, half, channel);
        }
        if constexpr (RECOMPUTES) fetch_narrow(*this, step, half);
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
        const size_t from = step.at(args.output, args.channels) +
                            static_cast<unsigned>(first * at_row + (base + column) * args.channels + channel);
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
        const int place = staged_place(left - tile_first + pixel);
        const int at_row = args.input * args.channels;
        // Row −1, which is not read, may begin before the tensor.
        const T* x = static_cast<const T*>(args.x) + step.at(args.input, args.channels) +
                     ((step.start + x_units.row) * at_row + (left + pixel) * args.channels + channel);
        T* to = stage + (half * args.rows + x_units.row) * stage_row + place * SLICE + lane % 4 * LANES;
#pragma unroll 1
        for (int row = x_units.row; row < args.rows; row += x_units.rows) {
            if (in_map(step.start + row)) copy_async_lanes(to, x);
            x += x_units.rows * at_row;
            to += x_units.rows * stage_row;
        }
    }

    // Where column `column` of the tile is in a row of `stage`.
    static __device__ __forceinline__ int staged_place(int column) {
        return column + column / COLUMNS * (STAGED - COLUMNS);
    }

    // Begins the copies of the image's gate and squeeze gradient, each warp for itself.
    __device__ __forceinline__ void fetch_factors(int image) {
        const int channel = lane % 8 * 4;
        if (lane >= 16 || first_channel + channel >= args.channels) return;
        const float* from = lane < 8 ? args.gate : args.squeeze_gradient;
        copy_async_16(factors + (warp * 2 + lane / 8) * SLICE + channel,
                      from + static_cast<size_t>(image) * args.channels + first_channel + channel);
    }

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

    // Both products of each tap, for row `ty` of the thread's.
    template <int ty>
    __device__ __forceinline__ void correlate(
        float (&gradient)[COLUMNS][C], const float (&a)[COLUMNS][C], int first, int slot) {
        const int own = worker * (COLUMNS / STRIDE) * PIXEL + in_pixel(at), size = args.ring_rows * ring_row;
        const int zero = static_cast<int>(zeros - ring) + in_pixel(at);
        int at_row = slot * ring_row + own;
#pragma unroll
        for (int jy = 0; jy < ROWS_REACHED; jy++) {
            const bool inside = static_cast<unsigned>(first + jy) < static_cast<unsigned>(args.output);
            const float* from = ring + (inside ? at_row : zero);
            at_row += ring_row;
            if (at_row >= size) at_row -= size;
            const int ky = ty + STRIDE * (BEFORE - jy);
            if (ky < 0 || ky >= K) continue;
            float w[K][C];
#pragma unroll
            for (int kx = 0; kx < K; kx++) load_group(w[kx], weights + (ky * K + kx) * SLICE + at);
#pragma unroll
            for (int j = 0; j < REACHED; j++) {
                float dy[C];
                load_group(dy, from + j * PIXEL);
#pragma unroll
                for (int t = 0; t < COLUMNS; t++) {
                    const int kx = t + STRIDE * (BEFORE - j);
                    if (kx < 0 || kx >= K) continue;
#pragma unroll
                    for (int i = 0; i < C; i++) {
                        gradient[t][i] = fmaf(dy[i], w[kx][i], gradient[t][i]);
                        numbers[ky * K + kx][i] = fmaf(dy[i], a[t][i], numbers[ky * K + kx][i]);
                    }
                }
            }
        }
    }

    // Of row `ty` of the thread's positions in this step: their part of all sums, and dx.
    template <int ty>
    __device__ __forceinline__ void positions(const Step& step, int half) {
        const int row = step.start + own_row + ty, column = tile_first + worker * COLUMNS;
        if (!in_map(row) || column >= args.input) return;
        Stored x[COLUMNS];
        float a[COLUMNS][C], slope[COLUMNS][C], gradient[COLUMNS][C] = {};
        load_inputs(x, a, slope, (half * args.rows + own_row + ty) * stage_row);
        // Columns outside the map add nothing to any sum.
        if (column < 0 || column + COLUMNS > args.input) {
#pragma unroll
            for (int t = 0; t < COLUMNS; t++) {
                if (in_map(column + t)) continue;
#pragma unroll
                for (int i = 0; i < C; i++) a[t][i] = slope[t][i] = 0.0f;
            }
        }
        const int first = (row - ty + args.pad) / STRIDE - BEFORE;
        correlate<ty>(gradient, a, first, ring_slot(step.tail, own_row / STRIDE, args.ring_rows));
        float mean[C];
        load_group(mean, constants + IN_MEAN * SLICE + at);
        const float keep = !NORMALISED && args.keep != nullptr ? args.keep[step.image] : 1.0f;
        // Column −1, which is not written, may begin before the tensor.
        T* to = static_cast<T*>(args.dx) + step.at(args.input, args.channels) +
                ((row * args.input + column) * args.channels + first_channel + at);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const bool inside = in_map(column + t);
            if (NORMALISED || inside) finish(gradient[t], x[t], slope[t], mean, to, keep, inside);
            to += args.channels;
        }
    }

    __device__ __forceinline__ bool in_map(int place) const {
        return (STRIDE == 1 || place >= 0) && place < args.input;
    }

    // x as stored, the convolution's input, and silu's slope there. `row`: where the row begins in `stage`.
    __device__ __forceinline__ void load_inputs(
        Stored (&x)[COLUMNS], float (&a)[COLUMNS][C], float (&slope)[COLUMNS][C], int row) const {
        const T* staged = stage + row + worker * STAGED * SLICE + at;
        float scale[C], shift[C];
        load_group(scale, constants + IN_SCALE * SLICE + at);
        load_group(shift, constants + IN_SHIFT * SLICE + at);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            x[t] = *reinterpret_cast<const Stored*>(staged + t * SLICE);
            x[t].get(a[t]);
#pragma unroll
            for (int i = 0; i < C; i++) {
                slope[t][i] = 1.0f;
                if constexpr (NORMALISED) {
                    silu_and_slope<T>(fmaf(scale[i], a[t][i], shift[i]), a[t][i], slope[t][i]);
                }
            }
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
        if (inside && has_dx<K, STRIDE, BEFORE_IT>(args)) *reinterpret_cast<Stored*>(to) = stored;
        stored.get(gradient);
#pragma unroll
        for (int i = 0; i < C; i++) {
            const float du = keep * gradient[i];
            numbers[K * K][i] += du;
            numbers[K * K + 1][i] = fmaf(du, y[i] - mean[i], numbers[K * K + 1][i]);
        }
    }

    // Writes the block's part of the taps' sums and, with dx, of the batch norm's; the last block adds the latter.
    __device__ __forceinline__ void finish_sums() {
#pragma unroll
        for (int i = 0; i < C; i++) numbers[K * K + 1][i] *= constants[IN_RECIPROCAL * SLICE + at + i];
        // The ring has been read.
        barrier();
        const size_t part = blockIdx.y;
        add_up_block(numbers, ring, [&](int number, int in_slice, float sum) {
            const int channel = first_channel + in_slice;
            if (channel >= args.channels) return;
            if (number < K * K) {
                args.weight_partials[(part * args.channels + channel) * K * K + number] = sum;
            } else if (has_dx<K, STRIDE, BEFORE_IT>(args)) {
                args.sum_partials[(part * 2 + number - K * K) * args.channels + channel] = sum;
            }
        });
        static_assert(SumsOfRows<SLICE, DEPTHWISE_THREADS>::FLOATS <= (K * K + 2) * SLICE * WARPS, "room in the ring");
        if (has_dx<K, STRIDE, BEFORE_IT>(args)) finish_norm_sums<SLICE, DEPTHWISE_THREADS>(
            args, args.sum_partials, ring, blockIdx.x, args.channels, blockIdx.y, gridDim.y);
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

        Step next = {first_image, first_row, 0}, step = next;
        Loaded loaded = {top + above, above % args.ring_rows, 0, 0};
        fetch_factors(first_image);
        for (int count = 0;; count++) {
            const bool more = next.image < end_image;
            if (more) fetch(next, loaded, count & 1);
            if (count > 0 && works) {
                positions<0>(step, ~count & 1);
                if constexpr (ROWS == 2) positions<1>(step, ~count & 1);
            }
            if (!more) break;
            copy_async_wait<0>();
            warp_barrier();
            form(loaded);
            if constexpr (RECOMPUTES) expand_narrow(*this, next, count & 1);
            barrier();
            step = next;
            next.start += args.rows;
            next.tail = ring_slot(next.tail, args.rows / STRIDE, args.ring_rows);
            if (next.start >= end_row) {
                next.image++;
                if (next.image < end_image) fetch_factors(next.image);
                next.start = first_row;
                next.tail = ring_slot(loaded.head, args.ring_rows - above, args.ring_rows);
                loaded.next = top + above;
            }
        }
        finish_sums();
    }
};
