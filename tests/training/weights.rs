//! Weights that go to other programs and come back: exports in every format and naming, files that are used as if they were
//! checkpoints, model cards, and what is refused.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::evaluate::{bad, eval, good, path, text};

/// Images of the run's own data, and others that must be resized.
fn images() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    let names = ["wide.png", "rgb.bmp", "turned.webp"];
    names.iter().map(|name| root.join(name).to_str().unwrap().to_string()).collect()
}

/// What a file of weights says of the images, with every digit.
fn classified(weights: &Path, flags: &[&str]) -> String {
    let images = images();
    let mut arguments = vec![text(weights), "--json", "--device", "cpu"];
    arguments.extend(flags);
    arguments.extend(images.iter().map(String::as_str));
    good(&arguments)
}

#[test]
fn export_under_any_names_classifies_as_the_checkpoint_does() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = path("run/checkpoint.bin");
    for kind in ["raw", "ema"] {
        let expected = classified(&checkpoint, &["--weights", kind]);
        for names in ["timm", "torchvision", "lukemelas"] {
            let file = dir.path().join(format!("{kind}-{names}.safetensors"));
            let line =
                good(&[text(&checkpoint), "--export", text(&file), "--weights", kind, "--names", names]);
            assert!(line.contains(&format!("360 tensors under {names}'s names")), "{line}");
            assert_eq!(classified(&file, &[]), expected, "{kind} {names}");
        }
    }
    // From one format into another, as from the checkpoint itself.
    let [direct, through] = ["direct.onnx", "through.onnx"].map(|name| dir.path().join(name));
    good(&[text(&checkpoint), "--export", text(&direct)]);
    good(&[text(&dir.path().join("raw-lukemelas.safetensors")), "--export", text(&through)]);
    assert!(fs::read(&direct).unwrap() == fs::read(&through).unwrap());
}

#[test]
fn plain_weights_are_evaluated_on_data_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    good(&[text(&path("run/checkpoint.bin")), "--export", text(&file)]);
    let figures = |arguments: &[&str]| -> Vec<Value> {
        let found: Value = serde_json::from_str(&good(arguments)).unwrap();
        ["images", "top1", "top5", "loss"].iter().map(|key| found[key].clone()).collect()
    };
    let data = path("data");
    let expected = figures(&[text(&path("run/checkpoint.bin")), "--json"]);
    assert_eq!(figures(&[text(&file), "--json", "--data", text(&data)]), expected);
    let line = eval(&[text(&file), "--json", "--data", text(&data)]).good().err;
    assert!(line.contains("weights (the note in the file): b0, 5 classes, --padding symmetric"), "{line}");
}

#[test]
fn classes_of_a_note_must_be_those_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    good(&[text(&path("run/checkpoint.bin")), "--export", text(&file)]);
    let bytes = fs::read(&file).unwrap();
    let noted = |change: fn(&mut Value)| {
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let mut metadata = header.metadata().clone().unwrap();
        let mut note: Value = serde_json::from_str(&metadata["effnet-network"]).unwrap();
        change(&mut note);
        metadata.insert("effnet-network".into(), note.to_string());
        let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let out = dir.path().join("noted.safetensors");
        fs::write(&out, safetensors::serialize(whole.iter(), Some(metadata)).unwrap()).unwrap();
        out
    };
    let data = path("data");
    let refused = |change: fn(&mut Value), part: &str| {
        let ran = eval(&[text(&noted(change)), "--data", text(&data)]);
        assert!(ran.status == Some(1) && ran.err.contains(part), "{ran:?}");
    };
    refused(|note| note["classes"][0] = "another".into(), "other names or another order");
    refused(|note| note["mean"][0] = 7.0.into(), "no fractions of full intensity");
    refused(|note| note["resolution"] = 4_000_000_000u64.into(), "resolution");
    refused(|note| note["padding"] = "round".into(), "the note of the network in it cannot be used");
    // Numbers are no names.
    let numbers =
        |note: &mut Value| (0..5).for_each(|class| note["classes"][class] = class.to_string().into());
    good(&[text(&noted(numbers)), "--data", text(&data)]);
}

#[test]
fn card_says_what_the_file_needs() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = path("run/checkpoint.bin");
    let file = dir.path().join("net.onnx");
    let line = good(&[text(&checkpoint), "--export", text(&file), "--bytes-in"]);
    assert!(line.contains("net.onnx.md describes it"), "{line}");
    let card = fs::read_to_string(dir.path().join("net.onnx.md")).unwrap();
    for part in [
        "# EfficientNet-B0, 5 classes",
        "`net.onnx`: the weights and the network in ONNX (operator set 17)",
        "% on the validation images, at step ",
        "The file takes bytes and normalises them itself",
        "uint8 [N, 32, 32, 3]",
        "lr = ",
        "To be filled in by the author",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    // A card is not replaced either.
    fs::remove_file(&file).unwrap();
    bad(&[text(&checkpoint), "--export", text(&file)], &["net.onnx.md exists", "--force"]);
    assert!(!file.exists());
    good(&[text(&checkpoint), "--export", text(&file), "--force"]);
    // Of weights whose training nobody knows here.
    let plain = dir.path().join("plain.safetensors");
    good(&[text(&checkpoint), "--export", text(&plain)]);
    let again = dir.path().join("again.safetensors");
    good(&[text(&plain), "--export", text(&again)]);
    let card = fs::read_to_string(dir.path().join("again.safetensors.md")).unwrap();
    assert!(
        card.contains("does not say how these weights were trained") && !card.contains("lr = "),
        "{card}"
    );
}

#[test]
fn export_that_is_not_possible_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = path("run/checkpoint.bin");
    let export = |name: &str, more: &[&str], parts: &[&str]| {
        let file = dir.path().join(name);
        let mut arguments = vec![text(&checkpoint), "--export", text(&file)];
        arguments.extend(more);
        bad(&arguments, parts);
        assert!(!file.exists());
    };
    export("w.bin", &[], &["w.bin: --export writes OUT.safetensors or OUT.onnx"]);
    export("w", &[], &["--export writes"]);
    export("w.safetensors", &["--names", "keras"], &["Keras's weights are read, not written"]);
    export("w.safetensors", &["--bytes-in"], &["--bytes-in is for OUT.onnx"]);
    export("w.onnx", &["--names", "timm"], &["--names is for OUT.safetensors"]);
    export("none/w.onnx", &[], &["none/w.onnx"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn file_that_holds_no_network_is_refused_by_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    good(&[text(&path("run/checkpoint.bin")), "--export", text(&file)]);
    let bytes = fs::read(&file).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let without = |name: &str| {
        let left = whole.iter().filter(|(tensor, _)| !tensor.starts_with(name));
        let out = dir.path().join("part.safetensors");
        fs::write(&out, safetensors::serialize(left, None).unwrap()).unwrap();
        out
    };
    bad(&[text(&without("conv_head")), "x.png"], &["part.safetensors", "no whole network of the family"]);
    bad(&[text(&without("classifier")), "x.png"], &["no whole network of the family"]);
    let page = dir.path().join("w.html");
    fs::write(&page, "<html><body>404: not found</body></html>").unwrap();
    bad(&[text(&page), "x.png"], &["w.html", "not a safetensors file"]);
    fs::write(&page, b"PK\x03\x04 and so on").unwrap();
    bad(&[text(&page), "x.png"], &["w.html"]);
}
