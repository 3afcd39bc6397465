// The second stage of weight gradients: the partial sums [parts, elements] of a pass's blocks are added in a fixed
// order, and the result is added to the gradient.
//
// Idea: the cost is reading. A warp reads 32 neighbouring elements of one part. If there are many parts, 8 or 32 warps
// share them, so that few elements still fill the GPU. See reduction.cuh for the order.
//
// Bytes: 4·parts·elements read, 8·elements for the gradient; seven fp32 instructions a number. At 264 parts of 50,000
// elements 53 MB: floor 18 µs at 3.0 TB/s. B0's layers write 592 MB of partial sums in a step at batch 512, read in 49
// launches of 12 MB on average: floor 0.20 ms, that is 1.2 MB and 0.4 µs an image, 1.7 µs at 0.70 TB/s; less if the
// second-level cache still has them. Last measured share: not yet measured.
#include "reduction.cuh"

#define ADD_GRADIENT_FIELDS(F) \
    F(const float*, partials)  \
    F(float*, gradient)        \
    F(StepBlock*, block)       \
    F(int, parts)              \
    F(int, elements)
ARGUMENTS(AddGradientArguments, ADD_GRADIENT_FIELDS)

namespace {

template <int COLUMNS, int GROUPS>
__device__ __forceinline__ void add_gradient(const AddGradientArguments& args) {
    SharedArena shared;
    Compensated* totals = shared.take<Compensated>(COLUMNS * GROUPS);
    const int group = threadIdx.x / COLUMNS;
    const size_t elements = args.elements;
    const size_t element = static_cast<size_t>(blockIdx.x) * COLUMNS + threadIdx.x % COLUMNS;
    Compensated own;
    if (element < elements) own = column_sum(args.partials + element, elements, args.parts, group, GROUPS);
    const Compensated total = group_sum<COLUMNS, GROUPS>(own, totals);
    if (group == 0 && element < elements) {
        add_to_gradient(args.gradient + element, total.rounded(), args.block);
    }
}

}  // namespace

KERNEL(add_gradient_g1, 256, AddGradientArguments) { add_gradient<256, 1>(args); }
KERNEL(add_gradient_g8, 256, AddGradientArguments) { add_gradient<32, 8>(args); }
KERNEL(add_gradient_g32, 1024, AddGradientArguments) { add_gradient<32, 32>(args); }
