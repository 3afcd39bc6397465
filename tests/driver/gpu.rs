//! The GPU through NVIDIA's driver, with the stand-in `libcuda.cpp`: it keeps device memory on the host, and runs streams
//! as late or as early as their events allow. It has only the functions of CUDA 12.0, and one that is looked up by version.

use crate::common::gpu::TestGpu;
use crate::fake::{Fake, KERNELS, MEMORY, add, floats, launch, open};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::gpu::{Gpu, Launch};
use effnet::ops::cuda::nvidia::device::Library;
use effnet::ops::cuda::nvidia::{DriverError, Version};
use effnet::ops::cuda::usable;

#[test]
fn memory_is_zeroed_copied_both_ways_and_freed() {
    let fake = Fake::card(12_000, (9, 0));
    let mut gpu = open().unwrap();
    let properties = gpu.properties().clone();
    assert_eq!((properties.name.as_str(), properties.capability), ("Fake GPU", (9, 0)));
    assert_eq!((properties.multiprocessors, properties.shared_per_block), (4, 227 << 10));
    let before = gpu.available().unwrap();
    let a = gpu.allocate(16).unwrap();
    let b = gpu.allocate(3 << 20).unwrap();
    // A driver gives out pieces of 2 MiB.
    assert_eq!(gpu.available().unwrap(), before - (6 << 20));
    assert_eq!((a.0 % 256, floats(&mut gpu, a)), (0, [0.0; 4]));
    gpu.write(a, bytemuck::bytes_of(&[1.0_f32, 2.0, 3.0, 4.0])).unwrap();
    gpu.copy(a, b, 16).unwrap();
    gpu.fill(a, 0, 8).unwrap();
    assert_eq!(floats(&mut gpu, a), [0.0, 0.0, 3.0, 4.0]);
    assert_eq!(floats(&mut gpu, b), [1.0, 2.0, 3.0, 4.0]);
    let too_much = gpu.allocate(MEMORY).unwrap_err().to_string();
    assert!(too_much.starts_with("out of device memory: 256 MiB wanted, 250 MiB free; "), "{too_much}");
    drop(gpu);
    assert_eq!((fake.live)(), 0);
}

