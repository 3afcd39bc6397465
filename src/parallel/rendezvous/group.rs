//! The interface of a group to the rest of the program.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connect::{join, listen, near, own_id};
use super::error::{GroupError, Stopped};
use super::member::{Hook, Member, MemberState};
use super::service::Service;
use super::wire::{LIMIT, Message, post};
use super::{Cause, Identity, InheritedListener, Membership, lock};
use crate::parallel::World;

/// How long a failing rank waits until all ranks know of its error.
const REPORT: Duration = Duration::from_secs(6);

/// A rank's place among the ranks that train together, from joining to leaving.
///
/// Exchanges are collective: all ranks call the same ones in the same order, each on one thread. All other methods may
/// be called from any thread at any time. A group that is dropped without [`leave`](Group::leave) counts as a rank that
/// died, and stops the others.
pub struct Group {
    world: World,
    /// The host of rank 0.
    host: String,
    member: Arc<Member>,
    /// Of rank 0. Must be dropped last.
    _service: Option<Service>,
}

impl Group {
    /// Waits until all ranks have joined, and checks that they agree.
    ///
    /// # Errors
    /// One line for each way in which ranks fail to join; see [`GroupError`].
    pub fn join(membership: &Membership, identity: Identity) -> Result<Arc<Group>, GroupError> {
        Group::join_unless(membership, identity, &AtomicBool::new(false))
    }

    /// [`Group::join`], unless `stop` is set before all ranks have joined. Then all ranks that wait give up.
    ///
    /// # Errors
    /// As for [`join`](Group::join); [`GroupError::Interrupted`] if any rank gives up.
    pub fn join_unless(
        membership: &Membership,
        identity: Identity,
        stop: &AtomicBool,
    ) -> Result<Arc<Group>, GroupError> {
        let Membership { world, address, listener, .. } = membership;
        let World { rank, size, .. } = *world;
        if rank >= size {
            return Err(GroupError::Rank { rank, size });
        }
        let mut service = None;
        let mut own_address = None;
        if world.leads() {
            let inherited = listener.as_ref().and_then(InheritedListener::take);
            let listener = inherited.map_or_else(|| listen(address), Ok)?;
            own_address = Some(near(&listener)?);
            service = Some(Service::start(listener, membership, identity.clone())?);
        }
        let id = own_id(rank);
        let joined = join(membership, &id, &identity, own_address, stop);
        if joined.is_err() && stop.load(Ordering::Relaxed) {
            service.iter().for_each(Service::hurry);
            return Err(GroupError::Interrupted);
        }
        let member = Member::start(membership, id, joined?)?;
        Ok(Arc::new(Group { world: *world, host: address.host.clone(), member, _service: service }))
    }

    pub fn world(&self) -> World {
        self.world
    }

    /// A host name or an address (IPv6 without brackets) at which other ranks reach this one.
    pub fn peer_host(&self) -> String {
        // The address that this machine uses towards rank 0 belongs to the network of the ranks. A loopback address
        // means that this is rank 0's machine, which all ranks have found by the name of rank 0's host.
        match self.member.stream.local_addr() {
            Ok(own) if !own.ip().is_loopback() => own.ip().to_string(),
            _ => self.host.clone(),
        }
    }

    /// Gives bytes to all ranks and returns those of all ranks, in rank order. At most [`LIMIT`] bytes a rank.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] if any rank fails before all have given their bytes, or is at another `what`.
    pub fn exchange(&self, what: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, GroupError> {
        self.post(what, bytes)?;
        self.collect()
    }

    /// The first half of an exchange: gives bytes without waiting. One exchange at a time.
    ///
    /// # Errors
    /// As for [`exchange`](Group::exchange); and if another exchange is not yet collected.
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
        // So that rank 0 knows what this rank did last if it dies now.
        self.send(&self.member.beat());
        self.send(&post(sequence, what, bytes));
        Ok(())
    }

    /// The second half: waits for all ranks.
    ///
    /// # Errors
    /// As for [`exchange`](Group::exchange); and if nothing was posted.
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

    /// Whether `own` is true at any rank.
    ///
    /// # Errors
    /// As for [`exchange`](Group::exchange).
    pub fn any(&self, what: &'static str, own: bool) -> Result<bool, GroupError> {
        Ok(self.exchange(what, &[own.into()])?.iter().any(|part| part.contains(&1)))
    }

