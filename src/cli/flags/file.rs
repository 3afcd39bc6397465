//! Settings from a configuration file, and how layers of settings are merged.

use std::fs;
use std::path::Path;

use toml::Table;

use super::Settings;
use crate::cli::{UsageError, usage};

/// Reads a configuration file.
///
/// # Errors
/// One line with the file, the line in it and the problem.
pub fn read(path: &Path) -> Result<Settings, UsageError> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| parse(&text))
        .or_else(|problem| usage(format!("--config {}: {problem}", path.display())))
}

/// Settings from TOML; the keys are the names of the flags.
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
    /// The settings that are given, under the names of their flags. Merging settings and turning them into a recipe and
    /// options all use this table, so a new flag needs no further line.
    pub fn table(&self) -> Table {
        Table::try_from(self).expect("settings become a table")
    }

    /// These settings, and those of the lower layer that are not given here.
    pub fn over(&self, lower: &Settings) -> Settings {
        let mut merged = lower.table();
        merged.extend(self.table());
        merged.try_into().expect("a table of settings becomes settings")
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn over_takes_the_lower_layer_s_values_that_are_not_given() {
        let upper = parse("lr = 3\nmicro-batch = \"auto\"\nmodel = \"efficientnet_b3\"").unwrap();
        let lower = parse("lr = 0.1\nepochs = 2.5\nmicro-batch = 8\noptimizer = \"rmsprop-tf\"").unwrap();
        let expected =
            "lr = 3.0\nepochs = 2.5\nmicro-batch = \"auto\"\nmodel = \"b3\"\noptimizer = \"rmsprop-tf\"";
        assert_eq!(upper.over(&lower), parse(expected).unwrap());
    }

    #[test]
    fn over_loses_no_bit_of_a_number() {
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
    fn parse_reports_a_mistake_in_one_line() {
        for text in ["lr = \"x\"", "micro-batch = 1.5", "micro-batch = -1", "lr = 1\nlr = 2"] {
            let line = parse(text).unwrap_err();
            assert!(line.contains("line ") && !line.contains('\n'), "{line}");
        }
    }
}
