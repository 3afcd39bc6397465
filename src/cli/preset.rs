//! Recipes by name: configuration files inside the program, `src/cli/presets/*.toml`.
//!
//! A preset is the lowest layer of settings: the command line and a configuration file override it. A file may end with
//! sections that are named after members of the family, such as `[b4]`; they hold what differs for this member.

use std::fmt::Write;

use toml::Table;

use super::flags::{Actions, Settings, file};
use super::job::demo;
use super::{UsageError, usage};
use crate::model::Variant;
use crate::train::{optimizer, schedule_kind};

/// Name and text of each preset.
const FILES: [(&str, &str); 5] = [
    ("composer", include_str!("presets/composer.toml")),
    ("nvidia", include_str!("presets/nvidia.toml")),
    ("tpu", include_str!("presets/tpu.toml")),
    ("finetune", include_str!("presets/finetune.toml")),
    ("small", include_str!("presets/small.toml")),
];

/// What --preset asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Train with it.
    Use(&'a str),
    /// Print it, or the names of all.
    Print(&'a str),
}

/// The meaning of the words after --preset; none if it is not given.
///
/// # Errors
/// A name that is no preset.
pub fn asked(words: &[String]) -> Result<Option<Asked<'static>>, UsageError> {
    match words {
        [] => Ok(None),
        [word] if word == "list" => Ok(Some(Asked::Print(""))),
        [word, name] if word == "show" => known(name).map(|(name, _)| Some(Asked::Print(name))),
        [word] if word == "show" => usage(format!("--preset show: needs a name; there are {}", names())),
        [name] => known(name).map(|(name, _)| Some(Asked::Use(name))),
        [first, second, ..] => usage(format!(
            "--preset {first} {second}: takes one NAME, `list` or `show NAME`; there are {}",
            names()
        )),
    }
}

/// The text for `list` (no name) or `show NAME`.
pub fn text(name: &str) -> String {
    if let Ok((_, text)) = known(name) {
        return text.into();
    }
    FILES.iter().fold(String::new(), |mut list, (name, text)| {
        let line = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        let what = line.split_once(": ").map_or(line, |(_, what)| what);
        let _ = writeln!(list, "{name:9} {what}");
        list
    })
}

/// The settings of a preset for a member of the family.
///
/// # Errors
/// A name that is no preset.
pub fn settings(name: &str, model: Variant) -> Result<Settings, UsageError> {
    let (_, text) = known(name)?;
    let mut table: Table = text.parse().expect("a preset is TOML");
    let own = table.remove(model.name());
    table.retain(|_, value| !value.is_table());
    if let Some(toml::Value::Table(own)) = own {
        table.extend(own);
    }
    Ok(file::parse(&table.to_string()).expect("a preset has the names of settings"))
}

/// The lowest layer below the settings that are given.
///
/// The learning rates of a preset are for its batch: another batch that is given changes them in proportion. What belongs to
/// the preset's schedule or optimiser goes if another one is given.
///
/// # Errors
/// A name that is no preset, or a preset for a run that has a recipe already.
pub fn layer(given: &Settings, actions: &Actions) -> Result<Settings, UsageError> {
    let name = match asked(&actions.preset)? {
        None | Some(Asked::Print(_)) if actions.demo => return Ok(demo::preset()),
        None | Some(Asked::Print(_)) => return Ok(Settings::default()),
        Some(Asked::Use(name)) => name,
    };
    for (flag, set) in [("demo", actions.demo), ("resume", actions.resume)] {
        if set {
            return usage(format!(
                "--preset {name}: --{flag} has a recipe already; leave out one of the two"
            ));
        }
    }
    let mut own = settings(name, given.model.unwrap_or(Variant::B0))?;
    if let (Some(batch), Some(its)) = (given.batch_size, own.batch_size) {
        for rate in [&mut own.lr, &mut own.min_lr, &mut own.warmup_lr] {
            *rate = rate.map(|rate| rate * batch as f64 / its as f64);
        }
    }
    let (mut own, given) = (own.table(), given.table());
    for (choice, parts) in [("schedule", schedule_kind::PARTS), ("optimizer", optimizer::PARTS)] {
        if given.get(choice).is_some_and(|kind| own.get(choice) != Some(kind)) {
            own.retain(|key, _| !parts.contains(&key));
        }
    }
    Ok(own.try_into().expect("a table of settings becomes settings"))
}

