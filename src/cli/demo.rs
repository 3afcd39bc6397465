//! The demo: its preset, where it runs, and what to try afterwards.

use std::path::{Path, PathBuf};

use super::config;
use super::flags::Settings;

/// The demo's recipe: a configuration file inside the program.
pub fn preset() -> Settings {
    config::parse(include_str!("demo.toml")).expect("the demo's recipe parses")
}

/// Where demos run unless --out says otherwise.
const HOME: &str = "runs";

/// The first of runs/demo, runs/demo-2, … that is free: a demo replaces nothing.
pub fn free_directory() -> PathBuf {
    numbered().find(|dir| !dir.exists()).unwrap_or_else(|| Path::new(HOME).join("demo"))
}

/// The last demo's directory, to be resumed; runs/demo where there is none.
pub fn latest_directory() -> PathBuf {
    let taken = numbered().take_while(|dir| dir.exists());
    taken.last().unwrap_or_else(|| Path::new(HOME).join("demo"))
}

fn numbered() -> impl Iterator<Item = PathBuf> {
    (1..).map(|number| match number {
        1 => Path::new(HOME).join("demo"),
        n => Path::new(HOME).join(format!("demo-{n}")),
    })
}

/// Three commands that lead on from a finished demo, each with what it does.
pub fn next_commands(out: &Path) -> [(&'static str, String); 3] {
    let best = out.join("best.bin");
    let checkpoint = if best.exists() { best } else { out.join("checkpoint.bin") };
    [
        ("evaluate its best checkpoint", format!("effnet-eval {}", quoted(&checkpoint))),
        ("pack images of your own, a folder for each class", "effnet-pack my-images my-data".into()),
        (
            "train on them",
            "effnet-train --data my-data --resolution 64 --batch-size 64 --epochs 20 --lr 5e-4 --dropout 0"
                .into(),
        ),
    ]
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
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

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted(Path::new("runs/b0")), "runs/b0");
        assert_eq!(quoted(Path::new("my runs/it's")), r"'my runs/it'\''s'");
    }
}
