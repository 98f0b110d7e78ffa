//! Sessions and their kept replies: what makes an operation take effect exactly once (FO-2).

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::{Outcome, SLOTS_MAX};
use protocol::ids::SessionId;
use protocol::record::Change;

use crate::transaction::damaged;
use crate::{ExecuteError, Store, keys};

/// Version of a session's and a kept reply's value.
const VERSION: u8 = 1;
/// Longest client name that is kept, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 255;

/// What is known of a session on every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Name of the client.
    pub client_name: String,
    /// Milliseconds since 1970, by the client's clock.
    pub mounted_at_ms: i64,
    /// It cannot write.
    pub read_only: bool,
}

/// What to do with a numbered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Execute it.
    Execute,
    /// It was executed: reply this.
    Kept(Outcome),
    /// Its slot is past it: the client broke the protocol.
    Past {
        /// The slot's last number.
        last: u64,
    },
}

/// Decides about request `number`, given the slot's last reply. A failed operation changes
/// nothing and leaves no kept reply, so numbers may skip.
#[must_use]
pub fn admit(kept: Option<(u64, Outcome)>, number: u64) -> Admission {
    match kept {
        Some((last, outcome)) if last == number => Admission::Kept(outcome),
        Some((last, _)) if last > number => Admission::Past { last },
        _ => Admission::Execute,
    }
}

pub(crate) fn encode_reply(number: u64, outcome: &Outcome) -> Bytes {
    let mut w = Writer::with_capacity(112);
    w.u8(VERSION).u64(number);
    outcome.write(&mut w);
    w.finish()
}

/// The last reply of a session's slot that is kept in the volume, with its request's number.
pub fn kept_reply<S: Store>(
    store: &S,
    session: SessionId,
    slot: u16,
) -> Result<Option<(u64, Outcome)>, ExecuteError<S::Error>> {
    let key = keys::reply(session, slot);
    let Some(value) = store.get(&key).map_err(ExecuteError::Store)? else {
        return Ok(None);
    };
    decode_reply(value)
        .map(Some)
        .map_err(|source| damaged(&key, source))
}

fn version(r: &mut Reader, what: &'static str) -> Result<(), DecodeError> {
    match r.u8(what)? {
        VERSION => Ok(()),
        other => Err(DecodeError::Invalid {
            what,
            value: u64::from(other),
        }),
    }
}

fn decode_reply(value: Bytes) -> Result<(u64, Outcome), DecodeError> {
    let mut r = Reader::new(value);
    version(&mut r, "kept reply version")?;
    let number = r.u64("number")?;
    let outcome = Outcome::read(&mut r, &Bytes::new())?;
    r.end("kept reply")?;
    Ok((number, outcome))
}

/// Makes the session known on every replica; again: replaces what is known.
#[must_use]
pub fn open_session(id: SessionId, session: &Session) -> Change {
    let mut w = Writer::with_capacity(64);
    let name = session.client_name.as_bytes();
    w.u8(VERSION)
        .i64(session.mounted_at_ms)
        .u8(u8::from(session.read_only))
        .raw(&name[..name.len().min(CLIENT_NAME_BYTES_MAX)]);
    Change::Put {
        key: Bytes::copy_from_slice(&keys::session(id)),
        value: w.finish(),
    }
}

fn decode_session(value: Bytes) -> Result<Session, DecodeError> {
    let mut r = Reader::new(value);
    version(&mut r, "session version")?;
    Ok(Session {
        mounted_at_ms: r.i64("mount time")?,
        read_only: r.u8("read only")? != 0,
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
