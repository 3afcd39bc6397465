//! Rank 0's thread: one loop over all connections, which never blocks on any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::connect::{interest, poll};
use super::connection::{Arrived, Connection, Stage};
use super::seats::{Applicant, Seat, admit, missing, other_protocol};
use super::wire::{Frame, Message, PROTOCOL, Preamble, Refusal, Scope};
use super::{Cause, Identity, Membership, RankId, Stopped};

/// The longest wait for something to arrive, so that time limits are checked.
const TICK: Duration = Duration::from_millis(50);
/// How long a stranger may take to say which rank it is.
const HELLO: Duration = Duration::from_secs(5);
/// The number of strangers at a time. One more closes the connection of the oldest.
const STRANGERS: usize = 256;
/// How long the end of the group waits for ranks that do not react.
const CLOSING: Duration = Duration::from_secs(2);
/// How long a group that will not be formed waits for ranks that still come, to send them the reason.
const LATE: Duration = Duration::from_secs(5);
/// How long the consequence of an error waits for its cause.
pub const CAUSE: Duration = Duration::from_secs(1);
/// A longer gap between two turns of the loop means that this process or the machine was suspended. The time is not
/// counted against the ranks.
const PAUSE: Duration = Duration::from_secs(1);

/// The running service. Dropping it ends it, within a few seconds.
pub struct Service {
    thread: Option<JoinHandle<()>>,
    flags: Arc<Flags>,
}

/// What the handle asks of the thread.
#[derive(Default)]
struct Flags {
    closing: AtomicBool,
    hurried: AtomicBool,
}

impl Service {
    /// `membership` and `identity` are rank 0's.
    pub fn start(listener: TcpListener, membership: &Membership, identity: Identity) -> io::Result<Service> {
        listener.set_nonblocking(true)?;
        let flags = Arc::<Flags>::default();
        let now = Instant::now();
        let coordinator = Coordinator {
            listener,
            connections: BTreeMap::new(),
            count: 0,
            seats: (0..membership.world.size).map(|_| None).collect(),
            came: BTreeSet::new(),
            identity,
            timeout: membership.timeout,
            watchdog: membership.watchdog,
            flags: flags.clone(),
            phase: Phase::Gathering,
            since: now,
            looked: now,
            beat: now,
            sequence: 0,
            what: None,
            suspicion: None,
            reporters: Vec::new(),
        };
        let thread = thread::Builder::new().name("rendezvous".into()).spawn(move || coordinator.run())?;
        Ok(Service { thread: Some(thread), flags })
    }

    /// A group that is not formed ends without waiting for the ranks that have not come.
    pub fn hurry(&self) {
        self.flags.hurried.store(true, Ordering::Relaxed);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.flags.closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and the ranks have seen a lost connection.
            let _ = thread.join();
        }
    }
}

pub enum Phase {
    /// Some ranks have not joined yet.
    Gathering,
    Running,
    /// The group is not formed. Ranks that come within `late` are still sent the reason.
    Refused {
        refusal: Refusal,
        late: Duration,
    },
    /// There was an error. `all`: it has arrived at all ranks, or they took too long.
    Stopped {
        all: bool,
    },
    /// All ranks have left.
    Left,
}

/// The state of the service's thread.
pub struct Coordinator {
    listener: TcpListener,
    pub connections: BTreeMap<u64, Connection>,
    /// The number of connections so far.
    count: u64,
    /// By rank.
    pub seats: Vec<Option<Seat>>,
    /// Ranks that have come, including those refused.
    came: BTreeSet<usize>,
    identity: Identity,
    timeout: Duration,
    pub watchdog: Duration,
    flags: Arc<Flags>,
    pub phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When time limits were last checked.
    looked: Instant,
    /// When a heartbeat was last sent.
    pub beat: Instant,
    /// The exchange under way: its number, its name, and the first rank that takes part.
    pub sequence: u64,
    pub what: Option<(String, usize)>,
    /// A reported error that may be the consequence of another one.
    pub suspicion: Option<(Instant, Stopped)>,
    /// Ranks that reported an error and wait until all ranks know of it.
    pub reporters: Vec<usize>,
}

