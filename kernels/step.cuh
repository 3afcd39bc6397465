// The step's block in device memory: all that differs from step to step, so that captured graphs hold none of it.
#pragma once

#include "device.cuh"

// The schedule's part is set by `step_begin`, the rest is the device's own. Gradients are those of the loss times
// `loss_scale`; the kernel that completes a gradient raises `not_finite` where it is not finite, and then the update
// skips the step.
#define STEP_BLOCK_FIELDS(F)                                                                      \
    F(uint64_t, seed)                                                                             \
    F(uint64_t, first_position) /* of the micro-batch's first sample, by which masks are drawn */ \
    F(uint32_t, step)                                                                             \
    F(float, learning_rate)                                                                       \
    F(float, ema_decay)                                                                           \
    F(float, loss_scale)                                                                          \
    F(uint32_t, not_finite)                                                                       \
    F(uint32_t, good_steps) /* since the scale last changed */                                    \
    F(uint32_t, skipped)    /* steps, in all */                                                   \
    F(uint32_t, correct)    /* of the step's micro-batches so far, and `loss` */                  \
    F(double, loss)
LAYOUT(StepBlock, STEP_BLOCK_FIELDS)
