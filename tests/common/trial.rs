//! Steps of a small network on the CUDA engine, on one rank or on several: the first blocks of B0, with several buckets.
//!
//! On the harness, ranks are threads. Each has its own device and engine, and its own order of threads and transfers.

use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant, initialise};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;

use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine};
use crate::common::host_gpu::HostGpu;
use crate::common::ranks::ranks;

const CLASSES: usize = 10;
const SIDE: usize = 32;
pub const IMAGES: usize = 2;
/// Slots alternate, so the first two steps are recorded and the others are launched from the recordings.
pub const STEPS: usize = 4;

/// A network and a batch of one or more micro-batches.
pub struct Trial {
    precision: Precision,
    images: usize,
    micro_batches: usize,
    network: Network,
    pub table: ParamTable,
    passes: Vec<Pass>,
    pub buckets: Buckets,
    pub update: Update,
}

/// The state after a step.
#[derive(Debug, PartialEq)]
pub struct Step {
    pub figures: StepFigures,
    pub scale: Option<LossScale>,
    /// Only the trainable parameters.
    pub parameters: Vec<f32>,
    pub running: Vec<f32>,
    pub slots: [Vec<f32>; 2],
}

impl Trial {
    /// With micro-batches of [`IMAGES`], each with its own statistics.
    pub fn new(precision: Precision, micro_batches: usize) -> Trial {
        Trial::with_statistics(precision, micro_batches, IMAGES, 1)
    }

    /// With micro-batches of `images`, whose statistics `ranks` ranks compute together.
    pub fn with_statistics(precision: Precision, micro_batches: usize, images: usize, ranks: usize) -> Trial {
        let norm = BatchNormConfig::default();
        let mut arch = Architecture::new(Variant::B0, CLASSES, SIDE, Padding::Symmetric, norm).unwrap();
        arch.blocks.truncate(4);
        arch.head_channels = 48;
        let table = ParamTable::new(&arch);
        let config = NetworkConfig {
            statistics: Statistics::Batch,
            statistics_ranks: ranks,
            drop_path: 0.2,
            dropout: 0.2,
            label_smoothing: 0.1,
            step_images: images * micro_batches,
            ..NetworkConfig::inference(images)
        };
        let network = Network::new(&arch, &table, config);
        let passes = network.itinerary(&CudaDevice { precision }).passes();
        let buckets = Buckets::new(&passes, table.trainable(), 16 << 10);
        assert!(buckets.iter().len() >= 3, "{buckets:?}");
        let rule = Rule::RmsProp { form: RmsPropForm::PyTorch, alpha: 0.9, momentum: 0.9, eps: 0.01 };
        let update = Update { rule, weight_decay: 1e-5, ema: true };
        Trial { precision, images, micro_batches, network, table, passes, buckets, update }
    }

    /// An engine with the initial state of the network.
    pub fn ops<G: TestGpu>(&self, way: G::Way, scale: f32) -> CudaOps<G> {
        let plan = self.network.plan(&CudaDevice { precision: self.precision });
        let (trainable, total) = (self.table.trainable(), self.table.total());
        let mut ops = engine::<G>(way, trainable, total, &[&plan], self.precision).unwrap();
        let values = initialise::initialise(&self.table, 3);
        ops.bind(&plan).unwrap();
        ops.write_state(Buffer::Parameters, &values).unwrap();
        ops.write_state(Buffer::Ema, &values).unwrap();
        ops.set_growth_interval(2);
        ops.set_loss_scale(LossScale { scale, good_steps: 0, skipped: 0 }).unwrap();
        ops
    }

