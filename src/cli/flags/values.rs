//! How the values of flags are read.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Deserialize as DeriveDeserialize, Serialize};

/// A number of images, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, DeriveDeserialize)]
#[serde(untagged, expecting = "must be auto or a whole number")]
pub enum MicroBatch {
    Auto(Auto),
    Images(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, DeriveDeserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

impl FromStr for MicroBatch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<MicroBatch, &'static str> {
        match text {
            "auto" => Ok(MicroBatch::Auto(Auto::Auto)),
            _ => whole(text).map(MicroBatch::Images).map_err(|_| "must be auto or a whole number"),
        }
    }
}

/// A whole number that fits into the signed integers of TOML.
pub fn whole(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok().filter(|&number| i64::try_from(number).is_ok());
    number.ok_or("must be a whole number from 0 to 2^63 - 1")
}

/// Any number, also NaN. The recipe checks the range, so that flags and files are checked in one place.
pub fn number(text: &str) -> Result<f64, &'static str> {
    text.parse().map_err(|_| "must be a number")
}

/// Two numbers, "0.08,1".
pub fn pair(text: &str) -> Result<[f64; 2], &'static str> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or("must be two numbers, such as 0.08,1")
}

/// A path. It must be text, because a configuration file can hold only text.
pub fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(text.into())
}

/// Reads a value in a file like the value of a flag.
pub fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}
