//! Edits of squares: the kernel's are those of the CPU, bit by bit, and Pillow's, as nearly as the CPU's are.

use serde::Deserialize;

use super::*;
use effnet::data::augment::Edit;
use effnet::data::codec::decode_file;
use effnet::pixels::{MOST_EDITS, edited_squares_bytes};

const FILL: [u8; 3] = [124, 16, 204];

/// Squares that edits treat differently: noise, ramps, one colour, two values, dark.
pub(super) fn contents(side: usize, number: usize) -> Vec<u8> {
    let bytes = side * side * 3;
    match number % 5 {
        0 => noise(bytes, number as u64),
        1 => {
            (0..bytes).map(|at| (at / 3 % side * 255 / side + at % 3 * (at / 3 / side) % 90) as u8).collect()
        }
        2 => vec![number as u8; bytes],
        3 => (0..bytes).map(|at| if at / 3 % 7 == 0 { 200 } else { 31 * (at % 3) as u8 }).collect(),
        _ => noise(bytes, number as u64).into_iter().map(|v| v / 9).collect(),
    }
}

/// Each operation at many strengths, for squares of this side.
fn single(side: u32) -> Vec<Edit> {
    let mut edits = vec![Edit::FlipVertically, Edit::AutoContrast, Edit::Equalize, Edit::Invert];
    for factor in [-70.0, -1.0, 0.0, 0.1, 0.55, 1.0, 1.4, 1.9, 3.0, 30_000.0].map(Edit::factor) {
        edits.extend([
            Edit::Color { factor },
            Edit::Contrast { factor },
            Edit::Brightness { factor },
            Edit::Sharpness { factor },
        ]);
    }
    edits.extend((0..=8).map(|bits| Edit::Posterize { bits }));
    edits.extend([0, 1, 77, 128, 255, 256].map(|threshold| Edit::Solarize { threshold }));
    edits.extend([0, 1, 110, 127, 128, 255].map(|add| Edit::SolarizeAdd { add }));
    edits.extend(
        [-400.0, -90.0, -30.0, 0.0, 1.7, 45.0, 135.0].map(|degrees| Edit::rotate(degrees, side, FILL)),
    );
    for v in [-0.99, -0.3, 0.0, 0.123, 0.99] {
        let pixels = (v * f64::from(side)).trunc();
        edits.extend([
            Edit::affine([1.0, v, 0.0, 0.0, 1.0, 0.0], FILL),
            Edit::affine([1.0, 0.0, 0.0, v, 1.0, 0.0], FILL),
            Edit::affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0], FILL),
            Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * pixels], FILL),
        ]);
    }
    edits.push(Edit::Affine {
        matrix: [i32::MAX, i32::MIN, i32::MAX, i32::MIN, i32::MAX, i32::MIN],
        fill: FILL,
    });
    let erase = |left, top, width, height| Edit::Erase { left, top, width, height, fill: FILL };
    edits.extend([
        erase(0, 0, side, side),
        erase(side - 1, 0, 1, side),
        erase(side / 3, side / 2, side / 2, side / 3),
        erase(side, side, 0, 0),
    ]);
    edits
}

/// Each edit alone, and as many chains of up to as many as a raw batch takes.
pub(super) fn chains(side: u32) -> Vec<Vec<Edit>> {
    let single = single(side);
    let count = single.len() as u32;
    let chain = |number: u64| {
        let bits = draw(7, number, side, Purpose::Synthetic, 3);
        let length = if number.is_multiple_of(9) { MOST_EDITS as u32 } else { 2 + below(bits[0], 5) };
        let edit = |at| single[below(draw(8, number, at, Purpose::Synthetic, 4)[0], count) as usize];
        (0..length).map(edit).collect()
    };
    let alone = single.iter().map(|&edit| vec![edit]);
    alone.chain((0..u64::from(count)).map(chain)).collect()
}

/// A raw batch of squares with these edits, every tenth without any, and the squares that come of it.
fn edited_batch(chains: &[Vec<Edit>], side: usize) -> (Vec<u8>, Vec<u8>) {
    let mut buffer = vec![0xa5; least_raw_batch_bytes(chains.len(), side)];
    let mut batch = RawBatch::new(&mut buffer, chains.len(), side);
    let mut squares = Vec::new();
    for (number, chain) in chains.iter().enumerate() {
        let chain = if number % 10 == 9 { &[] } else { &chain[..] };
        let mut square = contents(side, number);
        batch.push_resized(&square, chain, &mut RawScratch::default());
        chain.iter().for_each(|edit| edit.apply(&mut square, side, &mut Vec::new()));
        squares.extend(square);
    }
    let used = batch.used();
    buffer.truncate(used);
    (buffer, squares)
}

/// The bytes of the image tensor that the kernels make of a raw batch with edits. Behind the workspace nothing is
/// written.
pub(super) fn edited<G: TestGpu>(
    raw: &[u8],
    (images, side, editing): (usize, usize, Editing),
    precision: Precision,
    way: G::Way,
) -> Vec<u8> {
    on_gpu::<G>(images * side * side * 3, precision, way, |ops, image| {
        let bytes = buffers::on_device(ops, raw);
        let room = edited_squares_bytes(images, side);
        let squares = ops.gpu().allocate(room + 256).unwrap();
        ops.gpu().guard(squares.offset(room), 256).unwrap();
        image::prepare(ops.context(), RawOnDevice { bytes, side, editing, squares }, image, MEAN, DEVIATION)
            .unwrap();
        assert!(ops.gpu().kept(squares.offset(room), 256).unwrap(), "the workspace is large enough");
    })
}

