//! Bytes of the host that a device reads by itself, after they were handed over.
//!
//! Such memory is dear: it cannot be moved or swapped out, and taking it is slow. So there are a few pieces, which are
//! filled again and again. Clones of [`HostBytes`] share one piece. Whoever holds a clone can rely on the bytes: only a
//! sole holder can change them.

use std::fmt;
use std::sync::Arc;

/// A piece of memory.
pub trait HostMemory: fmt::Debug + Send + Sync {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl HostMemory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Bytes in a piece of memory, see the module.
#[derive(Clone, Debug)]
pub struct HostBytes(Arc<dyn HostMemory>);

impl HostBytes {
    pub fn new(memory: impl HostMemory + 'static) -> HostBytes {
        HostBytes(Arc::new(memory))
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// None while somebody else holds them.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.0).map(|memory| memory.bytes_mut())
    }
}

impl PartialEq for HostBytes {
    fn eq(&self, other: &HostBytes) -> bool {
        self.bytes() == other.bytes()
    }
}

/// Takes pieces of so many bytes that a device can read; none where there is no more.
#[derive(Clone)]
pub struct HostAllocator(Arc<dyn Fn(usize) -> Option<HostBytes> + Send + Sync>);

impl HostAllocator {
    pub fn new(take: impl Fn(usize) -> Option<HostBytes> + Send + Sync + 'static) -> HostAllocator {
        HostAllocator(Arc::new(take))
    }

    pub fn take(&self, bytes: usize) -> Option<HostBytes> {
        (self.0)(bytes)
    }
}

impl fmt::Debug for HostAllocator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("HostAllocator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_change_only_while_there_is_one_holder() {
        let mut own = HostBytes::new(vec![1, 2, 3]);
        own.bytes_mut().expect("nobody else holds them")[0] = 7;
        let held = own.clone();
        assert!(own.bytes_mut().is_none());
        assert_eq!(held.bytes(), [7, 2, 3]);
        drop(held);
        assert!(own.bytes_mut().is_some());
    }
}