    /// The bytes of rank 0; those of other ranks are ignored.
    ///
    /// # Errors
    /// As for [`exchange`](Group::exchange).
    pub fn broadcast(&self, what: &'static str, bytes: Option<&[u8]>) -> Result<Vec<u8>, GroupError> {
        let own = bytes.filter(|_| self.world.leads()).unwrap_or_default();
        Ok(self.exchange(what, own)?.swap_remove(0))
    }

    /// Records what this rank does from now on, for messages. Counts as progress.
    pub fn doing(&self, step: u64, what: &'static str) {
        *lock(&self.member.doing) = (step, what);
        self.progress();
    }

    /// Tells the watchdog that this rank makes progress.
    pub fn progress(&self) {
        self.member.moves();
    }

    /// How often this rank has made progress.
    pub fn moves(&self) -> u64 {
        self.member.moved()
    }

    /// Records whether this rank waits for other ranks, in a sum of gradients for example. The watchdog then does not
    /// blame it. Not needed for exchanges.
    pub fn waiting(&self, waits: bool) {
        self.member.waits(waits);
    }

    /// Stops all ranks with this rank's error, unless there was an error before. Returns when all ranks know of it, after
    /// some seconds at most, and whether rank 0 does.
    pub fn fail(&self, message: impl Into<String>) -> bool {
        self.report(message.into(), false)
    }

    /// The same for an error that another rank has probably caused: a neighbour's connection that ended, for example.
    /// If the neighbour reports its own error or is found dead within a second, that is the first error instead.
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
        let own = member.id.stopped(Cause::Failed, (step, what), message.clone());
        self.send(&Message::Fail { step, what: what.into(), message, consequence }.encode());
        let start = Instant::now();
        let mut state = lock(&member.state);
        while !state.acknowledged && !state.lost && start.elapsed() < REPORT {
            let left = REPORT.saturating_sub(start.elapsed());
            state = member.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let acknowledged = state.acknowledged;
        drop(state);
        if !acknowledged {
            member.stop(own, true);
        }
        acknowledged
    }

    /// The first error, once there is one.
    pub fn stopped(&self) -> Option<Stopped> {
        lock(&self.member.state).stopped.clone()
    }

    /// Whether this rank must print the first error: rank 0 does, and every rank that has lost rank 0.
    pub fn prints_error(&self) -> bool {
        self.world.leads() || lock(&self.member.state).own
    }

    /// Runs `hook` once on another thread when a stop comes, or at once if it has come already. A hook makes blocked
    /// threads return: it closes sockets or aborts NCCL. It must not own this group.
    pub fn on_stop(&self, hook: Hook) {
        let mut state = lock(&self.member.state);
        if state.stopped.is_none() {
            state.hooks.push(hook);
            return;
        }
        drop(state);
        hook();
    }

    /// Leaves in order. Rank 0 waits for all others, since its process runs the service.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] if a rank that has not left fails, or makes no progress for longer than the watchdog
    /// allows; and if an exchange is not collected.
    pub fn leave(&self) -> Result<(), GroupError> {
        let _blocked = Blocked::new(&self.member);
        let mut state = self.state()?;
        if let Some(what) = state.posted {
            return Err(GroupError::Outstanding(what));
        }
        state.leaving = true;
        drop(state);
        self.send(&Message::Leave.encode());
        let mut state = lock(&self.member.state);
        while !state.left {
            state = self.wait(state)?;
        }
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        drop(hooks);
        Ok(())
    }

    /// The state, unless this rank has stopped or left.
    fn state(&self) -> Result<MutexGuard<'_, MemberState>, GroupError> {
        let state = check(lock(&self.member.state))?;
        if state.leaving { Err(GroupError::Left) } else { Ok(state) }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, MemberState>,
    ) -> Result<MutexGuard<'a, MemberState>, GroupError> {
        let state = check(state)?;
        check(self.member.changed.wait(state).unwrap_or_else(PoisonError::into_inner))
    }

    fn send(&self, frame: &[u8]) {
        if !self.member.send(frame) {
            // The frame may be incomplete, so the connection is useless. The member's thread notices its end.
            let _ = self.member.stream.shutdown(Shutdown::Both);
        }
    }
}

fn check(state: MutexGuard<MemberState>) -> Result<MutexGuard<MemberState>, GroupError> {
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

/// Marks a thread that waits for the service, and so for other ranks.
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
        // Progress first, as in `waits`.
        self.0.moves();
        self.0.blocked.fetch_sub(1, Ordering::SeqCst);
    }
}
