// The stem's backward pass. See stem.cu.
#pragma once

#include "stem_forward.cuh"

// Grid: parts. A tile has 8·⌊256/(3·C/8)⌋ pixels, fewer if its rows would not fit. `partials` [parts, C, 3, 3, 3].
#define STEM_BACKWARD_FIELDS(F)   \
    F(const void*, image)         \
    F(const void*, y)             \
    F(const void*, du)            \
    F(const float*, coefficients) \
    F(const float*, sums)         \
    F(float*, partials)           \
    F(int, images)                \
    F(int, input)                 \
    F(int, output)                \
    F(int, pad)                   \
    F(int, pitch)                 \
    F(int, rows)                  \
    F(int, channels)              \
    F(int, tile_pixels)           \
    F(int, dy_pixels)             \
    F(int, tiles)                 \
    F(int, tiles_per_part)        \
    F(float, inverse_rows)
ARGUMENTS(StemBackwardArguments, STEM_BACKWARD_FIELDS)

// A thread's place: eight channels and a row of the window, and pixels `lane`, `lane` + `lanes`, … of the tile.
struct StemBackwardThread {
    int groups, lanes, group, ky, lane;

    __device__ __forceinline__ explicit StemBackwardThread(int channels) {
        groups = channels / LANES;
        lanes = STEM_THREADS / (SIDE * groups);
        const int role = static_cast<int>(threadIdx.x) % (SIDE * groups);
        group = role % groups;
        ky = role / groups;
        lane = static_cast<int>(threadIdx.x) / (SIDE * groups);
    }
    __device__ __forceinline__ bool idle() const { return lane >= lanes; }
};

// Writes dy of a tile to shared memory as [pixels, C]; a thread has eight channels.
template <typename T>
__device__ __forceinline__ void load_gradient(
    const StemBackwardArguments& args, const StemTile& tile, int pixels, const NormBackward* norms, float* shared) {
    const int groups = args.channels / LANES;
    const size_t start = (tile.image * pixels + tile.begin) * args.channels;
    const T* y = static_cast<const T*>(args.y) + start;
    const T* du = static_cast<const T*>(args.du) + start;
    const int vectors = (tile.end - tile.begin) * groups;
#pragma unroll 1
    for (int vector = static_cast<int>(threadIdx.x); vector < vectors; vector += STEM_THREADS) {
        const NormBackward* norm = norms + vector % groups * LANES;
        // Four channels at a time, because the sums leave few registers.
        constexpr int N = Pack<T>::N;
#pragma unroll
        for (int part = 0; part < LANES; part += N) {
            const Pack<T> values = load_pack(y + static_cast<size_t>(vector) * LANES + part);
            const Pack<T> gradients = load_pack(du + static_cast<size_t>(vector) * LANES + part);
#pragma unroll
            for (int four = 0; four < N; four += 4) {
                Pack<float> out;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float gradient = to_float(gradients.v[four + i]), value = to_float(values.v[four + i]);
                    out.v[i] = norm[part + four + i].dy(gradient, value);
                }
                store_pack(shared + vector * LANES + part + four, out);
            }
        }
    }
}

// Writes the part's gradient from those of its threads, one tap of the window's row at a time.
__device__ __forceinline__ void finish_gradient(
    const StemBackwardArguments& args, const StemBackwardThread& thread, const float (&sums)[ROW_TAPS][LANES],
    float* scratch) {
    const int width = SIDE * args.channels;
    float* out = args.partials + static_cast<size_t>(blockIdx.x) * TAPS * args.channels;
    // There may be more sums than threads.
#pragma unroll
    for (int tap = 0; tap < ROW_TAPS; tap++) {
        if (!thread.idle()) {
            store_lanes(scratch + thread.lane * width + thread.ky * args.channels + thread.group * LANES, sums[tap]);
        }
        barrier();
        for (int own = static_cast<int>(threadIdx.x); own < width; own += STEM_THREADS) {
            float total = 0.0f;
            for (int lane = 0; lane < thread.lanes; lane++) total += scratch[lane * width + own];
            const int ky = own / args.channels, channel = own % args.channels;
            out[((channel * COLORS + tap % COLORS) * SIDE + ky) * SIDE + tap / COLORS] = total;
        }
        barrier();
    }
}

template <typename T>
__device__ __forceinline__ void stem_backward(const StemBackwardArguments& args) {
    SharedArena arena;
    const StemMap map = {args.input, args.output, args.pad, args.pitch};
    const StemBackwardThread thread(args.channels);
    NormBackward* norms = arena.take<NormBackward>(args.channels);
    float* rows = arena.take<float>(args.rows * args.pitch);
    // At least three pixels for each lane, so that the sums fit the same memory.
    float* dy = arena.take<float>(args.dy_pixels * args.channels);
    const size_t total = static_cast<size_t>(args.images) * args.input * args.input * COLORS;
    const int own = static_cast<int>(threadIdx.x);
    if (own < args.channels) {
        norms[own] = NormBackward::of(args.coefficients, args.sums, args.channels, own, args.inverse_rows);
    }
    barrier();

    StemWalk walk(map, thread.lanes);
    float sums[ROW_TAPS][LANES] = {};
    const int begin = static_cast<int>(blockIdx.x) * args.tiles_per_part;
    const int end = begin + args.tiles_per_part < args.tiles ? begin + args.tiles_per_part : args.tiles;
    for (int number = begin; number < end; number++) {
        const StemTile tile = StemTile::of(number, map.pixels(), args.tile_pixels);
        load_gradient<T>(args, tile, map.pixels(), norms, dy);
        load_rows(map, tile, static_cast<const T*>(args.image), total, rows);
        barrier();
        const int pixels = thread.idle() ? 0 : tile.end - tile.begin;
        walk.start(map, tile, thread.lane);
#pragma unroll 1
        for (int pixel = thread.lane; pixel < pixels; pixel += thread.lanes) {
            const float* x = rows + walk.offset(map) + thread.ky * map.pitch;
            walk.advance(map);
            float d[LANES];
            load_lanes(d, dy + pixel * args.channels + thread.group * LANES);
#pragma unroll
            for (int tap = 0; tap < ROW_TAPS; tap++) {
                const float value = x[tap];
#pragma unroll
                for (int i = 0; i < LANES; i++) sums[tap][i] = fmaf(value, d[i], sums[tap][i]);
            }
        }
        barrier();
    }
    finish_gradient(args, thread, sums, dy);
}
