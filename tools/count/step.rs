//! The launches of a step, as `cargo run --example predict -- --record FILE` wrote them.

use serde_json::Value;

pub struct Launch {
    pub pass: String,
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub argument: Vec<u8>,
    /// What it must move through memory.
    pub bytes: f64,
}

pub struct Step {
    pub case: String,
    pub images: f64,
    pub launches: Vec<Launch>,
}

impl Launch {
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|side| u64::from(*side)).product()
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
    let launches = step["launches"].as_array()?.iter().map(launch).collect::<Option<_>>()?;
    Some(Step { case: step["case"].as_str()?.into(), images: step["images"].as_f64()?, launches })
}

fn launch(launch: &Value) -> Option<Launch> {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let digits = launch["argument"].as_str()?.as_bytes();
    let argument = digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    Some(Launch {
        pass: launch["pass"].as_str()?.into(),
        kernel: launch["kernel"].as_str()?.into(),
        grid: [number(&launch["grid"][0])?, number(&launch["grid"][1])?, number(&launch["grid"][2])?],
        threads: number(&launch["threads"])?,
        shared: number(&launch["shared"])?,
        argument: argument.collect::<Option<_>>()?,
        bytes: launch["bytes"].as_f64()?,
    })
}
