//! Rank 0's thread: one loop over all connections, which never blocks on any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::connect::{interest, poll};
use super::connection::{Connection, Read, Stage};
use super::seats::{Applicant, Fault, Seat, admit, missing, other_protocol};
use super::wire::{Frame, Message, PROTOCOL, Preamble, Whom};
use super::{Cause, Identity, Stopped};

/// Longest wait for something to come, so that times are looked at.
const TICK: Duration = Duration::from_millis(50);
/// A stranger's time to say who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Strangers at once; another one costs the oldest its connection.
const STRANGERS: usize = 256;
/// How long the end of the group is held up by ranks that do not hear of it.
const PARTING: Duration = Duration::from_secs(2);
/// How long a group that will not come together waits for ranks that are still on their way, to tell them why.
const LATE: Duration = Duration::from_secs(5);
/// How long the consequence of an error waits for the error itself.
pub const CAUSE: Duration = Duration::from_secs(1);
/// A pause of this thread itself (the process was stopped, the machine slept) is nobody's standing still.
const PAUSE: Duration = Duration::from_secs(1);

/// The running service; dropping it ends it, within a few seconds at most.
pub struct Service {
    thread: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
    hurried: Arc<AtomicBool>,
}

impl Service {
    /// `identity` is rank 0's.
    pub fn start(
        listener: TcpListener,
        size: usize,
        identity: Identity,
        timeout: Duration,
        watchdog: Duration,
    ) -> io::Result<Service> {
        listener.set_nonblocking(true)?;
        let (closing, hurried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let now = Instant::now();
        let desk = Desk {
            listener,
            connections: BTreeMap::new(),
            count: 0,
            seats: (0..size).map(|_| None).collect(),
            came: BTreeSet::new(),
            identity,
            timeout,
            watchdog,
            closing: closing.clone(),
            hurried: hurried.clone(),
            phase: Phase::Gathering,
            since: now,
            looked: now,
            beat: now,
            sequence: 0,
            what: None,
            suspicion: None,
            asking: Vec::new(),
        };
        let thread = thread::Builder::new().name("rendezvous".into()).spawn(move || desk.run())?;
        Ok(Service { thread: Some(thread), closing, hurried })
    }

    /// Ranks that have not come are not waited for any more, to tell them why the group does not come together.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic, if there was one, has been printed and has reached the ranks as a lost connection.
            let _ = thread.join();
        }
    }
}

pub enum Phase {
    /// Not all are there.
    Gathering,
    Running,
    /// The group does not come together. Ranks that come within `late` still hear why.
    Refused {
        why: String,
        whom: Whom,
        late: Duration,
    },
    /// There was an error; all know it or have had their time.
    Stopped {
        all: bool,
    },
    /// All have left.
    Left,
}

/// The thread's state.
pub struct Desk {
    listener: TcpListener,
    pub connections: BTreeMap<u64, Connection>,
    /// Connections so far.
    count: u64,
    /// By rank.
    pub seats: Vec<Option<Seat>>,
    /// Ranks that have come, refused ones too.
    came: BTreeSet<usize>,
    identity: Identity,
    timeout: Duration,
    pub watchdog: Duration,
    closing: Arc<AtomicBool>,
    hurried: Arc<AtomicBool>,
    pub phase: Phase,
    /// Start of the phase.
    since: Instant,
    /// Last look at the times.
    looked: Instant,
    /// Last heartbeat sent.
    pub beat: Instant,
    /// The exchange that goes on: its number, its name and the rank that came first.
    pub sequence: u64,
    pub what: Option<(String, usize)>,
    pub suspicion: Option<(Instant, Stopped)>,
    /// Ranks that wait to hear that all know of the error.
    pub asking: Vec<usize>,
}

