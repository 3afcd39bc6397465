//! The loader's batches: order, bytes, ends, errors. Nothing may depend on the number of threads.

use std::collections::HashSet;

use crate::common::data::{LOADER, flip, open, pack_grey};
use effnet::data::augment::{Look, Mix, Mixing};
use effnet::data::loader::evaluation_steps;
use effnet::data::sampler::{Sampler, permute};
use effnet::data::{Batch, CropMode, DataError, Form, Loader, LoaderConfig, Policy, Share, Source, Split};
use tempfile::TempDir;

/// Mixup and cutmix, but not of all pairs.
const MIXED: Policy = Policy {
    mixing: Mixing { mixup: 0.8, cutmix: 1.0, probability: 0.8, ..Mixing::NONE },
    ..Policy::STANDARD
};

fn all(source: &Source, config: LoaderConfig) -> Vec<Batch> {
    let mut loader = Loader::start(source.clone(), config).unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = loader.next().unwrap() {
        batches.push(batch);
    }
    batches
}

/// A packed set of 50 grey images to train and `val` to validate, in several shards.
fn packed(val: u32) -> (TempDir, Source) {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 50, val, 28, 8 << 10);
    let source = open(dir.path());
    (dir, source)
}

/// Loads the same batches with other numbers of threads, into recycled buffers, and compares them by `same`.
fn expect_same(form: Form, same: fn(&Batch, &Batch) -> bool) {
    let (_dir, packed) = packed(20);
    let made_up = Source::synthetic(3, 50, 20, 40).unwrap();
    for (source, crop) in
        [(&packed, CropMode::Pad), (&packed, CropMode::Resized), (&made_up, CropMode::Resized)]
    {
        let edited = Policy { color_jitter: 0.3, random_erasing: 0.5, ..Policy::STANDARD };
        for augment in [Some(Policy::STANDARD), Some(edited), None] {
            let config = LoaderConfig { crop, augment, form, ..LOADER };
            let expected = all(source, config.clone());
            assert_eq!(expected.len(), if augment.is_some() { 12 } else { 4 });
            for threads in [1, 2, 7] {
                let config = LoaderConfig { threads, ..config.clone() };
                let mut loader = Loader::start(source.clone(), config).unwrap();
                for batch in &expected {
                    let mut found = loader.next().unwrap().unwrap();
                    assert!(same(&found, batch), "{crop}, {threads} threads, step {}", batch.step);
                    found.pixels.fill(99);
                    loader.recycle(found);
                }
                assert!(loader.next().unwrap().is_none());
            }
        }
    }
}

#[test]
fn squares_do_not_depend_on_threads_or_recycling() {
    expect_same(Form::Squares, |found, expected| found == expected);
}

/// The bytes of raw batches that are sent; `image.rs` compares the images themselves.
#[test]
fn raw_batches_do_not_depend_on_threads_or_recycling() {
    expect_same(Form::Raw { images: 8 }, |found, expected| {
        assert_eq!((found.images, &found.used), (expected.images, &expected.used));
        assert_eq!(found.parts(8).len(), 2);
        found.parts(8).eq(expected.parts(8))
    });
}

#[test]
fn loader_started_at_a_step_gives_the_rest() {
    let (_dir, source) = packed(20);
    let whole = all(&source, LOADER);
    for first_step in [1, 5, 11] {
        let rest = all(&source, LoaderConfig { first_step, steps: 12 - first_step, threads: 2, ..LOADER });
        assert!(rest == whole[first_step as usize..], "from step {first_step}");
    }
}

