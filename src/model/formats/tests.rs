//! Exports and imports, and what each kind of file gives.

use std::fs;

use ::safetensors::tensor::{TensorView, serialize};
use ::safetensors::{Dtype, SafeTensors};

use super::*;
use crate::model::{BatchNormConfig, Padding, Variant, initialise::initialise};

fn architecture(classes: usize) -> Architecture {
    Architecture::new(Variant::B0, classes, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap()
}

fn table(classes: usize) -> ParamTable {
    ParamTable::new(&architecture(classes))
}

fn write(dir: &tempfile::TempDir, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.to_string(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let path = dir.path().join("w.safetensors");
    fs::write(&path, serialize(views, None).unwrap()).unwrap();
    path
}

#[test]
fn export_opens_with_the_crate_and_comes_back_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(10);
    let values = initialise(&table, 3);
    let path = dir.path().join("out.safetensors");
    let architecture = architecture(10);
    let model = TrainedModel { architecture: &architecture, values: &values, steps: 77 };
    export(&path, &model, false).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), table.entries().len() + 49);
    let tracked = file.tensor("blocks.0.0.bn1.num_batches_tracked").unwrap();
    assert_eq!(
        (tracked.dtype(), tracked.shape(), tracked.data()),
        (Dtype::I64, &[][..], &77i64.to_le_bytes()[..])
    );
    assert_eq!(file.tensor("conv_stem.weight").unwrap().shape(), [32, 3, 3, 3]);

    let mut back = initialise(&table, 4);
    let import = import(&path, &table, &mut back).unwrap();
    assert_eq!(back, values);
    assert_eq!(import, Import { matched: table.entries().len(), ..Import::default() });
    assert!(import.require_whole(&path, &table, Variant::B0).is_ok());

    let refused = export(&path, &model, false).unwrap_err();
    assert!(matches!(refused, WeightsError::Exists { .. }));
    export(&path, &model, true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn import_of_other_classes_keeps_the_new_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, ours) = (architecture(10), table(7));
    let path = dir.path().join("out.safetensors");
    let values = initialise(&table(10), 3);
    export(&path, &TrainedModel { architecture: &theirs, values: &values, steps: 0 }, false).unwrap();
    let initial = initialise(&ours, 4);
    let mut values = initial.clone();
    let import = import(&path, &ours, &mut values).unwrap();
    assert_eq!(import.classes, Some((10, 7)));
    assert!(import.missing.is_empty() && import.unexpected.is_empty() && import.reshaped.is_empty());
    let head = ours.get("classifier.weight").unwrap().range();
    assert_eq!(values[head.clone()], initial[head]);
    let stem = ours.get("conv_stem.weight").unwrap().range();
    assert_ne!(values[stem.clone()], initial[stem]);
    assert!(import.lines().iter().any(|l| l.contains("7 classes")));
}

#[test]
fn import_lists_what_does_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(10);
    let path = write(
        &dir,
        &[
            ("bn1.bias", Dtype::F32, vec![32], vec![0; 128]),
            ("bn1.weight", Dtype::F32, vec![16], vec![0; 64]),
            ("bn1.num_batches_tracked", Dtype::I64, vec![], vec![0; 8]),
            ("mystery", Dtype::F32, vec![1], vec![0; 4]),
            ("bn2.bias", Dtype::F64, vec![1280], vec![0; 8 * 1280]),
        ],
    );
    let mut values = initialise(&table, 0);
    let import = import(&path, &table, &mut values).unwrap();
    assert_eq!(import.matched, 2);
    assert_eq!(import.unexpected, ["mystery"]);
    assert_eq!(import.reshaped, ["bn1.weight: [16], here [32]"]);
    assert_eq!(import.missing.len(), table.entries().len() - 3);
    assert_eq!(values, initialise(&table, 0), "the biases were 0 before; nothing else may change");
    let lines = import.lines();
    assert!(lines.iter().all(|line| line.len() < 200), "{lines:?}");
    let missing = format!("and {} more", import.missing.len() - 3);
    assert!(lines.iter().any(|line| line.ends_with(&missing)), "{lines:?}");
    let line = import.require_whole(&path, &table, Variant::B0).unwrap_err().to_string();
    assert!(line.contains("2 of this model's") && line.contains("bn1.weight: [16], here [32]"), "{line}");
    assert!(line.contains("missing, such as ") && line.ends_with("--init-partial takes those"), "{line}");
}

