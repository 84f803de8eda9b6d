//! Operations of bpf(2) that aya has no method for: batches of map entries, the removal
//! of an element that tells what it was, and the detachment of a link. And the wait for
//! programs that run.

#![expect(
    unsafe_code,
    reason = "calls bpf(2) with pointers to buffers, and membarrier(2)"
)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

// From `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_NOEXIST` of linux/bpf.h: make an element, and replace none.
pub(super) const NO_EXIST: u64 = 1;

/// `ENOTSUPP` of linux/errno.h, which libc does not know: the kernel has no batches for
/// this kind of map.
pub(super) const ENOTSUPP: i32 = 524;

/// The part of `union bpf_attr` that the operations on one element read.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that the operations on batches read.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that opens what is pinned.
#[repr(C)]
struct ObjectAttributes {
    path: u64,
    reserved: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that the detachment of a link reads.
#[repr(C)]
struct DetachAttributes {
    link_fd: u32,
}

/// Calls bpf(2). Returns the file descriptor that it opens, if it does.
///
/// # Safety
///
/// The addresses in `attributes` must be those of memory that is as large as `command`
/// reads or writes, and that nothing else uses meanwhile.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is valid for its size, and the caller answers for what it
    // points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

/// Detaches the program of the link that is pinned at `path`, at once: the kernel does so
/// later where a link just goes. It is fine where its interface is gone.
pub(super) fn detach(path: &CStr) -> io::Result<()> {
    let mut attributes = ObjectAttributes {
        path: path.as_ptr().expose_provenance() as u64,
        reserved: 0,
        file_flags: 0,
    };
    // SAFETY: the kernel reads the path up to its end.
    let link = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just opened it for the caller alone.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let mut attributes = DetachAttributes {
        link_fd: link.as_raw_fd() as u32,
    };
    // SAFETY: the command reads and writes nothing but the attributes.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Waits until every BPF program that runs now has ended: membarrier(2) waits for a grace
/// period of RCU, inside of which programs run. It takes milliseconds.
///
/// # Errors
///
/// Where the kernel is configured for CPUs without a tick (`nohz_full`).
pub(super) fn wait_for_programs() -> io::Result<()> {
    // From `enum membarrier_cmd` of linux/membarrier.h.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the command takes nothing and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Removes an element and returns it as it was at that moment; `None` where there was
/// none. Hash maps have this since Linux 5.14.
///
/// `K` and `V` must be the key and value types of the map.
pub(super) fn take<K, V>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>>
where
    K: IntoBytes + Immutable,
    V: FromBytes + IntoBytes,
{
    let mut value = V::new_zeroed();
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        reserved: 0,
        key: address(key),
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads one key and writes one value, of any bytes that it has;
    // `key` and `value` are one each.
    match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an element for each of `keys`. On maps in maps this costs one wait for the
/// programs that run, where one element at a time costs a wait of milliseconds each.
///
/// `K` and `V` must be the key and value types of the map, and there must be a value
/// for each key.
///
/// # Errors
///
/// [`ENOTSUPP`] where the kernel has no batches for this kind of map.
pub(super) fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()>
where
    K: IntoBytes + Immutable,
    V: IntoBytes + Immutable,
{
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().expose_provenance() as u64,
        values: values.as_ptr().expose_provenance() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys and values; both slices are at least that
    // long and live until the call returns.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }.map(drop)
}

/// Where the next batch of a hash map begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cursor {
    /// At the first bucket.
    #[default]
    Start,
    /// At this bucket.
    Bucket(u32),
    /// There is no more.
    End,
}

/// Room for one batch of entries, used again and again.
pub(super) struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    filled: usize,
}

impl<K, V> Batch<K, V>
where
    K: FromBytes + IntoBytes + Clone,
    V: FromBytes + IntoBytes + Clone,
{
    /// Room for `capacity` entries. It grows where a single bucket holds more.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            keys: vec![K::new_zeroed(); capacity],
            values: vec![V::new_zeroed(); capacity],
            filled: 0,
        }
    }

    /// The entries that the last [`Self::read`] found.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(&self.values).take(self.filled)
    }

    /// Reads the next entries of the hash map `map`, whole buckets of it, so that an
    /// entry which is there all the time is found once. Returns where to go on.
    ///
    /// `K` and `V` must be the key and value types of the map.
    pub(super) fn read(&mut self, map: BorrowedFd<'_>, cursor: Cursor) -> io::Result<Cursor> {
        self.filled = 0;
        let start = match cursor {
            Cursor::Start => None,
            Cursor::Bucket(bucket) => Some(bucket),
            Cursor::End => return Ok(Cursor::End),
        };
        loop {
            let mut next = 0_u32;
            let mut attributes = BatchAttributes {
                in_batch: start.as_ref().map_or(0, address),
                out_batch: std::ptr::from_mut(&mut next).expose_provenance() as u64,
                keys: self.keys.as_mut_ptr().expose_provenance() as u64,
                values: self.values.as_mut_ptr().expose_provenance() as u64,
                count: self.keys.len() as u32,
                map_fd: map.as_raw_fd() as u32,
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel writes at most `count` keys and values, for which both
            // vectors have room, and one bucket number of four bytes for a hash map; it
            // reads one of those from `start`. Any bytes are a `K` and a `V`.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
            match result.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) => {
                    self.filled = attributes.count as usize;
                    return Ok(Cursor::Bucket(next));
                }
                // After the last bucket; what it held has been written.
                Err((Some(libc::ENOENT), _)) => {
                    self.filled = attributes.count as usize;
                    return Ok(Cursor::End);
                }
                // The next bucket holds more entries than there is room for.
                Err((Some(libc::ENOSPC), _)) => {
                    let capacity = self.keys.len() * 2;
                    self.keys.resize(capacity, K::new_zeroed());
                    self.values.resize(capacity, V::new_zeroed());
                }
                Err((_, error)) => return Err(error),
            }
        }
    }
}

/// The address of a value, as bpf(2) takes pointers.
fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).expose_provenance() as u64
}
