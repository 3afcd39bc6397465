//! PyTorch's files of weights: those that torch.save wrote, those that somebody wrote to do harm, and damaged ones.

mod files;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use effnet::model::formats::pth::{self, PthError};
use effnet::model::formats::stored::Tensors;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth")
}

fn read(bytes: &[u8]) -> Result<Tensors, PthError> {
    pth::read(&mut Cursor::new(bytes), bytes.len() as u64)
}
