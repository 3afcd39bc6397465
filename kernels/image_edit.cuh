// Edits of squares: what src/data/augment/edit.rs does on the CPU, in the same integers, so to the same bytes.
//
// Idea: `image_prepare` leaves the square of an image that is to be edited as pixels of four bytes. Here a block does
// all edits of one image, one after the other, and writes the image's values. Most edits give each byte of a channel a
// new value, whatever its place. They touch no pixel: the block keeps a table of what the square's bytes stand for, and
// such an edit changes the table. Edits that look at neighbours, or move pixels, read one square and write the other; a
// pixel is looked up in the table when it is read. Histograms and sums are of integers, so their order does not matter.
//
// Memory: an image has one square in the workspace. The other lies in the image's own values, which have room for it
// and are not yet needed. The first square is chosen so that the last is the one in the workspace.
//
// An edited image of B0, in fp16: the square is written and read once, 0.40 MB, and once more for each edit that moves
// pixels: 0.13 µs each at 3.0 TB/s, less where the second-level cache holds it. docs/kernels.md counts the instructions of
// each edit. Last measured share: not yet measured.
#pragma once

#include "image.cuh"

constexpr int EDIT_THREADS = 512;
constexpr int EDIT_WARPS = EDIT_THREADS / WARP;
// Histograms are kept in so many copies, one for every fourth lane, because lanes often meet the same value.
constexpr int EDIT_COPIES = 4;

// `Operation` of src/pixels.rs.
constexpr int EDIT_AFFINE = 0;
constexpr int EDIT_AUTO_CONTRAST = 1;
constexpr int EDIT_EQUALIZE = 2;
constexpr int EDIT_INVERT = 3;
constexpr int EDIT_POSTERIZE = 4;
constexpr int EDIT_SOLARIZE = 5;
constexpr int EDIT_SOLARIZE_ADD = 6;
constexpr int EDIT_COLOR = 7;
constexpr int EDIT_CONTRAST = 8;
constexpr int EDIT_BRIGHTNESS = 9;
constexpr int EDIT_SHARPNESS = 10;
constexpr int EDIT_ERASE = 11;

// `ImageEdit` of src/pixels.rs.
struct ImageEdit {
    uint32_t operation;
    int32_t v[7];
};
static_assert(sizeof(ImageEdit) == 32, "see src/pixels.rs");

#define IMAGE_EDIT_FIELDS(F) \
    F(const uint8_t*, batch) \
    F(void*, image)          \
    F(uint32_t*, squares)    \
    F(int, side)             \
    F(int, mixed)            \
    F(ImageTable, table)
ARGUMENTS(ImageEditArguments, IMAGE_EDIT_FIELDS)

// The square of an image, of R×R words: in the workspace, or in the image's values.
template <typename T>
__device__ __forceinline__ uint32_t* edited_square(void* image, uint32_t* squares, unsigned number, int side, bool in_image) {
    const size_t pixels = static_cast<size_t>(side) * side;
    if (!in_image) return squares + number * pixels;
    // Values begin at any multiple of their size. There are at least six bytes a pixel, so two more are to spare.
    const uintptr_t at = reinterpret_cast<uintptr_t>(static_cast<T*>(image) + number * pixels * RGB);
    return reinterpret_cast<uint32_t*>((at + 3) / 4 * 4);
}

