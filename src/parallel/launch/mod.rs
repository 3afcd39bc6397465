//! Starts this machine's ranks and watches over them until the last has ended.
//!
//! Every rank is this program again, with the same arguments and torchrun's variables. Rank 0 has the terminal: it
//! inherits all three streams, so that its progress display is the one that is seen. The others write into pipes,
//! and what comes out of them goes line by line to standard error under the rank's name.
//!
//! For a single machine the launcher binds the rendezvous' port itself and hands the listening socket to rank 0:
//! there is no moment in which somebody else could take it.
//!
//! Every rank has a process group of its own, so Ctrl-C reaches the launcher alone, which passes it on once. Ranks
//! save what they have on SIGTERM, so that comes first; what does not end is killed. Ranks do not outlive the
//! launcher: the kernel sends them SIGTERM when the thread that started them is gone, hence [`Launch::run`] starts
//! and waits on one thread.

mod lines;
mod ranks;
mod verdict;

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::{Handle, Signals};

use super::World;
use super::environment::{AGENT_STORE, LAUNCHED, split};
use lines::Lines;
use ranks::{Ranks, prepare};
use verdict::Ends;

/// The number of the inherited listening socket, in rank 0 of a single machine.
pub const LISTENER: &str = "EFFNET_RENDEZVOUS_FD";
/// How long ranks have to learn of a failure and to end by themselves, and then after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);
/// A signal so soon after another one is the same request, told twice: `timeout` and many launchers signal a process and
/// then its group, service managers all processes of a job.
pub const ECHO: Duration = Duration::from_secs(1);
/// How long pipes may stay open after the last rank has ended.
const LINGER: Duration = Duration::from_secs(2);

/// What to start on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Ranks of this machine, and of every other.
    pub ranks: usize,
    /// Machines, and which of them this is.
    pub nodes: usize,
    pub node_rank: usize,
    /// `host:port` of rank 0; none with a single machine, where the launcher takes a free port.
    pub address: Option<String>,
}

/// What every rank runs.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// What it believes to be called: its first argument.
    pub name: OsString,
    pub arguments: Vec<OsString>,
    /// See [`PATIENCE`], the default.
    pub patience: Duration,
}

impl Program {
    /// This program with these arguments, the name left out.
    ///
    /// # Errors
    /// Where the system does not say what runs.
    pub fn this(arguments: Vec<OsString>) -> io::Result<Program> {
        let path = std::env::current_exe()?;
        // A file that was replaced while it runs.
        let path = if path.exists() { path } else { "/proc/self/exe".into() };
        let name = std::env::args_os().next().unwrap_or_else(|| path.clone().into());
        Ok(Program { path, name, arguments, patience: PATIENCE })
    }
}

/// Ranks that could not be started. Those that were are gone again.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("127.0.0.1: no port to listen at: {0}")]
    Listen(io::Error),
    #[error("rendezvous {0}: must be HOST:PORT")]
    Address(String),
    #[error("rank {rank}: {} does not start: {error}", path.display())]
    Start { rank: usize, path: PathBuf, error: io::Error },
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// The listening socket that the launcher has handed to this process, rank 0, by the variable's value.
///
/// # Errors
/// What the value is instead.
pub fn inherited_listener(value: &str) -> Result<RawFd, &'static str> {
    let fd: RawFd = value.parse().map_err(|_| "is no number")?;
    let (mut listens, mut size) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
    // SAFETY: the system checks the number, and writes as many bytes as there are.
    let result = unsafe { libc::getsockopt(fd, level, option, (&raw mut listens).cast(), &mut size) };
    if result != 0 || listens == 0 {
        return Err("is no listening socket");
    }
    // SAFETY: sets a flag. What this process may start has no use for the socket.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok(fd)
}

/// What the launcher waits for.
enum Event {
    Signal(i32),
    /// A rank, by its number on this machine, has ended and waits to be reaped.
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

    /// Starts the ranks, and returns when the last has ended: with the exit status, after everything has been said.
    ///
    /// 0 if all ranks ended well, 130 if they were interrupted and have saved, 2 if one refuses its command line,
    /// else 1. From the call on, SIGINT, SIGTERM and SIGTSTP are the launcher's.
    ///
    /// # Errors
    /// [`LaunchError`] where not all ranks could be started; then none is left.
    pub fn run(&self, program: &Program) -> Result<u8, LaunchError> {
        // Inherited as ignored, it would have the system reap the ranks unasked.
        // SAFETY: restoring a default runs no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let (sender, events) = channel();
        let signals = pass_on_signals(sender.clone())?;
        let lines = Arc::new(Lines::to_stderr());
        let result = self.start(program, &lines, sender).map(|ranks| {
            let first = self.world(0).rank;
            let (patience, ends) = (program.patience, Ends::new(first));
            Watch { ranks, events, patience, ends, asked: None, next: None }.until_all_end()
        });
        signals.close();
        let ends = result?;
        if let Some(line) = ends.last_word(lines.told_an_error()) {
            lines.say(&line);
        }
        Ok(ends.status())
    }

