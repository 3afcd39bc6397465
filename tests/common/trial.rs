//! Training steps of a network, as the engine makes them, on one device or on several ranks.

use std::ops::Range;

use effnet::model::{Architecture, ParamTable, Variant, initialise};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision};
use effnet::ops::*;

use super::buffers;
use super::formula::Formula;
use super::gpu::{TestGpu, engine};
use super::network::{UPDATE, architecture, training};

pub const CLASSES: usize = 10;
pub const IMAGES: usize = 2;
/// Slots alternate: the first two steps are not captured, the next two are, and the last one launches the graph of the
/// third.
pub const STEPS: usize = 5;

/// The bytes of some images, and their labels.
pub type Images = (Vec<u8>, Vec<u32>);

/// A network and a batch of one or more micro-batches.
pub struct Trial {
    pub precision: Precision,
    device: CudaDevice,
    micro_batches: usize,
    pub network: Network,
    pub table: ParamTable,
    passes: Vec<Pass>,
    pub buckets: Buckets,
    pub update: Update,
    pub learning_rate: f32,
    /// What every micro-batch contains; otherwise each image is another one.
    pub fixed: Option<Images>,
}

/// The state after a step.
#[derive(Debug)]
pub struct Step {
    pub figures: StepFigures,
    pub scale: Option<LossScale>,
    pub logits: Vec<f32>,
    pub gradients: Vec<f32>,
    /// Only the trainable parameters.
    pub parameters: Vec<f32>,
    pub running: Vec<f32>,
    pub slots: [Vec<f32>; 2],
}

impl Trial {
    /// The first blocks of B0, with several buckets. Micro-batches of [`IMAGES`] have their own statistics.
    pub fn small(precision: Precision, micro_batches: usize) -> Trial {
        Trial::with_statistics(precision, micro_batches, IMAGES, 1)
    }

    /// With micro-batches of `images`, whose statistics `ranks` ranks compute together.
    pub fn with_statistics(precision: Precision, micro_batches: usize, images: usize, ranks: usize) -> Trial {
        let mut arch = architecture(Variant::B0, CLASSES, 32);
        arch.blocks.truncate(4);
        arch.head_channels = 48;
        let step_images = images * micro_batches;
        let config = NetworkConfig { statistics_ranks: ranks, step_images, ..training(images) };
        let trial = Trial::new(precision, &arch, config);
        assert!(trial.buckets.iter().len() >= 3, "{:?}", trial.buckets);
        trial
    }

    pub fn new(precision: Precision, arch: &Architecture, config: NetworkConfig) -> Trial {
        let table = ParamTable::new(arch);
        let network = Network::new(arch, &table, config);
        let device = CudaDevice::new(precision);
        // This device stores every tensor, so it runs the list as it was recorded.
        let passes = network.recorded.passes();
        let frozen = Frozen::of(&passes, table.trainable(), table.total());
        let buckets = Buckets::new(&passes, table.trainable(), frozen, 16 << 10);
        let micro_batches = config.step_images / config.images;
        let (update, learning_rate) = (Update { frozen, ..UPDATE }, 1e-2);
        Trial {
            precision,
            device,
            micro_batches,
            network,
            table,
            passes,
            buckets,
            update,
            learning_rate,
            fixed: None,
        }
    }

    /// The same with expanded tensors computed again where kernels can.
    pub fn recomputing(mut self) -> Trial {
        self.device = CudaDevice::recomputing(self.precision);
        self.passes = self.network.itinerary(&self.device).passes();
        self.buckets = Buckets::new(&self.passes, self.table.trainable(), self.update.frozen, 16 << 10);
        self
    }

    /// An engine with the initial state of the network.
    pub fn ops<G: TestGpu>(&self, way: G::Way, scale: f32) -> CudaOps<G> {
        let plan = self.network.plan(&self.device);
        let (trainable, total) = (self.table.trainable(), self.table.total());
        let mut ops = engine::<G>(way, trainable, total, &[&plan], self.precision).unwrap();
        self.start(&mut ops, &plan);
        ops.set_loss_scale(LossScale { scale, good_steps: 0, skipped: 0 }).unwrap();
        ops
    }

