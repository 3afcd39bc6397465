//! Which drivers run what a CUDA compiler makes. The build script reads this file too.

/// The first branch of drivers that runs all machine code of a compiler of this major version.
pub fn branch_for(major: u32) -> Option<u32> {
    match major {
        12 => Some(525),
        13 => Some(580),
        _ => None,
    }
}
