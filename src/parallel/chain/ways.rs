//! The two ways of a [`Chain`](super::Chain), each on a thread of its own.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{ChainError, Span, Sum, Ticket};
use crate::parallel::World;

/// Bytes that travel in one piece: small enough to keep all ranks at work, large enough that calls cost nothing.
pub const CHUNK: usize = 128 << 10;

/// Work on its way through the threads.
#[derive(Clone, Copy)]
pub struct Work {
    pub start: *mut u8,
    pub bytes: usize,
    pub sum: Sum,
    pub submitted: Instant,
}

// SAFETY: the memory is the work's own until it is done, as `submit` demands.
unsafe impl Send for Work {}

impl Work {
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let bytes = self.bytes;
        (0..bytes).step_by(CHUNK).map(move |at| (at, CHUNK.min(bytes - at)))
    }

    /// # Safety
    /// No other thread uses these bytes.
    unsafe fn part<'a>(&self, at: usize, count: usize) -> &'a mut [u8] {
        assert!(at + count <= self.bytes);
        // SAFETY: in bounds by the assertion, otherwise as promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}

/// How far one of the two ways has come.
#[derive(Clone, Copy, Default)]
pub struct Way {
    pub done: u64,
    /// Whether its thread has given up.
    pub ended: bool,
}

#[derive(Default)]
pub struct Progress {
    pub submitted: u64,
    /// Work whose totals are there.
    pub done: u64,
    pub up: Way,
    pub down: Way,
    pub failed: Option<ChainError>,
    /// When the way up has begun work whose totals are not there yet.
    started: VecDeque<Instant>,
    /// Filled while [`Chain::trace`](super::Chain::trace) is on.
    pub spans: Option<Vec<Span>>,
}

/// What a chain's handle and its threads share.
pub struct Shared {
    world: World,
    progress: Mutex<Progress>,
    pub moved: Condvar,
    /// Bytes that the way up has done with, over all work: the way down writes only there.
    passed: AtomicU64,
    pub below: Option<TcpStream>,
    pub above: Option<TcpStream>,
}

impl Shared {
    pub fn new(world: World, below: Option<TcpStream>, above: Option<TcpStream>) -> Shared {
        let (progress, moved, passed) = (Mutex::default(), Condvar::new(), AtomicU64::new(0));
        Shared { world, progress, moved, passed, below, above }
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

    pub fn end(&self, way: fn(&mut Progress) -> &mut Way) {
        way(&mut self.lock()).ended = true;
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
            let (bytes, submitted) = (work.bytes, work.submitted);
            spans.push(Span { ticket, bytes, submitted, started, ended });
        }
        drop(progress);
        self.moved.notify_all();
    }
}

/// Partial sums, from the rank below to the rank above; in the last rank they are the totals, and turn back.
pub fn up(shared: &Shared, work: Receiver<Work>) {
    let World { rank, size, .. } = shared.world;
    // Words, so that any kind of number is aligned.
    let mut words = vec![0u64; CHUNK / 8];
    while let Ok(work) = work.recv() {
        shared.begin();
        for (at, count) in work.chunks() {
            // SAFETY: the way down waits for `passed` before it touches these bytes.
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

/// Totals, from the rank above to the rank below.
pub fn down(shared: &Shared, work: Receiver<Work>) {
    let World { rank, .. } = shared.world;
    let above = shared.above.as_ref().expect("only a rank with one above has this way");
    let mut taken = 0;
    let mut words = vec![0u64; CHUNK / 8];
    while let Ok(work) = work.recv() {
        for (at, count) in work.chunks() {
            let total: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut words)[..count];
            if let Err(error) = receive(above, total) {
                return shared.fail(rank + 1, error);
            }
            taken += count as u64;
            // The total holds what the way up has sent, so that has long been counted, or is about to be.
            while shared.passed.load(Ordering::Acquire) < taken {
                // Where there are fewer cores than threads, the other one has to have its turn.
                std::thread::yield_now();
            }
            // SAFETY: the way up has done with these bytes.
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
