//! Arrays of maps whose inner maps the daemon makes: rings and port pools. The inner
//! maps are arrays in shared memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{Array, ArrayOfMaps, IterableMap as _, Map, MapData, MapError};

use super::{
    bpf,
    mapped::{MMAPABLE, OF_ANY_LENGTH},
    plain::{Plain, Stored},
};

/// An array that is to become an inner map.
pub(super) struct Inner<V: Stored>(Array<MapData, Plain<V>>);

impl<V: Stored> Inner<V> {
    /// Makes an array of `length` zero elements. Elements lie on multiples of 8 bytes.
    pub(super) fn new(length: u32) -> Result<Self, MapError> {
        Array::create(length, MMAPABLE).map(Self)
    }

    /// Like [`Self::new`], for an outer map that takes arrays of any length.
    pub(super) fn of_any_length(length: u32) -> Result<Self, MapError> {
        Array::create(length, MMAPABLE | OF_ANY_LENGTH).map(Self)
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    /// The element of this index.
    pub(super) fn at(&self, index: u32) -> Result<Plain<V>, MapError> {
        self.0.get(&index, 0)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.map().fd().as_fd()
    }
}

/// An array of arrays of `V`.
pub(super) struct OfMaps<V: Stored> {
    maps: ArrayOfMaps<MapData, Array<MapData, Plain<V>>>,
    fd: OwnedFd,
    /// Stands for what was removed: to delete an element costs a wait for the programs
    /// that run, and the kernel has no batches for it.
    empty: Inner<V>,
}

impl<V: Stored> OfMaps<V> {
    /// Takes the map over, with an array of zeros that fits it.
    pub(super) fn new(map: Map, empty: Inner<V>) -> Result<Self, MapError> {
        let fd = match &map {
            Map::ArrayOfMaps(map) => Some(map.fd().as_fd().try_clone_to_owned()?),
            _ => None,
        };
        let maps = map.try_into()?;
        Ok(Self {
            maps,
            // The conversion has refused every other kind of map.
            fd: fd.ok_or(MapError::ElementNotFound)?,
            empty,
        })
    }

    /// Puts maps at indices, each in one step for the datapath.
    pub(super) fn set(&mut self, maps: &[(u32, Inner<V>)]) -> io::Result<()> {
        let maps: Vec<_> = maps.iter().map(|(index, map)| (*index, map)).collect();
        update(&mut self.maps, self.fd.as_fd(), &maps)
    }

    /// Puts a map of zeros in the place of what is at indices, and frees that.
    pub(super) fn remove(&mut self, indices: &[u32]) -> io::Result<()> {
        let maps: Vec<_> = indices.iter().map(|index| (*index, &self.empty)).collect();
        update(&mut self.maps, self.fd.as_fd(), &maps)
    }

    /// The map at an index, if one was put there.
    pub(super) fn get(&self, index: u32) -> Result<Option<Inner<V>>, MapError> {
        match self.maps.get(&index, 0) {
            Ok(map) => Ok(Some(Inner(map))),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// In one batch, at the cost of one wait for the programs that run, where the kernel has
/// batches for arrays of maps: since Linux 5.19.
fn update<V: Stored>(
    outer: &mut ArrayOfMaps<MapData, Array<MapData, Plain<V>>>,
    fd: BorrowedFd<'_>,
    maps: &[(u32, &Inner<V>)],
) -> io::Result<()> {
    let indices: Vec<u32> = maps.iter().map(|(index, _)| *index).collect();
    let fds: Vec<u32> = maps
        .iter()
        .map(|(_, inner)| inner.fd().as_raw_fd() as u32)
        .collect();
    match bpf::update_batch(fd, &indices, &fds) {
        Err(error) if error.raw_os_error() == Some(bpf::ENOTSUPP) => maps
            .iter()
            .try_for_each(|(index, inner)| outer.set(*index, &inner.0, 0))
            .map_err(io::Error::other),
        result => result,
    }
}
