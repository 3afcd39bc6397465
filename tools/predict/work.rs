//! What a launch has to do, from its name, its grid and its arguments: products, fp32 instructions, special-function
//! operations, and the bytes of what is neither a tensor nor a parameter. Counted by hand from the kernels' sources,
//! once, as formulas of the arguments; a kernel that has no formula is an error.
//!
//! Counting. A fused multiply-add, a multiplication, an addition and a conversion from a half type are one fp32
//! instruction each; two values are converted to a half type by one. Loads, stores, integers, branches, shuffles,
//! selections and double precision are not counted, neither is what happens once a block. So a time from these is a bound.

use crate::recorder::Launched;
use crate::{layers, pointwise, state, windows};

/// Of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes moved through memory, each tensor once.
    pub bytes: f64,
    /// Those of them that the same launch reads a second time.
    pub again: f64,
    /// Multiply-adds on the tensor cores, as issued: channels filled up to whole tiles are counted.
    pub tensor: f64,
    /// fp32 instructions of a thread, multiply-adds among them.
    pub fp32: f64,
    /// Special-function operations: e^x, reciprocal, root.
    pub special: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.bytes += other.bytes;
        self.again += other.again;
        self.tensor += other.tensor;
        self.fp32 += other.fp32;
        self.special += other.special;
    }
}

/// fp32 instructions of `1/(1+e^-z)` besides the two special-function operations: as compiled for fp32, and where the
/// special-function unit is exact enough.
pub const EXACT_SIGMOID: f64 = 10.0;
pub const HALF_SIGMOID: f64 = 2.0;
/// Of an addition that carries its error.
pub const COMPENSATED: f64 = 7.0;
/// Of mean and spread of one value: its distance from the shift, their sum, the sum of their squares.
pub const MOMENTS: f64 = 3.0;
/// Of dy = a·du + b·(y − mean) + c.
pub const NORM_BACKWARD: f64 = 3.0;
/// Of silu's value and slope beyond the sigmoid.
pub const SILU_AND_SLOPE: f64 = 3.0;

pub fn up(value: f64, multiple: f64) -> f64 {
    (value / multiple).ceil() * multiple
}

/// The name without its storage type, and that: bytes of an element.
pub fn split(kernel: &str) -> (&str, usize) {
    [("_f16", 2), ("_bf16", 2), ("_f32", 4)]
        .iter()
        .find_map(|(suffix, bytes)| Some((kernel.strip_suffix(suffix)?, *bytes)))
        .unwrap_or((kernel, 4))
}

pub struct Count<'a> {
    pub launch: &'a Launched,
    pub half: bool,
    pub work: Work,
    missing: Option<String>,
}

impl Count<'_> {
    pub fn get(&mut self, name: &str) -> f64 {
        self.launch.number(name).unwrap_or_else(|| {
            self.missing = Some(format!("{} has no argument `{name}`", self.launch.kernel));
            0.0
        })
    }
    pub fn sides<const N: usize>(&mut self, names: [&str; N]) -> [f64; N] {
        names.map(|name| self.get(name))
    }
    pub fn grid(&self, side: usize) -> f64 {
        f64::from(self.launch.grid[side])
    }
    pub fn element(&self) -> f64 {
        if self.half { 2.0 } else { 4.0 }
    }

    /// Values read from storage (from memory, or again from where a block keeps them).
    pub fn load(&mut self, values: f64) {
        self.fp32(values, if self.half { 1.0 } else { 0.0 });
    }
    pub fn store(&mut self, values: f64) {
        self.fp32(values, if self.half { 0.5 } else { 0.0 });
    }
    pub fn fp32(&mut self, values: f64, each: f64) {
        self.work.fp32 += values * each;
    }
    pub fn sigmoid(&mut self, values: f64) {
        self.fp32(values, if self.half { HALF_SIGMOID } else { EXACT_SIGMOID });
        self.work.special += 2.0 * values;
    }
    /// In a kernel of fp32 alone.
    pub fn exact_sigmoid(&mut self, values: f64) {
        self.fp32(values, EXACT_SIGMOID);
        self.work.special += 2.0 * values;
    }
    /// On tensor cores where storage is half, K filled up to 16 there.
    pub fn product(&mut self, rows: f64, columns: f64, depth: f64) {
        if self.half {
            self.work.tensor += rows * columns * up(depth, 16.0);
        } else {
            self.work.fp32 += rows * columns * depth;
        }
    }
    /// An expansion that is computed again: products, and rounded as it would have been stored.
    pub fn expand_again(&mut self, rows: f64, columns: f64) {
        let inputs = self.get("inputs");
        self.product(rows, columns, inputs);
        self.store(rows * columns);
        self.load(rows * columns);
        self.weights(inputs * columns);
    }
    /// Bytes of the workspace and of weights in the storage type.
    pub fn floats(&mut self, count: f64) {
        self.work.bytes += 4.0 * count;
    }
    pub fn weights(&mut self, count: f64) {
        self.work.bytes += self.element() * count;
    }
    pub fn statistics(&mut self, parts: f64, channels: f64) {
        self.floats(parts * (1.0 + 2.0 * channels));
        if self.launch.points("arrivals") {
            // The last blocks read them once more and merge them.
            self.floats(parts * (1.0 + 2.0 * channels));
            self.fp32(parts * channels, 5.0);
        }
    }
    pub fn sums(&mut self, parts: f64, channels: f64) {
        self.floats(parts * 2.0 * channels);
    }
}

