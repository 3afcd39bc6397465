//! Replaces the harness on other processors, so that tests compile: no device can be created.

use std::ffi::c_void;

use crate::{Count, Kernel, Launch};

/// No kernels.
pub fn kernels() -> Vec<Kernel> {
    Vec::new()
}

/// Never made.
pub enum Device {}

impl Device {
    /// # Errors
    /// Always.
    pub fn new() -> Result<Device, String> {
        Err("the host harness runs on x86-64 only".into())
    }

    pub fn allocate(&mut self, _: usize) -> Result<u64, String> {
        match *self {}
    }

    /// # Safety
    /// Never called.
    pub unsafe fn guard(&mut self, _: u64, _: usize) {
        match *self {}
    }

    /// # Safety
    /// Never called.
    pub unsafe fn unguard(&mut self, _: u64, _: usize) {
        match *self {}
    }

    pub fn label(&mut self, _: u64, _: usize, _: &str) {
        match *self {}
    }

    pub fn describe(&self, _: u64) -> String {
        match *self {}
    }

    pub fn reset_counts(&mut self) {
        match *self {}
    }

    pub fn counts(&self) -> Vec<Count> {
        match *self {}
    }

    /// # Safety
    /// Never called.
    pub unsafe fn launch(&mut self, _: &Launch, _: *const c_void) -> Result<(), String> {
        match *self {}
    }
}
