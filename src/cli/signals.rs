//! What Ctrl-C and SIGTERM ask of a run: first to save and end, then to end at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;

use crate::parallel::launch::ECHO;

/// The status of a program that a signal has ended.
const INTERRUPTED: i32 = 130;

/// From now on the first signal raises `stop`, and one that comes later than [`ECHO`] ends the program.
///
/// # Errors
/// Where the system does not take the handlers.
pub fn watch(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let began = Instant::now();
    // Milliseconds since then, at the first signal.
    let first = Arc::new(AtomicU64::new(u64::MAX));
    for signal in [SIGINT, SIGTERM] {
        let (stop, first) = (stop.clone(), first.clone());
        let act = move || {
            let now = began.elapsed().as_millis() as u64;
            let known = first.compare_exchange(u64::MAX, now, Ordering::Relaxed, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            if known.is_err_and(|first| now > first + ECHO.as_millis() as u64) {
                low_level::exit(INTERRUPTED);
            }
        };
        // SAFETY: atomics and a look at the clock are all that it does, and both are allowed in a handler.
        unsafe { low_level::register(signal, act) }?;
    }
    Ok(())
}