#[test]
fn sampler_gives_every_sample_once_per_epoch_in_a_new_order() {
    let (samples, batch) = (53, 16);
    let mut sampler = Sampler::shuffled(9, samples, batch);
    let (mut places, mut row) = (Vec::new(), Vec::new());
    for step in 0..samples as u64 {
        assert_eq!(sampler.positions(step), step * 16..step * 16 + 16);
        sampler.fill(step, &mut places);
        row.extend_from_slice(&places);
    }
    let epochs: Vec<_> = row.chunks(samples).collect();
    assert_eq!(epochs.len(), 16);
    let mut orders = HashSet::new();
    for (number, epoch) in epochs.iter().enumerate() {
        assert!(epoch.iter().all(|place| place.epoch == number as u32));
        let order: Vec<u32> = epoch.iter().map(|place| place.index).collect();
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), samples);
        assert!(orders.insert(order), "epoch {number} repeats an order");
    }
    // Any step alone, out of turn, is the same: the order is a function of seed and position.
    for step in [52, 3, 20] {
        Sampler::shuffled(9, samples, batch).fill(step, &mut places);
        assert_eq!(places, row[step as usize * 16..][..16]);
    }
    // A batch may be longer than an epoch.
    Sampler::shuffled(9, 5, 16).fill(0, &mut places);
    assert_eq!(
        places.iter().map(|place| place.epoch).collect::<Vec<_>>(),
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    );
}

/// Each value should come to each place equally often; the sum of squared deviations has a chi-squared distribution.
#[test]
fn permutation_is_uniform() {
    const N: usize = 6;
    let rounds = 12_000;
    let mut counts = [[0_u32; N]; N];
    for epoch in 0..rounds {
        let mut order = [0; N];
        permute(1, epoch, &mut order);
        order.iter().enumerate().for_each(|(place, &value)| counts[place][value as usize] += 1);
    }
    let expected = f64::from(rounds) / N as f64;
    let chi: f64 = counts.iter().flatten().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    // 25 degrees of freedom: above 60 once in ten thousand.
    assert!(chi < 60.0, "{chi}");
    let mut other = [0; N];
    let mut order = [0; N];
    permute(1, 0, &mut order);
    permute(2, 0, &mut other);
    assert_ne!(order, other, "the seed matters");
}

#[test]
fn evaluation_covers_the_split_in_order_with_a_partial_last_batch() {
    let (_dir, source) = packed(37);
    let config = LoaderConfig { split: Split::Val, augment: None, steps: u64::MAX, threads: 3, ..LOADER };
    let batches = all(&source, config);
    assert_eq!(batches.len() as u64, evaluation_steps(37, 16, Share::WHOLE));
    assert_eq!(batches.iter().map(|batch| batch.images).collect::<Vec<_>>(), [16, 16, 5]);
    let mut index = 0;
    for batch in &batches {
        assert_eq!(batch.first_position, index as u64);
        assert_eq!((batch.pixels.len(), batch.labels.len()), (16 * 32 * 32 * 3, 16));
        for image in 0..batch.images {
            let mut buffer = Vec::new();
            let expected = source.image(Split::Val, index, &mut buffer).unwrap();
            assert_eq!(batch.labels[image], expected.label);
            let pixels = &batch.pixels[image * 3072..][..3072];
            for y in 0..28 {
                for x in 0..28 {
                    let at = ((y + 2) * 32 + x + 2) * 3;
                    assert_eq!(pixels[at..at + 3], [expected.view.bytes[y * 28 + x]; 3]);
                }
            }
            index += 1;
        }
    }
    assert!(batches[2].pixels[5 * 3072..].iter().all(|&value| value == 0));
    assert!(batches[2].labels[5..].iter().all(|&label| label == 0));
}

/// A recycled buffer holds old pixels, which must not appear in a partial batch.
#[test]
fn recycled_partial_batch_is_clean() {
    let source = Source::synthetic(2, 20, 11, 32).unwrap();
    let config = LoaderConfig { split: Split::Val, augment: None, batch: 4, ahead: 1, ..LOADER };
    let mut loader = Loader::start(source, config).unwrap();
    while let Some(batch) = loader.next().unwrap() {
        assert!(batch.pixels[batch.images * 3072..].iter().all(|&value| value == 0));
        loader.recycle(Batch { pixels: vec![255; 4 * 3072], ..batch });
    }
}

#[test]
fn damaged_sample_is_named_in_the_turn_of_its_step() {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 40, 10, 28, 1 << 20);
    let shard = dir.path().join("train-00000.shard");
    let sample = 17;
    let start = std::fs::metadata(&shard).unwrap().len() as usize - 40 * 784;
    flip(&shard, start + sample * 784 + 99, 0x10);
    let source = open(dir.path());
    let mut loader =
        Loader::start(source, LoaderConfig { batch: 4, augment: None, steps: 10, threads: 2, ..LOADER })
            .unwrap();
    for _ in 0..4 {
        loader.next().unwrap().unwrap();
    }
    let error = loader.next().unwrap_err();
    assert!(matches!(&error, DataError::DamagedSample { sample: 17, .. }), "{error}");
    assert!(error.to_string().contains("train-00000.shard"), "{error}");
    assert!(loader.next().is_err());
}

