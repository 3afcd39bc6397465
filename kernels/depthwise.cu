// The depthwise convolution, 3×3 and 5×5, stride 1 and 2, forward and backward. The bodies are in
// depthwise_forward.cuh and depthwise_backward.cuh.
//
// At B0's shapes, 224², one image, fp16: forward reads 3.8 million elements and writes 2.3 million, 12.2 MB in all
// layers; backward reads da, y and x and writes dx: 24.4 MB. Multiply-adds: 35 million forward, 69 million backward.
// Sigmoids: 3.8 million forward (one for each input element) and 6.1 million backward (one for each output element,
// one for each input element). Floors: 4.1 and 8.1 µs at 3.0 TB/s, 17 and 35 µs at 0.70 TB/s. All instructions, counted
// in the machine code, take an H100 5.0 and 10.0 µs at full rate, an RTX 3080 10 and 20. So 5×5 is bound by them on an
// H100 (1.4 to 1.7 times the floor), 3×3 by both about equally; an RTX 3080 by memory. docs/depthwise.md has the count and the versions before.
// Last measured share: not yet measured.
#include "depthwise_backward.cuh"
#include "depthwise_forward.cuh"

// fp32 uses as many registers as it needs; half types leave room for three or four blocks on a multiprocessor.
#define DEPTHWISE(T, name, Shape)                                                                                       \
    KERNEL_BLOCKS(depthwise_forward_##name, DEPTHWISE_THREADS, Shape::forward, DepthwiseForwardArguments) {             \
        DepthwiseForward<T, Shape::kernel, Shape::stride, false>(args).run();                                           \
    }                                                                                                                   \
    KERNEL_BLOCKS(depthwise_backward_##name, DEPTHWISE_THREADS, Shape::backward, DepthwiseBackwardArguments) {          \
        DepthwiseBackward<T, Shape::kernel, Shape::stride, DepthwiseBefore::STORED>(args).run();                        \
    }                                                                                                                   \
    KERNEL_BLOCKS(depthwise_backward_identity_##name, DEPTHWISE_THREADS, Shape::backward, DepthwiseBackwardArguments) { \
        DepthwiseBackward<T, Shape::kernel, Shape::stride, DepthwiseBefore::IDENTITY>(args).run();                      \
    }
// Those that compute the expansion before again: no network has a 5×5 kernel with stride 1 after so few channels.
#define DEPTHWISE_AND_RECOMPUTE(T, name, Shape)                                                                          \
    DEPTHWISE(T, name, Shape)                                                                                            \
    KERNEL_BLOCKS(depthwise_forward_recompute_##name, DEPTHWISE_THREADS, Shape::forward, DepthwiseForwardArguments) {    \
        DepthwiseForward<T, Shape::kernel, Shape::stride, true>(args).run();                                             \
    }                                                                                                                    \
    KERNEL_BLOCKS(depthwise_backward_recompute_##name, DEPTHWISE_THREADS, Shape::again, DepthwiseBackwardArguments) {    \
        DepthwiseBackward<T, Shape::kernel, Shape::stride, DepthwiseBefore::RECOMPUTED>(args).run();                     \
    }

INSTANCE_FP32(DEPTHWISE, k3s1, kernel = 3, stride = 1, forward = 1, backward = 1)
INSTANCE_FP32(DEPTHWISE, k3s2, kernel = 3, stride = 2, forward = 1, backward = 1)
INSTANCE_FP32(DEPTHWISE, k5s1, kernel = 5, stride = 1, forward = 1, backward = 1)
INSTANCE_FP32(DEPTHWISE, k5s2, kernel = 5, stride = 2, forward = 1, backward = 1)
INSTANCE_HALF(DEPTHWISE_AND_RECOMPUTE, k3s1, kernel = 3, stride = 1, forward = 4, backward = 3, again = 3)
INSTANCE_HALF(DEPTHWISE_AND_RECOMPUTE, k3s2, kernel = 3, stride = 2, forward = 4, backward = 4, again = 3)
INSTANCE_HALF(DEPTHWISE, k5s1, kernel = 5, stride = 1, forward = 4, backward = 3)
INSTANCE_HALF(DEPTHWISE_AND_RECOMPUTE, k5s2, kernel = 5, stride = 2, forward = 4, backward = 3, again = 3)
