// Images from bytes: (byte/255 − mean)/deviation of each channel. The bytes are squares from the host, or images of any
// size, which are cropped, resized, padded and mirrored here, then edited (image_edit.cuh) and mixed (image_mix.cuh).
//
// There are only 3·256 results. The host computes them in double, like the CPU path, and passes them as an argument,
// so values are equal bit for bit.
//
// Resizing is bilinear with antialiasing in integers, like the CPU's: rows are combined with 16-bit weights and
// rounded to bytes, then columns. A block makes eight rows of the square, each warp one. The warp combines the image
// rows under its row for as many columns as fit shared memory, four bytes a lane, then the columns, one pixel a lane.
// The rows are assembled in shared memory, one word for each pixel, and stored in 16-byte vectors. The weights come
// from tables that the host computes while decoding (src/data/raw.rs); they are exact, and have some 4 KB an image.
//
// B0 at a batch of 1: normalising reads 0.15 MB and writes 0.30 MB in fp16, floor 0.15 µs at 3.0 TB/s. Preparing reads
// the crop's bytes, 0.27 MB of a 500×375 image on average, and writes 0.30 MB: 0.19 µs, beside some 5 M instructions,
// 0.2 µs on an H100. Last measured share: not yet measured.
#include "image_mix.cuh"

constexpr int IMAGE_THREADS = 256;

struct alignas(16) Bytes {
    uint8_t v[16];
};

// Sixteen values of consecutive bytes, the first of channel `channel`.
template <typename T>
__device__ __forceinline__ void store_normalised(T* to, const Bytes& bytes, int channel, const float* table) {
#pragma unroll
    for (int part = 0; part < 16; part += Pack<T>::N) {
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < Pack<T>::N; i++) {
            pack.v[i] = from_float<T>(table[channel * 256 + bytes.v[part + i]]);
            channel = channel == RGB - 1 ? 0 : channel + 1;
        }
        store_pack(to + part, pack);
    }
}

// ---- squares ----------------------------------------------------------------------------------------------

// image [N, R, R, 3] from bytes of the same shape. Any grid works, up to one vector for each thread.
#define IMAGE_NORMALISE_FIELDS(F) \
    F(const uint8_t*, bytes)      \
    F(void*, image)               \
    F(uint64_t, count)            \
    F(int, blocks)                \
    F(ImageTable, table)
ARGUMENTS(ImageNormaliseArguments, IMAGE_NORMALISE_FIELDS)

template <typename T>
__device__ __forceinline__ void image_normalise(const ImageNormaliseArguments& args) {
    SharedArena arena;
    const float* table = load_table<IMAGE_THREADS>(arena, args.table);
    barrier();
    T* image = static_cast<T*>(args.image);
    const uint64_t vectors = args.count / 16;
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * IMAGE_THREADS + threadIdx.x;
    for (uint64_t vector = first; vector < vectors; vector += static_cast<uint64_t>(args.blocks) * IMAGE_THREADS) {
        const Bytes bytes = *reinterpret_cast<const Bytes*>(args.bytes + 16 * vector);
        store_normalised(image + 16 * vector, bytes, static_cast<int>(16 * vector % RGB), table);
    }
    // The bytes after the last whole vector.
    const uint64_t at = 16 * vectors + threadIdx.x;
    if (blockIdx.x == 0 && at < args.count) {
        image[at] = from_float<T>(table[at % RGB * 256 + args.bytes[at]]);
    }
}

STORED_KERNELS(image_normalise, IMAGE_THREADS, ImageNormaliseArguments)

// ---- images of any size -----------------------------------------------------------------------------------

// The input positions of an output position of an axis.
struct ImageSpan {
    uint16_t first, count;
};

// The table of an axis: the spans of its outputs, then `window` weights for each.
struct ImageAxis {
    const ImageSpan* spans;
    const int16_t* weights;
    int window, precision;

    __device__ __forceinline__ static ImageAxis of(const uint8_t* table, uint32_t outputs, uint32_t window, uint32_t precision) {
        const ImageSpan* spans = reinterpret_cast<const ImageSpan*>(table);
        return {spans, reinterpret_cast<const int16_t*>(spans + outputs), static_cast<int>(window), static_cast<int>(precision)};
    }
    __device__ __forceinline__ int end(int at) const { return spans[at].first + spans[at].count; }
    // A sum of weighted bytes as a byte. The sum began at half a unit, for rounding.
    __device__ __forceinline__ uint32_t byte(int sum) const {
        const int value = sum >> precision;
        return static_cast<uint32_t>(value < 0 ? 0 : value > 255 ? 255 : value);
    }
};

// Rows of the square that a block makes.
constexpr int PREPARE_ROWS = IMAGE_THREADS / WARP;
// Bytes of combined rows that a block holds.
constexpr int PREPARE_BYTES = 32 << 10;

#define IMAGE_PREPARE_FIELDS(F) \
    F(const uint8_t*, batch)    \
    F(void*, image)             \
    F(uint32_t*, squares)       \
    F(int, side)                \
    F(int, mixed)               \
    F(ImageTable, table)
ARGUMENTS(ImagePrepareArguments, IMAGE_PREPARE_FIELDS)

