//! Neighbours that are mixed, after their edits: the kernel's values are those of the formula, bit by bit.

use super::edits::{chains, contents, edited};
use super::*;
use effnet::data::augment::{Mix, Rectangle};

/// What an image gets of its neighbour: a share of every pixel in steps of 2⁻¹⁶, and all of a rectangle.
#[derive(Clone, Copy, Debug)]
struct Share {
    weight: u32,
    part: Rectangle,
}

/// The formula, from finished squares.
fn mixed(own: &[u8], other: &[u8], side: usize, Share { weight, part }: Share) -> Vec<u8> {
    let of = |at: usize| {
        let (x, y) = ((at / 3 % side) as u32, (at / 3 / side) as u32);
        let inside = (part.left..part.left + part.width).contains(&x)
            && (part.top..part.top + part.height).contains(&y);
        let (a, b, w) = (u64::from(own[at]), u64::from(other[at]), u64::from(weight));
        if inside { other[at] } else { ((a * (65_536 - w) + b * w + 32_768) >> 16) as u8 }
    };
    (0..own.len()).map(of).collect()
}

/// All of one image, all of the other, halves, rounding up and down, and rectangles up to the whole square.
fn share(number: usize, side: u32) -> Share {
    let weight = [0, 65_536, 32_768, 1, 65_535, 21_845, 0, 0, 0][number % 9];
    let bits = draw(9, number as u64, side, Purpose::Synthetic, 5);
    let (left, top) = (below(bits[0], side), below(bits[1], side));
    let part = match number % 4 {
        0 | 1 => Rectangle { left: 0, top: 0, width: 0, height: 0 },
        2 => Rectangle::all((side, side)),
        _ => Rectangle {
            left,
            top,
            width: below(bits[2], side - left) + 1,
            height: below(bits[3], side - top) + 1,
        },
    };
    let blended = part.width == 0;
    Share { weight: if blended { weight } else { 0 }, part }
}

fn mix(Share { weight, part }: Share) -> Mix {
    if part.width == 0 { Mix::Blend { weight: 65_536 - weight } } else { Mix::Exchange(part) }
}

fn neighbours_are_mixed_as_the_formula_says<G: TestGpu>() {
    for side in [1, 2, 7, 12, 32, 45, 68] {
        // Edits of every kind and none; one in two edited images has more than one.
        let chains: Vec<_> = chains(side).into_iter().step_by(3).take(36).collect();
        let (images, length) = (chains.len(), (3 * side * side) as usize);
        let mut buffer = vec![0xa5; least_raw_batch_bytes(images, side as usize)];
        let mut batch = RawBatch::new(&mut buffer, images, side as usize);
        let mut squares = Vec::new();
        for (number, chain) in chains.iter().enumerate() {
            let chain = if number % 5 == 4 { &[] } else { &chain[..] };
            let mut square = contents(side as usize, number);
            batch.push_resized(&square, chain, &mut RawScratch::default());
            chain.iter().for_each(|edit| edit.apply(&mut square, side as usize, &mut Vec::new()));
            squares.push(square);
        }
        let mut expected = Vec::new();
        for number in 0..images {
            let share = share(number, side);
            batch.mix(number, mix(share));
            expected.extend(mixed(&squares[number], &squares[number ^ 1], side as usize, share));
        }
        let values = normalised(&expected, 1);
        for (precision, way) in
            Precision::ALL.into_iter().flat_map(|p| ways::<G>().iter().map(move |w| (p, *w)))
        {
            let found = edited::<G>(&buffer, (images, side as usize, Editing::Mixing), precision, way);
            let expected = stored(&values, precision);
            let each = length * precision.bytes();
            for (number, (found, expected)) in found.chunks(each).zip(expected.chunks(each)).enumerate() {
                let what = format!("{number} of {side}², {:?}, in {precision}, {way:?}", share(number, side));
                expect_same(found, expected, precision.bytes(), &what);
            }
        }
    }
}
on_cuda!(neighbours_are_mixed_as_the_formula_says);
