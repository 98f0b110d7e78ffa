//! Sessions and their kept replies: what makes an operation take effect exactly once (FO-2).

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::{Outcome, Place, SLOTS_MAX};
use protocol::ids::{NodeId, SessionId};
use protocol::record::Change;
use protocol::units::{Sequence, Term};

use crate::transaction::damaged;
use crate::{ExecuteError, Store, keys};

/// Version of a session's value. Version 2 did not have the owner, version 1 not the place either.
const VERSION: u8 = 3;
const VERSION_WITHOUT_OWNER: u8 = 2;
const VERSION_WITHOUT_PLACE: u8 = 1;
/// Version of a kept reply's value. The one before did not have the sequence.
const REPLY_VERSION: u8 = 2;
const REPLY_VERSION_BEFORE: u8 = 1;
/// Longest client name that is kept, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 255;

/// Who may go on with a session, beside the pool's nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An older version wrote it down without.
    Unknown,
    /// A node's own mount, which came by its Unix socket: nobody else.
    Local,
    /// Whoever has this key.
    Key(NodeId),
}

/// What is known of a session on every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Name of the client.
    pub client_name: String,
    /// Milliseconds since 1970, by the client's clock.
    pub mounted_at_ms: i64,
    /// It cannot write.
    pub read_only: bool,
    /// The record with which it began. Who was answered only before that does not know that what it
    /// had before has ended. Zero where an older version wrote it down.
    pub began: Place,
    /// Who began it.
    pub owner: Owner,
}

/// The last reply of a slot that changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptReply {
    /// The request's number.
    pub number: u64,
    /// The record that carries it out; `None` where an older version wrote it down.
    pub sequence: Option<Sequence>,
    /// The reply.
    pub outcome: Outcome,
}

/// What to do with a numbered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Execute it.
    Execute,
    /// It was executed: reply this.
    Kept(KeptReply),
    /// Its slot is past it: the client broke the protocol.
    Past {
        /// The slot's last number.
        last: u64,
    },
}

/// Decides about request `number`, given the slot's last reply. A failed operation changes
/// nothing and leaves no kept reply, so numbers may skip.
#[must_use]
pub fn admit(kept: Option<KeptReply>, number: u64) -> Admission {
    match kept {
        Some(kept) if kept.number == number => Admission::Kept(kept),
        Some(kept) if kept.number > number => Admission::Past { last: kept.number },
        _ => Admission::Execute,
    }
}

pub(crate) fn encode_reply(number: u64, sequence: Sequence, outcome: &Outcome) -> Bytes {
    let mut w = Writer::with_capacity(120);
    w.u8(REPLY_VERSION).u64(number).u64(sequence.0);
    outcome.write(&mut w);
    w.finish()
}

/// The last reply of a session's slot that is kept in the volume.
pub fn kept_reply<S: Store>(
    store: &S,
    session: SessionId,
    slot: u16,
) -> Result<Option<KeptReply>, ExecuteError<S::Error>> {
    let key = keys::reply(session, slot);
    let Some(value) = store.get(&key).map_err(ExecuteError::Store)? else {
        return Ok(None);
    };
    decode_reply(value)
        .map(Some)
        .map_err(|source| damaged(&key, source))
}

fn decode_reply(value: Bytes) -> Result<KeptReply, DecodeError> {
    let mut r = Reader::new(value);
    let what = "kept reply version";
    let tells_sequence = match r.u8(what)? {
        REPLY_VERSION => true,
        REPLY_VERSION_BEFORE => false,
        other => {
            return Err(DecodeError::Invalid {
                what,
                value: u64::from(other),
            });
        }
    };
    let number = r.u64("number")?;
    let sequence = if tells_sequence {
        Some(Sequence(r.u64("sequence")?))
    } else {
        None
    };
    let outcome = Outcome::read(&mut r, &Bytes::new())?;
    r.end("kept reply")?;
    Ok(KeptReply {
        number,
        sequence,
        outcome,
    })
}

/// Makes the session known on every replica; again: replaces what is known.
#[must_use]
pub fn open_session(id: SessionId, session: &Session) -> Change {
    let mut w = Writer::with_capacity(64);
    let name = session.client_name.as_bytes();
    w.u8(VERSION)
        .i64(session.mounted_at_ms)
        .u8(u8::from(session.read_only))
        .u64(session.began.0.0)
        .u64(session.began.1.0);
    match session.owner {
        Owner::Unknown => w.u8(0),
        Owner::Local => w.u8(1),
        Owner::Key(key) => w.u8(2).id(&key.0),
    };
    w.raw(&name[..name.len().min(CLIENT_NAME_BYTES_MAX)]);
    Change::Put {
        key: Bytes::copy_from_slice(&keys::session(id)),
        value: w.finish(),
    }
}

