//! Mixing the two finished squares of a pair: mixup and cutmix.
//!
//! The arithmetic is timm's `FastCollateMixup`, which mixes rounded bytes, in integers: the same bytes on every machine,
//! and on a GPU. Timm's blend is in floating point and rounds halves to even; the two are at most one grey level apart.
//!
//! A square is R×R×3 bytes, RGB.

use super::geometry::Rectangle;

/// Steps of a weight in 1.
pub const ONE: u32 = 1 << 16;

/// What happens to a pair of squares. Both change in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Mixup: a square becomes `weight`/[`ONE`] of itself, and the rest of the other.
    Blend { weight: u32 },
    /// Cutmix: the squares exchange this rectangle.
    Exchange(Rectangle),
}

impl Mix {
    /// Changes two squares of this side.
    pub fn apply(self, one: &mut [u8], two: &mut [u8], side: usize) {
        match self {
            Mix::Blend { weight } => {
                for (a, b) in one.iter_mut().zip(two) {
                    (*a, *b) = (blend(*a, *b, weight), blend(*b, *a, weight));
                }
            }
            Mix::Exchange(Rectangle { left, top, width, height }) => {
                let part = 3 * left as usize..3 * (left + width) as usize;
                let rows = top as usize..(top + height) as usize;
                for row in rows.map(|row| 3 * side * row) {
                    let part = row + part.start..row + part.end;
                    one[part.clone()].swap_with_slice(&mut two[part]);
                }
            }
        }
    }

    /// What a square of this side keeps of itself, in parts of its area or of its brightness.
    pub fn share(self, side: u32) -> f64 {
        match self {
            Mix::Blend { weight } => f64::from(weight) / f64::from(ONE),
            Mix::Exchange(Rectangle { width, height, .. }) => {
                let area = u64::from(side) * u64::from(side);
                (area - u64::from(width) * u64::from(height)) as f64 / area as f64
            }
        }
    }

    /// The labels of a square of this side that had the label `own` and was mixed with one that had `other`: that of the
    /// larger part, that of the smaller part, and the larger part's share.
    pub fn labels(self, own: u32, other: u32, side: u32) -> (u32, u32, f32) {
        let share = self.share(side);
        if share < 0.5 { (other, own, (1.0 - share) as f32) } else { (own, other, share as f32) }
    }
}

/// A byte of one square beside that of the other.
fn blend(own: u8, other: u8, weight: u32) -> u8 {
    ((u32::from(own) * weight + u32::from(other) * (ONE - weight) + ONE / 2) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_of_the_larger_part_comes_first() {
        let blend = |weight| Mix::Blend { weight };
        assert_eq!(blend(ONE / 4 * 3).labels(7, 9, 32), (7, 9, 0.75));
        assert_eq!(blend(ONE / 4).labels(7, 9, 32), (9, 7, 0.75));
        assert_eq!(blend(ONE / 2).labels(7, 9, 32), (7, 9, 0.5));
        assert_eq!(blend(0).labels(7, 9, 32), (9, 7, 1.0));
        let rectangle = |side| Rectangle { left: 0, top: 2, width: 10, height: side };
        assert_eq!(Mix::Exchange(rectangle(3)).labels(7, 9, 10), (7, 9, 0.7));
        assert_eq!(Mix::Exchange(rectangle(8)).labels(7, 9, 10), (9, 7, 0.8));
    }

    /// The sum of the two squares stays, to the rounding.
    #[test]
    fn blends_of_all_bytes_are_the_rounded_mean() {
        for weight in [0, 1, 1000, ONE / 3, ONE / 2, ONE - 1, ONE] {
            for own in 0..=255_u8 {
                for other in 0..=255_u8 {
                    let share = f64::from(weight) / f64::from(ONE);
                    let exact = share * f64::from(own) + (1.0 - share) * f64::from(other);
                    let off = f64::from(blend(own, other, weight)) - exact;
                    assert!((-0.5..=0.5).contains(&off), "{own} {other} {weight}: {off}");
                }
            }
        }
    }
}
