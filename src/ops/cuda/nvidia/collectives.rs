//! The exchange between ranks: NCCL on its own stream.
//!
//! The stream has the highest priority, because the other ranks wait for its work, while the parallel computation is
//! not urgent. It waits for the computation by the event `ready`, and the computation waits for it by `done`. Both
//! events are recorded many times, also within captured graphs.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::Result as DriverResult;
use super::device::DriverContext;
use super::handles::{Event, Memory, Stream};
use super::wait::PATIENCE;
use crate::ops::cuda::gpu::{Address, Piece, Reduce};
use crate::ops::{OpsError, Result};
use crate::parallel::nccl::{Comm, Nccl, NcclError, SHARING, UniqueId, Version, ranks_may_share_gpus};
use crate::parallel::{Group, GroupError};

/// Time between two checks whether the group was stopped, while the ranks join.
const JOINING: Duration = Duration::from_millis(20);

/// NCCL's communicator with its stream and events, see the module.
pub struct Collectives {
    // Dropped first: it may still use the stream.
    comm: Comm,
    stream: Stream,
    ready: Event,
    done: Event,
    group: Arc<Group>,
}

impl std::fmt::Debug for Collectives {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "collectives of {:?}", self.group.world())
    }
}

impl Collectives {
    /// Joins the ranks, this one on the card of `context`, which is current.
    ///
    /// # Errors
    /// [`NcclError`]; the reason if the group was stopped meanwhile.
    pub fn join(context: &Arc<DriverContext>, name: &str, group: &Arc<Group>) -> Result<Collectives> {
        let library = Nccl::load()?;
        meet(library, &format!("{name}, {}", context.place()?), group)?;
        let own = if group.world().leads() { Some(library.unique_id()?.0) } else { None };
        let bytes = group.broadcast("NCCL's identifier", own.as_ref().map(|id| &id[..]))?;
        let id: [u8; 128] =
            bytes.try_into().map_err(|_| OpsError::Device("NCCL's identifier has another length".into()))?;
        let comm = join(library, UniqueId(id), context, group)?;
        let world = group.world();
        let device = comm.device()?;
        if device != context.index() {
            let got = format!("one on GPU {device}");
            let expected = format!("one on GPU {}", context.index());
            return Err(NcclError::Misplaced { rank: world.rank, got, expected }.into());
        }
        let stopper = comm.stopper();
        group.on_stop(Box::new(move || stopper.stop()));
        let collectives = Collectives {
            comm,
            stream: Stream::urgent()?,
            ready: Event::new()?,
            done: Event::new()?,
            group: group.clone(),
        };
        collectives.try_out(world.size)?;
        Ok(collectives)
    }

    /// Sums one number over the ranks. Problems between ranks appear here and not in the first step, and NCCL makes
    /// its connections outside of captured graphs.
    fn try_out(&self, ranks: usize) -> Result {
        let memory = Memory::new(4)?;
        let at = memory.address();
        let mut sum = [0; 4];
        self.stream.fill(at, 0, 4)?;
        self.stream.fill(at, 1, 1)?;
        self.all_reduce(&[Piece { at, elements: 1, how: Reduce::SumU32 }])?;
        self.wait_for(&self.stream)?;
        // SAFETY: the bytes stay borrowed until the stream was waited for.
        let received = unsafe { self.stream.receive(at, sum.as_mut_ptr(), 4) };
        received.and(self.stream.synchronise())?;
        match u32::from_le_bytes(sum) {
            sum if sum as usize == ranks => Ok(()),
            sum => Err(OpsError::Device(format!("NCCL's sum over {ranks} ranks, of 1 each, is {sum}"))),
        }
    }

    /// Later collectives wait for the work enqueued on a stream so far.
    pub fn begin(&self, after: &Stream) -> DriverResult {
        self.ready.record(after)?;
        self.stream.wait(&self.ready)
    }

    /// Work enqueued on a stream from here on waits for the collectives.
    pub fn end(&self, before: &Stream) -> DriverResult {
        self.done.record(&self.stream)?;
        before.wait(&self.done)
    }

    pub fn all_reduce(&self, pieces: &[Piece]) -> Result {
        // SAFETY: the addresses are the engine's; the stream exists.
        let one = |&Piece { at, elements, how }: &Piece| unsafe {
            self.comm.all_reduce(at.0, elements, how, self.stream.raw().cast())
        };
        self.told(match pieces {
            [piece] => one(piece),
            _ => self.comm.together(|| pieces.iter().try_for_each(one)),
        })
    }

    pub fn all_gather(&self, from: Address, to: Address, bytes: usize) -> Result {
        // SAFETY: as above.
        self.told(unsafe { self.comm.all_gather(from.0, to.0, bytes, self.stream.raw().cast()) })
    }

    /// The collectives' stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Waits for everything enqueued on a stream. Fails if another rank has failed.
    pub fn wait_for(&self, stream: &Stream) -> Result {
        self.wait(|| stream.idle())
    }

    /// Waits for an event in the same way.
    pub fn wait_until(&self, event: &Event) -> Result {
        self.wait(|| event.reached())
    }

