//! Commands for the user to try next, in a form that works in the user's current directory.

use std::path::Path;

pub use crate::names::quoted;

/// A command that starts one of the three programs in the way the running program was started: by name if the shell
/// found it by name, through cargo if cargo runs it, otherwise by its path beside the running program.
pub fn command(name: &str) -> String {
    let started = std::env::args_os().next().unwrap_or_default();
    command_beside(Path::new(&started), std::env::var_os("CARGO_MANIFEST_DIR").is_some(), name)
}

fn command_beside(started: &Path, cargo: bool, name: &str) -> String {
    let folder = started.parent().unwrap_or(Path::new(""));
    if folder.as_os_str().is_empty() {
        return name.into();
    }
    if cargo && started.is_relative() {
        let profile = if folder.ends_with("release") { "--release " } else { "" };
        return format!("cargo run {profile}--bin {name} --");
    }
    let beside = folder.join(name);
    if beside.exists() { quoted(&beside) } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_follows_how_the_program_was_started() {
        let named = |started: &str, cargo| command_beside(Path::new(started), cargo, "effnet-eval");
        assert_eq!(named("effnet-train", true), "effnet-eval");
        assert_eq!(named("target/release/effnet-train", true), "cargo run --release --bin effnet-eval --");
        assert_eq!(named("target/debug/effnet-train", true), "cargo run --bin effnet-eval --");
        assert_eq!(named("/nowhere/effnet-train", false), "effnet-eval");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("effnet-eval"), "").unwrap();
        let beside = dir.path().join("effnet-train");
        assert_eq!(named(beside.to_str().unwrap(), false), quoted(&dir.path().join("effnet-eval")));
    }
}
