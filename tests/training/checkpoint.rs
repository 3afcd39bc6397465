//! Checkpoint files: any damage is detected, a save that fails leaves the previous checkpoint, and the run directory
//! keeps the right files.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::LazyLock;

use effnet::data::{CropMode, Normalise};
use effnet::files::{Disk, Files};
use effnet::model::formats::{Format, export, naming::Naming};
use effnet::model::initialise::initialise;
use effnet::model::{ParamTable, Variant};
use effnet::train::Recipe;
use effnet::train::checkpoint::{self, Checkpoint, CheckpointError, Found, Metadata, RunDirectory, Snapshot};
use effnet::train::events::Best;
use proptest::prelude::*;
use rayon::prelude::*;
use safetensors::SafeTensors;

fn metadata() -> Metadata {
    let recipe = Recipe {
        resolution: 32,
        crop: CropMode::Pad,
        ema: 0.999,
        lr: 0.1 + 0.2,
        ..Recipe::reference(Variant::B0, 8)
    };
    let classes = ["cat", "dog", "\"quoted\" \\ Käse"].map(str::to_string).to_vec();
    let normalise = Normalise { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
    let mut metadata = Metadata::new(&recipe, classes, normalise, "0123456789abcdef".into(), 500);
    (metadata.step, metadata.epoch, metadata.evaluated) = (123, 1.23, 120);
    metadata.best = Some(Best { top1: 1.0 / 3.0, step: 120, ema: true });
    metadata
}

fn table() -> ParamTable {
    ParamTable::new(&metadata().architecture().unwrap())
}

fn state(seed: u64) -> Snapshot {
    let table = table();
    let mut state = Snapshot::new(&table, &metadata().recipe);
    state.parameters = initialise(&table, seed);
    state.ema = initialise(&table, seed + 1);
    for (slot, seed) in state.slots.iter_mut().zip(seed + 2..) {
        slot.values = initialise(&table, seed)[..table.trainable()].to_vec();
    }
    state
}

/// A complete checkpoint.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, &metadata(), &table(), &state(1)).unwrap();
    bytes
});

fn header_length() -> usize {
    8 + u64::from_le_bytes(WHOLE[..8].try_into().unwrap()) as usize
}

fn read(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    checkpoint::read_from(&mut &*bytes, bytes.len() as u64, Path::new("c.bin"))
}

/// Reads a complete checkpoint with one byte changed, without copying it.
struct Changed {
    whole: &'static [u8],
    place: usize,
    bits: u8,
    at: usize,
}

impl Read for Changed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.whole.len() - self.at);
        out[..count].copy_from_slice(&self.whole[self.at..self.at + count]);
        if (self.at..self.at + count).contains(&self.place) {
            out[self.place - self.at] ^= self.bits;
        }
        self.at += count;
        Ok(count)
    }
}

/// Verifying reads the file in the same way as reading does, but stores nothing and is fast.
fn verify_changed(whole: &'static [u8], place: usize, bits: u8) -> Result<Metadata, CheckpointError> {
    checkpoint::verify_from(
        &mut Changed { whole, place, bits, at: 0 },
        whole.len() as u64,
        Path::new("c.bin"),
    )
}

fn read_changed(whole: &'static [u8], place: usize, bits: u8) -> Result<Checkpoint, CheckpointError> {
    checkpoint::read_from(&mut Changed { whole, place, bits, at: 0 }, whole.len() as u64, Path::new("c.bin"))
}

