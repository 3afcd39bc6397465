//! Sums over ranks without a GPU: a pipelined chain of TCP connections in rank order.
//!
//! Rank r is joined to r−1 and r+1. Partial sums travel *up*: rank 0 sends its values, every other rank adds its own
//! to what comes and passes the result on, so that the last rank has ((r0 + r1) + r2) + …, the very sum that one rank
//! gets by accumulating as many micro-batches, bit by bit. (A ring that starts elsewhere for every piece would be
//! spared the way back, and would add in another order for every piece.) Totals travel *down*, each rank keeping a
//! copy. Both ways run at once, in chunks, each on a thread of its own, beside whatever the caller computes: work is
//! [submitted](Chain::submit) and waited for later.
//!
//! Every rank must submit the same work in the same order.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::World;

/// Bytes that travel in one piece: small enough to keep all ranks at work, large enough that calls cost nothing.
const CHUNK: usize = 128 << 10;
/// What a connection of the chain begins with, before the token.
const MAGIC: [u8; 8] = *b"EFFNETCH";
/// How long a neighbour may take to connect: all have met already.
const PATIENCE: Duration = Duration::from_secs(30);

/// Numbers that are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    F32,
    /// The sum is divided by the number of ranks.
    MeanF32,
    F64,
    U64,
}

impl Sum {
    fn bytes(self) -> usize {
        match self {
            Sum::F32 | Sum::MeanF32 => 4,
            Sum::F64 | Sum::U64 => 8,
        }
    }

    /// `sum` becomes `sum + own`, element by element.
    fn add(self, sum: &mut [u8], own: &[u8]) {
        fn each<T: bytemuck::Pod>(sum: &mut [u8], own: &[u8], add: impl Fn(T, T) -> T) {
            let (sum, own): (&mut [T], &[T]) = (bytemuck::cast_slice_mut(sum), bytemuck::cast_slice(own));
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum = add(*sum, *own));
        }
        match self {
            Sum::F32 | Sum::MeanF32 => each::<f32>(sum, own, |a, b| a + b),
            Sum::F64 => each::<f64>(sum, own, |a, b| a + b),
            Sum::U64 => each::<u64>(sum, own, u64::wrapping_add),
        }
    }

    /// What is left to do with a total.
    fn finish(self, total: &mut [u8], ranks: usize) {
        if self == Sum::MeanF32 {
            let ranks = ranks as f32;
            bytemuck::cast_slice_mut::<u8, f32>(total).iter_mut().for_each(|value| *value /= ranks);
        }
    }
}

/// The chain broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the exchange with rank {rank} broke off: {error}")]
pub struct ChainError {
    pub rank: usize,
    /// The system's words.
    pub error: String,
}

/// A piece of submitted work, to be waited for. Work is done in order: with a later piece the earlier ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// When a piece of work was submitted, when its first byte moved, and when its total was there.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub bytes: usize,
    pub submitted: Instant,
    pub started: Instant,
    pub ended: Instant,
}

/// Work on its way through the threads.
#[derive(Clone, Copy)]
struct Work {
    start: *mut u8,
    bytes: usize,
    sum: Sum,
    submitted: Instant,
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
struct Way {
    done: u64,
    /// Whether its thread has given up.
    ended: bool,
}

#[derive(Default)]
struct Progress {
    submitted: u64,
    /// Work whose totals are there.
    done: u64,
    up: Way,
    down: Way,
    failed: Option<ChainError>,
    /// When the way up has begun work whose totals are not there yet.
    started: VecDeque<Instant>,
    /// Filled while [`Chain::trace`] is on.
    spans: Option<Vec<Span>>,
}

struct Shared {
    world: World,
    progress: Mutex<Progress>,
    moved: Condvar,
    /// Bytes that the way up has done with, over all work: the way down writes only there.
    passed: AtomicU64,
    below: Option<TcpStream>,
    above: Option<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
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