// Combines the rows under output row y for the words [begin, end) of four bytes, a warp together.
__device__ __forceinline__ void combine_rows(
    const ImageSample& sample, const ImageAxis& rows, const uint8_t* pixels, int y, int begin, int end, uint32_t* to) {
    const ImageSpan span = rows.spans[y];
    const int16_t* weights = rows.weights + static_cast<size_t>(y) * rows.window;
    const uint8_t* from = pixels + static_cast<size_t>(span.first) * sample.pitch;
    for (int word = begin + static_cast<int>(threadIdx.x) % WARP; word < end; word += WARP) {
        const int half = 1 << (rows.precision - 1);
        int sums[4] = {half, half, half, half};
        for (int tap = 0; tap < span.count; tap++) {
            const uint32_t four = *reinterpret_cast<const uint32_t*>(from + static_cast<size_t>(tap) * sample.pitch + 4 * word);
            const int weight = weights[tap];
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] += weight * static_cast<int>(four >> 8 * i & 255);
        }
        uint32_t out = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) out |= rows.byte(sums[i]) << 8 * i;
        to[word - begin] = out;
    }
}

// Combines columns to output pixels [begin, end) of a row of the square. `from` is the address of the row's byte 0,
// which may be outside the buffer.
__device__ __forceinline__ void combine_columns(
    const ImageSample& sample, const ImageAxis& columns, const uint8_t* from, int begin, int end, int side,
    uint32_t* to) {
    const int channels = static_cast<int>(sample.channels);
    for (int x = begin + static_cast<int>(threadIdx.x) % WARP; x < end; x += WARP) {
        int column = sample.left + x;
        if (sample.mirrored != 0) column = side - 1 - column;
        if (column < 0 || column >= side) continue;
        const ImageSpan span = columns.spans[x];
        const int16_t* weights = columns.weights + static_cast<size_t>(x) * columns.window;
        const int half = 1 << (columns.precision - 1);
        int sums[RGB] = {half, half, half};
        for (int tap = 0; tap < span.count; tap++) {
            const int weight = weights[tap];
            const uint8_t* pixel = from + (span.first + tap) * channels;
#pragma unroll
            for (int c = 0; c < RGB; c++) sums[c] += weight * pixel[c < channels ? c : 0];
        }
        to[column] = columns.byte(sums[0]) | columns.byte(sums[1]) << 8 | columns.byte(sums[2]) << 16;
    }
}

// A warp makes output row y of the image in its row of the square. `scratch` has room for `room` bytes, at least for
// those under one column.
__device__ __forceinline__ void resample_row(
    const ImageSample& sample, const uint8_t* batch, int y, int side, uint8_t* scratch, int room, uint32_t* to) {
    const ImageAxis columns =
        ImageAxis::of(batch + sample.columns, sample.width, sample.column_window, sample.column_precision);
    const ImageAxis rows = ImageAxis::of(batch + sample.rows, sample.height, sample.row_window, sample.row_precision);
    const int width = static_cast<int>(sample.width), channels = static_cast<int>(sample.channels);
    int count = width;
    for (int begin = 0; begin < width;) {
        // The words under as many columns as fit.
        int end = begin + count < width ? begin + count : width;
        const int first = columns.spans[begin].first * channels / 4;
        while (end - begin > 1 && (columns.end(end - 1) * channels + 3) / 4 - first > room / 4) {
            count = (end - begin + 1) / 2;
            end = begin + count;
        }
        const int last = (columns.end(end - 1) * channels + 3) / 4;
        combine_rows(sample, rows, batch + sample.pixels, y, first, last, reinterpret_cast<uint32_t*>(scratch));
        warp_barrier();
        combine_columns(sample, columns, scratch - 4 * first, begin, end, side, to);
        warp_barrier();
        begin = end;
    }
}

// image [N, R, R, 3] from a raw batch. Of an image that is to be edited only the square, for `image_edit`; if images are
// mixed, the squares of all. In a batch without either `squares` may be null. Grid: rows/8, images.
template <typename T>
__device__ __forceinline__ void image_prepare(const ImagePrepareArguments& args) {
    SharedArena arena;
    const float* table = load_table<IMAGE_THREADS>(arena, args.table);
    uint32_t* square = arena.take<uint32_t>(PREPARE_ROWS * args.side);
    uint8_t* scratch = arena.take<uint8_t>(PREPARE_BYTES);
    const ImageSample sample = reinterpret_cast<const ImageSample*>(args.batch)[blockIdx.y];
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int first = static_cast<int>(blockIdx.x) * PREPARE_ROWS;
    const int rows = args.side - first < PREPARE_ROWS ? args.side - first : PREPARE_ROWS;
    for (int i = static_cast<int>(threadIdx.x); i < PREPARE_ROWS * args.side; i += IMAGE_THREADS) square[i] = 0;
    barrier();
    // All warps work at once, unless the input of a column is extremely wide.
    const int least = static_cast<int>(sample.column_window * sample.channels) + 8;
    const int together = least * PREPARE_ROWS <= PREPARE_BYTES ? PREPARE_ROWS : PREPARE_BYTES / least;
    const int room = PREPARE_BYTES / together / 4 * 4;
    for (int row = warp; warp < together && row < rows; row += together) {
        const int y = first + row - sample.top;
        if (y >= 0 && y < static_cast<int>(sample.height)) {
            resample_row(sample, args.batch, y, args.side, scratch + warp * room, room, square + row * args.side);
        }
    }
    barrier();
    if (sample.edits != 0 || args.mixed != 0) {
        uint32_t* to = edited_square<T>(args.image, args.squares, blockIdx.y, args.side, sample.moves % 2 != 0);
        for (int i = static_cast<int>(threadIdx.x); i < rows * args.side; i += IMAGE_THREADS) {
            to[first * args.side + i] = square[i];
        }
        return;
    }
    const size_t start = (static_cast<size_t>(blockIdx.y) * args.side + first) * args.side * RGB;
    store_pixels<IMAGE_THREADS>(static_cast<T*>(args.image), start, rows * args.side * RGB, square, table);
}

STORED_KERNELS(image_prepare, IMAGE_THREADS, ImagePrepareArguments)