namespace {

__device__ __forceinline__ uint32_t byte_of(uint32_t pixel, int channel) { return pixel >> 8 * channel & 255; }
__device__ __forceinline__ uint32_t pixel_of(uint32_t red, uint32_t green, uint32_t blue) {
    return red | green << 8 | blue << 16;
}

// v beside what it is blended with; a factor of 0 gives `other`, 2¹⁶ gives `v`.
__device__ __forceinline__ uint32_t blend(uint32_t other, uint32_t v, int factor) {
    const int away = static_cast<int>(v) - static_cast<int>(other);
    // Less than 2²⁴ after the shift.
    const int value = static_cast<int>((static_cast<int64_t>(other << 16) + static_cast<int64_t>(factor) * away) >> 16);
    return static_cast<uint32_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

__device__ __forceinline__ uint32_t luma(uint32_t pixel) {
    return (byte_of(pixel, 0) * 19595 + byte_of(pixel, 1) * 38470 + byte_of(pixel, 2) * 7471 + 0x8000) >> 16;
}

// The square between two edits, and what the block shares. All threads call the member functions; those that change
// what other threads read end with a barrier.
struct Editor {
    uint32_t *from, *to;
    int side;
    // What a byte of the square stands for: [3, 256]; `plain` says that it is the byte itself. Two bytes each, because the
    // race checker sees pairs of bytes.
    uint16_t* value;
    bool plain;
    uint16_t* replaced;    // [3, 256]
    unsigned* histograms;  // [3, 256, EDIT_COPIES]
    unsigned* sums;        // [EDIT_WARPS]

    __device__ __forceinline__ int pixels() const { return side * side; }

    __device__ __forceinline__ uint32_t look_up(uint32_t pixel) const {
        if (plain) return pixel;
        return pixel_of(value[byte_of(pixel, 0)], value[256 + byte_of(pixel, 1)], value[512 + byte_of(pixel, 2)]);
    }

    // No barrier follows: a thread writes the entries that are its own in `each_value` too, and nobody looks up bytes
    // that are kept.
    __device__ __forceinline__ void keep_bytes() {
        if (plain) return;
        for (int i = static_cast<int>(threadIdx.x); i < RGB * 256; i += EDIT_THREADS) value[i] = static_cast<uint16_t>(i % 256);
        plain = true;
    }

    // Every pixel becomes what `change` makes of it.
    template <typename Change>
    __device__ __forceinline__ void each_pixel(Change change) {
        for (int at = static_cast<int>(threadIdx.x); at < pixels(); at += EDIT_THREADS) {
            from[at] = change(look_up(from[at]));
        }
        barrier();
        keep_bytes();
    }

    // The square's bytes become what they stand for.
    __device__ __forceinline__ void finish() {
        if (!plain) each_pixel([](uint32_t pixel) { return pixel; });
    }

    // Every byte becomes what `change` makes of it.
    template <typename Change>
    __device__ __forceinline__ void each_value(Change change) {
        for (int i = static_cast<int>(threadIdx.x); i < RGB * 256; i += EDIT_THREADS) {
            value[i] = static_cast<uint16_t>(change(i / 256, value[i]));
        }
        plain = false;
        barrier();
    }

    // The square becomes the other one, of which `pixel(x, y)` makes each pixel.
    template <typename Pixel>
    __device__ __forceinline__ void move(Pixel pixel) {
        const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
        for (int y = warp; y < side; y += EDIT_WARPS) {
            for (int x = lane; x < side; x += WARP) to[y * side + x] = pixel(x, y);
        }
        uint32_t* other = from;
        from = to;
        to = other;
        barrier();
    }

    __device__ __forceinline__ void affine(const int32_t (&v)[7]) {
        move([&](int x, int y) {
            const int64_t column = (static_cast<int64_t>(v[1]) * y + v[2] + static_cast<int64_t>(v[0]) * x) >> 16;
            const int64_t line = (static_cast<int64_t>(v[4]) * y + v[5] + static_cast<int64_t>(v[3]) * x) >> 16;
            const bool inside = column >= 0 && column < side && line >= 0 && line < side;
            return inside ? look_up(from[line * side + column]) : static_cast<uint32_t>(v[6]);
        });
        keep_bytes();
    }

    __device__ __forceinline__ void sharpness(int factor) {
        finish();
        move([&](int x, int y) {
            const uint32_t* middle = from + y * side + x;
            const uint32_t own = *middle;
            if (x == 0 || y == 0 || x == side - 1 || y == side - 1) return own;
            // Red and blue lie 16 bits apart, so their sums are made together.
            uint32_t two = 4 * (own & 0xff00ff), green = 4 * (own >> 8 & 255);
#pragma unroll
            for (int row = -1; row <= 1; row++) {
#pragma unroll
                for (int column = -1; column <= 1; column++) {
                    const uint32_t near = middle[row * side + column];
                    two += near & 0xff00ff;
                    green += near >> 8 & 255;
                }
            }
            const auto smooth = [](uint32_t sum) { return (2 * sum + 13) / 26; };
            return pixel_of(
                blend(smooth(two & 0xffff), byte_of(own, 0), factor), blend(smooth(green), byte_of(own, 1), factor),
                blend(smooth(two >> 16), byte_of(own, 2), factor));
        });
    }

    __device__ __forceinline__ void erase(const int32_t (&v)[7]) {
        finish();
        const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
        for (int y = v[1] + warp; y < v[1] + v[3]; y += EDIT_WARPS) {
            for (int x = v[0] + lane; x < v[0] + v[2]; x += WARP) from[y * side + x] = static_cast<uint32_t>(v[4]);
        }
        barrier();
    }

    __device__ __forceinline__ void contrast(int factor) {
        uint32_t own = 0;
        for (int at = static_cast<int>(threadIdx.x); at < pixels(); at += EDIT_THREADS) own += luma(look_up(from[at]));
#pragma unroll
        for (int mask = WARP / 2; mask > 0; mask /= 2) own += shuffle_xor(own, mask);
        if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = own;
        barrier();
        uint64_t sum = 0;
        for (int warp = 0; warp < EDIT_WARPS; warp++) sum += sums[warp];
        const uint64_t count = static_cast<uint64_t>(pixels());
        const uint32_t mean = static_cast<uint32_t>((2 * sum + count) / (2 * count));
        each_value([=](int, uint32_t v) { return blend(mean, v, factor); });
    }

    // The bytes of each channel are counted, and a warp makes of the counts what they become.
    __device__ __forceinline__ void by_histogram(bool equalized) {
        for (int i = static_cast<int>(threadIdx.x); i < RGB * 256 * EDIT_COPIES; i += EDIT_THREADS) histograms[i] = 0;
        barrier();
        for (int at = static_cast<int>(threadIdx.x); at < pixels(); at += EDIT_THREADS) {
            const uint32_t pixel = look_up(from[at]);
#pragma unroll
            for (int c = 0; c < RGB; c++) {
                const int bin = c * 256 + static_cast<int>(byte_of(pixel, c));
                add_shared(histograms + bin * EDIT_COPIES + threadIdx.x % EDIT_COPIES, 1);
            }
        }
        barrier();
        const int channel = static_cast<int>(threadIdx.x) / WARP;
        if (channel < RGB) replace(histograms + channel * 256 * EDIT_COPIES, replaced + channel * 256, equalized);
        barrier();
        each_value([&](int c, uint32_t v) { return replaced[c * 256 + v]; });
    }

    // A warp makes a channel's table of its histogram; a lane has eight values.
    __device__ __forceinline__ static void replace(const unsigned* histogram, uint16_t* table, bool equalized) {
        constexpr int EACH = 256 / WARP;
        const int lane = static_cast<int>(threadIdx.x) % WARP;
        unsigned counts[EACH], sum = 0;
        int least = 255, most = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            counts[i] = 0;
            for (int copy = 0; copy < EDIT_COPIES; copy++) counts[i] += histogram[(lane * EACH + i) * EDIT_COPIES + copy];
            sum += counts[i];
            if (counts[i] != 0 && least == 255) least = lane * EACH + i;
            if (counts[i] != 0) most = lane * EACH + i;
        }
#pragma unroll
        for (int mask = WARP / 2; mask > 0; mask /= 2) {
            const int other_least = shuffle_xor(least, mask), other_most = shuffle_xor(most, mask);
            least = other_least < least ? other_least : least;
            most = other_most > most ? other_most : most;
        }
        // The counts of this lane and of those before it.
        unsigned through = sum;
#pragma unroll
        for (int delta = 1; delta < WARP; delta *= 2) {
            const unsigned before = shuffle(through, lane < delta ? lane : lane - delta);
            if (lane >= delta) through += before;
        }
        const unsigned all = shuffle(through, WARP - 1);
        unsigned last = 0;
        for (int copy = 0; copy < EDIT_COPIES; copy++) last += histogram[most * EDIT_COPIES + copy];
        const unsigned step = (all - last) / 255;
        unsigned below = step / 2 + through - sum;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int v = lane * EACH + i;
            unsigned value = static_cast<unsigned>(v);
            if (!equalized && least < most) {
                value = static_cast<unsigned>((v < least ? 0 : v > most ? most - least : v - least) * 255 / (most - least));
            }
            if (equalized && step > 0) value = below / step < 255 ? below / step : 255;
            table[v] = static_cast<uint16_t>(value);
            below += counts[i];
        }
    }