#[test]
fn loader_refuses_settings_that_make_no_sense() {
    let source = Source::synthetic(2, 8, 2, 32).unwrap();
    for config in [
        LoaderConfig { batch: 0, ..LOADER },
        LoaderConfig { resolution: 0, ..LOADER },
        LoaderConfig { crop: CropMode::Auto, ..LOADER },
        LoaderConfig { form: Form::Raw { images: 0 }, ..LOADER },
        LoaderConfig { form: Form::Raw { images: 3 }, ..LOADER },
    ] {
        assert!(matches!(Loader::start(source.clone(), config), Err(DataError::Invalid(_))));
    }
    for (classes, train, val, side) in [(1, 8, 2, 32), (2, 1, 2, 32), (2, 8, 0, 32), (2, 8, 2, 0)] {
        assert!(Source::synthetic(classes, train, val, side).is_err());
    }
}

/// The synthetic classes can be distinguished by their mean colours alone, with a rule learnt on the training images.
#[test]
fn synthetic_classes_can_be_learnt() {
    let source = Source::synthetic(10, 400, 200, 32).unwrap();
    let cells = |split, index| {
        let mut buffer = Vec::new();
        let image = source.image(split, index, &mut buffer).unwrap();
        let mut means = vec![0.0; 48];
        for (at, &value) in image.view.bytes.iter().enumerate() {
            let (y, x, c) = (at / 96, at / 3 % 32, at % 3);
            means[(y / 8 * 4 + x / 8) * 3 + c] += f64::from(value) / 64.0;
        }
        (image.label as usize, means)
    };
    let mut centres = vec![vec![0.0; 48]; 10];
    for index in 0..400 {
        let (label, means) = cells(Split::Train, index);
        centres[label].iter_mut().zip(&means).for_each(|(centre, mean)| *centre += mean / 40.0);
    }
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let correct = (0..200).filter(|&index| {
        let (label, means) = cells(Split::Val, index);
        let nearest =
            (0..10).min_by(|&a, &b| distance(&centres[a], &means).total_cmp(&distance(&centres[b], &means)));
        nearest == Some(label)
    });
    assert!(correct.count() > 190);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    source.image(Split::Train, 0, &mut one).unwrap();
    source.image(Split::Val, 0, &mut two).unwrap();
    assert_ne!(one, two, "training and validation images of one class differ");
}

/// For any number of parts, a step has the same samples in the same order, and an evaluation has too.
#[test]
fn share_of_every_process_together_is_the_whole_step() {
    let source = Source::synthetic(5, 50, 37, 32).unwrap();
    let pixels =
        |batch: &Batch| batch.pixels.chunks_exact(32 * 32 * 3).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let whole = all(&source, LOADER);
    for parts in [2, 4, 16] {
        for part in 0..parts {
            let share = Share { part, parts };
            let own = all(&source, LoaderConfig { batch: 16 / parts, share, ..LOADER });
            assert_eq!(own.len(), whole.len());
            for (own, whole) in own.iter().zip(&whole) {
                let range = part * own.labels.len()..(part + 1) * own.labels.len();
                assert_eq!(own.labels, whole.labels[range.clone()]);
                assert_eq!(pixels(own), pixels(whole)[range.clone()]);
                assert_eq!(own.first_position, whole.first_position + range.start as u64);
            }
        }
    }
    let evaluation = LoaderConfig { split: Split::Val, augment: None, batch: 4, steps: u64::MAX, ..LOADER };
    let whole = all(&source, evaluation.clone());
    for parts in [2, 3, 7, 12] {
        let mut seen = 0;
        for part in 0..parts {
            let share = Share { part, parts };
            let own = all(&source, LoaderConfig { share, ..evaluation.clone() });
            assert_eq!(own.len() as u64, evaluation_steps(37, 4, share));
            for (turn, own) in own.iter().enumerate() {
                let whole = &whole[turn * parts + part];
                assert_eq!(
                    (&own.pixels, &own.labels, own.images),
                    (&whole.pixels, &whole.labels, whole.images)
                );
                seen += own.images;
            }
        }
        assert_eq!(seen, 37);
    }
}

