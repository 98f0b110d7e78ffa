//! Encoding of the messages between a mount and the primary.

use super::changed::{read_directories, read_times, write_directories, write_times};
use super::lease::{read_objects, write_objects};
use super::lock::{read_lock, read_owner, read_range, write_lock, write_owner};
use super::replay::{read_authors, read_places, write_authors, write_places};
use super::{
    Attributes, Bytes, Caller, DecodeError, DirectoryEntry, Elsewhere, FS_VERSION,
    FileSystemStatistics, Hello, HelloReply, NAME_BYTES_MAX, NodeId, ObjectId, Operation, Outcome,
    RawFrame, Reader, Reply, Request, SessionId, SetAttributes, SetTime, Timestamp, VolumeId,
    Writer, kind,
};

fn frame(kind: u8, w: &mut Writer, payload: Bytes) -> RawFrame {
    RawFrame {
        kind,
        meta: w.finish(),
        payload,
    }
}

fn text(r: &mut Reader, what: &'static str) -> Result<String, DecodeError> {
    let bytes = r.bytes(what)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Invalid { what, value: 0 })
}

fn flag(r: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Invalid {
            what,
            value: u64::from(other),
        }),
    }
}

/// A name that can be an entry of a directory. Length is left to the namespace (ENAMETOOLONG).
fn name(r: &mut Reader) -> Result<Bytes, DecodeError> {
    let name = r.bytes("name")?;
    let bad = name.is_empty()
        || name.len() > 16 * NAME_BYTES_MAX
        || name.contains(&b'/')
        || name.contains(&0)
        || &name[..] == b"."
        || &name[..] == b"..";
    if bad {
        return Err(DecodeError::Invalid {
            what: "name",
            value: name.len() as u64,
        });
    }
    Ok(name)
}

impl Hello {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::default();
        w.u16(self.version)
            .id(&self.volume.0)
            .id(&self.session.0)
            .bytes(self.client_name.as_bytes());
        w.i64(self.mounted_at_ms).u8(u8::from(self.read_only));
        w.u32(u32::try_from(self.opens.len()).expect("opens fit a frame"));
        for open in &self.opens {
            w.u64(open.0);
        }
        if self.version >= 2 {
            w.u64(self.confirmed.0.0).u64(self.confirmed.1.0);
        }
        if self.version >= 3 {
            w.u32(u32::try_from(self.kept_terms.len()).expect("few terms"));
            for term in &self.kept_terms {
                w.u64(term.0);
            }
        }
        if self.version >= 7 {
            w.u32(self.leases);
        }
        if self.version >= 8 {
            w.u8(u8::from(self.early));
        }
        frame(kind::HELLO, &mut w, Bytes::new())
    }

    /// From a frame's meta.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let version = r.u16("version")?;
        let volume = VolumeId(r.id("volume")?);
        let session = SessionId(r.id("session")?);
        let client_name = text(&mut r, "client name")?;
        if client_name.len() > 255 {
            return Err(DecodeError::Invalid {
                what: "client name",
                value: client_name.len() as u64,
            });
        }
        let mounted_at_ms = r.i64("mount time")?;
        let read_only = flag(&mut r, "read only")?;
        let count = r.count(8, "opens")?;
        let mut opens = Vec::with_capacity(count);
        for _ in 0..count {
            opens.push(ObjectId(r.u64("open")?));
        }
        // A client of another version is refused by that, not for what it does not say.
        let confirmed = if version < 2 {
            Default::default()
        } else {
            let term = r.term("confirmed term")?;
            (term, r.sequence("confirmed")?)
        };
        let mut kept_terms = Vec::new();
        if version >= 3 {
            for _ in 0..r.count(8, "kept terms")? {
                kept_terms.push(r.term("kept term")?);
            }
        }
        let leases = match version >= 7 {
            true => r.u32("leases")?,
            false => 0,
        };
        let early = version >= 8 && flag(&mut r, "early")?;
        // What a later version says besides is not known here. It is refused by its number, and
        // has to be read for that.
        if version <= FS_VERSION {
            r.end("hello")?;
        }
        Ok(Self {
            version,
            volume,
            session,
            client_name,
            mounted_at_ms,
            read_only,
            opens,
            confirmed,
            kept_terms,
            leases,
            early,
        })
    }
}

