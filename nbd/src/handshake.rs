//! What a connection agrees on before requests: fixed newstyle negotiation.
//!
//! ```text
//!  Greeting ─flags─► Options ◄──────────────┐
//!                      │ EXPORT_NAME, INFO, GO, *_META_CONTEXT
//!                      ├──────► Asking ─answer─┘ (GO, EXPORT_NAME: ──► over, Transmit)
//!                      │ STARTTLS ──► over, StartTls (the caller begins anew inside)
//!                      └ ABORT ──► over, End
//! ```
//!
//! The caller sends [`Handshake::greeting`], then feeds what comes to [`Handshake::step`] and does what
//! that returns; it answers [`Step::Describe`] by [`Handshake::described`]. Whatever a client sends, one
//! option is held at a time, of at most [`OPTION_BYTES_MAX`], and at most [`OPTIONS_MAX`] in all.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::numbers::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, IHAVEOPT,
    NBDMAGIC, PAYLOAD_BYTES_MAX, REP_MAGIC, handshake_flag, info, option, rep, transmission_flag,
};
use crate::options::{self, InfoRequest, MetaRequest};

/// Longest data of an option: a name and some queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Options of one connection; real clients send half a dozen.
pub const OPTIONS_MAX: u32 = 256;
/// Bytes of an option before its data.
const OPTION_HEADER_BYTES: usize = 16;
/// Zeros after the answer to EXPORT_NAME, for clients that want them.
const ZEROES: usize = 124;

/// What a disk is called and may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its own name; a client may have said another one that means it.
    pub name: String,
    /// For people.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// This client may change nothing.
    pub read_only: bool,
}

/// What TLS is for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// It cannot be had, or is there already.
    Settled,
    /// The client may ask for it.
    Offered,
    /// Nothing is said to a client before it asks for it.
    Required,
}

/// Why a client is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is nothing of that name, or not for this client.
    Unknown,
    /// As many as may be are connected, or this client may not.
    Policy,
    /// The disk cannot be reached now.
    Shutdown,
}

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The disk.
    pub export: Export,
    /// Replies are structured.
    pub structured: bool,
    /// `base:allocation` may be asked for.
    pub allocation: bool,
}

/// What the caller does next; what [`Handshake::take_output`] gives is sent before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Feed more bytes.
    More,
    /// Say what is served under this name: [`Handshake::described`].
    Describe(String),
    /// Say what names there are: [`Handshake::listed`].
    List,
    /// Do the handshake of TLS, and begin anew inside.
    StartTls,
    /// Requests follow.
    Transmit(Box<Agreed>),
    /// The client leaves.
    End,
}

/// Why a connection is closed in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Flags that were not offered.
    #[error("the client's flags {0:#x} are not known")]
    Flags(u32),
    /// Something else than an option.
    #[error("{0:#x} does not begin an option")]
    Magic(u64),
    /// Longer than anything that means something.
    #[error("an option has {0} bytes of data")]
    Length(u32),
    /// It never ends.
    #[error("more than {OPTIONS_MAX} options came")]
    Count,
    /// There is no other way to refuse an old client.
    #[error("the export that an old client asks for cannot be served to it")]
    Refused,
    /// Bytes came while the answer was being looked for, or after TLS was asked for.
    #[error("bytes came before their turn")]
    Early,
}

/// Why a description is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asking {
    Old,
    Info { go: bool, request: InfoRequest },
    Meta { set: bool, request: MetaRequest },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Greeting,
    Options,
    Asking(Asking),
    Listing,
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    security: Security,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    selected: Option<String>,
    options: u32,
    output: BytesMut,
}

impl Handshake {
    /// A connection that begins.
    #[must_use]
    pub fn new(security: Security) -> Self {
        Self {
            state: State::Greeting,
            security,
            no_zeroes: false,
            structured: false,
            selected: None,
            options: 0,
            output: BytesMut::new(),
        }
    }

    /// The same connection inside of TLS: the greeting is over, everything else is forgotten.
    #[must_use]
    pub fn inside_tls(self) -> Self {
        Self {
            state: State::Options,
            no_zeroes: self.no_zeroes,
            options: self.options,
            ..Self::new(Security::Settled)
        }
    }

    /// The server's first words.
    #[must_use]
    pub fn greeting() -> Bytes {
        let mut bytes = BytesMut::with_capacity(18);
        bytes.put_u64(NBDMAGIC);
        bytes.put_u64(IHAVEOPT);
        bytes.put_u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        bytes.freeze()
    }

