//! Reading directories. The primary is asked for more entries than the kernel takes at once; the
//! rest waits at the handle, and only there: a new handle, or going back, asks again.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use protocol::fs::{Attributes, DirectoryEntry, Operation};
use protocol::units::ObjectId;

use super::ask::caller;
use super::{FileSystem, Shape};
use crate::abi::{Body, ENTRY_OUT_BYTES, Fields, InHeader, ShortRequest, dirent_bytes, opcode};
use crate::session::leases::Fresh;
use crate::session::{Waiting, clock};

/// Bytes of entries that the primary is asked for, encoded, and that wait at a handle at most.
const ASK_BYTES: u32 = 64 << 10;
/// Positions after `.` and `..`; larger ones are the primary's cookies.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;
const S_IFDIR: u32 = 0o040_000;

/// What the kernel wants to read.
#[derive(Debug)]
pub(crate) struct Ask {
    handle: u64,
    directory: ObjectId,
    plus: bool,
    size: usize,
    /// What the answer begins with: `.` and `..`, which are not stored.
    body: Vec<u8>,
}

/// Entries that were fetched and not read yet, by handle.
pub(super) struct Listings(pub(super) Mutex<HashMap<u64, Listing>>);

pub(super) struct Listing {
    /// The cookie that the next entry follows.
    cookie: u64,
    entries: VecDeque<DirectoryEntry>,
}

impl Listings {
    pub(super) fn forget(&self, handle: u64) {
        self.0.lock().remove(&handle);
    }

    /// Takes what follows `cookie`, if it is here.
    fn take(&self, handle: u64, cookie: u64) -> Option<Listing> {
        let listing = self.0.lock().remove(&handle)?;
        (listing.cookie == cookie && !listing.entries.is_empty()).then_some(listing)
    }
}

impl FileSystem {
    pub(super) fn read_directory(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<(), ShortRequest> {
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let object = self.object(header.node);
        let plus = header.opcode == opcode::READDIRPLUS;
        let mut body = Body::with_capacity(size.min(ASK_BYTES) as usize);
        for (from, to, name) in [(0, AFTER_DOT, &b"."[..]), (AFTER_DOT, AFTER_DOT_DOT, b"..")] {
            if offset <= from {
                if plus {
                    // Node 0: the kernel takes the name only.
                    body.zeros(ENTRY_OUT_BYTES);
                }
                body.dirent(object.0, to, S_IFDIR, name);
            }
        }
        let cookie = if offset <= AFTER_DOT_DOT { 0 } else { offset };
        let ask = Ask {
            handle,
            directory: object,
            plus,
            size: size as usize,
            body: body.0,
        };
        // From the start the directory is read anew (rewinddir).
        if let Some(listing) = self
            .listings
            .take(handle, cookie)
            .filter(|_| offset > AFTER_DOT_DOT)
        {
            self.list(header.unique, ask, listing.entries);
            return Ok(());
        }
        let waiting = Waiting {
            unique: header.unique,
            thread: header.thread,
            through: None,
            shape: Shape::Directory(Box::new(ask)),
        };
        let operation = Operation::ReadDirectory {
            object,
            cookie,
            bytes_max: size.max(ASK_BYTES),
            plus,
        };
        let caller = self.openers.of(handle, caller(header));
        self.session
            .submit(waiting, caller, operation, bytes::Bytes::new());
        Ok(())
    }

    /// Answers with as many entries as fit and keeps the rest. They may have been read some time ago:
    /// what the kernel may keep of them is what is known now.
    pub(super) fn list(&self, unique: u64, ask: Ask, mut entries: VecDeque<DirectoryEntry>) {
        let _answering = self.answering.read();
        let mut body = Body(ask.body);
        let mut last = None;
        let began = Fresh {
            at: clock(),
            ..Fresh::default()
        };
        let mut handed = Vec::new();
        while let Some(entry) = entries.front() {
            let head = if ask.plus { ENTRY_OUT_BYTES } else { 0 };
            if body.0.len() + head + dirent_bytes(&entry.name) > ask.size {
                break;
            }
            match (&entry.attributes, ask.plus) {
                (Some(a), true) => {
                    let (a, fresh) = self.known_entry(ask.directory, entry, a);
                    handed.push((body.0.len(), entry.object));
                    body.entry(self.node(entry.object), &a, fresh);
                }
                (None, true) => {
                    body.zeros(ENTRY_OUT_BYTES);
                }
                (_, false) => {}
            }
            body.dirent(entry.object.0, entry.cookie, entry.file_type, &entry.name);
            last = Some(entry.cookie);
            entries.pop_front();
        }
        if let (Some(cookie), false) = (last, entries.is_empty()) {
            let listing = Listing { cookie, entries };
            self.listings.0.lock().insert(ask.handle, listing);
        }
        if began.is_old(clock()) {
            handed.iter().for_each(|(at, _)| body.expire_entry(*at));
            handed.clear();
        }
        self.reply(unique, 0, &[&body.0]);
        self.take_back_late(began, handed.into_iter().map(|(_, object)| object));
    }

    /// What is known now of an entry that was read, and for how long.
    fn known_entry(
        &self,
        directory: ObjectId,
        entry: &DirectoryEntry,
        read: &Attributes,
    ) -> (Attributes, Fresh) {
        let (mut cache, now) = (self.session.cache().lock(), clock());
        let known = cache.attributes_of(entry.object, now).unwrap_or(*read);
        let fresh = Fresh {
            names: cache.hand_name(directory, &entry.name, Some(entry.object), now),
            attributes: cache.hand_entry(&known, now),
            at: now,
        };
        (known, fresh)
    }
}
