//! The compiled kernels, which `build.rs` embeds in this program.

use std::fmt;

/// Compiled kernels.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// Major and minor version of the CUDA compiler.
    pub compiler: (u32, u32),
    /// Compute capabilities with machine code, 8.0 as 80, ascending.
    pub architectures: &'static [u32],
    /// The one whose PTX is there, which the driver compiles for other cards from this one on.
    pub ptx: Option<u32>,
    /// Each source's stem and its fatbin.
    pub files: &'static [(&'static str, &'static [u8])],
    /// Each kernel and the number of its file, by name.
    pub kernels: &'static [(&'static str, usize)],
}

/// Aligned, because drivers read fatbins as words.
#[repr(align(16))]
#[allow(dead_code, reason = "unused in a build without kernels")]
struct Aligned<const N: usize>([u8; N]);

/// The kernels, or the reason why they were not compiled, to follow "this program has no CUDA kernels: ".
pub static EMBEDDED: Result<Embedded, &str> = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What of the embedded kernels a card runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Machine code of this architecture, 8.6 as 86.
    MachineCode(u32),
    /// PTX of this architecture, which the driver compiles when a kernel is first used.
    Ptx(u32),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Image::MachineCode(arch) => write!(f, "machine code sm_{arch}"),
            Image::Ptx(arch) => write!(f, "compute_{arch} PTX compiled by the driver"),
        }
    }
}

impl Embedded {
    /// The number of the file that has a kernel.
    pub fn file_of(&self, kernel: &str) -> Option<usize> {
        let at = self.kernels.binary_search_by_key(&kernel, |(name, _)| name).ok()?;
        Some(self.kernels[at].1)
    }

    /// What a card of this compute capability (8.6 as 86) runs, as the driver chooses it: machine code also runs on
    /// later minor versions, PTX on all later versions.
    pub fn image_for(&self, capability: u32) -> Option<Image> {
        let fits = |arch: &u32| arch / 10 == capability / 10 && *arch <= capability;
        let machine_code = self.architectures.iter().copied().filter(fits).max();
        let ptx = self.ptx.filter(|arch| *arch <= capability);
        machine_code.map(Image::MachineCode).or(ptx.map(Image::Ptx))
    }

    /// Whether such a card can run the kernels.
    pub fn serves(&self, capability: u32) -> bool {
        self.image_for(capability).is_some()
    }

    /// Whether the kernels run without compilation by the driver.
    pub fn has_machine_code(&self, capability: u32) -> bool {
        matches!(self.image_for(capability), Some(Image::MachineCode(_)))
    }
}

#[cfg(test)]
use super::nvidia::branches;
#[cfg(test)]
#[allow(dead_code, reason = "only the build runs all of it")]
#[path = "../../../build/compiler.rs"]
mod compiler;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_runs_machine_code_of_its_family_or_else_ptx() {
        let with =
            |architectures, ptx| Embedded { compiler: (13, 0), architectures, ptx, files: &[], kernels: &[] };
        let (code, ptx) = (|arch| Some(Image::MachineCode(arch)), |arch| Some(Image::Ptx(arch)));
        let all = with(&[80, 86, 89, 90, 100, 120], Some(80));
        for (capability, image) in [
            (75, None),
            (80, code(80)),
            (87, code(86)),
            (89, code(89)),
            (90, code(90)),
            (100, code(100)),
            (103, code(100)),
            (110, ptx(80)),
            (121, code(120)),
            (130, ptx(80)),
        ] {
            assert_eq!(all.image_for(capability), image, "{capability}");
            assert_eq!(all.serves(capability), image.is_some(), "{capability}");
            assert_eq!(all.has_machine_code(capability), image.is_some() && image != ptx(80), "{capability}");
        }
        assert_eq!(with(&[80, 86, 89, 90], Some(80)).image_for(120), ptx(80));
        assert_eq!(
            [80, 86, 89, 90].map(|c| with(&[86], None).image_for(c)),
            [None, code(86), code(86), None]
        );
        let texts = [code(86), ptx(80)].map(|image| image.unwrap().to_string());
        assert_eq!(texts, ["machine code sm_86", "compute_80 PTX compiled by the driver"]);
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

    /// Every file has kernels, and every kernel is found.
    #[test]
    fn embedded_kernels_are_found_in_their_files() {
        let Ok(embedded) = &EMBEDDED else { return };
        assert!(embedded.kernels.is_sorted());
        for (number, (stem, _)) in embedded.files.iter().enumerate() {
            let own = embedded.kernels.iter().filter(|(_, file)| *file == number);
            assert!(own.count() > 0, "{stem}");
        }
        for (kernel, file) in embedded.kernels {
            assert_eq!(embedded.file_of(kernel), Some(*file), "{kernel}");
        }
        let stem = |kernel| embedded.file_of(kernel).map(|file| embedded.files[file].0);
        assert_eq!(stem("depthwise_forward_k3s1_f16"), Some("depthwise"));
        assert_eq!(stem("step_begin"), Some("step"));
        assert_eq!(stem("no_such_kernel"), None);
    }
}
