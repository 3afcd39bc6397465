//! The instruction sets, and the choice among them at run time.

use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Portable,
    Avx2,
    Avx512,
    /// With instructions that round to bf16 and multiply pairs.
    Avx512Bf16,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
            Level::Avx512Bf16 => "AVX-512 with BF16",
        }
    }
}

/// The best level of this processor, or the one that `EFFNET_SIMD` (portable, avx2, avx512, avx512bf16) asks for if the
/// processor has it. CI runs the operators' tests at each level.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let best = best_level();
        let wanted = match std::env::var("EFFNET_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            Ok("avx512") => Level::Avx512,
            _ => Level::Avx512Bf16,
        };
        if (wanted as u8) < best as u8 { wanted } else { best }
    })
}

fn best_level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            let words = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq");
            let bf16 = words && is_x86_feature_detected!("avx512bf16");
            return if bf16 { Level::Avx512Bf16 } else { Level::Avx512 };
        }
        if fma {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Whether the processor computes a vector of sixteen floats in two halves, so that half a vector takes half the time.
///
/// AMD's Zen 4 does (family 19h; "Software Optimization Guide for the AMD Zen4 Microarchitecture", 2.11). Later ones and
/// Intel's servers compute as many vectors of sixteen a cycle as of eight.
pub fn halves_are_cheaper() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        static ZEN4: OnceLock<bool> = OnceLock::new();
        *ZEN4.get_or_init(|| {
            // SAFETY: part of every x86-64. Newer compilers know that.
            #[allow(unused_unsafe)]
            let (vendor, version) = unsafe { (__cpuid(0), __cpuid(1).eax) };
            let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
            // The extended family adds to a base family of 0Fh.
            amd && (version >> 8 & 0xf) + (version >> 20 & 0xff) == 0x19
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Defines `fn name(args)`, which runs the generic kernel `body::<V>(args)` compiled for the processor's
/// instruction set. The kernel must be `#[inline(always)]`. If calling it needs a promise beside the instruction set,
/// `name` must be an `unsafe fn` with this promise. The kernel may have constants: `=> body<3, 2>` runs
/// `body::<V, 3, 2>`. `fn name<E>(args)` is generic over the [`Element`](super::Element) type of tensors and runs
/// `body::<V, E>`; only there do the instructions for bf16 matter.
///
/// ```ignore
/// dispatch! {
///     /// Adds `x` to `y`.
///     pub fn add(x: &[f32], y: &mut [f32]) => add_body;
///     /// Widens a tensor.
///     pub fn widen<E>(x: &[E], y: &mut [f32]) => widen_body;
/// }
/// ```
macro_rules! dispatch {
    () => {};
    (@ [$($head:tt)*] $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?
        => $body:ident $(<$($constant:literal),*>)?; $($more:tt)*) => {
        $($head)* fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ops::cpu::simd::{self, Level};
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: the attribute names the features of these vectors; the rest is the caller's promise.
                    unsafe { $body::<simd::Avx2 $($(, $constant)*)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
                unsafe fn avx512($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { $body::<simd::Avx512 $($(, $constant)*)?>($($arg),*) }
                }
                match simd::level() {
                    // SAFETY: `level` has found these features on this processor; the rest is the caller's promise.
                    Level::Avx512 | Level::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            // SAFETY: portable vectors need no features; the rest is the caller's promise.
            unsafe { $body::<$crate::ops::cpu::simd::Portable $($(, $constant)*)?>($($arg),*) }
        }
        $crate::ops::cpu::simd::dispatch! { $($more)* }
    };
    (@ [$($head:tt)*] $name:ident<$element:ident>($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?
        => $body:ident $(<$($constant:literal),*>)?; $($more:tt)*) => {
        $($head)* fn $name<$element: $crate::ops::cpu::simd::Element>($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ops::cpu::simd::{self, Element, Level};
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2<$element: Element>($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: the attribute names the features of these vectors; the rest is the caller's promise.
                    unsafe { $body::<simd::Avx2, $element $($(, $constant)*)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
                unsafe fn avx512<$element: Element>($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { $body::<simd::Avx512, $element $($(, $constant)*)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
                unsafe fn avx512bf16<$element: Element>($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { $body::<simd::Avx512Bf16, $element $($(, $constant)*)?>($($arg),*) }
                }
                match simd::level() {
                    // SAFETY: `level` has found these features on this processor; the rest is the caller's promise.
                    Level::Avx512Bf16 if $element::HALF => return unsafe { avx512bf16::<$element>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 | Level::Avx512Bf16 => return unsafe { avx512::<$element>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2::<$element>($($arg),*) },
                    Level::Portable => {}
                }
            }
            // SAFETY: portable vectors need no features; the rest is the caller's promise.
            unsafe { $body::<$crate::ops::cpu::simd::Portable, $element $($(, $constant)*)?>($($arg),*) }
        }
        $crate::ops::cpu::simd::dispatch! { $($more)* }
    };
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        $crate::ops::cpu::simd::dispatch! { @ [$(#[$meta])* $vis] $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $($rest:tt)*) => {
        $crate::ops::cpu::simd::dispatch! { @ [$(#[$meta])* $vis unsafe] $($rest)* }
    };
}
pub(in crate::ops::cpu) use dispatch;
