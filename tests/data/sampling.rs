//! The order of the samples: by blocks, and with balanced classes.

use std::collections::{HashMap, HashSet};

use crate::common::data::{LOADER, open, pack_grey};
use effnet::data::sampler::blocks::{AHEAD, BLOCK_BYTES, BUFFER};
use effnet::data::sampler::{Place, Sampler};
use effnet::data::{Loader, LoaderConfig, Sampling, Share, Shuffle, Source, Split};

const BLOCKS: Sampling = Sampling { shuffle: Shuffle::Blocks, balance: false };
const BALANCED: Sampling = Sampling { shuffle: Shuffle::Full, balance: true };
const BOTH: Sampling = Sampling { shuffle: Shuffle::Blocks, balance: true };

/// Images of which eight make a block.
fn large_images(classes: usize, images: usize) -> Source {
    let side = 209; // 131,043 bytes
    let source = Source::synthetic(classes, images, 1, side).unwrap();
    assert_eq!(source.blocks(Split::Train)[..3], [0, 9, 18]);
    source
}

fn places(sampler: &mut Sampler, steps: std::ops::Range<u64>) -> Vec<Place> {
    let (mut row, mut places) = (Vec::new(), Vec::new());
    for step in steps {
        sampler.fill(step, &mut places);
        row.extend_from_slice(&places);
    }
    row
}

fn epochs(source: &Source, sampling: Sampling, count: usize) -> Vec<Vec<Place>> {
    let images = source.samples(Split::Train);
    let row = places(&mut Sampler::training(5, source, images, sampling), 0..count as u64);
    row.chunks(images).map(<[Place]>::to_vec).collect()
}

#[test]
fn blocks_give_every_sample_once_an_epoch_in_a_new_order() {
    for images in [20, 3_001, 12_000] {
        let source = large_images(2, images);
        let mut orders = HashSet::new();
        for (number, epoch) in epochs(&source, BLOCKS, 4).iter().enumerate() {
            let order: Vec<u32> = epoch.iter().map(|place| place.index).collect();
            assert_eq!(order.iter().collect::<HashSet<_>>().len(), images);
            assert!(
                epoch.iter().all(|place| place.epoch == number as u32 && (place.index as usize) < images)
            );
            assert!(orders.insert(order), "epoch {number} repeats an order");
        }
    }
}

/// Neighbours in the set come as far from each other as the buffer allows, and no farther; samples of an epoch's start and
/// end come from the whole set.
#[test]
fn blocks_spread_neighbours_over_the_buffer() {
    let images = 90_000;
    let source = large_images(2, images);
    let buffer = BUFFER as f64 * 9.0;
    let order: Vec<usize> = epochs(&source, BLOCKS, 1)[0].iter().map(|place| place.index as usize).collect();
    let mut place = vec![0; images];
    order.iter().enumerate().for_each(|(at, &index)| place[index] = at);
    // Neighbours of one block, far from both ends, are apart by a third of the buffer in the mean: two uniform numbers.
    let distances: Vec<f64> = (0..images - 1)
        .filter(|index| index / 9 == (index + 1) / 9)
        .map(|index| (place[index] as f64 - place[index + 1] as f64).abs())
        .collect();
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    assert!((mean / buffer - 1.0 / 3.0).abs() < 0.02, "{mean} of {buffer}");
    assert!(distances.iter().all(|&distance| distance < 1.1 * buffer));
    // A batch hardly ever takes two of one block.
    let blocks: HashSet<usize> = order[40_000..40_256].iter().map(|index| index / 9).collect();
    assert!(blocks.len() > 190, "{}", blocks.len());
    for end in [&order[..256], &order[images - 256..]] {
        let blocks: HashSet<usize> = end.iter().map(|index| index / 9).collect();
        assert!(blocks.len() > 60, "{}", blocks.len());
    }
    // Blocks come in no order of the set.
    let first = order[..1_000].iter().sum::<usize>() / 1_000;
    assert!((30_000..60_000).contains(&first), "{first}");
}