    /// The stream alone cannot tell: with a lost rank it never finishes, after an abort it finishes with garbage. So
    /// NCCL is asked.
    fn wait(&self, mut ended: impl FnMut() -> DriverResult<bool>) -> Result {
        let mut waits = false;
        let answer = loop {
            let looked = ended().map_err(OpsError::from);
            match looked.and_then(|ended| self.told(self.comm.check()).map(|()| ended)) {
                Ok(false) => {}
                answer => break answer.map(drop),
            }
            if !waits {
                self.group.waiting(true);
                waits = true;
            }
            std::thread::sleep(PATIENCE);
        };
        if waits {
            self.group.waiting(false);
        }
        answer
    }

    /// If the group was stopped, every later error is replaced by the reason for that.
    fn told<T>(&self, answer: std::result::Result<T, NcclError>) -> Result<T> {
        answer.map_err(|error| reason(&self.group).unwrap_or(error.into()))
    }
}

fn reason(group: &Group) -> Option<OpsError> {
    group.stopped().map(|stopped| GroupError::Stopped(stopped).into())
}

/// Checks whether the ranks can join: the same NCCL, and a different card for each.
fn meet(library: Nccl, card: &str, group: &Arc<Group>) -> Result {
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let own = format!("{}\n{card}\n{}", number(library), machine.trim());
    let all = group.exchange("the ranks' GPUs", own.as_bytes())?;
    let all: Vec<String> = all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    Ok(compatible(&all, ranks_may_share_gpus())?)
}

/// The version as text, see [`compatible`].
fn number(library: Nccl) -> String {
    let version = library.version();
    format!("{} {} {}", version.0, version.1, version.2)
}

/// Checks what the ranks sent: version of NCCL, card and machine, one line each. `shared`: whether NCCL may put
/// several ranks on a card.
fn compatible(all: &[String], shared: bool) -> std::result::Result<(), NcclError> {
    let version = |text: &str| {
        let mut numbers =
            text.lines().next().unwrap_or_default().split(' ').map(|word| word.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Version(next(), next(), next())
    };
    let place = |text: &'_ str| text.split_once('\n').map(|(_, place)| place.to_string()).unwrap_or_default();
    for (rank, text) in all.iter().enumerate() {
        let has = version(text);
        let needs = version(&all[0]);
        if has != needs {
            return Err(NcclError::OtherVersion { rank, has, needs });
        }
    }
    for text in all {
        let same: Vec<usize> = (0..all.len()).filter(|rank| place(&all[*rank]) == place(text)).collect();
        if same.len() > 1 && shared && version(text) < SHARING {
            return Err(NcclError::CannotShare { has: version(text), needs: SHARING });
        }
        if same.len() > 1 && !shared {
            let mut ranks = same[0].to_string();
            for (at, rank) in same.iter().enumerate().skip(1) {
                let _ = write!(ranks, "{}{rank}", if at + 1 == same.len() { " and " } else { ", " });
            }
            let gpu = place(text).lines().next().unwrap_or_default().to_string();
            return Err(NcclError::SharedGpu { ranks, gpu });
        }
    }
    Ok(())
}

/// Joins in a separate thread: NCCL waits for the other ranks without limit, even if they are gone.
fn join(library: Nccl, id: UniqueId, context: &Arc<DriverContext>, group: &Arc<Group>) -> Result<Comm> {
    let world = group.world();
    let context = context.clone();
    let (tell, told) = channel();
    let work = move || {
        let joined = match context.enter() {
            Ok(()) => Comm::join(library, id, world.size, world.rank).map_err(OpsError::from),
            Err(error) => Err(error.into()),
        };
        // If the receiver has given up, the communicator is dropped here.
        let _ = tell.send(joined);
    };
    std::thread::Builder::new()
        .name("nccl-join".into())
        .spawn(work)
        .map_err(|error| OpsError::Device(format!("no thread to join the ranks in: {error}")))?;
    loop {
        match told.recv_timeout(JOINING) {
            Ok(joined) => return joined.map_err(|error| reason(group).unwrap_or(error)),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(reason) = reason(group) {
                    return Err(reason);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(OpsError::Device("joining the ranks ended without an answer".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_need_the_same_version_and_different_cards() {
        let rank =
            |version: &str, place: &str, machine: &str| format!("{version}\nSome Card, {place}\n{machine}");
        let (a, b) = (rank("2 32 3", "01:00.0", "m"), rank("2 32 3", "02:00.0", "m"));
        assert_eq!(compatible(&[a.clone(), b.clone(), rank("2 32 3", "01:00.0", "n")], false), Ok(()));
        let same = [a.clone(), b.clone(), a.clone(), a.clone()];
        let error = compatible(&same, false).unwrap_err();
        let expected = NcclError::SharedGpu { ranks: "0, 2 and 3".into(), gpu: "Some Card, 01:00.0".into() };
        assert_eq!(error, expected);
        assert_eq!(compatible(&same, true), Ok(()));
        let old = [rank("2 27 3", "01:00.0", "m"), rank("2 27 3", "01:00.0", "m")];
        let expected = NcclError::CannotShare { has: Version(2, 27, 3), needs: Version(2, 30, 0) };
        assert_eq!(compatible(&old, true), Err(expected));
        let error = compatible(&[a, rank("2 18 1", "02:00.0", "m")], false).unwrap_err();
        let expected = NcclError::OtherVersion { rank: 1, has: Version(2, 18, 1), needs: Version(2, 32, 3) };
        assert_eq!(error, expected);
    }
}
