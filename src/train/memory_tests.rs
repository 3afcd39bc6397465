use super::*;
use crate::data::augment::Auto;
use crate::model::Variant;
use crate::ops::cpu::CpuDevice;
use crate::ops::cuda::{CudaDevice, Precision};
use crate::train::device::Cpu;

fn plan(micro_batch: usize, available: u64) -> MemoryPlan {
    let recipe = Recipe { resolution: 32, micro_batch, ..Recipe::reference(Variant::B0, 96) };
    let arch = recipe.architecture(10).unwrap();
    let table = ParamTable::new(&arch);
    with_available(&recipe, &arch, &table, &CpuDevice::fp32(2), false, Some(available), 2)
}

#[test]
fn largest_is_exact() {
    for limit in [1, 7, 64, 1000, 1 << 16] {
        assert_eq!(largest(limit, |images| images as u64), limit as usize);
    }
    assert_eq!(largest(0, |images| images as u64), 0);
    assert_eq!(largest(u64::MAX, |images| images as u64), 1 << 16);
}

#[test]
fn check_of_a_too_large_batch_names_one_that_fits() {
    let whole = plan(96, u64::MAX);
    assert_eq!(whole.check(), Ok(()));
    let room = whole.total() - whole.arena / 4;
    let tight = plan(96, room);
    let error = tight.check().unwrap_err();
    assert!(
        matches!(error, MemoryError::Batch { need, have, .. } if (need, have) == (whole.total(), room)),
        "{error:?}"
    );
    let fits = error.fits().unwrap();
    assert!(96 % fits == 0 && (32..96).contains(&fits), "{fits}");
    assert_eq!(plan(fits, room).check(), Ok(()));
    let largest = tight.largest.unwrap();
    assert_eq!(plan(largest, room).check(), Ok(()));
    assert!(plan(largest + 1, room).check().is_err());
    let line = error.to_string();
    assert!(line.contains("MiB") && line.contains(&format!("--micro-batch {fits} fits")), "{line}");
    assert!(
        plan(1, 1000)
            .check()
            .unwrap_err()
            .to_string()
            .ends_with("smaller --batch-size, --resolution or --model")
    );
    assert!(tight.to_string().lines().count() == 14, "{tight}");
    // Of the divisors of 96 below 4, pairs leave 2.
    let three = MemoryPlan { largest: Some(3), ..tight };
    let fits =
        |least_micro_batch| MemoryPlan { least_micro_batch, ..three.clone() }.check().unwrap_err().fits();
    assert_eq!([fits(1), fits(2)], [Some(3), Some(2)]);
}

/// The published reference trains with 512 images on a GPU of 10 GB.
#[test]
fn plan_of_b0_with_512_images_fits_into_ten_gigabytes() {
    let recipe = Recipe { ema: 0.9999, micro_batch: 512, ..Recipe::reference(Variant::B0, 512) };
    assert_eq!(recipe.resolution, 224);
    let arch = recipe.architecture(1000).unwrap();
    let table = ParamTable::new(&arch);
    let device = CudaDevice::new(Precision::Fp16);
    let plan = with_available(&recipe, &arch, &table, &device, true, Some(9_500_000_000), 15);
    println!("{plan}");
    assert!(plan.total() < 9_500_000_000, "{plan}");
    assert_eq!(plan.check(), Ok(()));
    // Each of the fifteen threads makes a batch while two are in use, and four pieces are pinned.
    assert_eq!(plan.host_images, (15 + 2 + 4) * 512 * raw_batch_bytes(1, 224) as u64);
    let text = plan.to_string();
    let row = text.lines().find(|line| line.contains("images prepared ahead, on the host"));
    assert!(row.is_some_and(|row| row.ends_with(&HumanBytes(plan.host_images).to_string())), "{text}");
    assert!(text.contains("images being copied"), "{text}");

    // Without the expanded tensors of the first stages, of which an image keeps 4.2 MB.
    let again = CudaDevice::recomputing(Precision::Fp16);
    let recomputing = with_available(&recipe, &arch, &table, &again, true, Some(9_500_000_000), 15);
    println!("{recomputing}");
    assert!((4_200_000..4_300_000).contains(&((plan.saved - recomputing.saved) / 512)), "{recomputing}");
    assert!(recomputing.total() < 6_700_000_000, "{recomputing}");

    let need = plan.host_images;
    let beside = |host| MemoryPlan { host_available: Some(host), ..plan.clone() }.check();
    assert_eq!(beside(need), Ok(()));
    let error = beside(need - 1).unwrap_err();
    assert_eq!(error, MemoryError::Loader { threads: 15, need, have: need - 1 });
    assert!(error.to_string().contains("fewer --loader-threads"), "{error}");
}

/// Beside a CPU, more threads than batches ahead need more of the one memory.
#[test]
fn plan_counts_the_batches_of_all_loader_threads() {
    let recipe = Recipe { resolution: 32, ..Recipe::reference(Variant::B0, 96) };
    let mut cpu = Cpu::new(1, "");
    let plan = |threads| memory_plan(&recipe, 10, &mut cpu, World::ALONE, threads).unwrap();
    let batch = 96 * 32 * 32 * 3;
    let found = [0, 1, 8].map(plan).map(|p| (p.loader_threads, p.images, p.host_images));
    assert_eq!(found, [(2, 4 * batch, 0), (1, 4 * batch, 0), (8, 9 * batch, 0)]);
}

/// Squares are edited in a workspace on the GPU, which grows with the micro-batch.
#[test]
fn plan_counts_the_squares_that_are_edited() {
    let device = CudaDevice::new(Precision::Fp16);
    let plan = |augment| {
        let recipe = Recipe { augment, micro_batch: 512, ..Recipe::reference(Variant::B0, 512) };
        let arch = recipe.architecture(1000).unwrap();
        let table = ParamTable::new(&arch);
        with_available(&recipe, &arch, &table, &device, true, Some(9_500_000_000), 2)
    };
    let (plain, edited) = (plan(Auto::None), plan(Auto::AutoAugment));
    assert_eq!(edited.images - plain.images, edited_squares_bytes(512, 224) as u64);
    assert!(edited.largest < plain.largest && edited.check() == Ok(()), "{edited}");
}
