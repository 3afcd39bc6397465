//! How the numbers of activations and their gradients are stored: as fp32, or as bf16.
//!
//! A kernel that touches such a tensor is generic over its [`Element`] and loads and stores vectors of fp32 through it.
//! A product of matrices takes one fp32 number a step of its depth, and two of bf16: [`Element::DEPTH`].

use bytemuck::Pod;
use half::bf16;

use super::Vector;
use super::each::sigmoid_each;

/// A number of a tensor.
pub trait Element: Pod + Send + Sync + 'static {
    /// Whether it takes two bytes.
    const HALF: bool;
    /// Numbers of an operand that one multiply-add of a product takes.
    const DEPTH: usize;
    /// Those numbers, in each lane.
    type Operand<V: Vector>: Copy;

    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;

    /// # Safety
    /// The instruction set of `V` is present, and `from` is valid for reading a vector.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    /// The first `count` numbers, zero beyond. `count` may be 0 to the lanes of a vector.
    /// # Safety
    /// The instruction set of `V` is present, and `from` is valid for reading `count` numbers.
    unsafe fn load_part<V: Vector>(from: *const Self, count: usize) -> V;
    /// # Safety
    /// `to` is valid for writing a vector.
    unsafe fn store<V: Vector>(value: V, to: *mut Self);
    /// # Safety
    /// `to` is valid for writing `count` numbers.
    unsafe fn store_part<V: Vector>(value: V, to: *mut Self, count: usize);
    /// See [`Vector::stream`].
    /// # Safety
    /// `to` is valid for writing a vector.
    unsafe fn stream<V: Vector>(value: V, to: *mut Self);
    /// The numbers as they are when they are stored.
    fn rounded<V: Vector>(value: V) -> V;
    /// 1/(1 + e^−v) of each vector, as exact as results that are stored as this type need it.
    fn sigmoid<V: Vector, const B: usize>(v: &[V; B]) -> [V; B];
    /// Stores a row of an operand whose rows are taken [`Element::DEPTH`] at a time: row `number % DEPTH` of the group
    /// at `to`. The rows of a group are stored in order, and a row sets those after it to zero.
    /// # Safety
    /// `to` is valid for reading and writing `DEPTH` vectors.
    unsafe fn store_interleaved<V: Vector>(value: V, to: *mut Self, number: usize);
    /// Stores two rows of such an operand, of the same group if it has two.
    /// # Safety
    /// `to` is valid for writing a group, and `next`, where a group has one row, for another.
    unsafe fn store_two_interleaved<V: Vector>(rows: [V; 2], to: *mut Self, next: *mut Self);

    /// Columns of an operand.
    /// # Safety
    /// The instruction set of `V` is present, and `from` is valid for reading `DEPTH` vectors.
    unsafe fn columns<V: Vector>(from: *const Self) -> Self::Operand<V>;
    /// The same `DEPTH` numbers in each lane.
    /// # Safety
    /// The instruction set of `V` is present, and `from` is valid for reading them.
    unsafe fn splat<V: Vector>(from: *const Self) -> Self::Operand<V>;
    /// sum + a·b, for all numbers of the operands.
    fn multiply_add<V: Vector>(a: Self::Operand<V>, b: Self::Operand<V>, sum: V) -> V;

    /// [`Element::load`] if `count` is a whole vector, else [`Element::load_part`]: a masked load is slower.
    /// # Safety
    /// As for `load_part`.
    #[inline(always)]
    unsafe fn load_some<V: Vector>(from: *const Self, count: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { if count == V::LANES { Self::load(from) } else { Self::load_part(from, count) } }
    }

    /// Stores the first `count` numbers, whole vectors past the caches if `stream`.
    /// # Safety
    /// As for `store_part`.
    #[inline(always)]
    unsafe fn store_some<V: Vector>(value: V, to: *mut Self, count: usize, stream: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            match (count == V::LANES, stream) {
                (true, true) => Self::stream(value, to),
                (true, false) => Self::store(value, to),
                _ => Self::store_part(value, to, count),
            }
        }
    }
}

