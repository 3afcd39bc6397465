// Backward of the expansion in one sweep, which makes both gradients and reads du and y once. See expand_backward.cuh.
//
// RECOMPUTES: y is not stored. The weights and x are here anyway, so y = x·Wᵀ is made on the tensor cores, added in the order
// of pointwise.cuh and rounded as that stores it, and becomes dy in the registers in which it was made.
#pragma once

#include "expand_backward.cuh"

// A block has all channels, at most WIDE and NARROW, and goes through tiles of ROWS rows. How its eight warps divide
// the product dx [ROWS, NARROW] and the accumulators dW [WIDE, NARROW].
template <typename T_, class Shape, bool RECOMPUTES_>
struct ExpandSweepShape {
    using T = T_;
    static constexpr bool RECOMPUTES = RECOMPUTES_;
    static constexpr int WIDE = Shape::wide, NARROW = Shape::narrow, ROWS = Shape::rows;
    static constexpr int THREADS = SWEEP_THREADS, WARPS = THREADS / WARP;
    static constexpr int DATA_DOWN = ROWS / 16, DATA_ACROSS = largest_divisor(NARROW / 16, WARPS / DATA_DOWN);
    static constexpr int WEIGHT_M = (WIDE / 16 + WARPS - 1) / WARPS;
    static constexpr int WEIGHT_WARPS = (WIDE / 16 + WEIGHT_M - 1) / WEIGHT_M;
    using Data = WarpTile<1, NARROW / 16 / DATA_ACROSS>;
    using Weights = WarpTile<WEIGHT_M, NARROW / 16>;
    // Channels of dy that the warps' accumulators cover. Those past WIDE read the next row, and their sums are not
    // stored.
    static constexpr int COVERED = 16 * WEIGHT_M * WEIGHT_WARPS;
    // Whether the accumulators leave registers in which the previous y waits.
    static constexpr bool AHEAD = WEIGHT_M * NARROW <= 64;
};

template <class S>
struct ExpandSweep {
    using T = typename S::T;
    static constexpr int STRIDE = ROW_STRIDE<T, S::NARROW>, DY_STRIDE = ROW_STRIDE<T, S::WIDE>;
    static constexpr int OCTETS = S::NARROW / LANES, PAST = S::COVERED - S::WIDE;
    // Elements of a row of du, and of du and y together.
    static constexpr int RAW_STRIDE = S::RECOMPUTES ? DY_STRIDE : S::WIDE, RAW = S::ROWS * RAW_STRIDE;
    static constexpr int COPIED = S::RECOMPUTES ? RAW : 2 * RAW;
    // Room for the sums at the end.
    static constexpr int SCRATCH = S::THREADS * 2 * LANES * sizeof(float) / sizeof(T);

    const ExpandBackwardArguments& args;
    T* raw;      // [2, ROWS, WIDE]: du, y; each thread reads what it copied. RECOMPUTES: [ROWS, DY_STRIDE], du
    T* dy;       // [ROWS, DY_STRIDE], then PAST more
    T* weights;  // [WIDE, STRIDE]
    T* x;        // [2, ROWS, STRIDE]
    float* norm;  // [4, WIDE]
    int channel, group, groups;  // this thread's octet of wide channels, its first row and the step to the next

