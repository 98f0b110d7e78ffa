//! The superblock: what the brick is, and what the replication layer must know after a restart.
//!
//! Two copies, written in turn and synced, each with its own checksum: whichever write a crash
//! tears, the other copy is whole. The valid copy with the higher number counts.

use bytes::Bytes;
use protocol::codec::{Reader, Writer};
use protocol::ids::{BrickId, PoolId};
use protocol::volume::VolumeSpec;

use crate::error::{BrickError, IoFault, OpenError};
use crate::layout::{
    FORMAT_VERSION, FORMAT_WITHOUT_POINTS, SPEC_BYTES_MAX, STATE_BYTES_MAX, SUPERBLOCK,
    SUPERBLOCK_BYTES, SUPERBLOCK_MAGIC,
};
use crate::medium::{Medium, OpenMode};

/// Who a brick is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrickIdentity {
    /// The pool.
    pub pool: PoolId,
    /// The brick.
    pub brick: BrickId,
    /// Its place in the volume's list of replicas.
    pub replica: u8,
    /// The volume, as it was configured when this was last written.
    pub spec: VolumeSpec,
}

/// A superblock whose checksum, version and lengths were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Version of the brick's format: [`FORMAT_WITHOUT_POINTS`] or [`FORMAT_VERSION`].
    pub format: u32,
    /// Rises with each write; the parity chooses the copy.
    pub number: u64,
    /// Who this is.
    pub identity: BrickIdentity,
    /// The replication layer's own, at most [`STATE_BYTES_MAX`] bytes.
    pub state: Bytes,
    /// The volume was deleted.
    pub deleted: bool,
    /// The last user closed it in order.
    pub clean: bool,
}

impl Superblock {
    /// Fails where the volume's description or the state is over its limit.
    pub fn encode(&self) -> Result<Vec<u8>, BrickError> {
        let spec = serde_json::to_vec(&self.identity.spec).unwrap_or_default();
        check_limit("the volume's description", spec.len(), SPEC_BYTES_MAX)?;
        check_state(&self.state)?;
        let mut w = Writer::with_capacity(SUPERBLOCK_BYTES);
        w.raw(&SUPERBLOCK_MAGIC).u32(self.format).u64(self.number);
        w.id(&self.identity.pool.0)
            .id(&self.identity.spec.id.0)
            .id(&self.identity.brick.0)
            .u8(self.identity.replica)
            .u8(u8::from(self.deleted) | u8::from(self.clean) << 1)
            .u16(0);
        w.bytes(&spec).bytes(&self.state);
        let mut out = w.finish().to_vec();
        out.resize(SUPERBLOCK_BYTES - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Checks and reads one copy. [`OpenError::Format`] where the magic is right and the version
    /// is not: that is told before the checksum, whose place may differ between versions.
    pub fn decode(raw: &[u8]) -> Result<Self, OpenError> {
        let damaged = OpenError::Damaged { what: SUPERBLOCK };
        let Some(head) = raw.first_chunk::<12>() else {
            return Err(damaged);
        };
        if head[..8] != SUPERBLOCK_MAGIC {
            return Err(damaged);
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let Some((body, crc)) = raw.split_last_chunk::<4>() else {
            return Err(damaged);
        };
        let whole =
            raw.len() == SUPERBLOCK_BYTES && crc32fast::hash(body) == u32::from_le_bytes(*crc);
        let known = FORMAT_WITHOUT_POINTS..=FORMAT_VERSION;
        if !known.contains(&found) && found != 0 {
            return Err(OpenError::Format {
                found,
                known: FORMAT_VERSION,
            });
        }
        if !whole {
            return Err(damaged);
        }
        Self::decode_body(found, &body[12..]).ok_or(damaged)
    }

    fn decode_body(format: u32, body: &[u8]) -> Option<Self> {
        let mut r = Reader::new(Bytes::copy_from_slice(body));
        let number = r.u64("number").ok()?;
        let pool = PoolId(r.id("pool").ok()?);
        let volume = r.id("volume").ok()?;
        let brick = BrickId(r.id("brick").ok()?);
        let replica = r.u8("replica").ok()?;
        let flags = r.u8("flags").ok()?;
        r.u16("reserved").ok()?;
        let spec: VolumeSpec = serde_json::from_slice(&r.bytes("spec").ok()?).ok()?;
        let state = r.bytes("state").ok()?;
        if spec.id.0 != volume || state.len() > STATE_BYTES_MAX {
            return None;
        }
        Some(Self {
            format,
            number,
            identity: BrickIdentity {
                pool,
                brick,
                replica,
                spec,
            },
            state,
            deleted: flags & 1 != 0,
            clean: flags & 2 != 0,
        })
    }
}

/// Whether the replication layer's state fits.
pub(crate) fn check_state(state: &Bytes) -> Result<(), BrickError> {
    check_limit("the replication state", state.len(), STATE_BYTES_MAX)
}

fn check_limit(what: &'static str, bytes: usize, max: usize) -> Result<(), BrickError> {
    if bytes > max {
        return Err(BrickError::StateTooLarge { what, bytes, max });
    }
    Ok(())
}

fn offset_of(number: u64) -> u64 {
    (number % 2) * SUPERBLOCK_BYTES as u64
}

/// Reads both copies and takes the newer whole one.
pub fn read_superblock<M: Medium>(medium: &M) -> Result<Superblock, OpenError> {
    let file = match medium.open(SUPERBLOCK, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpenError::NotABrick { what: SUPERBLOCK });
        }
        Err(error) => return Err(IoFault::new("open the superblock", &error).into()),
    };
    let mut best: Option<Superblock> = None;
    let mut refusal = OpenError::Damaged { what: SUPERBLOCK };
    for copy in 0..2 {
        let mut raw = vec![0; SUPERBLOCK_BYTES];
        let got = medium
            .read_at(&file, offset_of(copy), &mut raw)
            .map_err(|error| IoFault::new("read the superblock", &error))?;
        match Superblock::decode(&raw[..got]) {
            Ok(found) if best.as_ref().is_none_or(|best| found.number > best.number) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(error @ OpenError::Format { .. }) => refusal = error,
            Err(_) => {}
        }
    }
    best.ok_or(refusal)
}

/// Writes `superblock` over the older copy; durable on return. `first` also syncs the directory.
pub(crate) fn write_superblock<M: Medium>(
    medium: &M,
    superblock: &Superblock,
    first: bool,
) -> Result<(), BrickError> {
    let raw = superblock.encode()?;
    let write = || -> std::io::Result<()> {
        let file = medium.open(SUPERBLOCK, OpenMode::Create)?;
        medium.write_at(&file, offset_of(superblock.number), &raw)?;
        medium.sync(&file)?;
        if first { medium.sync_dir("") } else { Ok(()) }
    };
    write().map_err(|error| BrickError::Failed(IoFault::new("write the superblock", &error)))
}
