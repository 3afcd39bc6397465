// Squeeze-excite: the mean of silu(BN(y)) over each image, two small dense layers, and their gradients.
//
// Forward: `squeeze_pool` is the only pass over a wide tensor. A thread has one vector of 8 channels, so scale and
// shift stay in registers, and reads four pixels at a time, so that loads overlap. The block's rows and then the
// image's splits are added in order. `squeeze_hidden` and `squeeze_gate` are the layers: a block has 8 images, so
// each weight is read once for all of them, and neighbouring lanes read neighbouring weights.
//
// Backward: no wide tensor at all, see the five sums of ProjectBackward in src/ops/pass/project.rs. `squeeze_hidden_gradient` computes the
// gradients of the gate's sigmoid and its layer. `squeeze_gradient` computes that of the pooled features and the
// partial sums of the batch norm. `squeeze_weights` computes the weights' gradients, each in one block over all
// images, so they need no partial sums in memory.
//
// B0's sixteen blocks, batch 1, fp16: the pool reads 4.6 MB (2.3 million values, two special-function operations and six fp32 instructions
// each): floor 1.5 µs an image at 3.0 TB/s, 6.6 µs at 0.70 TB/s. The layers have 0.63 million weights and as many
// multiply-adds; the backward pass has twice as many again. With the five sums, gates and intermediate tensors they
// move 0.14 MB forward and 0.44 MB backward: floor 0.2 µs, in 64 launches a step that are bound by latency unless the
// batch is large. Last measured share: not yet measured.
#include "squeeze_excite_backward.cuh"
