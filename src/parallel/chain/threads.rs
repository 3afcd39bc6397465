//! The two directions of a [`Chain`](super::Chain), each on its own thread.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{ChainError, Span, Sum, Ticket};
use crate::parallel::World;

/// Bytes per message: few enough to keep all ranks busy, enough to make the cost of a system call negligible.
pub const CHUNK: usize = 128 << 10;

/// Work as the threads receive it.
#[derive(Clone, Copy)]
pub struct Work {
    pub start: *mut u8,
    pub bytes: usize,
    pub sum: Sum,
    pub submitted: Instant,
}

// SAFETY: until the work is done, nothing but the threads accesses the memory, as `submit` requires.
unsafe impl Send for Work {}

impl Work {
    /// Start and length of every chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let bytes = self.bytes;
        (0..bytes).step_by(CHUNK).map(move |at| (at, CHUNK.min(bytes - at)))
    }

    /// # Safety
    /// No other thread accesses these bytes during `'a`.
    unsafe fn part<'a>(&self, at: usize, count: usize) -> &'a mut [u8] {
        assert!(at + count <= self.bytes);
        // SAFETY: in bounds by the assertion; exclusive as the caller guarantees.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}

/// How far one of the two directions has come.
#[derive(Clone, Copy, Default)]
pub struct Direction {
    /// Finished work.
    pub done: u64,
    /// Whether its thread has ended.
    pub ended: bool,
}

#[derive(Default)]
pub struct Progress {
    pub submitted: u64,
    /// Work whose totals have arrived.
    pub done: u64,
    pub up: Direction,
    pub down: Direction,
    pub failed: Option<ChainError>,
    /// When the upward thread started the work that is not done yet.
    started: VecDeque<Instant>,
    /// Filled while [`Chain::trace`](super::Chain::trace) is on.
    pub spans: Option<Vec<Span>>,
}

/// What the chain and its threads share.
pub struct Shared {
    world: World,
    progress: Mutex<Progress>,
    pub moved: Condvar,
    /// Bytes, over all work, that the upward thread does not need any more. The downward thread writes only to these.
    passed: AtomicU64,
    pub below: Option<TcpStream>,
    pub above: Option<TcpStream>,
}

impl Shared {
    pub fn new(world: World, below: Option<TcpStream>, above: Option<TcpStream>) -> Shared {
        Shared {
            world,
            progress: Mutex::default(),
            moved: Condvar::new(),
            passed: AtomicU64::new(0),
            below,
            above,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, rank: usize, error: io::Error) {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
            _ => error.to_string(),
        };
        self.lock().failed.get_or_insert(ChainError { rank, error });
        self.close();
        self.moved.notify_all();
    }

    pub fn close(&self) {
        for link in [&self.below, &self.above].into_iter().flatten() {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    pub fn end(&self, direction: fn(&mut Progress) -> &mut Direction) {
        direction(&mut self.lock()).ended = true;
        self.moved.notify_all();
    }

    fn begin(&self) {
        self.lock().started.push_back(Instant::now());
    }

    fn done(&self, work: &Work) {
        let mut progress = self.lock();
        progress.done += 1;
        let ticket = Ticket(progress.done);
        let ended = Instant::now();
        let started = progress.started.pop_front().unwrap_or(ended);
        if let Some(spans) = &mut progress.spans {
            spans.push(Span { ticket, bytes: work.bytes, submitted: work.submitted, started, ended });
        }
        drop(progress);
        self.moved.notify_all();
    }
}

/// Passes partial sums from the rank below to the rank above. At the last rank they are the totals, which go back down.
pub fn up(shared: &Shared, work: Receiver<Work>) {
    let World { rank, size, .. } = shared.world;
    // 64-bit words, so that every kind of number is aligned.
    let mut words = vec![0u64; CHUNK / 8];
    while let Ok(work) = work.recv() {
        shared.begin();
        for (at, count) in work.chunks() {
            // SAFETY: the downward thread waits for `passed` before it accesses these bytes.
            let own = unsafe { work.part(at, count) };
            let sum: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut words)[..count];
            match &shared.below {
                Some(below) => {
                    if let Err(error) = receive(below, sum) {
                        return shared.fail(rank - 1, error);
                    }
                    work.sum.add(sum, own);
                }
                None => sum.copy_from_slice(own),
            }
            let next = match &shared.above {
                Some(above) => send(above, sum).map_err(|error| (rank + 1, error)),
                None => {
                    work.sum.finish(sum, size);
                    own.copy_from_slice(sum);
                    shared.below.as_ref().map_or(Ok(()), |below| send(below, sum)).map_err(|e| (rank - 1, e))
                }
            };
            if let Err((rank, error)) = next {
                return shared.fail(rank, error);
            }
            shared.passed.fetch_add(count as u64, Ordering::Release);
        }
        shared.lock().up.done += 1;
        if shared.above.is_none() {
            shared.done(&work);
        }
    }
}

/// Passes totals from the rank above to the rank below.
pub fn down(shared: &Shared, work: Receiver<Work>) {
    let World { rank, .. } = shared.world;
    let above = shared.above.as_ref().expect("only a rank with a rank above runs this");
    let mut received = 0;
    let mut words = vec![0u64; CHUNK / 8];
    while let Ok(work) = work.recv() {
        for (at, count) in work.chunks() {
            let total: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut words)[..count];
            if let Err(error) = receive(above, total) {
                return shared.fail(rank + 1, error);
            }
            received += count as u64;
            // The total contains what the upward thread has sent, so `passed` already counts it or is about to.
            while shared.passed.load(Ordering::Acquire) < received {
                // With fewer cores than threads, the other thread must get a core.
                std::thread::yield_now();
            }
            // SAFETY: `passed` says that the upward thread does not need these bytes any more.
            unsafe { work.part(at, count) }.copy_from_slice(total);
            if let Some(below) = &shared.below
                && let Err(error) = send(below, total)
            {
                return shared.fail(rank - 1, error);
            }
        }
        shared.lock().down.done += 1;
        shared.done(&work);
    }
}

fn receive(mut link: &TcpStream, bytes: &mut [u8]) -> io::Result<()> {
    link.read_exact(bytes)
}

fn send(mut link: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    link.write_all(bytes)
}
