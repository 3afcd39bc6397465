//! The processes of ranks: how they are set up, signalled and reaped.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, kill_process_group, waitid,
};

use super::exits::Exit;
use super::lines::Lines;
use super::{Event, LaunchError, spawn};

/// Sets up what happens in the child between fork and exec. The descriptor `keep_open` stays open in the child.
pub fn prepare(command: &mut Command, keep_open: Option<RawFd>) {
    let launcher = rustix::process::getpid();
    command.process_group(0);
    let setup = move || {
        // A rank is not in the terminal's foreground group. It must not be stopped when it reads there, or writes there
        // ("stty tostop").
        // SAFETY: ignoring a signal runs no code.
        unsafe {
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::signal(libc::SIGTTIN, libc::SIG_IGN);
        }
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The launcher may have died before that call.
        if getppid() != Some(launcher) {
            return Err(Errno::SRCH.into());
        }
        if let Some(fd) = keep_open {
            // SAFETY: the child has a copy of the launcher's descriptors, of which this is one.
            fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: `setup` makes only system calls. It does not allocate or lock.
    unsafe { command.pre_exec(setup) };
}

/// The ranks of this machine, in order. Dropping this kills those that still run.
pub struct Children {
    /// None once the process is reaped, because another process may get its number then.
    children: Vec<Option<Child>>,
    /// The number of pipes that are still open.
    pub pipes: usize,
}

impl Children {
    pub fn none() -> Children {
        Children { children: Vec::new(), pipes: 0 }
    }

    /// Starts a thread that waits for the child, and one for each pipe that reads it.
    pub fn add(
        &mut self,
        mut child: Child,
        rank: usize,
        local: usize,
        lines: &Arc<Lines>,
        events: &Sender<Event>,
    ) -> Result<(), LaunchError> {
        let pid = Pid::from_child(&child);
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
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
        let lines = Arc::clone(lines);
        let events = events.clone();
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

    /// Signals every rank that is not reaped. SIGTERM goes to the rank alone, other signals to its process group too.
    pub fn signal(&self, signal: Signal) {
        for child in self.children.iter().flatten() {
            // An error means that the process has ended.
            let _ = match signal {
                Signal::TERM => kill_process(Pid::from_child(child), signal),
                _ => kill_process_group(Pid::from_child(child), signal),
            };
        }
    }

    pub fn reap(&mut self, local: usize) -> Option<Exit> {
        let mut child = self.children.get_mut(local)?.take()?;
        // Until it is reaped, the dead rank's number still names its group. No process of the group is left behind.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        child.wait().ok().map(Exit::from)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}

/// Returns when the child has ended. Its number stays reserved.
fn wait_without_reaping(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
}