#[test]
fn import_of_another_member_is_told_from_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let net =
        |variant| Architecture::new(variant, 10, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let (larger, ours) = (net(Variant::B1), table(10));
    let path = dir.path().join("b1.safetensors");
    let values = initialise(&ParamTable::new(&larger), 3);
    export(&path, &TrainedModel { architecture: &larger, values: &values, steps: 0 }, false).unwrap();
    let mut values = initialise(&ours, 0);
    let import = import(&path, &ours, &mut values).unwrap();
    let line = import.require_whole(&path, &ours, Variant::B0).unwrap_err().to_string();
    assert!(line.contains("it is of b1: --model b1; --init-partial"), "{line}");
    assert!(line.contains("not this model's, such as blocks.0.1."), "{line}");
    assert!(line.len() < 300, "{line}");
}

#[test]
fn import_refuses_types_by_tensor_and_takes_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(10);
    let mut values = initialise(&table, 0);
    let doubles: Vec<u8> = [0.1f64, -2.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let path = write(&dir, &[("bn1.bias", Dtype::F64, vec![32], doubles.repeat(16))]);
    assert_eq!(import(&path, &table, &mut values).unwrap().matched, 1);
    assert_eq!(values[table.get("bn1.bias").unwrap().range()][..2], [0.1f32, -2.5]);
    let huge = 1e300f64.to_le_bytes().repeat(32);
    let path = write(&dir, &[("bn1.bias", Dtype::F64, vec![32], huge)]);
    assert!(matches!(import(&path, &table, &mut values), Err(WeightsError::NotFinite { .. })));
    let path = write(&dir, &[("bn1.bias", Dtype::I8, vec![32], vec![0; 32])]);
    let line = import(&path, &table, &mut values).unwrap_err().to_string();
    assert!(line.contains("bn1.bias is of type I8; F64, F32, F16 and BF16 are read"), "{line}");
}

#[test]
fn import_converts_half_precision_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(10);
    let ones: Vec<u8> = [0x3c00u16, 0xc000, 0x0001, 0x7bff].iter().flat_map(|h| h.to_le_bytes()).collect();
    let brain: Vec<u8> = [0x3f80u16, 0xc000, 0x3eaa, 0x0000].iter().flat_map(|h| h.to_le_bytes()).collect();
    let path = write(
        &dir,
        &[
            ("bn1.bias", Dtype::F16, vec![32], ones.repeat(8)),
            ("bn1.weight", Dtype::BF16, vec![32], brain.repeat(8)),
        ],
    );
    let mut values = initialise(&table, 0);
    assert_eq!(import(&path, &table, &mut values).unwrap().matched, 2);
    let bias = &values[table.get("bn1.bias").unwrap().range()];
    assert_eq!(bias[..4], [1.0, -2.0, 5.960_464_5e-8, 65504.0]);
    let weight = &values[table.get("bn1.weight").unwrap().range()];
    assert_eq!(weight[..4], [1.0, -2.0, 0.332_031_25, 0.0]);
}

#[test]
fn import_refuses_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(10);
    let mut values = initialise(&table, 0);
    let path = write(&dir, &[("mystery", Dtype::F32, vec![1], vec![0; 4])]);
    let error = import(&path, &table, &mut values).unwrap_err();
    assert!(matches!(error, WeightsError::NothingMatched { tensors: 1, .. }), "{error}");
    assert!(error.to_string().contains("(mystery, …)"), "{error}");
    let path = write(&dir, &[("module.conv_stem.weight", Dtype::F32, vec![1], vec![0; 4])]);
    let error = import(&path, &table, &mut values).unwrap_err();
    assert!(error.to_string().ends_with("remove `module.` from the start of its names"), "{error}");
    let nan = f32::NAN.to_le_bytes().repeat(32);
    let path = write(&dir, &[("bn1.bias", Dtype::F32, vec![32], nan)]);
    let error = import(&path, &table, &mut values).unwrap_err();
    assert!(error.to_string().contains("bn1.bias"), "{error}");
    fs::write(&path, b"\x89PNG\r\n\x1a\n and more").unwrap();
    assert!(matches!(import(&path, &table, &mut values), Err(WeightsError::Format { .. })));
    let missing = dir.path().join("none");
    assert!(matches!(import(&missing, &table, &mut values), Err(WeightsError::Io { .. })));
}
