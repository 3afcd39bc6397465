// Setting the step's block: two kernels of one thread. The numbers are passed as arguments, so no copy is needed.
//
// Bytes: 36 and 36 written, no arithmetic: only the time of a launch. Last measured share: not yet measured.
#include "step.cuh"

#define STEP_BEGIN_FIELDS(F)    \
    F(StepBlock*, block)        \
    F(uint64_t, seed)           \
    F(uint64_t, first_position) \
    F(uint32_t, step)           \
    F(float, learning_rate)     \
    F(float, body_rate)         \
    F(uint32_t, body)           \
    F(float, ema_decay)
ARGUMENTS(StepBeginArguments, STEP_BEGIN_FIELDS)

KERNEL(step_begin, 32, StepBeginArguments) {
    if (threadIdx.x == 0) {
        args.block->seed = args.seed;
        args.block->first_position = args.first_position;
        args.block->step = args.step;
        args.block->learning_rate = args.learning_rate;
        args.block->body_rate = args.body_rate;
        args.block->body = args.body;
        args.block->ema_decay = args.ema_decay;
    }
}

#define STEP_SCALE_FIELDS(F) \
    F(StepBlock*, block)     \
    F(float, scale)          \
    F(uint32_t, good_steps)  \
    F(uint32_t, skipped)
ARGUMENTS(StepScaleArguments, STEP_SCALE_FIELDS)

KERNEL(step_scale, 32, StepScaleArguments) {
    if (threadIdx.x == 0) {
        args.block->loss_scale = args.scale;
        args.block->clip_factor = 1.0f;
        args.block->gradient_norm = -1.0f;
        args.block->not_finite = 0;
        args.block->good_steps = args.good_steps;
        args.block->skipped = args.skipped;
        args.block->correct = 0;
        args.block->loss = 0.0;
    }
}
