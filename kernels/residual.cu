// The end of a network block: out = BN(y)·keep (+ shortcut).
//
// Idea: memory is the limit, so each tensor is accessed once, in 16-byte vectors. A thread has one vector of 8
// channels, so scale and shift stay in registers, and goes through pixels of one image. For a dropped image (keep 0)
// the shortcut is copied without reading y.
//
// B0's sixteen blocks, batch 1, fp16: 0.58 million values read and written, 0.21 million of them with a shortcut:
// 2.7 MB and 2.3 million fp32 instructions, floor 0.9 µs an image at 3.0 TB/s, 3.9 µs at 0.70 TB/s. Last measured
// share: not yet measured.
#include "numeric.cuh"

#define RESIDUAL_FORWARD_FIELDS(F) \
    F(const void*, y)              \
    F(const float*, coefficients)  \
    F(const float*, keep)          \
    F(const void*, shortcut)       \
    F(void*, out)                  \
    F(int, pixels)                 \
    F(int, channels)               \
    F(int, width)                  \
    F(int, rows)                   \
    F(int, run)
ARGUMENTS(ResidualForwardArguments, RESIDUAL_FORWARD_FIELDS)

namespace {

// A thread's pixels first, first + step, … < end of one vector of channels. `shortcut` may be null.
template <typename T>
struct ResidualPixels {
    const T *y, *shortcut;
    T* out;
    int channels, first, end, step;
};

template <typename T>
__device__ __forceinline__ void normalise(
    const float* scale_row, const float* shift_row, float keep, const ResidualPixels<T>& of) {
    float scale[LANES], shift[LANES];
    load_lanes(scale, scale_row);
    load_lanes(shift, shift_row);
    constexpr int BATCH = 4;  // loads at once
    for (int first = of.first; first < of.end; first += BATCH * of.step) {
        float value[BATCH][LANES], added[BATCH][LANES] = {};
        size_t at[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int pixel = first + u * of.step;
            at[u] = static_cast<size_t>(pixel < of.end ? pixel : first) * of.channels;
            load_lanes(value[u], of.y + at[u]);
            if (of.shortcut != nullptr) load_lanes(added[u], of.shortcut + at[u]);
        }
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                value[u][i] = fmaf(fmaf(scale[i], value[u][i], shift[i]), keep, added[u][i]);
            }
            if (first + u * of.step < of.end) store_lanes(of.out + at[u], value[u]);
        }
    }
}

// The same for a dropped image.
template <typename T>
__device__ __forceinline__ void pass_on(const ResidualPixels<T>& of) {
    for (int pixel = of.first; pixel < of.end; pixel += of.step) {
        const size_t at = static_cast<size_t>(pixel) * of.channels;
        float value[LANES] = {};
        if (of.shortcut != nullptr) load_lanes(value, of.shortcut + at);
        store_lanes(of.out + at, value);
    }
}

// A block has `rows` rows of `width` vectors, and `run` pixels of one image.
template <typename T>
__device__ __forceinline__ void residual_forward(const ResidualForwardArguments& args) {
    const int vector = threadIdx.x % args.width, row = threadIdx.x / args.width;
    const int channel = (blockIdx.x * args.width + vector) * LANES;
    if (row >= args.rows || channel >= args.channels) return;
    const int begin = blockIdx.y * args.run;
    const int end = args.pixels - begin > args.run ? begin + args.run : args.pixels;
    const size_t image = static_cast<size_t>(blockIdx.z) * args.pixels * args.channels + channel;
    const T* shortcut = args.shortcut == nullptr ? nullptr : static_cast<const T*>(args.shortcut) + image;
    T* out = static_cast<T*>(args.out) + image;
    const float keep = args.keep == nullptr ? 1.0f : args.keep[blockIdx.z];
    const T* y = static_cast<const T*>(args.y) + image;
    const ResidualPixels<T> of = {y, shortcut, out, args.channels, begin + row, end, args.rows};
    if (keep == 0.0f) return pass_on(of);
    normalise(args.coefficients + SCALE * args.channels + channel, args.coefficients + SHIFT * args.channels + channel,
              keep, of);
}

}  // namespace

STORED_KERNELS(residual_forward, SWEEP_THREADS, ResidualForwardArguments)
