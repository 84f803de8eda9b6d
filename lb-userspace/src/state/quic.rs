//! Connection IDs of QUIC that say which server they belong to
//! (draft-ietf-quic-load-balancers, the unencrypted form). Their first octet has the number
//! of the configuration in its upper three bits and, if servers like, the length of the
//! rest in the lower five; the server ID stands behind it, and then what servers like.

use std::{fmt, str::FromStr};

use super::Reason;

/// Most bytes of a connection ID (RFC 9000, section 17.2).
pub const MAX_CONNECTION_ID: u8 = 20;
/// Most bytes of a server ID.
pub const MAX_SERVER_ID: u8 = 15;
/// The largest number of a configuration: the one above says that an ID cannot be routed.
pub const MAX_ROTATION: u8 = 6;

/// Where connection IDs have the server ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSpec {
    /// Bytes of the connection ID before the server ID; at least 1, for the first octet.
    pub server_id_offset: u8,
    /// Bytes of the server ID, from 1 to [`MAX_SERVER_ID`].
    pub server_id_length: u8,
    /// The configurations of connection IDs that are read: the upper three bits of the first
    /// octet, up to [`MAX_ROTATION`], in rising order and none twice. While servers change
    /// from one to the next, both. Any other ID says nothing.
    pub config_rotation: Vec<u8>,
}

impl QuicSpec {
    /// Bytes before the server ID where nothing is said.
    pub const DEFAULT_OFFSET: u8 = 1;
    /// The configuration where nothing is said.
    pub const DEFAULT_ROTATION: u8 = 0;

    /// The spec of server IDs of this length.
    #[must_use]
    pub fn new(server_id_length: u8) -> Self {
        Self {
            server_id_offset: Self::DEFAULT_OFFSET,
            server_id_length,
            config_rotation: vec![Self::DEFAULT_ROTATION],
        }
    }
}

/// A server ID, from 1 to [`MAX_SERVER_ID`] bytes, written in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId {
    bytes: [u8; MAX_SERVER_ID as usize],
    length: u8,
}

impl ServerId {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({self})")
    }
}

impl FromStr for ServerId {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let wrong = || {
            Reason::new(
                format!("`{}` is no server ID", text.escape_debug()),
                format!("write 1 to {MAX_SERVER_ID} bytes in hex, two digits each: `c0ffee01`"),
            )
        };
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
            .collect();
        let digits = digits.ok_or_else(wrong)?;
        let length = digits.len() / 2;
        if !digits.len().is_multiple_of(2) || !(1..=usize::from(MAX_SERVER_ID)).contains(&length) {
            return Err(wrong());
        }
        let mut bytes = [0; MAX_SERVER_ID as usize];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self {
            bytes,
            length: length as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn what_is_no_server_id_is_refused() {
        let long = "00".repeat(16);
        for wrong in ["", "0", "0g", "0x01", "c0 ff", "+1", "é0", long.as_str()] {
            assert!(wrong.parse::<ServerId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(bytes in vec(any::<u8>(), 1..=15)) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
            let id: ServerId = text.parse().unwrap();
            prop_assert_eq!(id.bytes(), bytes);
            prop_assert_eq!(id.to_string(), text.to_lowercase());
        }
    }
}
