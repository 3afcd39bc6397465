// The stem: image [N, R, R, 3] to y [N, P, P, C] by a 3×3 convolution with stride 2, and its weight gradient.
//
// For half types both are products of tensor cores (stem_half.cuh). The image rows under a tile of output pixels are in
// shared memory as a matrix of taps and pixels, 32 by 8 at a time: stem_planes.cuh. A part has several tiles of equal
// size; they are consecutive over all images.
//
//   forward   y [pixels, 32 channels] = (taps × pixels)ᵀ · W, a warp 16 pixels at a time. W is the sum of two halves, so
//             that nothing of the fp32 weights is lost that fp32 sums would not lose, and is in registers all the time.
//             The pixels are stored by way of shared memory in vectors, and their statistics are taken from there.
//   backward  dW [32 channels, taps] = dyᵀ · (taps × pixels)ᵀ: dy is made by batch norm's backward and rounded, as in
//             all products of gradients. Each warp has its own pixels and all sums in registers; they are added at the
//             end of the part.
//
// What the next tile needs is copied while a tile is multiplied. There are two barriers a tile.
//
// For fp32 the convolution is computed directly. A thread has eight channels. The image rows under a tile of consecutive
// output pixels are in shared memory with zeros for the padding around them, so that the loops need no checks at borders.
// Forward a thread has seven pixels in registers, as many as 128 registers allow; the epilogue takes statistics of the
// stored values, with the part's first value of each channel as the shift. Backward, dy is computed into shared memory;
// then a thread sums, over its share of the pixels, the products of eight channels with the nine values under one row of
// the window.
//
// B0 at a batch of 1 (224²·3 → 112²·32): forward reads 0.30 MB and writes 0.80 MB in fp16, backward reads 1.9 MB;
// 10.8 M multiply-adds each. Floors: 0.37 and 0.64 µs at 3.0 TB/s, 1.6 and 2.7 µs at 0.70 TB/s. Counted at a batch of
// 512 on an H100, forward and backward: computed directly for half types too, 439 µs (instructions) and 877 µs
// (conflicts of shared memory); as products 196 µs and 352 µs, where memory alone takes 189 and 326. Last measured share:
// not yet measured.
#include "stem_backward.cuh"
#include "stem_half.cuh"

KERNEL_BLOCKS(stem_forward_f32, STEM_THREADS, 2, StemForwardArguments) { stem_forward<float>(args); }
KERNEL_BLOCKS(stem_forward_f16, STEM_THREADS, 2, StemBandForwardArguments) { stem_forward_half<f16>(args); }
KERNEL_BLOCKS(stem_forward_bf16, STEM_THREADS, 2, StemBandForwardArguments) { stem_forward_half<bf16>(args); }
KERNEL_BLOCKS(stem_backward_f32, STEM_THREADS, 1, StemBackwardArguments) { stem_backward<float>(args); }
KERNEL_BLOCKS(stem_backward_f16, STEM_THREADS, 2, StemBandBackwardArguments) { stem_backward_half<f16>(args); }
KERNEL_BLOCKS(stem_backward_bf16, STEM_THREADS, 2, StemBandBackwardArguments) { stem_backward_half<bf16>(args); }
