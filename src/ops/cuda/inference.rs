//! A GPU applies batch norms while loading
//! ([`Device::applies_norms_on_store`](crate::ops::Device::applies_norms_on_store)), so lists of passes for a GPU do not
//! contain these four.

use super::OnCuda;
use super::context::Context;
use super::gpu::Gpu;
use crate::ops::{DepthwiseInference, ExpandDepthwiseInference, ProjectInference, Result, SqueezeInference};

impl OnCuda for DepthwiseInference {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("a GPU applies batch norms while loading")
    }
}

impl OnCuda for ExpandDepthwiseInference {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("a GPU applies batch norms while loading")
    }
}

impl OnCuda for SqueezeInference {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("a GPU applies batch norms while loading")
    }
}

impl OnCuda for ProjectInference {
    fn launch<G: Gpu>(&self, _: &mut Context<G>) -> Result {
        unreachable!("a GPU applies batch norms while loading")
    }
}
