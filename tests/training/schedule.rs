//! Learning rates against the transcripts of PyTorch's and TensorFlow's schedulers, step by step. See
//! `tools/schedule_transcripts.py`.

use std::collections::BTreeSet;

use effnet::model::Variant;
use effnet::train::schedule::Schedule;
use effnet::train::{Recipe, ScheduleKind};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Transcript {
    name: String,
    images: usize,
    batch_size: usize,
    /// Differences from the reference recipe.
    recipe: toml::Table,
    rates: Vec<f64>,
}

#[test]
fn schedules_agree_with_transcripts_of_pytorch_and_tensorflow() {
    let text = include_str!("../golden/schedules/rates.json");
    let transcripts: Vec<Transcript> = serde_json::from_str(text).unwrap();
    let mut kinds = BTreeSet::new();
    for Transcript { name, images, batch_size, recipe, rates } in transcripts {
        let recipe = Recipe::reference(Variant::B0, batch_size).with(&recipe).unwrap();
        assert_eq!(recipe.validate(), Ok(()), "{name}");
        let schedule = Schedule::new(&recipe, images).unwrap();
        assert!(rates.len() >= 100, "{name}");
        assert_eq!(schedule.steps(), rates.len() as u64, "{name}");
        for (step, expected) in rates.into_iter().enumerate() {
            let rate = schedule.lr(step as u64);
            // The recursions of the transcripts round once a step.
            assert!((rate - expected).abs() <= 1e-12, "{name}, step {step}: {rate}, not {expected}");
        }
        kinds.insert(recipe.schedule.to_string());
    }
    let all = <ScheduleKind as strum::VariantNames>::VARIANTS;
    assert_eq!(kinds, all.iter().map(|kind| kind.to_string()).collect());
}
