//! `--data` that names images which are not packed: they are packed once, beside the run or in --pack-dir, and found again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::pack_bar::PackBar;
use super::signals;
use crate::data::DataError;
use crate::data::dataset::PARTIAL;
use crate::data::pack::{Outline, PackOptions, find_packed, outline, pack_once};
use crate::names::{plural, quoted, shown_path};

/// Beside the run's directory.
const STORE: &str = "packed";

/// Where the images of the run in `out` are packed, unless another place is given.
pub fn store(out: &Path, given: Option<&Path>) -> PathBuf {
    let beside = || match out.parent() {
        // The current directory, which has no name here, as in `checkpoint.bin` or `./checkpoint.bin`.
        None => Path::new("..").join(STORE),
        Some(parent) if parent == Path::new("") && out == Path::new(".") => Path::new("..").join(STORE),
        Some(parent) => parent.join(STORE),
    };
    given.map_or_else(beside, Path::to_owned)
}

/// The directory in `store` of the packed set for images at `source`, and says in one line what was done. With `stop` set, a
/// pack ends soon.
///
/// # Errors
/// Those of packing.
pub fn packed(
    source: &Path,
    store: &Path,
    stop: &Arc<AtomicBool>,
    say: &mut dyn FnMut(&str),
) -> Result<PathBuf, DataError> {
    let options = PackOptions { stop: stop.clone(), ..PackOptions::default() };
    let bar = PackBar::new();
    let (dir, summary) =
        signals::while_packing(|| pack_once(source, store, &options, &mut |progress| bar.show(progress)))?;
    drop(bar);
    let (from, to) = (shown_path(source), shown_path(&dir));
    let line = match summary {
        None => format!("{from} is packed already: {to}"),
        Some(summary) => {
            let images = summary.train.images + summary.val.images + summary.test.images;
            let left_out = match summary.skipped.len() as u64 {
                0 => String::new(),
                count => format!("; {count} file{} left out, see skipped.jsonl there", plural(count)),
            };
            let anew = match summary.converted.encoded_anew {
                0 => String::new(),
                count => format!(
                    "; {count} JPEG file{} encoded anew at quality {} (turned, CMYK or of a rare kind)",
                    plural(count),
                    options.quality
                ),
            };
            summary.notices.iter().for_each(|notice| say(notice));
            format!("{from} ({}) is packed to {to}: {images} images{left_out}{anew}", summary.source)
        }
    };
    say(&line);
    Ok(dir)
}

/// The directory in `store` of the packed set for images at `source`, which must lie there: one of several ranks does not
/// pack, because all would at once.
///
/// # Errors
/// If they are not packed, with the command that packs them.
pub fn packed_before(source: &Path, store: &Path) -> Result<PathBuf, DataError> {
    find(source, store)?.ok_or_else(|| {
        let (from, to) = (quoted(source), quoted(&store.join("data")));
        DataError::Invalid(format!(
            "{}: not packed yet, and every rank would pack it; first run: effnet-pack {from} {to}, then train with \
             --data {to}",
            shown_path(source)
        ))
    })
}

/// The same, or none.
///
/// # Errors
/// A source that cannot be used.
pub fn find(source: &Path, store: &Path) -> Result<Option<PathBuf>, DataError> {
    find_packed(source, store, &PackOptions::default())
}

/// What a source would be packed to.
///
/// # Errors
/// A source that cannot be used.
pub fn listed(source: &Path, store: &Path) -> Result<Outline, DataError> {
    outline(source, store, &PackOptions::default())
}

/// Whether images lie there that are not packed: any file, or a folder that is neither empty nor a set that was not
/// finished.
pub fn is_source(path: &Path) -> bool {
    let holds_something = || path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    path.is_file() || (holds_something() && !path.join(PARTIAL).exists())
}
