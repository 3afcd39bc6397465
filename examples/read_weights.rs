//! Reads an exported file of weights with the `safetensors` crate alone: what the network is, and its tensors.
//!
//! ```sh
//! effnet-eval runs/b0 --export b0.safetensors
//! cargo run --example read_weights b0.safetensors
//! ```

use std::{env, error::Error, fs};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("give an exported .safetensors file")?;
    let bytes = fs::read(&path)?;

    // The note says how images must be prepared, and what the logits mean.
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().as_ref().ok_or("no metadata")?;
    let note: Value = serde_json::from_str(metadata.get("effnet-network").ok_or("not written by effnet")?)?;
    println!("model {}, images of {} pixels, padding {}", note["model"], note["resolution"], note["padding"]);
    println!("means {}, deviations {}", note["mean"], note["deviation"]);
    println!("classes {}", note["classes"]);

    let file = SafeTensors::deserialize(&bytes)?;
    let mut names = file.names();
    names.sort();
    let mut parameters = 0;
    for name in names {
        let tensor = file.tensor(name)?;
        if tensor.dtype() != Dtype::F32 {
            continue; // a batch norm's counter
        }
        let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let norm = values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        println!("{name} {:?} norm {norm:.4}", tensor.shape());
        let running = name.ends_with("running_mean") || name.ends_with("running_var");
        parameters += if running { 0 } else { tensor.shape().iter().product::<usize>() };
    }
    println!("{parameters} parameters");
    Ok(())
}
