//! The file system towards the kernel: requests in, replies out.
//!
//! Node ids are object ids (the mount's root is 1, whatever object it is), so nothing has to be
//! remembered about what the kernel looked up. Names and attributes are valid as long as their
//! leases, and are answered from memory under them; files are read and written directly (COH-1).

mod answer;
mod ask;
mod attributes;
mod forget;
mod listing;
mod lock;
mod openers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use protocol::fs::{Operation, Outcome};
use protocol::units::ObjectId;

use crate::abi::{
    Body, Fields, IN_HEADER_BYTES, InHeader, MAJOR, MINOR, MINOR_MIN, ROOT_ID, ShortRequest, init,
    opcode,
};
use crate::session::Session;
use crate::transport::Transport;
use listing::Listings;
use openers::Openers;

pub(crate) use answer::Shape;

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const EPROTO: i32 = 71;

/// Threads that take requests from the kernel. Each sends a request on and takes the next, so a
/// few keep many applications busy.
pub const THREADS: usize = 3;
/// Longest write in one request, in bytes and in pages.
const WRITE_BYTES_MAX: u32 = 1 << 20;
const PAGES_MAX: u16 = 256;
/// Requests without an application waiting (asynchronous I/O, releases) that the kernel lets
/// be under way, and from which on it takes the mount for congested.
const BACKGROUND_MAX: u16 = 256;
const CONGESTION: u16 = 192;

/// A mounted volume.
pub struct FileSystem {
    transport: Arc<dyn Transport>,
    session: Arc<Session>,
    root: ObjectId,
    listings: Listings,
    next_handle: AtomicU64,
    openers: Openers,
    /// The kernel says more with SETXATTR than it did at first.
    long_setxattr: AtomicBool,
    /// Held for reading from looking into the cache until the kernel has the answer.
    answering: RwLock<()>,
    ready: Mutex<Option<Ready>>,
}

/// Called once the mount is usable.
pub type Ready = Box<dyn FnOnce() + Send>;

