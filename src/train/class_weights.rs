//! What each class counts in the loss.
//!
//! The loss of a step is Σ w·loss / images, where the weights w are scaled once so that their mean over the *training
//! images* is 1. PyTorch divides by Σ w of the batch instead. That divisor would differ from micro-batch to micro-batch
//! and from rank to rank, so that a step would depend on how its batch is divided; here it is the same for all. Over an
//! epoch both give classes the same influence. The loss of an evaluation has no weights.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::recipe::Recipe;
use super::recipe_limits::{RecipeError, require};
use crate::data::{Source, Split};

/// `balanced`, or weights by class, which a file of `class,weight` lines gives. A recipe holds the weights themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum ClassWeights {
    /// In inverse proportion to the number of training images.
    Balanced,
    Given(BTreeMap<String, f64>),
}

/// As a recipe or a configuration file has it: `balanced`, the path of a file, or a table.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "must be balanced, the path of a file of class,weight lines, or a table of weights"
)]
enum Written {
    Text(String),
    Table(BTreeMap<String, f64>),
}

impl From<ClassWeights> for Written {
    fn from(weights: ClassWeights) -> Written {
        match weights {
            ClassWeights::Balanced => Written::Text("balanced".into()),
            ClassWeights::Given(weights) => Written::Table(weights),
        }
    }
}

impl TryFrom<Written> for ClassWeights {
    type Error = String;

    fn try_from(written: Written) -> Result<ClassWeights, String> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Table(weights) => Ok(ClassWeights::Given(weights)),
        }
    }
}

impl FromStr for ClassWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<ClassWeights, String> {
        if text == "balanced" {
            Ok(ClassWeights::Balanced)
        } else {
            read(Path::new(text)).map(ClassWeights::Given)
        }
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ClassWeights::Balanced => f.write_str("balanced"),
            ClassWeights::Given(weights) => write!(f, "given for {} classes", weights.len()),
        }
    }
}

/// The weights in a file of `class,weight` lines, with or without a line of titles.
fn read(path: &Path) -> Result<BTreeMap<String, f64>, String> {
    let failed = |problem: String| format!("{}: {problem}", path.display());
    let bytes = std::fs::read(path)
        .map_err(|error| failed(format!("{error}; give `balanced`, or a file of class,weight lines")))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new();
    let mut reader = reader.has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(bytes);
    let mut weights = BTreeMap::new();
    for (number, row) in reader.records().enumerate() {
        let row = row.map_err(|error| failed(error.to_string().replace('\n', " ")))?;
        let line = row.position().map_or(0, |position| position.line());
        let cells: Vec<&str> = row.iter().collect();
        let [class, weight] = cells[..] else {
            return Err(failed(format!(
                "line {line} has {} cells; each has a class and its weight",
                cells.len()
            )));
        };
        let Ok(weight) = weight.parse::<f64>() else {
            if number == 0 {
                continue;
            }
            return Err(failed(format!("line {line}: `{weight}` is no number")));
        };
        if weights.insert(class.to_owned(), weight).is_some() {
            return Err(failed(format!("line {line}: class `{class}` has a weight already")));
        }
    }
    Ok(weights)
}

impl Recipe {
    /// What each class of a source counts in the loss; none if all count the same.
    ///
    /// # Errors
    /// Weights of other classes, or that are no weights.
    pub fn weights_of_classes(&self, source: &Source) -> Result<Option<Vec<f32>>, RecipeError> {
        let Some(weights) = &self.class_weights else { return Ok(None) };
        let counts = source.class_counts(Split::Train);
        let own = match weights {
            // A class without images has no weight: nothing says what is right for it.
            ClassWeights::Balanced => {
                counts.iter().map(|&count| if count > 0 { 1.0 / count as f64 } else { 0.0 }).collect()
            }
            ClassWeights::Given(given) => of_names(given, &source.class_names())?,
        };
        let images: u64 = counts.iter().sum();
        let sum: f64 = own.iter().zip(&counts).map(|(weight, &count)| weight * count as f64).sum();
        refuse(sum > 0.0, || {
            "no training image has a weight above 0; give one to a class that has images".into()
        })?;
        Ok(Some(own.iter().map(|weight| (weight * (images as f64 / sum)) as f32).collect()))
    }
}

