//! Between two replicas of a volume. The stream is in order: a resync item that was sent after a
//! record was read after that record was applied at the source.

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};
use crate::frame::RawFrame;
use crate::ids::{BrickId, VolumeId};
use crate::link::{LEASE_MS_MAX, LEASE_MS_MIN};
use crate::record::Record;
use crate::units::{BLOCK_BYTES, EXTENT_BYTES, ObjectId, Sequence, Term};
use crate::volume::REPLICAS_MAX;

/// Version of this module's messages.
pub const REPLICA_VERSION: u16 = 4;
/// Most items of a list in one frame.
pub const ITEMS_MAX: usize = 16 * 1024;
/// No object has a block, or an extent, from here on: its bytes could not be counted.
const BLOCKS_MAX: u64 = i64::MAX as u64 / BLOCK_BYTES + 1;
const EXTENTS_MAX: u64 = i64::MAX as u64 / EXTENT_BYTES + 1;
/// Bytes of the hash of a block in an offer or a comparison.
pub const HASH_BYTES: usize = 16;

mod kind {
    pub(super) const HELLO: u8 = 32;
    pub(super) const WELCOME: u8 = 33;
    pub(super) const RECORD: u8 = 34;
    pub(super) const ACK: u8 = 35;
    pub(super) const FLUSH: u8 = 36;
    pub(super) const FLUSHED: u8 = 37;
    pub(super) const RESYNC: u8 = 38;
    pub(super) const RESYNCED: u8 = 39;
    pub(super) const OFFER: u8 = 40;
    pub(super) const WANT: u8 = 41;
    pub(super) const JOINED: u8 = 42;
    pub(super) const MEMBERSHIP: u8 = 43;
    pub(super) const HAND_OVER: u8 = 44;
    pub(super) const DOUBT: u8 = 45;
    pub(super) const PULL: u8 = 46;
    pub(super) const PULLED: u8 = 47;
    pub(super) const HEARTBEAT: u8 = 48;
    pub(super) const COMPARE: u8 = 49;
    pub(super) const COMPARED: u8 = 50;
    pub(super) const EXACT_KEYS: u8 = 51;
    pub(super) const EXACT_OBJECTS: u8 = 52;
    pub(super) const FETCH: u8 = 53;
    pub(super) const FETCHED: u8 = 54;
    pub(super) const ASK: u8 = 55;
    pub(super) const LEAVING: u8 = 56;
    pub(super) const STABLE: u8 = 57;
    /// See [`crate::packed`].
    pub(super) const PACKED: u8 = crate::packed::PACKED;
    pub(super) const ASK_PROMISE: u8 = 70;
    pub(super) const PROMISE: u8 = 71;
}

/// Every kind of frame between replicas, with its name, for logs and tests.
pub const KINDS: [(u8, &str); 28] = [
    (kind::HELLO, "hello"),
    (kind::WELCOME, "welcome"),
    (kind::RECORD, "record"),
    (kind::ACK, "ack"),
    (kind::FLUSH, "flush"),
    (kind::FLUSHED, "flushed"),
    (kind::RESYNC, "resync"),
    (kind::RESYNCED, "resynced"),
    (kind::OFFER, "offer"),
    (kind::WANT, "want"),
    (kind::JOINED, "joined"),
    (kind::MEMBERSHIP, "membership"),
    (kind::HAND_OVER, "hand-over"),
    (kind::DOUBT, "doubt"),
    (kind::PULL, "pull"),
    (kind::PULLED, "pulled"),
    (kind::HEARTBEAT, "heartbeat"),
    (kind::COMPARE, "compare"),
    (kind::COMPARED, "compared"),
    (kind::EXACT_KEYS, "exact-keys"),
    (kind::EXACT_OBJECTS, "exact-objects"),
    (kind::FETCH, "fetch"),
    (kind::FETCHED, "fetched"),
    (kind::ASK, "ask"),
    (kind::STABLE, "stable"),
    (kind::ASK_PROMISE, "ask-promise"),
    (kind::PROMISE, "promise"),
    (kind::PACKED, "packed"),
];

