//! The command line's words.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Replicated file and block store.
#[derive(Debug, Parser)]
#[command(
    name = "cairn",
    version,
    max_term_width = 100,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to use colors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags that stand before or after the command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Directory of the local daemon [env: CAIRN_DATA_DIR] [default: /var/lib/cairn]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print facts as JSON: one value on standard output
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Print results and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
    /// When to use colors
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        help_heading = "Global options"
    )]
    pub(crate) color: Color,
    /// Answer questions with yes
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) yes: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground
    Daemon(DaemonArgs),
    /// Nodes of the pool
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Machines that mount volumes and are no nodes
    #[command(subcommand)]
    Client(ClientCommand),
    /// Volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// A brick's directory, without any daemon
    #[command(subcommand)]
    Brick(BrickCommand),
    /// The pool at a glance; exit status 10 degraded, 20 unavailable
    Status {
        /// Print again as things change
        #[arg(long)]
        watch: bool,
    },
    /// What stands in the way of health
    Why {
        /// Only this volume
        volume: Option<String>,
    },
    /// What happened
    Events {
        /// Go on as events happen
        #[arg(long, short)]
        follow: bool,
    },
    /// Mount a volume: HOST[:PORT][,HOST…]:/VOLUME[/subdir] on a directory
    Mount(MountArgs),
    /// Watch a replicated volume survive a failure on this machine, in a minute
    Demo {
        /// Leave everything that was made
        #[arg(long)]
        keep: bool,
    },
    /// How fast it is here, with the limit measured beside it
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Completions for a shell, on standard output
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `cairn bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Files in a directory, against the same on a local one
    Fs {
        /// An existing directory, such as a mount
        dir: PathBuf,
        /// The local directory that sets the limit [default: the system's temporary directory]
        #[arg(long, value_name = "DIR")]
        beside: Option<PathBuf>,
        /// Much less of everything: a quick look
        #[arg(long)]
        small: bool,
    },
    /// Round trips to a node of the pool over TLS, against plain TCP on this machine
    Net {
        /// Its name or address
        node: String,
        /// A quick look
        #[arg(long)]
        small: bool,
    },
    /// What the file system under a directory can do: the limit of a brick there
    Disk {
        /// An existing directory
        dir: PathBuf,
        /// Much less of everything: a quick look
        #[arg(long)]
        small: bool,
    },
}

/// `cairn mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// HOST[:PORT][,HOST[:PORT]…]:/VOLUME[/subdir]
    pub(crate) source: String,
    /// An existing directory
    pub(crate) point: PathBuf,
    /// Options as in fstab; docs/mount.md lists them
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground
    #[arg(long)]
    pub(crate) foreground: bool,
}

/// `cairn daemon`.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Name in the pool [default: the host name, or the address for a loopback --listen]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where to listen [default: 0.0.0.0:7420]
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(crate) listen: Option<String>,
    /// What others are told [default: a specific --listen address, else as they call it]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// Where to serve health and metrics [default: 127.0.0.1:7421]
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub(crate) http: Option<String>,
    /// Serve everything by HTTP, also beyond loopback
    #[arg(long)]
    pub(crate) http_full: bool,
    /// Settings [default: /etc/cairn/cairnd.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `cairn peer`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// Print a one-time code for this node's admission
    Code,
    /// Admit a node
    Probe {
        /// HOST or HOST:PORT
        address: String,
        /// The one-time code that `cairn peer code` printed there
        #[arg(long)]
        code: Option<String>,
        /// It shall not vote
        #[arg(long)]
        no_voter: bool,
    },
    /// Take a node out of the pool
    Detach {
        /// Its name
        node: String,
        /// Also a lost node that holds bricks, or without a majority
        #[arg(long)]
        force: bool,
    },
    /// End this node's own membership
    Leave {
        /// Also where the pool cannot be asked
        #[arg(long)]
        force: bool,
    },
    /// Let a node vote or not
    Voter {
        /// Its name
        node: String,
        /// on or off
        #[arg(value_enum)]
        switch: Switch,
    },
    /// Every node and whether it answers
    Status,
}