    __device__ __forceinline__ void apply(const ImageEdit& edit) {
        const int32_t(&v)[7] = edit.v;
        const uint32_t first = static_cast<uint32_t>(v[0]);
        switch (edit.operation) {
            case EDIT_AFFINE: return affine(v);
            case EDIT_AUTO_CONTRAST:
            case EDIT_EQUALIZE: return by_histogram(edit.operation == EDIT_EQUALIZE);
            case EDIT_INVERT: return each_value([](int, uint32_t v) { return 255 - v; });
            case EDIT_POSTERIZE: return each_value([=](int, uint32_t v) { return v & first; });
            case EDIT_SOLARIZE: return each_value([=](int, uint32_t v) { return v < first ? v : 255 - v; });
            case EDIT_SOLARIZE_ADD:
                return each_value([=](int, uint32_t v) { return v >= 128 ? v : v + first > 255 ? 255 : v + first; });
            case EDIT_COLOR:
                return each_pixel([=](uint32_t pixel) {
                    const uint32_t grey = luma(pixel);
                    const auto value = [&](int c) { return blend(grey, byte_of(pixel, c), edit.v[0]); };
                    return pixel_of(value(0), value(1), value(2));
                });
            case EDIT_CONTRAST: return contrast(v[0]);
            case EDIT_BRIGHTNESS: return each_value([&](int, uint32_t v) { return blend(0, v, edit.v[0]); });
            case EDIT_SHARPNESS: return sharpness(v[0]);
            case EDIT_ERASE: return erase(v);
        }
    }
};

