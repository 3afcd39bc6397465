//! A rank's own thread: sends heartbeats, receives results and the stop.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::connect::{Joined, interest, poll};
use super::error::{print_error_or_give_up, seconds};
use super::wire::{Frame, Heartbeat, Inbox, Message};
use super::{Cause, Membership, RankId, Stopped, lock};

pub type Hook = Box<dyn Fn() + Send + Sync>;

/// The time between heartbeats.
pub fn interval(watchdog: Duration) -> Duration {
    (watchdog / 4).clamp(Duration::from_millis(25), Duration::from_millis(250))
}

/// A longer gap between two turns of the loop means that this process or the machine was suspended. The time is not
/// counted against rank 0.
const PAUSE: Duration = Duration::from_secs(1);

/// What the threads of a rank share.
pub struct Member {
    pub id: RankId,
    /// All ranks, in rank order.
    all: Vec<RankId>,
    pub stream: TcpStream,
    /// Held while a frame is written.
    writing: Mutex<()>,
    pub state: Mutex<MemberState>,
    pub changed: Condvar,
    /// The step and the activity, for messages.
    pub doing: Mutex<(u64, &'static str)>,
    moves: AtomicU64,
    /// The rank says that it waits for other ranks.
    waiting: AtomicBool,
    /// The number of threads that wait for the service.
    pub blocked: AtomicUsize,
    /// The [`Group`](super::Group) is dropped.
    pub closing: AtomicBool,
    watchdog: Duration,
    /// The time between a stop and the end of the process, if the group ends it.
    grace: Option<Duration>,
}

#[derive(Default)]
pub struct MemberState {
    /// The number of collected exchanges.
    pub sequence: u64,
    /// The name of the exchange under way.
    pub posted: Option<&'static str>,
    /// The parts of it that have arrived.
    pub parts: Vec<Vec<u8>>,
    pub stopped: Option<Stopped>,
    /// This rank has detected the stop itself; it did not come from the service.
    pub own: bool,
    /// The connection is closed.
    pub lost: bool,
    /// All ranks know this rank's error.
    pub acknowledged: bool,
    pub leaving: bool,
    pub left: bool,
    pub hooks: Vec<Hook>,
}

impl Member {
    /// Starts the thread. It ends when the connection is closed.
    pub fn start(membership: &Membership, id: RankId, joined: Joined) -> io::Result<Arc<Member>> {
        let Joined { stream, inbox, all } = joined;
        stream.set_write_timeout(Some(membership.watchdog.max(PAUSE)))?;
        // `poll` reports bytes before a read. The limit is for the rare case that there are none after all.
        stream.set_read_timeout(Some(PAUSE))?;
        let member = Arc::new(Member {
            id,
            all,
            stream,
            writing: Mutex::new(()),
            state: Mutex::default(),
            changed: Condvar::new(),
            doing: Mutex::new((0, "starting")),
            moves: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            blocked: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            watchdog: membership.watchdog,
            grace: membership.hard_exit.then_some(membership.grace),
        });
        let own = member.clone();
        thread::Builder::new().name("heartbeat".into()).spawn(move || own.run(inbox))?;
        Ok(member)
    }

    /// Sends a frame. False after a failure.
    pub fn send(&self, frame: &[u8]) -> bool {
        let _one = lock(&self.writing);
        (&self.stream).write_all(frame).is_ok()
    }

