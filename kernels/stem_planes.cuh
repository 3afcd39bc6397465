// What the stem's passes for half types share: a tile of the output, and the image under it as a factor of a product.
//
// A product of tensor cores wants eight neighbouring pixels of one tap side by side. So the image rows under a tile are
// stored once more, as nine planes each: one for each column of the window and colour. Plane (kx, c) of a row has the
// values x[2·q + kx] of colour c, one for each output column q. With the nine planes of row after row, tap
// (ky, kx, c) of an output row lies 9·ky + 3·kx + c planes after its first one: the planes from there on are the matrix
// [taps, pixels] of the product. Rows and columns outside the image are zero.
//
// The rows are copied as they are, asynchronously, while the tile before is multiplied. A thread makes two pixels of the
// nine planes of a row from 15 neighbouring values.
#pragma once

#include "stem_forward.cuh"

constexpr int STEM_WARPS = STEM_THREADS / WARP;
// Depth or columns of the products: the taps, and some planes of the following row that nothing comes of.
constexpr int STEM_TAPS = 32;
// Channels of a warp.
constexpr int STEM_SLICE = 32;

#define STEM_BAND_NUMBERS(F) \
    F(int, images)           \
    F(int, input)            \
    F(int, output)           \
    F(int, pad)              \
    F(int, channels)         \
    F(int, rows)             \
    F(int, columns)          \
    F(int, tiles)            \
    F(int, tiles_per_part)

// Divides by the same number, at least 1, again and again. Right while dividend × divisor < 2^31: what counts pieces of
// shared memory is much less.
struct StemDivision {
    int by;
    uint32_t factor;

    __device__ __forceinline__ static StemDivision of(int by) { return {by, (0x80000000u + by - 1) / by}; }
    __device__ __forceinline__ int quotient(int of) const {
        return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(of)) * factor >> 31);
    }
};

// A tile: output pixels [row, row + rows) × [column, column + width) of an image, at most Args::rows × Args::columns.
struct StemBand {
    size_t image;
    int row, rows, column, width;
    StemDivision across;  // by the eights of neighbouring pixels; the last of a row may have fewer

    template <class Args>
    __device__ __forceinline__ static StemBand of(const Args& args, int number) {
        const int across = (args.output + args.columns - 1) / args.columns;
        const int all = (args.output + args.rows - 1) / args.rows * across;
        StemBand band;
        band.image = number / all;
        band.row = number % all / across * args.rows;
        band.column = number % all % across * args.columns;
        band.width = 0;
        band.limit(args);
        return band;
    }
    // The next one, without a division.
    template <class Args>
    __device__ __forceinline__ StemBand next(const Args& args) const {
        StemBand band = *this;
        band.column += args.columns;
        if (band.column >= args.output) {
            band.column = 0;
            band.row += args.rows;
        }
        if (band.row >= args.output) {
            band.row = 0;
            band.image++;
        }
        band.limit(args);
        return band;
    }
    template <class Args>
    __device__ __forceinline__ void limit(const Args& args) {
        rows = args.output - row < args.rows ? args.output - row : args.rows;
        const int old = width;
        width = args.output - column < args.columns ? args.output - column : args.columns;
        if (width != old) across = StemDivision::of((width + LANES - 1) / LANES);
    }

    __device__ __forceinline__ int octets() const { return rows * across.by; }
    __device__ __forceinline__ int input_rows() const { return (rows - 1) * STRIDE + SIDE; }
};

template <typename T>
struct StemPlanes {
    const T* image;
    int64_t total;  // elements of the image
    T* raw;         // [input rows, units, 8]
    T* planes;      // [input rows, 9, pitch], then more for the last row's products
    int input, pad, pitch, size;
    StemDivision units;  // by the vectors of a raw row

    template <class Args>
    __device__ __forceinline__ StemPlanes(const Args& args, SharedArena& arena)
        : image(static_cast<const T*>(args.image)), input(args.input), pad(args.pad) {
        total = static_cast<int64_t>(args.images) * input * input * COLORS;
        // An odd number of 16-byte units: eight planes of a matrix are in eight different groups of banks.
        pitch = ((args.columns / LANES) | 1) * LANES;
        // All that a thread may read for its two pixels, wherever the row begins in its first unit.
        units = StemDivision::of((STRIDE * COLORS * args.columns + 21) / LANES);
        const int rows = (args.rows - 1) * STRIDE + SIDE;
        size = (rows * ROW_TAPS + STEM_TAPS - TAPS) * pitch;
        raw = arena.take<T>(rows * units.by * LANES);
        planes = arena.take<T>(size);
    }

