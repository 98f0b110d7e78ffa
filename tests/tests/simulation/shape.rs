//! What a seed makes of the volume, and what it has go wrong most of all.

use protocol::ids::{BrickId, VolumeId};
use protocol::volume::{Protocol, Quorum, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState};

use super::cluster::node_id;
use super::random::Random;

/// What a seed tries hardest: about half of what goes wrong is of this kind, the rest is of any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Nothing more than anything else.
    Mixed,
    /// A primary that is cut off with a client that reads, while the others lose their connections
    /// to it at once.
    Leases,
    /// The power goes everywhere, right after something was confirmed as stable.
    PowerCuts,
    /// Resyncs that take long, and are cut off.
    Resyncs,
    /// A replica that is away for long, while the others come, go and pass the role on.
    Absences,
    /// A primary that reaches its clients and not its replicas, and mounts that come and go.
    Stalls,
    /// Disks that are slow, fail, are full, and rot.
    Disks,
    /// Bricks come, go, and take each other's places.
    Bricks,
    /// Two nodes that both go on as primary, and meet again.
    Partings,
    /// Resyncs whose source is gone for good.
    LostSources,
    /// Two nodes that fence each other.
    Fences,
    /// Somebody speaks for a replica that is away.
    Impostors,
}

impl Family {
    /// Seeds take them in turn.
    pub(crate) const ALL: [Self; 8] = [
        Self::Mixed,
        Self::Leases,
        Self::PowerCuts,
        Self::Resyncs,
        Self::Absences,
        Self::Stalls,
        Self::Disks,
        Self::Bricks,
    ];

    /// Every fifth seed is of one of these, in turn.
    pub(crate) const SPECIAL: [Self; 4] = [
        Self::Partings,
        Self::LostSources,
        Self::Fences,
        Self::Impostors,
    ];
    const SPECIAL_IN: u64 = 5;

    /// Its runs give up what was confirmed, so that each side has a history of its own.
    pub(crate) fn parts(self) -> bool {
        matches!(self, Self::Partings | Self::LostSources)
    }

    fn of(seed: u64) -> Self {
        if seed.is_multiple_of(Self::SPECIAL_IN) {
            let at = seed / Self::SPECIAL_IN % Self::SPECIAL.len() as u64;
            return Self::SPECIAL[usize::try_from(at).expect("small")];
        }
        let at = usize::try_from(seed % Self::ALL.len() as u64).expect("small");
        Self::ALL[at]
    }
}

/// What a seed makes of the volume.
pub(crate) struct Shape {
    pub(crate) family: Family,
    pub(crate) replicas: usize,
    pub(crate) quorum: Quorum,
    pub(crate) latency_ms: u64,
    pub(crate) jitter_ms: u64,
    pub(crate) pause_ms: u64,
    /// The lines between the places are long.
    pub(crate) far: bool,
    /// The volume's option for such lines is switched now and then, over short ones.
    pub(crate) switches_links: bool,
    /// The power goes everywhere now and then.
    pub(crate) cuts: bool,
    pub(crate) slowness: u64,
    /// Clients ask behind their hello, before they are let in.
    pub(crate) impatient: bool,
    /// Mounts that come and go.
    pub(crate) guests: usize,
    resync_rate: Option<&'static str>,
    /// The ack policies that the volume has in turn.
    pub(crate) protocols: &'static [Protocol],
}

impl Shape {
    pub(crate) fn draw(seed: u64, random: &Random) -> Self {
        let family = Family::of(seed);
        let (replicas, quorum) = match random.within(0..8) {
            0..3 => (2, Quorum::Majority),
            3..5 => (3, Quorum::Majority),
            5 => (4, Quorum::Majority),
            _ => (2, Quorum::Off),
        };
        let (replicas, quorum) = match family {
            Family::Leases | Family::Stalls => (replicas, Quorum::Majority),
            Family::Absences => (replicas.max(3), Quorum::Majority),
            Family::Partings | Family::LostSources | Family::Fences => (2, Quorum::Off),
            _ => (replicas, quorum),
        };
        // Where nobody takes over by itself, A loses nothing either.
        let protocols: &[Protocol] = match (random.within(0..2), quorum) {
            (0, _) => &[Protocol::C],
            (_, Quorum::Majority) => &[Protocol::B, Protocol::C],
            _ if family == Family::LostSources => &[Protocol::C],
            // By A the other side lacks what was confirmed before they parted.
            _ if family.parts() || family == Family::Fences => &[Protocol::B, Protocol::C],
            (_, Quorum::Off) => &[Protocol::A, Protocol::B, Protocol::C],
        };
        let rates: &[_] = match family {
            Family::Resyncs | Family::LostSources => {
                &[Some("512K"), Some("256K"), Some("128K"), Some("64K")]
            }
            _ => &[None, None, Some("512K"), Some("128K")],
        };
        // Of its own, so that the others are what they were without it.
        let lines = Random::new(!seed);
        let far = lines.one_in(6) && !family.parts() && family != Family::Fences;
        let (latency_ms, jitter_ms) = (1 + random.within(0..3), random.within(0..4));
        Self {
            family,
            replicas,
            quorum,
            protocols,
            far,
            switches_links: !far && lines.one_in(3) && !family.parts(),
            latency_ms: if far {
                lines.within(50..125)
            } else {
                latency_ms
            },
            jitter_ms: if far { lines.within(0..25) } else { jitter_ms },
            pause_ms: random.within(80..190),
            cuts: family == Family::PowerCuts || (may_cut(family) && random.one_in(5)),
            slowness: [1, 6, 25, 100][random.index(4)],
            impatient: random.one_in(3),
            guests: match family {
                Family::Stalls => 3,
                _ if family.parts() => 0,
                _ => usize::from(random.one_in(2)),
            },
            resync_rate: rates[random.index(rates.len())],
        }
    }

    pub(crate) fn spec(&self, random: &Random) -> VolumeSpec {
        let replicas = (0..self.replicas).map(|place| ReplicaSpec {
            node: node_id(place),
            node_name: format!("node{}", place + 1),
            path: "/brick".to_owned(),
            brick: BrickId(random.bytes()),
        });
        VolumeSpec {
            id: VolumeId([3; 16]),
            name: "v1".to_owned(),
            kind: VolumeKind::Fs,
            size_bytes: None,
            protocol: self.protocols[0],
            quorum: self.quorum,
            replicas: replicas.collect(),
            state: VolumeState::Started,
            layout: protocol::volume::Layout::default(),
            options: self
                .resync_rate
                .map(|rate| ("resync-max-rate".to_owned(), rate.to_owned()))
                .into_iter()
                .chain([("async-queue-max".to_owned(), "1M".to_owned())])
                .chain(self.fencing())
                .chain(
                    self.far
                        .then(|| ("link-profile".to_owned(), "wan".to_owned())),
                )
                .collect(),
            version: 1,
        }
    }

    /// A command of the simulation's own, and times that fit it.
    fn fencing(&self) -> impl Iterator<Item = (String, String)> {
        let options = [
            ("fence-command", "simulated"),
            ("fence-delay", "700ms"),
            ("fence-timeout", "1500ms"),
        ];
        let fences = self.family == Family::Fences;
        let options = options.into_iter().filter(move |_| fences);
        options.map(|(key, value)| (key.to_owned(), value.to_owned()))
    }
}

/// Whether what a power cut everywhere leaves behind is told from the family's own faults: not
/// from what rots (DUR-4), and not where sides part.
fn may_cut(family: Family) -> bool {
    let special = family.parts() || family == Family::Fences;
    family != Family::Disks && !special
}
