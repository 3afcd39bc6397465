//! Exports and imports, and what each kind of file gives.

use std::fs;

use ::safetensors::tensor::{TensorView, serialize};
use ::safetensors::{Dtype, SafeTensors};
use strum::IntoEnumIterator;

use super::convention::Convention;
use super::import::{Import, import};
use super::stored::{Stored, Tensor};
use super::weights_file::{Average, WeightsFile};
use super::*;
use crate::model::{BatchNormConfig, Entry, Padding, ParamTable, Variant, initialise::initialise};

fn architecture(classes: usize) -> Architecture {
    Architecture::new(Variant::B0, classes, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap()
}

fn table(classes: usize) -> ParamTable {
    ParamTable::new(&architecture(classes))
}

/// A model of as many classes as `names`.
fn model<'a>(architecture: &'a Architecture, values: &'a [f32], classes: &'a [String]) -> TrainedModel<'a> {
    let scale = Scale { mean: [0.5, 0.25, 0.125], deviation: [0.5; 3] };
    TrainedModel { architecture, values, steps: 77, classes, scale, crop: "pad" }
}

fn classes(count: usize) -> Vec<String> {
    (0..count).map(|class| format!("class {class}")).collect()
}

/// Into B0.
fn taken(path: &Path, classes: usize, values: &mut [f32]) -> Result<Import, WeightsError> {
    import(&WeightsFile::read(path)?, Average::Raw, &architecture(classes), values)
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
    let classes = classes(10);
    let model = model(&architecture, &values, &classes);
    export(&path, &model, Format::Safetensors(Naming::Timm), false).unwrap();
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
    let import = taken(&path, 10, &mut back).unwrap();
    assert_eq!(back, values);
    let whole = Import { matched: table.entries().len(), ..Import::default() };
    assert_eq!(import, Import { names: "timm's names".into(), member: Some(Variant::B0), ..whole });
    assert!(import.require_whole(&path, &architecture).is_ok());

    let refused = export(&path, &model, Format::Safetensors(Naming::Timm), false).unwrap_err();
    assert!(matches!(refused, WeightsError::Exists { .. }));
    export(&path, &model, Format::Safetensors(Naming::Timm), true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn import_of_other_classes_keeps_the_new_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, ours) = (architecture(10), table(7));
    let path = dir.path().join("out.safetensors");
    let values = initialise(&table(10), 3);
    export(&path, &model(&theirs, &values, &classes(10)), Format::Safetensors(Naming::Timm), false).unwrap();
    let initial = initialise(&ours, 4);
    let mut values = initial.clone();
    let import = taken(&path, 7, &mut values).unwrap();
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
    let import = taken(&path, 10, &mut values).unwrap();
    assert_eq!(import.matched, 2);
    assert_eq!(import.unexpected, ["mystery"]);
    assert_eq!(import.reshaped, ["bn1.weight: [16], here [32]"]);
    assert_eq!(import.missing.len(), table.entries().len() - 5);
    assert_eq!(import.missing_classifier, ["classifier.weight", "classifier.bias"]);
    assert_eq!(values, initialise(&table, 0), "the biases were 0 before; nothing else may change");
    let lines = import.lines();
    assert!(lines.iter().all(|line| line.len() < 200), "{lines:?}");
    let missing = format!("and {} more", import.missing.len() - 1);
    assert!(lines.iter().any(|line| line.ends_with(&missing)), "{lines:?}");
    let line = import.require_whole(&path, &architecture(10)).unwrap_err().to_string();
    assert!(line.contains("2 of this model's") && line.contains("bn1.weight: [16], here [32]"), "{line}");
    assert!(line.contains("missing, such as ") && line.ends_with("--init-partial takes those"), "{line}");
}

