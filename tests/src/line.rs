//! Long lines on one machine: every byte between two nodes takes its time. Nodes tell each other the
//! address of a relay instead of their own, and the relay holds up what goes through it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cairn_lab::Place;

/// The port between machines.
const PORT: u16 = 7420;
/// Bytes that are held up at once, in each direction of a connection.
const PIECES_MAX: usize = 4096;
const PIECE_BYTES: usize = 64 << 10;

/// Places for `nodes` nodes, each reached by the others over a line of that round trip. The relays
/// end with the process.
///
/// # Errors
/// A relay cannot listen.
pub fn places(nodes: usize, round_trip: Duration) -> Result<Vec<Place>> {
    let id = std::process::id();
    let (a, b) = (id % 200 + 20, id / 200 % 250);
    let mut places = Vec::new();
    for node in 1..=nodes {
        let address = format!("127.{a}.{b}.{node}");
        let relay = format!("127.{a}.{b}.{}", 100 + node);
        let listener = TcpListener::bind((relay.as_str(), PORT)).context("a relay listens")?;
        let to = address.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let to = to.clone();
                // A node that does not run is one whose connections end.
                std::thread::spawn(move || join(near, &to, round_trip / 2));
            }
        });
        places.push(Place {
            address,
            advertised: Some(format!("{relay}:{PORT}")),
            ..Place::default()
        });
    }
    Ok(places)
}

/// Joins a connection with one to `to`, both ways.
fn join(near: TcpStream, to: &str, delay: Duration) -> io::Result<()> {
    let far = TcpStream::connect((to, PORT))?;
    for (from, into) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        into.set_nodelay(true)?;
        let (sender, pieces) = sync_channel(PIECES_MAX);
        std::thread::spawn(move || take(from, &sender));
        std::thread::spawn(move || pass_on(into, &pieces, delay));
    }
    Ok(())
}

fn take(mut from: TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; PIECE_BYTES];
    // The end is an empty piece, and as late as the rest.
    loop {
        let len = from.read(&mut buffer).unwrap_or(0);
        let piece = (Instant::now(), buffer[..len].to_vec());
        if pieces.send(piece).is_err() || len == 0 {
            return;
        }
    }
}

fn pass_on(mut into: TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>, delay: Duration) {
    for (came, piece) in pieces {
        std::thread::sleep((came + delay).saturating_duration_since(Instant::now()));
        if piece.is_empty() || into.write_all(&piece).is_err() {
            break;
        }
    }
    // Whatever the other end says to it gets nowhere either.
    let _ = into.shutdown(Shutdown::Both);
}