/// The error of a kernel without a formula.
pub fn unknown(name: &str) -> String {
    format!("{name}: no formula says what it has to do")
}

/// What the launch has to do, without the bytes of tensors and parameters, which follow from its pointers.
pub fn of(launch: &Launched) -> Result<Work, String> {
    let (name, element) = split(&launch.kernel);
    // The two numbers of a tile in a name: `expand_forward_64x144`.
    let tile = name.rsplit('_').next().and_then(|last| last.split_once('x'));
    let tile = tile.and_then(|(a, b)| Some([a.parse::<f64>().ok()?, b.parse::<f64>().ok()?]));
    let base = if tile.is_some() { &name[..name.rfind('_').unwrap_or(0)] } else { name };
    let mut c = Count { launch, half: element == 2, work: Work::default(), missing: None };
    match (base, tile) {
        ("expand_forward" | "project_forward", Some(tile)) => pointwise::forward(&mut c, base, tile),
        ("expand_backward", Some(tile)) => pointwise::expand_sweep(&mut c, tile, false),
        ("expand_backward_recompute", Some(tile)) => pointwise::expand_sweep(&mut c, tile, true),
        ("expand_backward_split", Some(tile)) => pointwise::expand_split(&mut c, tile),
        ("project_backward", Some(tile)) => pointwise::project_sweep(&mut c, tile),
        ("project_backward_weights", Some(tile)) => pointwise::project_weights(&mut c, tile),
        _ if name.starts_with("project_backward_data_") => pointwise::project_data(&mut c),
        ("residual_forward", _) => layers::residual(&mut c),
        ("stem_forward", _) => windows::stem_forward(&mut c),
        ("stem_backward", _) => windows::stem_backward(&mut c),
        _ if name.starts_with("depthwise_") => windows::depthwise(&mut c, name)?,
        _ if name.starts_with("squeeze_") => layers::squeeze(&mut c, name)?,
        _ if name.starts_with("head_") => layers::head(&mut c, name)?,
        _ if name.starts_with("batch_norm_") => state::batch_norm(&mut c, name)?,
        ("finish_gradients", _) => state::finish_gradients(&mut c),
        _ if name.starts_with("image_") => state::image(&mut c, name)?,
        _ if name.starts_with("optimiser_") => state::optimiser(&mut c, name)?,
        ("(fill)" | "(copy)", _) => {
            let ways = if name == "(copy)" { 2.0 } else { 1.0 };
            c.work.bytes += ways * 1024.0 * c.get("kibibytes");
        }
        ("step_begin" | "step_scale" | "masks", _) => {}
        _ => return Err(unknown(name)),
    }
    match c.missing {
        Some(missing) => Err(missing),
        None => Ok(c.work),
    }
}
