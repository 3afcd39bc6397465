//! Buckets of gradients contain each gradient once, and are complete when they claim to be.

use crate::common::network::{architecture, training};
use effnet::model::{ParamTable, Variant};
use effnet::network::Network;
use effnet::ops::buckets::bucket_bytes;
use effnet::ops::cpu::CpuDevice;
use effnet::ops::{Buckets, Frozen, Pass};

fn passes(variant: Variant) -> (ParamTable, Vec<Pass>) {
    let arch = architecture(variant, 1000, variant.scaling().resolution);
    let table = ParamTable::new(&arch);
    let passes = Network::new(&arch, &table, training(2)).itinerary(&CpuDevice::fp32(1)).passes();
    (table, passes)
}

/// That pass belongs to the backward half.
#[test]
fn gradient_of_a_tensor_is_written_by_one_pass() {
    let (table, passes) = passes(Variant::B0);
    let turn = passes.iter().position(|pass| matches!(pass, Pass::Loss(_))).unwrap();
    let mut ranges = Vec::new();
    for (number, pass) in passes.iter().enumerate() {
        pass.gradients(&mut |param| {
            assert!(number > turn, "{}", pass.name());
            ranges.push(param.range());
        });
    }
    ranges.sort_by_key(|range| range.start);
    let expected = table.entries().iter().filter(|entry| entry.role.trainable());
    assert_eq!(ranges, expected.map(|entry| entry.range()).collect::<Vec<_>>());
}

#[test]
fn buckets_partition_the_gradients_from_the_end_and_the_last_is_small() {
    for (variant, least) in [(Variant::B0, 4), (Variant::B7, 8)] {
        let (table, passes) = passes(variant);
        let bytes = bucket_bytes(table.trainable());
        let buckets = Buckets::new(&passes, table.trainable(), Frozen::NOTHING, bytes);
        let mut end = table.trainable();
        let mut before = 0;
        for (ready, bucket) in buckets.iter() {
            assert_eq!(bucket.elements.end, end);
            assert!(*ready >= before && *ready < passes.len(), "{variant}: {ready} after {before}");
            assert_eq!(bucket.is_last(), bucket.elements.start == 0);
            (end, before) = (bucket.elements.start, *ready);
            // A bucket is complete if no later pass adds to it.
            for later in &passes[ready + 1..] {
                later.gradients(&mut |param| assert!(!bucket.elements.contains(&param.offset)));
            }
        }
        let last = buckets.iter().last().unwrap();
        assert_eq!(last.0, passes.len() - 1, "the stem's backward pass is the last");
        assert!(4 * last.1.elements.len() <= bytes / 8, "{variant}: {last:?}");
        assert!(buckets.iter().len() >= least, "{variant}: {buckets:?}");
        assert_eq!((0..passes.len()).map(|n| buckets.after(n).count()).sum::<usize>(), buckets.iter().len());
    }
}
