//! The communicator: one rank's place in a group of ranks.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::library::{Answer, Handle, Nccl, SUCCESS, UniqueId};
use super::{NcclError, Reduce};

/// How long to wait until a communicator is destroyed. That needs the other ranks, which may have gone.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// A communicator of NCCL. Dropping it destroys it, or aborts it after a failure.
///
/// CUDA graphs that have captured its collectives must be destroyed before, since NCCL waits for them.
#[derive(Debug)]
pub struct Comm {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nccl: Nccl,
    state: Mutex<CommState>,
    ended: Condvar,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct CommState {
    /// None once it is being destroyed.
    handle: Option<Handle>,
    failed: bool,
    ended: bool,
}

// SAFETY: a communicator may be used from any thread, but only from one at a time, which the mutex ensures.
unsafe impl Send for CommState {}

/// Aborts a communicator from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Weak<Shared>);

impl Comm {
    /// Joins as `rank` of `size` ranks, on the GPU of the calling thread's context. Returns when all have joined. That
    /// may never happen, so the caller must be able to abandon the thread.
    ///
    /// # Errors
    /// Among others if two ranks have the same GPU.
    pub fn join(nccl: Nccl, id: UniqueId, size: usize, rank: usize) -> Result<Comm, NcclError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        let answer = unsafe { (nccl.functions.comm_init_rank)(&mut handle, size as i32, id, rank as i32) };
        nccl.check("ncclCommInitRank", answer)?;
        let state = CommState { handle: Some(handle), failed: false, ended: false };
        let shared =
            Shared { nccl, state: Mutex::new(state), ended: Condvar::new(), stopped: AtomicBool::new(false) };
        let comm = Comm { shared: Arc::new(shared) };
        let mut own = -1;
        // SAFETY: the communicator exists; writes one number.
        comm.call("ncclCommUserRank", |comm| unsafe { (nccl.functions.comm_user_rank)(comm, &mut own) })?;
        if own != rank as i32 {
            return Err(NcclError::Misplaced {
                rank,
                got: format!("rank {own}"),
                expected: format!("rank {rank}"),
            });
        }
        Ok(comm)
    }

    /// The number of its GPU within this process.
    pub fn device(&self) -> Result<usize, NcclError> {
        let mut device = -1;
        let functions = self.shared.nccl.functions;
        // SAFETY: the communicator exists; writes one number.
        self.call("ncclCommCuDevice", |comm| unsafe { (functions.comm_cu_device)(comm, &mut device) })?;
        Ok(device.max(0) as usize)
    }

    /// Enqueues ncclAllReduce: the elements at `at` are replaced on all ranks by their sum over the ranks, or by whatever
    /// `how` says.
    ///
    /// # Errors
    /// [`NcclError::Stopped`] after [`Stopper::stop`]; a failed call.
    ///
    /// # Safety
    /// `at` is the device address of that many elements, which nothing else accesses until the collective has finished.
    /// `stream` is a stream of the GPU's context. All ranks enqueue the same collectives in the same order.
    pub unsafe fn all_reduce(
        &self,
        at: u64,
        elements: usize,
        how: Reduce,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (kind, operation) = how.numbers();
        let at = at as *mut c_void;
        let all_reduce = self.shared.nccl.functions.all_reduce;
        // SAFETY: guaranteed by the caller.
        let call = |comm| unsafe { all_reduce(at, at, elements, kind, operation, comm, stream) };
        self.call("ncclAllReduce", call)
    }

    /// Enqueues ncclAllGather: the `bytes` bytes at `from` of every rank are written to `to`, in rank order.
    ///
    /// # Errors
    /// As for [`Comm::all_reduce`].
    ///
    /// # Safety
    /// As for [`Comm::all_reduce`]. `to` has space for the bytes of all ranks.
    pub unsafe fn all_gather(
        &self,
        from: u64,
        to: u64,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        const UINT8: i32 = 1;
        let all_gather = self.shared.nccl.functions.all_gather;
        // SAFETY: guaranteed by the caller.
        let call = |comm| unsafe {
            all_gather(from as *const c_void, to as *mut c_void, bytes, UINT8, comm, stream)
        };
        self.call("ncclAllGather", call)
    }

