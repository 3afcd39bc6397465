//! Images made from bytes: the CPU's against the oracle; on a GPU they equal those of the CPU, rounded to the storage type,
//! bit by bit, from squares, and from raw batches, which the kernel itself crops, resizes, pads and mirrors.

use crate::common::buffers;
use crate::common::data::{self, LOADER};
use crate::common::fixture::{doubles, equal_bits, relative_error, tolerance};
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::reference::Reference;
use effnet::data::augment::{
    Auto, Geometry, Look, Mixing, RandAugment, Scratch, View, choose_geometry, preprocess,
};
use effnet::data::raw::{RawBatch, RawScratch};
use effnet::data::{Batch, CropMode, Form, Loader, LoaderConfig, Policy, Source, Split};
use effnet::ops::Workspace;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::image::{self, RawOnDevice};
use effnet::ops::cuda::precision::narrow;
use effnet::ops::cuda::{Address, CudaOps, Precision};
use effnet::ops::*;
use effnet::pixels::{Editing, ImageSample, least_raw_batch_bytes, raw_batch_bytes};
use effnet::random::{Purpose, below, draw};

mod edits;
mod mixing;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// An arena that contains one tensor of images and nothing else.
fn alone(elements: usize, element_bytes: usize) -> (Plan, Tensor) {
    let image = Tensors::default().new_tensor("image", elements, Kind::Activation);
    let plan = Plan {
        offsets: vec![Some(0)],
        elements: vec![elements],
        tensor_bytes: elements * element_bytes,
        workspace: Workspace::default(),
        threads: 1,
        products: vec![],
        saved_bytes: 0,
    };
    (plan, image)
}

/// The image tensor that the CPU makes from squares.
fn normalised(squares: &[u8], threads: usize) -> Vec<f32> {
    let (plan, image) = alone(squares.len(), 4);
    let mut ops = CpuOps::new(StateSize::new(0, 0), &[&plan], CpuDevice::fp32(threads)).unwrap();
    ops.bind(&plan).unwrap();
    ops.upload(image, &vec![f32::NAN; squares.len()]).unwrap();
    ops.upload_pixels(image, squares, MEAN, DEVIATION).unwrap();
    buffers::values(&mut ops, image).unwrap()
}

#[test]
fn image_of_the_cpu_agrees_with_the_oracle_on_any_number_of_threads() {
    let squares: Vec<u8> = (0..3 * 37 * 37 * 3).map(|i| (i * 73 % 256) as u8).collect();
    let (_, image) = alone(squares.len(), 8);
    let mut reference = Reference::new(0, 0);
    reference.upload_pixels(image, &squares, MEAN, DEVIATION).unwrap();
    let one = normalised(&squares, 1);
    assert!(relative_error(&doubles(&one), &reference.get(image)) <= tolerance(1));
    for threads in [2, 3] {
        assert!(equal_bits(&normalised(&squares, threads), &one), "{threads} threads change the image");
    }
}

/// Values in the storage type.
fn stored(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::Fp32 => bytemuck::cast_slice(values).to_vec(),
        _ => narrow(values, precision),
    }
}

/// The bytes of the image tensor after `work`; NaN before.
fn on_gpu<G: TestGpu>(
    elements: usize,
    precision: Precision,
    way: G::Way,
    work: impl FnOnce(&mut CudaOps<G>, Tensor),
) -> Vec<u8> {
    let (plan, image) = alone(elements, precision.bytes());
    let mut ops = CudaOps::new(G::open(way), StateSize::new(0, 0), &[&plan], precision).unwrap();
    ops.bind(&plan).unwrap();
    let at = ops.context().tensor(image);
    let mut bytes = vec![0; plan.tensor_bytes];
    ops.gpu().fill(at, 0xff, bytes.len()).unwrap();
    work(&mut ops, image);
    ops.gpu().read(at, &mut bytes).unwrap();
    bytes
}

fn expect_same(found: &[u8], expected: &[u8], element_bytes: usize, what: &str) {
    assert_eq!(found.len(), expected.len());
    if let Some(byte) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let differ = found.chunks(element_bytes).zip(expected.chunks(element_bytes)).filter(|(a, b)| a != b);
        panic!("{what}: {} values differ, the first is {}", differ.count(), byte / element_bytes);
    }
}

/// The ways in which small images are made.
fn ways<G: TestGpu>() -> &'static [G::Way] {
    G::ways(Precision::Fp16)
}

/// Mostly extreme bytes, which show wrong rounding and clipping.
fn noise(count: usize, salt: u64) -> Vec<u8> {
    let byte = |bits: u32| match bits % 4 {
        0 => (bits >> 24) as u8,
        1 => 0,
        _ => 255,
    };
    (0..count.div_ceil(4))
        .flat_map(|at| draw(3, at as u64, salt as u32, Purpose::Synthetic, 7).map(byte))
        .take(count)
        .collect()
}

