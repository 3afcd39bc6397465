//! The CUDA engine stores the expanded tensor ([`Device::stores_expanded`](crate::ops::Device::stores_expanded)), so no
//! list of passes made for it holds these.

use super::context::Context;
use super::{Gpu, OnCuda};
use crate::ops::{ExpandDepthwiseBackward, ExpandDepthwiseForward, Result};

impl OnCuda for ExpandDepthwiseForward {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("the CUDA engine stores the expanded tensor")
    }
}

impl OnCuda for ExpandDepthwiseBackward {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("the CUDA engine stores the expanded tensor")
    }
}
