//! The control socket: one JSON value a line. The client sends one [`ControlRequest`]; the
//! daemon answers with any number of progress and item lines and one last line, `ok` or `error`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::node_rpc::Refusal;
use crate::volume::{Protocol, Quorum, VolumeKind};

/// Longest line on the control socket.
pub const CONTROL_LINE_BYTES_MAX: usize = 1 << 20;

/// Exit statuses of commands.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Refused or failed.
    pub const REFUSED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// The local daemon is not reachable.
    pub const NO_DAEMON: u8 = 3;
    /// Refused because data could be lost.
    pub const DATA_LOSS: u8 = 4;
    /// `cairn status`: degraded.
    pub const DEGRADED: u8 = 10;
    /// `cairn status`: unavailable.
    pub const UNAVAILABLE: u8 = 20;
}

/// HOST:/path of a brick, as it was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrickPlace {
    /// A node's name, or a name or address that resolves to it; IPv6 without its brackets.
    pub host: String,
    /// Absolute path of the directory.
    pub path: String,
}

/// `volume create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Name.
    pub name: String,
    /// File system or disk.
    pub kind: VolumeKind,
    /// Bytes; block volumes only.
    pub size_bytes: Option<u64>,
    /// Ack policy.
    pub protocol: Protocol,
    /// Who decides; absent: the daemon chooses and says so.
    pub quorum: Option<Quorum>,
    /// The number after `replica`.
    pub replica: usize,
    /// Bricks in order; the first is the first primary's.
    pub bricks: Vec<BrickPlace>,
    /// `force`.
    pub force: bool,
}

/// `volume add-brick`, `remove-brick`, `replace-brick`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBricks {
    /// Name of the volume.
    pub name: String,
    /// Replicas afterwards; absent where the words do not say.
    pub replica: Option<usize>,
    /// Bricks that come.
    pub add: Vec<BrickPlace>,
    /// Bricks that go.
    pub remove: Vec<BrickPlace>,
    /// Directories that are not empty; fewer good copies. Never the last good copy.
    pub force: bool,
    /// Answer when the data is in place.
    pub wait: bool,
}