fn squares_become_what_the_cpu_makes_of_them<G: TestGpu>() {
    // Values are written in groups of sixteen: whole groups, a remainder, only a remainder, and more than all blocks
    // write at once.
    for (images, side) in [(1, 1), (1, 2), (2, 4), (1, 7), (3, 5), (5, 33), (2, 32), (1, 1203)] {
        let pixels: Vec<u8> = match side {
            32 => (0..2 * 32 * 32 * 3).map(|at| (at / 3) as u8).collect(), // each byte in each channel
            _ => noise(images * side * side * 3, side as u64),
        };
        let values = normalised(&pixels, 1);
        let large = side > 1000;
        for precision in Precision::ALL {
            for way in &ways::<G>()[..if large { 1 } else { ways::<G>().len() }] {
                let found = on_gpu::<G>(pixels.len(), precision, *way, |ops, image| {
                    ops.upload_pixels(image, &pixels, MEAN, DEVIATION).unwrap();
                });
                let what = format!("{images}×{side}² in {precision}, {way:?}");
                expect_same(&found, &stored(&values, precision), precision.bytes(), &what);
            }
        }
    }
}
on_cuda!(squares_become_what_the_cpu_makes_of_them);

/// An image and its way into the square.
struct Picture {
    width: u32,
    height: u32,
    channels: u8,
    mode: CropMode,
    look: Option<Look>,
    bytes: Vec<u8>,
}

impl Picture {
    fn new((width, height): (u32, u32), channels: u8, mode: CropMode, id: u64) -> Picture {
        let bytes = noise(width as usize * height as usize * channels as usize, id);
        // Evaluation, and looks of training: mirrored and not.
        let look =
            (!id.is_multiple_of(3)).then_some(Look { policy: Policy::STANDARD, seed: 5, epoch: 2, id });
        Picture { width, height, channels, mode, look, bytes }
    }

    fn view(&self) -> View<'_> {
        View { width: self.width, height: self.height, channels: self.channels, bytes: &self.bytes }
    }

    fn geometry(&self, side: usize) -> Geometry {
        choose_geometry((self.width, self.height), side, self.mode, self.look).unwrap()
    }

    fn square(&self, side: usize) -> Vec<u8> {
        let mut square = vec![1; side * side * 3];
        preprocess(self.view(), side, self.mode, self.look, &mut Scratch::default(), &mut square).unwrap();
        square
    }
}

/// All unusual sizes, forms and looks, then some at random.
fn pictures(side: u32, random: u64) -> Vec<Picture> {
    let sizes = [
        (1, 1),
        (1, 2),
        (2, 1),
        (side, side),
        (side + 1, side - 1),
        (side.saturating_sub(4).max(1), side),
        (side / 2 + 1, side / 3 + 1),
        (3 * side, 2 * side),
        (6 * side + 1, 11),
        (9, 7 * side + 2),
        (900, 1),
        (1, 900),
        (1200, 3),
    ];
    let mut pictures = Vec::new();
    let mut id = 0;
    let mut add = |size, channels| {
        for mode in [CropMode::Resized, CropMode::Pad] {
            pictures.push(Picture::new(size, channels, mode, id));
            id += 1;
        }
        id += 1; // so that each mode meets evaluation and training
    };
    for (number, size) in sizes.into_iter().enumerate() {
        add(size, 3);
        add(size, if number % 2 == 0 { 1 } else { 3 });
    }
    for number in 0..random {
        let bits = draw(1, number, side, Purpose::Synthetic, 9);
        let most = if number % 4 == 0 { 400 } else { 2 * side };
        let size = (1 + below(bits[0], most), 1 + below(bits[1], most));
        add(size, if bits[2].is_multiple_of(3) { 1 } else { 3 });
    }
    pictures
}

/// A raw batch of `images`, where images without a picture are black, and the squares that it stands for.
fn raw_batch(pictures: &[Picture], images: usize, side: usize) -> (Vec<u8>, Vec<u8>) {
    // Pixels padded to the alignment, and weights of two axes.
    let need = |p: &Picture| 2 * p.bytes.len() + 16 * (p.width + p.height) as usize + (1 << 14);
    let room: usize = pictures.iter().map(need).sum();
    let mut buffer = vec![0xa5; least_raw_batch_bytes(images, side) + room];
    let mut scratch = RawScratch::default();
    let mut batch = RawBatch::new(&mut buffer, images, side);
    let mut squares = Vec::new();
    for (number, picture) in pictures.iter().enumerate() {
        let square = picture.square(side);
        if number % 11 == 10 {
            batch.push_resized(&square, &[], &mut scratch);
        } else {
            let Picture { width, height, .. } = *picture;
            let added = batch.push(picture.view(), &picture.geometry(side), &[], &mut scratch);
            assert!(added, "{width}×{height} to {side}");
        }
        squares.extend(square);
    }
    squares.resize(images * side * side * 3, 0);
    let used = batch.used();
    buffer.truncate(used);
    (buffer, squares)
}

