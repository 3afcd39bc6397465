//! Settings from a file, and how layers of settings lie over each other.

use std::fs;
use std::path::Path;

use toml::Table;

use super::UsageError;
use super::flags::Settings;

/// Reads a configuration file.
///
/// # Errors
/// One line with the file, the line in it and what is wrong there.
pub fn read(path: &Path) -> Result<Settings, UsageError> {
    let text = fs::read_to_string(path)
        .map_err(|error| UsageError(format!("--config {}: {error}", path.display())))?;
    parse(&text).map_err(|problem| UsageError(format!("--config {}: {problem}", path.display())))
}

/// Settings from TOML; the keys are the flags' names.
pub fn parse(text: &str) -> Result<Settings, String> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let number = text[..at].matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default().trim();
        let message = error.message().replace('\n', " ");
        match message.split_once(", expected one of") {
            Some((problem, _)) if problem.starts_with("unknown field") => {
                let key = problem.trim_start_matches("unknown field ");
                format!("line {number}: unknown key {key}; keys are the names of settings in `effnet-train --help`")
            }
            _ => format!("line {number}, `{line}`: {message}"),
        }
    })
}

impl Settings {
    /// These settings, and the lower layer's where these are silent.
    pub fn over(&self, lower: &Settings) -> Settings {
        // By way of tables, so that a new flag needs no line here. Whatever parsed also survives this.
        let table = |settings: &Settings| Table::try_from(settings).expect("settings fit a table");
        let mut merged = table(lower);
        merged.extend(table(self));
        merged.try_into().expect("a table of settings makes settings")
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cli::flags::MicroBatch;
    use crate::model::Variant;
    use crate::train::Optimizer;

    #[test]
    fn the_upper_layer_wins_and_the_lower_one_fills_up() {
        let upper = parse("lr = 3\nmicro-batch = \"auto\"\nmodel = \"efficientnet_b3\"").unwrap();
        let lower = parse("lr = 0.1\nepochs = 2.5\nmicro-batch = 8\noptimizer = \"rmsprop-tf\"").unwrap();
        let merged = upper.over(&lower);
        assert_eq!((merged.lr, merged.epochs), (Some(3.0), Some(2.5)));
        assert_eq!((merged.model, merged.optimizer), (Some(Variant::B3), Some(Optimizer::RmspropTf)));
        assert_eq!(merged.micro_batch, Some(MicroBatch::Auto));
        assert_eq!(merged.seed, None);
    }

    #[test]
    fn layers_lose_no_bit_of_a_number() {
        let odd = Settings {
            lr: Some(0.1 + 0.2),
            momentum: Some(f64::from_bits(0x3fe0_0000_0000_0001)),
            seed: Some(i64::MAX as u64),
            init_from: Some(PathBuf::from("a b.safetensors")),
            ..Settings::default()
        };
        assert_eq!(odd.over(&Settings::default()), odd);
        assert_eq!(Settings::default().over(&odd), odd);
    }

    #[test]
    fn a_mistake_is_one_line_with_its_place() {
        let line = parse("lr = 0.1\nlearning-rate = 1").unwrap_err();
        assert!(line.contains("line 2") && line.contains("`learning-rate`"), "{line}");
        for text in
            ["lr = \"x\"", "lr", "model = \"b9\"", "batch-size = -1", "micro-batch = 1.5", "lr = 1\nlr = 2"]
        {
            let line = parse(text).unwrap_err();
            assert!(line.contains("line ") && !line.contains('\n'), "{line}");
        }
    }
}
