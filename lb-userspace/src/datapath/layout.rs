//! Whether the maps that are kept are those that the program wants.
//!
//! The version of the layout says that they are. Were it not so, the kernel would copy as much
//! as the map's elements have, wherever there is room for less. So nobody is believed: what the
//! kernel says of each map is held to the object.

use aya::maps::{MapError, MapInfo};
use aya_obj::Object;

use super::{
    error::{Error, Result},
    pinned::Pinned,
};

/// What two maps have in common that can take each other's place.
#[derive(Debug, PartialEq, Eq)]
struct Form {
    /// `enum bpf_map_type` of linux/bpf.h.
    kind: u32,
    /// Bytes of a key and of a value.
    element: (u32, u32),
    entries: u32,
}

impl Form {
    fn of_kept(map: &MapInfo) -> Result<Self, MapError> {
        Ok(Self {
            kind: map.map_type()? as u32,
            element: (map.key_size(), map.value_size()),
            entries: map.max_entries(),
        })
    }

    fn of_wanted(map: &aya_obj::Map) -> Self {
        Self {
            kind: map.map_type(),
            element: (map.key_size(), map.value_size()),
            entries: map.max_entries(),
        }
    }
}

/// Holds the maps that are kept to those of `object`. Of those that `is_sized`, whoever made
/// them said how many entries they have.
///
/// # Errors
///
/// Where one is another map than it should be, or cannot be read.
pub(super) fn check(
    object: &[u8],
    pinned: &Pinned,
    is_sized: impl Fn(&'static str) -> bool,
) -> Result<()> {
    let object = Object::parse(object).map_err(|error| Error::WrongObject {
        what: error.to_string(),
    })?;
    for (name, path) in pinned.map_paths().filter(|(_, path)| path.exists()) {
        let wanted = object.maps.get(name).ok_or_else(|| Error::WrongObject {
            what: format!("there is no map {name}"),
        })?;
        let wanted = Form::of_wanted(wanted);
        let kept = MapInfo::from_pin(&path).and_then(|map| Form::of_kept(&map));
        let mut kept = kept.map_err(|source| Error::Map {
            action: "looking at",
            map: name,
            source: source.into(),
        })?;
        if is_sized(name) {
            kept.entries = wanted.entries;
        }
        if kept != wanted {
            tracing::debug!(map = name, ?kept, ?wanted, "another map");
            return Err(Error::OtherMap {
                path: pinned.directory().to_owned(),
                map: name,
            });
        }
    }
    Ok(())
}