/// Something that may differ between two replicas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// A key of the metadata.
    Key(Bytes),
    /// Blocks of an object: first and count.
    Blocks(ObjectId, u64, u64),
    /// An object that may be gone.
    Object(ObjectId),
}

/// What a comparison covers. Both sides answer for the same place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Up to `limit` keys from `from` on.
    Keys {
        /// First key.
        from: Bytes,
        /// Last key (excluded) of the asker's own range.
        to: Bytes,
    },
    /// The objects from `from` up to `to` (excluded) that hold data.
    Objects {
        /// First.
        from: ObjectId,
        /// Excluded.
        to: ObjectId,
    },
    /// One extent of an object, by block.
    Extent {
        /// The object.
        object: ObjectId,
        /// Which extent.
        extent: u64,
    },
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first message of either side.
    Hello {
        /// [`REPLICA_VERSION`].
        version: u16,
        /// Which volume.
        volume: VolumeId,
        /// Index in the volume's list.
        replica: u8,
        /// Its brick.
        brick: BrickId,
        /// Random per start of the process.
        incarnation: u64,
        /// `replication::state::Report` as JSON.
        report: Bytes,
    },
    /// The primary takes the replica on: `replication::state::Welcome` as JSON.
    Welcome(Bytes),
    /// A record.
    Record(Record),
    /// How far the sender has everything: in memory, applied, stable.
    Ack {
        /// In memory.
        received: Sequence,
        /// Applied.
        applied: Sequence,
        /// On stable storage.
        stable: Sequence,
        /// The version of the ack policy in force that it knows durably.
        policy: u64,
    },
    /// Make everything sent so far durable, with the data of these objects (`None`: of all).
    Flush {
        /// Given back.
        id: u64,
        /// Objects with data written in place.
        objects: Option<Vec<ObjectId>>,
    },
    /// A flush is done.
    Flushed {
        /// Which.
        id: u64,
    },
    /// Resync items, as the changes of a record whose sequence is the batch's number.
    Resync(Record),
    /// A batch is on stable storage at the target.
    Resynced {
        /// Which.
        batch: u64,
    },
    /// Hashes of the blocks of an extent at the source: [`HASH_BYTES`] each, in the payload.
    Offer {
        /// Number of the offer.
        id: u64,
        /// The object.
        object: ObjectId,
        /// Its first block.
        first_block: u64,
        /// The hashes.
        hashes: Bytes,
    },
    /// Which blocks of an offer differ at the target: one bit each, in the payload.
    Want {
        /// Which offer.
        id: u64,
        /// The next extent of the object that is not all zero at the target: the source, where it
        /// may be, offers that too.
        next: Option<u64>,
        /// Bits, least significant first.
        bits: Bytes,
    },
    /// The replica is in sync: `replication::state::Membership` as JSON.
    Joined(Bytes),
    /// The in-sync set changed: `replication::state::Membership` as JSON.
    Membership(Bytes),
    /// The role is the receiver's, in this term.
    HandOver {
        /// The new term.
        term: Term,
        /// What the pool agreed, where it decides about roles: JSON of
        /// `replication::machine::Agreed`; else empty.
        agreed: Bytes,
    },
    /// From a primary, where the pool decides about roles: promise to ask for no role for so long.
    AskPromise {
        /// The primary's term.
        term: Term,
        /// The primary's clock, given back.
        sent_us: u64,
        /// For how long, from [`LEASE_MS_MIN`] to [`LEASE_MS_MAX`].
        lease_ms: u32,
    },
    /// It is promised.
    Promise {
        /// As asked.
        sent_us: u64,
        /// For how long: as asked, or less.
        lease_ms: u32,
    },
    /// From the primary: up to where each replica has everything on stable storage.
    Stable {
        /// The primary's term.
        term: Term,
        /// The version of the replicas' places that the positions go by.
        layout: u64,
        /// By place; zero where nothing is known.
        positions: [Sequence; REPLICAS_MAX],
    },
    /// Asks what the receiver has in doubt since this, its last common record with the sender.
    Ask {
        /// The last common record.
        common: Sequence,
        /// The asking primary's term.
        term: Term,
        /// The revision of the report that this rests on.
        revision: u64,
    },
    /// What the target of a resync has in doubt.
    Doubts {
        /// The list's part.
        items: Vec<Doubt>,
        /// Nothing follows.
        last: bool,
        /// The target cannot tell: its journal does not reach back. It must be compared in full.
        unknown: bool,
    },
    /// Send the records after this.
    Pull {
        /// The asker's last.
        after: Sequence,
    },
    /// All that was asked for was sent.
    Pulled,
    /// The sender's process ends in order: until the two meet again it neither serves nor asks for
    /// the role.
    Leaving,
    /// A sign of life.
    Heartbeat {
        /// The sender's term.
        term: Term,
        /// Bytes that its brick can still take.
        free_bytes: u64,
        /// Bytes of its file system in all.
        total_bytes: u64,
        /// Confirmed, if the sender is primary.
        confirmed: Sequence,
    },
    /// Say what you have here.
    Compare {
        /// Given back.
        id: u64,
        /// What.
        scope: Scope,
    },
    /// What there is: hashes in the payload ([`HASH_BYTES`] a key, object or block), each key or
    /// object named in `names`.
    Compared {
        /// Which question.
        id: u64,
        /// Names of what was hashed; empty for an extent.
        names: Vec<Bytes>,
        /// The hashes.
        hashes: Bytes,
        /// The blocks that the sender could not read, one bit each; empty where all could be.
        unreadable: Bytes,
    },
    /// Between these keys exactly these exist.
    ExactKeys {
        /// First.
        from: Bytes,
        /// Excluded; empty: to the end.
        to: Bytes,
        /// Keys and values.
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// Between these objects exactly these hold data.
    ExactObjects {
        /// First.
        from: ObjectId,
        /// Excluded.
        to: ObjectId,
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Send these bytes, whose own copy here is damaged.
    Fetch {
        /// Given back.
        id: u64,
        /// The object.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// The bytes, or none where the sender's own are damaged too.
    Fetched {
        /// Which question.
        id: u64,
        /// The bytes.
        data: Option<Bytes>,
    },
}

impl Message {
    /// Whether frames of this kind may be held by a packed one ([`crate::packed`]): all of these
    /// but the hello, which comes before anybody knows whether the other can unpack.
    #[must_use]
    pub fn may_be_packed(kind: u8) -> bool {
        let hello_or_packed = matches!(kind, kind::HELLO | kind::PACKED);
        !hello_or_packed && KINDS.iter().any(|(known, _)| *known == kind)
    }

    /// As a frame.
    #[must_use]
    // A table: one row a message.
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::default();
        let mut payload = Bytes::new();
        let kind = match self {
            Self::Hello {
                version,
                volume,
                replica,
                brick,
                incarnation,
                report,
            } => {
                w.u16(*version)
                    .id(&volume.0)
                    .u8(*replica)
                    .id(&brick.0)
                    .u64(*incarnation);
                w.bytes(report);
                kind::HELLO
            }
            Self::Welcome(json) => {
                w.raw(json);
                kind::WELCOME
            }
            Self::Joined(json) => {
                w.raw(json);
                kind::JOINED
            }
            Self::Membership(json) => {
                w.raw(json);
                kind::MEMBERSHIP
            }
            Self::Record(record) => return record_frame(kind::RECORD, record),
            Self::Resync(record) => return record_frame(kind::RESYNC, record),
            Self::Ack {
                received,
                applied,
                stable,
                policy,
            } => {
                w.u64(received.0).u64(applied.0).u64(stable.0).u64(*policy);
                kind::ACK
            }
            Self::Flush { id, objects } => {
                w.u64(*id).u8(u8::from(objects.is_none()));
                objects_list(&mut w, objects.as_deref().unwrap_or_default());
                kind::FLUSH
            }
            Self::Flushed { id } => {
                w.u64(*id);
                kind::FLUSHED
            }
            Self::Resynced { batch } => {
                w.u64(*batch);
                kind::RESYNCED
            }
            Self::Offer {
                id,
                object,
                first_block,
                hashes,
            } => {
                w.u64(*id).u64(object.0).u64(*first_block);
                payload = hashes.clone();
                kind::OFFER
            }
            Self::Want { id, next, bits } => {
                w.u64(*id).u64(next.unwrap_or(u64::MAX));
                payload = bits.clone();
                kind::WANT
            }
            Self::HandOver { term, agreed } => {
                w.u64(term.0).bytes(agreed);
                kind::HAND_OVER
            }
            Self::AskPromise {
                term,
                sent_us,
                lease_ms,
            } => {
                w.u64(term.0).u64(*sent_us).u32(*lease_ms);
                kind::ASK_PROMISE
            }
            Self::Promise { sent_us, lease_ms } => {
                w.u64(*sent_us).u32(*lease_ms);
                kind::PROMISE
            }
            Self::Stable {
                term,
                layout,
                positions,
            } => {
                w.u64(term.0).u64(*layout);
                for position in positions {
                    w.u64(position.0);
                }
                kind::STABLE
            }
            Self::Ask {
                common,
                term,
                revision,
            } => {
                w.u64(common.0).u64(term.0).u64(*revision);
                kind::ASK
            }
            Self::Pull { after } => {
                w.u64(after.0);
                kind::PULL
            }
            Self::Pulled => kind::PULLED,
            Self::Leaving => kind::LEAVING,
            Self::Heartbeat {
                term,
                free_bytes,
                total_bytes,
                confirmed,
            } => {
                w.u64(term.0)
                    .u64(*free_bytes)
                    .u64(*total_bytes)
                    .u64(confirmed.0);
                kind::HEARTBEAT
            }
            Self::Fetch {
                id,
                object,
                offset,
                len,
            } => {
                w.u64(*id).u64(object.0).u64(*offset).u32(*len);
                kind::FETCH
            }
            Self::Fetched { id, data } => {
                w.u64(*id).u8(u8::from(data.is_some()));
                payload = data.clone().unwrap_or_default();
                kind::FETCHED
            }
            Self::Doubts { .. }
            | Self::Compare { .. }
            | Self::Compared { .. }
            | Self::ExactKeys { .. }
            | Self::ExactObjects { .. } => self.encode_list(&mut w, &mut payload),
        };
        RawFrame {
            kind,
            meta: w.finish(),
            payload,
        }
    }

    fn encode_list(&self, w: &mut Writer, payload: &mut Bytes) -> u8 {
        match self {
            Self::Doubts {
                items,
                last,
                unknown,
            } => {
                w.u8(u8::from(*last) | u8::from(*unknown) << 1);
                w.u32(u32::try_from(items.len()).expect("ITEMS_MAX"));
                for item in items {
                    match item {
                        Doubt::Key(key) => w.u8(1).bytes(key),
                        Doubt::Blocks(object, first, count) => {
                            w.u8(2).u64(object.0).u64(*first).u64(*count)
                        }
                        Doubt::Object(object) => w.u8(3).u64(object.0),
                    };
                }
                kind::DOUBT
            }
            Self::Compare { id, scope } => {
                w.u64(*id);
                match scope {
                    Scope::Keys { from, to } => w.u8(1).bytes(from).bytes(to),
                    Scope::Objects { from, to } => w.u8(2).u64(from.0).u64(to.0),
                    Scope::Extent { object, extent } => w.u8(3).u64(object.0).u64(*extent),
                };
                kind::COMPARE
            }
            Self::Compared {
                id,
                names,
                hashes,
                unreadable,
            } => {
                w.u64(*id).bytes(unreadable);
                w.u32(u32::try_from(names.len()).expect("ITEMS_MAX"));
                for name in names {
                    w.bytes(name);
                }
                *payload = hashes.clone();
                kind::COMPARED
            }
            Self::ExactKeys { from, to, pairs } => {
                w.bytes(from).bytes(to);
                w.u32(u32::try_from(pairs.len()).expect("ITEMS_MAX"));
                for (key, value) in pairs {
                    w.bytes(key).bytes(value);
                }
                kind::EXACT_KEYS
            }
            Self::ExactObjects { from, to, objects } => {
                w.u64(from.0).u64(to.0);
                objects_list(w, objects);
                kind::EXACT_OBJECTS
            }
            _ => unreachable!("only lists come here"),
        }
    }

    /// From a frame.
    // A table: one row a message.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let payload = &frame.payload;
        let message = match frame.kind {
            kind::HELLO => Self::Hello {
                version: r.u16("version")?,
                volume: VolumeId(r.id("volume")?),
                replica: r.u8("replica")?,
                brick: BrickId(r.id("brick")?),
                incarnation: r.u64("incarnation")?,
                report: r.bytes("report")?,
            },
            kind::WELCOME => return Ok(Self::Welcome(frame.meta.clone())),
            kind::JOINED => return Ok(Self::Joined(frame.meta.clone())),
            kind::MEMBERSHIP => return Ok(Self::Membership(frame.meta.clone())),
            kind::RECORD => {
                return Ok(Self::Record(Record::decode(
                    frame.meta.clone(),
                    payload.clone(),
                )?));
            }
            kind::RESYNC => {
                return Ok(Self::Resync(Record::decode(
                    frame.meta.clone(),
                    payload.clone(),
                )?));
            }
            kind::ACK => Self::Ack {
                received: r.sequence("received")?,
                applied: r.sequence("applied")?,
                stable: r.sequence("stable")?,
                policy: r.u64("policy")?,
            },
            kind::FLUSH => {
                let id = r.u64("id")?;
                let all = r.u8("all")? != 0;
                let objects = read_objects(&mut r)?;
                Self::Flush {
                    id,
                    objects: (!all).then_some(objects),
                }
            }
            kind::FLUSHED => Self::Flushed { id: r.u64("id")? },
            kind::RESYNCED => Self::Resynced {
                batch: r.u64("batch")?,
            },
            kind::OFFER => Self::Offer {
                id: r.u64("id")?,
                object: ObjectId(r.u64("object")?),
                first_block: r.below(BLOCKS_MAX, "first block")?,
                hashes: payload.clone(),
            },
            kind::WANT => Self::Want {
                id: r.u64("id")?,
                next: read_next(&mut r)?,
                bits: payload.clone(),
            },
            kind::HAND_OVER => Self::HandOver {
                term: r.term("term")?,
                agreed: r.bytes("agreed")?,
            },
            kind::ASK_PROMISE => Self::AskPromise {
                term: r.term("term")?,
                sent_us: r.u64("sent")?,
                lease_ms: read_lease(&mut r)?,
            },
            kind::PROMISE => Self::Promise {
                sent_us: r.u64("sent")?,
                lease_ms: read_lease(&mut r)?,
            },
            kind::STABLE => {
                let term = r.term("term")?;
                let layout = r.u64("layout")?;
                let mut positions = [Sequence::ZERO; REPLICAS_MAX];
                for position in &mut positions {
                    *position = r.sequence("position")?;
                }
                Self::Stable {
                    term,
                    layout,
                    positions,
                }
            }
            kind::ASK => Self::Ask {
                common: r.sequence("common")?,
                term: r.term("term")?,
                revision: r.u64("revision")?,
            },
            kind::PULL => Self::Pull {
                after: r.sequence("after")?,
            },
            kind::PULLED => Self::Pulled,
            kind::LEAVING => Self::Leaving,
            kind::HEARTBEAT => Self::Heartbeat {
                term: r.term("term")?,
                free_bytes: r.u64("free")?,
                total_bytes: r.u64("total")?,
                confirmed: r.sequence("confirmed")?,
            },
            kind::FETCH => Self::Fetch {
                id: r.u64("id")?,
                object: ObjectId(r.u64("object")?),
                offset: r.u64("offset")?,
                len: r.u32("length")?,
            },
            kind::FETCHED => {
                let id = r.u64("id")?;
                let found = r.u8("found")? != 0;
                Self::Fetched {
                    id,
                    data: found.then(|| payload.clone()),
                }
            }
            other => Self::decode_list(other, &mut r, payload)?,
        };
        r.end("message")?;
        Ok(message)
    }

    fn decode_list(kind: u8, r: &mut Reader, payload: &Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::DOUBT => {
                let flags = r.u8("flags")?;
                let count = r.count(5, "doubts")?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(read_doubt(r)?);
                }
                Self::Doubts {
                    items,
                    last: flags & 1 != 0,
                    unknown: flags & 2 != 0,
                }
            }
            kind::COMPARE => {
                let id = r.u64("id")?;
                let scope = match r.u8("scope")? {
                    1 => Scope::Keys {
                        from: r.bytes("from")?,
                        to: r.bytes("to")?,
                    },
                    2 => Scope::Objects {
                        from: ObjectId(r.u64("from")?),
                        to: ObjectId(r.u64("to")?),
                    },
                    3 => Scope::Extent {
                        object: ObjectId(r.u64("object")?),
                        extent: r.below(EXTENTS_MAX, "extent")?,
                    },
                    other => {
                        return Err(DecodeError::Invalid {
                            what: "scope",
                            value: u64::from(other),
                        });
                    }
                };
                Self::Compare { id, scope }
            }
            kind::COMPARED => {
                let id = r.u64("id")?;
                let unreadable = r.bytes("unreadable")?;
                let count = r.count(4, "names")?;
                let mut names = Vec::with_capacity(count);
                for _ in 0..count {
                    names.push(r.bytes("name")?);
                }
                Self::Compared {
                    id,
                    names,
                    hashes: payload.clone(),
                    unreadable,
                }
            }
            kind::EXACT_KEYS => {
                let from = r.bytes("from")?;
                let to = r.bytes("to")?;
                let count = r.count(8, "pairs")?;
                let mut pairs = Vec::with_capacity(count);
                for _ in 0..count {
                    pairs.push((r.bytes("key")?, r.bytes("value")?));
                }
                Self::ExactKeys { from, to, pairs }
            }
            kind::EXACT_OBJECTS => Self::ExactObjects {
                from: ObjectId(r.u64("from")?),
                to: ObjectId(r.u64("to")?),
                objects: read_objects(r)?,
            },
            other => {
                return Err(DecodeError::Invalid {
                    what: "kind",
                    value: u64::from(other),
                });
            }
        })
    }
}

