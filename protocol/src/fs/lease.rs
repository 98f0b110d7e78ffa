//! Leases of inodes: what a primary takes back from a mount, and what a mount gives back (COH-1).

use bytes::Bytes;

use super::kind;
use crate::codec::{DecodeError, Reader, Writer};
use crate::frame::RawFrame;
use crate::units::ObjectId;

/// Leases that a session may hold.
pub const LEASES_OF_SESSION_MAX: usize = 64 << 10;

/// Leases that are to be given back, in a frame of kind [`kind::RECALL`], or that are given back, in
/// one of kind [`kind::GIVE_BACK`], which carries the recall's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// The primary's own number of the recall.
    pub number: u64,
    /// At most [`LEASES_OF_SESSION_MAX`].
    pub objects: Vec<ObjectId>,
}

pub(super) fn write_objects(w: &mut Writer, objects: &[ObjectId]) {
    w.u32(u32::try_from(objects.len()).expect("LEASES_OF_SESSION_MAX"));
    for object in objects {
        w.u64(object.0);
    }
}

pub(super) fn read_objects(r: &mut Reader) -> Result<Vec<ObjectId>, DecodeError> {
    let count = r.count(8, "leases")?;
    if count > LEASES_OF_SESSION_MAX {
        return Err(DecodeError::Invalid {
            what: "count of leases",
            value: count as u64,
        });
    }
    (0..count).map(|_| Ok(ObjectId(r.u64("lease")?))).collect()
}

impl Recalled {
    fn frame(&self, kind: u8) -> RawFrame {
        let mut w = Writer::with_capacity(12 + 8 * self.objects.len());
        w.u64(self.number);
        write_objects(&mut w, &self.objects);
        RawFrame {
            kind,
            meta: w.finish(),
            payload: Bytes::new(),
        }
    }

    /// The primary's word, as a frame.
    #[must_use]
    pub fn recall(&self) -> RawFrame {
        self.frame(kind::RECALL)
    }

    /// The mount's answer, as a frame.
    #[must_use]
    pub fn give_back(&self) -> RawFrame {
        self.frame(kind::GIVE_BACK)
    }

    /// From either frame.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let number = r.u64("number of a recall")?;
        let objects = read_objects(&mut r)?;
        r.end("recall")?;
        Ok(Self { number, objects })
    }
}

/// A mount would give these leases back: a frame of kind [`kind::OFFER`].
#[must_use]
pub fn offer(objects: &[ObjectId]) -> RawFrame {
    let mut w = Writer::with_capacity(4 + 8 * objects.len());
    write_objects(&mut w, objects);
    RawFrame {
        kind: kind::OFFER,
        meta: w.finish(),
        payload: Bytes::new(),
    }
}

/// What a frame of [`offer`] names.
pub fn offered(frame: &RawFrame) -> Result<Vec<ObjectId>, DecodeError> {
    let mut r = Reader::new(frame.meta.clone());
    let objects = read_objects(&mut r)?;
    r.end("offer")?;
    Ok(objects)
}