/// In a set smaller than the buffer every sample may come anywhere.
#[test]
fn blocks_of_a_small_set_are_shuffled_over_all_of_it() {
    let source = large_images(2, 90);
    let sums = epochs(&source, BLOCKS, 400).iter().fold(vec![0; 90], |mut sums, epoch| {
        epoch.iter().enumerate().for_each(|(at, place)| sums[place.index as usize] += at);
        sums
    });
    // The mean place is 44.5, with a deviation of 26 / √400.
    assert!(sums.iter().all(|&sum| (sum as f64 / 400.0 - 44.5).abs() < 6.0), "{sums:?}");
}

#[test]
fn every_order_is_the_same_from_any_step_and_for_any_ranks() {
    let source = large_images(7, 1_000);
    for sampling in [BLOCKS, BALANCED, BOTH] {
        let batch = 48;
        let whole = places(&mut Sampler::training(5, &source, batch, sampling), 0..70);
        for step in [0_u64, 1, 20, 21, 41, 60] {
            // Out of turn, and from there on.
            let rest = places(&mut Sampler::training(5, &source, batch, sampling), step..70);
            assert_eq!(rest, whole[step as usize * batch..]);
        }
        let mut sampler = Sampler::training(5, &source, batch, sampling);
        for step in [69, 3, 40] {
            assert_eq!(places(&mut sampler, step..step + 1), whole[step as usize * batch..][..batch]);
        }
        for part in 0..3 {
            let share = Share { part, parts: 3 };
            let mut own = Sampler::training(5, &source, batch / 3, sampling).shared(share);
            let own = places(&mut own, 0..70);
            for (step, own) in own.chunks(16).enumerate() {
                assert_eq!(own, &whole[step * batch + part * 16..][..16], "{sampling:?}");
            }
        }
    }
}

/// What is asked for is in memory before it is used, and little more.
#[test]
fn blocks_are_wanted_once_an_epoch_ahead_of_their_use() {
    let images = 18_000; // 2,000 blocks
    let source = large_images(2, images);
    for first in [0_u64, 100, 563] {
        let mut sampler = Sampler::training(5, &source, 32, BLOCKS);
        let (mut filled, mut wanted) = (Vec::new(), Vec::new());
        // How often each block was asked for, and images of it that are still to come in this epoch.
        let (mut asked, mut ahead) = (vec![0; images / 9], 0);
        for step in first..first + 1_300 {
            sampler.fill(step, &mut filled);
            sampler.wanted(&mut wanted);
            for block in wanted.drain(..) {
                assert_eq!((block.start % 9, block.len()), (0, 9));
                asked[block.start / 9] += 1;
                ahead += 9;
            }
            for place in &filled {
                // A run that begins in the middle of an epoch does not ask for blocks that came before.
                let before = if first == 0 { 0 } else { 1 };
                let epochs = (u64::from(place.epoch) + 1 - before).max(1);
                assert!(asked[place.index as usize / 9] >= epochs, "step {step}: {place:?}");
            }
            ahead -= filled.len() as i64;
            // Where the run begins in the middle of an epoch, about half of the buffer's images came before.
            let before = if first == 100 { BUFFER as i64 / 2 } else { 0 };
            let most = ((BUFFER + AHEAD) as i64 + before + 20) * 9;
            assert!(ahead < most, "step {step}: {ahead} images wait");
        }
        assert!(asked.iter().all(|&times| times <= 4), "{first}");
    }
}

/// Blocks are cut by bytes and end with their shard.
#[test]
fn blocks_of_a_packed_set_hold_a_mebibyte_and_no_part_of_two_shards() {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 40, 3, 512, 3 << 20);
    let source = open(dir.path());
    let Source::Packed(set) = &source else { unreachable!() };
    let shards: Vec<u32> = set
        .manifest()
        .train
        .shards
        .iter()
        .scan(0, |first, shard| Some(std::mem::replace(first, *first + shard.samples as u32)))
        .collect();
    assert!(shards.len() > 2, "{shards:?}");
    let blocks = source.blocks(Split::Train);
    assert!(shards.iter().all(|shard| blocks.contains(shard)), "{shards:?} in {blocks:?}");
    assert_eq!((blocks[0], blocks[blocks.len() - 1]), (0, 40));
    for pair in blocks.windows(2) {
        let bytes = u64::from(pair[1] - pair[0]) * 512 * 512;
        assert!(bytes == BLOCK_BYTES || shards.contains(&pair[1]) || pair[1] == 40, "{blocks:?}");
        source.will_need_block(Split::Train, pair[0] as usize..pair[1] as usize);
    }
}

