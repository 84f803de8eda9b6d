//! Arrays in memory that the kernel and the daemon share.

#![expect(unsafe_code, reason = "maps the memory of BPF maps")]

use std::{
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Flag of an array whose memory may be mapped: `BPF_F_MMAPABLE` of linux/bpf.h.
pub(super) const MMAPABLE: u32 = 1 << 10;
/// Flag of an array that may be an inner map beside others of another length:
/// `BPF_F_INNER_MAP` of linux/bpf.h.
pub(super) const OF_ANY_LENGTH: u32 = 1 << 12;

/// An integer that may change under a reader.
pub(super) trait Atomic: Sync {}

impl Atomic for AtomicU32 {}
impl Atomic for AtomicU64 {}

/// The memory of an array, as `A`s. It stays after the array's own file descriptor is
/// closed.
pub(super) struct Mapping<A: Atomic> {
    memory: NonNull<A>,
    length: usize,
    item: PhantomData<[A]>,
}

// SAFETY: the mapping belongs to the whole process until it is dropped, and is only
// used through shared references to atomic integers.
unsafe impl<A: Atomic> Send for Mapping<A> {}
// SAFETY: as above.
unsafe impl<A: Atomic> Sync for Mapping<A> {}

impl<A: Atomic> Mapping<A> {
    /// Maps the first `length` integers of the array `map`, which must have been made
    /// with [`MMAPABLE`]. The kernel refuses what is longer than the array.
    pub(super) fn new(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let bytes =
            NonZeroUsize::new(length * size_of::<A>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that
        // exists is replaced.
        let memory = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }?;
        Ok(Self {
            memory: memory.cast(),
            length,
            item: PhantomData,
        })
    }

    /// The integers.
    pub(super) fn get(&self) -> &[A] {
        // SAFETY: the mapping is page-aligned, holds `length` integers and lives as long
        // as `self`. Others change them at the same time, with atomic operations too.
        unsafe { NonNull::slice_from_raw_parts(self.memory, self.length).as_ref() }
    }
}

impl<A: Atomic> Drop for Mapping<A> {
    fn drop(&mut self) {
        // SAFETY: the address and length are those of the mapping, and the references
        // into it, which `get` lends, are gone.
        let result = unsafe { munmap(self.memory.cast(), self.length * size_of::<A>()) };
        // It only fails for addresses that are no mapping.
        debug_assert!(result.is_ok(), "munmap: {result:?}");
    }
}