    __device__ __forceinline__ ExpandSweep(const ExpandBackwardArguments& args, SharedArena& arena) : args(args) {
        raw = arena.take<T>(COPIED > SCRATCH ? COPIED : SCRATCH);
        dy = arena.take<T>(S::ROWS * DY_STRIDE + PAST);
        weights = arena.take<T>(S::WIDE * STRIDE);
        x = arena.take<T>(2 * S::ROWS * STRIDE);
        norm = arena.take<float>(4 * S::WIDE);
        const int octets = args.outputs / LANES;
        groups = S::THREADS / octets;
        channel = static_cast<int>(threadIdx.x) % octets * LANES;
        group = threadIdx.x / octets;
        if (group >= groups) group = S::ROWS;
    }
    // Loads the weights and batch norm's numbers; channels past the last are zero.
    __device__ __forceinline__ void begin() const {
        const T* from = static_cast<const T*>(args.weight);
#pragma unroll 1
        for (int unit = threadIdx.x; unit < S::WIDE * OCTETS; unit += S::THREADS) {
            const int line = unit / OCTETS, column = unit % OCTETS * LANES;
            const bool valid = line < args.outputs && column < args.inputs;
            copy_lanes(weights + line * STRIDE + column, from + (valid ? line * args.inputs + column : 0), valid);
        }
#pragma unroll 1
        for (int n = threadIdx.x; n < args.outputs; n += S::THREADS) {
            const NormBackward of =
                NormBackward::of(args.coefficients, args.sums, args.outputs, n, args.inverse_rows);
            norm[n] = of.a;
            norm[S::WIDE + n] = of.b;
            norm[2 * S::WIDE + n] = of.c;
            norm[3 * S::WIDE + n] = of.mean;
        }
        const float zeros[LANES] = {};
#pragma unroll 1
        for (int unit = threadIdx.x; unit < (S::ROWS * DY_STRIDE + PAST) / LANES; unit += S::THREADS)
            store_lanes(dy + unit * LANES, zeros);
    }
    __device__ __forceinline__ void begin_tile(int row, int rows, int buffer) const {
        const size_t start = static_cast<size_t>(row) * args.outputs + channel;
#pragma unroll 1
        for (int at = group; at < rows; at += groups) {
            const size_t from = start + static_cast<size_t>(at) * args.outputs;
            T* to = raw + at * RAW_STRIDE + channel;
            copy_lanes(to, static_cast<const T*>(args.du) + from, true);
            if constexpr (!S::RECOMPUTES) copy_lanes(to + RAW, static_cast<const T*>(args.y) + from, true);
        }
        T* to = x + buffer * (S::ROWS * STRIDE);
#pragma unroll 1
        for (int unit = threadIdx.x; unit < S::ROWS * OCTETS; unit += S::THREADS) {
            const int at = unit / OCTETS, column = unit % OCTETS * LANES;
            const bool valid = at < rows && column < args.inputs;
            const size_t from = valid ? static_cast<size_t>(row + at) * args.inputs + column : 0;
            copy_lanes(to + at * STRIDE + column, static_cast<const T*>(args.x) + from, valid);
        }
    }
    // Four channels at a time: batch norm's numbers of eight would take registers that the accumulators need. Lanes whose
    // vectors are in the same banks begin with different halves of them.
    __device__ __forceinline__ void form(int rows) const {
        if (group >= S::ROWS) return;
        const int lane = threadIdx.x % WARP, second = ((lane / 4) ^ (lane / 8)) % 2 * 4;
#pragma unroll 1
        for (int half = 0; half < LANES; half += 4) {
            const int part = channel + (half ^ second);
            const Pack<float> a = load_pack(norm + part), b = load_pack(norm + S::WIDE + part);
            const Pack<float> c = load_pack(norm + 2 * S::WIDE + part), mean = load_pack(norm + 3 * S::WIDE + part);
#pragma unroll 1
            for (int at = group; at < S::ROWS; at += groups) {
                T* to = dy + at * DY_STRIDE + part;
                if (at >= rows) {
                    store_pair(to, 0.0f, 0.0f);
                    store_pair(to + 2, 0.0f, 0.0f);
                    continue;
                }
                const T* from = raw + at * S::WIDE + part;
                const Group<T, 4> gradient = *reinterpret_cast<const Group<T, 4>*>(from);
                const Group<T, 4> value = *reinterpret_cast<const Group<T, 4>*>(from + RAW);
                Group<T, 4> result;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const NormBackward of = {a.v[i], b.v[i], c.v[i], mean.v[i]};
                    result.v[i] = from_float<T>(of.dy(to_float(gradient.v[i]), to_float(value.v[i])));
                }
                *reinterpret_cast<Group<T, 4>*>(to) = result;
            }
        }
    }
    // The same if y is made here. A warp has tiles of 16 rows by 16 channels, a lane 4 neighbouring channels of two rows.
    __device__ __forceinline__ void form_recomputed(int rows, int buffer) const {
        constexpr int DEPTH = S::NARROW / 16, TILES = S::ROWS / 16 * (S::WIDE / 16);
        const int lane = threadIdx.x % WARP, wide = (args.outputs + 15) / 16;
        // The row of the weights whose address this lane gives: channel 4·(i/2) + 2·n + i%2 is column i of tile n. These rows
        // are in half of the banks, so the load takes twice its time; du and dy are loaded and stored in twice as large pieces.
        const int line = lane % 8 / 2 * 4 + lane / 16 * 2 + lane % 2;
        const T* left = x + buffer * (S::ROWS * STRIDE) + lane % 16 * STRIDE + lane / 16 * LANES;
        const T* right = weights + line * STRIDE + lane / 8 % 2 * LANES;
#pragma unroll 1
        for (int tile = threadIdx.x / WARP; tile < TILES; tile += S::WARPS) {
            const int row = tile % (S::ROWS / 16) * 16, column = tile / (S::ROWS / 16) * 16;
            if (column / 16 >= wide) break;
            float c[1][2][4] = {};
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                uint32_t a[1][4], pair[4];
                load_matrix_x4(a[0], left + row * STRIDE + k * 16);
                load_matrix_x4(pair, right + column * STRIDE + k * 16);
                const uint32_t b[2][2] = {{pair[0], pair[1]}, {pair[2], pair[3]}};
                mma_tiles<T>(c, a, b);
            }
            form_pixels(c[0], row, column + lane % 4 * 4, rows);
            // All lanes come together for the next product.
            warp_barrier();
        }
    }
    // dy of y as the tensor cores left it: four channels of two rows.
    __device__ __forceinline__ void form_pixels(const float (&c)[2][4], int row, int part, int rows) const {
        if (part >= args.outputs) return;
        const Pack<float> scale = load_pack(norm + part), by_y = load_pack(norm + S::WIDE + part);
        const Pack<float> rest = load_pack(norm + 2 * S::WIDE + part), mean = load_pack(norm + 3 * S::WIDE + part);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = row + half * 8 + static_cast<int>(threadIdx.x) % WARP / 4;
            float value[4] = {};
            if (at < rows) {
                load_group(value, raw + at * RAW_STRIDE + part);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const NormBackward of = {scale.v[i], by_y.v[i], rest.v[i], mean.v[i]};
                    value[i] = of.dy(value[i], rounded<T>(c[i / 2][half * 2 + i % 2]));
                }
            }
            *reinterpret_cast<uint2*>(dy + at * DY_STRIDE + part) =
                make_uint2(packed<T>(value[0], value[1]), packed<T>(value[2], value[3]));
        }
    }
    template <class Output>
    __device__ __forceinline__ void put_data(const typename S::Data& c, const Output& output, int rows) const {
        const int warp = threadIdx.x / WARP;
        if (warp < S::DATA_DOWN * S::DATA_ACROSS)
            output.put(c, warp / S::DATA_ACROSS * 16, warp % S::DATA_ACROSS * (S::NARROW / S::DATA_ACROSS), rows);
    }
    __device__ __forceinline__ void multiply_data(typename S::Data& c) const {
        const int warp = threadIdx.x / WARP;
        if (warp >= S::DATA_DOWN * S::DATA_ACROSS) return;
        const int row = warp / S::DATA_ACROSS * 16, column = warp % S::DATA_ACROSS * (S::NARROW / S::DATA_ACROSS);
        c.clear();
        multiply<false>(c, dy + row * DY_STRIDE, DY_STRIDE, weights + column, STRIDE, (args.outputs + 15) / 16 * 16);
    }
    // This warp's accumulators of the weights' gradient.
    __device__ __forceinline__ void multiply_weights(typename S::Weights& c, int buffer) const {
        const int warp = threadIdx.x / WARP;
        if (warp < S::WEIGHT_WARPS)
            multiply<true>(
                c, dy + warp * (16 * S::WEIGHT_M), DY_STRIDE, x + buffer * (S::ROWS * STRIDE), STRIDE, S::ROWS);
    }
    __device__ __forceinline__ void store_weights(const typename S::Weights& c) const {
        const int warp = threadIdx.x / WARP;
        if (warp >= S::WEIGHT_WARPS) return;
        float* to = args.weight_partials + static_cast<size_t>(blockIdx.x) * args.outputs * args.inputs;
        c.visit([&](int down, int column, float one, float two) {
            const int line = warp * (16 * S::WEIGHT_M) + down;
            if (line < args.outputs && column < args.inputs) store_pair(to + line * args.inputs + column, one, two);
        });
    }
};