/// The tests on a GPU depend on this.
#[test]
fn guard_detects_writes_to_forbidden_bytes() {
    let _fake = Fake::card(12_040, (9, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(32).unwrap();
    gpu.guard(at.offset(16), 16).unwrap();
    add(&mut gpu, &launch("add_f32"), at, 1.0).unwrap();
    assert!(gpu.kept(at.offset(16), 16).unwrap());
    gpu.copy(at, at.offset(28), 4).unwrap();
    assert!(!gpu.kept(at.offset(16), 16).unwrap());
    assert!(gpu.kept(at.offset(16), 12).unwrap());
}

#[test]
fn launch_with_wrong_arguments_is_refused() {
    let _fake = Fake::card(12_040, (8, 6));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    add(&mut gpu, &launch("add_f32"), at, 1.0).unwrap();
    add(&mut gpu, &launch("stray_f32"), at, 0.5).unwrap();
    assert_eq!(floats(&mut gpu, at), [1.5; 4]);
    let shared = |kernel, shared| Launch { shared, ..launch(kernel) };
    // More than 48 KiB must be requested. The kernel's static shared memory counts.
    add(&mut gpu, &shared("add_f32", 227 << 10), at, 1.0).unwrap();
    add(&mut gpu, &shared("add_f32", 100), at, 1.0).unwrap();
    assert_eq!(floats(&mut gpu, at), [3.5; 4]);
    let refused = [
        (launch("add_f16"), "there is no kernel add_f16 in this program"),
        (launch("add\0"), "there is no kernel add\0 in this program"),
        (launch("add_wide_f32"), "add_wide_f32 takes 24 bytes of arguments, 16 were given"),
        (
            Launch { threads: 96, ..launch("add_f32") },
            "add_f32 is compiled for blocks of at most 64 threads, not 96",
        ),
        (
            shared("stray_f32", 227 << 10),
            "stray_f32 wants 233472 bytes of shared memory a block, this card has 232448",
        ),
    ];
    for (launch, text) in refused {
        assert_eq!(add(&mut gpu, &launch, at, 1.0).unwrap_err().to_string(), text);
    }
    let failed = add(&mut gpu, &Launch { grid: [0, 1, 1], ..launch("add_f32") }, at, 1.0).unwrap_err();
    assert_eq!(failed.to_string(), "add_f32: cuLaunchKernel: error 1");
    assert_eq!(floats(&mut gpu, at), [3.5; 4]);
}

/// A driver before 12.4 does not know it; the stand-in ends the process if it is asked.
#[test]
fn size_of_arguments_is_not_asked_of_an_older_driver() {
    let _fake = Fake::card(12_030, (8, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    add(&mut gpu, &launch("add_wide_f32"), at, 1.0).unwrap();
    assert_eq!(floats(&mut gpu, at), [1.0; 4]);
}

/// Drivers before CUDA 12.3 refuse to load code during a capture, whatever the mode. The engine launches each kernel once
/// before it captures it.
#[test]
fn kernel_that_is_not_loaded_is_refused_in_a_capture() {
    let _fake = Fake::card(12_000, (8, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    gpu.begin_capture().unwrap();
    let refused = add(&mut gpu, &launch("add_f32"), at, 1.0).unwrap_err().to_string();
    assert_eq!(refused, "cuModuleLoadData: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
}

#[test]
fn graph_is_recorded_once_and_launched_several_times() {
    let fake = Fake::card(12_080, (8, 0));
    let mut gpu = open().unwrap();
    let a = gpu.allocate(16).unwrap();
    let b = gpu.allocate(16).unwrap();
    add(&mut gpu, &launch("add_f32"), a, 0.0).unwrap();
    gpu.begin_capture().unwrap();
    add(&mut gpu, &launch("add_f32"), a, 1.0).unwrap();
    gpu.copy(a, b, 16).unwrap();
    let refused = gpu.synchronise().unwrap_err().to_string();
    assert_eq!(refused, "cuStreamQuery: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
    let graph = gpu.end_capture().unwrap();
    assert_eq!((floats(&mut gpu, a), floats(&mut gpu, b)), ([0.0; 4], [0.0; 4]));
    for _ in 0..3 {
        gpu.launch_graph(graph).unwrap();
    }
    gpu.fill(a, 0, 16).unwrap();
    assert_eq!((floats(&mut gpu, a), floats(&mut gpu, b)), ([0.0; 4], [3.0; 4]));
    assert!(gpu.end_capture().is_err());
    drop(gpu);
    assert_eq!((fake.live)(), 0);
}

/// Two batches at a time, each of one value k = 1, 2, …. The device adds ½ and keeps the result. The value would be wrong
/// if a batch did not wait for the buffer, the computation for the batch, or the host for a transfer.
#[test]
fn batch_arrives_before_its_use_and_after_the_last_use_of_its_buffer() {
    let fake = Fake::card(12_040, (9, 0));
    for eager in [0, 1] {
        (fake.eager_transfers)(eager);
        let mut gpu = open().unwrap();
        let slots = [gpu.staging(16, 16).unwrap(), gpu.staging(16, 16).unwrap()];
        let figures = gpu.staging(16, 16).unwrap();
        let history = gpu.allocate(16 * 20).unwrap();
        let send = |gpu: &mut Driver, k: usize| {
            let host = gpu.staging_host(slots[k % 2]).unwrap();
            host.copy_from_slice(bytemuck::bytes_of(&[k as f32; 4]));
            gpu.staging_send(slots[k % 2], 16, None).unwrap();
        };
        send(&mut gpu, 1);
        for k in 1..20 {
            send(&mut gpu, k + 1);
            let at = gpu.staging_address(slots[k % 2]);
            gpu.staging_acquire(slots[k % 2]).unwrap();
            add(&mut gpu, &launch("add_f32"), at, 0.5).unwrap();
            gpu.copy(at, gpu.staging_address(figures), 16).unwrap();
            gpu.copy(at, history.offset(16 * k), 16).unwrap();
            gpu.staging_release(slots[k % 2]).unwrap();
            gpu.staging_receive(figures).unwrap();
            if k % 7 == 0 {
                let host = gpu.staging_host(figures).unwrap();
                assert_eq!(*bytemuck::from_bytes::<[f32; 4]>(host), [k as f32 + 0.5; 4], "{eager}");
            }
        }
        for k in 1..20 {
            assert_eq!(floats(&mut gpu, history.offset(16 * k)), [k as f32 + 0.5; 4], "{k} {eager}");
        }
        drop(gpu);
        assert_eq!((fake.live)(), 0);
    }
}

#[test]
fn marks_are_read_once_and_their_events_reused() {
    let fake = Fake::card(12_040, (9, 0));
    let mut gpu = open().unwrap();
    let live = (fake.live)();
    for _ in 0..5 {
        let began = gpu.mark().unwrap();
        let ended = gpu.mark().unwrap();
        assert!(gpu.between(began, ended).is_err(), "not reached yet");
        assert_eq!(gpu.elapsed(began, ended).unwrap(), 1500.0);
    }
    assert_eq!((fake.live)() - live, 2);
}

/// The call that comes next reports it, and every later one. To have the name of the kernel, each launch is waited for.
#[test]
fn fault_is_reported_without_a_panic_and_with_its_kernel_if_that_is_asked_for() {
    let fake = Fake::card(12_040, (9, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    assert!(gpu.captures());
    add(&mut gpu, &launch("fault_f32"), at, 1.0).unwrap();
    for text in [gpu.synchronise(), gpu.fill(at, 0, 16)].map(|answer| answer.unwrap_err().to_string()) {
        assert!(text.contains(": CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was enc"), "{text}");
        assert!(text.ends_with("EFFNET_CUDA_SYNC=1 makes the next run name it"), "{text}");
    }
    drop(gpu);
    drop(fake);

    let _fake = Fake::card(12_040, (9, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    gpu.wait_after_each_launch();
    assert!(!gpu.captures());
    add(&mut gpu, &launch("add_f32"), at, 1.0).unwrap();
    let text = add(&mut gpu, &launch("fault_f32"), at, 1.0).unwrap_err().to_string();
    assert!(text.starts_with("fault_f32: cuStreamQuery: CUDA_ERROR_ILLEGAL_ADDRESS ("), "{text}");
}

#[test]
fn memory_that_ends_in_loading_code_has_a_remedy() {
    let fake = Fake::card(12_040, (9, 0));
    let mut gpu = open().unwrap();
    let at = gpu.allocate(16).unwrap();
    (fake.taken)(MEMORY);
    let text = add(&mut gpu, &launch("add_f32"), at, 1.0).unwrap_err().to_string();
    let remedy = "the card's memory is full: close what else uses it, or train with a smaller --micro-batch";
    assert!(text.starts_with("cuModuleLoadData: error 2; ") && text.ends_with(remedy), "{text}");
    (fake.taken)(MEMORY.wrapping_neg());
}

/// WSL2 pins little. Then batches travel from ordinary memory.
#[test]
fn batch_travels_without_pinned_memory_too() {
    let fake = Fake::card(12_040, (9, 0));
    (fake.pinnable)(0);
    let mut gpu = open().unwrap();
    let staging = gpu.staging(16, 16).unwrap();
    gpu.staging_host(staging).unwrap().copy_from_slice(bytemuck::bytes_of(&[2.5_f32; 4]));
    gpu.staging_send(staging, 16, None).unwrap();
    gpu.staging_acquire(staging).unwrap();
    let at = gpu.staging_address(staging);
    assert_eq!(floats(&mut gpu, at), [2.5; 4]);
    gpu.free_staging(staging).unwrap();
    assert_eq!(gpu.available().unwrap(), MEMORY as u64);
    drop(gpu);
    assert_eq!((fake.live)(), 0);
}

#[test]
fn machine_that_cannot_run_the_kernels_is_refused_with_the_reason() {
    let fake = Fake::card(11_080, (8, 0));
    let old = Version(11, 8);
    let needs = Version(12, 0);
    assert_eq!(open().unwrap_err(), DriverError::TooOld { has: old, needs });
    assert_eq!(Driver::open(0).unwrap_err().to_string(), usable::count().unwrap_err().to_string());
    let error = |version, devices, (major, minor), stub| {
        (fake.machine)(version, devices, major, minor, stub, MEMORY);
        open().unwrap_err()
    };
    assert_eq!(error(12_040, 0, (8, 0), 0), DriverError::NoDevice);
    assert_eq!(error(12_040, 1, (8, 0), 1), DriverError::Stub);
    let card = DriverError::OldCard { name: "Fake GPU".into(), capability: (7, 5) };
    assert_eq!(error(12_040, 1, (7, 5), 0), card);
    // The PTX is of a compiler newer than this driver.
    let has = Version(12, 8);
    let needs = Version(12, 9);
    assert_eq!(error(12_080, 1, (12, 0), 0), DriverError::TooOld { has, needs });
    (fake.machine)(12_090, 2, 12, 0, 0, MEMORY);
    assert!(open().is_ok());
    assert_eq!(usable::count().unwrap(), 2);
    let far = Driver::with_kernels(Library::load().unwrap(), 2, &KERNELS).unwrap_err();
    assert_eq!(far, DriverError::NoSuchDevice { index: 2, count: 2 });
    assert_eq!((fake.live)(), 0);
}
