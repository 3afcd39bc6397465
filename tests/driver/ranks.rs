//! Ranks on GPUs through NVIDIA's driver and NCCL, with the stand-ins `libcuda.cpp` and `libnccl.cpp`. The latter assumes
//! that every rank holds the same numbers. The other ranks of the group are threads that exchange on the control path what
//! real ranks exchange there.

use std::ffi::{CString, c_int};
use std::net::TcpListener;
use std::sync::{Arc, LazyLock, MutexGuard};
use std::time::Duration;

use crate::common::shared_folder::until_exit;
use crate::common::stand_in;
use crate::fake::{Fake, add, floats, function, launch, open};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::gpu::{Gpu, Piece, Reduce};
use effnet::ops::{OpsError, Result};
use effnet::parallel::nccl::{NcclError, Version};
use effnet::parallel::{Group, Identity, Membership};

struct FakeNccl {
    nccl: extern "C" fn(c_int, c_int, c_int, c_int),
    ends: extern "C" fn(*mut c_int),
    inside: extern "C" fn() -> c_int,
}

static NCCL: LazyLock<FakeNccl> = LazyLock::new(|| {
    // Programs that a test starts may load it too, so the file stays.
    let folder = until_exit(tempfile::tempdir().unwrap());
    let library = stand_in::build(folder.path(), "libnccl");
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: as in `Fake::load`. Only tests read the variable, later than this.
    unsafe {
        std::env::set_var("NCCL_LIBRARY", &library);
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        std::mem::forget(folder);
        FakeNccl {
            nccl: function(handle, "fake_nccl"),
            ends: function(handle, "fake_nccl_ends"),
            inside: function(handle, "fake_nccl_inside"),
        }
    }
});

/// A machine with one GPU, and an NCCL without failures.
fn machine(eager: c_int) -> MutexGuard<'static, Fake> {
    let fake = Fake::card(12_040, (9, 0));
    (fake.eager_transfers)(eager);
    (NCCL.nccl)(23_203, 0, 0, 0);
    fake
}

/// The numbers of communicators that were destroyed, aborted, and ended while graphs existed.
fn ends() -> [c_int; 3] {
    let mut counts = [0; 3];
    (NCCL.ends)(counts.as_mut_ptr());
    counts
}

/// Another rank describes its GPU.
fn describe_gpu(group: &Group) {
    let rank = group.world().rank;
    let own = format!("2 32 3\nOther GPU, 00000000:0{rank}:00.0\nanother machine");
    group.exchange("the ranks' GPUs", own.as_bytes()).unwrap();
}

/// Everything that another rank exchanges when GPUs are joined.
fn join_gpus(group: &Group) {
    describe_gpu(group);
    group.broadcast("NCCL's identifier", None).unwrap();
}

/// Runs `first` as rank 0 of a group in which every other rank runs `other`.
fn among<T>(size: usize, other: impl Fn(Arc<Group>) + Sync, first: impl FnOnce(Arc<Group>) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        for rank in 1..size {
            let membership = Membership::local(rank, size, &listener).unwrap();
            let other = &other;
            scope.spawn(move || other(Group::join(&membership, Identity::default()).unwrap()));
        }
        let membership = Membership::local(0, size, &listener).unwrap();
        first(Group::join(&membership, Identity::default()).unwrap())
    })
}

/// The same with other ranks that join the GPUs and then leave.
fn among_well<T>(size: usize, first: impl FnOnce(&Arc<Group>) -> T) -> T {
    let other = |group: Arc<Group>| {
        join_gpus(&group);
        group.leave().unwrap();
    };
    among(size, other, |group| {
        let done = first(&group);
        group.leave().unwrap();
        done
    })
}

/// The same with another rank that fails after a while: if `joined` after it has joined the GPUs, else before it gets
/// NCCL's identifier.
fn among_one_that_fails<T>(first: impl FnOnce(&Arc<Group>) -> T, joined: bool) -> T {
    let other = |group: Arc<Group>| {
        if joined {
            join_gpus(&group)
        } else {
            describe_gpu(&group)
        }
        std::thread::sleep(Duration::from_millis(300));
        group.fail("the disk is full");
    };
    among(2, other, |group| first(&group))
}

