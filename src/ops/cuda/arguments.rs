//! The argument structs of kernels, and the kernels' names.
//!
//! A kernel takes one struct. The kernel's source declares it and `build.rs` writes it as Rust, see
//! [`super::sources`]. [`arguments!`] makes a `#[repr(C)]` struct and keeps the names, offsets and sizes of its
//! fields as data. Before a launch this data is compared with the compiled kernel: the harness compares every field,
//! the driver the total size.

use std::borrow::Cow;
use std::marker::PhantomData;

use super::gpu::Address;
pub use super::gpu::Field;

/// A type that an argument struct may contain.
///
/// # Safety
/// The type has the layout of its C counterpart.
pub unsafe trait Scalar: Copy {}
// SAFETY: pointers and numbers of fixed size have the same layout in Rust and C.
unsafe impl Scalar for Address {}
unsafe impl Scalar for i32 {}
unsafe impl Scalar for u32 {}
unsafe impl Scalar for u64 {}
unsafe impl Scalar for f32 {}
unsafe impl<T: Scalar, const N: usize> Scalar for [T; N] {}

/// An argument struct.
///
/// # Safety
/// `FIELDS` describes the `#[repr(C)]` layout of the type.
pub unsafe trait Arguments: Copy {
    const FIELDS: &'static [Field];
}

/// An argument struct: `arguments! { /// What. pub struct Name { x: Address, rows: i32 } }`.
macro_rules! arguments {
    ($(#[$doc:meta])* pub struct $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $type),*
        }

        // SAFETY: offsets and sizes are the compiler's own, and every field is a scalar.
        unsafe impl $crate::ops::cuda::arguments::Arguments for $name {
            const FIELDS: &'static [$crate::ops::cuda::arguments::Field] = {
                const fn scalar<T: $crate::ops::cuda::arguments::Scalar>() -> usize { size_of::<T>() }
                &[$($crate::ops::cuda::arguments::Field {
                    name: stringify!($field),
                    offset: std::mem::offset_of!($name, $field),
                    size: scalar::<$type>(),
                }),*]
            };
        }
    };
}
pub(crate) use arguments;

/// A struct in device memory that the host reads or writes.
macro_rules! layout {
    ($(#[$doc:meta])* pub struct $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $type),*
        }
    };
}
pub(crate) use layout;

/// A kernel's name with the type of its arguments.
#[derive(Debug)]
pub struct Kernel<A> {
    pub(crate) name: Cow<'static, str>,
    /// Whether the storage type is appended to the name: `_f32`, `_f16`, `_bf16`.
    pub(crate) stored: bool,
    arguments: PhantomData<fn(A)>,
}

impl<A: Arguments> Kernel<A> {
    /// A kernel that exists once for each storage type.
    pub const fn stored(name: &'static str) -> Self {
        Kernel { name: Cow::Borrowed(name), stored: true, arguments: PhantomData }
    }

    /// A kernel that exists once, because it reads and writes no activations.
    pub const fn plain(name: &'static str) -> Self {
        Kernel { name: Cow::Borrowed(name), stored: false, arguments: PhantomData }
    }

    /// One of several instances: `variant` is appended to the name, before the storage type.
    pub fn variant(&self, variant: impl std::fmt::Display) -> Self {
        Kernel {
            name: Cow::Owned(format!("{}_{variant}", self.name)),
            stored: self.stored,
            arguments: PhantomData,
        }
    }
}