/// Compares the kernel's images of a raw batch with the squares, in these storage types and ways. The device's buffer
/// ends where the batch ends.
fn check<G: TestGpu>(raw: &[u8], squares: &[u8], side: usize, precisions: &[Precision], ways: &[G::Way]) {
    let values = normalised(squares, 1);
    for (precision, way) in precisions.iter().flat_map(|p| ways.iter().map(move |w| (*p, *w))) {
        let found = on_gpu::<G>(squares.len(), precision, way, |ops, image| {
            let at = buffers::on_device(ops, raw);
            let raw = RawOnDevice { bytes: at, side, editing: Editing::None, squares: Address::NULL };
            image::prepare(ops.context(), raw, image, MEAN, DEVIATION).unwrap();
        });
        let what = format!("side {side} in {precision}, {way:?}");
        expect_same(&found, &stored(&values, precision), precision.bytes(), &what);
    }
}

fn raw_images_become_what_the_cpu_makes_of_them<G: TestGpu>() {
    for side in [8, 17, 32, 45, 96] {
        let all = pictures(side as u32, if side == 96 { 4 } else { 24 });
        let looks = |mirrored| move |p: &&Picture| p.geometry(side).mirrored == mirrored;
        assert!(all.iter().filter(looks(true)).count() > 9 && all.iter().filter(looks(false)).count() > 9);
        let (raw, squares) = raw_batch(&all, all.len() + 2, side);
        check::<G>(&raw, &squares, side, &Precision::ALL, &ways::<G>()[..1]);
        if side < 96 {
            check::<G>(&raw, &squares, side, &[Precision::Fp16], &ways::<G>()[1..]);
        }
    }
}
on_cuda!(raw_images_become_what_the_cpu_makes_of_them);

/// Input rows so long that the shared memory suffices for fewer warps of a block, down to one; and rows that fit only if
/// a few columns are computed at a time.
fn very_wide_images_are_made_in_parts<G: TestGpu>() {
    let pad = |width, height, channels| Picture::new((width, height), channels, CropMode::Pad, 1);
    for (side, pictures) in [
        (8, vec![pad(32_000, 9, 3), pad(32_000, 200, 1), pad(9_000, 700, 3), pad(65_535, 3, 1)]),
        (32, vec![pad(32_000, 33, 3), pad(9_001, 64, 1), pad(40, 9_000, 3)]),
    ] {
        let (raw, squares) = raw_batch(&pictures, pictures.len(), side);
        check::<G>(&raw, &squares, side, &[Precision::Fp32], ways::<G>());
    }
}
on_cuda!(very_wide_images_are_made_in_parts);

/// The side of the family's largest member, whose rows are the longest, and one in between.
fn large_squares_are_made_too<G: TestGpu>() {
    for side in [224, 600] {
        let pictures = [
            Picture::new((side as u32 + 61, side as u32 + 7), 3, CropMode::Resized, 1),
            Picture::new((90, 75), 3, CropMode::Resized, 3),
        ];
        let count = if side == 600 { 1 } else { 2 };
        let (raw, squares) = raw_batch(&pictures[..count], count, side);
        check::<G>(&raw, &squares, side, &[Precision::Bf16], &ways::<G>()[..1]);
    }
}
on_cuda!(large_squares_are_made_too);

// ---- from the loader ----------------------------------------------------------------------------------------

fn batches(source: &Source, config: LoaderConfig, mut visit: impl FnMut(&Batch)) {
    let mut loader = Loader::start(source.clone(), config).unwrap();
    while let Some(batch) = loader.next().unwrap() {
        visit(&batch);
        loader.recycle(batch);
    }
}

