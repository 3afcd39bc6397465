//! One rank's place among the ranks of a group.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::library::{Answer, Handle, Library, SUCCESS, UniqueId};
use super::{NcclError, Reduce};

/// How long a communicator's end is waited for. It needs the other ranks', who may have gone.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// See the module. When dropped it is destroyed, or aborted after a failure.
///
/// Graphs that have captured its collectives must be destroyed before: NCCL waits for them.
#[derive(Debug)]
pub struct Comm {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    library: Library,
    state: Mutex<State>,
    ended: Condvar,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// None once it is being ended.
    handle: Option<Handle>,
    failed: bool,
    ended: bool,
}

// SAFETY: a communicator may be used from any thread, by one at a time: the mutex sees to that.
unsafe impl Send for State {}

/// Ends a communicator from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Weak<Shared>);

impl Comm {
    /// Joins as `rank` of `size`, on the GPU whose context is the calling thread's. Returns when all have joined, which
    /// may be never: so call it where that can be given up.
    ///
    /// # Errors
    /// Among others for two ranks on one GPU.
    pub fn join(library: Library, id: UniqueId, size: usize, rank: usize) -> Result<Comm, NcclError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer; the numbers are ranks'.
        let answer = unsafe { (library.functions.comm_init_rank)(&mut handle, size as i32, id, rank as i32) };
        library.check("ncclCommInitRank", answer)?;
        let state = State { handle: Some(handle), failed: false, ended: false };
        let shared = Shared {
            library,
            state: Mutex::new(state),
            ended: Condvar::new(),
            stopped: AtomicBool::new(false),
        };
        let comm = Comm { shared: Arc::new(shared) };
        let mut own = -1;
        // SAFETY: the communicator is there; writes one number.
        comm.call("ncclCommUserRank", |comm| unsafe { (library.functions.comm_user_rank)(comm, &mut own) })?;
        if own != rank as i32 {
            return Err(NcclError::Misplaced {
                rank,
                got: format!("rank {own}"),
                expected: format!("rank {rank}"),
            });
        }
        Ok(comm)
    }

    /// The number of its GPU in this process.
    pub fn device(&self) -> Result<usize, NcclError> {
        let (mut device, functions) = (-1, self.shared.library.functions);
        // SAFETY: the communicator is there; writes one number.
        self.call("ncclCommCuDevice", |comm| unsafe { (functions.comm_cu_device)(comm, &mut device) })?;
        Ok(device.max(0) as usize)
    }

    /// Enqueues: what lies at `at` on the ranks becomes their sum, or whatever `how` says, on all of them.
    ///
    /// # Errors
    /// [`NcclError::Stopped`] once it was; a failed call.
    ///
    /// # Safety
    /// `at` is that many elements of the GPU's memory, and `stream` a stream of its context. All ranks enqueue the same in
    /// the same order.
    pub unsafe fn all_reduce(
        &self,
        at: u64,
        elements: usize,
        how: Reduce,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (kind, operation) = how.numbers();
        let (at, functions) = (at as *mut c_void, self.shared.library.functions);
        // SAFETY: as the caller promises.
        let reduce =
            |comm| unsafe { (functions.all_reduce)(at, at, elements, kind, operation, comm, stream) };
        self.call("ncclAllReduce", reduce)
    }

    /// Enqueues: `to` becomes the ranks' `bytes` bytes at `from`, in rank order.
    ///
    /// # Errors
    /// As for [`Comm::all_reduce`].
    ///
    /// # Safety
    /// As for [`Comm::all_reduce`]; at `to` is room for all ranks' bytes.
    pub unsafe fn all_gather(
        &self,
        from: u64,
        to: u64,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        const UINT8: i32 = 1;
        let functions = self.shared.library.functions;
        // SAFETY: as the caller promises.
        let gather = |comm| unsafe {
            (functions.all_gather)(from as *const c_void, to as *mut c_void, bytes, UINT8, comm, stream)
        };
        self.call("ncclAllGather", gather)
    }

    /// What `work` enqueues is exchanged as one.
    ///
    /// # Errors
    /// `work`'s, or the call's.
    pub fn together(&self, work: impl FnOnce() -> Result<(), NcclError>) -> Result<(), NcclError> {
        let functions = self.shared.library.functions;
        // SAFETY: groups nest, and this one is closed below.
        self.call("ncclGroupStart", |_| unsafe { (functions.group_start)() })?;
        let worked = work();
        // Closed whatever happened, also where the communicator has gone meanwhile: groups are the thread's.
        // SAFETY: closes what was opened above.
        let closed = self.shared.library.check("ncclGroupEnd", unsafe { (functions.group_end)() });
        if closed.is_err() {
            self.shared.lock().failed = true;
        }
        worked.and(closed)
    }

    /// Whether all is well with what was enqueued, as far as is known.
    ///
    /// # Errors
    /// [`NcclError::Stopped`]; what has gone wrong between the ranks, of which the GPU's streams say nothing.
    pub fn check(&self) -> Result<(), NcclError> {
        let (mut state, functions) = (SUCCESS, self.shared.library.functions);
        // SAFETY: the communicator is there; writes one number.
        let ask = |comm| unsafe { (functions.comm_get_async_error)(comm, &mut state) };
        self.call("ncclCommGetAsyncError", ask)?;
        let answer = self.shared.library.check("an exchange between ranks", state);
        self.note(answer)
    }

    /// What ends it from another thread.
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
        self.note(self.shared.library.check(name, answer))
    }

    fn note(&self, answer: Result<(), NcclError>) -> Result<(), NcclError> {
        if answer.is_err() {
            self.shared.lock().failed = true;
        }
        answer
    }
}

impl Stopper {
    /// Aborts the communicator: kernels that wait for other ranks end, with nothing of use, and every method says
    /// [`NcclError::Stopped`] from now on. Does not wait.
    pub fn stop(&self) {
        let Some(shared) = self.0.upgrade() else { return };
        if !shared.stopped.swap(true, Ordering::AcqRel) {
            Shared::end(&shared, true);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the communicator in a thread of its own: an abort comes back only when graphs that hold the communicator have
    /// gone, the orderly end when the other ranks have come to theirs.
    fn end(shared: &Arc<Shared>, abort: bool) {
        let ending = shared.clone();
        let work = move || {
            // Taken here, since a call under way may keep the lock.
            let handle = ending.lock().handle.take();
            let Some(handle) = handle else { return };
            let functions = ending.library.functions;
            let end = if abort { functions.comm_abort } else { functions.comm_destroy };
            // SAFETY: the communicator is there, and nobody else has it any more. Whatever is answered, that was the end.
            unsafe { end(handle) };
            ending.lock().ended = true;
            ending.ended.notify_all();
        };
        // Without a thread it is left to the process's end.
        if std::thread::Builder::new().name("nccl-end".into()).spawn(work).is_err() {
            shared.lock().ended = true;
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        let shared = &self.shared;
        if !shared.stopped.swap(true, Ordering::AcqRel) {
            // After a failure some of what was enqueued never ends, and an orderly end would wait for it.
            let abort = shared.lock().failed || std::thread::panicking();
            Shared::end(shared, abort);
        }
        let state = shared.lock();
        let waited = shared.ended.wait_timeout_while(state, LAST_WAIT, |state| !state.ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}
