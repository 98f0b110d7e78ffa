//! What a mount presents to a primary that may lack what an earlier one had confirmed (DUR-5).
//!
//! After each welcome the client sends one [`Present`], then what the primary lacks, each as a
//! [`Replay`], in the order in which it was confirmed, then an empty frame of kind
//! [`super::kind::PRESENTED`]. Requests come after that.

use bytes::Bytes;

use super::lease::{read_objects, write_objects};
use super::{Request, kind};
use crate::codec::{DecodeError, Reader, Writer};
use crate::frame::RawFrame;
use crate::ids::SessionId;
use crate::units::{ObjectId, Sequence, Term, Timestamp};

/// Authors that a [`Present`] or a reply can name: far below what a frame's meta can hold.
pub const AUTHORS_MAX: usize = 16 << 10;

/// A place in the order of all terms.
pub type Place = (Term, Sequence);

/// Whose request a record carries out. A client is told of the records of others that are not
/// stable, so that what was never answered gets its place again after everybody lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// The record.
    pub at: Place,
    /// Whose request.
    pub session: SessionId,
    /// Its slot.
    pub slot: u16,
    /// Its number.
    pub number: u64,
}

/// What the client knows of the order besides its own operations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// Records of others that the client does not know to be stable, by place. At most
    /// [`AUTHORS_MAX`].
    pub authors: Vec<Author>,
    /// Up to where it knows everything to be stable.
    pub stable: Place,
    /// Leases that it holds and that have not run out. What it may not keep is recalled at once.
    pub leases: Vec<ObjectId>,
    /// Those of them that are exclusive.
    pub exclusive: Vec<ObjectId>,
    /// Files of which it sends changes again that were answered early, whether it holds a lease of
    /// them or not: others are held off them until it was heard.
    pub early: Vec<ObjectId>,
}

/// An operation that the primary may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Where it was confirmed first; `None`: it was sent and not answered.
    pub order: Option<Place>,
    /// Where it is in the present past, if it is there: it may have been replayed before.
    pub at: Place,
    /// When: the change time that was answered; 0: none was.
    pub time: Timestamp,
    /// The request, under its slot and number.
    pub request: Request,
}

fn write_place(w: &mut Writer, (term, sequence): Place) {
    w.u64(term.0).u64(sequence.0);
}

fn read_place(r: &mut Reader) -> Result<Place, DecodeError> {
    Ok((r.term("term")?, r.sequence("sequence")?))
}

pub(super) fn write_authors(w: &mut Writer, authors: &[Author]) {
    w.u32(u32::try_from(authors.len()).expect("AUTHORS_MAX"));
    for author in authors {
        write_place(w, author.at);
        w.id(&author.session.0).u16(author.slot).u64(author.number);
    }
}

pub(super) fn read_authors(r: &mut Reader) -> Result<Vec<Author>, DecodeError> {
    let count = r.count(42, "authors")?;
    if count > AUTHORS_MAX {
        return Err(DecodeError::Invalid {
            what: "count of authors",
            value: count as u64,
        });
    }
    let mut authors = Vec::with_capacity(count);
    for _ in 0..count {
        authors.push(Author {
            at: read_place(r)?,
            session: SessionId(r.id("session")?),
            slot: r.u16("slot")?,
            number: r.u64("number")?,
        });
    }
    Ok(authors)
}

pub(super) fn write_places(w: &mut Writer, places: &[Place]) {
    w.u32(u32::try_from(places.len()).expect("few terms"));
    places.iter().for_each(|place| write_place(w, *place));
}

pub(super) fn read_places(r: &mut Reader) -> Result<Vec<Place>, DecodeError> {
    let count = r.count(16, "places")?;
    (0..count).map(|_| read_place(r)).collect()
}

impl Present {
    /// As a frame.
    ///
    /// # Panics
    /// With more than [`AUTHORS_MAX`] authors.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        assert!(self.authors.len() <= AUTHORS_MAX, "the sender keeps to it");
        let leases = self.leases.len() + self.exclusive.len() + self.early.len();
        let bytes = 32 + 42 * self.authors.len() + 8 * leases;
        let mut w = Writer::with_capacity(bytes);
        write_authors(&mut w, &self.authors);
        write_place(&mut w, self.stable);
        write_objects(&mut w, &self.leases);
        write_objects(&mut w, &self.exclusive);
        write_objects(&mut w, &self.early);
        RawFrame {
            kind: kind::PRESENT,
            meta: w.finish(),
            payload: Bytes::new(),
        }
    }

    /// From a frame.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let authors = read_authors(&mut r)?;
        let stable = read_place(&mut r)?;
        let leases = read_objects(&mut r)?;
        let exclusive = read_objects(&mut r)?;
        let early = read_objects(&mut r)?;
        r.end("present")?;
        Ok(Self {
            authors,
            stable,
            leases,
            exclusive,
            early,
        })
    }
}

impl Replay {
    /// As a frame, from the request's own frame: its fields follow those of the replay, and its
    /// payload is shared.
    #[must_use]
    pub fn frame(order: Option<Place>, at: Place, time: Timestamp, request: &RawFrame) -> RawFrame {
        let mut w = Writer::with_capacity(44 + request.meta.len());
        w.u8(u8::from(order.is_some()));
        write_place(&mut w, order.unwrap_or_default());
        write_place(&mut w, at);
        w.i64(time.0).raw(&request.meta);
        RawFrame {
            kind: kind::REPLAY,
            meta: w.finish(),
            payload: request.payload.clone(),
        }
    }

    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let request = self.request.encode();
        Self::frame(self.order, self.at, self.time, &request)
    }

    /// From a frame.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let placed = r.u8("placed")?;
        if placed > 1 {
            return Err(DecodeError::Invalid {
                what: "placed",
                value: u64::from(placed),
            });
        }
        let order = read_place(&mut r)?;
        let at = read_place(&mut r)?;
        let time = Timestamp(r.i64("time")?);
        let request = Request::decode(&RawFrame {
            kind: kind::REQUEST,
            meta: r.rest(),
            payload: frame.payload.clone(),
        })?;
        Ok(Self {
            order: (placed == 1).then_some(order),
            at,
            time,
            request,
        })
    }
}
