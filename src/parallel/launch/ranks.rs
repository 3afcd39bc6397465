//! The processes of ranks: how they are set up, signalled and reaped.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use signal_hook::consts::SIGTERM;

use super::lines::Lines;
use super::verdict::Ended;
use super::{Event, LaunchError, spawn};

/// What happens in the child, between fork and exec.
pub fn prepare(command: &mut Command, keep_open: Option<RawFd>) {
    let launcher = std::process::id() as libc::pid_t;
    command.process_group(0);
    let setup = move || {
        // SAFETY: system calls alone, none of which allocates or takes a lock.
        unsafe {
            // Not in the terminal's foreground group, a rank may neither be stopped for writing there ("stty
            // tostop") nor for reading.
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::signal(libc::SIGTTIN, libc::SIG_IGN);
            #[cfg(target_os = "linux")]
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The launcher may have died before the kernel was asked to watch it.
            if libc::getppid() != launcher {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if keep_open.is_some_and(|fd| libc::fcntl(fd, libc::F_SETFD, 0) != 0) {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `setup` is async-signal-safe, as said above.
    unsafe { command.pre_exec(setup) };
}

/// Ranks of this machine, in their order. Dropped, it leaves none running.
pub struct Ranks {
    /// None once it has been reaped: from then on the number of its process may be anybody's.
    children: Vec<Option<Child>>,
    /// Pipes that are still open.
    pub pipes: usize,
}

impl Ranks {
    pub fn none() -> Ranks {
        Ranks { children: Vec::new(), pipes: 0 }
    }

    /// A thread waits for the child, one for each pipe reads it.
    pub fn add(
        &mut self,
        mut child: Child,
        rank: usize,
        local: usize,
        lines: &Arc<Lines>,
        events: &Sender<Event>,
    ) -> Result<(), LaunchError> {
        let (pid, stdout, stderr) = (child.id(), child.stdout.take(), child.stderr.take());
        self.children.push(Some(child));
        if let Some(pipe) = stdout {
            self.forward(pipe, rank, lines, events)?;
        }
        if let Some(pipe) = stderr {
            self.forward(pipe, rank, lines, events)?;
        }
        let events = events.clone();
        spawn(&format!("wait for rank {rank}"), move || {
            wait_without_reaping(pid);
            let _ = events.send(Event::Ended(local));
        })
    }

    fn forward(
        &mut self,
        pipe: impl io::Read + Send + 'static,
        rank: usize,
        lines: &Arc<Lines>,
        events: &Sender<Event>,
    ) -> Result<(), LaunchError> {
        let (lines, events) = (Arc::clone(lines), events.clone());
        spawn(&format!("lines of rank {rank}"), move || {
            lines.forward(pipe, rank);
            let _ = events.send(Event::Closed);
        })?;
        self.pipes += 1;
        Ok(())
    }

    pub fn all_ended(&self) -> bool {
        self.children.iter().all(Option::is_none)
    }

    /// To every rank that was not reaped. SIGTERM is the rank's own; the others reach whatever it has started, too.
    pub fn signal(&self, signal: i32) {
        for child in self.children.iter().flatten() {
            match signal {
                SIGTERM => send(child.id() as libc::pid_t, signal),
                _ => send(-(child.id() as libc::pid_t), signal),
            }
        }
    }

    pub fn reap(&mut self, local: usize) -> Option<Ended> {
        let mut child = self.children.get_mut(local)?.take()?;
        // While the dead rank has its number, so has its group: nothing of it stays behind.
        send(-(child.id() as libc::pid_t), libc::SIGKILL);
        child.wait().ok().map(Ended::from)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}

/// To a child that was not reaped, or, negated, to its group.
fn send(pid: libc::pid_t, signal: i32) {
    // SAFETY: the number is still our child's.
    unsafe { libc::kill(pid, signal) };
}

/// Returns when the child has ended, and leaves its number taken.
fn wait_without_reaping(pid: u32) {
    loop {
        // SAFETY: `info` is a plain structure that the call fills.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}
