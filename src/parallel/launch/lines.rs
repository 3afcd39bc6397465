//! The output of the ranks, on the launcher's standard error.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A longer line is split, so that a rank that never ends its line does not fill the memory.
const LONGEST: u64 = 1 << 16;
/// Goes to the start of the line and clears it: a part of rank 0's progress display may be there.
const CLEAR: &str = "\r\x1b[K";
const ERROR: &str = "error: ";

/// Prints whole lines, one at a time.
pub struct Lines {
    clear: &'static str,
    inner: Mutex<Inner>,
}

struct Inner {
    out: Box<dyn Write + Send>,
    /// Errors that were printed: all ranks may report the same one.
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints everything that a rank writes. It reads to the end even if printing fails, so that the rank continues.
    pub fn forward(&self, from: impl Read, rank: usize) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    self.print_of(rank, String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
                }
            }
        }
    }

    fn print_of(&self, rank: usize, text: &str) {
        if !text.starts_with(ERROR) || self.lock().errors.insert(text.to_owned()) {
            self.print(&format!("rank {rank}: {text}"));
        }
    }

    /// Prints a line in one piece, so that lines of rank 0 do not mix with it.
    pub fn print(&self, line: &str) {
        // A failure to print cannot be reported.
        let _ = self.lock().out.write_all(format!("{}{line}\n", self.clear).as_bytes());
    }

    /// Whether an error of a rank was printed.
    pub fn has_error(&self) -> bool {
        !self.lock().errors.is_empty()
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

    /// What is printed of these outputs of ranks, and whether it has an error.
    fn printed(terminal: bool, outputs: &[(usize, &[u8])]) -> (String, bool) {
        let screen = Screen::default();
        let lines = Lines::new(Box::new(screen.clone()), terminal);
        outputs.iter().for_each(|&(rank, text)| lines.forward(text, rank));
        let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
        (text, lines.has_error())
    }

    #[test]
    fn lines_have_the_number_of_their_rank() {
        assert_eq!(printed(false, &[(3, b"a\r\n\nb")]).0, "rank 3: a\nrank 3: \nrank 3: b\n");
        assert_eq!(printed(true, &[(12, b"a\n")]).0, "\r\x1b[Krank 12: a\n");
        assert_eq!(printed(false, &[(1, b"caf\xff\n")]).0, "rank 1: caf\u{fffd}\n");
        let long = vec![b'x'; LONGEST as usize + 1];
        assert_eq!(printed(false, &[(1, &long)]).0.lines().count(), 2);
    }

    #[test]
    fn error_of_several_ranks_is_printed_once() {
        let outputs: [(usize, &[u8]); 3] = [(1, b"error: x\nx\n"), (2, b"error: x\nx\n"), (3, b"error: y\n")];
        let (text, has_error) = printed(false, &outputs);
        assert_eq!(text, "rank 1: error: x\nrank 1: x\nrank 2: x\nrank 3: error: y\n");
        assert!(has_error && !printed(false, &[(1, b"no error: x\n")]).1);
    }
}
