//! `--data` that names images which are not packed: they are packed once, beside the run or in --pack-dir, and found again.

use std::path::{Path, PathBuf};

use super::Job;
use crate::cli::pack_bar::PackBar;
use crate::data::DataError;
use crate::data::dataset::PARTIAL;
use crate::data::pack::{PackOptions, find_packed, pack_once};
use crate::names::{plural, quoted, shown_path};
use crate::parallel::Ranks;
use crate::train::events::Reporter;

/// Beside the run's directory.
const STORE: &str = "packed";

impl Job {
    /// The directory of the packed set for images at `source`, and reports in one line what was done.
    ///
    /// # Errors
    /// Those of packing. One of several ranks does not pack, because all would at once.
    pub(super) fn packed(&self, source: &Path, report: &mut dyn Reporter) -> Result<PathBuf, DataError> {
        let beside = || self.options.out.parent().unwrap_or(Path::new("")).join(STORE);
        let store = self.options.pack_dir.clone().unwrap_or_else(beside);
        let options = PackOptions::default();
        if let Ranks::Given(_) = self.options.ranks {
            return find_packed(source, &store, &options)?.ok_or_else(|| {
                let (from, to) = (quoted(source), quoted(&store.join("data")));
                DataError::Invalid(format!(
                    "{}: not packed yet, and every rank would pack it; first run: effnet-pack {from} {to}, then train with \
                     --data {to}",
                    shown_path(source)
                ))
            });
        }
        let bar = PackBar::new();
        let (dir, summary) = pack_once(source, &store, &options, &mut |progress| bar.show(progress))?;
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
                summary.notices.iter().for_each(|notice| report.notice(notice));
                format!("{from} ({}) is packed to {to}: {images} images{left_out}", summary.source)
            }
        };
        report.notice(&line);
        Ok(dir)
    }
}

/// Whether images lie there that are not packed: any file, or a folder that is neither empty nor a set that was not
/// finished.
pub(super) fn is_source(path: &Path) -> bool {
    let holds_something = || path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    path.is_file() || (holds_something() && !path.join(PARTIAL).exists())
}