/// The batches of a loader are those of its sampler, for any number of threads.
#[test]
fn loader_gives_the_order_that_the_recipe_says() {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 50, 3, 28, 8 << 10);
    let source = open(dir.path());
    for sampling in [Sampling::PLAIN, BLOCKS, BALANCED, BOTH] {
        let labels: Vec<u32> = source.labels(Split::Train).collect();
        let order = places(&mut Sampler::training(LOADER.seed, &source, 16, sampling), 0..12);
        let expected: Vec<u32> = order.iter().map(|place| labels[place.index as usize]).collect();
        for threads in [1, 3] {
            let config = LoaderConfig { sampling, threads, ..LOADER };
            let mut loader = Loader::start(source.clone(), config).unwrap();
            let mut found = Vec::new();
            while let Some(batch) = loader.next().unwrap() {
                found.extend_from_slice(&batch.labels);
                loader.recycle(batch);
            }
            assert_eq!(found, expected, "{sampling:?}");
        }
    }
}

/// A rare class lies in few blocks. Its samples do not come in bursts, and what is read ahead is what comes.
#[test]
fn balance_by_blocks_spreads_a_rare_class_over_the_epoch() {
    for (common, rare) in [(19_800_usize, 198), (18_000, 1_800), (20_000, 9)] {
        let samples = common + rare; // 9 in a block
        let labels = (0..samples).map(|sample| (sample >= common) as u32);
        let starts = || (0..=samples.div_ceil(9)).map(|block| (block * 9).min(samples) as u32).collect();
        let mut sampler = Sampler::of_samples(5, samples, labels, starts, 32, BOTH);
        let (mut filled, mut wanted, mut order) = (Vec::new(), Vec::new(), Vec::new());
        // Blocks that were asked for, and when each was last.
        let (mut asked, mut last) = (0, vec![None; samples.div_ceil(9)]);
        for step in 0..2_000 {
            sampler.fill(step, &mut filled);
            sampler.wanted(&mut wanted);
            for range in wanted.drain(..) {
                assert!(range.start % 9 == 0 && (range.len() == 9 || range.end == samples), "{range:?}");
                asked += 1;
                last[range.start / 9] = Some(asked);
            }
            for place in &filled {
                let ago = last[place.index as usize / 9].map(|when| asked - when);
                // What is held back is thin at an epoch's ends: there a batch spans a hundred blocks.
                assert!(ago.is_some_and(|ago| ago < BUFFER + AHEAD + 110), "step {step}: {place:?}, {ago:?}");
            }
            order.extend(filled.iter().map(|place| place.index as usize >= common));
        }
        for (at, window) in order.windows(256).enumerate() {
            let share = window.iter().filter(|is_rare| **is_rare).count() as f64 / 256.0;
            // Half, with a deviation of 0.03 by chance and about 0.04 by what lies in the buffer.
            assert!((0.3..0.7).contains(&share), "{common}:{rare}, at {at}: {share}");
        }
    }
}

/// Of a rare class, the draws of each sample are spread over the epoch too.
#[test]
fn balance_by_blocks_spreads_each_sample_of_a_rare_class() {
    let (common, samples) = (19_800, 19_998);
    let labels = (0..samples).map(|sample| (sample >= common) as u32);
    let starts = || (0..=samples as u32 / 9).map(|block| block * 9).collect();
    let mut sampler = Sampler::of_samples(5, samples, labels, starts, 1_000, BOTH);
    let order = places(&mut sampler, 0..19);
    // How often each sample comes in a thousand draws: as independent draws would, the variance is the mean.
    let (mut sum, mut squares, count) = (0.0, 0.0, 19.0 * 198.0);
    for thousand in order.chunks(1_000) {
        for sample in common..samples {
            let times = thousand.iter().filter(|place| place.index as usize == sample).count() as f64;
            (sum, squares) = (sum + times, squares + times * times);
        }
    }
    let mean: f64 = sum / count;
    let variance = squares / count - mean * mean;
    assert!((2.3..2.7).contains(&mean), "{mean}");
    assert!((0.8..1.25).contains(&(variance / mean)), "a variance of {variance}, a mean of {mean}");
}