// Eight pixels at a time become values, in vectors: eights first, first + step, …. The image begins at a whole vector.
template <typename T, typename Pixel>
__device__ __forceinline__ void store_eights(
    T* image, int pixels, int first, int step, const float* table, Pixel pixel) {
    for (int at = 8 * first; at < pixels; at += 8 * step) {
        uint32_t eight[8];
#pragma unroll
        for (int i = 0; i < 8; i++) eight[i] = pixel(at + i);
#pragma unroll
        for (int part = 0; part < 8 * RGB; part += Pack<T>::N) {
            Pack<T> pack;
#pragma unroll
            for (int i = 0; i < Pack<T>::N; i++) {
                const int channel = (part + i) % RGB;
                pack.v[i] = from_float<T>(table[channel * 256 + byte_of(eight[(part + i) / RGB], channel)]);
            }
            store_pack(image + RGB * at + part, pack);
        }
    }
}

}  // namespace

// Of the images with edits: image [N, R, R, 3] from the squares that `image_prepare` has left; if images are mixed, only
// the finished squares in the workspace. Grid: images.
template <typename T>
__device__ __forceinline__ void image_edit(const ImageEditArguments& args) {
    SharedArena arena;
    float* table = load_table<EDIT_THREADS>(arena, args.table);
    float* values = arena.take<float>(RGB * 256);
    const ImageSample sample = reinterpret_cast<const ImageSample*>(args.batch)[blockIdx.x];
    Editor editor;
    editor.side = args.side;
    editor.value = arena.take<uint16_t>(RGB * 256);
    editor.replaced = arena.take<uint16_t>(RGB * 256);
    editor.histograms = arena.take<unsigned>(RGB * 256 * EDIT_COPIES);
    editor.sums = arena.take<unsigned>(EDIT_WARPS);
    editor.from = edited_square<T>(args.image, args.squares, blockIdx.x, args.side, sample.moves % 2 != 0);
    editor.to = edited_square<T>(args.image, args.squares, blockIdx.x, args.side, sample.moves % 2 == 0);
    editor.plain = false;
    if (sample.edits != 0) {
        editor.keep_bytes();
        const ImageEdit* program = reinterpret_cast<const ImageEdit*>(args.batch + sample.program);
        for (int i = 0; i < sample.edits; i++) {
            const ImageEdit edit = program[i];
            editor.apply(edit);
        }
        if (args.mixed != 0) {
            editor.finish();
            return;
        }
        for (int i = static_cast<int>(threadIdx.x); i < RGB * 256; i += EDIT_THREADS) {
            values[i] = table[i / 256 * 256 + editor.value[i]];
        }
        barrier();
        T* image = static_cast<T*>(args.image);
        const size_t start = static_cast<size_t>(blockIdx.x) * args.side * args.side * RGB;
        if (args.side % 4 == 0) {
            const uint32_t* square = editor.from;
            const int thread = static_cast<int>(threadIdx.x);
            store_eights(image + start, editor.pixels(), thread, EDIT_THREADS, values, [=](int at) { return square[at]; });
        } else {
            store_pixels<EDIT_THREADS>(image, start, editor.pixels() * RGB, editor.from, values);
        }
    }
}

STORED_KERNELS(image_edit, EDIT_THREADS, ImageEditArguments)
