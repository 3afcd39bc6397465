//! Vectors of AVX2 and AVX-512.
//!
//! Each width has two types: one rounds to bf16 by integer operations and splits pairs into two vectors, the other uses
//! the instructions of AVX-512 BF16. The rest they share.

/// The methods that have the same form in both instruction sets, by their intrinsics.
macro_rules! same_form {
    ($($name:ident($($operand:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self $(, $operand: Self)*) -> Self {
            // SAFETY: a vector exists, so the instruction set is present.
            unsafe { Self($intrinsic(self.0 $(, $operand.0)*)) }
        }
    )*};
}

mod eight;
mod sixteen;

pub use eight::{Avx2, HalfBf16};
pub use sixteen::{Avx512, Avx512Bf16};
