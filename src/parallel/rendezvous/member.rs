//! A rank's own thread: heartbeats out, results and the stop in.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::connect::{Seated, interest, poll};
use super::error::seconds;
use super::wire::{Beat, Frame, Inbox, Message};
use super::{Cause, Membership, Stopped, Who};

pub type Hook = Box<dyn Fn() + Send + Sync>;

/// Time between heartbeats.
pub fn interval(watchdog: Duration) -> Duration {
    (watchdog / 4).clamp(Duration::from_millis(25), Duration::from_millis(250))
}

/// A pause of the thread itself (the process was stopped, the machine slept) is nobody's silence.
const PAUSE: Duration = Duration::from_secs(1);

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What lies under these locks is whole at any time; a panic elsewhere is reported by whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a rank's threads share.
pub struct Member {
    pub who: Who,
    pub all: Vec<Who>,
    pub stream: TcpStream,
    /// One frame at a time.
    writing: Mutex<()>,
    pub state: Mutex<State>,
    pub changed: Condvar,
    /// Step and words.
    pub doing: Mutex<(u64, &'static str)>,
    moves: AtomicU64,
    /// It says that it waits for other ranks.
    waiting: AtomicBool,
    /// Threads that wait for the service.
    pub blocked: AtomicUsize,
    /// The group's handle is gone.
    pub closing: AtomicBool,
    watchdog: Duration,
    /// Time between a stop and the process's end, where the group ends it.
    grace: Option<Duration>,
}

#[derive(Default)]
pub struct State {
    /// Exchanges collected.
    pub sequence: u64,
    /// The name of the one that is posted.
    pub posted: Option<&'static str>,
    /// What has come of it.
    pub parts: Vec<Vec<u8>>,
    pub stopped: Option<Stopped>,
    /// The stop is this rank's own finding, not the service's word.
    pub own: bool,
    /// The connection is at an end.
    pub lost: bool,
    /// The program has printed the stop.
    pub told: bool,
    /// All know of this rank's error.
    pub acknowledged: bool,
    pub leaving: bool,
    pub left: bool,
    pub hooks: Vec<Hook>,
}

impl Member {
    /// Starts the thread; it ends with the connection.
    pub fn start(membership: &Membership, who: Who, seated: Seated) -> std::io::Result<Arc<Member>> {
        let Seated { stream, inbox, all } = seated;
        stream.set_write_timeout(Some(membership.watchdog.max(PAUSE)))?;
        // Reading follows a poll that saw bytes; the limit is for the rare case that they are none after all.
        stream.set_read_timeout(Some(PAUSE))?;
        let member = Arc::new(Member {
            who,
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

    /// Whether it went out.
    pub fn send(&self, frame: &[u8]) -> bool {
        let _one = lock(&self.writing);
        (&self.stream).write_all(frame).is_ok()
    }

    /// It moves.
    pub fn moves(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub fn moved(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// It waits for other ranks, or does so no longer. It has moved by that; were this not counted first, a rank that
    /// has waited for long would look like one that has stood still for long without waiting.
    pub fn waits(&self, waits: bool) {
        self.moves();
        self.waiting.store(waits, Ordering::SeqCst);
    }

    /// What this rank does now.
    pub fn beat(&self) -> Vec<u8> {
        let (step, what) = *lock(&self.doing);
        // In this order: who waits no longer has moved before, see `waits`.
        let waiting = self.waiting.load(Ordering::SeqCst) || self.blocked.load(Ordering::SeqCst) > 0;
        let counter = self.moves.load(Ordering::SeqCst);
        Message::Beat(Beat { counter, step, what: what.into(), waiting }).encode()
    }

    fn run(self: &Arc<Self>, mut inbox: Inbox) {
        let interval = interval(self.watchdog);
        let (mut beaten, mut heard, mut looked) = (Instant::now(), Instant::now(), Instant::now());
        // What rank 0 does.
        let mut leader = Beat { what: "starting".into(), ..Beat::default() };
        loop {
            let mut socket = [interest(&self.stream, false)];
            poll(&mut socket, interval.saturating_sub(beaten.elapsed()));
            if socket[0].revents != 0 {
                match inbox.fill(&self.stream) {
                    Ok(0) => return self.lose(&leader, "ended without a word"),
                    Ok(_) => heard = Instant::now(),
                    Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                    Err(_) => return self.lose(&leader, "ended without a word"),
                }
            }
            loop {
                let sense = match inbox.frame() {
                    Ok(None) => break,
                    Ok(Some(Frame::Control(Message::Beat(beat)))) => {
                        leader = beat;
                        true
                    }
                    Ok(Some(frame)) => self.hear(frame),
                    Err(_) => false,
                };
                if !sense {
                    return self.lose(&leader, "sent what makes no sense");
                }
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
                // Where a frame is on its way just now, that is a sign of life too. A failure shows when reading.
                if let Ok(_one) = self.writing.try_lock() {
                    let _ = (&self.stream).write_all(&self.beat());
                }
            }
        }
    }

    /// Whether the frame makes sense.
    fn hear(self: &Arc<Self>, frame: Frame) -> bool {
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
                self.send(&Message::Heard.encode());
                self.stop(stopped, false);
                return true;
            }
            Frame::Control(Message::Told) => state.acknowledged = true,
            Frame::Control(Message::Farewell) => state.left = true,
            _ => return false,
        }
        self.changed.notify_all();
        true
    }

    /// The connection is at an end: in order, or because rank 0 is.
    fn lose(self: &Arc<Self>, leader: &Beat, how: &str) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut state = lock(&self.state);
        state.lost = true;
        self.changed.notify_all();
        if state.left || self.closing.load(Ordering::Relaxed) {
            return;
        }
        let first = &self.all[0];
        let message = format!("{first} {how}; it was in step {}: {}", leader.step, leader.what);
        self.keep(state, first.stopped(Cause::Ended, leader.doing(), message), true);
    }

    /// Keeps the first error, and makes everything that waits find out. `own`: no word of the service.
    pub fn stop(self: &Arc<Self>, stopped: Stopped, own: bool) {
        self.keep(lock(&self.state), stopped, own);
    }

    fn keep(self: &Arc<Self>, mut state: MutexGuard<State>, stopped: Stopped, own: bool) {
        if state.stopped.is_some() {
            return;
        }
        state.stopped = Some(stopped);
        state.own = own;
        let hooks = std::mem::take(&mut state.hooks);
        self.changed.notify_all();
        drop(state);
        self.end_process();
        hooks.iter().for_each(|hook| hook());
    }

    /// Ends a process that does not end by itself. This is for threads blocked where no hook reaches them.
    fn end_process(self: &Arc<Self>) {
        let Some(grace) = self.grace else { return };
        let own = self.clone();
        let end = move || {
            thread::sleep(grace);
            let state = lock(&own.state);
            // Rank 0 tells the error, unless it is rank 0 that is lost.
            let tells = own.who.rank == 0 || state.own;
            if let Some(stopped) = &state.stopped
                && tells
                && !state.told
            {
                // Whoever read that may have gone; the process ends all the same.
                let _ = writeln!(io::stderr(), "error: {stopped}{}", stopped.remedy());
            }
            // SAFETY: nothing of this process runs afterwards. An orderly exit would run handlers of libraries,
            // which wait for the very threads that hang.
            unsafe { libc::_exit(1) }
        };
        if thread::Builder::new().name("grace".into()).spawn(end).is_err() {
            let _ = writeln!(io::stderr(), "error: no thread is left to end this process");
        }
    }
}