/// Class sizes of a set that is packed from folders.
const SIZES: [u32; 4] = [1, 3, 40, 17];

fn unequal() -> (tempfile::TempDir, Source) {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    for (class, &size) in SIZES.iter().enumerate() {
        for (part, size) in [("train", size), ("val", 1)] {
            for number in 0..size {
                let path = images.join(format!("{part}/{class}/{number}.png"));
                crate::common::data::save(
                    &path,
                    image::GrayImage::from_pixel(8, 8, image::Luma([number as u8])),
                );
            }
        }
    }
    let out = dir.path().join("packed");
    effnet::data::pack::pack(&images, &out, &Default::default(), &mut |_| ()).unwrap();
    let source = open(&out);
    (dir, source)
}

#[test]
fn balance_draws_every_class_equally_often() {
    let (_dir, source) = unequal();
    let images: usize = SIZES.iter().sum::<u32>() as usize; // 61: a remainder of 1 among four classes
    let labels: Vec<u32> = source.labels(Split::Train).collect();
    for sampling in [BALANCED, BOTH] {
        let epochs = epochs(&source, sampling, 40);
        let mut total = [0; 4];
        let (mut seen, mut looks) = (HashMap::new(), HashSet::new());
        for (number, epoch) in epochs.iter().enumerate() {
            assert_eq!(epoch.len(), images);
            let mut counts = [0; 4];
            for place in epoch {
                counts[labels[place.index as usize] as usize] += 1;
                *seen.entry(place.index).or_insert(0) += 1;
                assert!(looks.insert((place.index, place.epoch)), "{place:?} would look the same twice");
            }
            assert!(counts.iter().all(|count| [15, 16].contains(count)), "epoch {number}: {counts:?}");
            counts.iter().zip(&mut total).for_each(|(count, total)| *total += count);
        }
        // 40 epochs of 61 draws, exactly.
        assert_eq!(total, [610; 4]);
        // Within a class, each sample comes as often as any other, but for the round that is under way.
        for (index, &label) in labels.iter().enumerate() {
            let rounds = 610 / SIZES[label as usize];
            let times = seen[&(index as u32)];
            assert!((rounds..=rounds + 1).contains(&times), "{index}: {times} of {rounds}");
        }
        // Not the classes one after the other.
        let first = epochs[0][..15].iter().map(|place| labels[place.index as usize]).collect::<HashSet<_>>();
        assert!(first.len() > 2, "{first:?}");
    }
}

/// A loader over unequal classes can begin at any step, in each of several processes too.
#[test]
fn balanced_batches_are_the_same_from_any_step() {
    let (_dir, source) = unequal();
    let batches = |sampling, first_step: u64, batch, share| {
        let steps = 24 - first_step;
        let config = LoaderConfig { sampling, first_step, steps, batch, share, ..LOADER };
        let mut loader = Loader::start(source.clone(), config).unwrap();
        let mut found = Vec::new();
        while let Some(batch) = loader.next().unwrap() {
            found.push((batch.labels.clone(), batch.pixels[..].to_vec()));
            loader.recycle(batch);
        }
        assert_eq!(found.len() as u64, steps);
        found
    };
    for sampling in [BALANCED, BOTH] {
        let whole = batches(sampling, 0, 16, Share::WHOLE);
        for step in [1, 3, 4, 11, 23] {
            assert!(
                batches(sampling, step, 16, Share::WHOLE) == whole[step as usize..],
                "{sampling:?}, {step}"
            );
        }
        let second = batches(sampling, 5, 8, Share { part: 1, parts: 2 });
        for (own, whole) in second.iter().zip(&whole[5..]) {
            let pixels = whole.1.len() / 2;
            assert!(own.0 == whole.0[8..] && own.1 == whole.1[pixels..], "{sampling:?}");
        }
    }
}