#[test]
fn checkpoint_comes_back_and_opens_with_the_safetensors_crate() {
    let back = read(&WHOLE).unwrap();
    let checksum = back.metadata.checksum.clone();
    assert_eq!(back.metadata, Metadata { checksum, ..metadata() });
    assert_eq!(back.state, state(1));
    assert_eq!(
        checkpoint::verify_from(&mut &WHOLE[..], WHOLE.len() as u64, Path::new("c")).unwrap(),
        back.metadata
    );
    // Writing again gives the same bytes: nothing depends on the time or the place.
    let mut again = Vec::new();
    checkpoint::write(&mut again, &back.metadata, &table(), &back.state).unwrap();
    assert!(again == *WHOLE);

    let (_, header) = SafeTensors::read_metadata(&WHOLE).unwrap();
    let keys = header.metadata().clone().unwrap();
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["effnet"]);
    let json: serde_json::Value = serde_json::from_str(&keys["effnet"]).unwrap();
    assert_eq!(json["step"], 123);
    assert_eq!(json["recipe"]["batch-size"], 8);
    assert_eq!(json.to_string(), keys["effnet"], "keys are sorted");
    let file = SafeTensors::deserialize(&WHOLE).unwrap();
    let table = table();
    let trainable = table.entries().iter().filter(|e| e.role.trainable()).count();
    assert_eq!(file.len(), 49 + 2 * table.entries().len() + 2 * trainable);
    assert_eq!(file.tensor("bn1.num_batches_tracked").unwrap().data(), 123i64.to_le_bytes());
    let stem = table.get("conv_stem.weight").unwrap();
    let stored = file.tensor("ema.conv_stem.weight").unwrap();
    assert_eq!(stored.shape(), stem.shape);
    assert_eq!(stored.data(), bytemuck::cast_slice::<f32, u8>(&state(1).ema[stem.range()]));
}

#[test]
fn changed_byte_in_any_tensor_is_detected() {
    let file = SafeTensors::deserialize(&WHOLE).unwrap();
    let start = WHOLE.as_ptr() as usize;
    let tensors: Vec<(String, usize, usize)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.data().as_ptr() as usize - start, view.data().len()))
        .collect();
    assert!(tensors.len() > 1000);
    tensors.par_iter().enumerate().for_each(|(number, (name, offset, length))| {
        // A different byte and bit of each tensor.
        let (place, bits) = (offset + number * 7919 % length, 1 << (number % 8));
        let error =
            verify_changed(&WHOLE, place, bits).err().unwrap_or_else(|| panic!("{name}: not detected"));
        assert!(matches!(error, CheckpointError::Altered { .. }), "{name}: {error}");
        if number % 20 == 0 {
            assert!(
                matches!(read_changed(&WHOLE, place, bits), Err(CheckpointError::Altered { .. })),
                "{name}"
            );
        }
    });
}

/// A checkpoint without a moving average: a smaller file, because it is read once for every byte of its metadata.
static SMALLER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut metadata = metadata();
    metadata.recipe.ema = 0.0;
    let state = Snapshot { ema: Vec::new(), ..state(1) };
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, &metadata, &table(), &state).unwrap();
    assert_eq!(read(&bytes).unwrap().state, state);
    bytes
});