#[test]
fn import_of_another_member_is_told_from_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let net =
        |variant| Architecture::new(variant, 10, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let larger = net(Variant::B1);
    let path = dir.path().join("b1.safetensors");
    let values = initialise(&ParamTable::new(&larger), 3);
    export(&path, &model(&larger, &values, &classes(10)), Format::Safetensors(Naming::Timm), false).unwrap();
    let mut values = initialise(&table(10), 0);
    let import = taken(&path, 10, &mut values).unwrap();
    let line = import.require_whole(&path, &architecture(10)).unwrap_err().to_string();
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
    assert_eq!(taken(&path, 10, &mut values).unwrap().matched, 1);
    assert_eq!(values[table.get("bn1.bias").unwrap().range()][..2], [0.1f32, -2.5]);
    let huge = 1e300f64.to_le_bytes().repeat(32);
    let path = write(&dir, &[("bn1.bias", Dtype::F64, vec![32], huge)]);
    assert!(matches!(taken(&path, 10, &mut values), Err(WeightsError::NotFinite { .. })));
    let path = write(&dir, &[("bn1.bias", Dtype::I8, vec![32], vec![0; 32])]);
    let line = taken(&path, 10, &mut values).unwrap_err().to_string();
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
    assert_eq!(taken(&path, 10, &mut values).unwrap().matched, 2);
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
    let error = taken(&path, 10, &mut values).unwrap_err();
    assert!(matches!(error, WeightsError::NothingMatched { tensors: 1, .. }), "{error}");
    assert!(error.to_string().contains("(mystery, …)"), "{error}");
    let path = write(&dir, &[("conv_stem.weight", Dtype::F32, vec![32, 4, 3, 3], vec![0; 4 * 32 * 36])]);
    let error = taken(&path, 10, &mut values).unwrap_err();
    assert!(error.to_string().contains("conv_stem.weight takes images of 4 channels"), "{error}");
    let below = (-1f32).to_le_bytes().repeat(32);
    let path = write(&dir, &[("bn1.running_var", Dtype::F32, vec![32], below)]);
    let error = taken(&path, 10, &mut values).unwrap_err();
    assert!(error.to_string().contains("bn1.running_var holds a negative variance"), "{error}");
    let nan = f32::NAN.to_le_bytes().repeat(32);
    let path = write(&dir, &[("bn1.bias", Dtype::F32, vec![32], nan)]);
    let error = taken(&path, 10, &mut values).unwrap_err();
    assert!(error.to_string().contains("bn1.bias"), "{error}");
    fs::write(&path, b"\x89PNG\r\n\x1a\n and more").unwrap();
    assert!(matches!(taken(&path, 10, &mut values), Err(WeightsError::Format { .. })));
    let missing = dir.path().join("none");
    assert!(matches!(taken(&missing, 10, &mut values), Err(WeightsError::Io { .. })));
}

/// A file of another program holds the same network under other names, in its order of axes.
fn renamed(naming: Naming, net: &Architecture, values: &[f32], prefix: &str) -> Vec<(String, Tensor)> {
    let table = ParamTable::new(net);
    let names = naming.translation(net);
    let stored = |entry: &Entry| {
        let own = &values[entry.range()];
        let axes = naming.axes(entry);
        let shape: Vec<usize> = axes.iter().map(|&axis| entry.shape[axis]).collect();
        let name = format!("{prefix}{}", names[&entry.name]);
        if axes.is_sorted() {
            return (name, Tensor { stored: Stored::F32, shape, bytes: bytemuck::cast_slice(own).to_vec() });
        }
        // Every place of the file's tensor, and from it the place in the table's.
        let count = own.len();
        let numbers = (0..count).map(|index| {
            let mut rest = index;
            let mut place = vec![0; shape.len()];
            for (at, &axis) in axes.iter().enumerate().rev() {
                place[axis] = rest % shape[at];
                rest /= shape[at];
            }
            let from = place.iter().zip(&entry.shape).fold(0, |sum, (place, size)| sum * size + place);
            own[from]
        });
        let bytes = numbers.flat_map(f32::to_le_bytes).collect();
        (name, Tensor { stored: Stored::F32, shape, bytes })
    };
    table.entries().iter().map(stored).collect()
}