/// Launches work in the order of a training step: a sum starts after one kernel, runs beside another one, and finishes
/// before a third one.
fn step(gpu: &mut Driver, at: [effnet::ops::cuda::Address; 2]) -> Result {
    add(gpu, &launch("add_f32"), at[0], 2.0)?;
    gpu.collective_begin()?;
    gpu.all_reduce(&[Piece { at: at[0], elements: 4, how: Reduce::SumF32 }])?;
    add(gpu, &launch("add_f32"), at[1], 5.0)?;
    gpu.collective_begin()?;
    gpu.all_reduce(&[
        Piece { at: at[1], elements: 1, how: Reduce::AverageF32 },
        Piece { at: at[1].offset(4), elements: 1, how: Reduce::MaxU32 },
        Piece { at: at[1].offset(8), elements: 1, how: Reduce::SumF32 },
    ])?;
    gpu.collective_end()?;
    add(gpu, &launch("add_f32"), at[0], 1.0)?;
    add(gpu, &launch("add_f32"), at[1], 0.5)
}

/// Runs `work` on a GPU that is connected to ranks without failures, and checks that nothing is left afterwards. Returns
/// [`ends`].
fn connected(size: usize, eager: c_int, work: impl FnOnce(&mut Driver)) -> [c_int; 3] {
    let fake = machine(eager);
    among_well(size, |group| {
        let mut gpu = open().unwrap();
        gpu.connect(group).unwrap();
        work(&mut gpu);
        // Sums go before computation, also in graphs.
        assert_eq!((fake.report)().lost_priorities, 0);
        drop(gpu);
        assert_eq!((fake.live)(), 0);
    });
    ends()
}

#[test]
fn sum_runs_after_its_input_is_ready_and_before_its_result_is_used() {
    for eager in [0, 1] {
        let ends = connected(2, eager, |gpu| {
            let at = [gpu.allocate(16).unwrap(), gpu.allocate(16).unwrap()];
            step(gpu, at).unwrap();
            assert_eq!(floats(gpu, at[0]), [5.0; 4]);
            assert_eq!(floats(gpu, at[1]), [5.5, 5.5, 10.5, 5.5]);
        });
        assert_eq!(ends, [1, 0, 0]);
    }
}

#[test]
fn sum_is_recorded_with_the_step_and_launched_several_times() {
    for eager in [0, 1] {
        let ends = connected(2, eager, |gpu| {
            let at = [gpu.allocate(16).unwrap(), gpu.allocate(16).unwrap()];
            add(gpu, &launch("add_f32"), at[0], 0.0).unwrap();
            gpu.begin_capture().unwrap();
            step(gpu, at).unwrap();
            let graph = gpu.end_capture().unwrap();
            assert_eq!(floats(gpu, at[0]), [0.0; 4]);
            let mut first = [0.0; 4];
            let mut second = [0.0; 4];
            for _ in 0..3 {
                gpu.launch_graph(graph).unwrap();
                first = first.map(|value| (value + 2.0) * 2.0 + 1.0);
                second = [0, 1, 2, 3].map(|i| (second[i] + 5.0) * if i == 2 { 2.0 } else { 1.0 } + 0.5);
            }
            assert_eq!(floats(gpu, at[0]), first);
            assert_eq!(floats(gpu, at[1]), second);
            // Work that is never waited for cannot be recorded.
            gpu.begin_capture().unwrap();
            gpu.collective_begin().unwrap();
            gpu.all_reduce(&[Piece { at: at[0], elements: 4, how: Reduce::SumF32 }]).unwrap();
            let error = gpu.end_capture().unwrap_err().to_string();
            assert_eq!(error, "cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_UNJOINED");
        });
        // Destroyed once, after the graphs.
        assert_eq!(ends, [1, 0, 0]);
    }
}

#[test]
fn gather_of_bytes_and_time_between_collectives() {
    connected(3, 0, |gpu| {
        let from = gpu.allocate(4).unwrap();
        let to = gpu.allocate(16).unwrap();
        add(gpu, &launch("add_f32"), from, 0.0).unwrap();
        gpu.write(from, &1.5f32.to_le_bytes()).unwrap();
        gpu.collective_begin().unwrap();
        let began = gpu.collective_mark().unwrap();
        gpu.all_gather(from, to, 4).unwrap();
        let ended = gpu.collective_mark().unwrap();
        gpu.collective_end().unwrap();
        assert_eq!(gpu.elapsed(began, ended).unwrap(), 1500.0);
        assert_eq!(floats(gpu, to), [1.5, 1.5, 1.5, 0.0]);
    });
}

