//! The threads that run a pass together.
//!
//! A step has some hundred passes, and each hands work to all threads once to three times, for a tenth of a millisecond or
//! less if the batch is small. So handing over must cost little: the thread that runs the passes takes part, and the others
//! wait for the next piece of work awake. They spin for a moment, then yield their core to whoever wants it, and sleep only if
//! nothing has come for longer than passes leave them idle.

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A waiting thread spins for so long, ...
const SPIN: Duration = Duration::from_micros(20);
/// ... and yields its core until so much time has passed since it began to wait.
const AWAKE: Duration = Duration::from_micros(200);

/// What all threads run, each with its own number, as they know it: it lives as long as its round.
type Work = dyn Fn(usize) + Sync;

/// Threads that wait for work. The caller of [`Workers::run`] is one more.
pub struct Workers {
    shared: Arc<Common>,
    threads: Vec<JoinHandle<()>>,
}

/// What the caller and the threads share.
struct Common {
    /// Counts the pieces of work. A new number publishes `work` and `left`.
    round: AtomicUsize,
    /// The present piece of work, or none: then the threads end.
    work: UnsafeCell<Option<&'static Work>>,
    /// Threads that have not finished it.
    left: AtomicUsize,
    /// What a thread panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Sleep: of threads until a round begins, of the caller until it ends.
    begins: Sleep,
    ends: Sleep,
    /// True while a round is in progress.
    busy: AtomicBool,
}

// SAFETY: `work` is written only while no thread runs or looks at it: before `round` changes and after `left` has come to 0.
unsafe impl Sync for Common {}

/// Where threads sleep until a condition holds.
#[derive(Default)]
struct Sleep {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Sleep {
    /// Returns when `holds` does. Whoever makes it hold calls [`Sleep::wake`] afterwards; both sides use sequentially
    /// consistent operations, so that either the sleeper sees the condition or the other sees the sleeper.
    fn until(&self, holds: impl Fn() -> bool) {
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                if holds() {
                    return;
                }
                std::hint::spin_loop();
            }
            let waited = start.elapsed();
            if waited > AWAKE {
                break;
            }
            if waited > SPIN {
                std::thread::yield_now();
            }
        }
        let mut guard = self.locked();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !holds() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper holds the lock from before it looks at the condition until it sleeps.
            drop(self.locked());
            self.wake.notify_all();
        }
    }

    fn locked(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers {
    /// Starts threads, so that with the caller there are `count`.
    ///
    /// # Errors
    /// If the system has no more threads.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn start(count: usize) -> io::Result<Workers> {
        assert!(count > 0, "the caller is a thread too");
        let shared = Arc::new(Common {
            round: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            left: AtomicUsize::new(0),
            panic: Mutex::new(None),
            begins: Sleep::default(),
            ends: Sleep::default(),
            busy: AtomicBool::new(false),
        });
        let mut workers = Workers { shared, threads: Vec::new() };
        for number in 1..count {
            let shared = workers.shared.clone();
            let name = format!("effnet-{number}");
            workers.threads.push(std::thread::Builder::new().name(name).spawn(move || shared.serve(number))?);
        }
        Ok(workers)
    }

    /// All threads, with the caller.
    pub fn count(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `work(number)` once on each thread, for numbers below [`Workers::count`], and returns when all have ended. The
    /// caller is number 0.
    ///
    /// # Panics
    /// If `work` does, or if it or another thread calls this meanwhile.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        assert!(!self.shared.busy.swap(true, Ordering::Acquire), "the threads are at work");
        // SAFETY: the threads use it only until `left` is 0, for which this call waits, even if `work` panics here.
        let lasting = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Work>(work) };
        self.begin(Some(lasting));
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        self.shared.ends.until(|| self.shared.left.load(Ordering::SeqCst) == 0);
        let other = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.busy.store(false, Ordering::Release);
        if let Some(payload) = own.err().or(other) {
            resume_unwind(payload);
        }
    }

    fn begin(&self, work: Option<&'static Work>) {
        // SAFETY: the last round has ended, see `Common`.
        unsafe { *self.shared.work.get() = work };
        self.shared.left.store(self.threads.len(), Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        self.shared.begins.wake();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.begin(None);
        for thread in self.threads.drain(..) {
            // Panics of work were caught; there is nothing else that could.
            let _ = thread.join();
        }
    }
}

impl Common {
    /// A thread's life.
    fn serve(&self, number: usize) {
        let mut done = 0;
        loop {
            self.begins.until(|| self.round.load(Ordering::SeqCst) != done);
            done += 1;
            // SAFETY: a round has begun and cannot end before this thread has finished it.
            let Some(work) = (unsafe { *self.work.get() }) else { return };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(number))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            }
            if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.ends.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every thread runs each piece of work once, whether the threads are awake or asleep when it comes.
    #[test]
    fn every_thread_runs_every_piece_of_work_once() {
        for count in 1..5 {
            let workers = Workers::start(count).unwrap();
            assert_eq!(workers.count(), count);
            for round in 0..2000 {
                let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                workers.run(&|number| {
                    runs[number].fetch_add(1, Ordering::Relaxed);
                    if (round + number) % 500 == 499 {
                        std::thread::sleep(2 * AWAKE); // the others fall asleep
                    }
                });
                assert!(
                    runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1),
                    "{count} threads, round {round}"
                );
                if round % 500 == 0 {
                    std::thread::sleep(2 * AWAKE);
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_have_ended() {
        let workers = Workers::start(3).unwrap();
        for who in 0..3 {
            let ended = AtomicUsize::new(0);
            let run = || {
                workers.run(&|number| {
                    if number == who {
                        panic!("of thread {number}");
                    }
                    std::thread::sleep(AWAKE);
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            };
            let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(*payload.downcast::<String>().unwrap(), format!("of thread {who}"));
            assert_eq!(ended.load(Ordering::Relaxed), 2);
        }
        let sum = AtomicUsize::new(0);
        workers.run(&|number| {
            sum.fetch_add(number, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3, "the threads go on");
    }

    #[test]
    fn workers_that_never_had_work_end() {
        drop(Workers::start(4).unwrap());
    }
}