#[test]
fn import_knows_the_names_of_others_under_any_prefix() {
    let prefixes = ["", "module.", "state_dict.", "state_dict._orig_mod.module.", "model."];
    for (variant, prefixes) in [(Variant::B0, &prefixes[..]), (Variant::B3, &prefixes[1..2])] {
        let net = Architecture::new(variant, 6, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap();
        let table = ParamTable::new(&net);
        let values = initialise(&table, 5);
        for naming in Naming::iter() {
            for prefix in prefixes {
                let mut tensors = renamed(naming, &net, &values, prefix);
                tensors.push((format!("{prefix}other"), tensors[0].1.clone()));
                let file = WeightsFile::of(Path::new("w"), tensors.into_iter().collect());
                let mut back = initialise(&table, 6);
                let found = import(&file, Average::Raw, &net, &mut back).unwrap();
                assert_eq!(back, values, "{naming} {prefix}");
                assert_eq!((found.matched, found.member), (table.entries().len(), Some(variant)));
                assert_eq!(found.unexpected, ["other"]);
                assert!(found.names.starts_with(&naming.to_string()), "{}", found.names);
                assert_eq!(found.names.ends_with(&format!("`{prefix}`")), !prefix.is_empty());
            }
        }
    }
}

#[test]
fn import_takes_names_of_keras_2() {
    let net = architecture(4);
    let table = ParamTable::new(&net);
    let values = initialise(&table, 5);
    let old = |(name, tensor): (String, Tensor)| {
        let name = name.replace('.', "/").replace("dwconv/kernel", "dwconv/depthwise_kernel");
        (format!("efficientnetb0/{name}:0"), tensor)
    };
    let tensors = renamed(Naming::Keras, &net, &values, "").into_iter().map(old).collect();
    let mut back = initialise(&table, 6);
    let file = WeightsFile::of(Path::new("w"), tensors);
    let found = import(&file, Average::Raw, &net, &mut back).unwrap();
    assert_eq!((back == values, found.names.as_str()), (true, "keras's names under `efficientnetb0.`"));
}

#[test]
fn import_reads_the_average_where_it_is_asked_for() {
    let net = architecture(4);
    let table = ParamTable::new(&net);
    let (raw, ema) = (initialise(&table, 1), initialise(&table, 2));
    let slots = initialise(&table, 3);
    let file = |parts: &[(&str, &[f32])]| {
        let tensors = parts.iter().flat_map(|(prefix, values)| renamed(Naming::Timm, &net, values, prefix));
        WeightsFile::of(Path::new("w"), tensors.collect())
    };
    let of = |file: &WeightsFile, average| {
        let mut values = initialise(&table, 9);
        import(file, average, &net, &mut values).map(|import| (values, import.unexpected))
    };
    for (one, two) in [("", "ema."), ("state_dict.", "state_dict_ema."), ("model.", "model_ema.module.")] {
        let both = file(&[(one, &raw), (two, &ema), ("optimizer.momentum.", &slots)]);
        assert!(both.has_both());
        assert_eq!(of(&both, Average::Raw).unwrap(), (raw.clone(), vec![]), "{one}");
        assert_eq!(of(&both, Average::Ema).unwrap(), (ema.clone(), vec![]), "{two}");
    }
    let only = file(&[("ema.", &ema)]);
    assert_eq!(of(&only, Average::Raw).unwrap().0, ema);
    let error = of(&file(&[("", &raw)]), Average::Ema).unwrap_err().to_string();
    assert_eq!(error, "w: it holds no moving average of the weights beside them");
}

#[test]
fn export_under_other_names_comes_back_with_its_convention() {
    let dir = tempfile::tempdir().unwrap();
    let batch_norm = BatchNormConfig { eps: 1e-3, ..BatchNormConfig::default() };
    let net = Architecture::new(Variant::B1, 3, 64, Padding::Same, batch_norm).unwrap();
    let table = ParamTable::new(&net);
    let values = initialise(&table, 8);
    let path = dir.path().join("w.safetensors");
    for naming in [Naming::Timm, Naming::Torchvision, Naming::Lukemelas] {
        export(&path, &model(&net, &values, &classes(3)), Format::Safetensors(naming), true).unwrap();
        let file = WeightsFile::read(&path).unwrap();
        let mut back = initialise(&table, 9);
        let found = import(&file, Average::Raw, &net, &mut back).unwrap();
        assert_eq!((back == values, found.unexpected), (true, vec![]), "{naming}");
        let convention = Convention::of(&file, file.copy(Average::Raw).unwrap());
        let scale = Scale { mean: [0.5, 0.25, 0.125], deviation: [0.5; 3] };
        assert_eq!((convention.member, convention.padding), (Some(Variant::B1), Padding::Same));
        assert_eq!((convention.eps, convention.scale), (1e-3, scale));
        assert_eq!(file.note().unwrap().classes, classes(3));
    }
}

#[test]
fn convention_follows_from_names_paths_and_timm_s_settings() {
    let dir = tempfile::tempdir().unwrap();
    let net = architecture(3);
    let values = initialise(&ParamTable::new(&net), 8);
    let of = |naming, path: &Path| {
        let file = WeightsFile::of(path, renamed(naming, &net, &values, "").into_iter().collect());
        let copy = file.copy(Average::Raw).unwrap();
        Convention::of(&file, copy)
    };
    let imagenet = Scale { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
    let half = Scale { mean: [0.5; 3], deviation: [0.5; 3] };
    let cases = [
        (Naming::Timm, "efficientnet_b0.ra_in1k/model.safetensors", Padding::Symmetric, 1e-5, imagenet),
        (Naming::Timm, "tf_efficientnet_b0.in1k/model.safetensors", Padding::Same, 1e-3, imagenet),
        (Naming::Timm, "models--timm--tf_efficientnet_b0.ap_in1k/snapshots/0/w", Padding::Same, 1e-3, half),
        (Naming::Timm, "w", Padding::Symmetric, 1e-5, imagenet),
        (Naming::Torchvision, "w", Padding::Symmetric, 1e-5, imagenet),
        (Naming::Lukemelas, "w", Padding::Same, 1e-3, imagenet),
        (Naming::Keras, "w", Padding::Same, 1e-3, imagenet),
    ];
    for (naming, name, padding, eps, scale) in cases {
        let found = of(naming, &dir.path().join(name));
        assert_eq!((found.padding, found.eps, found.scale), (padding, eps, scale), "{naming} {name}");
        assert_eq!(found.member, Some(Variant::B0));
    }
    // timm's settings beside the file count more than its name; those of something else do not.
    let path = dir.path().join("tf_efficientnet_b0.safetensors");
    let settings = |architecture: &str, mean: f32| {
        let text = format!(
            r#"{{"architecture": "{architecture}", "pretrained_cfg": {{"mean": [{mean}, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}"#
        );
        fs::write(dir.path().join("config.json"), text).unwrap();
        of(Naming::Timm, &path)
    };
    let found = settings("efficientnet_b0", 0.5);
    assert_eq!((found.padding, found.eps, found.scale), (Padding::Symmetric, 1e-5, half));
    assert_eq!(found.whose, "timm's efficientnet_b0, by its config.json");
    assert_eq!(settings("resnet50", 0.5).whose, "timm's tf_efficientnet_b0, by the file's name or folder");
    assert_eq!(settings("tf_efficientnet_b0", 7.0).scale, imagenet);
}
