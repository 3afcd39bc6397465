// The depthwise convolution, 3×3 and 5×5, stride 1 and 2, forward and backward; the bodies are in
// depthwise_forward.cuh and depthwise_backward.cuh.
//
// At B0's shapes, 224², one image, fp16: forward reads and writes 9.5 million elements in and 7.1 million out, 33 MB in
// all layers; backward reads da, y and x and writes dx: 66 MB. Multiply-adds: 72 million forward, 144 million backward,
// beside one sigmoid an input element forward and two an element backward. Floors at 3.0 TB/s: 11 and 22 µs an image;
// bound by memory on every card, since the fp32 units need less than a third of that. Last measured share: not yet
// measured.
#include "depthwise_backward.cuh"

// fp32 takes the registers that it needs; half types leave room for two blocks a multiprocessor.
#define DEPTHWISE_FORWARD(T, suffix, blocks, k, stride)                                              \
    KERNEL_BLOCKS(depthwise_forward_k##k##s##stride##_##suffix, depthwise_threads(k), blocks,        \
                  DepthwiseForwardArguments) {                                                       \
        DepthwiseForward<T, k, stride>(args).run();                                                  \
    }
#define DEPTHWISE_BACKWARD(T, suffix, blocks, k, stride)                                             \
    KERNEL_BLOCKS(depthwise_backward_k##k##s##stride##_##suffix, depthwise_threads(k), blocks,       \
                  DepthwiseBackwardArguments) {                                                      \
        DepthwiseBackward<T, k, stride, true>(args).run();                                           \
    }
#define DEPTHWISE_BACKWARD_IDENTITY(T, suffix, blocks, k, stride)                                    \
    KERNEL_BLOCKS(depthwise_backward_identity_k##k##s##stride##_##suffix, depthwise_threads(k), blocks, \
                  DepthwiseBackwardArguments) {                                                      \
        DepthwiseBackward<T, k, stride, false>(args).run();                                          \
    }
#define DEPTHWISE_SHAPES(MACRO, T, suffix, blocks) \
    MACRO(T, suffix, blocks, 3, 1)                 \
    MACRO(T, suffix, blocks, 3, 2)                 \
    MACRO(T, suffix, blocks, 5, 1)                 \
    MACRO(T, suffix, blocks, 5, 2)
#define DEPTHWISE_KERNELS(T, suffix, blocks)                   \
    DEPTHWISE_SHAPES(DEPTHWISE_FORWARD, T, suffix, blocks)     \
    DEPTHWISE_SHAPES(DEPTHWISE_BACKWARD, T, suffix, blocks)    \
    DEPTHWISE_SHAPES(DEPTHWISE_BACKWARD_IDENTITY, T, suffix, blocks)

DEPTHWISE_KERNELS(float, f32, 1)
DEPTHWISE_KERNELS(f16, f16, 2)
DEPTHWISE_KERNELS(bf16, bf16, 2)