    pub fn start<O: Ops>(&self, ops: &mut O, plan: &Plan) {
        let values = initialise::initialise(&self.table, 3);
        ops.bind(plan).unwrap();
        ops.write_state(Buffer::Parameters, &values).unwrap();
        ops.write_state(Buffer::Ema, &values).unwrap();
    }

    pub fn target(&self) -> BatchTarget {
        let Network { image, labels, .. } = self.network;
        BatchTarget { image, labels: Some(labels), mean: [0.5; 3], deviation: [0.25; 3] }
    }

    /// The images of a micro-batch. They do not depend on how the batch is divided.
    fn images(&self, batch: usize) -> Images {
        let images = self.network.config.images;
        let ids = || batch * images..(batch + 1) * images;
        let pixels = |id: usize| image_bytes(&format!("pixels {id}"), self.network.image.elements / images);
        (ids().flat_map(pixels).collect(), ids().map(label).collect())
    }

    /// Runs a step in which this rank has the micro-batches of `own`.
    pub fn step<O: Ops>(&self, ops: &mut O, number: usize, own: Range<usize>) -> Result<Step> {
        self.submit(ops, number, own)?;
        self.outcome(ops)
    }

    /// The same without reading its outcome.
    pub fn submit<O: Ops>(&self, ops: &mut O, number: usize, own: Range<usize>) -> Result {
        let target = self.target();
        for at in own.clone() {
            let (first, last) = (at == own.start, at + 1 == own.end);
            let slot = (number * own.len() + at - own.start) % 2;
            let batch = number * self.micro_batches + at;
            let (pixels, labels) = self.fixed.clone().unwrap_or_else(|| self.images(batch));
            let first_position = if self.fixed.is_some() { 0 } else { batch * self.network.config.images };
            ops.set_step(StepParams {
                seed: 5,
                step: number as u64,
                first_position: first_position as u64,
                learning_rate: self.learning_rate,
                ema_decay: 0.9,
                ..StepParams::default()
            })?;
            let pixels = BatchPixels::Squares(&pixels);
            ops.send_batch(slot, &BatchInput { pixels, labels: (&labels).into(), target })?;
            ops.replay(Sequence::Training { slot, first, last }, |ops| {
                if first {
                    ops.begin_step()?;
                }
                ops.unpack_batch(slot, &target)?;
                for (number, pass) in self.passes.iter().enumerate() {
                    ops.run(pass)?;
                    let complete = self.buckets.after(number).filter(|_| last);
                    complete.into_iter().try_for_each(|bucket| ops.reduce(bucket))?;
                }
                if last { ops.run(&self.update.into()) } else { Ok(()) }
            })?;
        }
        ops.end_step()
    }

    /// The state after the last step.
    pub fn outcome<O: Ops>(&self, ops: &mut O) -> Result<Step> {
        let figures = ops.take_figures(true)?.expect("a step was made");
        let logits = buffers::values(ops, self.network.logits)?;
        let (trainable, total) = (self.table.trainable(), self.table.total());
        let gradients = buffers::state(ops, Buffer::Gradients, trainable)?;
        let mut parameters = buffers::state(ops, Buffer::Parameters, total)?;
        let running = parameters.split_off(trainable);
        let mut slot = |number| buffers::state(ops, Buffer::Slot(number), trainable);
        let slots = [slot(0)?, slot(1)?];
        Ok(Step { figures, scale: ops.loss_scale()?, logits, gradients, parameters, running, slots })
    }
}

/// The bytes of an image with this name.
pub fn image_bytes(name: &str, count: usize) -> impl Iterator<Item = u8> + use<> {
    Formula::of(name).values(count, 0.0, 256.0).into_iter().map(|v| v as u8)
}

pub fn label(id: usize) -> u32 {
    (id * 37 % CLASSES) as u32
}
