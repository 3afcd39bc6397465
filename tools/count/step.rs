//! The launches of a step, as `cargo run --example predict -- --record FILE` wrote them.

use serde_json::Value;

pub struct Launch {
    pub pass: usize,
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub argument: Vec<u8>,
    /// Where the argument has addresses of the recorder's memory.
    pub addresses: Vec<usize>,
    /// What it must move through memory, how much of it a second time, and multiply-adds on tensor cores.
    pub bytes: f64,
    pub again: f64,
    pub tensor: f64,
    /// First blocks of the second kind of work and of later ones, if there are several.
    pub kinds: Vec<u64>,
}

pub struct Step {
    pub case: String,
    /// Of a family's record: the network, and GB of the cards whose memory its batch fills. Else empty and 0.
    pub model: String,
    pub memory: u64,
    /// Whether its expanded tensors are computed again.
    pub recomputes: bool,
    pub images: f64,
    pub passes: Vec<Pass>,
    pub launches: Vec<Launch>,
}

pub struct Pass {
    pub name: String,
    /// Address and bytes of each tensor that its launches write.
    pub written: Vec<(u64, u64)>,
}

/// What two launches have in common if they do the same elsewhere: all but where the argument's addresses point to.
pub type Likeness<'a> = (&'a str, [u32; 3], Vec<u8>, u64);

impl Launch {
    pub fn likeness(&self) -> Likeness<'_> {
        let mut argument = self.argument.clone();
        // The last byte stays: allocations are aligned to 256, and what an address is beyond that matters.
        self.addresses.iter().for_each(|at| argument[at + 1..at + 8].fill(0));
        (&self.kernel, self.grid, argument, self.bytes.to_bits())
    }

    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|side| u64::from(*side)).product()
    }

    /// First block of each kind of work, and the end.
    pub fn borders(&self) -> Vec<u64> {
        [0].into_iter().chain(self.kinds.iter().copied()).chain([self.blocks()]).collect()
    }

    pub fn block(&self, number: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(|side| u64::from(side.max(1)));
        [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32]
    }
}

pub fn read(text: &str) -> Result<Vec<Step>, String> {
    let wrong =
        || "not a record of launches; write it by `cargo run --example predict -- --record FILE`".to_string();
    let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
    let steps = value.as_array().ok_or_else(wrong)?;
    steps.iter().map(|step| one(step).ok_or_else(wrong)).collect()
}

fn one(step: &Value) -> Option<Step> {
    let launches: Vec<Launch> = step["launches"].as_array()?.iter().map(launch).collect::<Option<_>>()?;
    let passes = step["passes"].as_array()?.iter().map(pass).collect::<Option<Vec<_>>>()?;
    let known = |launch: &Launch| launch.pass < passes.len();
    let (case, images) = (step["case"].as_str()?.into(), step["images"].as_f64()?);
    let (model, memory) = (step["model"].as_str().unwrap_or_default(), step["memory"].as_u64().unwrap_or(0));
    let recomputes = step["recomputes"].as_bool().unwrap_or(false);
    let model = model.into();
    let known = launches.iter().all(known);
    known.then_some(Step { case, model, memory, recomputes, images, passes, launches })
}

fn pass(pass: &Value) -> Option<Pass> {
    let tensor = |tensor: &Value| Some((tensor[0].as_u64()?, tensor[1].as_u64()?));
    let written = pass["written"].as_array()?.iter().map(tensor).collect::<Option<_>>()?;
    Some(Pass { name: pass["name"].as_str()?.into(), written })
}

fn launch(launch: &Value) -> Option<Launch> {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let digits = launch["argument"].as_str()?.as_bytes();
    let argument = digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    let argument: Vec<u8> = argument.collect::<Option<_>>()?;
    let address = |at: &Value| usize::try_from(at.as_u64()?).ok().filter(|at| at + 8 <= argument.len());
    Some(Launch {
        addresses: launch["addresses"].as_array()?.iter().map(address).collect::<Option<_>>()?,
        pass: usize::try_from(launch["pass"].as_u64()?).ok()?,
        kernel: launch["kernel"].as_str()?.into(),
        grid: [number(&launch["grid"][0])?, number(&launch["grid"][1])?, number(&launch["grid"][2])?],
        threads: number(&launch["threads"])?,
        shared: number(&launch["shared"])?,
        argument,
        bytes: launch["bytes"].as_f64()?,
        again: launch["again"].as_f64()?,
        tensor: launch["tensor"].as_f64()?,
        kinds: launch["kinds"].as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?,
    })
}
