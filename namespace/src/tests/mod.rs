//! Scenarios by operation, and a model for random ones.

mod acls;
mod collisions;
mod disk;
mod errnos;
mod model;
mod sessions;
mod squash;
mod unnamed;
mod values;

use std::collections::BTreeSet;

use bytes::Bytes;
use protocol::fs::{Attributes, Caller, Operation, Outcome, Request, SLOT_NONE};
use protocol::ids::SessionId;
use protocol::units::{ObjectId, Timestamp};

use crate::memory::MemoryVolume;

pub(crate) const ROOT: ObjectId = ObjectId::ROOT;

/// A volume with a clock, ids and one session.
pub(crate) struct Bench {
    pub(crate) volume: MemoryVolume,
    pub(crate) session: SessionId,
    pub(crate) caller: Caller,
    pub(crate) open: BTreeSet<ObjectId>,
    pub(crate) next: u64,
    /// How far the primary's clock is behind what it was.
    pub(crate) behind: i64,
}

pub(crate) fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            volume: MemoryVolume::new(Timestamp(1)),
            session: SessionId([5; 16]),
            caller: Caller {
                uid: 1000,
                gid: 100,
                umask: 0,
            },
            open: BTreeSet::new(),
            next: 100,
            behind: 0,
        }
    }

    pub(crate) fn request(&mut self, operation: Operation, payload: &[u8]) -> Request {
        self.next += 1;
        Request {
            slot: if operation.changes() { 3 } else { SLOT_NONE },
            number: self.next,
            caller: self.caller,
            operation,
            early: None,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    pub(crate) fn serve(&mut self, request: &Request) -> Outcome {
        let open = self.open.clone();
        self.volume
            .serve(
                self.session,
                ObjectId(self.next),
                Timestamp(self.next as i64 - self.behind),
                &|object| open.contains(&object),
                request,
            )
            .expect("a memory volume serves")
    }

    pub(crate) fn run_with(&mut self, operation: Operation, payload: &[u8]) -> Outcome {
        let request = self.request(operation, payload);
        self.serve(&request)
    }

    pub(crate) fn run(&mut self, operation: Operation) -> Outcome {
        self.run_with(operation, b"")
    }

    pub(crate) fn errno(&mut self, operation: Operation) -> i32 {
        match self.run(operation) {
            Outcome::Error(errno) => errno,
            other => panic!("succeeded: {other:?}"),
        }
    }

    pub(crate) fn entry(&mut self, operation: Operation) -> Attributes {
        match self.run(operation) {
            Outcome::Entry(a) | Outcome::Attributes(a) => a,
            other => panic!("no attributes: {other:?}"),
        }
    }

    pub(crate) fn done(&mut self, operation: Operation) {
        assert_eq!(self.run(operation), Outcome::Done);
    }

    pub(crate) fn file(&mut self, parent: ObjectId, text: &str) -> ObjectId {
        self.entry(Operation::Create {
            parent,
            name: name(text),
            mode: 0o644,
            exclusive: true,
        })
        .object
    }

    pub(crate) fn directory(&mut self, parent: ObjectId, text: &str) -> ObjectId {
        self.entry(Operation::MakeDirectory {
            parent,
            name: name(text),
            mode: 0o755,
        })
        .object
    }

    pub(crate) fn write(&mut self, object: ObjectId, offset: u64, data: &[u8]) -> Outcome {
        let write = Operation::Write {
            object,
            offset,
            append: false,
            kill_privileges: false,
        };
        self.run_with(write, data)
    }

    pub(crate) fn attributes(&mut self, object: ObjectId) -> Attributes {
        self.entry(Operation::GetAttributes { object })
    }

    pub(crate) fn rename(
        &mut self,
        from: ObjectId,
        a: &str,
        to: ObjectId,
        b: &str,
        flags: u32,
    ) -> Outcome {
        self.run(Operation::Rename {
            parent: from,
            name: name(a),
            new_parent: to,
            new_name: name(b),
            flags,
        })
    }

    pub(crate) fn names(&mut self, object: ObjectId, bytes_max: u32) -> Vec<String> {
        let mut all = Vec::new();
        let mut cookie = 0;
        loop {
            let read = Operation::ReadDirectory {
                object,
                cookie,
                bytes_max,
                plus: true,
            };
            let Outcome::Entries(entries) = self.run(read) else {
                panic!("no entries");
            };
            let Some(last) = entries.last() else {
                return all;
            };
            cookie = last.cookie;
            for entry in entries {
                assert_eq!(entry.attributes.map(|a| a.object), Some(entry.object));
                all.push(String::from_utf8_lossy(&entry.name).into_owned());
            }
        }
    }
}