fn record_frame(kind: u8, record: &Record) -> RawFrame {
    RawFrame {
        kind,
        meta: record.encode_meta(),
        payload: record.payload.clone(),
    }
}

/// The frame of a record whose meta is encoded already, for several replicas at once.
#[must_use]
pub fn live_record_frame(meta: Bytes, payload: Bytes) -> RawFrame {
    RawFrame {
        kind: kind::RECORD,
        meta,
        payload,
    }
}

fn objects_list(w: &mut Writer, objects: &[ObjectId]) {
    w.u32(u32::try_from(objects.len()).expect("ITEMS_MAX"));
    for object in objects {
        w.u64(object.0);
    }
}

/// The length of a promise, within its bounds.
/// An extent, or none.
fn read_next(r: &mut Reader) -> Result<Option<u64>, DecodeError> {
    let value = r.u64("next")?;
    match value {
        u64::MAX => Ok(None),
        0..EXTENTS_MAX => Ok(Some(value)),
        _ => Err(DecodeError::Invalid {
            what: "next",
            value,
        }),
    }
}

fn read_lease(r: &mut Reader) -> Result<u32, DecodeError> {
    let lease_ms = r.u32("lease")?;
    if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&lease_ms) {
        return Err(DecodeError::Invalid {
            what: "a lease in ms",
            value: u64::from(lease_ms),
        });
    }
    Ok(lease_ms)
}

