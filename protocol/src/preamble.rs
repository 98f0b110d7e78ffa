//! The first 32 bytes of a connection, before TLS: which part of the daemon it is for. It gives
//! no right and is not believed: the same is said again, and checked, inside TLS.

use crate::ids::VolumeId;

/// Bytes of a preamble.
pub const PREAMBLE_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"CAIRN/1\n";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Requests between nodes and from clients to any node (JSON, [`crate::frame`] kind 1).
    Rpc,
    /// Admission of a stranger by one-time code.
    Join,
    /// Replication of one volume between two of its replicas.
    Replica(VolumeId),
    /// A mount's session with a volume.
    Client(VolumeId),
}

/// The bytes are no preamble of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin like a Cairn connection")]
pub struct BadPreamble;

impl Purpose {
    /// The preamble's bytes: magic, purpose, seven zeros, volume id.
    #[must_use]
    pub fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let (code, volume) = match self {
            Self::Rpc => (1, VolumeId::NONE),
            Self::Join => (2, VolumeId::NONE),
            Self::Replica(volume) => (3, volume),
            Self::Client(volume) => (4, volume),
        };
        let mut out = [0; PREAMBLE_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8] = code;
        out[16..].copy_from_slice(&volume.0);
        out
    }

    /// Reads a preamble.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, BadPreamble> {
        if &bytes[..8] != MAGIC || bytes[9..16] != [0; 7] {
            return Err(BadPreamble);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[16..]);
        let volume = VolumeId(id);
        match (bytes[8], volume.is_none()) {
            (1, true) => Ok(Self::Rpc),
            (2, true) => Ok(Self::Join),
            (3, false) => Ok(Self::Replica(volume)),
            (4, false) => Ok(Self::Client(volume)),
            _ => Err(BadPreamble),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_survives_the_way() {
        let volume = VolumeId([7; 16]);
        for purpose in [
            Purpose::Rpc,
            Purpose::Join,
            Purpose::Replica(volume),
            Purpose::Client(volume),
        ] {
            assert_eq!(Purpose::decode(&purpose.encode()), Ok(purpose));
        }
        assert_eq!(Purpose::decode(&[0; PREAMBLE_BYTES]), Err(BadPreamble));
    }
}