// SAFETY (every block below): the caller's promise is that of the method that is called.
impl Element for f32 {
    const HALF: bool = false;
    const DEPTH: usize = 1;
    type Operand<V: Vector> = V;

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> V {
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn load_part<V: Vector>(from: *const f32, count: usize) -> V {
        unsafe { V::load_part(from, count) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(value: V, to: *mut f32) {
        unsafe { value.store(to) }
    }
    #[inline(always)]
    unsafe fn store_part<V: Vector>(value: V, to: *mut f32, count: usize) {
        unsafe { value.store_part(to, count) }
    }
    #[inline(always)]
    unsafe fn stream<V: Vector>(value: V, to: *mut f32) {
        unsafe { value.stream(to) }
    }
    #[inline(always)]
    fn rounded<V: Vector>(value: V) -> V {
        value
    }
    #[inline(always)]
    fn sigmoid<V: Vector, const B: usize>(v: &[V; B]) -> [V; B] {
        sigmoid_each(v)
    }
    #[inline(always)]
    unsafe fn store_interleaved<V: Vector>(value: V, to: *mut f32, _: usize) {
        unsafe { value.store(to) }
    }
    #[inline(always)]
    unsafe fn store_two_interleaved<V: Vector>([first, second]: [V; 2], to: *mut f32, next: *mut f32) {
        unsafe {
            first.store(to);
            second.store(next);
        }
    }
    #[inline(always)]
    unsafe fn columns<V: Vector>(from: *const f32) -> V {
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn splat<V: Vector>(from: *const f32) -> V {
        unsafe { V::splat(*from) }
    }
    #[inline(always)]
    fn multiply_add<V: Vector>(a: V, b: V, sum: V) -> V {
        a.mul_add(b, sum)
    }
}

// SAFETY (every block below): as above.
impl Element for bf16 {
    const HALF: bool = true;
    const DEPTH: usize = 2;
    type Operand<V: Vector> = V::Pairs;

    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const bf16) -> V {
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_part<V: Vector>(from: *const bf16, count: usize) -> V {
        unsafe { V::load_bf16_part(from, count) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(value: V, to: *mut bf16) {
        unsafe { value.store_bf16(to) }
    }
    #[inline(always)]
    unsafe fn store_part<V: Vector>(value: V, to: *mut bf16, count: usize) {
        unsafe { value.store_bf16_part(to, count) }
    }
    #[inline(always)]
    unsafe fn stream<V: Vector>(value: V, to: *mut bf16) {
        unsafe { value.stream_bf16(to) }
    }
    #[inline(always)]
    fn rounded<V: Vector>(value: V) -> V {
        value.rounded_to_bf16()
    }
    #[inline(always)]
    fn sigmoid<V: Vector, const B: usize>(v: &[V; B]) -> [V; B] {
        V::sigmoid_for_bf16(v)
    }
    #[inline(always)]
    unsafe fn store_interleaved<V: Vector>(value: V, to: *mut bf16, number: usize) {
        unsafe { value.store_in_pairs(to, number % 2 == 1) }
    }
    #[inline(always)]
    unsafe fn store_two_interleaved<V: Vector>([first, second]: [V; 2], to: *mut bf16, _: *mut bf16) {
        unsafe { V::store_pairs(first, second, to) }
    }
    #[inline(always)]
    unsafe fn columns<V: Vector>(from: *const bf16) -> V::Pairs {
        unsafe { V::load_pairs(from) }
    }
    #[inline(always)]
    unsafe fn splat<V: Vector>(from: *const bf16) -> V::Pairs {
        unsafe { V::splat_pair(from) }
    }
    #[inline(always)]
    fn multiply_add<V: Vector>(a: V::Pairs, b: V::Pairs, sum: V) -> V {
        sum.add_products(a, b)
    }
}
