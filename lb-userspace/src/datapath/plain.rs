//! The types of `lb-common` as aya wants them.

#![expect(
    unsafe_code,
    reason = "aya's Pod is an unsafe trait; zerocopy has checked what it asks for"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What may be stored in a map: the keys and values of `lb-common`.
pub trait Stored: FromBytes + IntoBytes + Immutable + Copy + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Stored for T {}

/// A value that is stored in a map as it lies in memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `IntoBytes` and `Immutable` say that every byte of a `T` may be read,
// `FromBytes` that every pattern of bytes is a `T`, and the wrapper has the layout of
// what it wraps.
unsafe impl<T: Stored> aya::Pod for Plain<T> {}
