//! Starts this machine's ranks and watches them until the last one has ended.
//!
//! Every rank is this program again, with the same arguments and torchrun's variables. Rank 0 has the terminal: it
//! inherits all three streams, so the user sees its progress display. The other ranks write into pipes. The launcher
//! prints their output on standard error line by line, with the number of the rank.
//!
//! With a single machine the launcher opens the port of the rendezvous itself and passes the listening socket to
//! rank 0, so no other program can take the port in between.
//!
//! Every rank has its own process group. So Ctrl-C reaches only the launcher, which passes it on once. Ranks save on
//! SIGTERM, which is sent first; ranks that do not end are killed. Ranks do not outlive the launcher: the kernel sends
//! them SIGTERM when the thread that started them ends. Therefore [`Launch::run`] starts and waits on one thread.

mod children;
mod exits;
mod lines;

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGSTOP, SIGTERM, SIGTSTP};
use signal_hook::iterator::{Handle, Signals};

use super::environment::{AGENT_STORE, LAUNCHED};
use super::{Address, World};
use children::{Children, prepare};
use exits::Exits;
use lines::Lines;

/// The number of the inherited listening socket, for rank 0 if there is a single machine.
pub const LISTENER: &str = "EFFNET_RENDEZVOUS_FD";
/// How long ranks have to learn of a failure and to end by themselves, and once more after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);
/// A second signal within this time is the same request: `timeout` and many launchers signal a process and then its
/// group, and service managers signal all processes of a job.
pub const ECHO: Duration = Duration::from_secs(1);
/// How long pipes may stay open after the last rank has ended.
const LINGER: Duration = Duration::from_secs(2);

/// What to start on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The number of ranks of every machine.
    pub ranks: usize,
    /// The number of machines.
    pub nodes: usize,
    /// The number of this machine, from 0.
    pub node_rank: usize,
    /// Where rank 0 listens. None with a single machine: the launcher takes a free port.
    pub address: Option<Address>,
}

/// What every rank runs.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// Its own name, as argument 0.
    pub name: OsString,
    pub arguments: Vec<OsString>,
    /// The time of [`PATIENCE`], the default.
    pub patience: Duration,
}

impl Program {
    /// This program with these arguments, without its name.
    ///
    /// # Errors
    /// If the system does not say which file this process runs.
    pub fn this(arguments: Vec<OsString>) -> io::Result<Program> {
        let path = std::env::current_exe()?;
        // The file may have been replaced while it runs.
        let path = if path.exists() { path } else { "/proc/self/exe".into() };
        let name = std::env::args_os().next().unwrap_or_else(|| path.clone().into());
        Ok(Program { path, name, arguments, patience: PATIENCE })
    }
}

/// A rank could not be started. Ranks that were started are ended again.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("127.0.0.1: no port to listen at: {0}")]
    Listen(io::Error),
    #[error("rank {rank}: {} does not start: {error}", path.display())]
    Start { rank: usize, path: PathBuf, error: io::Error },
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// The listening socket that the launcher has passed to this process, from the value of [`LISTENER`].
///
/// # Errors
/// What is wrong with the value.
///
/// # Safety
/// If it is the number of an open descriptor, no other code of this process owns that descriptor.
pub unsafe fn inherited_listener(value: &str) -> Result<TcpListener, &'static str> {
    let fd: RawFd = value.parse().ok().filter(|fd| *fd >= 0).ok_or("is not a number")?;
    // SAFETY: the system checks whether the descriptor is open.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    if !socket_acceptconn(socket).unwrap_or(false) {
        return Err("is not a listening socket");
    }
    // Processes that this one may start do not need the socket.
    let _ = fcntl_setfd(socket, FdFlags::CLOEXEC);
    // SAFETY: it is an open socket, and guaranteed to have no other owner.
    Ok(unsafe { TcpListener::from_raw_fd(fd) })
}

/// What the launcher waits for.
enum Event {
    Signal(i32),
    /// A rank, by its number on this machine, has ended and must be reaped.
    Ended(usize),
    /// A pipe has closed.
    Closed,
}

impl Launch {
    /// The place of one of this machine's ranks.
    pub fn world(&self, local_rank: usize) -> World {
        World {
            rank: self.node_rank * self.ranks + local_rank,
            size: self.ranks * self.nodes,
            local_rank,
            local_size: self.ranks,
        }
    }

    /// Starts the ranks and waits until the last one has ended. Prints everything that is to be printed, and returns the
    /// exit status: 0 if all ranks finished, 130 if they were interrupted and have saved, 2 if one refuses its command
    /// line, else 1. From the call on, the launcher handles SIGINT, SIGTERM and SIGTSTP.
    ///
    /// # Errors
    /// [`LaunchError`] if a rank could not be started. Then no rank is left.
    pub fn run(&self, program: &Program) -> Result<u8, LaunchError> {
        // If it were ignored, as it may be inherited, the system would reap the ranks.
        // SAFETY: restoring a default runs no code.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let (sender, events) = channel();
        let signals = pass_on_signals(sender.clone())?;
        let lines = Arc::new(Lines::to_stderr());
        let result = self.start(program, &lines, sender).map(|ranks| {
            let exits = Exits::new(self.world(0).rank);
            let patience = program.patience;
            Watch { ranks, events, patience, exits, interrupted: None, next: None }.until_all_end()
        });
        signals.close();
        let exits = result?;
        if let Some(line) = exits.error(lines.has_error()) {
            lines.print(&line);
        }
        Ok(exits.status())
    }

