//! Checkpoints written by an earlier version still load.
//!
//! A checkpoint of B0 has tens of megabytes, so the fixtures are the headers of two such files, written
//! before the first step. The rest of such a file follows from the recipe in the header: initial weights, initial state of
//! the optimiser. The checksum in the header covers all of it, so reading shows that the file is the one that was written.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::common::training::{assert_same_file, options, recipe, run, source};
use effnet::model::ParamTable;
use effnet::model::initialise::initialise;
use effnet::train::checkpoint;
use effnet::train::{Optimizer, Recipe, RunOptions};

const STEPS: u64 = 3;

/// The file of which the fixture is the header.
fn earlier(name: &str, recipe: &Recipe) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/checkpoints/{name}.header.gz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&fs::read(path).unwrap()[..]).read_to_end(&mut bytes).unwrap();
    let table = ParamTable::new(&recipe.architecture(5).unwrap());
    let counters = vec![0i64; table.batch_norms().count()];
    bytes.extend(bytemuck::cast_slice(&counters));
    let parameters = initialise(&table, recipe.seed);
    bytes.extend(bytemuck::cast_slice(&parameters));
    if recipe.ema > 0.0 {
        bytes.extend(bytemuck::cast_slice(&parameters));
    }
    // Every earlier file holds a mean square and a momentum, also SGD's. Both optimisers here start at zero.
    bytes.extend(vec![0; 2 * 4 * table.trainable()]);
    bytes
}

/// Resumes from the file, and compares with a run that was never interrupted.
fn expect_same(name: &str, recipe: &Recipe) {
    let dir = tempfile::tempdir().unwrap();
    let [whole, resumed] = ["whole", "resumed"].map(|name| dir.path().join(name));
    let steps = |out: &Path, max_steps, resume| {
        let options = RunOptions { max_steps: Some(max_steps), resume, ..options(out) };
        run(recipe, &options).unwrap();
    };
    steps(&whole, STEPS, false);
    steps(&resumed, 1, false);
    let file = resumed.join("checkpoint.bin");
    fs::write(&file, earlier(name, recipe)).unwrap();
    let read = checkpoint::read(&file).unwrap();
    assert_eq!((read.metadata.step, &read.metadata.recipe), (0, recipe));
    assert_eq!(read.metadata.data, source().fingerprint());
    steps(&resumed, STEPS, true);
    assert_same_file(&whole, &resumed, "checkpoint.bin");
}

#[test]
fn earlier_checkpoint_of_rmsprop_resumes_to_the_same_bytes() {
    expect_same("rmsprop", &recipe());
}

/// Its mean square, which SGD does not have, is dropped.
#[test]
fn earlier_checkpoint_of_sgd_resumes_to_the_same_bytes() {
    expect_same("sgd", &Recipe { optimizer: Optimizer::Sgd, ema: 0.0, ..recipe() });
}

/// The list of tensors, their order and the header of RMSprop's files have not changed.
#[test]
fn earlier_checkpoint_of_rmsprop_is_written_again_byte_by_byte() {
    let bytes = earlier("rmsprop", &recipe());
    let read = checkpoint::read_from(&mut &bytes[..], bytes.len() as u64, Path::new("earlier")).unwrap();
    let mut again = Vec::new();
    checkpoint::write(&mut again, &read.metadata, &ParamTable::new(&read.architecture), &read.state).unwrap();
    assert!(again == bytes);
}
