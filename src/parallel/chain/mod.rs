//! Sums over ranks without a GPU: a pipelined chain of TCP connections in rank order.
//!
//! Rank r is connected to r−1 and r+1. Partial sums travel *up*: rank 0 sends its values, and every other rank adds its
//! own values to what it receives and passes the result on, so the last rank has ((r0 + r1) + r2) + …. That is the sum
//! that one rank gets by accumulating as many micro-batches, bit by bit. (A ring in which every piece starts at another
//! rank would need no way back, but would add every piece in another order.) Totals travel *down*, and each rank keeps a
//! copy. Both directions run at the same time, in chunks, each on its own thread, beside whatever the caller computes:
//! work is [submitted](Chain::submit) and waited for later.
//!
//! Every rank must submit the same work in the same order.

mod connect;
mod threads;

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::World;
use connect::{PATIENCE, answer, call, listen, parse, token};
use threads::{Direction, Shared, Work, down, up};

/// The kind of numbers that are summed.
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

    /// Adds `own` to `sum`, element by element.
    fn add(self, sum: &mut [u8], own: &[u8]) {
        fn each<T: bytemuck::Pod>(sum: &mut [u8], own: &[u8], add: impl Fn(T, T) -> T) {
            let sum: &mut [T] = bytemuck::cast_slice_mut(sum);
            let own: &[T] = bytemuck::cast_slice(own);
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum = add(*sum, *own));
        }
        match self {
            Sum::F32 | Sum::MeanF32 => each::<f32>(sum, own, |a, b| a + b),
            Sum::F64 => each::<f64>(sum, own, |a, b| a + b),
            Sum::U64 => each::<u64>(sum, own, u64::wrapping_add),
        }
    }

    /// The last operation on a total: the division of a mean.
    fn finish(self, total: &mut [u8], ranks: usize) {
        if self == Sum::MeanF32 {
            let ranks = ranks as f32;
            bytemuck::cast_slice_mut::<u8, f32>(total).iter_mut().for_each(|value| *value /= ranks);
        }
    }
}

/// A connection of the chain failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the exchange with rank {rank} broke off: {error}")]
pub struct ChainError {
    pub rank: usize,
    /// The system's message.
    pub error: String,
}

/// Identifies submitted work. Work is done in order: when a ticket is done, all earlier ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// When work was submitted, when its first byte moved, and when its total was ready.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub ticket: Ticket,
    pub bytes: usize,
    pub submitted: Instant,
    pub started: Instant,
    pub ended: Instant,
}

/// This rank's end of the chain; see the module's description.
pub struct Chain {
    shared: Arc<Shared>,
    up: Option<Sender<Work>>,
    down: Option<Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Chain {
    /// Connects this rank to its neighbours. Others reach this machine as `host`. `gather` exchanges bytes with all ranks
    /// and returns those of each, in rank order.
    ///
    /// # Errors
    /// The system's, or those of `gather`.
    pub fn connect<E: From<io::Error>>(
        world: World,
        host: &str,
        gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<Chain, E> {
        let listener = listen(host)?;
        let port = listener.local_addr()?.port();
        // The token of rank 0 proves that a caller is a rank of this group.
        let own = format!("{:016x} {host} {port}", token());
        let places = parse(&gather(own.as_bytes())?, world.size)?;
        let token = places[0].token;
        let failed = |rank: usize, error: io::Error| {
            io::Error::new(error.kind(), format!("rank {rank}, a neighbour of rank {}, {error}", world.rank))
        };
        // To connect needs no accept, so all ranks may connect first and accept afterwards.
        let above = match places.get(world.rank + 1) {
            Some(place) => Some(call(place, token).map_err(|error| failed(world.rank + 1, error))?),
            None => None,
        };
        let below = match world.rank {
            0 => None,
            rank => Some(answer(&listener, token, PATIENCE).map_err(|error| failed(rank - 1, error))?),
        };
        Ok(Chain::start(world, below, above)?)
    }

    fn start(world: World, below: Option<TcpStream>, above: Option<TcpStream>) -> io::Result<Chain> {
        let shared = Arc::new(Shared::new(world, below, above));
        let mut chain = Chain { shared: shared.clone(), up: None, down: None, threads: Vec::new() };
        let mut spawn = |name: &str, run: fn(&Shared, Receiver<Work>)| {
            let (sender, receiver) = mpsc::channel();
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.into());
            chain.threads.push(thread.spawn(move || run(&shared, receiver))?);
            io::Result::Ok(Some(sender))
        };
        let upwards = spawn("chain-up", |shared, work| {
            up(shared, work);
            shared.end(|progress| &mut progress.up);
        })?;
        // The last rank computes the totals, so it receives none.
        let downwards = match shared.above {
            Some(_) => spawn("chain-down", |shared, work| {
                down(shared, work);
                shared.end(|progress| &mut progress.down);
            })?,
            None => None,
        };
        chain.up = upwards;
        chain.down = downwards;
        Ok(chain)
    }

    /// Starts to replace numbers by their sum over the ranks.
    ///
    /// # Safety
    /// `start` points to `elements` numbers of the kind that `sum` names, aligned. They stay where they are, and nothing
    /// else accesses them until the work was [waited for](Chain::wait) or the chain is dropped.
    pub unsafe fn submit(&self, start: *mut u8, elements: usize, sum: Sum) -> Ticket {
        let work = Work { start, bytes: elements * sum.bytes(), sum, submitted: Instant::now() };
        let mut progress = self.shared.lock();
        progress.submitted += 1;
        let ticket = Ticket(progress.submitted);
        // The threads end only after a failure, which `wait` returns.
        for direction in [&self.up, &self.down].into_iter().flatten() {
            let _ = direction.send(work);
        }
        ticket
    }

    /// Waits until this work and all work before it are done.
    ///
    /// # Errors
    /// If the chain broke off. The numbers then have no meaning.
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

    /// [`Chain::submit`] and [`Chain::wait`] in one.
    ///
    /// # Errors
    /// As for [`Chain::wait`].
    pub fn sum<T: bytemuck::Pod>(&self, values: &mut [T], sum: Sum) -> Result<(), ChainError> {
        assert_eq!(size_of::<T>(), sum.bytes(), "{sum:?}");
        // SAFETY: the slice is borrowed until the wait ends; if that fails, `settle` makes the threads give up the work.
        let ticket = unsafe { self.submit(values.as_mut_ptr().cast(), values.len(), sum) };
        let done = self.wait(ticket);
        if done.is_err() {
            self.settle(ticket);
        }
        done
    }

    /// A function that closes the connections from any thread: all work then fails, here and at the neighbours.
    pub fn closer(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.close();
            }
        }
    }

    /// Starts or ends the recording of [`Span`]s, and returns those recorded so far, in order.
    pub fn trace(&self, on: bool) -> Vec<Span> {
        let next = on.then(Vec::new);
        std::mem::replace(&mut self.shared.lock().spans, next).unwrap_or_default()
    }

    /// After a failure: waits until no thread accesses the memory of this work and of the work before it any more.
    pub fn settle(&self, ticket: Ticket) {
        self.shared.close();
        let mut progress = self.shared.lock();
        let busy = |direction: Direction| !direction.ended && direction.done < ticket.0;
        while busy(progress.up) || (self.down.is_some() && busy(progress.down)) {
            progress = self.shared.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.up = None;
        self.down = None;
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

#[cfg(test)]
mod tests;