impl Elsewhere {
    fn write(&self, w: &mut Writer) {
        w.id(&self.primary.unwrap_or(NodeId::NONE).0)
            .u32(self.retry_ms);
    }

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let node = NodeId(r.id("primary")?);
        Ok(Self {
            primary: (!node.is_none()).then_some(node),
            retry_ms: r.u32("retry")?,
        })
    }

    /// As a frame of kind [`kind::ELSEWHERE`].
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::default();
        self.write(&mut w);
        frame(kind::ELSEWHERE, &mut w, Bytes::new())
    }

    /// From a frame's meta.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let this = Self::read(&mut r)?;
        r.end("elsewhere")?;
        Ok(this)
    }
}

impl HelloReply {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::default();
        match self {
            Self::Welcome {
                version,
                term,
                known,
                session_timeout_ms,
                block,
                ends,
                gathers,
                in_doubt,
                object_bytes_max,
            } => {
                w.u8(1).u16(*version).u64(term.0).u8(u8::from(*known));
                w.u32(*session_timeout_ms).u8(u8::from(*block));
                write_places(&mut w, ends);
                w.u8(u8::from(*gathers)).u8(u8::from(*in_doubt));
                w.u64(*object_bytes_max);
            }
            Self::Elsewhere(elsewhere) => {
                w.u8(2);
                elsewhere.write(&mut w);
            }
            Self::Refused { code, message } => {
                w.u8(3).u16(*code).bytes(message.as_bytes());
            }
        }
        frame(kind::HELLO_REPLY, &mut w, Bytes::new())
    }

    /// From a frame's meta.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let this = match r.u8("hello reply")? {
            1 => Self::Welcome {
                version: r.u16("version")?,
                term: r.term("term")?,
                known: flag(&mut r, "known")?,
                session_timeout_ms: r.u32("session timeout")?,
                block: flag(&mut r, "block")?,
                ends: read_places(&mut r)?,
                gathers: flag(&mut r, "gathers")?,
                in_doubt: flag(&mut r, "in doubt")?,
                object_bytes_max: r.u64("longest file")?,
            },
            2 => Self::Elsewhere(Elsewhere::read(&mut r)?),
            3 => Self::Refused {
                code: r.u16("code")?,
                message: text(&mut r, "message")?,
            },
            other => {
                return Err(DecodeError::Invalid {
                    what: "hello reply",
                    value: u64::from(other),
                });
            }
        };
        r.end("hello reply")?;
        Ok(this)
    }
}

fn encode_set(w: &mut Writer, set: &SetAttributes) {
    let bit = |on: bool, at: u8| u8::from(on) << at;
    w.u8(bit(set.mode.is_some(), 0)
        | bit(set.uid.is_some(), 1)
        | bit(set.gid.is_some(), 2)
        | bit(set.size.is_some(), 3)
        | bit(set.kill_privileges, 4));
    w.u32(set.mode.unwrap_or(0))
        .u32(set.uid.unwrap_or(0))
        .u32(set.gid.unwrap_or(0));
    w.u64(set.size.unwrap_or(0));
    for time in [set.atime, set.mtime] {
        match time {
            None => w.u8(0).i64(0),
            Some(SetTime::Now) => w.u8(1).i64(0),
            Some(SetTime::At(at)) => w.u8(2).i64(at.0),
        };
    }
}

fn decode_set(r: &mut Reader) -> Result<SetAttributes, DecodeError> {
    let bits = r.u8("attribute bits")?;
    if bits >= 1 << 5 {
        return Err(DecodeError::Invalid {
            what: "attribute bits",
            value: u64::from(bits),
        });
    }
    let has = |at: u8| bits & (1 << at) != 0;
    let mode = r.u32("mode")?;
    let uid = r.u32("uid")?;
    let gid = r.u32("gid")?;
    let size = r.u64("size")?;
    let mut times = [None; 2];
    for time in &mut times {
        let how = r.u8("time kind")?;
        let at = r.i64("time")?;
        *time = match how {
            0 => None,
            1 => Some(SetTime::Now),
            2 => Some(SetTime::At(Timestamp(at))),
            other => {
                return Err(DecodeError::Invalid {
                    what: "time kind",
                    value: u64::from(other),
                });
            }
        };
    }
    Ok(SetAttributes {
        mode: has(0).then_some(mode),
        uid: has(1).then_some(uid),
        gid: has(2).then_some(gid),
        size: has(3).then_some(size),
        atime: times[0],
        mtime: times[1],
        kill_privileges: has(4),
    })
}

