// The step's block in device memory: all numbers that change from step to step, so captured graphs contain none of
// them.
#pragma once

#include "device.cuh"

// `step_begin` sets the schedule's part; the device updates the rest. Gradients are multiplied by `loss_scale`. A
// kernel that completes a gradient raises `not_finite` if it is not finite, and then the update skips the step.
#define STEP_BLOCK_FIELDS(F)                                                                      \
    F(uint64_t, seed)                                                                             \
    F(uint64_t, first_position) /* of the micro-batch's first sample, by which masks are drawn */ \
    F(uint32_t, step)                                                                             \
    F(float, learning_rate)                                                                       \
    F(float, body_rate)     /* the learning rate of the first `body` parameters */                \
    F(uint32_t, body)                                                                             \
    F(float, ema_decay)                                                                           \
    F(float, clip_factor)   /* of the gradients, 1 if the update does not clip */                 \
    F(float, gradient_norm) /* before clipping; below 0 if the update does not clip */            \
    F(float, loss_scale)                                                                          \
    F(uint32_t, not_finite)                                                                       \
    F(uint32_t, good_steps) /* since the scale last changed */                                    \
    F(uint32_t, skipped)    /* number of skipped steps */                                         \
    F(uint32_t, correct)    /* of the step's micro-batches so far, and `loss` */                  \
    F(double, loss)
LAYOUT(StepBlock, STEP_BLOCK_FIELDS)
