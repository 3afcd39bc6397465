//! Waiting for the card: by asking again and again, so that a card that hangs is noticed.
//!
//! The driver's own waits return only when the work has ended, which for a kernel that hangs is never. Between two
//! questions the thread sleeps, so that the loader's threads can use its core. Steps are enqueued ahead of the card, so
//! the sleep costs it no time.

use std::time::{Duration, Instant};

use super::Result;

/// Time between two questions.
pub const PATIENCE: Duration = Duration::from_micros(50);
/// After this time a line says that the card has not answered.
const LONG: Duration = Duration::from_secs(30);

/// Waits until `ended` says so. The process goes on waiting after the line: the work may be long.
pub fn wait(ended: impl FnMut() -> Result<bool>) -> Result {
    wait_and_tell(LONG, notice, ended)
}

fn wait_and_tell(
    long: Duration,
    mut tell: impl FnMut(&str),
    mut ended: impl FnMut() -> Result<bool>,
) -> Result {
    let began = Instant::now();
    let mut told = false;
    while !ended()? {
        if !told && began.elapsed() >= long {
            told = true;
            tell(&format!(
                "the GPU has not answered for {} s; if that goes on, a kernel hangs: EFFNET_CUDA_SYNC=1 makes the next \
                 run name it, and nvidia-smi shows what else uses the card",
                long.as_secs()
            ));
        }
        std::thread::sleep(PATIENCE);
    }
    Ok(())
}

/// Says a line on the error stream. Nobody above can, because the thread that would waits here.
pub fn notice(line: &str) {
    eprintln!("effnet: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_that_is_long_is_told_once_and_goes_on() {
        let mut said = Vec::new();
        let mut left = 5;
        let mut ended = || {
            left -= 1;
            Ok(left == 0)
        };
        wait_and_tell(Duration::ZERO, |line| said.push(line.to_string()), &mut ended).unwrap();
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("EFFNET_CUDA_SYNC=1") && !said[0].contains('\n'), "{}", said[0]);
        assert_eq!(left, 0);
    }

    #[test]
    fn wait_that_is_short_says_nothing_and_an_error_ends_it() {
        let tell = |line: &str| panic!("{line}");
        assert_eq!(wait_and_tell(LONG, tell, || Ok(true)), Ok(()));
        let error = super::super::DriverError::NoDevice;
        assert_eq!(wait_and_tell(LONG, tell, || Err(error.clone())), Err(error.clone()));
    }
}