impl Coordinator {
    fn run(mut self) {
        while !self.finished() {
            for connection in self.wait() {
                self.read(connection);
            }
            self.check_time();
            self.connections.values_mut().for_each(Connection::flush);
        }
    }

    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    fn finished(&self) -> bool {
        let since = self.since.elapsed();
        let mut connections = self.connections.values().filter(|connection| !connection.is_stranger());
        match self.phase {
            Phase::Gathering | Phase::Running => false,
            Phase::Left => since > CLOSING || !connections.any(Connection::has_more),
            Phase::Refused { late, .. } => {
                let late = if self.flags.hurried.load(Ordering::Relaxed) { Duration::ZERO } else { late };
                let all = since >= late || self.came.len() == self.seats.len();
                all && (since >= late + CLOSING || connections.next().is_none())
            }
            Phase::Stopped { all } => {
                all && (self.flags.closing.load(Ordering::Relaxed) || connections.next().is_none())
            }
        }
    }

    /// Waits until something arrives. Accepts new connections, and returns those that can be read.
    fn wait(&mut self) -> Vec<u64> {
        let own = [interest(&self.listener, false)];
        let theirs = self.connections.values().map(|of| interest(&of.stream, of.has_more()));
        let mut sockets: Vec<_> = own.into_iter().chain(theirs).collect();
        let ready = poll(&mut sockets, TICK);
        let found = self.connections.keys().zip(&ready[1..]).filter(|(_, ready)| **ready);
        let found = found.map(|(number, _)| *number).collect();
        if ready[0] {
            self.accept();
        }
        found
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    let Ok(connection) = Connection::new(stream, from) else { continue };
                    let strangers = self.connections.iter().filter(|(_, of)| of.is_stranger());
                    let strangers: Vec<u64> = strangers.map(|(number, _)| *number).collect();
                    if strangers.len() >= STRANGERS {
                        self.connections.remove(&strangers[0]);
                    }
                    self.connections.insert(self.count, connection);
                    self.count += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Perhaps no descriptor is free. The pause keeps the loop from using a whole core until one is.
                    thread::sleep(TICK / 5);
                    return;
                }
            }
        }
    }

    fn read(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let arrived = connection.read();
        if let Stage::Rank(rank) = connection.stage
            && arrived == Arrived::Bytes
            && let Some(seat) = &mut self.seats[rank]
        {
            seat.heard = Instant::now();
        }
        // What arrived before the end counts.
        while let Some(connection) = self.connections.get_mut(&number) {
            let done = match connection.stage {
                Stage::New => connection.inbox.preamble().map(|found| found.map(|of| self.greet(number, of))),
                Stage::Greeted => {
                    connection.inbox.frame().map(|found| found.map(|of| self.hello(number, of)))
                }
                Stage::Rank(rank) => {
                    connection.inbox.frame().map(|found| found.map(|of| self.handle(rank, of)))
                }
                Stage::Refused => Ok(None),
            };
            match done {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(_) => return self.ended(number, "sent a malformed message"),
            }
        }
        if arrived == Arrived::End {
            self.ended(number, "ended without a message");
        }
    }

    fn greet(&mut self, number: u64, theirs: Preamble) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.push(Preamble { protocol: PROTOCOL, rank: 0 }.encode().into());
        connection.stage = Stage::Greeted;
        if theirs.protocol != PROTOCOL {
            let reason = other_protocol(theirs.rank, connection.from.ip(), theirs.protocol, PROTOCOL);
            self.comes(theirs.rank as usize);
            let gathering = matches!(self.phase, Phase::Gathering);
            let scope = if gathering { Scope::All } else { Scope::One };
            self.refuse(number, Refusal { reason, scope });
        }
    }

    fn hello(&mut self, number: u64, frame: Frame) {
        let Frame::Control(Message::Hello { id, size, identity }) = frame else {
            self.connections.remove(&number);
            return;
        };
        self.comes(id.rank);
        if let Phase::Refused { refusal, .. } = &self.phase {
            let refusal = refusal.clone();
            return self.send_refusal(number, refusal);
        }
        let applicant = Applicant { id: &id, size, identity: &identity };
        match admit(&self.seats, &applicant, &self.identity) {
            Ok(()) => self.seat(number, id),
            Err(refusal) => self.refuse(number, refusal),
        }
    }

    fn seat(&mut self, number: u64, id: RankId) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let left = self.timeout.saturating_sub(self.since.elapsed());
        connection.send(&Message::Accepted { milliseconds: left.as_millis() as u64 });
        connection.stage = Stage::Rank(id.rank);
        connection.inbox.trust();
        let rank = id.rank;
        self.seats[rank] = Some(Seat::new(id, number));
        if self.seats.iter().all(Option::is_some) {
            let all = self.seats.iter().flatten().map(|seat| seat.id.clone()).collect();
            self.send_to_all(&Message::Formed { all }.encode().into());
            for seat in self.seats.iter_mut().flatten() {
                seat.heard = Instant::now();
                seat.moved = seat.heard;
            }
            self.enter(Phase::Running);
        }
    }

    fn comes(&mut self, rank: usize) {
        if rank < self.seats.len() {
            self.came.insert(rank);
        }
    }

    fn refuse(&mut self, number: u64, refusal: Refusal) {
        self.send_refusal(number, refusal.clone());
        if refusal.scope == Scope::All {
            self.give_up(refusal, LATE);
        }
    }

    /// The last message of a connection.
    fn send_refusal(&mut self, number: u64, refusal: Refusal) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.send(&Message::Refused(refusal));
            connection.stage = Stage::Refused;
            connection.since = Instant::now();
        }
    }

    /// The group is not formed. All ranks that are there are told so, and those that come within `late`.
    fn give_up(&mut self, refusal: Refusal, late: Duration) {
        let there = self.connections.iter().filter(|(_, of)| matches!(of.stage, Stage::Rank(_)));
        let there: Vec<u64> = there.map(|(number, _)| *number).collect();
        there.iter().for_each(|number| self.send_refusal(*number, refusal.clone()));
        self.enter(Phase::Refused { refusal, late });
    }

    /// A rank was asked to stop. Once the group is formed, the ranks agree on that by themselves.
    pub fn withdraw(&mut self, rank: usize) {
        if let (Phase::Gathering, Some(seat)) = (&self.phase, &self.seats[rank]) {
            let reason = format!("{} was interrupted before all ranks had joined", seat.id);
            self.give_up(Refusal { reason, scope: Scope::Interrupted }, LATE);
        }
    }

    /// Sends an encoded frame to all ranks that have not left.
    pub fn send_to_all(&mut self, bytes: &Arc<[u8]>) {
        for seat in self.seats.iter().flatten().filter(|seat| !seat.left) {
            if let Some(connection) = self.connections.get_mut(&seat.connection) {
                connection.push(bytes.clone());
            }
        }
    }

    /// Removes a connection. For a rank that has not left this is an error.
    pub fn ended(&mut self, number: u64, how: &str) {
        let Some(connection) = self.connections.remove(&number) else { return };
        let Stage::Rank(rank) = connection.stage else { return };
        let Some(seat) = &mut self.seats[rank] else { return };
        seat.gone = true;
        match self.phase {
            Phase::Gathering => {
                let reason = format!("{} {how} before all ranks had joined", seat.id);
                self.give_up(Refusal { reason, scope: Scope::All }, LATE);
            }
            // It has reported the reason, although as a possible consequence.
            Phase::Running if self.suspicion.as_ref().is_some_and(|(_, of)| of.rank == rank) => {}
            Phase::Running if !seat.left => {
                let stopped = seat.id.observed(Cause::Ended, how, &seat.beat);
                self.stop(stopped);
            }
            _ => {}
        }
    }

    /// Everything that depends on the time.
    fn check_time(&mut self) {
        let gap = self.looked.elapsed();
        self.looked = Instant::now();
        if gap > PAUSE {
            for seat in self.seats.iter_mut().flatten() {
                seat.heard += gap;
                seat.moved += gap;
            }
        }
        self.connections.retain(|_, of| match of.stage {
            Stage::New | Stage::Greeted => of.since.elapsed() < HELLO,
            Stage::Rank(_) => true,
            Stage::Refused => of.since.elapsed() < CLOSING,
        });
        let closing = self.flags.closing.load(Ordering::Relaxed);
        match &mut self.phase {
            Phase::Gathering if closing || self.since.elapsed() > self.timeout => {
                let reason = if closing {
                    "rank 0 gave up before all ranks had joined".into()
                } else {
                    missing(&self.seats, self.timeout)
                };
                // Late ranks get no grace period.
                self.give_up(Refusal { reason, scope: Scope::All }, Duration::ZERO);
            }
            Phase::Running => self.watch(closing),
            Phase::Stopped { all } => {
                let knows = |seat: &Seat| seat.stopped || seat.gone || seat.left;
                *all |= self.since.elapsed() > CLOSING || self.seats.iter().flatten().all(knows);
                if *all {
                    self.answer_reporters();
                }
            }
            _ => {}
        }
    }

    fn answer_reporters(&mut self) {
        for rank in std::mem::take(&mut self.reporters) {
            let seat = self.seats[rank].as_ref();
            if let Some(connection) = seat.and_then(|seat| self.connections.get_mut(&seat.connection)) {
                connection.send(&Message::AllStopped);
            }
        }
    }
}