// While the tensor cores multiply and dx is stored, du, y and x of the next tile are copied.
template <class S>
__device__ __forceinline__ void expand_backward(const ExpandBackwardArguments& args) {
    using T = typename S::T;
    using Output = NarrowGradient<ExpandBackwardArguments, T, S::ROWS, S::NARROW, S::THREADS>;
    SharedArena arena;
    const ExpandSweep<S> sweep(args, arena);
    Output output(args, arena.take<T>(Output::SIZE));
    const RowRange range(args.rows, S::ROWS, blockIdx.x, gridDim.x);
    const auto rows_of = [&](int row) { return range.end - row < S::ROWS ? range.end - row : S::ROWS; };
    typename S::Weights weights;
    typename S::Data data;
    weights.clear();
    sweep.begin();
    if (range.first < range.end) sweep.begin_tile(range.first, rows_of(range.first), 0);
    copy_async_commit();
    barrier();
    int buffer = 0;
    for (int row = range.first; row < range.end; row += S::ROWS, buffer ^= 1) {
        const int rows = rows_of(row), next = row + S::ROWS;
        copy_async_wait<0>();
        if constexpr (S::RECOMPUTES) {
            barrier();  // threads read what others copied
            sweep.form_recomputed(rows, buffer);
        } else {
            sweep.form(rows);
        }
        barrier();
        output.begin_shortcut(row, rows);
        copy_async_commit();
        if (next < range.end) sweep.begin_tile(next, rows_of(next), buffer ^ 1);
        copy_async_commit();
        if (S::AHEAD) output.begin_previous(row, rows);
        sweep.multiply_data(data);
        sweep.multiply_weights(weights, buffer);
        if (args.shortcut != nullptr) {
            copy_async_wait<1>();
            barrier();
        }
        sweep.put_data(data, output, rows);
        barrier();
        output.template store<S::AHEAD>(row, rows);
    }
    static_assert(ExpandSweep<S>::SCRATCH * sizeof(T) >= Output::SCRATCH * sizeof(float), "a place for the sums");
    sweep.store_weights(weights);
    output.finish(reinterpret_cast<float*>(sweep.raw), blockIdx.x);
}
