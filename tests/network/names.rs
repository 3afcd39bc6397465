//! The names and shapes that other programs give to a network's tensors, as those programs say them
//! (`tools/make_names_golden.py`).

use std::collections::BTreeMap;
use std::path::Path;

use effnet::model::formats::naming::Naming;
use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(untagged)]
enum Lines {
    All(Vec<String>),
    /// CRC-32 of the lines, each with its end.
    Checksum(u32),
}

/// The lines of a naming's file: "name [shape]", sorted.
fn lines(naming: Naming, variant: Variant) -> Vec<String> {
    let net = Architecture::new(variant, 1000, 224, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let names = naming.translation(&net);
    let line = |entry: &effnet::model::Entry| {
        let shape: Vec<usize> = naming.axes(entry).into_iter().map(|axis| entry.shape[axis]).collect();
        let name = &names[&entry.name];
        // Keras has a slash between a layer and its weight.
        let name = if naming == Naming::Keras { name.replace('.', "/") } else { name.clone() };
        format!("{name} {shape:?}")
    };
    let mut lines: Vec<String> = ParamTable::new(&net).entries().iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn names_are_those_of_the_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/golden/weights/names.json")).unwrap();
    let golden: BTreeMap<String, BTreeMap<String, Lines>> = serde_json::from_str(&text).unwrap();
    assert_eq!(golden.len(), 4);
    for (program, members) in golden {
        let naming: Naming = program.parse().unwrap();
        assert_eq!(members.len(), 8);
        for (member, expected) in members {
            let found = lines(naming, member.parse().unwrap());
            match expected {
                Lines::All(expected) => {
                    let differing = found.iter().zip(&expected).find(|(found, expected)| found != expected);
                    assert_eq!((differing, found.len()), (None, expected.len()), "{program} {member}");
                }
                Lines::Checksum(expected) => {
                    let text: String = found.iter().map(|line| format!("{line}\n")).collect();
                    assert_eq!(crc32fast::hash(text.as_bytes()), expected, "{program} {member}");
                }
            }
        }
    }
}