/// What a user should know of a preset with these settings.
pub fn notice(given: &Settings, actions: &Actions) -> Option<String> {
    let untrained = actions.preset == ["finetune"] && given.init_from.is_none();
    untrained.then(|| {
        "--preset finetune is for trained weights, and --init-from names none: these begin at random"
            .to_string()
    })
}

fn known(name: &str) -> Result<(&'static str, &'static str), UsageError> {
    let found = FILES.into_iter().find(|(known, _)| *known == name);
    found.map_or_else(|| usage(format!("--preset {name}: there are {}", names())), Ok)
}

/// "composer, nvidia, … and small".
fn names() -> String {
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    let (last, others) = names.split_last().expect("there are presets");
    format!("{} and {last}", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::CropMode;
    use crate::train::{Decayed, Optimizer, Recipe, ScheduleKind};

    /// The recipe of a preset without any flag.
    fn recipe(name: &str, model: Variant) -> Recipe {
        let settings = settings(name, model).unwrap();
        let batch = settings.batch_size.unwrap() as usize;
        Recipe::reference(model, batch).with(&settings.table()).unwrap()
    }

    #[test]
    fn presets_are_valid_and_hold_only_the_recipe() {
        let every_key = Recipe::reference(Variant::B0, 64).with_every_key().fields();
        for (name, text) in FILES {
            for model in Variant::ALL {
                assert_eq!(recipe(name, model).validate(), Ok(()), "{name} {model:?}");
                let table = settings(name, model).unwrap().table();
                assert!(table.keys().all(|key| every_key.contains_key(key)), "{name}: {table}");
            }
            let sections: Table = text.parse().unwrap();
            let sections = sections.iter().filter(|(_, value)| value.is_table());
            sections
                .for_each(|(section, _)| assert!(section.parse::<Variant>().is_ok(), "{name}: [{section}]"));
            assert!(
                text.starts_with(&format!("# {name}: "))
                    && text.contains("Source: ") | text.contains("Reached")
            );
        }
    }

    #[test]
    fn preset_composer_is_the_reference_recipe() {
        for model in Variant::ALL {
            assert_eq!(recipe("composer", model), Recipe::reference(model, 4096));
        }
    }

    #[test]
    fn presets_of_nvidia_and_google_are_those_published() {
        let b0 = recipe("nvidia", Variant::B0);
        assert_eq!((b0.lr, b0.weight_decay, b0.warmup_epochs, b0.batch_size), (0.08, 1e-5, 16.0, 4096));
        let b4 = recipe("nvidia", Variant::B4);
        assert_eq!((b4.lr, b4.weight_decay, b4.dropout), (0.16, 5e-6, 0.4));
        let tpu = recipe("tpu", Variant::B0);
        assert_eq!(tpu.lr * 256.0 / tpu.batch_size as f64, 0.016);
        assert_eq!((tpu.optimizer, tpu.rms_eps, tpu.ema), (Optimizer::RmspropTf, 0.001, 0.9999));
        let schedule = (tpu.schedule, tpu.decay_rate, tpu.decay_epochs);
        assert_eq!(schedule, (ScheduleKind::Exponential, Some(0.97), Some(2.4)));
        // Their programs decay everything except batch norm.
        let decayed = ["composer", "nvidia", "tpu", "finetune", "small"]
            .map(|name| recipe(name, Variant::B0).weight_decay_of);
        let (bn, weights) = (Decayed::NoBatchNorm, Decayed::Weights);
        assert_eq!(decayed, [Decayed::All, bn, bn, weights, weights]);
        assert_eq!(recipe("small", Variant::B0).crop, CropMode::Pad);
    }

    #[test]
    fn words_after_preset_are_a_name_or_a_question() {
        let asked = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(String::from).collect();
            asked(&words).map_err(|error| error.0)
        };
        assert_eq!(asked(""), Ok(None));
        assert_eq!(asked("tpu"), Ok(Some(Asked::Use("tpu"))));
        assert_eq!(asked("show tpu"), Ok(Some(Asked::Print("tpu"))));
        assert_eq!(asked("list"), Ok(Some(Asked::Print(""))));
        for wrong in ["imagenet", "show", "show imagenet", "tpu small"] {
            let line = asked(wrong).unwrap_err();
            assert!(line.contains("composer, nvidia, tpu, finetune and small"), "{line}");
        }
        let list = text("");
        assert_eq!(list.lines().count(), FILES.len());
        assert!(FILES.iter().all(|(name, text)| list.contains(name) && super::text(name) == *text));
    }
}
