//! From nothing to a session: ask where the volume is, connect, say hello.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use protocol::frame::RawFrame;
use protocol::fs::{Elsewhere, Hello, HelloReply, Place, kind, refusal};
use protocol::ids::VolumeId;
use protocol::node_rpc::{self, LocatedNode, NodeReply, NodeRequest};
use protocol::preamble::Purpose;
use protocol::units::Term;

use crate::connection::{Connection, Connector, FrameReader, Target, send_all};

/// Longest wait for the answer to a hello or a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a node did not give a session.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It could not be reached or did not answer in the protocol.
    #[error("{target}: {source}")]
    Io {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{message}")]
    Refused {
        /// Whether asking again may help.
        lasting: bool,
        /// One sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
    /// Another node is the primary, or none is now.
    #[error("{target} is not the primary")]
    Elsewhere {
        /// Where.
        target: String,
        /// What it said.
        elsewhere: Elsewhere,
    },
}

fn io_error(target: &Target) -> impl Fn(io::Error) -> DialError + '_ {
    move |source| DialError::Io {
        target: target.to_string(),
        source,
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn exchange(
    connection: &dyn Connection,
    frames: &mut FrameReader,
    frame: &RawFrame,
) -> io::Result<RawFrame> {
    let mut bytes = BytesMut::new();
    frame.write_to(&mut bytes);
    connection.set_receive_timeout(Some(ANSWER_TIMEOUT))?;
    send_all(connection, &bytes)?;
    let answer = frames.next(connection)?;
    connection.set_receive_timeout(None)?;
    Ok(answer)
}

fn wrong_kind(kind: u8) -> io::Error {
    invalid(protocol::codec::DecodeError::Invalid {
        what: "the answer's kind",
        value: u64::from(kind),
    })
}

/// Asks a node one thing on a connection of its own.
pub(crate) fn ask(
    connector: &dyn Connector,
    target: &Target,
    request: &NodeRequest,
) -> io::Result<NodeReply> {
    let connection = connector.connect(target, Purpose::Rpc)?;
    let frame = node_rpc::encode(node_rpc::kind::REQUEST, request).map_err(invalid)?;
    let answer = exchange(&*connection, &mut FrameReader::default(), &frame)?;
    connection.shutdown();
    node_rpc::decode(node_rpc::kind::REPLY, &answer).map_err(invalid)
}

/// Where a volume is served, as a node says.
pub(super) struct Located {
    pub(super) volume: VolumeId,
    pub(super) nodes: Vec<LocatedNode>,
}

/// Code of a refusal that passes when the volume is started.
const NOT_STARTED: &str = node_rpc::code::STOPPED;

/// Asks a node where a volume is served.
pub(super) fn locate(
    connector: &dyn Connector,
    target: &Target,
    volume: &str,
) -> Result<Located, DialError> {
    let request = NodeRequest::Locate {
        volume: volume.to_owned(),
    };
    match ask(connector, target, &request).map_err(io_error(target))? {
        NodeReply::Located {
            volume_id, nodes, ..
        } => Ok(Located {
            volume: volume_id,
            nodes,
        }),
        NodeReply::Error(error) => Err(DialError::Refused {
            lasting: error.code != NOT_STARTED,
            message: error.message,
            hint: error.hint,
        }),
        _ => Err(io_error(target)(invalid(
            protocol::codec::DecodeError::Invalid {
                what: "the answer to a question for a volume",
                value: 0,
            },
        ))),
    }
}

/// A connection whose session was welcomed.
pub(super) struct Welcomed {
    pub(super) connection: Box<dyn Connection>,
    pub(super) frames: FrameReader,
    pub(super) known: bool,
    /// The table's mark when the hello was written.
    pub(super) mark: u64,
    pub(super) term: Term,
    /// What it says of what was confirmed before.
    pub(super) ends: Vec<Place>,
    pub(super) gathers: bool,
    pub(super) in_doubt: bool,
    pub(super) object_bytes_max: u64,
}

fn refused(code: u16, message: String) -> DialError {
    let (lasting, hint) = match code {
        refusal::STOPPED => (false, "start it with `cairn volume start`"),
        refusal::FORBIDDEN => (true, "admit this client with `cairn client add`"),
        refusal::VERSION => (
            true,
            "bring client and nodes to versions that work together",
        ),
        _ => (true, "see `cairn volume list` on a node"),
    };
    DialError::Refused {
        lasting,
        message,
        hint: hint.to_owned(),
    }
}

/// Says hello to a node.
pub(super) fn hello(
    connector: &dyn Connector,
    target: &Target,
    volume: VolumeId,
    hello: &Hello,
    mark: u64,
) -> Result<Welcomed, DialError> {
    let mut frames = FrameReader::default();
    let mut ask = || -> io::Result<(Box<dyn Connection>, HelloReply)> {
        let connection = connector.connect(target, Purpose::Client(volume))?;
        let answer = exchange(&*connection, &mut frames, &hello.encode())?;
        if answer.kind != kind::HELLO_REPLY {
            return Err(wrong_kind(answer.kind));
        }
        let reply = HelloReply::decode(&answer).map_err(invalid)?;
        Ok((connection, reply))
    };
    let (connection, reply) = ask().map_err(io_error(target))?;
    match reply {
        HelloReply::Welcome {
            known,
            term,
            ends,
            gathers,
            in_doubt,
            object_bytes_max,
            ..
        } => Ok(Welcomed {
            connection,
            frames,
            known,
            mark,
            term,
            ends,
            gathers,
            in_doubt,
            object_bytes_max,
        }),
        HelloReply::Elsewhere(elsewhere) => Err(DialError::Elsewhere {
            target: target.to_string(),
            elsewhere,
        }),
        HelloReply::Refused { code, message } => Err(refused(code, message)),
    }
}
