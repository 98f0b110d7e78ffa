//! Identities. Each is a newtype, so that two of them cannot be confused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of 32 hexadecimal digits")]
pub struct ParseIdError {
    /// What was given.
    pub text: String,
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// All zero: stands for "none" where a field cannot be absent.
            pub const NONE: Self = Self([0; 16]);

            /// Whether this is [`Self::NONE`].
            #[must_use]
            pub fn is_none(&self) -> bool {
                *self == Self::NONE
            }

            /// The id's first four bytes in hexadecimal, for log lines.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn parse_hex(text: &str) -> Result<[u8; 16], ParseIdError> {
    let bad = || ParseIdError {
        text: text.to_owned(),
    };
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(bad());
    }
    let mut out = [0; 16];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16).ok_or_else(bad)?;
        let low = (pair[1] as char).to_digit(16).ok_or_else(bad)?;
        *byte = u8::try_from(high * 16 + low).map_err(|_| bad())?;
    }
    Ok(out)
}

id128!(
    /// A node: the first 16 bytes of BLAKE3 over its public key (SubjectPublicKeyInfo).
    NodeId
);
id128!(
    /// A pool of nodes. Random, chosen when a pool has its first member.
    PoolId
);
id128!(
    /// A volume. Random, chosen at `volume create`.
    VolumeId
);
id128!(
    /// One brick. Random, chosen when the brick is made, never reused: a replaced brick has a new one.
    BrickId
);
id128!(
    /// A history of a volume's data. A new one starts when a primary goes on without a replica
    /// that it had, or takes over without the last one's consent.
    GenerationId
);
id128!(
    /// A mount's session. Random, chosen by the client.
    SessionId
);