// A table: one row an operation.
fn encode_operation(w: &mut Writer, operation: &Operation) {
    match operation {
        Operation::Lookup { parent, name } => {
            w.u8(1);
            w.u64(parent.0);
            w.bytes(name);
        }
        Operation::GetAttributes { object } => {
            w.u8(2);
            w.u64(object.0);
        }
        Operation::SetAttributes { object, set } => {
            w.u8(3);
            w.u64(object.0);
            encode_set(w, set);
        }
        Operation::ReadLink { object } => {
            w.u8(4);
            w.u64(object.0);
        }
        Operation::MakeNode {
            parent,
            name,
            mode,
            rdev,
        } => {
            w.u8(5);
            w.u64(parent.0);
            w.bytes(name);
            w.u32(*mode);
            w.u32(*rdev);
        }
        Operation::MakeDirectory { parent, name, mode } => {
            w.u8(6);
            w.u64(parent.0);
            w.bytes(name);
            w.u32(*mode);
        }
        Operation::Symlink {
            parent,
            name,
            target,
        } => {
            w.u8(7);
            w.u64(parent.0);
            w.bytes(name);
            w.bytes(target);
        }
        Operation::Create {
            parent,
            name,
            mode,
            exclusive,
        } => {
            w.u8(8);
            w.u64(parent.0);
            w.bytes(name);
            w.u32(*mode);
            w.u8(u8::from(*exclusive));
        }
        Operation::Unlink { parent, name } => {
            w.u8(9);
            w.u64(parent.0);
            w.bytes(name);
        }
        Operation::RemoveDirectory { parent, name } => {
            w.u8(10);
            w.u64(parent.0);
            w.bytes(name);
        }
        Operation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            flags,
        } => {
            w.u8(11);
            w.u64(parent.0);
            w.bytes(name);
            w.u64(new_parent.0);
            w.bytes(new_name);
            w.u32(*flags);
        }
        Operation::Link {
            object,
            new_parent,
            new_name,
        } => {
            w.u8(12);
            w.u64(object.0);
            w.u64(new_parent.0);
            w.bytes(new_name);
        }
        Operation::Open { object } => {
            w.u8(13);
            w.u64(object.0);
        }
        Operation::Release { object } => {
            w.u8(14);
            w.u64(object.0);
        }
        Operation::Read {
            object,
            offset,
            len,
        } => {
            w.u8(15);
            w.u64(object.0);
            w.u64(*offset);
            w.u32(*len);
        }
        Operation::Write {
            object,
            offset,
            append,
            kill_privileges,
        } => {
            w.u8(16);
            w.u64(object.0);
            w.u64(*offset);
            w.u8(u8::from(*append));
            w.u8(u8::from(*kill_privileges));
        }
        Operation::Sync { object, data_only } => {
            w.u8(17);
            w.u64(object.0);
            w.u8(u8::from(*data_only));
        }
        Operation::SyncAll => {
            w.u8(18);
        }
        Operation::ReadDirectory {
            object,
            cookie,
            bytes_max,
            plus,
        } => {
            w.u8(19);
            w.u64(object.0);
            w.u64(*cookie);
            w.u32(*bytes_max);
            w.u8(u8::from(*plus));
        }
        Operation::StatFs => {
            w.u8(20);
        }
        Operation::GetXattr { object, name } => {
            w.u8(21);
            w.u64(object.0);
            w.bytes(name);
        }
        Operation::SetXattr {
            object,
            name,
            flags,
        } => {
            w.u8(22);
            w.u64(object.0);
            w.bytes(name);
            w.u32(*flags);
        }
        Operation::ListXattrs { object } => {
            w.u8(23);
            w.u64(object.0);
        }
        Operation::RemoveXattr { object, name } => {
            w.u8(24);
            w.u64(object.0);
            w.bytes(name);
        }
        Operation::Allocate {
            object,
            mode,
            offset,
            len,
        } => {
            w.u8(25);
            w.u64(object.0);
            w.u32(*mode);
            w.u64(*offset);
            w.u64(*len);
        }
        Operation::Seek {
            object,
            offset,
            whence,
        } => {
            w.u8(26);
            w.u64(object.0);
            w.u64(*offset);
            w.u32(*whence);
        }
        Operation::Lock {
            object,
            lock,
            ticket,
            waits,
        } => {
            w.u8(27).u64(object.0);
            write_lock(w, lock);
            w.u64(*ticket).u8(u8::from(*waits));
        }
        Operation::Unlock {
            object,
            owner,
            start,
            end,
        } => {
            w.u8(28).u64(object.0);
            write_owner(w, *owner);
            w.u64(*start).u64(*end);
        }
        Operation::TestLock { object, lock } => {
            w.u8(29).u64(object.0);
            write_lock(w, lock);
        }
        Operation::AwaitLock {
            object,
            lock,
            ticket,
        } => {
            w.u8(30).u64(object.0);
            write_lock(w, lock);
            w.u64(*ticket);
        }
        Operation::ForgetLock { ticket } => {
            w.u8(31).u64(*ticket);
        }
        Operation::MakeUnnamed { parent, mode } => {
            w.u8(32).u64(parent.0).u32(*mode);
        }
        Operation::CopyRange {
            from,
            from_offset,
            object,
            offset,
            len,
        } => {
            w.u8(33).u64(from.0).u64(*from_offset);
            w.u64(object.0).u64(*offset).u32(*len);
        }
    }
}

