//! Whether a folder's folders are classes, or the parts of a split.

use std::path::Path;

use super::super::listing::Part;
use super::walk::{Walk, images_here};
use crate::data::DataError;

/// What the folders of a source are. Names are theirs.
pub enum Layout {
    Classes,
    Split {
        train: String,
        val: Option<String>,
        /// A test folder that is not taken as validation, and whether it has class folders.
        test: Option<(String, bool)>,
        others: Vec<String>,
    },
}

impl Layout {
    /// A folder `train` with folders in it makes a split; a class may be called "train" too. Without validation images,
    /// here or in a source of their own (`has_val`), the test images are taken.
    pub fn of(source: &Path, top: &[String], walk: &Walk, has_val: bool) -> Result<Layout, DataError> {
        let problem = |problem: String| Err(DataError::Source { path: source.to_owned(), problem });
        let mut parts: [Option<String>; 3] = [None, None, None];
        let mut others = Vec::new();
        for name in top {
            let Some(part) = Part::of_folder(name) else {
                others.push(name.clone());
                continue;
            };
            if let Some(other) = &parts[part as usize] {
                return problem(format!(
                    "{other}/ and {name}/ mean the same part of the split; remove or join one"
                ));
            }
            parts[part as usize] = Some(name.clone());
        }
        let has_classes = |name: &Option<String>| match name {
            Some(name) => walk.subfolders(&source.join(name)).map(|inside| !inside.is_empty()),
            None => Ok(false),
        };
        let [train, val, test] = parts;
        let [train_split, val_split, test_split] =
            [has_classes(&train)?, has_classes(&val)?, has_classes(&test)?];
        let Some(train) = train.filter(|_| train_split) else {
            return match [(&val, val_split), (&test, test_split)].into_iter().find(|(_, split)| *split) {
                Some((Some(name), _)) if others.is_empty() => {
                    problem(format!("{name}/ has no train/ beside it; add one, or give {name}/ itself"))
                }
                // Flat folders of images that all mean parts are no classes.
                None if others.is_empty() && top.len() > 1 => problem(format!(
                    "{} have no class folders in them; give a list with a file and its class in each line (CSV)",
                    top.iter().map(|name| format!("{name}/")).collect::<Vec<_>>().join(" and ")
                )),
                _ => Ok(Layout::Classes),
            };
        };
        let flat_val = |name: &String| images_here(&source.join(name)).is_ok_and(|images| images > 0);
        let val = val.filter(|name| val_split || flat_val(name));
        let (val, test) = match (val, test) {
            (None, Some(test)) if test_split && !has_val => (Some(test), None),
            (val, test) => (val, test.map(|name| (name, test_split))),
        };
        if val.is_none() && !has_val {
            // Beside train/, a folder of classes under an unknown name is likely meant as val/.
            for other in &others {
                if !walk.subfolders(&source.join(other))?.is_empty() {
                    return problem(format!(
                        "{train}/ has no val/ beside it; rename {other}/ to val/, or give {}/{train} to have it split",
                        source.display()
                    ));
                }
            }
        }
        Ok(Layout::Split { train, val, test, others })
    }
}
