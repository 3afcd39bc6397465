//! Damaged files: bytes, entries and instructions of the fixtures are changed at random. Nothing panics, hangs or takes
//! much memory, whatever the damage.
//!
//! Case n is a function of n alone: `EFFNET_PTH_DAMAGED=100000 cargo test --test pth damaged -- --nocapture` tries the
//! first 100,000 cases, and `EFFNET_PTH_DAMAGED=n..m` those from n on.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use effnet::random::{below, philox};

use super::write::*;
use super::*;

/// Cases of a plain `cargo test`.
const CASES: u32 = 20_000;
/// Memory for a file of a few thousand bytes: tensors that share storages may have a mebibyte.
const MEMORY: usize = 4 << 20;

struct Draws {
    case: u32,
    count: u32,
}

impl Draws {
    /// A number below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        self.count += 1;
        below(philox([0x70_74_68, 0], [self.case, self.count, 0, 0])[0], n as u32) as usize
    }

    fn range(&mut self, length: usize, most: usize) -> Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(most) + 1)
    }
}

/// A fixture: its bytes, its pickle and its storages.
struct Sound {
    bytes: Vec<u8>,
    pickle: Vec<u8>,
    storages: Vec<(String, Vec<u8>)>,
}

fn sound() -> Vec<Sound> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(fixtures()).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "pth"));
    let unpacked = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        let (mut pickle, mut storages) = (Vec::new(), Vec::new());
        if let Ok(mut zip) = zip::ZipArchive::new(Cursor::new(&bytes)) {
            for index in 0..zip.len() {
                let mut data = Vec::new();
                // What is compressed in a file of TorchScript is not a tensor.
                let Ok(mut entry) = zip.by_index(index) else { continue };
                let _ = std::io::Read::read_to_end(&mut entry, &mut data);
                let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
                match name.split_once("/data/") {
                    Some((_, key)) => storages.push((key.to_string(), data)),
                    None if name.ends_with("/data.pkl") => pickle = data,
                    None => {}
                }
            }
        }
        Sound { bytes, pickle, storages }
    };
    files.iter().map(unpacked).collect()
}