fn compare<G: TestGpu>(chains: &[Vec<Edit>], side: usize, precision: Precision, way: G::Way) {
    let (raw, squares) = edited_batch(chains, side);
    let found = edited::<G>(&raw, (chains.len(), side, Editing::Edits), precision, way);
    let expected = stored(&normalised(&squares, 1), precision);
    let bytes = side * side * 3 * precision.bytes();
    for (chain, (found, expected)) in chains.iter().zip(found.chunks(bytes).zip(expected.chunks(bytes))) {
        expect_same(
            found,
            expected,
            precision.bytes(),
            &format!("{chain:?} of {side}² in {precision}, {way:?}"),
        );
    }
}

fn every_edit_and_every_chain_is_the_cpu_s<G: TestGpu>() {
    for side in [1, 2, 3, 8, 21, 32, 45] {
        for precision in Precision::ALL {
            compare::<G>(&chains(side), side as usize, precision, ways::<G>()[0]);
        }
    }
    for way in &ways::<G>()[1..] {
        compare::<G>(&chains(19), 19, Precision::Fp16, *way);
    }
}
on_cuda!(every_edit_and_every_chain_is_the_cpu_s);

/// The sides of B0 and B4, and more pixels than threads by far.
fn edits_of_large_squares_are_the_cpu_s<G: TestGpu>() {
    for (side, every) in [(224, 23), (380, 61)] {
        let some: Vec<_> = chains(side).into_iter().skip(2).step_by(every).collect();
        compare::<G>(&some, side as usize, Precision::Fp16, ways::<G>()[0]);
    }
}
on_cuda!(edits_of_large_squares_are_the_cpu_s);

#[derive(Deserialize)]
struct Golden {
    side: u32,
    fill: [u8; 3],
    edits: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    edit: String,
    value: f64,
}

/// The edit, and whether it is in integers in Pillow too.
fn golden_edit(Case { edit, value: v }: &Case, side: u32, fill: [u8; 3]) -> (Edit, bool) {
    let factor = Edit::factor(*v);
    match edit.as_str() {
        "shear-x" => (Edit::affine([1.0, *v, 0.0, 0.0, 1.0, 0.0], fill), true),
        "shear-y" => (Edit::affine([1.0, 0.0, 0.0, *v, 1.0, 0.0], fill), true),
        "translate-x" => (Edit::affine([1.0, 0.0, *v, 0.0, 1.0, 0.0], fill), true),
        "translate-y" => (Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, *v], fill), true),
        "rotate" => (Edit::rotate(*v, side, fill), true),
        "auto-contrast" => (Edit::AutoContrast, false),
        "equalize" => (Edit::Equalize, true),
        "invert" => (Edit::Invert, true),
        "posterize" => (Edit::Posterize { bits: *v as u8 }, true),
        "solarize" => (Edit::Solarize { threshold: *v as u16 }, true),
        "solarize-add" => (Edit::SolarizeAdd { add: *v as u8 }, true),
        "color" => (Edit::Color { factor }, false),
        "contrast" => (Edit::Contrast { factor }, false),
        "brightness" => (Edit::Brightness { factor }, false),
        "sharpness" => (Edit::Sharpness { factor }, false),
        other => panic!("{other}"),
    }
}

/// What the kernel makes of Pillow's picture, as bytes, beside what Pillow made of it.
fn edits_of_the_kernel_are_pillow_s_to_one_grey_level<G: TestGpu>() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augmentation/edits");
    let golden: Golden = serde_json::from_slice(&std::fs::read(format!("{path}.json")).unwrap()).unwrap();
    let picture = decode_file(&std::fs::read(format!("{path}.png")).unwrap()).unwrap().pixels;
    let side = golden.side as usize;
    let squares: Vec<_> = picture.bytes.chunks_exact(side * side * 3).collect();
    let (images, length) = (golden.edits.len(), side * side * 3);
    assert_eq!(squares.len(), images + 1);
    let mut buffer = vec![0; least_raw_batch_bytes(images, side)];
    let mut batch = RawBatch::new(&mut buffer, images, side);
    for case in &golden.edits {
        let (edit, _) = golden_edit(case, golden.side, golden.fill);
        batch.push_resized(squares[0], &[edit], &mut RawScratch::default());
    }
    let values = edited::<G>(&buffer, (images, side, Editing::Edits), Precision::Fp32, ways::<G>()[0]);
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&values);
    for ((case, expected), values) in golden.edits.iter().zip(&squares[1..]).zip(values.chunks(length)) {
        let (_, exact) = golden_edit(case, golden.side, golden.fill);
        let byte =
            |(at, value): (usize, &f32)| ((value * DEVIATION[at % 3] + MEAN[at % 3]) * 255.0).round() as u8;
        let found = values.iter().enumerate().map(byte);
        let most = found.zip(*expected).map(|(found, expected)| found.abs_diff(*expected)).max();
        assert!(most <= Some(u8::from(!exact)), "{} {}: {most:?} grey levels off", case.edit, case.value);
    }
}
on_cuda!(edits_of_the_kernel_are_pillow_s_to_one_grey_level);
