//! Signals: Ctrl-C and SIGTERM end a run, and a file-size limit is an error of the write that exceeds it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

#[cfg(unix)]
use signal_hook::consts::SIGXFSZ;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::parallel::launch::ECHO;

/// The exit status of a program that was ended by a signal.
const INTERRUPTED: i32 = 130;

/// From now on the first signal sets `stop`. A signal later than [`ECHO`] after it ends the program; an earlier one is
/// the same request, sent twice.
///
/// # Errors
/// If the system refuses the handlers or a thread.
pub fn watch(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let stop = stop.clone();
    let wait = move || {
        let mut first = None;
        for _ in signals.forever() {
            let first = *first.get_or_insert_with(Instant::now);
            stop.store(true, Ordering::Relaxed);
            if first.elapsed() > ECHO {
                low_level::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// Without a handler for its signal, a file-size limit would kill the program. With one, the write that exceeds the
/// limit fails and is reported like a full disk.
pub fn survive_file_size_limits() {
    #[cfg(unix)]
    let _ = flag::register(SIGXFSZ, Arc::default());
}
