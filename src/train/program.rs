//! Commands to try next, as they work where the reader stands.

use std::path::Path;

/// How to start one of the three programs the way the running one was started: by name where it was found by
/// name, through cargo where cargo runs it, else by the path beside it.
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
    fn programs_are_named_as_they_were_started() {
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

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted(Path::new("runs/b0")), "runs/b0");
        assert_eq!(quoted(Path::new("my runs/it's")), r"'my runs/it'\''s'");
    }
}
