//! The automatic policies and their names: `none`, `autoaugment`, `rand-m9-n2-mstd0.5-inc1`, `trivial`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::operation::LEVELS;
use super::rand_augment::RandAugment;

/// An automatic policy. Its text is the flag's value and the recipe's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Auto {
    #[default]
    None,
    AutoAugment,
    Rand(RandAugment),
    Trivial,
}

impl Auto {
    pub fn is_none(&self) -> bool {
        *self == Auto::None
    }
}

impl fmt::Display for Auto {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Auto::None => f.write_str("none"),
            Auto::AutoAugment => f.write_str("autoaugment"),
            Auto::Trivial => f.write_str("trivial"),
            Auto::Rand(RandAugment { operations, level, deviation, increasing }) => {
                write!(f, "rand-m{level}-n{operations}")?;
                if *deviation > 0.0 {
                    write!(f, "-mstd{deviation}")?;
                }
                f.write_str(if *increasing { "-inc1" } else { "" })
            }
        }
    }
}

impl From<Auto> for String {
    fn from(auto: Auto) -> String {
        auto.to_string()
    }
}

impl TryFrom<String> for Auto {
    type Error = String;

    fn try_from(text: String) -> Result<Auto, String> {
        text.parse()
    }
}

impl FromStr for Auto {
    type Err = String;

    fn from_str(text: &str) -> Result<Auto, String> {
        match text {
            "none" => Ok(Auto::None),
            "autoaugment" => Ok(Auto::AutoAugment),
            "trivial" => Ok(Auto::Trivial),
            _ => match text.strip_prefix("rand") {
                Some(rest) if rest.is_empty() || rest.starts_with('-') => rand(rest).map(Auto::Rand),
                _ => {
                    Err(format!("`{text}` is no augmentation: use none, autoaugment, rand-m9-n2 or trivial"))
                }
            },
        }
    }
}

/// The parts after `rand`: `-m9-n2`.
fn rand(parts: &str) -> Result<RandAugment, String> {
    let mut rand = RandAugment::default();
    for part in parts.split('-').skip(1) {
        let digits = part.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(part.len());
        let (name, value) = part.split_at(digits);
        let number = value.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
        let whole = number.filter(|value| value.fract() == 0.0);
        match (name, number, whole) {
            ("m", Some(level), _) if level <= LEVELS => rand.level = level,
            ("n", _, Some(count)) if (1.0..=16.0).contains(&count) => rand.operations = count as u32,
            ("mstd", Some(deviation), _) => rand.deviation = deviation,
            ("inc", _, Some(flag)) if flag <= 1.0 => rand.increasing = flag == 1.0,
            _ => {
                return Err(format!(
                    "`{part}` is no part of rand: use m0 to m10 (level), n1 to n16 (operations), mstd0.5 (deviation \
                     of the level) or inc1"
                ));
            }
        }
    }
    Ok(rand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["none", "autoaugment", "trivial", "rand-m9-n3", "rand-m7.5-n1-mstd0.5-inc1"] {
            assert_eq!(name.parse::<Auto>().unwrap().to_string(), name);
        }
        assert_eq!("rand".parse(), Ok(Auto::Rand(RandAugment::default())));
        let expected = RandAugment { operations: 2, level: 9.0, deviation: 0.5, increasing: true };
        assert_eq!("rand-inc1-mstd0.5-m9".parse(), Ok(Auto::Rand(expected)));
    }

    #[test]
    fn mistakes_are_named() {
        for wrong in [
            "",
            "Rand",
            "random",
            "rand-m11",
            "rand-m",
            "rand-n0",
            "rand-n1.5",
            "rand-x3",
            "rand-inc2",
            "rand-mstd-1",
        ] {
            let line = wrong.parse::<Auto>().unwrap_err();
            assert!(line.contains("use ") && !line.contains('\n'), "{wrong}: {line}");
        }
    }
}
