//! Images per second of the loader, by the number of threads: small grey images that are padded, and photographs that
//! are decoded from JPEG, then cropped, resized and edited here or by a device. `cargo bench --bench loader`.

#[allow(dead_code)] // tests use the rest
#[path = "../tests/common/data.rs"]
mod data;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use effnet::data::augment::Auto;
use effnet::data::pack::{PackOptions, pack};
use effnet::data::{CropMode, Form, Loader, LoaderConfig, Policy, Source};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use tempfile::TempDir;

/// Smooth shapes with some grain; it compresses about as well as a photograph (0.1 MB at 500×375).
fn photograph(width: u32, height: u32, salt: u32) -> RgbImage {
    let wave = |x: u32, period: f32| ((x as f32 / period).sin() * 60.0 + 110.0) as u32;
    RgbImage::from_fn(width, height, |x, y| {
        let grain = (x ^ y.wrapping_mul(2_654_435_761) ^ salt).wrapping_mul(2_246_822_519) >> 27;
        Rgb([wave(x + salt, 23.0) + grain, wave(y + 3 * salt, 31.0) + grain, wave(x + y, 17.0) + grain]
            .map(|v| v as u8))
    })
}

/// Packs 128 training images of two classes.
fn packed(kind: ImageFormat, make: impl Fn(u32) -> DynamicImage) -> (TempDir, Source) {
    let dir = TempDir::new().expect("a temporary directory");
    let source = dir.path().join("images");
    for split in ["train", "val"] {
        for number in 0..if split == "train" { 128 } else { 2 } {
            let class = source.join(split).join(["a", "b"][number as usize % 2]);
            data::save(&class.join(format!("{number}.{}", kind.extensions_str()[0])), make(number));
        }
    }
    let out = dir.path().join("packed");
    pack(&source, &out, &PackOptions::default(), &mut |_| ()).expect("a packed set");
    let source = Source::open(&out).expect("a set that opens");
    (dir, source)
}

const BATCH: usize = 64;

struct Case<'a> {
    name: &'a str,
    source: &'a Source,
    resolution: usize,
    crop: CropMode,
    form: Form,
    policy: Policy,
}

/// Time for `rounds` batches, without the loader's start.
fn batches(case: &Case, threads: usize, rounds: u64) -> Duration {
    let Case { source, resolution, crop, form, policy, .. } = *case;
    let warm_up = 2;
    let (steps, ahead) = (rounds + warm_up, threads);
    let augment = Some(policy);
    let config =
        LoaderConfig { batch: BATCH, resolution, crop, form, augment, steps, threads, ahead, ..data::LOADER };
    let mut loader = Loader::start(source.clone(), config).expect("a loader");
    let mut since = Instant::now();
    for step in 0..rounds + warm_up {
        if step == warm_up {
            since = Instant::now();
        }
        let batch = loader.next().expect("no damage").expect("a batch");
        loader.recycle(black_box(batch));
    }
    since.elapsed()
}

fn loader(criterion: &mut Criterion) {
    let grey = packed(ImageFormat::Png, |salt| {
        DynamicImage::ImageLuma8(GrayImage::from_fn(28, 28, |x, y| Luma([(x * y + salt) as u8])))
    });
    let photographs = packed(ImageFormat::Jpeg, |salt| photograph(500, 375, salt).into());
    let synthetic = Source::synthetic(10, 128, 10, 224).expect("a made-up set");
    let (squares, raw) = (Form::Squares, Form::Raw { images: BATCH });
    let case = |name, source, resolution, crop, form| Case {
        name,
        source,
        resolution,
        crop,
        form,
        policy: Policy::STANDARD,
    };
    let edited = |case| Case { policy: Policy { auto: Auto::AutoAugment, ..Policy::STANDARD }, ..case };
    let cases = [
        case("grey 28 to 32", &grey.1, 32, CropMode::Pad, squares),
        case("jpeg 500x375 to 224", &photographs.1, 224, CropMode::Resized, squares),
        case("jpeg 500x375 for a device to 224", &photographs.1, 224, CropMode::Resized, raw),
        edited(case("jpeg 500x375 with autoaugment to 224", &photographs.1, 224, CropMode::Resized, squares)),
        edited(case(
            "jpeg 500x375 with autoaugment for a device",
            &photographs.1,
            224,
            CropMode::Resized,
            raw,
        )),
        case("synthetic 224", &synthetic, 224, CropMode::Pad, squares),
    ];
    for case in &cases {
        let mut group = criterion.benchmark_group(format!("loader/{}", case.name));
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
                bencher.iter_custom(|rounds| batches(case, threads, rounds));
            });
        }
    }
}

criterion_group!(benches, loader);
criterion_main!(benches);