/// Mixed pairs are made of the images that an unmixed loader gives at the same places.
#[test]
fn mixed_pairs_are_made_of_the_unmixed_images() {
    let (_dir, source) = packed(20);
    let plain = all(&source, LOADER);
    let (mut blends, mut cuts, mut none) = (0, 0, 0);
    for (mixed, plain) in all(&source, LoaderConfig { augment: Some(MIXED), ..LOADER }).iter().zip(&plain) {
        let mut sampler = Sampler::shuffled(LOADER.seed, 50, 16);
        let mut places = Vec::new();
        sampler.fill(mixed.step, &mut places);
        let squares = |batch: &Batch| -> Vec<Vec<u8>> {
            batch.pixels.chunks_exact(32 * 32 * 3).map(<[u8]>::to_vec).collect()
        };
        let (found, mut expected) = (squares(mixed), squares(plain));
        for one in (0..16).step_by(2) {
            let two = one + 1;
            let (a, b) = expected.split_at_mut(two);
            let id = source.id(Split::Train, places[one].index as usize);
            let look = Look { policy: MIXED, seed: LOADER.seed, epoch: places[one].epoch, id };
            let [own, other] = [plain.labels[one], plain.labels[two]];
            let labels = |at: usize| (mixed.labels[at], mixed.second[at], mixed.shares[at]);
            match look.mix(look.epoch, 32) {
                Some(mix) => {
                    mix.apply(&mut a[one], &mut b[0], 32);
                    assert_eq!(
                        (labels(one), labels(two)),
                        (mix.labels(own, other, 32), mix.labels(other, own, 32))
                    );
                    if let Mix::Blend { .. } = mix { blends += 1 } else { cuts += 1 }
                }
                None => {
                    assert_eq!((labels(one), labels(two)), ((own, own, 1.0), (other, other, 1.0)));
                    none += 1;
                }
            }
        }
        assert!(found == expected, "step {}", mixed.step);
    }
    assert!(blends > 10 && cuts > 10 && none > 5, "{blends} {cuts} {none}");
}

/// The same bytes, labels and shares for any number of threads, ranks and raw batches, from any step on.
#[test]
fn mixed_images_do_not_depend_on_how_they_are_loaded() {
    let (_dir, source) = packed(20);
    let config = LoaderConfig { augment: Some(MIXED), ..LOADER };
    let whole = all(&source, config.clone());
    assert!(all(&source, LoaderConfig { threads: 5, ..config.clone() }) == whole);
    let rest = all(&source, LoaderConfig { first_step: 7, steps: 5, ..config.clone() });
    assert!(rest == whole[7..]);
    for parts in [2, 4, 8] {
        for part in 0..parts {
            let share = Share { part, parts };
            let own = all(&source, LoaderConfig { batch: 16 / parts, share, ..config.clone() });
            for (own, whole) in own.iter().zip(&whole) {
                let range = part * own.labels.len()..(part + 1) * own.labels.len();
                assert_eq!(own.labels, whole.labels[range.clone()]);
                assert_eq!(own.second, whole.second[range.clone()]);
                assert_eq!(own.shares, whole.shares[range.clone()]);
                let bytes = 32 * 32 * 3;
                assert!(own.pixels == whole.pixels[range.start * bytes..range.end * bytes]);
            }
        }
    }
}

#[test]
fn mixed_batches_are_even() {
    let source = Source::synthetic(5, 50, 37, 32).unwrap();
    let config = LoaderConfig { augment: Some(MIXED), ..LOADER };
    for odd in [
        LoaderConfig { batch: 15, ..config.clone() },
        LoaderConfig { batch: 6, form: Form::Raw { images: 3 }, ..config },
    ] {
        let error = Loader::start(source.clone(), odd).err().expect("an odd number of images");
        assert!(error.to_string().contains("mixed in pairs"), "{error}");
    }
}
