//! Signals: Ctrl-C, SIGTERM and a closed terminal end a run, and a file-size limit is an error of the write that exceeds
//! it.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Instant;

#[cfg(unix)]
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level;

use crate::parallel::environment::LAUNCHED;
use crate::parallel::launch::{ECHO, end_signals};

/// The exit status of a program that was ended by a signal.
const INTERRUPTED: i32 = 130;

/// The answer to the first signal.
const STOPPING: &str =
    "stopping: this step is finished and saved first; press Ctrl-C again to end at once, unsaved";

/// The answer while images are packed.
const STOPPING_PACK: &str = "stopping: what is packed stays, and the same command goes on with it";

/// The answer while images are classified.
const STOPPING_IMAGES: &str = "stopping: the images that are under way are finished first";

/// Whether images are being packed.
static PACKING: AtomicBool = AtomicBool::new(false);

/// The first signal is answered once, by the thread that waits for signals or by [`pack_stopped`] and [`images_stopped`].
static ANSWER: Once = Once::new();

/// A pack has stopped, perhaps before the thread that waits for signals has said so.
pub fn pack_stopped() {
    ANSWER.call_once(|| say(STOPPING_PACK));
}

/// The same of images that are classified.
pub fn images_stopped() {
    ANSWER.call_once(|| say(STOPPING_IMAGES));
}

/// Does `work`, during which the answer to a signal is that of a pack.
pub fn while_packing<T>(work: impl FnOnce() -> T) -> T {
    PACKING.store(true, Ordering::Relaxed);
    let done = work();
    PACKING.store(false, Ordering::Relaxed);
    done
}

/// Signals that are being watched.
pub struct Watch(Handle);

impl Watch {
    /// Leaves the signals to others.
    pub fn end(self) {
        self.0.close();
    }
}

/// Prints a line on standard error, in one piece. On a terminal it replaces the progress bar, which is drawn again.
fn say(line: &str) {
    let clear = if io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    // Nobody may be there to read it.
    let _ = io::stderr().write_all(format!("{clear}{line}\n").as_bytes());
}

/// From now on the first signal sets `stop`, and a line says so at once: a step may take long. A signal later than
/// [`ECHO`] after it ends the program; an earlier one is the same request, sent twice.
///
/// # Errors
/// If the system refuses the handlers or a thread.
pub fn watch(stop: &Arc<AtomicBool>) -> io::Result<Watch> {
    watch_with(stop, || if PACKING.load(Ordering::Relaxed) { STOPPING_PACK } else { STOPPING })
}

/// The same while images are classified.
///
/// # Errors
/// As [`watch`].
pub fn watch_images(stop: &Arc<AtomicBool>) -> io::Result<Watch> {
    watch_with(stop, || STOPPING_IMAGES)
}

fn watch_with(stop: &Arc<AtomicBool>, answer: fn() -> &'static str) -> io::Result<Watch> {
    let mut signals = Signals::new(end_signals())?;
    let (stop, handle) = (stop.clone(), signals.handle());
    // One line for all ranks: their launcher prints it.
    let alone = env::var_os(LAUNCHED).is_none();
    let wait = move || {
        let mut first = None;
        for _ in signals.forever() {
            stop.store(true, Ordering::Relaxed);
            if alone {
                ANSWER.call_once(|| say(answer()));
            }
            let first = *first.get_or_insert_with(Instant::now);
            if first.elapsed() > ECHO {
                low_level::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(Watch(handle))
}

/// Without a handler for its signal, a file-size limit would kill the program. With one, the write that exceeds the
/// limit fails and is reported like a full disk.
pub fn survive_file_size_limits() {
    #[cfg(unix)]
    let _ = flag::register(SIGXFSZ, Arc::default());
}
