//! What the rest of the program sees of the group.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::connect::{Address, listen, myself, take_seat, within};
use super::error::{GroupError, Stopped};
use super::member::{Hook, Member, State, lock};
use super::service::Service;
use super::wire::{LIMIT, Message, post};
use super::{Cause, Identity, Membership};
use crate::parallel::World;

/// How long a failing rank waits to hear that all know of it.
const TELLING: Duration = Duration::from_secs(6);

/// A rank's place among the ranks that train together, from joining to leaving.
///
/// Exchanges are collective: all ranks call the same ones in the same order, one thread of each. Everything else may be
/// called from any thread at any time. A handle that is dropped without [`leave`](Group::leave) is a rank that died,
/// and stops the others.
pub struct Group {
    world: World,
    address: Address,
    member: Arc<Member>,
    /// At rank 0; the last to be dropped.
    _service: Option<Service>,
}

impl Group {
    /// Waits until all ranks are there, and want the same.
    ///
    /// # Errors
    /// One line for each way in which ranks do not come together; see [`GroupError`].
    pub fn join(membership: &Membership, identity: Identity) -> Result<Arc<Group>, GroupError> {
        Group::join_unless(membership, identity, &AtomicBool::new(false))
    }

    /// [`Group::join`], unless `stop` is raised before all are there. All that wait then give up.
    ///
    /// # Errors
    /// As [`join`](Group::join); [`GroupError::Interrupted`] where any rank gives up.
    pub fn join_unless(
        membership: &Membership,
        identity: Identity,
        stop: &AtomicBool,
    ) -> Result<Arc<Group>, GroupError> {
        let world = membership.world;
        let World { rank, size, .. } = world;
        if rank >= size {
            return Err(GroupError::Rank { rank, size });
        }
        let address = Address::parse(&membership.address)?;
        let (mut near, mut service) = (None, None);
        if world.leads() {
            let listener = listen(&address, membership.listener)?;
            near = Some(within(&listener)?);
            let Membership { timeout, watchdog, .. } = *membership;
            service = Some(Service::start(listener, size, identity.clone(), timeout, watchdog)?);
        }
        let who = myself(rank);
        let seated = take_seat(membership, &who, &identity, near, stop);
        if seated.is_err() && stop.load(Ordering::Relaxed) {
            service.iter().for_each(Service::hurry);
            return Err(GroupError::Interrupted);
        }
        let seated = seated?;
        let member = Member::start(membership, who, seated)?;
        Ok(Arc::new(Group { world, address, member, _service: service }))
    }

    pub fn world(&self) -> World {
        self.world
    }

    /// "rank 2 (host b, pid 77)"
    pub fn name(&self, rank: usize) -> String {
        self.member.all.get(rank).map_or_else(|| format!("rank {rank}"), ToString::to_string)
    }

    /// A host name or an address (IPv6 without brackets) at which other ranks reach this one.
    pub fn peer_host(&self) -> String {
        // Towards rank 0, this machine uses the address at which it is part of the ranks' network. Who comes over the
        // loopback is on rank 0's machine, which has the name by which all found it.
        match self.member.stream.local_addr() {
            Ok(own) if !own.ip().is_loopback() => own.ip().to_string(),
            _ => self.address.host.clone(),
        }
    }

