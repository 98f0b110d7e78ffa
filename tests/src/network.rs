//! Nodes with a network of their own each: network namespaces, joined by a bridge in one more.
//! Their cables can be pulled, what they send can be dropped or slowed. Nothing leaves the machine.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use cairn_lab::{Lab, Place, is_root};
use tempfile::TempDir;

use crate::system::{has_program, run};
use crate::{binary, skip};

/// The interface of every node.
const INTERFACE: &str = "eth0";
/// Rules that drop what a node sends.
const MUTE: &str = "\
    add table ip mute; \
    add chain ip mute out { type filter hook output priority 0; }; \
    add rule ip mute out oifname eth0 drop";
/// Rules that drop what comes to a node.
const DEAF: &str = "\
    add table ip deaf; \
    add chain ip deaf in { type filter hook input priority 0; }; \
    add rule ip deaf in iifname eth0 drop";

/// Three nodes with networks of their own, a volume with bricks on the first two, mounted by the
/// third. Fields go in this order.
#[derive(Debug)]
pub struct Cabled {
    /// The nodes.
    pub lab: Lab,
    /// Where the volume is mounted.
    pub mount: PathBuf,
    /// What joins them.
    pub network: Network,
    /// Everything lies in it; removed at the end.
    pub dir: TempDir,
}

impl Cabled {
    /// `None`, said loudly, where there is no root, no FUSE or a program is missing.
    pub fn new(volume: &str) -> Result<Option<Self>> {
        if !Path::new("/dev/fuse").exists() {
            skip("there is no /dev/fuse");
            return Ok(None);
        }
        let Some(network) = Network::new(3)? else {
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        let mut cabled = Self {
            lab: Lab::at(&binary(), dir.path(), network.places()),
            mount: dir.path().join("mnt"),
            network,
            dir,
        };
        cabled.lab.form_pool()?;
        cabled.lab.make_volume(volume, 2)?;
        cabled.lab.mount(2, volume, &cabled.mount)?;
        Ok(Some(cabled))
    }
}

/// Namespaces that go away when dropped; the processes in them must be gone by then.
#[derive(Debug)]
pub struct Network {
    /// Begin of every namespace's name.
    name: String,
    nodes: usize,
}

impl Network {
    /// A network of `nodes` nodes. `None`, said loudly, where it cannot be made.
    pub fn new(nodes: usize) -> Result<Option<Self>> {
        let missing = ["ip", "nft", "tc", "nsenter"]
            .into_iter()
            .find(|program| !has_program(program));
        if !is_root() || missing.is_some() {
            skip(&format!(
                "networks need root, ip, tc, nft and nsenter; missing: {}",
                missing.unwrap_or("root")
            ));
            return Ok(None);
        }
        ensure!(nodes < 250, "addresses are 10.0.0.1 to 10.0.0.250");
        let mut random = [0; 4];
        getrandom::fill(&mut random)?;
        let name = format!("cairn{:08x}", u32::from_le_bytes(random));
        // From here on `drop` takes away what was made.
        let network = Self { name, nodes };
        let bridge = network.bridge();
        run("ip", &["netns", "add", &bridge])?;
        run(
            "ip",
            &["-n", &bridge, "link", "add", "br0", "type", "bridge"],
        )?;
        run("ip", &["-n", &bridge, "link", "set", "br0", "up"])?;
        for node in 0..nodes {
            network.add(node)?;
        }
        Ok(Some(network))
    }

