//! Numbers from names: the same values on every machine and in any language, without storing them.
//!
//! A tensor's name is hashed (FNV-1a, 64 bits); the hash starts a SplitMix64 sequence (Steele, Lea & Flood
//! 2014), whose i-th output gives the i-th element.

/// The sequence of one name.
#[derive(Clone, Copy)]
pub struct Formula(u64);

impl Formula {
    pub fn of(name: &str) -> Formula {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Formula(hash)
    }

    /// Element `i`, uniform in [0, 1).
    pub fn unit(self, i: usize) -> f64 {
        let mut z = self.0.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 * (0.5f64).powi(53)
    }

    /// `count` elements, uniform in [low, high), rounded to fp32.
    pub fn values(self, count: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count).map(|i| (low + (high - low) * self.unit(i)) as f32).collect()
    }
}
