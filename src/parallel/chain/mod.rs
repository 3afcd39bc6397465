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

mod connect;
mod ways;

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::World;
use connect::{PATIENCE, answer, call, listen, parse, token};
use ways::{Shared, Way, Work, down, up};

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
    pub ticket: Ticket,
    pub bytes: usize,
    pub submitted: Instant,
    pub started: Instant,
    pub ended: Instant,
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
        let failed = |rank: usize, error: io::Error| {
            io::Error::new(error.kind(), format!("rank {rank}, a neighbour of rank {}, {error}", world.rank))
        };
        let above = match places.get(world.rank + 1) {
            Some((_, host, port)) => {
                Some(call(host, *port, token).map_err(|error| failed(world.rank + 1, error))?)
            }
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
            io::Result::Ok(sender)
        };
        let upwards = spawn("chain-up", |shared, work| {
            up(shared, work);
            shared.end(|progress| &mut progress.up);
        })?;
        // The last rank's totals are made on the way up.
        let downwards = match shared.above {
            Some(_) => Some(spawn("chain-down", |shared, work| {
                down(shared, work);
                shared.end(|progress| &mut progress.down);
            })?),
            None => None,
        };
        (chain.up, chain.down) = (Some(upwards), downwards);
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

    /// Begins to note when work moves, or ends that and gives what was noted, in order.
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

#[cfg(test)]
mod tests;