/// What a command asks of the local daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// Are you there?
    Ping {},
    /// A one-time code for this node's admission.
    PeerCode {},
    /// Admit a node.
    PeerProbe {
        /// HOST or HOST:PORT.
        address: String,
        /// Its one-time code; not needed for a member.
        code: Option<String>,
        /// Whether it may become a voter.
        voter: bool,
    },
    /// Take a node out of the pool.
    PeerDetach {
        /// Its name.
        node: String,
        /// Also where that needs a new pool epoch, or leaves bricks without their node.
        force: bool,
    },
    /// End this node's own membership.
    PeerLeave {
        /// Also where the pool cannot be asked.
        force: bool,
    },
    /// Let a member vote or not.
    PeerVoter {
        /// Its name.
        node: String,
        /// Whether it votes.
        voter: bool,
    },
    /// Every member and whether it answers.
    PeerStatus {},
    /// Invite a machine to mount volumes: gives a token.
    ClientAdd {
        /// Its name.
        name: String,
        /// Names of the volumes that it may mount; empty: all.
        volumes: Vec<String>,
        /// It may only read them.
        read_only: bool,
    },
    /// Every client.
    ClientList {},
    /// End a client's right, and its mounts.
    ClientRevoke {
        /// Its name.
        name: String,
    },
    /// Make a volume.
    VolumeCreate(CreateVolume),
    /// Other bricks, while the volume is used.
    VolumeBricks(ChangeBricks),
    /// Serve.
    VolumeStart {
        /// Name.
        name: String,
    },
    /// Serve no more.
    VolumeStop {
        /// Name.
        name: String,
    },
    /// Forget the volume; its bricks keep their data, marked as deleted.
    VolumeDelete {
        /// Name.
        name: String,
    },
    /// Names of all volumes.
    VolumeList {},
    /// Configuration.
    VolumeInfo {
        /// Name; absent: all.
        name: Option<String>,
    },
    /// Live state.
    VolumeStatus {
        /// Name; absent: all.
        name: Option<String>,
    },
    /// Serve a block volume's disk by NBD.
    VolumeExport {
        /// Name.
        name: String,
        /// ADDR:PORT or unix:PATH.
        nbd: String,
        /// The node that serves it; absent: this one.
        node: Option<String>,
        /// Also to other machines without TLS.
        insecure: bool,
    },
    /// Serve it no more.
    VolumeUnexport {
        /// Name.
        name: String,
        /// At this address; absent: at all of the node's.
        nbd: Option<String>,
        /// The node; absent: this one.
        node: Option<String>,
    },
    /// Set an option.
    VolumeSet {
        /// Name.
        name: String,
        /// Option.
        key: String,
        /// Value.
        value: String,
        /// Also where that loses data: a smaller size.
        #[serde(default)]
        force: bool,
    },
    /// Values of options.
    VolumeGet {
        /// Name.
        name: String,
        /// Option; absent: all.
        key: Option<String>,
    },
    /// Back to the default.
    VolumeReset {
        /// Name.
        name: String,
        /// Option; absent: all.
        key: Option<String>,
    },
    /// Move the primary.
    VolumePromote {
        /// Name.
        name: String,
        /// The node that shall be primary.
        node: String,
        /// Also where confirmed writes may be lost.
        force: bool,
    },
    /// End a split brain.
    VolumeResolve {
        /// Name.
        name: String,
        /// The node whose side stays.
        keep: String,
        /// What the others alone hold may be lost.
        force: bool,
    },
    /// What differs between the sides of a split brain, or between a kept side and the volume.
    VolumeDifferences {
        /// Name.
        name: String,
        /// Most rows.
        max: usize,
    },
    /// Drop what a replica keeps of sides that were given up.
    VolumeDropKept {
        /// Name.
        name: String,
        /// The node of the replica.
        node: String,
        /// What it alone held may be lost.
        force: bool,
    },
    /// Resync now.
    VolumeResync {
        /// Name.
        name: String,
        /// Only this node's replica.
        node: Option<String>,
        /// Everything.
        full: bool,
        /// Answer when it has ended.
        wait: bool,
        /// Also where what a replica holds now cannot be kept.
        #[serde(default)]
        force: bool,
    },
    /// Hold resyncs.
    VolumePauseResync {
        /// Name.
        name: String,
    },
    /// Let resyncs go on.
    VolumeResumeResync {
        /// Name.
        name: String,
    },
    /// Compare replicas.
    VolumeVerify {
        /// Name.
        name: String,
        /// Copy from the primary what differs.
        repair: bool,
    },
    /// Everything.
    Status {},
    /// What stands in the way of health.
    Why {
        /// Only this volume.
        volume: Option<String>,
    },
    /// What happened.
    Events {
        /// Go on as events happen.
        follow: bool,
    },
    /// Where a volume is served, for a mount on this machine.
    Locate {
        /// Name.
        volume: String,
    },
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// What is being done, for people.
    Progress {
        /// One line.
        text: String,
    },
    /// One of many results.
    Item(Value),
    /// Done: the last line.
    Ok {
        /// One sentence for people; absent where the facts speak.
        message: Option<String>,
        /// The facts.
        data: Value,
    },
    /// Not done: the last line.
    Error {
        /// One word for programs.
        kind: String,
        /// One sentence.
        message: String,
        /// What to do next.
        hint: String,
        /// Exit status.
        exit_code: u8,
    },
}

impl From<Refusal> for ControlReply {
    fn from(refusal: Refusal) -> Self {
        Self::Error {
            kind: refusal.code,
            message: refusal.message,
            hint: refusal.hint,
            exit_code: refusal.exit_code,
        }
    }
}
