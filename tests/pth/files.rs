//! Files that torch.save wrote (`tools/make_pth_fixtures.py`): every tensor's name, type, shape and bytes.

use effnet::model::formats::stored::Stored;
use serde_json::Value;

use super::*;

/// A tensor of `expected.json`: type, shape, and bytes in hexadecimal digits.
fn expected(tensor: &Value) -> (Stored, Vec<usize>, Vec<u8>) {
    let stored = match tensor["type"].as_str().unwrap() {
        "F64" => Stored::F64,
        "F32" => Stored::F32,
        "F16" => Stored::F16,
        "BF16" => Stored::BF16,
        other => Stored::Other(other.to_string()),
    };
    let shape =
        tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
    let digits = tensor["bytes"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (stored, shape, (0..digits.len()).step_by(2).map(byte).collect())
}

/// Compares all files of a folder with its `expected.json`, and gives how many tensors were compared.
fn compare(folder: &Path) -> usize {
    let json = fs::read_to_string(folder.join("expected.json")).unwrap();
    let all: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&json).unwrap();
    let mut compared = 0;
    for (name, tensors) in &all {
        let bytes = fs::read(folder.join(name)).unwrap();
        assert!(pth::is_pth(&bytes[..32]), "{name}");
        if let Some(message) = tensors.get("refused") {
            assert_eq!(read(&bytes).unwrap_err().to_string(), message.as_str().unwrap(), "{name}");
            continue;
        }
        let mut found = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (tensor, values) in tensors {
            let (stored, shape, bytes) = expected(values);
            let found = found.remove(tensor).unwrap_or_else(|| panic!("{name} lacks {tensor}"));
            assert_eq!((found.stored, found.shape), (stored, shape), "{name}: {tensor}");
            assert!(found.bytes == bytes, "{name}: {tensor}");
            compared += 1;
        }
        assert!(found.is_empty(), "{name}: {:?} are not in PyTorch's", found.keys());
    }
    compared
}

#[test]
fn files_of_pytorch_give_its_tensors() {
    assert_eq!(compare(&fixtures()), 78);
}

#[test]
fn files_of_a_folder_that_the_environment_names_give_its_tensors() {
    match std::env::var_os("EFFNET_PTH_DIR") {
        Some(folder) => println!("{} tensors compared", compare(Path::new(&folder))),
        None => println!("skipped: EFFNET_PTH_DIR names no folder"),
    }
}
