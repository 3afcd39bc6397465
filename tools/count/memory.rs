//! What an access costs: wavefronts of shared memory, sectors of global memory.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::warp::LANES;

/// Bytes of a sector, the least that moves between caches and memory; of a line; of a wavefront.
pub const SECTOR: u64 = 32;
const LINE: u64 = 128;
const BANKS: u64 = 32;

/// Of one access by a warp.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Passes over the banks or over lines of the first-level cache.
    pub wavefronts: u64,
    /// What they would be without conflicts.
    pub least: u64,
    /// Sectors of global memory, and those that the block had not touched yet.
    pub sectors: u64,
    pub fresh: u64,
}

/// Shared memory has 32 banks of 4 bytes. Accesses of 8 and 16 bytes a lane are done by half and quarter warps.
pub fn shared(addresses: &[u64; LANES], lanes: u32, width: u32) -> Cost {
    let step = match width {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let mut cost = Cost::default();
    for first in (0..LANES).step_by(step) {
        // At most 32 words: 32 lanes of one, 16 of two, 8 of four.
        let (mut words, mut count) = ([0u64; 32], 0);
        for lane in (first..first + step).filter(|lane| lanes >> lane & 1 == 1) {
            for word in addresses[lane] / 4..addresses[lane] / 4 + u64::from(width).div_ceil(4) {
                words[count] = word;
                count += 1;
            }
        }
        words[..count].sort_unstable();
        let mut banks = [0u64; BANKS as usize];
        for i in 0..count {
            // Lanes that read one word share it.
            if i == 0 || words[i] != words[i - 1] {
                banks[(words[i] % BANKS) as usize] += 1;
            }
        }
        cost.wavefronts += banks.iter().copied().max().unwrap_or(0);
        cost.least += u64::from(count > 0);
    }
    cost
}

/// `LDSM`: each eight lanes name the rows of a matrix.
pub fn matrices(addresses: &[u64; LANES], count: usize) -> Cost {
    let lanes = if count >= 4 { u32::MAX } else { (1u32 << (8 * count)) - 1 };
    shared(addresses, lanes, 16)
}

/// Sectors that a block has touched.
#[derive(Default)]
pub struct Touched(HashSet<u64, BuildHasherDefault<Mixed>>);

impl Touched {
    pub fn global(&mut self, addresses: &[u64; LANES], lanes: u32, width: u32) -> Cost {
        let mut sectors: Vec<u64> = Vec::with_capacity(64);
        for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
            let last = addresses[lane] + u64::from(width) - 1;
            sectors.extend(addresses[lane] / SECTOR..=last / SECTOR);
        }
        sectors.sort_unstable();
        sectors.dedup();
        let mut lines: Vec<u64> = sectors.iter().map(|sector| sector * SECTOR / LINE).collect();
        lines.dedup();
        let bytes = u64::from(lanes.count_ones() * width);
        let fresh = sectors.iter().filter(|sector| self.0.insert(**sector)).count() as u64;
        Cost {
            wavefronts: lines.len() as u64,
            least: bytes.div_ceil(LINE),
            sectors: sectors.len() as u64,
            fresh,
        }
    }
}

/// A hash of one number, by one multiplication.
#[derive(Default)]
pub struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
