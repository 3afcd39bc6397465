//! The demo: its preset, where it runs, and what to try afterwards.

use std::iter;
use std::path::{Path, PathBuf};

use super::config;
use super::flags::Settings;
use crate::train::checkpoint::{Found, RunDirectory};
use crate::train::program::{command, quoted};

/// The demo's recipe: a configuration file inside the program.
pub fn preset() -> Settings {
    config::parse(include_str!("demo.toml")).expect("the demo's recipe parses")
}

/// Where demos run unless --out says otherwise.
const HOME: &str = "runs";

/// The first of runs/demo, runs/demo-2, … that holds no run: a demo replaces nothing.
pub fn free_directory() -> PathBuf {
    numbered().find(|dir| !holds_run(dir)).unwrap_or_else(first)
}

/// The last demo's directory, to be resumed; runs/demo where there is none.
pub fn latest_directory() -> PathBuf {
    numbered().take_while(|dir| holds_run(dir)).last().unwrap_or_else(first)
}

pub fn first() -> PathBuf {
    Path::new(HOME).join("demo")
}

fn holds_run(dir: &Path) -> bool {
    RunDirectory::at(dir).found() != Found::Nothing
}

fn numbered() -> impl Iterator<Item = PathBuf> {
    iter::once(first()).chain((2u32..).map(|n| Path::new(HOME).join(format!("demo-{n}"))))
}

/// Three commands that lead on from a finished demo, each with what it does.
pub fn next_commands(out: &Path) -> [(&'static str, String); 3] {
    let best = out.join("best.bin");
    let checkpoint = if best.exists() { best } else { out.join("checkpoint.bin") };
    [
        ("evaluate its best checkpoint", format!("{} {}", command("effnet-eval"), quoted(&checkpoint))),
        (
            "pack images of your own, a folder for each class",
            format!("{} my-images my-data", command("effnet-pack")),
        ),
        (
            "train on them",
            format!(
                "{} --data my-data --resolution 64 --batch-size 64 --epochs 20 --lr 5e-4 --dropout 0",
                command("effnet-train")
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_is_b0_at_32() {
        let preset = preset();
        assert_eq!(preset.model, Some(crate::model::Variant::B0));
        assert_eq!(preset.resolution, Some(32));
    }
}