    /// Exchanges everything that `work` enqueues as one group.
    ///
    /// # Errors
    /// Those of `work`, or of the call.
    pub fn together(&self, work: impl FnOnce() -> Result<(), NcclError>) -> Result<(), NcclError> {
        let functions = self.shared.nccl.functions;
        // SAFETY: groups may be nested, and this one is closed below.
        self.call("ncclGroupStart", |_| unsafe { (functions.group_start)() })?;
        let worked = work();
        // A group belongs to the thread, so it must be closed even if the communicator has been aborted meanwhile.
        // SAFETY: closes the group that was opened above.
        let closed = self.shared.nccl.check("ncclGroupEnd", unsafe { (functions.group_end)() });
        if closed.is_err() {
            self.shared.lock().failed = true;
        }
        worked.and(closed)
    }

    /// Asks for errors of what was enqueued.
    ///
    /// # Errors
    /// [`NcclError::Stopped`]; a failure between the ranks, which the GPU's streams do not report.
    pub fn check(&self) -> Result<(), NcclError> {
        let mut code = SUCCESS;
        let functions = self.shared.nccl.functions;
        // SAFETY: the communicator exists; writes one number.
        let ask = |comm| unsafe { (functions.comm_get_async_error)(comm, &mut code) };
        self.call("ncclCommGetAsyncError", ask)?;
        let answer = self.shared.nccl.check("an exchange between ranks", code);
        self.note(answer)
    }

    /// A handle that aborts it from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::downgrade(&self.shared))
    }

    fn call(&self, name: &'static str, call: impl FnOnce(Handle) -> Answer) -> Result<(), NcclError> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(NcclError::Stopped);
        }
        let state = self.shared.lock();
        let handle = state.handle.ok_or(NcclError::Stopped)?;
        let answer = call(handle);
        drop(state);
        self.note(self.shared.nccl.check(name, answer))
    }

    fn note(&self, answer: Result<(), NcclError>) -> Result<(), NcclError> {
        if answer.is_err() {
            self.shared.lock().failed = true;
        }
        answer
    }
}

impl Stopper {
    /// Aborts the communicator: kernels that wait for other ranks finish with garbage, and every method returns
    /// [`NcclError::Stopped`] from now on. Does not wait.
    pub fn stop(&self) {
        let Some(shared) = self.0.upgrade() else { return };
        if !shared.stopped.swap(true, Ordering::AcqRel) {
            Shared::end(&shared, true);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, CommState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the communicator on a thread of its own: an abort returns only when all graphs that hold the communicator are
    /// destroyed, and an orderly end only when the other ranks end theirs.
    fn end(shared: &Arc<Shared>, abort: bool) {
        let ending = shared.clone();
        let work = move || {
            // Taken on this thread, since a call under way may hold the lock for long.
            let handle = ending.lock().handle.take();
            let Some(handle) = handle else { return };
            let functions = ending.nccl.functions;
            let end = if abort { functions.comm_abort } else { functions.comm_destroy };
            // SAFETY: the communicator exists and is used nowhere else any more. It is gone whatever the result is.
            unsafe { end(handle) };
            ending.lock().ended = true;
            ending.ended.notify_all();
        };
        // Without a thread the communicator stays until the process ends.
        if std::thread::Builder::new().name("nccl-end".into()).spawn(work).is_err() {
            shared.lock().ended = true;
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        let shared = &self.shared;
        if !shared.stopped.swap(true, Ordering::AcqRel) {
            // After a failure some collectives never finish, and an orderly end would wait for them.
            let abort = shared.lock().failed || std::thread::panicking();
            Shared::end(shared, abort);
        }
        let state = shared.lock();
        let waited = shared.ended.wait_timeout_while(state, LAST_WAIT, |state| !state.ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}
