// Mixing of neighbours: the last stage of a batch in which an image may have a part of the one beside it.
//
// `image_prepare` and `image_edit` leave all squares of such a batch in the workspace, finished. Here an image's pixel
// (x, y) becomes that of its neighbour inside a rectangle, and a blend of both outside, in steps of 2⁻¹⁶; then values.
//
// B0 at a batch of 1, fp16: two squares of 0.20 MB read, 0.30 MB written: 0.23 µs at 3.0 TB/s. Last measured share: not
// yet measured.
#pragma once

#include "image_edit.cuh"

constexpr int MIX_THREADS = 256;
// Pixels that a block makes at least, where the image has as many.
constexpr int MIX_PIXELS = 16 * MIX_THREADS;

#define IMAGE_MIX_FIELDS(F)     \
    F(const uint8_t*, batch)    \
    F(void*, image)             \
    F(const uint32_t*, squares) \
    F(int, side)                \
    F(int, blocks)              \
    F(ImageTable, table)
ARGUMENTS(ImageMixArguments, IMAGE_MIX_FIELDS)

namespace {

// How an image and its neighbour become one.
struct Mix {
    const uint32_t *own, *other;
    int side;
    uint32_t share;  // of the other, in 2⁻¹⁶
    int left, top, right, bottom;

    __device__ __forceinline__ uint32_t pixel(int at) const {
        const uint32_t a = own[at];
        if (share == 0 && left == right) return a;
        const uint32_t b = other[at];
        if (left < right) {
            const int y = at / side, x = at - y * side;
            if (x >= left && x < right && y >= top && y < bottom) return b;
        }
        uint32_t mixed = 0;
#pragma unroll
        for (int c = 0; c < RGB; c++) {
            mixed |= (byte_of(a, c) * (65536 - share) + byte_of(b, c) * share + 32768) >> 16 << 8 * c;
        }
        return mixed;
    }
};

}  // namespace

// image [N, R, R, 3] from finished squares; image p's neighbour is p^1. Grid: any number of blocks, images.
template <typename T>
__device__ __forceinline__ void image_mix(const ImageMixArguments& args) {
    SharedArena arena;
    const float* table = load_table<MIX_THREADS>(arena, args.table);
    const ImageSample sample = reinterpret_cast<const ImageSample*>(args.batch)[blockIdx.y];
    const int pixels = args.side * args.side;
    const auto square = [&](unsigned number) { return args.squares + static_cast<size_t>(number) * pixels; };
    const int left = sample.part[0], top = sample.part[1];
    const Mix mix = {square(blockIdx.y), square(blockIdx.y ^ 1), args.side, sample.share, left, top,
                     left + sample.part[2], top + sample.part[3]};
    barrier();
    T* image = static_cast<T*>(args.image) + static_cast<size_t>(blockIdx.y) * pixels * RGB;
    const int first = static_cast<int>(blockIdx.x) * MIX_THREADS + static_cast<int>(threadIdx.x);
    const int step = args.blocks * MIX_THREADS;
    if (args.side % 4 == 0) {
        store_eights(image, pixels, first, step, table, [&](int at) { return mix.pixel(at); });
    } else {
        for (int at = first; at < pixels * RGB; at += step) {
            const int channel = at % RGB;
            image[at] = from_float<T>(table[channel * 256 + byte_of(mix.pixel(at / RGB), channel)]);
        }
    }
}

STORED_KERNELS(image_mix, MIX_THREADS, ImageMixArguments)