    fn add(&self, node: usize) -> Result<()> {
        let (bridge, space, port) = (self.bridge(), self.space(node), port(node));
        let address = format!("{}/24", address(node));
        run("ip", &["netns", "add", &space])?;
        let ends = ["link", "add", INTERFACE, "netns", &space, "type", "veth"];
        let other = ["peer", "name", &port, "netns", &bridge];
        run("ip", &[&ends[..], &other[..]].concat())?;
        run(
            "ip",
            &["-n", &bridge, "link", "set", &port, "master", "br0"],
        )?;
        run("ip", &["-n", &bridge, "link", "set", &port, "up"])?;
        run(
            "ip",
            &["-n", &space, "address", "add", &address, "dev", INTERFACE],
        )?;
        run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &space, "link", "set", INTERFACE, "up"])?;
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.name)
    }

    fn space(&self, node: usize) -> String {
        format!("{}-{}", self.name, node + 1)
    }

    /// Where the nodes of a lab run: one in each namespace.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        (0..self.nodes).map(|node| Place {
            address: address(node),
            // Not `ip netns exec`: a mount made in its namespace of mounts is seen by nobody else.
            enter: vec![
                "nsenter".to_owned(),
                format!("--net=/run/netns/{}", self.space(node)),
            ],
            ..Place::default()
        })
    }

    /// Pulls a node's cable: nothing comes or goes, and nobody is told.
    pub fn unplug(&self, node: usize) -> Result<()> {
        let words = ["-n", &self.bridge(), "link", "set", &port(node), "down"];
        run("ip", &words).map(drop)
    }

    /// Puts it back.
    pub fn plug(&self, node: usize) -> Result<()> {
        let words = ["-n", &self.bridge(), "link", "set", &port(node), "up"];
        run("ip", &words).map(drop)
    }

    /// Drops everything that a node sends; it goes on hearing the others.
    pub fn mute(&self, node: usize) -> Result<()> {
        self.inside(node, &["nft", MUTE])
    }

    /// Ends that.
    pub fn unmute(&self, node: usize) -> Result<()> {
        self.inside(node, &["nft", "delete table ip mute"])
    }

    /// Drops everything that comes to a node; the others go on hearing it.
    pub fn deafen(&self, node: usize) -> Result<()> {
        self.inside(node, &["nft", DEAF])
    }

    /// Ends that.
    pub fn undeafen(&self, node: usize) -> Result<()> {
        self.inside(node, &["nft", "delete table ip deaf"])
    }

    /// Lets a node send only so many kilobits a second, with a queue of at most 400 ms.
    pub fn slow(&self, node: usize, kilobits: u32) -> Result<()> {
        let rate = format!("{kilobits}kbit");
        // What may leave at once: of 4 ms, as the kernel's timer does not let it go more often.
        let burst = (u64::from(kilobits) * 1000 / 8 / 250).max(32 << 10);
        let queue = ["tbf", "rate", &rate, "burst", &burst.to_string()].map(str::to_owned);
        let words = ["tc", "qdisc", "add", "dev", INTERFACE, "root"].map(str::to_owned);
        let latency = ["latency".to_owned(), "400ms".to_owned()];
        let all = [&words[..], &queue[..], &latency[..]].concat();
        self.inside(node, &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Ends that.
    pub fn full_speed(&self, node: usize) -> Result<()> {
        self.inside(node, &["tc", "qdisc", "del", "dev", INTERFACE, "root"])
    }

    /// Bytes a second that one TCP connection carries from a node to another, over `bytes`.
    pub fn rate(&self, from: usize, to: usize, bytes: u64) -> Result<f64> {
        let (tell, told) = std::sync::mpsc::channel();
        let (sink, source) = (self.space(to), self.space(from));
        let receiver = std::thread::spawn(move || -> Result<f64> {
            enter(&sink)?;
            let listener = TcpListener::bind((address(to), 0))?;
            tell.send(listener.local_addr()?)?;
            let (mut connection, _) = listener.accept()?;
            let began = Instant::now();
            let received = io::copy(&mut connection, &mut io::sink())?;
            Ok(received as f64 / began.elapsed().as_secs_f64())
        });
        let sender = std::thread::spawn(move || -> Result<()> {
            enter(&source)?;
            let mut connection = TcpStream::connect(told.recv()?)?;
            io::copy(&mut io::repeat(7).take(bytes), &mut connection)?;
            Ok(())
        });
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        sender.join().map_err(panicked)??;
        receiver.join().map_err(panicked)?
    }

    fn inside(&self, node: usize, words: &[&str]) -> Result<()> {
        let space = format!("--net=/run/netns/{}", self.space(node));
        run("nsenter", &[&[space.as_str()], words].concat()).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let spaces = (0..self.nodes).map(|node| self.space(node));
        for space in spaces.chain([self.bridge()]) {
            if Path::new("/run/netns").join(&space).exists() {
                // What is left of it is named for everybody to see.
                let _ = run("ip", &["netns", "delete", &space]);
            }
        }
    }
}

/// Moves this thread into a network namespace.
fn enter(space: &str) -> Result<()> {
    let file = File::open(Path::new("/run/netns").join(space))?;
    rustix::thread::move_into_link_name_space(
        file.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )?;
    Ok(())
}

/// A node's end at the bridge.
fn port(node: usize) -> String {
    format!("port{}", node + 1)
}

fn address(node: usize) -> String {
    format!("10.0.0.{}", node + 1)
}