/// The weights in the order of the classes.
fn of_names(given: &BTreeMap<String, f64>, classes: &[String]) -> Result<Vec<f64>, RecipeError> {
    for (class, weight) in given {
        refuse(weight.is_finite() && *weight >= 0.0, || {
            format!("{weight} of class `{class}`: weights are numbers from 0")
        })?;
        refuse(classes.contains(class), || format!("the data has no class `{class}`; leave out its line"))?;
    }
    classes
        .iter()
        .map(|class| {
            let weight = given.get(class).copied();
            refuse(weight.is_some(), || format!("class `{class}` has no weight; add a line for it"))?;
            Ok(weight.unwrap_or_default())
        })
        .collect()
}

fn refuse(sound: bool, problem: impl FnOnce() -> String) -> Result<(), RecipeError> {
    if sound { Ok(()) } else { require("class-weights", "FILE", false, &problem()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    fn weights(class_weights: ClassWeights, source: &Source) -> Result<Vec<f32>, String> {
        let recipe = Recipe { class_weights: Some(class_weights), ..Recipe::reference(Variant::B0, 8) };
        recipe.weights_of_classes(source).map(|weights| weights.unwrap()).map_err(|error| error.to_string())
    }

    fn given(pairs: &[(&str, f64)]) -> ClassWeights {
        ClassWeights::Given(pairs.iter().map(|(class, weight)| (class.to_string(), *weight)).collect())
    }

    /// 4, 3 and 3 images.
    fn source() -> Source {
        Source::synthetic(3, 10, 3, 32).unwrap()
    }

    #[test]
    fn weights_have_the_mean_one_over_the_training_images() {
        let balanced = weights(ClassWeights::Balanced, &source()).unwrap();
        let expected = [10.0 / 12.0, 10.0 / 9.0, 10.0 / 9.0];
        assert_eq!(balanced, expected.map(|weight: f64| weight as f32));
        // 4·1 + 3·2 + 3·0 = 10.
        let own = given(&[("0", 1.0), ("1", 2.0), ("2", 0.0)]);
        assert_eq!(weights(own, &source()).unwrap(), [1.0, 2.0, 0.0]);
        let own = given(&[("0", 7.0), ("1", 14.0), ("2", 0.0)]);
        assert_eq!(weights(own, &source()).unwrap(), [1.0, 2.0, 0.0]);
        let plain = Recipe::reference(Variant::B0, 8);
        assert_eq!(plain.weights_of_classes(&source()), Ok(None));
    }

    #[test]
    fn weights_that_do_not_suit_the_data_are_named() {
        for (pairs, part) in [
            (&[("0", 1.0), ("1", 1.0)][..], "class `2` has no weight; add a line"),
            (&[("0", 1.0), ("1", 1.0), ("2", 1.0), ("cat", 1.0)], "no class `cat`; leave out"),
            (&[("0", 1.0), ("1", -1.0), ("2", 1.0)], "-1 of class `1`: weights are numbers from 0"),
            (&[("0", 0.0), ("1", 0.0), ("2", 0.0)], "no training image has a weight above 0"),
        ] {
            let line = weights(given(pairs), &source()).unwrap_err();
            assert!(line.starts_with("--class-weights ") && line.contains(part), "{line}");
        }
    }

    #[test]
    fn file_of_weights_is_read_or_its_line_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.csv");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().parse::<ClassWeights>()
        };
        let expected = given(&[("cat, small", 2.0), ("dog", 0.5)]);
        assert_eq!(of("\u{feff}class,weight\r\n\"cat, small\", 2\r\ndog,0.5\r\n"), Ok(expected.clone()));
        assert_eq!(of("dog,.5\n\"cat, small\",2e0"), Ok(expected.clone()));
        for (text, part) in [
            ("cat,1\ndog,heavy", "line 2: `heavy` is no number"),
            ("cat,1\ncat,2", "line 2: class `cat` has a weight already"),
            ("cat,1\ndog", "line 2 has 1 cells"),
        ] {
            let line = of(text).unwrap_err();
            assert!(line.contains(part) && !line.contains('\n'), "{line}");
        }
        assert!("missing.csv".parse::<ClassWeights>().unwrap_err().contains("give `balanced`"));
        // As a recipe holds them.
        for weights in [ClassWeights::Balanced, expected] {
            let json = serde_json::to_string(&weights).unwrap();
            assert_eq!(serde_json::from_str::<ClassWeights>(&json).unwrap(), weights, "{json}");
        }
    }
}
