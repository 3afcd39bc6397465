//! How bytes become the network's input.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Channel means and standard deviations as fractions of full intensity; a pixel x becomes
/// (x / 255 - mean) / deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalise {
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

impl Normalise {
    /// ImageNet's, by which nearly all published weights were trained.
    pub const IMAGENET: Normalise =
        Normalise { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
}

/// Which means and deviations a run takes. Weights go on learning best with those that they were trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NormaliseBy {
    /// The training images' own.
    #[default]
    Dataset,
    Imagenet,
    Given(Normalise),
}

impl NormaliseBy {
    pub fn is_dataset(&self) -> bool {
        *self == NormaliseBy::Dataset
    }

    /// The values, for a set whose own are `dataset`.
    pub fn values(self, dataset: Normalise) -> Normalise {
        match self {
            NormaliseBy::Dataset => dataset,
            NormaliseBy::Imagenet => Normalise::IMAGENET,
            NormaliseBy::Given(values) => values,
        }
    }
}

impl FromStr for NormaliseBy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<NormaliseBy, &'static str> {
        const EXPECTED: &str = "must be dataset, imagenet, a mean and a deviation such as 0.5,0.25, or three of each, as \
                                fractions of full intensity";
        match text {
            "dataset" => return Ok(NormaliseBy::Dataset),
            "imagenet" => return Ok(NormaliseBy::Imagenet),
            _ => {}
        }
        let numbers: Result<Vec<f32>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let (mean, deviation) = match numbers.as_deref() {
            Ok(&[mean, deviation]) => ([mean; 3], [deviation; 3]),
            Ok(&[a, b, c, d, e, f]) => ([a, b, c], [d, e, f]),
            _ => return Err(EXPECTED),
        };
        let sound =
            mean.iter().all(|m| (0.0..=1.0).contains(m)) && deviation.iter().all(|d| *d > 0.0 && *d <= 1.0);
        if sound { Ok(NormaliseBy::Given(Normalise { mean, deviation })) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for NormaliseBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NormaliseBy::Dataset => f.write_str("dataset"),
            NormaliseBy::Imagenet => f.write_str("imagenet"),
            NormaliseBy::Given(Normalise { mean: [a, b, c], deviation: [d, e, g] }) => {
                write!(f, "{a},{b},{c},{d},{e},{g}")
            }
        }
    }
}

impl From<NormaliseBy> for String {
    fn from(by: NormaliseBy) -> String {
        by.to_string()
    }
}

impl TryFrom<String> for NormaliseBy {
    type Error = &'static str;

    fn try_from(text: String) -> Result<NormaliseBy, &'static str> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalise_reads_what_it_writes() {
        let odd = Normalise { mean: [0.1, 0.2, 1.0 / 3.0], deviation: [0.3, 0.25, 1.0] };
        for by in [NormaliseBy::Dataset, NormaliseBy::Imagenet, NormaliseBy::Given(odd)] {
            assert_eq!(by.to_string().parse(), Ok(by));
        }
        let grey = Normalise { mean: [0.5; 3], deviation: [0.25; 3] };
        assert_eq!("0.5, 0.25".parse(), Ok(NormaliseBy::Given(grey)));
        for wrong in ["", "coco", "0.5", "0.5,0", "1.5,0.2", "nan,0.2", "127.5,127.5", "0.5,0.5,0.5,0.2"] {
            assert!(wrong.parse::<NormaliseBy>().is_err(), "{wrong}");
        }
    }
}
