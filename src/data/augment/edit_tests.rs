//! Edits against what Pillow made of the same image.

use serde::Deserialize;

use super::*;
use crate::data::codec::decode_file;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augmentation/edits");

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

impl Case {
    fn edit(&self, side: u32, fill: [u8; 3]) -> Edit {
        let (v, factor) = (self.value, Edit::factor(self.value));
        match self.edit.as_str() {
            "shear-x" => Edit::affine([1.0, v, 0.0, 0.0, 1.0, 0.0], fill),
            "shear-y" => Edit::affine([1.0, 0.0, 0.0, v, 1.0, 0.0], fill),
            "translate-x" => Edit::affine([1.0, 0.0, v, 0.0, 1.0, 0.0], fill),
            "translate-y" => Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, v], fill),
            "rotate" => Edit::rotate(v, side, fill),
            "auto-contrast" => Edit::AutoContrast,
            "equalize" => Edit::Equalize,
            "invert" => Edit::Invert,
            "posterize" => Edit::Posterize { bits: v as u8 },
            "solarize" => Edit::Solarize { threshold: v as u16 },
            "solarize-add" => Edit::SolarizeAdd { add: v as u8 },
            "color" => Edit::Color { factor },
            "contrast" => Edit::Contrast { factor },
            "brightness" => Edit::Brightness { factor },
            "sharpness" => Edit::Sharpness { factor },
            other => panic!("{other}"),
        }
    }

    /// Blends are in floating point in Pillow, and so is the scale of the contrast.
    fn exact(&self) -> bool {
        !["auto-contrast", "color", "contrast", "brightness", "sharpness"].contains(&self.edit.as_str())
    }
}

#[test]
fn edits_are_pillow_s_to_one_grey_level() {
    let golden: Golden = serde_json::from_slice(&std::fs::read(format!("{GOLDEN}.json")).unwrap()).unwrap();
    let picture = decode_file(&std::fs::read(format!("{GOLDEN}.png")).unwrap()).unwrap().pixels;
    let side = golden.side as usize;
    let mut squares = picture.bytes.chunks_exact(side * side * 3);
    let input = squares.next().unwrap();
    assert_eq!(squares.len(), golden.edits.len());
    let (mut sum, mut count, mut scratch) = (0, 0, Vec::new());
    for (case, expected) in golden.edits.iter().zip(squares) {
        let mut square = input.to_vec();
        case.edit(golden.side, golden.fill).apply(&mut square, side, &mut scratch);
        let most = square.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let bound = if case.exact() { 0 } else { 1 };
        assert!(most <= bound, "{} {}: {most} grey levels off", case.edit, case.value);
        sum += square.iter().zip(expected).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        count += square.len();
        // An operation that did nothing would be near the input too.
        let neutral = [("rotate", 0.0), ("color", 1.0), ("contrast", 1.0), ("brightness", 1.0)];
        let neutral = neutral.contains(&(case.edit.as_str(), case.value))
            || [("sharpness", 1.0), ("solarize", 256.0)].contains(&(case.edit.as_str(), case.value));
        assert_eq!(square == input, neutral, "{} {}", case.edit, case.value);
    }
    println!("mean difference {:.5} grey levels", sum as f64 / count as f64);
}

#[test]
fn erase_fills_the_rectangle_alone() {
    let (side, fill) = (6, [1, 2, 3]);
    let mut square = vec![9; side * side * 3];
    Edit::Erase { left: 1, top: 2, width: 4, height: 3, fill }.apply(&mut square, side, &mut Vec::new());
    for (at, pixel) in square.as_chunks::<3>().0.iter().enumerate() {
        let inside = (1..5).contains(&(at % side)) && (2..5).contains(&(at / side));
        assert_eq!(*pixel, if inside { fill } else { [9; 3] }, "pixel {at}");
    }
}

#[test]
fn flip_reverses_the_rows() {
    for side in [1, 2, 5] {
        let square: Vec<u8> = (0..side * side * 3).map(|v| v as u8).collect();
        let mut flipped = square.clone();
        Edit::FlipVertically.apply(&mut flipped, side, &mut Vec::new());
        let rows: Vec<u8> = square.chunks(3 * side).rev().flatten().copied().collect();
        assert_eq!(flipped, rows);
    }
}

/// Squares of one colour have nothing to stretch, and the smallest squares have no inside.
#[test]
fn edits_of_trivial_squares_stay_in_bounds() {
    let fill = [7; 3];
    let edits = [
        Edit::rotate(45.0, 2, fill),
        Edit::AutoContrast,
        Edit::Equalize,
        Edit::Contrast { factor: Edit::factor(1.9) },
        Edit::Sharpness { factor: 0 },
        Edit::FlipVertically,
    ];
    for side in [1, 2, 3] {
        for edit in edits {
            let mut square = vec![200; side * side * 3];
            edit.apply(&mut square, side, &mut Vec::new());
            assert!(square.iter().all(|&v| v == 200 || v == 7), "{edit:?} at {side}");
        }
    }
}