/// Images and labels on the GPU for every micro-batch of every batch, sent and unpacked as a step does it.
fn unpacked<G: TestGpu>(source: &Source, config: LoaderConfig, images: usize) -> Vec<Vec<u8>> {
    let elements = images * config.resolution * config.resolution * 3;
    let mut tensors = Tensors::default();
    let image = tensors.new_tensor("image", elements, Kind::Activation);
    let form = LabelForm { mixed: config.mixes(), ..LabelForm::PLAIN };
    let labels = tensors.new_tensor("labels", form.words(images, 0), Kind::Index);
    let (mut plan, _) = alone(elements, Precision::Fp16.bytes());
    let start = plan.tensor_bytes.next_multiple_of(256);
    plan.offsets.push(Some(start));
    plan.tensor_bytes = start + 4 * labels.elements;
    // On the harness, the way whose transfers happen as late as possible.
    let way = G::WAYS[1];
    let mut ops = CudaOps::new(G::open(way), StateSize::new(0, 0), &[&plan], Precision::Fp16).unwrap();
    ops.bind(&plan).unwrap();
    let at = ops.context().tensor(image);
    let target = BatchTarget { image, labels: Some(labels), mean: MEAN, deviation: DEVIATION };
    let (mut all, mut slot) = (Vec::new(), 0);
    batches(source, config, |batch| {
        for (pixels, labels) in batch.parts(images) {
            ops.gpu().fill(at, 0xff, plan.tensor_bytes).unwrap();
            ops.send_batch(slot, &BatchInput { pixels, labels, target }).unwrap();
            let sequence = Sequence::Training { slot, first: true, last: true };
            ops.replay(sequence, |ops| ops.unpack_batch(slot, &target)).unwrap();
            let mut bytes = vec![0; plan.tensor_bytes];
            ops.gpu().read(at, &mut bytes).unwrap();
            all.push(bytes);
            slot ^= 1;
        }
    });
    all
}

/// The number of images in raw batches, and how many of them the loader had to resize. Resized images have the square's
/// size and are RGB where the set is grey or has another size.
fn resized(source: &Source, config: LoaderConfig, images: usize) -> (usize, usize) {
    let (mut count, mut resized) = (0, 0);
    batches(source, config, |batch| {
        let bytes = raw_batch_bytes(images, batch.resolution);
        assert_eq!(batch.pixels.len(), batch.labels.len() / images * bytes);
        assert!(batch.used.iter().all(|used| *used <= bytes));
        for buffer in batch.pixels.chunks_exact(bytes) {
            for sample in buffer.chunks_exact(size_of::<ImageSample>()).take(images) {
                let sample: ImageSample = bytemuck::pod_read_unaligned(sample);
                let windows = (sample.column_window, sample.row_window);
                count += usize::from(sample.width > 0);
                resized += usize::from(sample.channels == 3 && windows == (1, 1));
            }
        }
    });
    (count, resized)
}

fn raw_batches_of_a_loader_are_its_squares<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    data::pack_grey(dir.path(), 50, 20, 28, 8 << 10);
    let grey = data::open(dir.path());
    let larger = Source::synthetic(3, 50, 20, 90).unwrap();
    let mut seen = Vec::new();
    let auto = |auto| Policy { auto, fill: [9, 8, 7], ..Policy::STANDARD };
    let rand = RandAugment { operations: 3, level: 9.0, deviation: 0.5, increasing: true };
    let mixing = Mixing { mixup: 0.5, cutmix: 1.0, probability: 0.7, ..Mixing::NONE };
    let policies = [
        Policy { color_jitter: 0.3, ..auto(Auto::AutoAugment) },
        Policy { random_erasing: 0.5, ..auto(Auto::Rand(rand)) },
        Policy { vertical_flip: 0.5, ..auto(Auto::Trivial) },
        Policy { mixing, ..Policy::STANDARD },
        Policy { mixing, ..auto(Auto::AutoAugment) },
    ];
    let policies = policies.map(Some).into_iter().chain([Some(Policy::STANDARD), None]);
    for (source, crop, resolution) in
        [(&grey, CropMode::Pad, 32), (&grey, CropMode::Resized, 33), (&larger, CropMode::Resized, 24)]
    {
        for augment in policies.clone() {
            let train = augment.is_some();
            let split = if train { Split::Train } else { Split::Val };
            let of = LoaderConfig { batch: 6, steps: 5, ahead: 2, ..LOADER };
            let squares = LoaderConfig { split, crop, resolution, augment, ..of };
            for (images, threads) in [(6, 1), (2, 3)] {
                let raw = LoaderConfig { form: Form::Raw { images }, threads, ..squares.clone() };
                let expected = unpacked::<G>(source, squares.clone(), images);
                let found = unpacked::<G>(source, raw.clone(), images);
                assert_eq!(found.len(), (if train { 5 } else { 4 }) * 6 / images);
                for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let what = format!("pass {number} of {images}, {crop} to {resolution}, {augment:?}");
                    expect_same(found, expected, 2, &what);
                }
                seen.push((resolution, augment, resized(source, raw, images)));
            }
        }
    }
    for (resolution, augment, (count, resized)) in seen {
        println!("to {resolution}, {augment:?}: {resized} of {count} resized by the loader");
        let train = augment.is_some();
        assert_eq!(count, if train { 30 } else { 20 });
        match (resolution, train) {
            (24, true) => assert!(resized > 5 && count - resized > 5, "both ways are gone"),
            (24, false) => assert!(resized > 5),
            _ => assert_eq!(resized, 0, "of small images each has room"),
        }
    }
}
on_cuda!(raw_batches_of_a_loader_are_its_squares);