    fn close(&self) {
        for link in [&self.below, &self.above].into_iter().flatten() {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    fn end(&self, way: fn(&mut Progress) -> &mut Way) {
        way(&mut self.lock()).ended = true;
        self.moved.notify_all();
    }

    fn begin(&self) {
        self.lock().started.push_back(Instant::now());
    }

    fn done(&self, work: &Work) {
        let mut progress = self.lock();
        progress.done += 1;
        let ended = Instant::now();
        let started = progress.started.pop_front().unwrap_or(ended);
        if let Some(spans) = &mut progress.spans {
            let (bytes, submitted) = (work.bytes, work.submitted);
            spans.push(Span { bytes, submitted, started, ended });
        }
        drop(progress);
        self.moved.notify_all();
    }
}

/// See the module.
pub struct Chain {
    shared: Arc<Shared>,
    up: Option<Sender<Work>>,
    down: Option<Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Chain {
    /// Joins this rank to its neighbours. `host` is where others reach this machine; `gather` hands out every rank's
    /// bytes to all, in rank order.
    ///
    /// # Errors
    /// The system's, or `gather`'s.
    pub fn connect<E: From<io::Error>>(
        world: World,
        host: &str,
        gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<Chain, E> {
        let listener = listen(host)?;
        let port = listener.local_addr()?.port();
        // Whoever knows the number of rank 0's place is one of us.
        let token = token();
        let place = format!("{token:016x} {host} {port}");
        let places = gather(place.as_bytes())?;
        let places = parse(&places, world.size)?;
        let token = places[0].0;
        // Connecting needs no answer, so all may connect before anybody accepts.
        let above = match places.get(world.rank + 1) {
            Some((_, host, port)) => Some(call(host, *port, token)?),
            None => None,
        };
        let below = if world.rank > 0 { Some(answer(&listener, token)?) } else { None };
        Ok(Chain::start(world, below, above)?)
    }

    fn start(world: World, below: Option<TcpStream>, above: Option<TcpStream>) -> io::Result<Chain> {
        let shared = Arc::new(Shared {
            world,
            progress: Mutex::default(),
            moved: Condvar::new(),
            passed: AtomicU64::new(0),
            below,
            above,
        });
        let mut chain = Chain { shared: shared.clone(), up: None, down: None, threads: Vec::new() };
        let mut spawn = |name: &str, run: fn(&Shared, Receiver<Work>)| {
            let (sender, receiver) = mpsc::channel();
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.into());
            chain.threads.push(thread.spawn(move || run(&shared, receiver))?);
            io::Result::Ok(sender)
        };
        let up = spawn("chain-up", |shared, work| {
            way_up(shared, work);
            shared.end(|progress| &mut progress.up);
        })?;
        // The last rank's totals are made on the way up.
        let down = match shared.above {
            Some(_) => Some(spawn("chain-down", |shared, work| {
                way_down(shared, work);
                shared.end(|progress| &mut progress.down);
            })?),
            None => None,
        };
        (chain.up, chain.down) = (Some(up), down);
        Ok(chain)
    }

    /// Hands over numbers to be replaced by their sum over the ranks.
    ///
    /// # Safety
    /// `start` points to `elements` numbers of the kind that `sum` says, aligned, which stay where they are and which
    /// nobody else touches until the work was [waited for](Chain::wait) or the chain is dropped.
    pub unsafe fn submit(&self, start: *mut u8, elements: usize, sum: Sum) -> Ticket {
        let work = Work { start, bytes: elements * sum.bytes(), sum, submitted: Instant::now() };
        let mut progress = self.shared.lock();
        progress.submitted += 1;
        let ticket = Ticket(progress.submitted);
        // The threads end only after a failure, which waiting tells of.
        for way in [&self.up, &self.down].into_iter().flatten() {
            let _ = way.send(work);
        }
        ticket
    }

    /// Waits until this work, and all before it, is done.
    ///
    /// # Errors
    /// Where the chain broke off; the numbers are then neither the old nor the new ones.
    pub fn wait(&self, ticket: Ticket) -> Result<(), ChainError> {
        let mut progress = self.shared.lock();
        while progress.done < ticket.0 {
            if let Some(error) = &progress.failed {
                return Err(error.clone());
            }
            progress = self.shared.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Sums at once: [`Chain::submit`] and [`Chain::wait`].
    ///
    /// # Errors
    /// As for [`Chain::wait`].
    pub fn sum<T: bytemuck::Pod>(&self, values: &mut [T], sum: Sum) -> Result<(), ChainError> {
        assert_eq!(size_of::<T>(), sum.bytes(), "{sum:?}");
        // SAFETY: the slice is borrowed until the wait ends; when that fails the threads have given up the work.
        let ticket = unsafe { self.submit(values.as_mut_ptr().cast(), values.len(), sum) };
        let done = self.wait(ticket);
        if done.is_err() {
            self.settle(ticket);
        }
        done
    }

    /// Closes the connections: work under way and to come fails, here and with the neighbours.
    pub fn close(&self) {
        self.shared.close();
    }

    /// What closes the connections from elsewhere.
    pub fn closer(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.close();
            }
        }
    }

    /// Begins to note when work moves, or ends that and gives what was noted.
    pub fn trace(&self, on: bool) -> Vec<Span> {
        let next = on.then(Vec::new);
        std::mem::replace(&mut self.shared.lock().spans, next).unwrap_or_default()
    }

    /// After a failure: waits until no thread touches the memory of this work and of those before any more.
    pub fn settle(&self, ticket: Ticket) {
        self.shared.close();
        let mut progress = self.shared.lock();
        let busy = |way: Way| !way.ended && way.done < ticket.0;
        while busy(progress.up) || (self.down.is_some() && busy(progress.down)) {
            progress = self.shared.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        (self.up, self.down) = (None, None);
        let unfinished = {
            let progress = self.shared.lock();
            progress.done < progress.submitted
        };
        if unfinished {
            self.shared.close();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.close();
    }
}

/// Partial sums, from the rank below to the rank above; in the last rank they are the totals, and turn back.
fn way_up(shared: &Shared, work: Receiver<Work>) {
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
fn way_down(shared: &Shared, work: Receiver<Work>) {
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
                std::hint::spin_loop();
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

/// A listener on the machine that others know as `host`: on its loopback alone where that is what they use.
fn listen(host: &str) -> io::Result<TcpListener> {
    match host {
        "127.0.0.1" | "localhost" => TcpListener::bind(("127.0.0.1", 0)),
        "::1" => TcpListener::bind(("::1", 0)),
        // Where there is no IPv6 at all, IPv4 alone.
        _ => TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))),
    }
}

/// A number that a stranger does not guess.
fn token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn parse(places: &[Vec<u8>], size: usize) -> io::Result<Vec<(u64, String, u16)>> {
    let one = |place: &Vec<u8>| {
        let text = std::str::from_utf8(place).ok()?;
        let (token, rest) = text.split_once(' ')?;
        let (host, port) = rest.rsplit_once(' ')?;
        Some((u64::from_str_radix(token, 16).ok()?, host.to_string(), port.parse().ok()?))
    };
    let all: Option<Vec<_>> = places.iter().map(one).collect();
    all.filter(|all| all.len() == size).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn call(host: &str, port: u16, token: u64) -> io::Result<TcpStream> {
    let mut link = TcpStream::connect((host, port))?;
    link.set_nodelay(true)?;
    link.write_all(&MAGIC)?;
    link.write_all(&token.to_le_bytes())?;
    Ok(link)
}

/// The neighbour's call; others are hung up on.
fn answer(listener: &TcpListener, token: u64) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let mut link = match listener.accept() {
            Ok((link, _)) => link,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => return Err(error),
        };
        link.set_nonblocking(false)?;
        link.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut hello = [0; 16];
        if link.read_exact(&mut hello).is_ok() && hello[..8] == MAGIC && hello[8..] == token.to_le_bytes() {
            link.set_read_timeout(None)?;
            link.set_nodelay(true)?;
            return Ok(link);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "a neighbour among the ranks did not call"))
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
