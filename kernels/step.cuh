// The step's block in device memory: all that differs from step to step, so that captured graphs hold none of it.
#pragma once

#include "device.cuh"

struct StepBlock {
    // Of the schedule, set by `step_begin`.
    uint64_t seed;
    uint64_t first_position;  // of the micro-batch's first sample, by which masks are drawn
    uint32_t step;
    float learning_rate;
    float ema_decay;
    // The device's own. Gradients are those of the loss times `loss_scale`; `not_finite` is raised by whoever
    // completes a gradient that is not finite, and makes the update skip the step.
    float loss_scale;
    uint32_t not_finite;
    uint32_t good_steps;  // since the scale last changed
    uint32_t skipped;     // steps, in all
    // Of the step's micro-batches so far.
    uint32_t correct;
    double loss;
};
static_assert(sizeof(StepBlock) == 56, "see BLOCK_BYTES in src/ops/cuda/step.rs");