    /// What is to be sent.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Takes what it understands from the bytes that came.
    pub fn step(&mut self, input: &mut BytesMut) -> Result<Step, Violation> {
        loop {
            match &self.state {
                State::Greeting => {
                    let Ok(flags) = input.as_ref().try_get_u32() else {
                        return Ok(Step::More);
                    };
                    input.advance(4);
                    self.greeted(flags)?;
                }
                State::Options => {
                    let Some((option, data)) = take_option(input)? else {
                        return Ok(Step::More);
                    };
                    self.options += 1;
                    if self.options > OPTIONS_MAX {
                        return Err(Violation::Count);
                    }
                    if let Some(step) = self.option(option, data)? {
                        // What a client sent ahead in the open must not count as said inside TLS.
                        let ahead = step == Step::StartTls && !input.is_empty();
                        return if ahead {
                            Err(Violation::Early)
                        } else {
                            Ok(step)
                        };
                    }
                }
                State::Asking(_) | State::Listing | State::Over => return Err(Violation::Early),
            }
        }
    }

    fn greeted(&mut self, flags: u32) -> Result<(), Violation> {
        const FIXED: u32 = handshake_flag::FIXED_NEWSTYLE as u32;
        const NO_ZEROES: u32 = handshake_flag::NO_ZEROES as u32;
        if flags & !(FIXED | NO_ZEROES) != 0 {
            return Err(Violation::Flags(flags));
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        self.state = State::Options;
        Ok(())
    }

    fn option(&mut self, option: u32, data: Bytes) -> Result<Option<Step>, Violation> {
        let open = self.security == Security::Required;
        match option {
            option::ABORT => {
                self.reply(option, rep::ACK, &[]);
                self.state = State::Over;
                return Ok(Some(Step::End));
            }
            option::STARTTLS => return Ok(self.start_tls(&data)),
            option::EXPORT_NAME if open => return Err(Violation::Refused),
            _ if open => self.reply(option, rep::ERR_TLS_REQD, b"TLS is required"),
            option::EXPORT_NAME => {
                let name = options::name(data).map_err(|_| Violation::Refused)?;
                self.state = State::Asking(Asking::Old);
                return Ok(Some(Step::Describe(name)));
            }
            option::LIST if data.is_empty() => {
                self.state = State::Listing;
                return Ok(Some(Step::List));
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, rep::ACK, &[]);
            }
            option::INFO | option::GO => match options::info(data) {
                Ok(request) => {
                    let go = option == option::GO;
                    let name = request.name.clone();
                    self.state = State::Asking(Asking::Info { go, request });
                    return Ok(Some(Step::Describe(name)));
                }
                Err(_) => self.reply(option, rep::ERR_INVALID, &[]),
            },
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let set = option == option::SET_META_CONTEXT;
                if set {
                    self.selected = None; // also where this one fails
                }
                match options::meta(data).ok().filter(|_| self.structured) {
                    Some(request) => {
                        let name = request.name.clone();
                        self.state = State::Asking(Asking::Meta { set, request });
                        return Ok(Some(Step::Describe(name)));
                    }
                    None => self.reply(option, rep::ERR_INVALID, &[]),
                }
            }
            option::LIST | option::STRUCTURED_REPLY => self.reply(option, rep::ERR_INVALID, &[]),
            _ => self.reply(option, rep::ERR_UNSUP, &[]),
        }
        Ok(None)
    }

    fn start_tls(&mut self, data: &Bytes) -> Option<Step> {
        if self.security == Security::Settled {
            self.reply(option::STARTTLS, rep::ERR_POLICY, b"there is no TLS here");
            return None;
        }
        if !data.is_empty() {
            self.reply(option::STARTTLS, rep::ERR_INVALID, &[]);
            return None;
        }
        self.reply(option::STARTTLS, rep::ACK, &[]);
        self.state = State::Over;
        Some(Step::StartTls)
    }

    /// The answer to [`Step::List`].
    pub fn listed(&mut self, names: &[String]) {
        for name in names {
            let mut data = BytesMut::new();
            put_text(&mut data, name);
            self.reply(option::LIST, rep::SERVER, &data);
        }
        self.reply(option::LIST, rep::ACK, &[]);
        self.state = State::Options;
    }

    /// The answer to [`Step::Describe`].
    pub fn described(&mut self, found: Result<Export, Refusal>) -> Result<Step, Violation> {
        let State::Asking(asking) = std::mem::replace(&mut self.state, State::Options) else {
            return Err(Violation::Early);
        };
        match (asking, found) {
            (Asking::Old, Err(_)) => return Err(Violation::Refused),
            (Asking::Old, Ok(export)) => {
                self.output.put_u64(export.size);
                self.output.put_u16(self.flags(&export));
                if !self.no_zeroes {
                    self.output.put_bytes(0, ZEROES);
                }
                return Ok(self.transmit(export));
            }
            (Asking::Info { go, .. }, Err(refusal)) => self.refuse(info_option(go), refusal),
            (Asking::Meta { set, .. }, Err(refusal)) => self.refuse(meta_option(set), refusal),
            (Asking::Info { go, request }, Ok(export)) => {
                self.describe(info_option(go), &request, &export);
                if go {
                    return Ok(self.transmit(export));
                }
            }
            (Asking::Meta { set, request }, Ok(export)) => self.contexts(set, &request, export),
        }
        Ok(Step::More)
    }

    fn transmit(&mut self, export: Export) -> Step {
        self.state = State::Over;
        let allocation = self.selected.as_ref() == Some(&export.name);
        Step::Transmit(Box::new(Agreed {
            structured: self.structured,
            allocation,
            export,
        }))
    }

    fn refuse(&mut self, option: u32, refusal: Refusal) {
        let kind = match refusal {
            Refusal::Unknown => rep::ERR_UNKNOWN,
            Refusal::Policy => rep::ERR_POLICY,
            Refusal::Shutdown => rep::ERR_SHUTDOWN,
        };
        self.reply(option, kind, &[]);
    }

    fn flags(&self, export: &Export) -> u16 {
        use transmission_flag::{
            CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH,
            SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
        };
        let structured = if self.structured { SEND_DF } else { 0 };
        let both = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN | structured;
        if export.read_only {
            both | READ_ONLY
        } else {
            both | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        }
    }

    fn describe(&mut self, option: u32, request: &InfoRequest, export: &Export) {
        let flags = self.flags(export);
        let mut data = BytesMut::new();
        data.put_u16(info::EXPORT);
        data.put_u64(export.size);
        data.put_u16(flags);
        self.reply(option, rep::INFO, &data);
        for (kind, text) in [
            (info::NAME, &export.name),
            (info::DESCRIPTION, &export.description),
        ] {
            if request.wants.contains(&kind) {
                data.clear();
                data.put_u16(kind);
                data.put_slice(text.as_bytes());
                self.reply(option, rep::INFO, &data);
            }
        }
        if request.wants.contains(&info::BLOCK_SIZE) {
            data.clear();
            data.put_u16(info::BLOCK_SIZE);
            data.put_u32(BLOCK_BYTES_MIN);
            data.put_u32(BLOCK_BYTES_PREFERRED);
            data.put_u32(PAYLOAD_BYTES_MAX);
            self.reply(option, rep::INFO, &data);
        }
        self.reply(option, rep::ACK, &[]);
    }

    fn contexts(&mut self, set: bool, request: &MetaRequest, export: Export) {
        let option = meta_option(set);
        let named = |query: &String| query == BASE_ALLOCATION || (!set && query == "base:");
        let all = !set && request.queries.is_empty();
        if all || request.queries.iter().any(named) {
            let mut data = BytesMut::new();
            data.put_u32(if set { BASE_ALLOCATION_ID } else { 0 });
            data.put_slice(BASE_ALLOCATION.as_bytes());
            self.reply(option, rep::META_CONTEXT, &data);
            if set {
                self.selected = Some(export.name);
            }
        }
        self.reply(option, rep::ACK, &[]);
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.output.put_u64(REP_MAGIC);
        self.output.put_u32(option);
        self.output.put_u32(kind);
        let len = u32::try_from(data.len()).expect("replies are short");
        self.output.put_u32(len);
        self.output.put_slice(data);
    }
}

fn info_option(go: bool) -> u32 {
    if go { option::GO } else { option::INFO }
}

fn meta_option(set: bool) -> u32 {
    if set {
        option::SET_META_CONTEXT
    } else {
        option::LIST_META_CONTEXT
    }
}

fn put_text(data: &mut BytesMut, text: &str) {
    data.put_u32(u32::try_from(text.len()).expect("names are short"));
    data.put_slice(text.as_bytes());
}

/// The next option, once all of it is there.
fn take_option(input: &mut BytesMut) -> Result<Option<(u32, Bytes)>, Violation> {
    let mut header = input.as_ref();
    let (Ok(magic), Ok(option), Ok(len)) = (
        header.try_get_u64(),
        header.try_get_u32(),
        header.try_get_u32(),
    ) else {
        return Ok(None);
    };
    if magic != IHAVEOPT {
        return Err(Violation::Magic(magic));
    }
    if len > OPTION_BYTES_MAX {
        return Err(Violation::Length(len));
    }
    let all = OPTION_HEADER_BYTES + len as usize;
    if input.len() < all {
        return Ok(None);
    }
    input.advance(OPTION_HEADER_BYTES);
    Ok(Some((option, input.split_to(len as usize).freeze())))
}
