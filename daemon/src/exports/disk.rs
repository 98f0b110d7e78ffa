//! A block volume's disk as an NBD server needs it, by a session with the volume's primary,
//! wherever that is: a request waits while there is none and takes effect once (FO-1, FO-2).

use std::sync::Arc;

use bytes::Bytes;
use fuse_client::session::Session;
use nbd::disk::{Disk, Doing, Stretch};
use nbd::numbers::Errno;
use protocol::fs::{IO_BYTES_MAX, Operation, Outcome, fallocate, whence};
use protocol::units::ObjectId;
use tokio::sync::oneshot::{self, error::RecvError};

const OBJECT: ObjectId = ObjectId::DISK;
const PUNCH: u32 = fallocate::PUNCH_HOLE | fallocate::KEEP_SIZE;
/// Zeroed by one operation: it touches the checksum of every block.
const ZEROED_BYTES_MAX: u64 = 64 << 20;
const ENXIO: i32 = 6;

/// The disk for one connection.
pub(super) struct SessionDisk {
    session: Arc<Session>,
    /// The connection: what it wrote and is lost, it is told once.
    user: u64,
}

impl SessionDisk {
    pub(super) fn new(session: Arc<Session>, user: u64) -> Self {
        session.uses(user, OBJECT);
        Self { session, user }
    }

    /// Asks now; the answer is awaited later.
    fn ask(&self, operation: Operation, payload: Bytes) -> oneshot::Receiver<Outcome> {
        ask(&self.session, operation, payload)
    }

    /// Changes that have begun, until all are confirmed. What else was lost is not theirs to tell: of a
    /// disk EIO for a write means that write, and for a discard nothing to most clients. The next flush
    /// tells it.
    fn changed(asked: Vec<oneshot::Receiver<Outcome>>) -> Doing<()> {
        Box::pin(async move {
            let mut result = Ok(());
            // All of them: who is answered may write there again.
            for answer in asked {
                result = result.and(outcome(answer.await).map(drop));
            }
            result
        })
    }
}

impl Drop for SessionDisk {
    fn drop(&mut self) {
        self.session.leaves(self.user);
    }
}

fn ask(session: &Session, operation: Operation, payload: Bytes) -> oneshot::Receiver<Outcome> {
    let (told, answer) = oneshot::channel();
    session.ask(operation, payload, move |outcome| {
        // Who asked may be gone.
        let _ = told.send(outcome);
    });
    answer
}

fn outcome(answered: Result<Outcome, RecvError>) -> Result<Outcome, Errno> {
    match answered {
        Ok(Outcome::Error(errno)) => Err(Errno::from_linux(errno)),
        Ok(outcome) => Ok(outcome),
        Err(_) => Err(Errno::Shutdown), // the session ended
    }
}

/// Pieces of a range, each no longer than `most`.
fn pieces(offset: u64, len: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (0..len.div_ceil(most)).map(move |number| number * most);
    starts.map(move |start| (offset + start, most.min(len - start)))
}

impl Disk for SessionDisk {
    fn size(&self) -> Doing<u64> {
        let answer = self.ask(Operation::GetAttributes { object: OBJECT }, Bytes::new());
        Box::pin(async move {
            match outcome(answer.await)? {
                Outcome::Attributes(attributes) => Ok(attributes.size),
                _ => Err(Errno::Io),
            }
        })
    }

    fn read(&self, offset: u64, len: u32) -> Doing<Vec<Bytes>> {
        let pieces = pieces(offset, u64::from(len), u64::from(IO_BYTES_MAX));
        let asked: Vec<_> = pieces
            .map(|(offset, len)| {
                let len = u32::try_from(len).expect("a piece");
                let read = Operation::Read {
                    object: OBJECT,
                    offset,
                    len,
                };
                (len, self.ask(read, Bytes::new()))
            })
            .collect();
        Box::pin(async move {
            let mut all = Vec::with_capacity(asked.len());
            for (len, answer) in asked {
                match outcome(answer.await)? {
                    Outcome::Data(data) if data.len() == len as usize => all.push(data),
                    // It was cut.
                    Outcome::Data(_) => return Err(Errno::Inval),
                    _ => return Err(Errno::Io),
                }
            }
            Ok(all)
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Doing<()> {
        let pieces = pieces(0, data.len() as u64, u64::from(IO_BYTES_MAX));
        let asked = pieces.map(|(at, len)| {
            let write = Operation::Write {
                object: OBJECT,
                offset: offset + at,
                append: false,
                kill_privileges: false,
            };
            let at = usize::try_from(at).expect("within the data");
            let len = usize::try_from(len).expect("a piece");
            self.ask(write, data.slice(at..at + len))
        });
        Self::changed(asked.collect())
    }

    fn zero(&self, offset: u64, len: u64) -> Doing<()> {
        let asked = pieces(offset, len, ZEROED_BYTES_MAX).map(|(offset, len)| {
            let punch = Operation::Allocate {
                object: OBJECT,
                mode: PUNCH,
                offset,
                len,
            };
            self.ask(punch, Bytes::new())
        });
        Self::changed(asked.collect())
    }

    fn flush(&self) -> Doing<()> {
        let sync = Operation::Sync {
            object: OBJECT,
            data_only: true,
        };
        let (answer, session, user) = (self.ask(sync, Bytes::new()), &self.session, self.user);
        let session = Arc::clone(session);
        Box::pin(async move {
            outcome(answer.await).map(drop)?;
            // A primary that lost something says so before it confirms that the rest is stable.
            match session.has_lost(user) {
                true => Err(Errno::Io),
                false => Ok(()),
            }
        })
    }

    fn stretches(&self, offset: u64, len: u64, max: usize) -> Doing<Vec<Stretch>> {
        let session = Arc::clone(&self.session);
        Box::pin(async move {
            let end = offset + len;
            let (mut at, mut found) = (offset, Vec::new());
            while at < end && found.len() < max {
                let data = seek(&session, at, whence::DATA)
                    .await?
                    .unwrap_or(end)
                    .min(end);
                if data > at {
                    found.push(Stretch {
                        len: data - at,
                        hole: true,
                    });
                    at = data;
                    continue;
                }
                let hole = seek(&session, at, whence::HOLE)
                    .await?
                    .unwrap_or(end)
                    .min(end);
                if hole <= at {
                    break; // it was changed between the two looks
                }
                found.push(Stretch {
                    len: hole - at,
                    hole: false,
                });
                at = hole;
            }
            if found.is_empty() {
                // To call everything data is always right.
                found.push(Stretch { len, hole: false });
            }
            Ok(found)
        })
    }
}

/// Where data or a hole is, at `offset` or behind it; `None`: nowhere.
async fn seek(session: &Session, offset: u64, whence: u32) -> Result<Option<u64>, Errno> {
    let seek = Operation::Seek {
        object: OBJECT,
        offset,
        whence,
    };
    match ask(session, seek, Bytes::new()).await {
        Ok(Outcome::Error(ENXIO)) => Ok(None),
        answered => match outcome(answered)? {
            Outcome::Offset(at) => Ok(Some(at)),
            _ => Err(Errno::Io),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_range_and_none_is_too_long() {
        let all = |offset, len| pieces(offset, len, 100).collect::<Vec<_>>();
        assert_eq!(all(7, 250), [(7, 100), (107, 100), (207, 50)]);
        assert_eq!(all(7, 100), [(7, 100)]);
        assert_eq!(all(7, 0), []);
    }
}
