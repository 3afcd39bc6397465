//! NVIDIA's driver.

use super::gpu::*;
use crate::ops::{OpsError, Result};

/// A GPU.
pub enum Driver {}

/// GPUs of this machine.
pub fn count() -> Result<usize> {
    Ok(0)
}

impl Driver {
    pub fn open(_index: usize) -> Result<Driver> {
        Err(OpsError::Device("this build has no CUDA engine".into()))
    }
}

impl Gpu for Driver {
    fn properties(&self) -> &Properties {
        match *self {}
    }
    fn available(&mut self) -> Result<u64> {
        match *self {}
    }
    fn allocate(&mut self, _: usize) -> Result<Address> {
        match *self {}
    }
    fn write(&mut self, _: Address, _: &[u8]) -> Result {
        match *self {}
    }
    fn read(&mut self, _: Address, _: &mut [u8]) -> Result {
        match *self {}
    }
    fn fill(&mut self, _: Address, _: u8, _: usize) -> Result {
        match *self {}
    }
    fn copy(&mut self, _: Address, _: Address, _: usize) -> Result {
        match *self {}
    }
    unsafe fn launch(&mut self, _: &Launch, _: *const std::ffi::c_void) -> Result {
        match *self {}
    }
    fn synchronise(&mut self) -> Result {
        match *self {}
    }
    fn begin_capture(&mut self) -> Result {
        match *self {}
    }
    fn end_capture(&mut self) -> Result<Graph> {
        match *self {}
    }
    fn launch_graph(&mut self, _: Graph) -> Result {
        match *self {}
    }
    fn staging(&mut self, _: usize) -> Result<Staging> {
        match *self {}
    }
    fn staging_address(&self, _: Staging) -> Address {
        match *self {}
    }
    fn staging_host(&mut self, _: Staging) -> Result<&mut [u8]> {
        match *self {}
    }
    fn staging_send(&mut self, _: Staging) -> Result {
        match *self {}
    }
    fn staging_acquire(&mut self, _: Staging) -> Result {
        match *self {}
    }
    fn staging_release(&mut self, _: Staging) -> Result {
        match *self {}
    }
    fn staging_receive(&mut self, _: Staging) -> Result {
        match *self {}
    }
    fn mark(&mut self) -> Result<Mark> {
        match *self {}
    }
    fn elapsed(&mut self, _: Mark, _: Mark) -> Result<f64> {
        match *self {}
    }
}