#[test]
fn changed_byte_in_metadata_or_length_is_detected() {
    let text = b"\"__metadata__\"";
    let start = SMALLER.windows(text.len()).position(|w| w == text).unwrap();
    let end = start + SMALLER[start..].windows(3).position(|w| w == b"\"},").unwrap() + 3;
    assert!((1000..4000).contains(&(end - start)), "{}", end - start);
    let places: Vec<usize> = (0..9).chain(start..end).collect();
    places.par_iter().for_each(|&place| {
        let bits = [1, 2, 0x20][place % 3];
        assert!(verify_changed(&SMALLER, place, bits).is_err(), "byte {place}, bits {bits:#x}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_byte_in_header_is_detected(place in 0..header_length(), bits in 1..=255u8) {
        prop_assert!(read_changed(&WHOLE, place, bits).is_err());
    }

    #[test]
    fn truncation_in_header_is_detected(length in 0..header_length()) {
        prop_assert!(read(&WHOLE[..length]).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
    }

    /// Bytes that begin like a checkpoint reach later parts of the reader.
    #[test]
    fn arbitrary_json_is_an_error(text in "[\\[\\]{}\":,0-9a-z_ ]{0,60}", extra in 0..40usize) {
        for inner in [text.clone(), format!("{{\"__metadata__\":{{\"effnet\":{}}}}}", serde_json::Value::from(text))] {
            let mut bytes = (inner.len() as u64).to_le_bytes().to_vec();
            bytes.extend(inner.as_bytes());
            bytes.resize(bytes.len() + extra, 0);
            prop_assert!(read(&bytes).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn truncation_of_data_is_reported(length in header_length()..WHOLE.len()) {
        let error = read(&WHOLE[..length]).unwrap_err();
        prop_assert!(matches!(error, CheckpointError::Truncated { .. }), "{error}");
    }
}

#[test]
fn read_reports_what_kind_of_file_it_found() {
    let mut longer = WHOLE.clone();
    longer.push(0);
    let error = read(&longer).unwrap_err().to_string();
    assert!(error.contains("c.bin") && error.contains("follow its end"), "{error}");
    let error = read(b"").unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
    let error = read(b"\x89PNG\r\n\x1a\n0123456789").unwrap_err();
    assert!(matches!(error, CheckpointError::Foreign { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.safetensors");
    let architecture = metadata().architecture().unwrap();
    let (saved, values) = (metadata(), state(1).parameters);
    let model = saved.trained(&architecture, &values);
    export(&plain, &model, Format::Safetensors(Naming::Timm), false).unwrap();
    let error = checkpoint::read(&plain).unwrap_err();
    assert!(matches!(error, CheckpointError::Foreign { .. }));
    assert!(error.to_string().contains("--init-from"), "{error}");
    let error = checkpoint::read(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");

    // A format of a newer program.
    let mut newer = Vec::new();
    let metadata = Metadata { version: checkpoint::VERSION + 1, ..metadata() };
    checkpoint::write(&mut newer, &metadata, &table(), &state(1)).unwrap();
    let error = read(&newer).unwrap_err();
    assert!(matches!(error, CheckpointError::Newer { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("update"), "{error}");
}

/// Contradictions are refused although the checksum is right.
#[test]
fn metadata_that_contradicts_itself_is_refused() {
    let refused = |change: fn(&mut Metadata)| {
        let mut metadata = metadata();
        change(&mut metadata);
        let mut bytes = Vec::new();
        checkpoint::write(&mut bytes, &metadata, &table(), &state(1)).unwrap();
        assert!(matches!(read(&bytes), Err(CheckpointError::Altered { .. })));
    };
    refused(|m| m.model = Variant::B1);
    refused(|m| m.classes.truncate(2));
    refused(|m| m.classes.truncate(0));
    refused(|m| m.resolution = 64);
    refused(|m| (m.resolution, m.recipe.resolution) = (usize::MAX, usize::MAX));
    refused(|m| m.seed = 5);
    refused(|m| m.recipe.batch_size = 0);
    refused(|m| m.recipe.ema = 0.0);
    refused(|m| m.format = "other".into());
}

/// A disk that fails after a number of operations or bytes.
struct Failing {
    operations: Cell<usize>,
    bytes: usize,
}

struct Limited {
    file: File,
    left: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left);
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left -= count;
        self.file.write(&bytes[..count])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Failing {
    fn spend(&self) -> io::Result<()> {
        let left = self.operations.get();
        self.operations.set(left.saturating_sub(1));
        if left == 0 { Err(io::Error::other("no more operations")) } else { Ok(()) }
    }
}

impl Files for Failing {
    type File = Limited;

    fn create(&self, path: &Path) -> io::Result<Limited> {
        self.spend()?;
        Ok(Limited { file: Disk.create(path)?, left: self.bytes })
    }
    fn sync(&self, file: &Limited) -> io::Result<()> {
        self.spend()?;
        Disk.sync(&file.file)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.spend()?;
        Disk.sync_directory(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.spend()?;
        Disk.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.spend()?;
        Disk.link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
}

fn at_step(step: u64) -> Metadata {
    Metadata { step, ..metadata() }
}

#[test]
fn save_that_fails_leaves_the_previous_checkpoint() {
    let (dir, table) = (tempfile::tempdir().unwrap(), table());
    let path = dir.path();
    RunDirectory::at(path).save(&at_step(1), &table, &state(1), true, 2).unwrap();
    let old = fs::read(path.join("checkpoint.bin")).unwrap();
    let (new_state, length) = (state(5), old.len());
    let full = [0, 1, 8, header_length() - 1, header_length(), length / 2, length - 1];
    let cases = full.map(|bytes| (usize::MAX, bytes)).into_iter().chain((0..8).map(|n| (n, usize::MAX)));
    let mut survived = 0;
    for (operations, bytes) in cases {
        let files = Failing { operations: Cell::new(operations), bytes };
        let run = RunDirectory::with_files(path, files);
        let error = match run.save(&at_step(2), &table, &new_state, true, 2) {
            Ok(()) => panic!("operation {operations} of 8 did not fail"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("checkpoint.bin") && error.contains("intact"), "{error}");
        assert_eq!(error.lines().count(), 1);
        // Only the last operation, the sync of the directory, follows the rename.
        let latest = checkpoint::read(&path.join("checkpoint.bin")).unwrap().metadata.step;
        assert_eq!(latest, if operations == 7 { 2 } else { 1 }, "operations {operations}, bytes {bytes}");
        survived += u32::from(fs::read(path.join("checkpoint.bin")).unwrap() == old);
        for entry in fs::read_dir(path).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".tmp"), "{name} is left behind");
            checkpoint::read(&path.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    assert_eq!(survived, 14);
    let files = Failing { operations: Cell::new(8), bytes: usize::MAX };
    RunDirectory::with_files(path, files).save(&at_step(2), &table, &new_state, true, 2).unwrap();
}

#[test]
fn save_that_fails_first_says_that_nothing_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDirectory::with_files(dir.path(), Failing { operations: Cell::new(9), bytes: 100 });
    let error = run.save(&at_step(0), &table(), &state(1), false, 0).unwrap_err().to_string();
    assert!(error.contains("no checkpoint was written"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn run_directory_keeps_latest_best_and_numbered_checkpoints() {
    let (dir, table) = (tempfile::tempdir().unwrap(), table());
    let path = dir.path().join("run");
    assert_eq!(RunDirectory::at(&path).found(), Found::Nothing);
    let run = RunDirectory::open(&path).unwrap();
    assert_eq!(run.found(), Found::Nothing);
    fs::write(path.join("recipe.toml"), "x").unwrap();
    assert_eq!(run.found(), Found::Begun);
    for step in 0..=4 {
        run.save(&at_step(step), &table, &state(step), step == 2, 2).unwrap();
    }
    assert_eq!(run.found(), Found::Checkpoint);
    let step_of = |name: &str| checkpoint::read(&path.join(name)).unwrap().metadata.step;
    assert_eq!(step_of("checkpoint.bin"), 4);
    assert_eq!(step_of("best.bin"), 2);
    assert_eq!(run.numbered_steps().unwrap(), [3, 4]);
    assert_eq!(step_of("checkpoint-00000003.bin"), 3);
    fs::remove_file(path.join("checkpoint.bin")).unwrap();
    assert_eq!(run.found(), Found::Broken);

    // Incomplete files of a killed run are removed; files that no run makes remain.
    for name in
        ["checkpoint.bin.tmp", "best.bin.tmp", "log.jsonl.tmp", "mine.tmp", "notes.txt", "checkpoint-1.bin"]
    {
        fs::write(path.join(name), "x").unwrap();
    }
    let error = RunDirectory::open(&path).unwrap_err().to_string();
    assert!(error.contains("another effnet-train"), "{error}");
    drop(run);
    let run = RunDirectory::open(&path).unwrap();
    assert!(!path.join("checkpoint.bin.tmp").exists() && !path.join("best.bin.tmp").exists());
    run.clear().unwrap();
    let mut left: Vec<String> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    // The recipe remains until it is replaced, so that a killed run always has one.
    assert_eq!(left, ["checkpoint-1.bin", "mine.tmp", "notes.txt", "recipe.toml"]);
}
