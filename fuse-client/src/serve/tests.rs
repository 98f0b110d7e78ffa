//! What the kernel is answered, by a kernel that takes notes.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::fs::{Attributes, Operation, Outcome, Reply, SLOT_NONE};
use protocol::units::{ObjectId, Sequence};

use super::{FileSystem, Shape};
use crate::session::{Session, clock};
use crate::transport::Transport;

const DIRECTORY: ObjectId = ObjectId(7);

/// The kernel.
#[derive(Default)]
struct Notes {
    notified: Mutex<u32>,
    /// What another thread does before the next answer arrives.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Transport for Notes {
    fn receive(&self, _buffer: &mut Vec<u8>) -> io::Result<bool> {
        Ok(false)
    }

    fn reply(&self, _unique: u64, _errno: i32, _body: &[&[u8]]) -> io::Result<()> {
        if let Some(meanwhile) = self.meanwhile.lock().take() {
            meanwhile();
        }
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
