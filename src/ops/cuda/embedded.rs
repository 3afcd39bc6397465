//! The compiled kernels, which `build.rs` embeds in this program.

/// Compiled kernels.
#[derive(Debug)]
pub struct Embedded {
    /// Major and minor version of the CUDA compiler.
    pub compiler: (u32, u32),
    /// Compute capabilities with machine code, 8.0 as 80, ascending.
    pub architectures: &'static [u32],
    /// The one with PTX as well, which the driver compiles for later cards.
    pub ptx: Option<u32>,
    /// Each source's stem and its fatbin.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// Aligned, because drivers read fatbins as words.
#[repr(align(16))]
#[allow(dead_code, reason = "unused in a build without kernels")]
struct Aligned<const N: usize>([u8; N]);

/// The kernels, or the reason why they were not compiled, to follow "this program has no CUDA kernels: ".
pub static EMBEDDED: Result<Embedded, &str> = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Embedded {
    /// Whether a card of this compute capability (8.6 as 86) can run the kernels: machine code also runs on later
    /// minor versions, PTX on all later versions.
    pub fn serves(&self, capability: u32) -> bool {
        self.has_machine_code(capability) || self.ptx.is_some_and(|ptx| capability >= ptx)
    }

    /// Whether the kernels run without compilation by the driver.
    pub fn has_machine_code(&self, capability: u32) -> bool {
        self.architectures.iter().any(|&a| a / 10 == capability / 10 && a <= capability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_serves_its_family_and_ptx_all_later_cards() {
        let all = Embedded { compiler: (13, 0), architectures: &[80, 86, 89, 90], ptx: Some(90), files: &[] };
        for (capability, serves, machine_code) in [
            (75, false, false),
            (80, true, true),
            (87, true, true),
            (90, true, true),
            (100, true, false),
            (120, true, false),
        ] {
            assert_eq!(all.serves(capability), serves, "{capability}");
            assert_eq!(all.has_machine_code(capability), machine_code, "{capability}");
        }
        let one = Embedded { compiler: (13, 0), architectures: &[86], ptx: None, files: &[] };
        assert_eq!([80, 86, 89, 90].map(|c| one.serves(c)), [false, true, true, false]);
    }

    /// A fatbin begins with a magic number; each file has one, with all architectures inside.
    #[test]
    fn embedded_files_are_fatbins() {
        let Ok(embedded) = &EMBEDDED else { return };
        assert!(embedded.compiler.0 >= 12);
        for (stem, bytes) in embedded.files {
            assert_eq!(bytes[..4], 0xBA55_ED50_u32.to_le_bytes(), "{stem}");
            assert_eq!(bytes.as_ptr() as usize % 16, 0, "{stem}");
        }
    }
}
