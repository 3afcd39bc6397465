//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3").
//!
//! A draw is a pure function of (seed, index, time, purpose, layer). There is no generator state that has to be saved
//! or shared between threads. So a run can resume at any step, any number of threads can draw in any order, and two
//! devices that implement the same function agree.

/// What a draw is for. Draws for different purposes never share a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Order of the samples within an epoch.
    Order = 0,
    /// Position and size of a training crop, offset of a padded image.
    Crop = 1,
    /// Mirror images: the first draw is that from left to right, the second upside down.
    Flip = 2,
    /// Dropout before the classifier; the layer field counts groups of four features.
    Dropout = 3,
    /// Stochastic depth; the layer field is the block.
    DropPath = 4,
    /// Initial weights; the layer field is the tensor.
    Initialise = 5,
    /// Images of `--data synthetic`.
    Synthetic = 6,
    /// The division of an image folder into training and validation.
    Split = 7,
    /// The edits of an automatic augmentation; the layer field tells operations apart.
    Edit = 8,
    ColorJitter = 9,
    /// Random erasing; the layer field is the number of the try.
    Erase = 10,
    /// Mixup and cutmix of a pair of images; layer 1 is the place of a rectangle.
    Mix = 11,
    /// How long a sample is held back in a shuffle of blocks.
    HoldBack = 12,
    /// The order in which a class's samples come, if classes are balanced; the time is the number of the round.
    Balance = 13,
}

/// One block of four 32-bit draws.
///
/// `index` is the object of the draw (a sample, an element), `time` the epoch or step, and `layer` (below 65,536)
/// distinguishes draws of one purpose.
#[inline]
pub fn draw(seed: u64, index: u64, time: u32, purpose: Purpose, layer: u32) -> [u32; 4] {
    debug_assert!(layer < 1 << 16);
    let key = [seed as u32, (seed >> 32) as u32];
    philox(key, [index as u32, (index >> 32) as u32, time, (purpose as u32) << 16 | layer])
}

/// A draw as a number in [0, 1) with 24 bits, exact in `f32`.
#[inline]
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// A draw as an integer in [0, n), by multiplication; the bias is below n / 2^32.
#[inline]
pub fn below(bits: u32, n: u32) -> u32 {
    ((bits as u64 * n as u64) >> 32) as u32
}

/// Philox4x32 with ten rounds, key and counter as published.
#[inline]
pub fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let a = 0xD251_1F53_u64 * counter[0] as u64;
        let b = 0xCD9E_8D57_u64 * counter[2] as u64;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three answers published with Random123.
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox([ones; 2], [ones; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        let answer = [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1];
        assert_eq!(philox([0xa4093822, 0x299f31d0], pi), answer);
    }

    #[test]
    fn unit_stays_below_one() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u32::MAX) < 1.0);
        assert_eq!(below(u32::MAX, 10), 9);
    }
}