    // Zeros, so that what no tile writes has no influence.
    __device__ __forceinline__ void clear() const {
        const float zeros[LANES] = {};
        for (int at = static_cast<int>(threadIdx.x) * LANES; at < size; at += STEM_THREADS * LANES)
            store_lanes(planes + at, zeros);
    }
    // The first row of the image under the tile.
    __device__ __forceinline__ int top(const StemBand& band) const { return band.row * STRIDE - pad; }
    // The element under the tile's first column in a row of the image; it may lie before the row.
    __device__ __forceinline__ int64_t first(const StemBand& band, int row) const {
        return ((static_cast<int64_t>(band.image) * input + row) * input + band.column * STRIDE - pad) * COLORS;
    }

    // Begins the copies of the rows under a tile.
    __device__ __forceinline__ void begin(const StemBand& band) const {
        const int all = band.input_rows() * units.by;
#pragma unroll 1
        for (int at = static_cast<int>(threadIdx.x); at < all; at += STEM_THREADS) {
            const int down = units.quotient(at), row = top(band) + down;
            if (row < 0 || row >= input) continue;
            const int64_t from = (first(band, row) & -LANES) + (at - down * units.by) * LANES;
            T* to = raw + at * LANES;
            if (from + LANES <= total) {
                copy_async_16(to, image + (from < 0 ? 0 : from), from >= 0);
            } else {
                for (int i = 0; i < LANES; i++) to[i] = from + i < total ? image[from + i] : from_float<T>(0.0f);
            }
        }
    }

    // Makes the planes of the rows that have arrived.
    __device__ __forceinline__ void form(const StemBand& band) const {
        const int pairs = band.across.by * (LANES / 2), all = band.input_rows() * pairs;
#pragma unroll 1
        for (int at = static_cast<int>(threadIdx.x); at < all; at += STEM_THREADS) {
            const int down = band.across.quotient(at / (LANES / 2)), q = (at - down * pairs) * 2, row = top(band) + down;
            uint32_t v[8] = {};
            if (row >= 0 && row < input) {
                const int skew = static_cast<int>(first(band, row) & (LANES - 1));
                load(v, down * units.by * LANES + skew + q * (STRIDE * COLORS));
                const int column = (band.column + q) * STRIDE - pad;
                if (column < 0 || column + 5 > input) mask(v, column);
            }
            uint32_t* to = reinterpret_cast<uint32_t*>(planes + down * ROW_TAPS * pitch + q);
#pragma unroll
            for (int tap = 0; tap < ROW_TAPS; tap++) {
                // The same half of two words: the next pixel's value is two columns further.
                const uint32_t low = v[tap / 2], high = v[tap / 2 + 3];
                to[tap * (pitch / 2)] = tap % 2 == 0 ? (low & 0xffff) | (high << 16) : (low >> 16) | (high & 0xffff0000);
            }
        }
    }

    // Sixteen values from element `at` on, which may be odd.
    __device__ __forceinline__ void load(uint32_t (&v)[8], int at) const {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(raw) + at / 2;
        const int shift = at % 2 * 16;
        uint32_t next = words[0];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t low = next;
            next = words[i + 1];
            v[i] = static_cast<uint32_t>((static_cast<uint64_t>(next) << 32 | low) >> shift);
        }
    }
    // Makes what lies outside the image zero, of five columns from `column` on.
    __device__ __forceinline__ void mask(uint32_t (&v)[8], int column) const {
#pragma unroll
        for (int i = 0; i < 5 * COLORS; i++) {
            const int own = column + i / COLORS;
            if (own < 0 || own >= input) v[i / 2] &= i % 2 == 0 ? 0xffff0000 : 0xffff;
        }
    }

    // The matrix [taps, 8 pixels] of one of the tile's octets.
    __device__ __forceinline__ const T* matrix(const StemBand& band, int octet) const {
        const int row = band.across.quotient(octet);
        return planes + row * STRIDE * ROW_TAPS * pitch + (octet - row * band.across.by) * LANES;
    }
};

// How warps divide a tile: each has a slice of the channels, and every `step`-th piece of the tile from `first` on.
struct StemWarp {
    int slices, slice, first, step;

    __device__ __forceinline__ explicit StemWarp(int channels) {
        const int warp = static_cast<int>(threadIdx.x) / WARP;
        slices = (channels + STEM_SLICE - 1) / STEM_SLICE;
        step = STEM_WARPS / slices;
        slice = warp % slices;
        first = warp / slices;
    }
    __device__ __forceinline__ bool idle() const { return first >= step; }
};
