//! What the kernel is answered, by a kernel that takes notes.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::fs::{Attributes, Operation, Outcome, Reply, SLOT_NONE};
use protocol::units::{ObjectId, Sequence};

use super::{FileSystem, Shape};
use crate::session::leases::Fresh;
use crate::session::{Session, Waiting, clock};
use crate::transport::Transport;

const ENOSPC: i32 = 28;
const DIRECTORY: ObjectId = ObjectId(7);

/// The kernel.
#[derive(Default)]
struct Notes {
    errors: Mutex<Vec<i32>>,
    notified: Mutex<u32>,
    /// What another thread does before the next answer arrives.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Transport for Notes {
    fn receive(&self, _buffer: &mut Vec<u8>) -> io::Result<bool> {
        Ok(false)
    }

    fn reply(&self, _unique: u64, errno: i32, _body: &[&[u8]]) -> io::Result<()> {
        if let Some(meanwhile) = self.meanwhile.lock().take() {
            meanwhile();
        }
        self.errors.lock().push(errno);
        Ok(())
    }

    fn notify(&self, _code: i32, _body: &[&[u8]]) -> io::Result<bool> {
        *self.notified.lock() += 1;
        Ok(true)
    }
}

struct Bench {
    kernel: Arc<Notes>,
    session: Arc<Session>,
    system: Arc<FileSystem>,
}

impl Bench {
    fn new() -> Self {
        let kernel = Arc::new(Notes::default());
        let session = Session::unconnected();
        let transport = Arc::clone(&kernel) as Arc<dyn Transport>;
        let system = FileSystem::new(transport, Arc::clone(&session), ObjectId::ROOT);
        Self {
            kernel,
            session,
            system,
        }
    }

    /// The errno with which a call of this shape is answered when it is done.
    fn done(&self, shape: Shape) -> Option<i32> {
        let waiting = Waiting {
            unique: 1,
            thread: 0,
            through: None,
            shape,
        };
        self.system.tell(waiting, Outcome::Done, Fresh::default());
        self.kernel.errors.lock().pop()
    }
}

#[test]
fn cl_1_a_close_that_gives_locks_back_tells_what_the_primary_refused_a_change_with() {
    let bench = Bench::new();
    let closed = |told| bench.done(Shape::Closed { told });
    assert_eq!(closed(Some(ENOSPC)), Some(ENOSPC));
    assert_eq!(closed(None), Some(0));
}

#[test]
fn cl_1_a_sync_of_the_whole_mount_tells_what_was_refused_after_the_last_close() {
    let bench = Bench::new();
    let losses = bench.session.losses();
    losses.opened(1, ObjectId::ROOT);
    losses.refused(DIRECTORY, ENOSPC);
    let synced = |all| bench.done(Shape::Synced { handle: 1, all });
    assert_eq!(synced(false), Some(0), "it is not about that");
    assert_eq!(synced(true), Some(ENOSPC));
    assert_eq!(synced(true), Some(0), "once");
    losses.refused(DIRECTORY, ENOSPC);
    assert!(bench.session.end().is_err(), "nobody was told");
    let quiet = Bench::new();
    assert!(quiet.session.end().is_ok());
}

#[test]
fn coh_1_the_kernel_keeps_no_attributes_that_another_thread_changed_before_it_had_them() {
    let bench = Bench::new();
    let look = Operation::GetAttributes { object: DIRECTORY };
    let attributes = Attributes {
        object: DIRECTORY,
        ..Attributes::default()
    };
    let reply = Reply {
        slot: SLOT_NONE,
        number: 1,
        sequence: Sequence(1),
        stable: Sequence(1),
        lease_ms: 60_000,
        changed: false,
        authors: Vec::new(),
        leases: vec![DIRECTORY],
        old: Vec::new(),
        exclusive: None,
        times: Vec::new(),
        busy: Vec::new(),
        directories: Vec::new(),
        outcome: Outcome::Attributes(attributes),
    };
    let now = clock();
    let mut cache = bench.session.cache().lock();
    cache.answered(&look, &reply, now, false, now);
    drop(cache);
    let answer = || bench.system.answer_kept(1, &look, Shape::Attributes);
    assert!(answer().is_none(), "it is known");
    assert_eq!(*bench.kernel.notified.lock(), 0);
    let session = Arc::clone(&bench.session);
    *bench.kernel.meanwhile.lock() = Some(Box::new(move || {
        let unlink = Operation::Unlink {
            parent: DIRECTORY,
            name: bytes::Bytes::from_static(b"file"),
        };
        session.cache().lock().asks(&unlink, false, clock());
    }));
    assert!(answer().is_none(), "it is known");
    assert_eq!(*bench.kernel.notified.lock(), 1);
}