// A table: one row an operation.
fn decode_operation(r: &mut Reader) -> Result<Operation, DecodeError> {
    Ok(match r.u8("operation")? {
        1 => Operation::Lookup {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
        },
        2 => Operation::GetAttributes {
            object: ObjectId(r.u64("object")?),
        },
        3 => Operation::SetAttributes {
            object: ObjectId(r.u64("object")?),
            set: decode_set(r)?,
        },
        4 => Operation::ReadLink {
            object: ObjectId(r.u64("object")?),
        },
        5 => Operation::MakeNode {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
            mode: r.u32("mode")?,
            rdev: r.u32("rdev")?,
        },
        6 => Operation::MakeDirectory {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
            mode: r.u32("mode")?,
        },
        7 => Operation::Symlink {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
            target: r.bytes("target")?,
        },
        8 => Operation::Create {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
            mode: r.u32("mode")?,
            exclusive: flag(r, "exclusive")?,
        },
        9 => Operation::Unlink {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
        },
        10 => Operation::RemoveDirectory {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
        },
        11 => Operation::Rename {
            parent: ObjectId(r.u64("parent")?),
            name: name(r)?,
            new_parent: ObjectId(r.u64("new_parent")?),
            new_name: name(r)?,
            flags: r.u32("flags")?,
        },
        12 => Operation::Link {
            object: ObjectId(r.u64("object")?),
            new_parent: ObjectId(r.u64("new_parent")?),
            new_name: name(r)?,
        },
        13 => Operation::Open {
            object: ObjectId(r.u64("object")?),
        },
        14 => Operation::Release {
            object: ObjectId(r.u64("object")?),
        },
        15 => Operation::Read {
            object: ObjectId(r.u64("object")?),
            offset: r.u64("offset")?,
            len: r.u32("len")?,
        },
        16 => Operation::Write {
            object: ObjectId(r.u64("object")?),
            offset: r.u64("offset")?,
            append: flag(r, "append")?,
            kill_privileges: flag(r, "kill_privileges")?,
        },
        17 => Operation::Sync {
            object: ObjectId(r.u64("object")?),
            data_only: flag(r, "data_only")?,
        },
        18 => Operation::SyncAll,
        19 => Operation::ReadDirectory {
            object: ObjectId(r.u64("object")?),
            cookie: r.u64("cookie")?,
            bytes_max: r.u32("bytes_max")?,
            plus: flag(r, "plus")?,
        },
        20 => Operation::StatFs,
        21 => Operation::GetXattr {
            object: ObjectId(r.u64("object")?),
            name: r.bytes("name")?,
        },
        22 => Operation::SetXattr {
            object: ObjectId(r.u64("object")?),
            name: r.bytes("name")?,
            flags: r.u32("flags")?,
        },
        23 => Operation::ListXattrs {
            object: ObjectId(r.u64("object")?),
        },
        24 => Operation::RemoveXattr {
            object: ObjectId(r.u64("object")?),
            name: r.bytes("name")?,
        },
        25 => Operation::Allocate {
            object: ObjectId(r.u64("object")?),
            mode: r.u32("mode")?,
            offset: r.u64("offset")?,
            len: r.u64("len")?,
        },
        26 => Operation::Seek {
            object: ObjectId(r.u64("object")?),
            offset: r.u64("offset")?,
            whence: r.u32("whence")?,
        },
        27 => Operation::Lock {
            object: ObjectId(r.u64("object")?),
            lock: read_lock(r)?,
            ticket: r.u64("ticket")?,
            waits: flag(r, "waits")?,
        },
        28 => {
            let object = ObjectId(r.u64("object")?);
            let owner = read_owner(r)?;
            let (start, end) = read_range(r)?;
            Operation::Unlock {
                object,
                owner,
                start,
                end,
            }
        }
        29 => Operation::TestLock {
            object: ObjectId(r.u64("object")?),
            lock: read_lock(r)?,
        },
        30 => Operation::AwaitLock {
            object: ObjectId(r.u64("object")?),
            lock: read_lock(r)?,
            ticket: r.u64("ticket")?,
        },
        31 => Operation::ForgetLock {
            ticket: r.u64("ticket")?,
        },
        32 => Operation::MakeUnnamed {
            parent: ObjectId(r.u64("parent")?),
            mode: r.u32("mode")?,
        },
        33 => Operation::CopyRange {
            from: ObjectId(r.u64("source")?),
            from_offset: r.u64("source's offset")?,
            object: ObjectId(r.u64("object")?),
            offset: r.u64("offset")?,
            len: r.u32("length")?,
        },
        other => {
            return Err(DecodeError::Invalid {
                what: "operation",
                value: u64::from(other),
            });
        }
    })
}

