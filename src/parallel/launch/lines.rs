//! What ranks say, on the launcher's standard error.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::sync::{Mutex, PoisonError};

/// A longer line is broken: what a rank says without an end must not fill the memory.
const LONGEST: u64 = 1 << 16;
/// To the line's start, and away with what stands there: a piece of rank 0's progress display.
const CLEAR: &str = "\r\x1b[K";
const ERROR: &str = "error: ";

/// Where lines go, one whole line at a time.
pub struct Lines {
    clear: &'static str,
    inner: Mutex<Inner>,
}

struct Inner {
    out: Box<dyn Write + Send>,
    /// Errors that were told: all ranks meet the same ones.
    errors: HashSet<String>,
}

impl Lines {
    pub fn to_stderr() -> Lines {
        Lines::new(Box::new(io::stderr()), io::stderr().is_terminal())
    }

    fn new(out: Box<dyn Write + Send>, terminal: bool) -> Lines {
        let inner = Mutex::new(Inner { out, errors: HashSet::new() });
        Lines { clear: if terminal { CLEAR } else { "" }, inner }
    }

    /// Reads to the end, whatever comes; a reader of ours that has gone does not stop the rank.
    pub fn forward(&self, from: impl Read, rank: usize) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => self.tell(rank, String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n'])),
            }
        }
    }

    fn tell(&self, rank: usize, text: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !text.starts_with(ERROR) || inner.errors.insert(text.to_owned()) {
            // In one piece, so that rank 0 writes before or after it. Nobody can be told that this fails.
            let _ = inner.out.write_all(format!("{}rank {rank}: {text}\n", self.clear).as_bytes());
        }
    }

    /// A line of the launcher's own.
    pub fn say(&self, text: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = inner.out.write_all(format!("{}{text}\n", self.clear).as_bytes());
    }

    /// Whether a rank told an error by way of the launcher.
    pub fn told_an_error(&self) -> bool {
        !self.inner.lock().unwrap_or_else(PoisonError::into_inner).errors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn seen(terminal: bool, said: &[(usize, &[u8])]) -> (String, bool) {
        let screen = Screen::default();
        let lines = Lines::new(Box::new(screen.clone()), terminal);
        said.iter().for_each(|&(rank, text)| lines.forward(text, rank));
        let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
        (text, lines.told_an_error())
    }

    #[test]
    fn lines_come_under_the_name_of_their_rank() {
        assert_eq!(seen(false, &[(3, b"a\r\n\nb")]).0, "rank 3: a\nrank 3: \nrank 3: b\n");
        assert_eq!(seen(true, &[(12, b"a\n")]).0, "\r\x1b[Krank 12: a\n");
        assert_eq!(seen(false, &[(1, b"caf\xff\n")]).0, "rank 1: caf\u{fffd}\n");
        let long = vec![b'x'; LONGEST as usize + 1];
        assert_eq!(seen(false, &[(1, &long)]).0.lines().count(), 2);
    }

    #[test]
    fn an_error_that_all_ranks_meet_is_told_once() {
        let (text, told) = seen(false, &[(1, b"error: x\nx\n"), (2, b"error: x\nx\n"), (3, b"error: y\n")]);
        assert_eq!(text, "rank 1: error: x\nrank 1: x\nrank 2: x\nrank 3: error: y\n");
        assert!(told && !seen(false, &[(1, b"no error: x\n")]).1);
    }
}