    /// Gives bytes to all ranks and gets those of all, in rank order. At most [`LIMIT`] bytes a rank.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] where any rank fails before all have given theirs, or is at another `what`.
    pub fn exchange(&self, what: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, GroupError> {
        self.post(what, bytes)?;
        self.collect()
    }

    /// First half of an exchange: gives, and does not wait. One at a time.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange); and where another one is not yet collected.
    pub fn post(&self, what: &'static str, bytes: &[u8]) -> Result<(), GroupError> {
        if bytes.len() > LIMIT {
            return Err(GroupError::TooLarge { what, bytes: bytes.len(), limit: LIMIT });
        }
        let mut state = self.state()?;
        if state.posted.is_some() {
            return Err(GroupError::Outstanding(what));
        }
        state.posted = Some(what);
        let sequence = state.sequence;
        drop(state);
        self.progress();
        // So that rank 0 knows what this rank did last, should it end now.
        self.send(&self.member.beat());
        self.send(&post(sequence, what, bytes));
        Ok(())
    }

    /// Second half: waits for all.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange); and where nothing was posted.
    pub fn collect(&self) -> Result<Vec<Vec<u8>>, GroupError> {
        let _blocked = Blocked::new(&self.member);
        let mut state = self.state()?;
        if state.posted.is_none() {
            return Err(GroupError::NothingPosted);
        }
        while state.parts.len() < self.world.size {
            state = self.wait(state)?;
        }
        state.sequence += 1;
        state.posted = None;
        Ok(std::mem::take(&mut state.parts))
    }

    /// Returns when all ranks are here.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange).
    pub fn barrier(&self, what: &'static str) -> Result<(), GroupError> {
        self.exchange(what, &[]).map(drop)
    }

    /// Sums over the ranks, number by number, modulo 2^64. All ranks give equally many.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange); and where a rank gives more or fewer numbers than this one.
    pub fn sum(&self, what: &'static str, numbers: &[u64]) -> Result<Vec<u64>, GroupError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut sums = vec![0u64; numbers.len()];
        for (rank, part) in self.exchange(what, &bytes)?.iter().enumerate() {
            let (found, expected) = (part.len(), bytes.len());
            if found != expected {
                return Err(GroupError::Length { rank, what, found, expected });
            }
            for (sum, number) in sums.iter_mut().zip(part.as_chunks().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*number));
            }
        }
        Ok(sums)
    }

    /// Whether it is true at any rank.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange).
    pub fn any(&self, what: &'static str, own: bool) -> Result<bool, GroupError> {
        Ok(self.exchange(what, &[own.into()])?.iter().any(|part| part.contains(&1)))
    }

    /// Rank 0's bytes; what others give is not looked at.
    ///
    /// # Errors
    /// As [`exchange`](Group::exchange).
    pub fn broadcast(&self, what: &'static str, bytes: Option<&[u8]>) -> Result<Vec<u8>, GroupError> {
        let own = bytes.filter(|_| self.world.leads()).unwrap_or_default();
        Ok(self.exchange(what, own)?.swap_remove(0))
    }

    /// What this rank does from now on, for messages; and it moves.
    pub fn doing(&self, step: u64, what: &'static str) {
        *lock(&self.member.doing) = (step, what);
        self.progress();
    }

    /// This rank moves: the watchdog counts anew.
    pub fn progress(&self) {
        self.member.moves();
    }

    /// How often this rank has moved.
    #[cfg(test)]
    pub fn moves(&self) -> u64 {
        self.member.moved()
    }

    /// Whether it waits for other ranks, in a sum of gradients for example. Then it is not the one that holds the
    /// others up. Waiting in an exchange is known without this.
    pub fn waiting(&self, waits: bool) {
        self.member.waits(waits);
    }

    /// Stops all ranks with this rank's error, unless there was one before. Returns when all know of it, after some
    /// seconds at the most, and whether rank 0 does.
    pub fn fail(&self, message: impl Into<String>) -> bool {
        self.report(message.into(), false)
    }

    /// The same for an error that probably is another rank's doing: a neighbour's connection that ended, for example.
    /// For a second it gives way to the neighbour's own error, or to the news of its death.
    pub fn suspect(&self, message: impl Into<String>) -> bool {
        self.report(message.into(), true)
    }

    fn report(&self, message: String, consequence: bool) -> bool {
        let member = &self.member;
        let state = lock(&member.state);
        if state.stopped.is_some() || state.leaving {
            return !state.own && !state.leaving;
        }
        drop(state);
        let (step, what) = *lock(&member.doing);
        let own = member.who.stopped(Cause::Failed, (step, what), message.clone());
        self.send(&Message::Fail { step, what: what.into(), message, consequence }.encode());
        let start = Instant::now();
        let mut state = lock(&member.state);
        while !state.acknowledged && !state.lost && start.elapsed() < TELLING {
            let left = TELLING.saturating_sub(start.elapsed());
            state =
                member.changed.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        let told = state.acknowledged;
        drop(state);
        if !told {
            member.stop(own, true);
        }
        told
    }

    /// The first error, once there is one.
    pub fn stopped(&self) -> Option<Stopped> {
        lock(&self.member.state).stopped.clone()
    }

    /// Whether it is for this rank to print the first error: rank 0 does, and others where rank 0 is lost to them.
    pub fn tells(&self) -> bool {
        self.world.leads() || lock(&self.member.state).own
    }

    /// The first error is printed. Until this is called, the end of a process that hangs prints it.
    pub fn told(&self) {
        lock(&self.member.state).told = true;
    }

    /// Runs `hook` once when a stop comes, on another thread; at once where it has come already. A hook is to make
    /// blocked threads return: it closes sockets, aborts NCCL. It must not hold this group.
    pub fn on_stop(&self, hook: Hook) {
        let mut state = lock(&self.member.state);
        if state.stopped.is_none() {
            state.hooks.push(hook);
            return;
        }
        drop(state);
        hook();
    }

    /// Orderly end. Rank 0 waits for all others: its process carries the service.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] where a rank that has not left fails, or stands still for longer than the watchdog
    /// allows; and where something posted is not collected.
    pub fn leave(&self) -> Result<(), GroupError> {
        let _blocked = Blocked::new(&self.member);
        let mut state = self.state()?;
        if let Some(what) = state.posted {
            return Err(GroupError::Outstanding(what));
        }
        state.leaving = true;
        drop(state);
        self.send(&Message::Bye.encode());
        let mut state = lock(&self.member.state);
        while !state.left {
            state = self.wait(state)?;
        }
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        drop(hooks);
        Ok(())
    }

    /// The state of a rank that may go on.
    fn state(&self) -> Result<MutexGuard<'_, State>, GroupError> {
        let state = check(lock(&self.member.state))?;
        if state.leaving { Err(GroupError::Left) } else { Ok(state) }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, GroupError> {
        let state = check(state)?;
        check(self.member.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn send(&self, frame: &[u8]) {
        if !self.member.send(frame) {
            // A frame that went out in part leaves nothing to go on with; the member's thread finds the end.
            let _ = self.member.stream.shutdown(Shutdown::Both);
        }
    }
}

fn check(state: MutexGuard<State>) -> Result<MutexGuard<State>, GroupError> {
    match state.stopped.clone() {
        Some(stopped) => Err(GroupError::Stopped(stopped)),
        None => Ok(state),
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.member.closing.store(true, Ordering::Relaxed);
        let _ = self.member.stream.shutdown(Shutdown::Both);
    }
}

/// A thread that waits for the service, and so for other ranks.
struct Blocked<'a>(&'a Member);

impl Blocked<'_> {
    fn new(member: &Member) -> Blocked<'_> {
        member.moves();
        member.blocked.fetch_add(1, Ordering::SeqCst);
        Blocked(member)
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        // First, as in `waits`.
        self.0.moves();
        self.0.blocked.fetch_sub(1, Ordering::SeqCst);
    }
}