/// `cairn client`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Invite a machine: prints a one-time token, to be used there within a day
    Add {
        /// A name for it
        name: String,
        /// A volume that it may mount; may be repeated [default: all, also later ones]
        #[arg(long = "volume", value_name = "VOLUME")]
        volumes: Vec<String>,
        /// It may only read them
        #[arg(long)]
        read_only: bool,
    },
    /// Become a client: on the machine that mounts
    Join {
        /// What `cairn client add` printed
        token: String,
    },
    /// Write certificates for programs that reach disks by NBD over TLS (libnbd, QEMU)
    Certificates {
        /// Where `ca-cert.pem`, `client-cert.pem` and `client-key.pem` go
        dir: PathBuf,
    },
    /// Every client
    List,
    /// End a client's right, and its mounts at once
    Revoke {
        /// Its name
        name: String,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// `fs` or `block`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// A file system.
    Fs,
    /// A disk.
    Block,
}

/// A, B or C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// Confirmed at the primary.
    #[value(name = "A", alias = "a")]
    A,
    /// Received by every in-sync replica.
    #[value(name = "B", alias = "b")]
    B,
    /// Applied by every in-sync replica.
    #[value(name = "C", alias = "c")]
    C,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuorumArg {
    /// The pool.
    Majority,
    /// The bricks and the operator.
    Off,
}

/// `cairn brick`.
#[derive(Debug, Subcommand)]
pub(crate) enum BrickCommand {
    /// What it is
    Info {
        /// The brick's directory
        dir: PathBuf,
    },
    /// Whether it is whole; exit status 1 if not
    Check {
        /// The brick's directory
        dir: PathBuf,
    },
    /// Copy its files out as plain files
    Export {
        /// The brick's directory
        dir: PathBuf,
        /// A new or an empty directory
        dest: PathBuf,
        /// Its files as a retained point has them: the newest, or the one of this number (`brick
        /// info` lists them)
        #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "newest")]
        point: Option<PointArg>,
    },
    /// Clear a deleted volume's brick for new use
    Wipe {
        /// The brick's directory
        dir: PathBuf,
        /// Also the brick of a volume that was not deleted
        #[arg(long)]
        force: bool,
    },
}

/// Which retained point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PointArg {
    /// The newest.
    Newest,
    /// The one of this number.
    Number(u64),
}

impl std::str::FromStr for PointArg {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        text.parse().map(Self::Number)
    }
}

/// `cairn volume create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name
    pub(crate) name: String,
    /// File system or disk
    #[arg(long = "type", value_enum, default_value = "fs")]
    pub(crate) kind: KindArg,
    /// Size of a block volume, such as 10G
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// When a write is confirmed
    #[arg(long, value_enum, default_value = "C", ignore_case = true)]
    pub(crate) protocol: ProtocolArg,
    /// Who decides about roles [default: majority with three or more voters, else off]
    #[arg(long, value_enum)]
    pub(crate) quorum: Option<QuorumArg>,
    /// replica N [transport tcp] HOST:/path… [force]
    #[arg(required = true, value_name = "replica N HOST:/path")]
    pub(crate) words: Vec<String>,
}

/// `cairn volume add-brick` and its like.
#[derive(Debug, Args)]
pub(crate) struct BricksArgs {
    /// Name
    pub(crate) name: String,
    /// replica N HOST:/path… [force]; for replace-brick HOST:/old HOST:/new [commit force]
    #[arg(required = true, value_name = "replica N HOST:/path")]
    pub(crate) words: Vec<String>,
    /// Return when the data is in place
    #[arg(long)]
    pub(crate) wait: bool,
}

