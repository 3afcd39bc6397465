//! The CPU stores the expanded tensor in training ([`Device::stores_expanded`](crate::ops::Device::stores_expanded)), so
//! lists of passes for the CPU do not contain these two. For inference see `depthwise/expanded.rs`.

use super::context::{Context, OnCpu};
use super::simd::Element;
use crate::ops::{ExpandDepthwiseBackward, ExpandDepthwiseForward};

impl OnCpu for ExpandDepthwiseForward {
    unsafe fn run<E: Element>(&self, _: &Context) {
        unreachable!("the CPU stores the expanded tensor")
    }
}

impl OnCpu for ExpandDepthwiseBackward {
    unsafe fn run<E: Element>(&self, _: &Context) {
        unreachable!("the CPU stores the expanded tensor")
    }
}