fn decode_session(value: Bytes) -> Result<Session, DecodeError> {
    let mut r = Reader::new(value);
    let what = "session version";
    let invalid = |what, value: u8| {
        let value = u64::from(value);
        Err(DecodeError::Invalid { what, value })
    };
    let version = match r.u8(what)? {
        known @ VERSION_WITHOUT_PLACE..=VERSION => known,
        other => return invalid(what, other),
    };
    let mounted_at_ms = r.i64("mount time")?;
    let read_only = r.u8("read only")? != 0;
    let began = if version > VERSION_WITHOUT_PLACE {
        (
            Term(r.u64("term of the beginning")?),
            Sequence(r.u64("record of the beginning")?),
        )
    } else {
        Place::default()
    };
    let owner = if version > VERSION_WITHOUT_OWNER {
        match r.u8("owner")? {
            0 => Owner::Unknown,
            1 => Owner::Local,
            2 => Owner::Key(NodeId(r.id("owner's key")?)),
            other => return invalid("owner", other),
        }
    } else {
        Owner::Unknown
    };
    Ok(Session {
        mounted_at_ms,
        read_only,
        began,
        owner,
        client_name: String::from_utf8_lossy(&r.rest()).into_owned(),
    })
}

/// Every known session.
pub fn sessions<S: Store>(store: &S) -> Result<Vec<(SessionId, Session)>, ExecuteError<S::Error>> {
    let mut raw = Vec::new();
    store
        .scan(
            &[keys::SESSION],
            &keys::end_of(keys::SESSION),
            &mut |k, v| {
                raw.push((Bytes::copy_from_slice(k), Bytes::copy_from_slice(v)));
                true
            },
        )
        .map_err(ExecuteError::Store)?;
    raw.into_iter()
        .map(|(key, value)| {
            let id = key.get(1..17).and_then(|id| id.try_into().ok());
            let id = id.ok_or_else(|| damaged(&key, DecodeError::Short { what: "session id" }))?;
            let session = decode_session(value).map_err(|source| damaged(&key, source))?;
            Ok((SessionId(id), session))
        })
        .collect()
}

/// Forgets a session and its kept replies. At most one change for each slot and one more.
pub fn end_session<S: Store>(
    store: &S,
    id: SessionId,
) -> Result<Vec<Change>, ExecuteError<S::Error>> {
    let mut changes = vec![Change::Delete {
        key: Bytes::copy_from_slice(&keys::session(id)),
    }];
    store
        .scan(
            &keys::reply(id, 0),
            &keys::reply(id, SLOTS_MAX),
            &mut |key, _| {
                changes.push(Change::Delete {
                    key: Bytes::copy_from_slice(key),
                });
                true
            },
        )
        .map_err(ExecuteError::Store)?;
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_a_version_before_is_read() {
        let mut w = Writer::default();
        w.u8(VERSION_WITHOUT_PLACE).i64(5).u8(1).raw(b"app");
        let first = Session {
            client_name: "app".to_owned(),
            mounted_at_ms: 5,
            read_only: true,
            began: Place::default(),
            owner: Owner::Unknown,
        };
        assert_eq!(decode_session(w.finish()).expect("whole"), first);
        let mut w = Writer::default();
        w.u8(VERSION_WITHOUT_OWNER).i64(5).u8(1).u64(3).u64(4);
        w.raw(b"app");
        let second = Session {
            began: (Term(3), Sequence(4)),
            ..first
        };
        assert_eq!(decode_session(w.finish()).expect("whole"), second);
        for owner in [Owner::Unknown, Owner::Local, Owner::Key(NodeId([9; 16]))] {
            let now = Session {
                owner,
                ..second.clone()
            };
            let Change::Put { value, .. } = open_session(SessionId([1; 16]), &now) else {
                panic!("it is a key");
            };
            assert_eq!(decode_session(value).expect("whole"), now);
        }
        for bad in [&[4_u8][..], &[3, 0, 0, 0, 0, 0, 0, 0, 0, 1][..]] {
            assert!(decode_session(Bytes::copy_from_slice(bad)).is_err());
        }
    }

    #[test]
    fn a_kept_reply_of_the_version_before_is_read() {
        let mut w = Writer::default();
        w.u8(REPLY_VERSION_BEFORE).u64(7);
        Outcome::Done.write(&mut w);
        let kept = decode_reply(w.finish()).expect("it was written so");
        assert_eq!((kept.number, kept.sequence), (7, None));
        let kept = decode_reply(encode_reply(8, Sequence(9), &Outcome::Done)).expect("whole");
        assert_eq!((kept.number, kept.sequence), (8, Some(Sequence(9))));
    }
}
