// Squeeze-excite: the mean of silu(BN(y)) over each image, two small dense layers, and their gradients.
//
// Forward: `squeeze_pool` is the only pass over a wide tensor. A thread has one vector of 8 channels, so scale and
// shift stay in registers, and reads four pixels at a time, so that loads overlap. The block's rows and then the
// image's splits are added in order. The layers follow in the same launch: images are taken in groups of eight, for all of
// which a weight is read once. The last block of a group for a slice of channels adds what the slice gives to the hidden
// units; the last slice of a group computes the gates. Nobody waits, and what is added in which order follows from numbers
// of images and channels. Large layers have their gates in a launch of their own, `squeeze_gate`.
//
// Backward: no wide tensor at all, see the five sums of ProjectBackward in src/ops/pass/project.rs.
// `squeeze_hidden_gradient`: the gradients of the gate's sigmoid and, in a group's last block, of the hidden units.
// `squeeze_gradients`: the rest needs these only, so all of it is one launch: the weights' gradients, each in one block
// over all images, so they need no partial sums in memory; the gradient of the pooled features; and the batch norm's sums,
// which the last group of images adds up.
//
// B0's sixteen blocks, batch 1, fp16: the pool reads 4.6 MB (2.3 million values, two special-function operations and six
// fp32 instructions each): floor 1.5 µs an image at 3.0 TB/s, 6.6 µs at 0.70 TB/s. The layers have 0.63 million weights and
// as many multiply-adds; the backward pass has twice as many again. With the five sums, gates and intermediate tensors they
// move 0.14 MB forward and 0.44 MB backward: floor 0.2 µs. What costs is latency: of launches (3 µs each), of a count of
// arrivals (0.8 µs, for its fences), of loads in turn. Last measured share: not yet measured.
//
// What was counted (tools/count: machine code, latencies and bandwidths of the card; not measured), µs a step of B0, launches
// at 3 µs each included:
//
//   forward                                       launches  H100, 512   H100, 32   RTX 3080, 512   RTX 3080, 32
//   1. pool; hidden; gate                             48       1107        339          4074            502
//   2. pool and hidden; gates in the last block       16       1046        330            –              –
//   3. the same, gates of the four layers above
//      32,768 weights apart, weights prefetched       20        976        249          3625            342
//   backward
//   1. hidden gradient; gradient; weights; sums       64        464        364           805            375
//   2. hidden gradient; all else; sums                48        308        232           520            262
//   3. hidden gradient; all else and the sums         32        283        196           472            200
//   4. the same, four groups of images in turn        32        295        199           461            203
//
// In 2 one block computes the gates of 1152 channels and 48 units: 11,000 multiply-adds a lane and 221 kB through one
// multiprocessor, 20 µs at the end of the launch where nothing else runs. A launch of its own has 18 blocks for each group
// of images: 2 µs at batch 32, 7 at 512. With 672·28 weights the block needs 7 µs: at batch 512 a launch apart would be
// 2 µs slower, at batch 32 3 µs faster. The limit lies behind it. Four lanes instead of eight for a channel's units need
// more registers than the pool has, or shorter pieces of weights under way, which took as long.
// Backward in one launch would put the pooled features' gradient and five of the wide sums through a group's last block,
// 5 µs at its end, and the weights' gradients need all groups: they stay a second launch, so nothing is won. In 4 fewer
// blocks count their arrival, but each waits for its loads several times. A slice's last block that computes its images one
// by one would read the weights of the first layer eight times, 113 MB in the pool of 1152 channels, as much time as the
// pool itself.
#include "squeeze_excite_backward.cuh"
