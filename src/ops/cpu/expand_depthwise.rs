//! The CPU stores the expanded tensor ([`Device::stores_expanded`](crate::ops::Device::stores_expanded)), so no list of
//! passes made for it holds these.

use super::OnCpu;
use super::context::Context;
use crate::ops::{ExpandDepthwiseBackward, ExpandDepthwiseForward};

impl OnCpu for ExpandDepthwiseForward {
    fn run(&self, _: &Context) {
        unreachable!("the CPU stores the expanded tensor")
    }
}

impl OnCpu for ExpandDepthwiseBackward {
    fn run(&self, _: &Context) {
        unreachable!("the CPU stores the expanded tensor")
    }
}