    /// This rank makes progress.
    pub fn moves(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    pub fn moved(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// This rank starts or ends to wait for other ranks. That counts as progress, and is counted first: else a rank that
    /// has waited for long would look as if it had been idle for long without waiting.
    pub fn waits(&self, waits: bool) {
        self.moves();
        self.waiting.store(waits, Ordering::SeqCst);
    }

    /// An encoded heartbeat.
    pub fn beat(&self) -> Vec<u8> {
        let (step, what) = *lock(&self.doing);
        // The flags are read first: a rank that does not wait any more has counted its progress before, see `waits`.
        let waiting = self.waiting.load(Ordering::SeqCst) || self.blocked.load(Ordering::SeqCst) > 0;
        let counter = self.moves.load(Ordering::SeqCst);
        Message::Heartbeat(Heartbeat { counter, step, what: what.into(), waiting }).encode()
    }

    fn run(self: &Arc<Self>, mut inbox: Inbox) {
        let interval = interval(self.watchdog);
        let mut beaten = Instant::now();
        let mut heard = beaten;
        let mut looked = beaten;
        // What rank 0 does.
        let mut leader = Heartbeat::starting();
        loop {
            let mut socket = [interest(&self.stream, false)];
            if poll(&mut socket, interval.saturating_sub(beaten.elapsed()))[0] {
                match inbox.fill(&self.stream) {
                    Ok(0) => return self.lose(&leader, "ended without a message"),
                    Ok(_) => heard = Instant::now(),
                    Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                    Err(_) => return self.lose(&leader, "ended without a message"),
                }
            }
            if !self.handle_all(&mut inbox, &mut leader) {
                return self.lose(&leader, "sent a malformed message");
            }
            if looked.elapsed() > PAUSE {
                heard += looked.elapsed();
            }
            looked = Instant::now();
            if heard.elapsed() > self.watchdog {
                let how = format!("has given no sign of life for {}", seconds(self.watchdog));
                return self.lose(&leader, &how);
            }
            if beaten.elapsed() >= interval {
                beaten = Instant::now();
                // If another frame is being written, it is a sign of life too. A failure is noticed when reading.
                if let Ok(_one) = self.writing.try_lock() {
                    let _ = (&self.stream).write_all(&self.beat());
                }
            }
        }
    }

    /// Handles all frames that have arrived. False if one is malformed.
    fn handle_all(self: &Arc<Self>, inbox: &mut Inbox, leader: &mut Heartbeat) -> bool {
        loop {
            let expected = match inbox.frame() {
                Ok(None) => return true,
                Ok(Some(Frame::Control(Message::Heartbeat(beat)))) => {
                    *leader = beat;
                    true
                }
                Ok(Some(frame)) => self.handle(frame),
                Err(_) => false,
            };
            if !expected {
                return false;
            }
        }
    }

    /// Handles a frame. False if it is not expected.
    fn handle(self: &Arc<Self>, frame: Frame) -> bool {
        let mut state = lock(&self.state);
        match frame {
            Frame::Part { sequence, bytes } => {
                if sequence != state.sequence || state.posted.is_none() || state.parts.len() == self.all.len()
                {
                    return false;
                }
                state.parts.push(bytes);
            }
            Frame::Control(Message::Stop(stopped)) => {
                drop(state);
                self.send(&Message::StopReceived.encode());
                self.stop(stopped, false);
                return true;
            }
            Frame::Control(Message::AllStopped) => state.acknowledged = true,
            Frame::Control(Message::Goodbye) => state.left = true,
            _ => return false,
        }
        self.changed.notify_all();
        true
    }

    /// The connection has ended: as expected, or because rank 0 has ended.
    fn lose(self: &Arc<Self>, leader: &Heartbeat, how: &str) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut state = lock(&self.state);
        state.lost = true;
        self.changed.notify_all();
        if state.left || self.closing.load(Ordering::Relaxed) {
            return;
        }
        self.keep(state, self.all[0].observed(Cause::Ended, how, leader), true);
    }

    /// Keeps the first error, and ends all waits. `own`: this rank has detected it, not the service.
    pub fn stop(self: &Arc<Self>, stopped: Stopped, own: bool) {
        self.keep(lock(&self.state), stopped, own);
    }

    fn keep(self: &Arc<Self>, mut state: MutexGuard<MemberState>, stopped: Stopped, own: bool) {
        if state.stopped.is_some() {
            return;
        }
        // Rank 0 prints the error, unless the error is that rank 0 is lost.
        let line = (self.id.rank == 0 || own).then(|| format!("{stopped}{}", stopped.remedy()));
        state.stopped = Some(stopped);
        state.own = own;
        let hooks = std::mem::take(&mut state.hooks);
        self.changed.notify_all();
        drop(state);
        if let Some(grace) = self.grace {
            end_process_after(grace, line);
        }
        hooks.iter().for_each(|hook| hook());
    }
}

/// Ends the process if it does not end by itself: a thread may be blocked where no hook reaches it, also while the
/// process exits. `line` is the error to print.
fn end_process_after(grace: Duration, line: Option<String>) {
    let end = move || {
        thread::sleep(grace);
        if let Some(line) = line {
            print_error_or_give_up(&line);
        }
        // Without exit handlers: those of libraries may wait for the very threads that hang.
        signal_hook::low_level::exit(1)
    };
    if thread::Builder::new().name("grace".into()).spawn(end).is_err() {
        let _ = writeln!(io::stderr(), "error: no thread is left to end this process");
    }
}
