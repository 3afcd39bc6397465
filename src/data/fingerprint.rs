//! FNV-1a over 64 bits (Fowler, Noll, Vo): a name for a content. It protects against accidents, not against attacks.

#[derive(Clone)]
pub struct Fnv(u64);

impl Fnv {
    pub fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Fnv {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    /// The length comes first, so that no character can move from one field to its neighbour unnoticed.
    pub fn field(self, bytes: &[u8]) -> Fnv {
        self.number(bytes.len() as u64).bytes(bytes)
    }

    pub fn number(self, number: u64) -> Fnv {
        self.bytes(&number.to_le_bytes())
    }

    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}