fn read_objects(r: &mut Reader) -> Result<Vec<ObjectId>, DecodeError> {
    let count = r.count(8, "objects")?;
    (0..count).map(|_| Ok(ObjectId(r.u64("object")?))).collect()
}

fn read_doubt(r: &mut Reader) -> Result<Doubt, DecodeError> {
    Ok(match r.u8("doubt")? {
        1 => Doubt::Key(r.bytes("key")?),
        2 => {
            let object = ObjectId(r.u64("object")?);
            Doubt::Blocks(object, r.u64("first block")?, r.u64("blocks")?)
        }
        3 => Doubt::Object(ObjectId(r.u64("object")?)),
        other => {
            return Err(DecodeError::Invalid {
                what: "doubt",
                value: u64::from(other),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::GenerationId;
    use crate::record::Change;

    fn samples() -> Vec<Message> {
        let bytes = Bytes::from_static(b"some");
        let record = Record {
            sequence: Sequence(4),
            term: Term(1),
            generation: GenerationId([1; 16]),
            changes: vec![Change::Write {
                object: ObjectId(3),
                offset: 0,
                len: 4,
            }],
            payload: bytes.clone(),
        };
        vec![
            Message::Hello {
                version: 1,
                volume: VolumeId([1; 16]),
                replica: 1,
                brick: BrickId([2; 16]),
                incarnation: 7,
                report: bytes.clone(),
            },
            Message::Welcome(bytes.clone()),
            Message::Record(record.clone()),
            Message::Ack {
                received: Sequence(3),
                applied: Sequence(2),
                stable: Sequence(1),
                policy: 4,
            },
            Message::Flush {
                id: 1,
                objects: None,
            },
            Message::Flush {
                id: 1,
                objects: Some(vec![ObjectId(2)]),
            },
            Message::Flushed { id: 1 },
            Message::Resync(record),
            Message::Resynced { batch: 3 },
            Message::Offer {
                id: 1,
                object: ObjectId(2),
                first_block: 0,
                hashes: Bytes::from_static(&[3; 32]),
            },
            Message::Want {
                id: 1,
                next: Some(7),
                bits: bytes.clone(),
            },
            Message::Joined(bytes.clone()),
            Message::Membership(bytes.clone()),
            Message::HandOver {
                term: Term(9),
                agreed: bytes.clone(),
            },
            Message::AskPromise {
                term: Term(9),
                sent_us: 7,
                lease_ms: 150,
            },
            Message::Promise {
                sent_us: 7,
                lease_ms: 150,
            },
            Message::Stable {
                term: Term(9),
                layout: 2,
                positions: std::array::from_fn(|place| Sequence(place as u64)),
            },
            Message::Doubts {
                items: vec![
                    Doubt::Key(bytes.clone()),
                    Doubt::Blocks(ObjectId(1), 2, 3),
                    Doubt::Object(ObjectId(5)),
                ],
                last: true,
                unknown: false,
            },
            Message::Ask {
                common: Sequence(2),
                term: Term(3),
                revision: 1,
            },
            Message::Pull { after: Sequence(3) },
            Message::Pulled,
            Message::Leaving,
            Message::Heartbeat {
                term: Term(1),
                free_bytes: 2,
                total_bytes: 3,
                confirmed: Sequence(4),
            },
            Message::Compare {
                id: 1,
                scope: Scope::Keys {
                    from: bytes.clone(),
                    to: bytes.clone(),
                },
            },
            Message::Compare {
                id: 1,
                scope: Scope::Objects {
                    from: ObjectId(1),
                    to: ObjectId(2),
                },
            },
            Message::Compare {
                id: 1,
                scope: Scope::Extent {
                    object: ObjectId(1),
                    extent: 2,
                },
            },
            Message::Compared {
                id: 1,
                names: vec![bytes.clone()],
                hashes: bytes.clone(),
                unreadable: Bytes::new(),
            },
            Message::ExactKeys {
                from: bytes.clone(),
                to: Bytes::new(),
                pairs: vec![(bytes.clone(), bytes.clone())],
            },
            Message::ExactObjects {
                from: ObjectId(1),
                to: ObjectId(9),
                objects: vec![ObjectId(2)],
            },
            Message::Fetch {
                id: 1,
                object: ObjectId(1),
                offset: 0,
                len: 4096,
            },
            Message::Fetched {
                id: 1,
                data: Some(bytes),
            },
            Message::Fetched { id: 1, data: None },
        ]
    }

    #[test]
    fn every_message_survives_the_way_and_is_refused_when_cut() {
        for message in samples() {
            let frame = message.encode();
            assert_eq!(Message::decode(&frame).as_ref(), Ok(&message));
            // JSON messages have no fields of their own: their content is checked when parsed.
            if matches!(
                message,
                Message::Welcome(_) | Message::Joined(_) | Message::Membership(_)
            ) {
                continue;
            }
            for cut in 0..frame.meta.len() {
                let short = RawFrame {
                    meta: frame.meta.slice(..cut),
                    ..frame.clone()
                };
                assert!(Message::decode(&short).is_err(), "{message:?} cut at {cut}");
            }
        }
    }
}