    fn start(
        &self,
        program: &Program,
        lines: &Arc<Lines>,
        events: Sender<Event>,
    ) -> Result<Ranks, LaunchError> {
        let (mut listener, host, port);
        match &self.address {
            Some(address) => {
                let parts = split(address).ok_or_else(|| LaunchError::Address(address.clone()))?;
                (listener, host, port) = (None, parts.0.to_owned(), parts.1);
            }
            None => {
                let bound = TcpListener::bind("127.0.0.1:0").map_err(LaunchError::Listen)?;
                port = bound.local_addr().map_err(LaunchError::Listen)?.port();
                (listener, host) = (Some(bound), "127.0.0.1".into());
            }
        }
        let mut ranks = Ranks::none();
        for local in 0..self.ranks {
            // Only rank 0 keeps the socket: were it held open elsewhere, a dead rank 0 would still seem to listen.
            let inherited = listener.take().filter(|_| local == 0);
            let World { rank, size, local_size, .. } = self.world(local);
            let mut command = Command::new(&program.path);
            command.arg0(&program.name).args(&program.arguments);
            for (name, value) in [
                ("RANK", rank),
                ("WORLD_SIZE", size),
                ("LOCAL_RANK", local),
                ("LOCAL_WORLD_SIZE", local_size),
                ("MASTER_PORT", port as usize),
                (LAUNCHED, 1),
            ] {
                command.env(name, value.to_string());
            }
            command.env("MASTER_ADDR", &host).env_remove(AGENT_STORE).env_remove(LISTENER);
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

fn pass_on_signals(events: Sender<Event>) -> Result<Handle, LaunchError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGTSTP]).map_err(LaunchError::Signals)?;
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

/// From the first rank's start to the last one's end.
struct Watch {
    ranks: Ranks,
    events: Receiver<Event>,
    patience: Duration,
    ends: Ends,
    /// When the user asked for the end.
    asked: Option<Instant>,
    /// When ranks that still run get which signal.
    next: Option<(Instant, i32)>,
}

impl Watch {
    fn until_all_end(mut self) -> Ends {
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
                    if let Some(end) = self.ranks.reap(local)
                        && self.ends.add(local, end)
                        && self.next.is_none()
                    {
                        self.next = Some((Instant::now() + self.patience, SIGTERM));
                    }
                }
                Err(_) => self.press(),
            }
        }
        // What the last one said is still on its way.
        let until = Instant::now() + LINGER;
        while self.ranks.pipes > 0 {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Closed) => self.ranks.pipes -= 1,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.ends
    }

    /// The first time ranks are asked to save and end, the second time they are ended.
    fn interrupt(&mut self) {
        self.ends.interrupted = true;
        match self.asked {
            None => {
                self.asked = Some(Instant::now());
                self.ranks.signal(SIGTERM);
            }
            Some(asked) if asked.elapsed() <= ECHO => {}
            Some(_) => {
                self.ends.killed = true;
                self.ranks.signal(libc::SIGKILL);
            }
        }
    }

    /// Ranks that do not end by themselves.
    fn press(&mut self) {
        let Some((_, signal)) = self.next.take() else { return };
        self.ends.pressed = true;
        self.ranks.signal(signal);
        if signal == SIGTERM {
            self.next = Some((Instant::now() + self.patience, libc::SIGKILL));
        }
    }

    /// Ctrl-Z stops the ranks too, and they go on when the launcher does.
    fn pause(&self) {
        self.ranks.signal(libc::SIGSTOP);
        // SAFETY: stops this process until somebody continues it.
        unsafe { libc::raise(libc::SIGSTOP) };
        self.ranks.signal(libc::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_its_part_of_the_ranks() {
        let launch = Launch { ranks: 4, nodes: 3, node_rank: 2, address: Some("a:1".into()) };
        assert_eq!(launch.world(1), World { rank: 9, size: 12, local_rank: 1, local_size: 4 });
    }

    #[test]
    fn only_a_listening_socket_is_taken_over() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = listener.as_raw_fd();
        assert_eq!(inherited_listener(&fd.to_string()), Ok(fd));
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(inherited_listener(&datagrams.as_raw_fd().to_string()).is_err());
        for value in ["-1", "987654321", "three", ""] {
            assert!(inherited_listener(value).is_err(), "{value}");
        }
    }
}
