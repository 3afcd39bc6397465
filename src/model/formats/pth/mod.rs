//! PyTorch's files of weights, `.pth` and `.pt`, read without running anything of them.
//!
//! torch.save (since PyTorch 1.6) writes a zip file that is not compressed. Its entry `data.pkl` is a pickle: a program
//! for a small machine that builds Python's objects. Python's own machine can be made to call any function, so that
//! loading a file may run whatever its author wanted. The machine here (`pickle.rs`) builds dictionaries, lists and
//! descriptions of tensors only, and a name that is not on its list (`globals.rs`) ends it. The numbers lie in the
//! entries `data/0`, `data/1`, …, called storages; a tensor is a view of one (`view.rs`).
//!
//! A file may come from anywhere, so its author is taken for hostile: every size is checked before memory is allocated
//! for it. A file of n bytes takes at most 6 n bytes (its pickle, one storage, and four times its length for tensors)
//! and some hundred mebibytes for entries, objects and names, whose numbers have limits of their own. No work is
//! repeated for the same piece of a file more often than these limits say, and recursion ends at a depth of 64.

mod archive;
mod calls;
mod error;
mod globals;
mod names;
mod pickle;
mod value;
mod view;

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use self::archive::Archive;
pub use self::error::PthError;
use self::error::shown;
use self::view::{Place, View};
use super::stored::{Tensor, Tensors};

/// What a zip file begins with.
const ZIP: &[u8] = b"PK\x03\x04";
/// The number 0x1950a86a20f9469cfc6c as a pickle has it, with which files from before PyTorch 1.6 begin.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// Where [`LEGACY`] ends at most: a pickle's version and a frame may come before it.
const LEGACY_END: usize = 32;
/// Bytes of a file's tensors: so many times its length, and so many more. Tensors may share a storage, as tied weights
/// and copies of a moving average do.
const SHARED: u64 = 4;
const SMALL: u64 = 1 << 20;
/// Versions of the format that PyTorch reads.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=10;

/// Whether a file is of PyTorch, from its first bytes (32 are enough): a zip file, or the form before version 1.6.
/// [`read`] refuses the second with a line that says how to convert it.
pub fn is_pth(start: &[u8]) -> bool {
    start.starts_with(ZIP) || is_legacy(start)
}

fn is_legacy(start: &[u8]) -> bool {
    let start = &start[..start.len().min(LEGACY_END)];
    start.first() == Some(&0x80) && start.windows(LEGACY.len()).any(|window| window == LEGACY)
}

/// Reads all tensors of a file of `length` bytes.
///
/// Names are the keys of dictionaries and the indices of lists and tuples on the way to a tensor, joined by points:
/// `{'state_dict': {'conv.weight': T}, 'epoch': 3}` gives `state_dict.conv.weight`. Keys that are neither text nor
/// integers give no name, and tensors under them are left out, as are those in other objects: attributes of
/// `argparse.Namespace`, sets. Tensors of an optimiser's state are found too.
///
/// Elements come in row-major order, whatever the strides in the file. Tensors of other types than F64, F32, F16 and
/// BF16, such as `num_batches_tracked`, have [`Stored::Other`](super::stored::Stored::Other) with PyTorch's name of the
/// type (`Int64`), their shape, and **no bytes**; storages that only such tensors use are not read.
///
/// # Errors
/// [`PthError`]: a file that is damaged or of another program, and one whose pickle names anything that weights do not
/// need.
pub fn read(input: &mut (impl Read + Seek), length: u64) -> Result<Tensors, PthError> {
    let mut start = Vec::new();
    input.rewind().map_err(PthError::Io)?;
    input.by_ref().take(LEGACY_END as u64).read_to_end(&mut start).map_err(PthError::Io)?;
    if is_legacy(&start) {
        return Err(PthError::Legacy);
    }
    if !start.starts_with(ZIP) {
        return Err(PthError::Archive("it begins with other bytes".to_string()));
    }
    let mut archive = Archive::open(input)?;
    check_form(&mut archive)?;
    let bytes = archive.entry("data.pkl")?.unwrap_or_default();
    let (heap, root) = pickle::run(&bytes)?;
    let views = names::named(&heap, root)?;
    if views.is_empty() {
        return Err(PthError::NoTensors);
    }
    let total = views.values().filter_map(|view| view.place.as_ref()).map(|place| place.bytes() as u64);
    let total = total.fold(0, u64::saturating_add);
    if total > length.saturating_mul(SHARED).saturating_add(SMALL) {
        let problem = format!("its tensors have {total} bytes, far more than the file: they share storages");
        return Err(PthError::TooLarge(problem));
    }
    gather(&mut archive, views)
}

/// Checks the order of bytes and the format's version, where the file has them.
fn check_form<R: Read + Seek>(archive: &mut Archive<R>) -> Result<(), PthError> {
    let text = |bytes: Vec<u8>| shown(String::from_utf8_lossy(&bytes).trim());
    match archive.entry("byteorder")?.map(text).as_deref() {
        None | Some("little") => {}
        Some(other) => {
            let problem = format!("its order of bytes is \"{other}\", and only \"little\" is read");
            return Err(PthError::Archive(problem));
        }
    }
    match archive.entry("version")?.map(text) {
        Some(version) if !version.parse().is_ok_and(|version| VERSIONS.contains(&version)) => {
            Err(PthError::Archive(format!("its format has version \"{version}\", which is not known")))
        }
        _ => Ok(()),
    }
}

/// Reads each storage once and gathers its tensors.
fn gather<R: Read + Seek>(
    archive: &mut Archive<R>,
    views: BTreeMap<String, &View>,
) -> Result<Tensors, PthError> {
    let mut tensors = Tensors::new();
    let mut storages: BTreeMap<&str, Vec<(String, &View, &Place)>> = BTreeMap::new();
    for (name, view) in views {
        match &view.place {
            Some(place) => storages.entry(place.storage.key).or_default().push((name, view, place)),
            None => {
                let (stored, shape) = (view.stored.clone(), view.shape.clone());
                tensors.insert(name, Tensor { stored, shape, bytes: Vec::new() });
            }
        }
    }
    for (key, mut views) in storages {
        let mut bytes = None;
        while let Some((name, view, place)) = views.pop() {
            let failed = |problem: String| PthError::Tensor { tensor: shown(&name), problem };
            let bytes = match &mut bytes {
                Some(bytes) => bytes,
                // An empty storage may have no entry.
                none if place.storage.bytes == 0 => none.insert(Vec::new()),
                none => match archive.entry(&format!("data/{key}"))? {
                    Some(read) => none.insert(read),
                    None => return Err(failed(format!("its entry data/{} is missing", shown(key)))),
                },
            };
            // The last view may have taken them, but then no other is left.
            if bytes.len() as u64 != place.storage.bytes {
                let (has, needs, key) = (bytes.len(), place.storage.bytes, shown(key));
                return Err(failed(format!(
                    "its entry data/{key} has {has} bytes, and by the pickle {needs}"
                )));
            }
            let gathered = place.gather(&view.shape, bytes, views.is_empty());
            tensors.insert(
                name,
                Tensor { stored: view.stored.clone(), shape: view.shape.clone(), bytes: gathered },
            );
        }
    }
    Ok(tensors)
}