impl Desk {
    fn run(mut self) {
        while !self.finished() {
            for connection in self.wait() {
                self.read(connection);
            }
            self.look();
            self.connections.values_mut().for_each(Connection::flush);
        }
    }

    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    fn finished(&self) -> bool {
        let late = self.since.elapsed() > PARTING;
        let mut connections = self.connections.values().filter(|connection| !connection.is_stranger());
        match self.phase {
            Phase::Gathering | Phase::Running => false,
            Phase::Left => late || !connections.any(Connection::has_more),
            Phase::Refused { late, .. } => {
                let late = if self.hurried.load(Ordering::Relaxed) { Duration::ZERO } else { late };
                let since = self.since.elapsed();
                let all = since >= late || self.came.len() == self.seats.len();
                all && (since >= late + PARTING || connections.next().is_none())
            }
            Phase::Stopped { all } => {
                all && (self.closing.load(Ordering::Relaxed) || connections.next().is_none())
            }
        }
    }

    /// Waits until something comes; takes newcomers in and returns whose bytes are there.
    fn wait(&mut self) -> Vec<u64> {
        let own = [interest(&self.listener, false)];
        let theirs = self.connections.values().map(|of| interest(&of.stream, of.has_more()));
        let mut sockets: Vec<libc::pollfd> = own.into_iter().chain(theirs).collect();
        poll(&mut sockets, TICK);
        let ready = |socket: &libc::pollfd| socket.revents & !libc::POLLOUT != 0;
        let found = self.connections.keys().zip(&sockets[1..]).filter(|(_, socket)| ready(socket));
        let found = found.map(|(number, _)| *number).collect();
        if ready(&sockets[0]) {
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
                    // No descriptor is free, perhaps. Not to run in circles until one is:
                    thread::sleep(TICK / 5);
                    return;
                }
            }
        }
    }

    fn read(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let read = connection.read();
        if let Stage::Rank(rank) = connection.stage
            && read == Read::Some
            && let Some(seat) = &mut self.seats[rank]
        {
            seat.heard = Instant::now();
        }
        // What came before the end counts.
        while let Some(connection) = self.connections.get_mut(&number) {
            let done = match connection.stage {
                Stage::New => connection.inbox.preamble().map(|found| found.map(|of| self.greet(number, of))),
                Stage::Greeted => {
                    connection.inbox.frame().map(|found| found.map(|of| self.hello(number, of)))
                }
                Stage::Rank(rank) => {
                    connection.inbox.frame().map(|found| found.map(|of| self.hear(rank, of)))
                }
                Stage::Parting => Ok(None),
            };
            match done {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(_) => return self.ended(number, "sent what makes no sense"),
            }
        }
        if read == Read::End {
            self.ended(number, "ended without a word");
        }
    }

    fn greet(&mut self, number: u64, theirs: Preamble) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.push(Preamble { protocol: PROTOCOL, rank: 0 }.encode().into());
        connection.stage = Stage::Greeted;
        if theirs.protocol != PROTOCOL {
            let why = other_protocol(theirs.rank, connection.from.ip(), theirs.protocol, PROTOCOL);
            self.comes(theirs.rank as usize);
            let gathering = matches!(self.phase, Phase::Gathering);
            self.fault(number, if gathering { Fault::Everybody(why) } else { Fault::Newcomer(why) });
        }
    }

    fn hello(&mut self, number: u64, frame: Frame) {
        let Frame::Control(Message::Hello { who, size, identity }) = frame else {
            self.connections.remove(&number);
            return;
        };
        self.comes(who.rank);
        if let Phase::Refused { why, whom, .. } = &self.phase {
            let refused = Message::Refused { why: why.clone(), whom: *whom };
            return self.part(number, &refused);
        }
        let applicant = Applicant { who: &who, size, identity: &identity };
        if let Err(fault) = admit(&self.seats, &applicant, &self.identity) {
            return self.fault(number, fault);
        }
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let left = self.timeout.saturating_sub(self.since.elapsed());
        connection.say(&Message::Seated { milliseconds: left.as_millis() as u64 });
        connection.stage = Stage::Rank(who.rank);
        connection.inbox.trust();
        let rank = who.rank;
        self.seats[rank] = Some(Seat::new(who, number));
        if self.seats.iter().all(Option::is_some) {
            let all = self.seats.iter().flatten().map(|seat| seat.who.clone()).collect();
            self.tell(&Message::Welcome { all });
            for seat in self.seats.iter_mut().flatten() {
                (seat.heard, seat.moved) = (Instant::now(), Instant::now());
            }
            self.enter(Phase::Running);
        }
    }

    fn comes(&mut self, rank: usize) {
        if rank < self.seats.len() {
            self.came.insert(rank);
        }
    }

    fn fault(&mut self, number: u64, fault: Fault) {
        match fault {
            Fault::Newcomer(why) => self.part(number, &Message::Refused { why, whom: Whom::One }),
            Fault::Everybody(why) => {
                self.part(number, &Message::Refused { why: why.clone(), whom: Whom::All });
                self.give_up(why, Whom::All, LATE);
            }
        }
    }

    /// The last message of a connection.
    fn part(&mut self, number: u64, message: &Message) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.say(message);
            connection.stage = Stage::Parting;
            connection.since = Instant::now();
        }
    }

    /// The group does not come together: all that are there are told, and those who come within `late`.
    fn give_up(&mut self, why: String, whom: Whom, late: Duration) {
        let there = self.connections.iter().filter(|(_, of)| matches!(of.stage, Stage::Rank(_)));
        let there: Vec<u64> = there.map(|(number, _)| *number).collect();
        let refused = Message::Refused { why: why.clone(), whom };
        there.iter().for_each(|number| self.part(*number, &refused));
        self.enter(Phase::Refused { why, whom, late });
    }

    /// A rank was asked to stop. If all are there, they settle it among themselves.
    pub fn withdraw(&mut self, rank: usize) {
        if let (Phase::Gathering, Some(seat)) = (&self.phase, &self.seats[rank]) {
            let why = format!("{} was interrupted before all ranks were there", seat.who);
            self.give_up(why, Whom::Interrupted, LATE);
        }
    }

    /// To all ranks that are still there.
    pub fn tell(&mut self, message: &Message) {
        self.pass(&message.encode().into());
    }

    pub fn pass(&mut self, bytes: &Arc<[u8]>) {
        for seat in self.seats.iter().flatten().filter(|seat| !seat.left) {
            if let Some(connection) = self.connections.get_mut(&seat.connection) {
                connection.push(bytes.clone());
            }
        }
    }

    pub fn say(&mut self, rank: usize, message: &Message) {
        let seat = self.seats[rank].as_ref();
        if let Some(connection) = seat.and_then(|seat| self.connections.get_mut(&seat.connection)) {
            connection.say(message);
        }
    }

    pub fn ended(&mut self, number: u64, how: &str) {
        let Some(connection) = self.connections.remove(&number) else { return };
        let Stage::Rank(rank) = connection.stage else { return };
        let Some(seat) = &mut self.seats[rank] else { return };
        seat.gone = true;
        match self.phase {
            Phase::Gathering => {
                let why = format!("{} {how} before all ranks were there", seat.who);
                self.give_up(why, Whom::All, LATE);
            }
            // It has said why already, though only as a suspicion.
            Phase::Running if self.suspicion.as_ref().is_some_and(|(_, of)| of.rank == rank) => {}
            Phase::Running if !seat.left => {
                let (step, what) = seat.beat.doing();
                let message = format!("{} {how}; it was in step {step}: {what}", seat.who);
                let stopped = seat.who.stopped(Cause::Ended, seat.beat.doing(), message);
                self.stop(stopped);
            }
            _ => {}
        }
    }

    /// All that happens because time goes by.
    fn look(&mut self) {
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
            Stage::Parting => of.since.elapsed() < PARTING,
        });
        let closing = self.closing.load(Ordering::Relaxed);
        match &mut self.phase {
            Phase::Gathering if closing => {
                let why = "rank 0 gave up before all ranks were there";
                self.give_up(why.into(), Whom::All, Duration::ZERO)
            }
            Phase::Gathering if self.since.elapsed() > self.timeout => {
                let why = missing(&self.seats, self.timeout);
                // Who has not come by now has had its time.
                self.give_up(why, Whom::All, Duration::ZERO);
            }
            Phase::Running => self.watch(closing),
            Phase::Stopped { all } => {
                let knows = |seat: &Seat| seat.stopped || seat.gone || seat.left;
                *all |= self.since.elapsed() > PARTING || self.seats.iter().flatten().all(knows);
                if *all {
                    for rank in std::mem::take(&mut self.asking) {
                        self.say(rank, &Message::Told);
                    }
                }
            }
            _ => {}
        }
    }
}