impl FileSystem {
    /// Serves `root` of the session's volume to the kernel.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, session: Arc<Session>, root: ObjectId) -> Arc<Self> {
        let this = Arc::new(Self {
            transport,
            session: Arc::clone(&session),
            root,
            listings: Listings(Mutex::new(HashMap::new())),
            next_handle: AtomicU64::new(1),
            openers: Openers::default(),
            long_setxattr: AtomicBool::new(false),
            answering: RwLock::new(()),
            ready: Mutex::new(None),
        });
        session.set_replies(Arc::clone(&this) as Arc<dyn crate::session::Replies>);
        this
    }

    /// Has `ready` called once kernel and file system have agreed and the mount is usable.
    pub fn when_ready(&self, ready: Ready) {
        *self.ready.lock() = Some(ready);
    }

    /// Serves until unmounted, by [`THREADS`] threads, then ends the session.
    pub fn run(self: &Arc<Self>) -> io::Result<()> {
        let threads = (0..THREADS)
            .map(|_| {
                let this = Arc::clone(self);
                std::thread::Builder::new()
                    .name("cairn-fuse".to_owned())
                    .spawn(move || this.take_requests())
            })
            .collect::<io::Result<Vec<_>>>()?;
        let mut result = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(_) => tracing::error!("a thread that serves the kernel panicked"),
            }
        }
        let ended = self.session.end();
        result.and(ended)
    }

    fn take_requests(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            if !self.transport.receive(&mut buffer)? {
                return Ok(());
            }
            match InHeader::decode(&buffer) {
                Ok(header) => {
                    if self.handle(&header, &mut buffer).is_err() {
                        tracing::warn!(opcode = header.opcode, "a request of the kernel is short");
                        self.refuse(&header, EINVAL);
                    }
                }
                Err(error) => tracing::error!(%error, "what the kernel sent is no request"),
            }
        }
    }

    fn object(&self, node: u64) -> ObjectId {
        if node == ROOT_ID {
            self.root
        } else {
            ObjectId(node)
        }
    }

    fn node(&self, object: ObjectId) -> u64 {
        if object == self.root {
            ROOT_ID
        } else {
            object.0
        }
    }

    fn reply(&self, unique: u64, errno: i32, body: &[&[u8]]) {
        if let Err(error) = self.transport.reply(unique, errno, body) {
            tracing::error!(%error, "the kernel did not take an answer");
        }
    }

    fn refuse(&self, header: &InHeader, errno: i32) {
        self.reply(header.unique, errno, &[]);
    }

    fn handle(&self, header: &InHeader, buffer: &mut Vec<u8>) -> Result<(), ShortRequest> {
        match header.opcode {
            opcode::WRITE => return self.write(header, buffer),
            // Nothing is remembered about nodes.
            opcode::FORGET | opcode::BATCH_FORGET | opcode::DESTROY => return Ok(()),
            _ => {}
        }
        let mut fields = Fields::new(&buffer[IN_HEADER_BYTES..]);
        match header.opcode {
            opcode::INIT => self.init(header, &mut fields),
            opcode::INTERRUPT => {
                let unique = fields.u64()?;
                // Unknown: perhaps another thread is just taking it; the kernel asks again.
                if !self.session.interrupt(unique) {
                    self.refuse(header, EAGAIN);
                }
                Ok(())
            }
            opcode::RELEASEDIR => {
                let handle = fields.u64()?;
                self.listings.forget(handle);
                self.session.losses().closed(handle);
                self.openers.closed(handle);
                self.session.close(self.object(header.node));
                self.refuse(header, 0);
                Ok(())
            }
            opcode::RELEASE => {
                let handle = fields.u64()?;
                self.session.losses().closed(handle);
                self.openers.closed(handle);
                self.unlock_released(handle, self.object(header.node));
                self.session.close(self.object(header.node));
                self.refuse(header, 0);
                Ok(())
            }
            opcode::FLUSH => {
                let handle = fields.u64()?;
                fields.skip(8)?;
                self.close(header, handle, fields.u64()?);
                Ok(())
            }
            opcode::GETLK | opcode::SETLK | opcode::SETLKW => self.lock(header, &mut fields),
            opcode::READDIR | opcode::READDIRPLUS => self.read_directory(header, &mut fields),
            _ => self.ask(header, fields),
        }
    }

    /// A descriptor is closed: the last chance to tell of a loss. What was answered early of its file is
    /// on its way, and may stay so.
    fn close(&self, header: &InHeader, handle: u64, owner: u64) {
        let lost = self.session.locks().are_lost(handle).then_some(EIO);
        let told = self.session.losses().tells_at_close(handle).or(lost);
        if !self.unlock_at_close(header, owner, told) {
            self.refuse(header, told.unwrap_or(0));
        }
    }

    fn init(&self, header: &InHeader, fields: &mut Fields<'_>) -> Result<(), ShortRequest> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        let readahead = fields.u32()?;
        if major < MAJOR || (major == MAJOR && minor < MINOR_MIN) {
            tracing::error!(major, minor, "this kernel's FUSE is too old");
            self.refuse(header, EPROTO);
            return Ok(());
        }
        let mut offered = u64::from(fields.u32()?);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(fields.u32()?) << 32;
        }
        let wanted = init::ASYNC_READ
            | init::POSIX_LOCKS
            | init::FLOCK_LOCKS
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2
            | init::DONT_MASK
            | init::POSIX_ACL
            | init::SETXATTR_EXT
            | init::INIT_EXT
            | init::DIRECT_IO_ALLOW_MMAP;
        let flags = offered & wanted;
        let long_setxattr = flags & init::SETXATTR_EXT != 0;
        self.long_setxattr.store(long_setxattr, Ordering::Relaxed);
        tracing::debug!(minor, offered, flags, "the kernel's FUSE");
        let mut body = Body::with_capacity(64);
        let low = u32::try_from(flags & u64::from(u32::MAX)).expect("masked");
        let high = u32::try_from(flags >> 32).expect("shifted");
        // A newer major offers its own and asks again with ours.
        body.u32(MAJOR).u32(minor.min(MINOR)).u32(readahead);
        body.u32(low).u16(BACKGROUND_MAX).u16(CONGESTION);
        body.u32(WRITE_BYTES_MAX).u32(1).u16(PAGES_MAX).u16(0);
        body.u32(high).zeros(28);
        self.reply(header.unique, 0, &[&body.0]);
        if let Some(ready) = self.ready.lock().take() {
            ready();
        }
        Ok(())
    }

    /// The object that a path below the volume's root names, as its directories are now.
    pub fn resolve(session: &Session, path: &[u8]) -> Result<ObjectId, i32> {
        let mut at = ObjectId::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|n| !n.is_empty()) {
            if name == b"." || name == b".." {
                return Err(EINVAL);
            }
            let lookup = Operation::Lookup {
                parent: at,
                name: bytes::Bytes::copy_from_slice(name),
            };
            match session.call(lookup) {
                Outcome::Entry(a) => at = a.object,
                Outcome::Error(errno) => return Err(errno),
                _ => return Err(EPROTO),
            }
        }
        match session.call(Operation::GetAttributes { object: at }) {
            Outcome::Attributes(a) if a.mode & 0o170_000 == 0o040_000 => Ok(at),
            Outcome::Attributes(_) => Err(20),
            Outcome::Error(errno) => Err(errno),
            _ => Err(EPROTO),
        }
    }
}