impl Request {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::with_capacity(96);
        w.u16(self.slot)
            .u64(self.number)
            .u32(self.caller.uid)
            .u32(self.caller.gid)
            .u32(self.caller.umask);
        match self.early {
            None => w.u8(0),
            Some(known) => w.u8(1).i64(known.0),
        };
        encode_operation(&mut w, &self.operation);
        frame(kind::REQUEST, &mut w, self.payload.clone())
    }

    /// A request that was answered early, with a later change time of its object. What is no request
    /// stays what it is.
    #[must_use]
    pub fn known_later(frame: &RawFrame, changed_at: Timestamp) -> RawFrame {
        match Self::decode(frame) {
            Ok(request) if request.early.is_some() => Self {
                early: Some(changed_at),
                ..request
            }
            .encode(),
            _ => frame.clone(),
        }
    }

    /// From a frame.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let slot = r.u16("slot")?;
        let number = r.u64("number")?;
        let caller = Caller {
            uid: r.u32("uid")?,
            gid: r.u32("gid")?,
            umask: r.u32("umask")?,
        };
        let early = match flag(&mut r, "early")? {
            false => None,
            true => Some(Timestamp(r.i64("change time")?)),
        };
        let operation = decode_operation(&mut r)?;
        r.end("request")?;
        Ok(Self {
            slot,
            number,
            caller,
            operation,
            early,
            payload: frame.payload.clone(),
        })
    }
}

pub(super) fn encode_attributes(w: &mut Writer, a: &Attributes) {
    w.u64(a.object.0)
        .u32(a.mode)
        .u32(a.nlink)
        .u32(a.uid)
        .u32(a.gid)
        .u32(a.rdev);
    w.u64(a.size).u64(a.blocks);
    w.i64(a.atime.0)
        .i64(a.mtime.0)
        .i64(a.ctime.0)
        .i64(a.btime.0);
}

pub(super) fn decode_attributes(r: &mut Reader) -> Result<Attributes, DecodeError> {
    Ok(Attributes {
        object: ObjectId(r.u64("object")?),
        mode: r.u32("mode")?,
        nlink: r.u32("nlink")?,
        uid: r.u32("uid")?,
        gid: r.u32("gid")?,
        rdev: r.u32("rdev")?,
        size: r.u64("size")?,
        blocks: r.u64("blocks")?,
        atime: Timestamp(r.i64("atime")?),
        mtime: Timestamp(r.i64("mtime")?),
        ctime: Timestamp(r.i64("ctime")?),
        btime: Timestamp(r.i64("btime")?),
    })
}

impl Outcome {
    /// Everything but the payload of [`Outcome::Data`].
    pub fn write(&self, w: &mut Writer) {
        match self {
            Self::Error(errno) => {
                w.u8(0).u32(errno.unsigned_abs());
            }
            Self::Done => {
                w.u8(1);
            }
            Self::Entry(a) => {
                w.u8(2);
                encode_attributes(w, a);
            }
            Self::Attributes(a) => {
                w.u8(3);
                encode_attributes(w, a);
            }
            Self::Data(_) => {
                w.u8(4);
            }
            Self::Written {
                len,
                offset,
                attributes,
            } => {
                w.u8(5).u32(*len).u64(*offset);
                encode_attributes(w, attributes);
            }
            Self::Entries(entries) => {
                w.u8(6)
                    .u32(u32::try_from(entries.len()).expect("entries fit a frame"));
                for entry in entries {
                    w.bytes(&entry.name)
                        .u64(entry.object.0)
                        .u32(entry.file_type);
                    w.u64(entry.cookie).u8(u8::from(entry.attributes.is_some()));
                    if let Some(a) = &entry.attributes {
                        encode_attributes(w, a);
                    }
                }
            }
            Self::FileSystem(s) => {
                w.u8(7)
                    .u64(s.bytes_total)
                    .u64(s.bytes_free)
                    .u64(s.objects)
                    .u64(s.objects_free);
            }
            Self::Offset(at) => {
                w.u8(8).u64(*at);
            }
            Self::Lock(lock) => {
                w.u8(9).u8(u8::from(lock.is_some()));
                if let Some(lock) = lock {
                    write_lock(w, lock);
                }
            }
        }
    }

