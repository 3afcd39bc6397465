// The stem: image [N, R, R, 3] to y [N, P, P, C] by a 3×3 convolution with stride 2, and its weight gradient.
//
// With only 27 products for each value, a matrix of patches does not pay, so the convolution is computed directly. A
// thread has eight channels. The image rows under a tile of consecutive output pixels are in shared memory as fp32,
// with zeros for the padding around them, so that the loops need no checks at borders. A part has several tiles of
// equal size, which depends only on C; they are consecutive over all images.
//
// Forward: a thread has seven pixels of eight channels in registers, as many as 128 registers allow. The 27·C weights
// are in shared memory. The epilogue takes statistics of the stored values, with the part's first value of each
// channel as the shift.
//
// Backward: dy is computed by batch norm's backward into shared memory. Then a thread sums, over its share of the
// pixels, the products of eight channels with the nine values under one row of the window. The shares are added at
// the end of the part.
//
// B0 at a batch of 1 (224²·3 → 112²·32): forward reads 0.30 MB and writes 0.80 MB in fp16, backward reads 1.9 MB;
// 10.8 M multiply-adds each, 13 M fp32 instructions with conversions, statistics and dy. Floors: 0.37 and 0.64 µs at
// 3.0 TB/s, 1.6 and 2.7 µs at 0.70 TB/s. The instructions take 0.44 µs on an H100, which bounds forward there, and
// 0.87 µs on an RTX 3080. Last measured share: not yet measured.
#include "stem_backward.cuh"

KERNEL_BLOCKS(stem_forward_f32, STEM_THREADS, 2, StemForwardArguments) { stem_forward<float>(args); }
KERNEL_BLOCKS(stem_forward_f16, STEM_THREADS, 2, StemForwardArguments) { stem_forward<f16>(args); }
KERNEL_BLOCKS(stem_forward_bf16, STEM_THREADS, 2, StemForwardArguments) { stem_forward<bf16>(args); }
KERNEL_BLOCKS(stem_backward_f32, STEM_THREADS, 1, StemBackwardArguments) { stem_backward<float>(args); }
KERNEL_BLOCKS(stem_backward_f16, STEM_THREADS, 2, StemBackwardArguments) { stem_backward<f16>(args); }
KERNEL_BLOCKS(stem_backward_bf16, STEM_THREADS, 2, StemBackwardArguments) { stem_backward<bf16>(args); }