#[test]
fn collectives_without_ranks_are_refused() {
    let _fake = machine(0);
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    let refused = [
        gpu.collective_begin(),
        gpu.all_reduce(&[Piece { at, elements: 1, how: Reduce::SumF32 }]),
        gpu.all_gather(at, at, 4),
        gpu.collective_end(),
        gpu.collective_mark().map(drop),
    ];
    assert!(refused.iter().all(|answer| matches!(answer, Err(OpsError::NotConnected))), "{refused:?}");
}

/// Rank 0 waits for a sum that never finishes. The wait ends with the other rank's error, and so does the next call.
#[test]
fn sum_is_abandoned_if_another_rank_has_failed() {
    let fake = machine(0);
    among_one_that_fails(
        |group| {
            let mut gpu = open().unwrap();
            gpu.connect(group).unwrap();
            let at = gpu.allocate(16).unwrap();
            (NCCL.nccl)(23_203, 0, 0, 1);
            gpu.begin_capture().unwrap();
            gpu.collective_begin().unwrap();
            gpu.all_reduce(&[Piece { at, elements: 4, how: Reduce::SumF32 }]).unwrap();
            gpu.collective_end().unwrap();
            let graph = gpu.end_capture().unwrap();
            gpu.launch_graph(graph).unwrap();
            for _ in 0..2 {
                let error = gpu.synchronise().unwrap_err();
                assert!(matches!(error, OpsError::Group(_)), "{error}");
                assert!(error.to_string().contains("the disk is full"), "{error}");
            }
            let error = gpu.all_reduce(&[Piece { at, elements: 4, how: Reduce::SumF32 }]).unwrap_err();
            assert!(error.to_string().contains("the disk is full"), "{error}");
            drop(gpu);
            let [destroyed, aborted, _] = ends();
            assert_eq!([destroyed, aborted], [0, 1]);
            (NCCL.nccl)(23_203, 0, 0, 0);
            assert_eq!((fake.live)(), 0);
        },
        true,
    );
}

/// NCCL itself would wait for ever.
#[test]
fn joining_is_abandoned_if_the_group_is_stopped() {
    let _fake = machine(0);
    (NCCL.nccl)(23_203, -1, 0, 0);
    let error = among_one_that_fails(|group| open().unwrap().connect(group).unwrap_err(), true);
    assert!(matches!(error, OpsError::Group(_)) && error.to_string().contains("the disk is full"), "{error}");
    let error = among_one_that_fails(|group| open().unwrap().connect(group).unwrap_err(), false);
    assert!(matches!(error, OpsError::Group(_)) && error.to_string().contains("the disk is full"), "{error}");
    // The threads that are still joining end here.
    (NCCL.nccl)(23_203, 5, 0, 0);
    while (NCCL.inside)() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn failure_between_ranks_is_reported_in_one_line() {
    let ends = connected(2, 0, |gpu| {
        (NCCL.nccl)(23_203, 0, 6, 0);
        let error = gpu.synchronise().unwrap_err().to_string();
        let expected = "an exchange between ranks: remote process exited or there was a network error; another rank \
                        has ended or cannot be reached";
        assert_eq!(error, expected);
    });
    // Aborted, because destroying it would wait for the other rank.
    assert_eq!(ends, [0, 1, 0]);
    let _fake = machine(0);
    (NCCL.nccl)(23_203, 5, 0, 0);
    let error = among_well(2, |group| open().unwrap().connect(group).unwrap_err());
    let expected = "ncclCommInitRank: invalid usage (Duplicate GPU detected : rank 0 and rank 1); two ranks may have \
                    been given one GPU; NCCL_DEBUG=WARN says more";
    assert_eq!(error.to_string(), expected);
    (NCCL.nccl)(2_804, 0, 0, 0);
    let error = among(1, |_| (), |group| open().unwrap().connect(&group).unwrap_err());
    let OpsError::Nccl(NcclError::TooOld { has, .. }) = error else { panic!("{error}") };
    assert_eq!(has, Version(2, 8, 4));
}
