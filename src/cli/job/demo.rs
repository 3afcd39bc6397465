//! The demo: its settings, its run directory, and the commands to try afterwards.

use std::iter;
use std::path::{Path, PathBuf};

use crate::cli::flags::{Settings, file};
use crate::train::checkpoint::{Found, RunDirectory};
use crate::train::program::{command, quoted};

/// The settings of the demo: a configuration file inside the program.
pub fn preset() -> Settings {
    file::parse(include_str!("demo.toml")).expect("the demo's recipe parses")
}

/// The directory of demos without --out.
const HOME: &str = "runs";

/// The first of runs/demo, runs/demo-2, … that contains no run: a demo replaces nothing.
pub fn free_directory() -> PathBuf {
    numbered().find(|dir| !holds_run(dir)).unwrap_or_else(first)
}

/// The directory of the last demo, to resume it; runs/demo if there is none.
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

/// Three commands to try after a demo, each with its purpose.
pub fn next_commands(out: &Path) -> [(&'static str, String); 3] {
    let best = out.join("best.bin");
    let checkpoint = if best.exists() { best } else { out.join("checkpoint.bin") };
    [
        ("evaluate its best checkpoint", format!("{} {}", command("effnet-eval"), quoted(&checkpoint))),
        (
            "pack images of your own, a folder for each class",
            format!("{} my-images my-data", command("effnet-pack")),
        ),
        ("train on them", format!("{} --data my-data", command("effnet-train"))),
    ]
}