/// Changes bytes, and their number.
fn bytes(draws: &mut Draws, data: &mut Vec<u8>) {
    for _ in 0..1 + draws.below(3) {
        if data.is_empty() {
            return;
        }
        let at = draws.below(data.len());
        match draws.below(8) {
            0 => data[at] ^= 1 << draws.below(8),
            1 => data[at] = draws.below(256) as u8,
            2 => drop(data.drain(draws.range(data.len(), 40))),
            3 => {
                let piece = data[draws.range(data.len(), 40)].to_vec();
                data.splice(at..at, piece);
            }
            4 if draws.below(4) == 0 => data.truncate(at),
            // An extreme number, as long as a field of the container or of the pickle.
            _ => {
                let width = [1, 2, 4, 8][draws.below(4)].min(data.len() - at);
                let number: u64 =
                    [0, 1, 0x7f, 0x7fff, 0x7fff_ffff, u64::MAX, u64::MAX >> 1, 1 << 31][draws.below(8)];
                data[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
        }
    }
}

/// The instructions of a pickle, as far as it is sound.
fn instructions(pickle: &[u8]) -> Vec<Vec<u8>> {
    let mut instructions = Vec::new();
    let mut rest = pickle;
    while let Some(code) = rest.first() {
        let number = |bytes: usize| {
            let bytes = rest.get(1..1 + bytes).unwrap_or_default();
            bytes.iter().rev().fold(0_usize, |number, byte| number << 8 | *byte as usize)
        };
        let line =
            |rest: &[u8]| rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
        let length = match code {
            b'K' | b'q' | b'h' | 0x80 => 2,
            b'M' => 3,
            b'J' | b'r' | b'j' => 5,
            b'G' | 0x95 => 9,
            0x8a | 0x8c | b'C' => 2 + number(1),
            0x8b | b'X' | b'B' => 5 + number(4),
            0x8d | 0x8e | 0x96 => 9 + number(8),
            b'c' => {
                let module = 1 + line(&rest[1..]);
                module + line(&rest[module..])
            }
            _ => 1,
        };
        let (instruction, after) = rest.split_at(length.min(rest.len()));
        instructions.push(instruction.to_vec());
        rest = after;
    }
    instructions
}

/// Changes instructions, their order and their number. The others stay sound.
fn program_of(draws: &mut Draws, pickle: &[u8], other: &[u8]) -> Vec<u8> {
    let (mut all, other) = (instructions(pickle), instructions(other));
    for _ in 0..1 + draws.below(4) {
        if all.is_empty() {
            break;
        }
        let at = draws.below(all.len());
        match draws.below(7) {
            0 => drop(all.remove(at)),
            1 => {
                let again = all[draws.range(all.len(), 30)].to_vec();
                all.splice(at..at, again);
            }
            2 => {
                let with = draws.below(all.len());
                all.swap(at, with);
            }
            3 if !other.is_empty() => all[at] = other[draws.below(other.len())].clone(),
            4 => all[at][0] = draws.below(256) as u8,
            5 => {
                let numbers = [0, 1, 2, -1, 127, 1 << 20, 1 << 40, i64::MAX, i64::MIN];
                all[at] = integer(numbers[draws.below(numbers.len())]);
            }
            _ => {
                let piece = all[at].len();
                let place = draws.below(piece);
                all[at][place] = draws.below(256) as u8;
            }
        }
    }
    all.concat()
}

/// The file of a case.
fn damaged(case: u32, sound: &[Sound]) -> Vec<u8> {
    let mut draws = Draws { case, count: 0 };
    let file = &sound[draws.below(sound.len())];
    let other = &sound[draws.below(sound.len())];
    let storages: Vec<(&str, &[u8])> =
        file.storages.iter().map(|(key, data)| (&key[..], &data[..])).collect();
    match draws.below(5) {
        0 | 1 => {
            let mut damaged = file.bytes.clone();
            bytes(&mut draws, &mut damaged);
            damaged
        }
        2 => {
            let mut pickle = file.pickle.clone();
            bytes(&mut draws, &mut pickle);
            archive(&pickle, &storages)
        }
        _ => archive(&program_of(&mut draws, &file.pickle, &other.pickle), &storages),
    }
}

fn kind(result: &Result<Tensors, PthError>) -> &'static str {
    match result {
        Ok(_) => "read",
        Err(PthError::Io(_)) => "disk",
        Err(PthError::Legacy) => "legacy",
        Err(PthError::TorchScript) => "script",
        Err(PthError::Archive(_)) => "archive",
        Err(PthError::Global { .. }) => "name",
        Err(PthError::Instruction { .. }) => "instruction",
        Err(PthError::Pickle { .. }) => "pickle",
        Err(PthError::TooLarge(_)) => "too large",
        Err(PthError::Tensor { .. }) => "tensor",
        Err(PthError::NoTensors) => "no tensors",
    }
}

fn cases() -> Range<u32> {
    match std::env::var("EFFNET_PTH_DAMAGED") {
        Ok(text) => match text.split_once("..") {
            Some((start, end)) => start.parse().unwrap()..end.parse().unwrap(),
            None => 0..text.parse().unwrap(),
        },
        Err(_) => 0..CASES,
    }
}

#[test]
fn damaged_files_end_soon_with_a_line_or_with_tensors() {
    let sound = sound();
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut longest, mut most) = ((Duration::ZERO, 0), (0, 0));
    let cases = cases();
    for case in cases.clone() {
        let file = damaged(case, &sound);
        let begin = Instant::now();
        let (result, memory) = memory_of(|| catch_unwind(AssertUnwindSafe(|| read(&file))));
        let result = result.unwrap_or_else(|_| panic!("case {case} panicked"));
        longest = longest.max((begin.elapsed(), case));
        most = most.max((memory, case));
        assert!(memory < MEMORY, "case {case} takes {memory} bytes");
        if let Err(error) = &result {
            let message = error.to_string();
            assert!(!message.chars().any(char::is_control) && message.len() < 800, "case {case}: {message}");
        }
        *kinds.entry(kind(&result)).or_default() += 1;
    }
    println!("{} files: {kinds:?}", cases.len());
    println!("longest {longest:?}, most memory {most:?}");
    // A file of so few bytes takes microseconds; the rest is for a machine that does other work.
    assert!(longest.0 < Duration::from_secs(5), "case {} took {:?}", longest.1, longest.0);
    if cases == (0..CASES) {
        // Damage reaches every part.
        for kind in ["read", "archive", "name", "instruction", "pickle", "tensor", "no tensors"] {
            assert!(kinds.contains_key(kind), "no case ends with {kind}: {kinds:?}");
        }
        assert_eq!(kinds.get("disk"), None);
    }
}