    /// Runs a step in which this rank has the micro-batches of `own`.
    pub fn step<G: Gpu>(
        &self,
        ops: &mut CudaOps<G>,
        number: usize,
        own: std::ops::Range<usize>,
    ) -> Result<Step> {
        let Trial { network, passes, buckets, images, .. } = self;
        let target = BatchTarget {
            image: network.image,
            labels: Some(network.labels),
            mean: [0.5; 3],
            deviation: [0.25; 3],
        };
        for at in own.clone() {
            let (first, last) = (at == own.start, at + 1 == own.end);
            let slot = (number * own.len() + at - own.start) % 2;
            let batch = number * self.micro_batches + at;
            // Images do not depend on how the batch is divided.
            let ids = || batch * images..(batch + 1) * images;
            let pixels = |id: usize| {
                let values = Formula::of(&format!("pixels {id}")).values(SIDE * SIDE * 3, 0.0, 256.0);
                values.into_iter().map(|v| v as u8)
            };
            let pixels: Vec<u8> = ids().flat_map(pixels).collect();
            let labels: Vec<u32> = ids().map(|id| (id * 37 % CLASSES) as u32).collect();
            ops.set_step(StepParams {
                seed: 5,
                step: number as u64,
                first_position: (batch * images) as u64,
                learning_rate: 1e-2,
                ema_decay: 0.9,
            })?;
            let pixels = BatchPixels::Squares(&pixels);
            ops.send_batch(slot, &BatchInput { pixels, labels: &labels, target })?;
            ops.replay(Sequence::Training { slot, first, last }, |ops| {
                if first {
                    ops.begin_step()?;
                }
                ops.unpack_batch(slot, &target)?;
                for (number, pass) in passes.iter().enumerate() {
                    ops.run(pass)?;
                    let complete = buckets.after(number).filter(|_| last);
                    complete.into_iter().try_for_each(|bucket| ops.reduce(bucket))?;
                }
                if last { ops.run(&self.update.into()) } else { Ok(()) }
            })?;
        }
        ops.end_step()?;
        self.outcome(ops)
    }

    /// The state after the last step.
    pub fn outcome<G: Gpu>(&self, ops: &mut CudaOps<G>) -> Result<Step> {
        let figures = ops.take_figures(true)?.expect("a step was made");
        let (trainable, total) = (self.table.trainable(), self.table.total());
        let mut read = |buffer, elements| -> Result<Vec<f32>> {
            let mut values = vec![f32::NAN; elements];
            ops.read_state(buffer, &mut values)?;
            Ok(values)
        };
        let mut parameters = read(Buffer::Parameters, total)?;
        let running = parameters.split_off(trainable);
        let slots = [read(Buffer::Slot(0), trainable)?, read(Buffer::Slot(1), trainable)?];
        Ok(Step { figures, scale: ops.loss_scale()?, parameters, running, slots })
    }

    /// All steps on one rank that accumulates.
    pub fn accumulated(&self, scale: f32) -> Vec<Step> {
        let mut ops = self.ops::<HostGpu>(HostGpu::WAYS[0], scale);
        (0..STEPS).map(|number| self.step(&mut ops, number, 0..self.micro_batches).unwrap()).collect()
    }

    /// All steps on several ranks, one for each micro-batch.
    pub fn shared(&self, scale: f32) -> Vec<Vec<Step>> {
        ranks(self.micro_batches, |rank, group| {
            let mut ops = self.ops::<HostGpu>(HostGpu::WAYS[rank % HostGpu::WAYS.len()], scale);
            ops.connect(&group).unwrap();
            let steps =
                (0..STEPS).map(|number| self.step(&mut ops, number, rank..rank + 1).unwrap()).collect();
            group.leave().unwrap();
            steps
        })
    }
}

/// Asserts that all but the running statistics are equal, bit by bit.
pub fn same(got: &Step, expected: &Step, what: &str) {
    let Step { figures, scale, parameters, slots, .. } = got;
    assert_eq!(figures.loss.to_bits(), expected.figures.loss.to_bits(), "{what}: the loss");
    assert_eq!(figures, &expected.figures, "{what}");
    assert_eq!(scale, &expected.scale, "{what}");
    for (name, one, other) in [
        ("parameters", parameters, &expected.parameters),
        ("mean square", &slots[0], &expected.slots[0]),
        ("momentum", &slots[1], &expected.slots[1]),
    ] {
        let different = one.iter().zip(other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{what}: {name} of {}", one.len());
    }
}