    fn start(
        &self,
        program: &Program,
        lines: &Arc<Lines>,
        events: Sender<Event>,
    ) -> Result<Children, LaunchError> {
        let mut listener = None;
        let address = match &self.address {
            Some(address) => address.clone(),
            None => {
                let bound = TcpListener::bind("127.0.0.1:0").map_err(LaunchError::Listen)?;
                let port = bound.local_addr().map_err(LaunchError::Listen)?.port();
                listener = Some(bound);
                Address::new("127.0.0.1", port)
            }
        };
        let mut ranks = Children::none();
        for local in 0..self.ranks {
            // The launcher drops the socket once rank 0 has it. If another process held it open, ranks could still
            // connect to the port after rank 0 has died.
            let inherited = listener.take().filter(|_| local == 0);
            let World { rank, size, local_size, .. } = self.world(local);
            let mut command = Command::new(&program.path);
            command.arg0(&program.name).args(&program.arguments);
            for (name, value) in [
                ("RANK", rank),
                ("WORLD_SIZE", size),
                ("LOCAL_RANK", local),
                ("LOCAL_WORLD_SIZE", local_size),
                ("MASTER_PORT", address.port.into()),
                (LAUNCHED, 1),
            ] {
                command.env(name, value.to_string());
            }
            command.env("MASTER_ADDR", &address.host).env_remove(AGENT_STORE).env_remove(LISTENER);
            if let Some(listener) = &inherited {
                command.env(LISTENER, listener.as_raw_fd().to_string());
            }
            if rank > 0 {
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            prepare(&mut command, inherited.as_ref().map(|listener| listener.as_raw_fd()));
            let failed = |error| LaunchError::Start { rank, path: program.path.clone(), error };
            let child = command.spawn().map_err(failed)?;
            ranks.add(child, rank, local, lines, &events)?;
        }
        Ok(ranks)
    }
}

/// The signals that end a run: Ctrl-C, SIGTERM, and the loss of the terminal, unless `nohup` has this process ignore it.
pub fn end_signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut signals = vec![SIGINT, SIGTERM];
    if !ignores(&status, SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether the process of this `/proc/self/status` ignores a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn pass_on_signals(events: Sender<Event>) -> Result<Handle, LaunchError> {
    let mut signals = Signals::new([end_signals(), vec![SIGTSTP]].concat()).map_err(LaunchError::Signals)?;
    let handle = signals.handle();
    spawn("signals", move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(handle)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), LaunchError> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(LaunchError::Thread)
}

/// The launcher's loop from the start of the first rank to the end of the last one.
struct Watch {
    ranks: Children,
    events: Receiver<Event>,
    patience: Duration,
    exits: Exits,
    /// When the user first asked the run to end.
    interrupted: Option<Instant>,
    /// The next signal for ranks that still run, and when it is sent.
    next: Option<(Instant, Signal)>,
}

impl Watch {
    fn until_all_end(mut self) -> Exits {
        while !self.ranks.all_ended() {
            let event = match self.next {
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some((at, _)) => self.events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::Closed) => self.ranks.pipes -= 1,
                Ok(Event::Signal(SIGTSTP)) => self.pause(),
                Ok(Event::Signal(_)) => self.interrupt(),
                Ok(Event::Ended(local)) => {
                    if let Some(exit) = self.ranks.reap(local)
                        && self.exits.add(local, exit)
                        && self.next.is_none()
                    {
                        self.next = Some((Instant::now() + self.patience, Signal::TERM));
                    }
                }
                Err(_) => self.press(),
            }
        }
        // The last output of the ranks may still be on its way.
        let until = Instant::now() + LINGER;
        while self.ranks.pipes > 0 {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Closed) => self.ranks.pipes -= 1,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.exits
    }

    /// The first request asks the ranks to save and end, the second one kills them.
    fn interrupt(&mut self) {
        self.exits.interrupted = true;
        match self.interrupted {
            None => {
                self.interrupted = Some(Instant::now());
                self.ranks.signal(Signal::TERM);
            }
            Some(first) if first.elapsed() <= ECHO => {}
            Some(_) => {
                self.exits.killed = true;
                self.ranks.signal(Signal::KILL);
            }
        }
    }

    /// Signals ranks that do not end by themselves.
    fn press(&mut self) {
        let Some((_, signal)) = self.next.take() else { return };
        self.exits.pressed = true;
        self.ranks.signal(signal);
        if signal == Signal::TERM {
            self.next = Some((Instant::now() + self.patience, Signal::KILL));
        }
    }

    /// Ctrl-Z: suspends the ranks and this process. The ranks continue when this process does.
    fn pause(&self) {
        self.ranks.signal(Signal::STOP);
        // Returns when this process continues.
        let _ = signal_hook::low_level::raise(SIGSTOP);
        self.ranks.signal(Signal::CONT);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn ignores_reads_the_mask() {
        assert!(ignores("Name:\tx\nSigIgn:\t0000000000001001\n", SIGHUP));
        assert!(!ignores("SigIgn:\t0000000000001000\n", SIGHUP));
        assert!(!ignores("", SIGHUP));
    }

    #[test]
    fn ranks_are_numbered_machine_by_machine() {
        let launch = Launch { ranks: 4, nodes: 3, node_rank: 2, address: Some(Address::new("a", 1)) };
        assert_eq!(launch.world(1), World { rank: 9, size: 12, local_rank: 1, local_size: 4 });
    }

    #[test]
    fn inherited_listener_must_be_a_listening_socket() {
        // SAFETY: all descriptors are this test's.
        let inherit = |value: &str| unsafe { inherited_listener(value) };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inherited = inherit(&listener.into_raw_fd().to_string()).unwrap();
        assert_eq!(inherited.local_addr().unwrap(), address);
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(inherit(&datagrams.as_raw_fd().to_string()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherit(&file.as_raw_fd().to_string()).is_err());
        for value in ["-1", "987654321", "three", ""] {
            assert!(inherit(value).is_err(), "{value}");
        }
    }
}