    /// Reads what [`Outcome::write`] wrote.
    pub fn read(r: &mut Reader, payload: &Bytes) -> Result<Self, DecodeError> {
        Ok(match r.u8("outcome")? {
            0 => {
                let errno = r.u32("errno")?;
                let errno = i32::try_from(errno).ok().filter(|e| (1..4096).contains(e));
                Self::Error(errno.ok_or(DecodeError::Invalid {
                    what: "errno",
                    value: 0,
                })?)
            }
            1 => Self::Done,
            2 => Self::Entry(decode_attributes(r)?),
            3 => Self::Attributes(decode_attributes(r)?),
            4 => Self::Data(payload.clone()),
            5 => Self::Written {
                len: r.u32("length")?,
                offset: r.u64("offset")?,
                attributes: decode_attributes(r)?,
            },
            6 => {
                let count = r.count(25, "entries")?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push(DirectoryEntry {
                        name: name(r)?,
                        object: ObjectId(r.u64("object")?),
                        file_type: r.u32("file type")?,
                        cookie: r.u64("cookie")?,
                        attributes: if flag(r, "attributes")? {
                            Some(decode_attributes(r)?)
                        } else {
                            None
                        },
                    });
                }
                Self::Entries(entries)
            }
            7 => Self::FileSystem(FileSystemStatistics {
                bytes_total: r.u64("total")?,
                bytes_free: r.u64("free")?,
                objects: r.u64("objects")?,
                objects_free: r.u64("free objects")?,
            }),
            8 => Self::Offset(r.u64("offset")?),
            9 => Self::Lock(match flag(r, "a lock")? {
                true => Some(read_lock(r)?),
                false => None,
            }),
            other => {
                return Err(DecodeError::Invalid {
                    what: "outcome",
                    value: u64::from(other),
                });
            }
        })
    }
}

impl Reply {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> RawFrame {
        let mut w = Writer::with_capacity(160);
        w.u16(self.slot)
            .u64(self.number)
            .u64(self.sequence.0)
            .u64(self.stable.0)
            .u16(self.lease_ms)
            .u8(u8::from(self.changed));
        write_authors(&mut w, &self.authors);
        write_objects(&mut w, &self.leases);
        write_objects(&mut w, &self.old);
        w.u64(self.exclusive.unwrap_or_default().0);
        write_times(&mut w, &self.times);
        write_objects(&mut w, &self.busy);
        write_directories(&mut w, &self.directories);
        self.outcome.write(&mut w);
        let payload = match &self.outcome {
            Outcome::Data(data) => data.clone(),
            _ => Bytes::new(),
        };
        frame(kind::REPLY, &mut w, payload)
    }

    /// From a frame.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame.meta.clone());
        let slot = r.u16("slot")?;
        let number = r.u64("number")?;
        let sequence = r.sequence("sequence")?;
        let stable = r.sequence("stable")?;
        let lease_ms = r.u16("lease")?;
        let changed = flag(&mut r, "changed")?;
        let authors = read_authors(&mut r)?;
        let leases = read_objects(&mut r)?;
        let old = read_objects(&mut r)?;
        let exclusive = ObjectId(r.u64("exclusive lease")?);
        let times = read_times(&mut r)?;
        let busy = read_objects(&mut r)?;
        let directories = read_directories(&mut r)?;
        let outcome = Outcome::read(&mut r, &frame.payload)?;
        r.end("reply")?;
        Ok(Self {
            slot,
            number,
            sequence,
            stable,
            lease_ms,
            changed,
            authors,
            leases,
            old,
            exclusive: (exclusive.0 != 0).then_some(exclusive),
            times,
            busy,
            directories,
            outcome,
        })
    }
}
