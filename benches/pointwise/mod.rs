//! Sets up one pointwise pass with random data, for the benchmarks of `expand` and `project`.

use effnet::model::{Architecture, BatchNormConfig, Block, Padding, Variant};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

/// The networks whose layers are measured: variant, resolution, images.
pub const NETWORKS: [(Variant, usize, usize); 3] =
    [(Variant::B0, 32, 128), (Variant::B0, 224, 16), (Variant::B4, 380, 2)];

/// One pointwise layer: images, pixels an image, wide and narrow channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub images: usize,
    pub pixels: usize,
    pub wide: usize,
    pub narrow: usize,
}

impl Layer {
    pub fn rows(&self) -> usize {
        self.images * self.pixels
    }

    /// Operations of one product, a multiply-add counted as two.
    pub fn operations(&self) -> u64 {
        2 * (self.rows() * self.wide * self.narrow) as u64
    }

    /// Bytes of `wide` wide and `narrow` narrow tensors.
    pub fn bytes(&self, wide: usize, narrow: usize) -> u64 {
        4 * (self.rows() * (wide * self.wide + narrow * self.narrow)) as u64
    }
}

/// The different layers of a network, in order.
pub fn layers(
    (variant, resolution, images): (Variant, usize, usize),
    of: impl Fn(&Block) -> Option<Layer>,
) -> Vec<Layer> {
    let net = Architecture::new(variant, 1000, resolution, Padding::Symmetric, BatchNormConfig::default())
        .expect("a network");
    let mut layers: Vec<Layer> = net.blocks.iter().filter_map(of).collect();
    layers.iter_mut().for_each(|l| l.images = images);
    layers.dedup();
    layers
}

/// Tensors and parameters of one pass.
#[derive(Default)]
pub struct Setup {
    tensors: Tensors,
    all: Vec<Tensor>,
    parameters: usize,
}

impl Setup {
    pub fn tensor(&mut self, elements: usize) -> Tensor {
        let tensor = self.tensors.new_tensor("", elements, Kind::Activation);
        self.all.push(tensor);
        tensor
    }

    pub fn param(&mut self, elements: usize) -> Param {
        let param = Param { offset: self.parameters, elements };
        self.parameters += elements;
        param
    }

    pub fn batch_norm(&mut self, rows: usize, channels: usize) -> BatchNorm {
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.param(channels),
            bias: self.param(channels),
            running_mean: self.param(channels),
            running_var: self.param(channels),
            momentum: 0.1,
            eps: 1e-3,
            statistics: Statistics::Batch,
            coefficients: self.tensor(4 * channels),
            sums: self.tensor(2 * channels),
        }
    }

    /// Operators that are ready to run `pass`.
    pub fn ops(&self, pass: impl Fn(&mut dyn Ops)) -> CpuOps {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let device = CpuDevice { threads };
        let mut recorder = Recorder::new(&device);
        pass(&mut recorder);
        let plan = recorder.plan(&self.tensors, &self.all);
        let mut ops = CpuOps::new(self.parameters, self.parameters, &[&plan], threads).expect("operators");
        ops.bind(&plan).expect("a plan that fits");
        let mut state = 1u32;
        let mut random = |count: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        ops.write_state(Buffer::Parameters, &random(self.parameters)).expect("parameters");
        for &tensor in self.all.iter().filter(|t| plan.offsets[t.id as usize].is_some()) {
            ops.upload(tensor, &random(tensor.elements)).expect("values");
        }
        ops
    }
}

/// Runs the pass of a case on a device.
type Run = Box<dyn Fn(&mut dyn Ops)>;

/// The pass ready to run, the products it makes and the bytes of its tensors.
pub struct Case {
    pub name: String,
    pub ops: CpuOps,
    pub run: Run,
    pub operations: u64,
    pub bytes: u64,
}

impl Case {
    pub fn new(
        name: &str,
        layer: Layer,
        setup: Setup,
        run: impl Fn(&mut dyn Ops) + 'static,
        products: u64,
        bytes: u64,
    ) -> Case {
        Case {
            name: format!("{name} {}x{} {}-{}", layer.images, layer.pixels, layer.wide, layer.narrow),
            ops: setup.ops(&run),
            run: Box::new(run),
            operations: products * layer.operations(),
            bytes,
        }
    }
}
