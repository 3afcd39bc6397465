// What the kernels of images share: the table of values, what a raw batch says of an image, and how pixels become values.
#pragma once

#include "numeric.cuh"

constexpr int RGB = 3;

// Value of a byte by channel: [3, 256].
struct ImageTable {
    float v[RGB * 256];
};

template <int THREADS>
__device__ __forceinline__ float* load_table(SharedArena& arena, const ImageTable& table) {
    float* shared = arena.take<float>(RGB * 256);
    for (int i = static_cast<int>(threadIdx.x); i < RGB * 256; i += THREADS) shared[i] = table.v[i];
    return shared;
}

// `ImageSample` of src/pixels.rs.
struct ImageSample {
    uint64_t pixels, columns, rows, program;
    uint32_t pitch, channels;
    uint32_t width, height;
    uint32_t column_window, row_window;
    uint32_t column_precision, row_precision;
    int32_t left, top;
    uint32_t mirrored;
    uint16_t edits, moves;
    uint32_t share, unused;
    uint16_t part[4];
};
static_assert(sizeof(ImageSample) == 96, "see src/pixels.rs");

// The value of channel at%3 of pixel at/3.
__device__ __forceinline__ float value_of(const uint32_t* pixels, int at, const float* table) {
    const int pixel = at / RGB, channel = at % RGB;
    return table[channel * 256 + (pixels[pixel] >> 8 * channel & 255)];
}

// Writes the first `count` values of pixels to image[start..], in vectors except at the ends.
template <int THREADS, typename T>
__device__ __forceinline__ void store_pixels(
    T* image, size_t start, int count, const uint32_t* pixels, const float* table) {
    constexpr int N = Pack<T>::N;
    const int head = static_cast<int>((N - start % N) % N);
    const int vectors = count > head ? (count - head) / N : 0;
    for (int vector = static_cast<int>(threadIdx.x); vector < vectors; vector += THREADS) {
        const int at = head + vector * N;
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < N; i++) pack.v[i] = from_float<T>(value_of(pixels, at + i, table));
        store_pack(image + start + at, pack);
    }
    // At both ends less than a vector.
    const int thread = static_cast<int>(threadIdx.x);
    const int at = thread < head ? thread : thread + vectors * N;
    if (thread < count - vectors * N) {
        image[start + at] = from_float<T>(value_of(pixels, at, table));
    }
}