/// `cairn volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// Add bricks; what they lack is filled in while the volume is used
    AddBrick(BricksArgs),
    /// Remove bricks; their data stays in their directories
    RemoveBrick(BricksArgs),
    /// Put a new brick in the place of an old one
    ReplaceBrick(BricksArgs),
    /// Serve
    Start {
        /// Name
        name: String,
    },
    /// Serve no more
    Stop {
        /// Name
        name: String,
    },
    /// Forget a stopped volume; its bricks keep their data
    Delete {
        /// Name
        name: String,
    },
    /// Names of all volumes
    List,
    /// Configuration
    Info {
        /// Name, or `all`
        name: Option<String>,
    },
    /// Live state
    Status {
        /// Name, or `all`
        name: Option<String>,
        /// Print again as things change
        #[arg(long)]
        watch: bool,
    },
    /// Set an option
    Set {
        /// Name
        name: String,
        /// Option
        key: String,
        /// Value
        value: String,
        /// Also where that loses data: a smaller `size`
        #[arg(long)]
        force: bool,
    },
    /// Values of options in force
    Get {
        /// Name
        name: String,
        /// Option, or `all`
        key: Option<String>,
    },
    /// Set an option, or all, back to the default
    Reset {
        /// Name
        name: String,
        /// Option
        key: Option<String>,
    },
    /// Every option with default, range and meaning
    Options,
    /// Move the primary to another node
    Promote {
        /// Name
        name: String,
        /// The node
        node: String,
        /// Also where confirmed writes may be lost
        #[arg(long)]
        force: bool,
    },
    /// Two sides that both went on: show them, or decide which one stays
    SplitBrain {
        /// Name
        name: String,
        /// What to do; without it: list
        #[command(subcommand)]
        action: Option<SplitBrainAction>,
    },
    /// Bring replicas up to date now
    Resync {
        /// Name
        name: String,
        /// Only this node's replica
        node: Option<String>,
        /// Compare everything
        #[arg(long)]
        full: bool,
        /// Return when it has ended
        #[arg(long)]
        wait: bool,
        /// Also where a replica has no room to keep what it holds now: if the source dies in the
        /// middle, it cannot go back
        #[arg(long)]
        force: bool,
    },
    /// Serve a block volume's disk by NBD, from now on and after restarts
    Export {
        /// Name
        name: String,
        /// ADDR:PORT or unix:PATH of the node that serves it
        #[arg(long, value_name = "ADDRESS")]
        nbd: String,
        /// The node that serves it, wherever the primary is; without it the one that is asked
        #[arg(long)]
        node: Option<String>,
        /// Also to other machines without TLS
        #[arg(long)]
        insecure: bool,
    },
    /// Serve a block volume's disk no more
    Unexport {
        /// Name
        name: String,
        /// Only at this address
        #[arg(long, value_name = "ADDRESS")]
        nbd: Option<String>,
        /// The node that serves it; without it the one that is asked
        #[arg(long)]
        node: Option<String>,
    },
    /// Hold resyncs
    PauseResync {
        /// Name
        name: String,
    },
    /// Let resyncs go on
    ResumeResync {
        /// Name
        name: String,
    },
    /// Resync in Gluster's words
    Heal {
        /// Name
        name: String,
        /// full: compare everything; info: show what differs
        #[arg(value_enum)]
        what: Option<HealArg>,
    },
    /// Compare all replicas; exit status 0 only if all are equal
    Verify {
        /// Name
        name: String,
        /// Copy from the primary what differs
        #[arg(long)]
        repair: bool,
    },
}

/// `volume split-brain NAME …`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum SplitBrainAction {
    /// Show an open split brain and the given-up sides that are kept, with what differs
    List {
        /// Most files and ranges to show of each
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Mount what a node keeps of a side that was given up, read-only
    Mount {
        /// The node
        node: String,
        /// Where
        dir: PathBuf,
        /// Which of several, by its number in `list`; without it the newest
        #[arg(long)]
        point: Option<u64>,
    },
    /// Drop what a node keeps of sides that were given up
    Drop {
        /// The node
        node: String,
        /// Although data is lost
        #[arg(long)]
        force: bool,
    },
    /// Keep one side; what the others alone hold is given up, and kept for reading until it is
    /// dropped
    Resolve {
        /// The node whose side stays
        #[arg(long)]
        keep: String,
        /// Although data is lost
        #[arg(long)]
        force: bool,
    },
}

/// `volume heal NAME …`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HealArg {
    /// Compare everything.
    Full,
    /// Show what differs.
    Info,
}
