//! Weights that the CPU packs once for all batches of inference: the same bits as without, and none that is out of date.

use effnet::model::{ParamTable, Variant, initialise};
use effnet::network::Inference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

use crate::common::buffers;
use crate::common::formula::Formula;
use crate::common::network::architecture;

const IMAGES: usize = 2;

struct Case {
    inference: Inference,
    ops: CpuOps,
    image: Vec<f32>,
}

impl Case {
    fn new(precision: Precision) -> (Case, ParamTable) {
        let arch = architecture(Variant::B0, 10, 32);
        let table = ParamTable::new(&arch);
        let device = CpuDevice::new(2, precision);
        let inference = Inference::new(&arch, &table, IMAGES, &device, &[Weights::Raw, Weights::Ema]);
        let plan = inference.plan(&device);
        let state = StateSize::new(table.trainable(), table.total());
        let mut ops = CpuOps::new(state, &[&plan], device).unwrap();
        ops.bind(&plan).unwrap();
        let image = Formula::of("image").values(inference.network.image.elements, -1.0, 1.0);
        (Case { inference, ops, image }, table)
    }

    fn set(&mut self, buffer: Buffer, values: &[f32]) {
        self.ops.write_state(buffer, values).unwrap();
        self.inference.fold(&mut self.ops).unwrap();
    }

    /// `repeated` means in a sequence, as an evaluation runs its batches.
    fn logits(&mut self, weights: Weights, repeated: bool) -> Vec<f32> {
        let Case { inference, ops, image } = self;
        ops.use_weights(weights).unwrap();
        ops.upload(inference.network.image, image).unwrap();
        match repeated {
            true => {
                ops.replay(Sequence::Inference { slot: 0 }, |ops| inference.forward(ops, weights)).unwrap()
            }
            false => inference.forward(ops, weights).unwrap(),
        }
        buffers::values(ops, inference.network.logits).unwrap()
    }
}

#[test]
fn weights_that_are_packed_once_are_never_out_of_date() {
    for precision in CpuDevice::PRECISIONS {
        let (mut case, table) = Case::new(precision);
        let [first, second, average] = [1, 2, 3].map(|seed| initialise::initialise(&table, seed));
        let mut seen = Vec::new();
        for values in [&first, &second, &first] {
            case.set(Buffer::Parameters, values);
            case.set(Buffer::Ema, &average);
            for weights in [Weights::Raw, Weights::Ema] {
                let plain = case.logits(weights, false);
                for _ in 0..2 {
                    assert_eq!(case.logits(weights, true), plain, "{precision}, {weights:?}");
                }
                seen.push(plain);
            }
        }
        assert!(seen[0] != seen[2] && seen[0] == seen[4], "{precision}: the weights follow what was written");
        assert!(seen[1] == seen[3] && seen[0] != seen[1], "{precision}: the average has its own");
    }
}

/// An update changes weights without writing them.
#[test]
fn update_drops_what_was_packed() {
    let (mut case, table) = Case::new(Precision::Fp32);
    case.set(Buffer::Parameters, &initialise::initialise(&table, 1));
    let before = case.logits(Weights::Raw, true);
    let ones = vec![1.0; table.trainable()];
    case.ops.write_state(Buffer::Gradients, &ones).unwrap();
    // Packed again, so that only the update can drop it.
    assert_eq!(case.logits(Weights::Raw, true), before);
    let update =
        Update { rule: Rule::Sgd { momentum: 0.0, nesterov: false }, ..crate::common::network::UPDATE };
    case.ops.set_step(StepParams { learning_rate: 0.01, body_rate: 0.01, ..StepParams::default() }).unwrap();
    case.ops.run(&update.into()).unwrap();
    case.inference.fold(&mut case.ops).unwrap();
    let after = case.logits(Weights::Raw, true);
    assert_eq!(after, case.logits(Weights::Raw, false));
    assert_ne!(after, before);
}
