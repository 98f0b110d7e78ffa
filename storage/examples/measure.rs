//! Measures a brick in a directory: `cargo run --release --example measure -p cairn-storage -- DIR`.
//!
//! DIR must exist; a brick is made in a directory below it and removed afterwards. The first lines
//! measure the disk itself, as the limit to compare with.

#![allow(missing_docs, reason = "a tool, not an interface")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_storage::{
    Brick, BrickEvent, BrickIdentity, DirBrick, DirMedium, EngineChoice, FlushId, FlushWhat,
    Medium, OpenError, Options, create_brick, open_brick, open_medium,
};
use protocol::ids::{BrickId, GenerationId, PoolId, VolumeId};
use protocol::record::{Change, Record};
use protocol::units::{ObjectId, Term};
use protocol::volume::{Protocol, Quorum, VolumeKind, VolumeSpec, VolumeState};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(parent) = std::env::args().nth(1) else {
        return Err("name a directory".into());
    };
    let dir = Path::new(&parent).join("cairn-measure");
    std::fs::create_dir(&dir)?;
    let result = raw_log(&dir)
        .map_err(Into::into)
        .and_then(|()| bricks(&dir));
    std::fs::remove_dir_all(&dir)?;
    result
}

fn per_second(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64()
}

/// 4 KiB records into a preallocated, written log, one after another.
fn raw_log(dir: &Path) -> io::Result<()> {
    const ROUNDS: u32 = 2000;
    let path = dir.join("log");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    file.write_all_at(&vec![0; 16 << 20], 0)?;
    file.sync_all()?;
    let block = [7; 4096];
    let start = Instant::now();
    for round in 0..ROUNDS {
        file.write_all_at(&block, u64::from(round) * 4096)?;
        file.sync_data()?;
    }
    println!(
        "log: buffered + fdatasync   {:>9.0}/s",
        per_second(ROUNDS, start.elapsed())
    );
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    match OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(&path)
    {
        Ok(direct) => {
            let layout = Layout::from_size_align(4096, 4096).map_err(io::Error::other)?;
            // SAFETY: the layout is not empty; the memory is given back below with the same one.
            let memory = unsafe { alloc_zeroed(layout) };
            if memory.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            // SAFETY: 4096 initialised bytes that nothing else refers to.
            let aligned = unsafe { std::slice::from_raw_parts(memory, 4096) };
            let start = Instant::now();
            let written = (0..ROUNDS)
                .try_for_each(|round| direct.write_all_at(aligned, u64::from(round) * 4096));
            let took = start.elapsed();
            // SAFETY: allocated above with this layout; the slice is not used any more.
            unsafe { dealloc(memory, layout) };
            written?;
            println!(
                "log: O_DIRECT|O_DSYNC       {:>9.0}/s",
                per_second(ROUNDS, took)
            );
        }
        Err(error) => println!("log: O_DIRECT cannot be used here: {error}"),
    }
    std::fs::remove_file(path)
}

fn identity() -> BrickIdentity {
    BrickIdentity {
        pool: PoolId([1; 16]),
        brick: BrickId([3; 16]),
        replica: 0,
        spec: VolumeSpec {
            id: VolumeId([2; 16]),
            name: "measure".to_owned(),
            kind: VolumeKind::Fs,
            size_bytes: None,
            protocol: Protocol::C,
            quorum: Quorum::Off,
            replicas: Vec::new(),
            state: VolumeState::Started,
            layout: protocol::volume::Layout::default(),
            options: BTreeMap::new(),
            version: 1,
        },
    }
}

struct Bench {
    brick: DirBrick,
    random: u64,
}

impl Bench {
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn append(&mut self, changes: Vec<Change>, payload: Bytes) {
        let record = Record {
            sequence: self.brick.applied().next(),
            term: Term(1),
            generation: GenerationId([1; 16]),
            changes,
            payload,
        };
        let pace = self.brick.append(&record, 0).expect("append");
        if pace == cairn_storage::Pace::Throttle {
            self.brick.push().expect("push");
            self.wait(|event| matches!(event, BrickEvent::Unthrottled));
        }
    }

    fn write(&mut self, object: u64, offset: u64, data: &Bytes) {
        let change = Change::Write {
            object: ObjectId(object),
            offset,
            len: u32::try_from(data.len()).expect("small"),
        };
        self.append(vec![change], data.clone());
    }

    fn wait(&mut self, mut done: impl FnMut(&BrickEvent) -> bool) {
        let mut events = Vec::new();
        loop {
            self.brick.poll(&mut events);
            for event in events.drain(..) {
                assert!(!matches!(event, BrickEvent::Failed(_)), "{event:?}");
                if done(&event) {
                    return;
                }
            }
            self.brick.wait();
        }
    }

    /// Until nothing is left to be done in the background.
    fn settle(&mut self) {
        for _ in 0..2 {
            self.brick.checkpoint().expect("checkpoint");
            self.wait(|event| matches!(event, BrickEvent::Checkpointed(_)));
        }
    }

    fn flush(&mut self) {
        let id: FlushId = self.brick.flush(FlushWhat::All).expect("flush");
        self.wait(|event| matches!(event, BrickEvent::Flushed(found) if *found == id));
    }
}

fn bricks(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for engine in [EngineChoice::Best, EngineChoice::Threads] {
        let dir = dir.join("brick");
        std::fs::create_dir(&dir)?;
        create_brick(&dir, true, identity(), Bytes::new())?;
        let (brick, _) = open_brick(&dir, None, engine)?;
        println!("\n{}", brick.medium_kind());
        let mut bench = Bench {
            brick,
            random: 0x1234_5678_9ABC_DEF1,
        };
        small_writes(&mut bench);
        bench.settle();
        creates(&mut bench);
        bench.settle();
        large_writes(&mut bench);
        reads(&mut bench);
        recovery(&dir, bench)?;
        std::fs::remove_dir_all(&dir)?;
    }
    thresholds(&dir.join("brick"))
}

fn small_writes(bench: &mut Bench) {
    let data = Bytes::from(vec![9; 4096]);
    let rounds = 50_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let block = bench.random(65_536);
        bench.write(1, block * 4096, &data);
        bench.brick.push().expect("push");
        bench.brick.poll(&mut Vec::new());
    }
    println!(
        "4 KiB append + push         {:>9.0}/s",
        per_second(rounds, start.elapsed())
    );
    bench.settle();
    let mut slowest = Duration::ZERO;
    let rounds = 2000;
    let start = Instant::now();
    for _ in 0..rounds {
        let one = Instant::now();
        let block = bench.random(65_536);
        bench.write(1, block * 4096, &data);
        bench.flush();
        slowest = slowest.max(one.elapsed());
    }
    let took = start.elapsed();
    println!(
        "4 KiB append + flush, one   {:>9.0}/s, worst {:.1} ms",
        per_second(rounds, took),
        slowest.as_secs_f64() * 1000.0
    );
    let rounds = 300;
    let start = Instant::now();
    for _ in 0..rounds {
        for _ in 0..64 {
            let block = bench.random(65_536);
            bench.write(1, block * 4096, &data);
        }
        bench.flush();
    }
    println!(
        "4 KiB append + flush, by 64 {:>9.0}/s",
        per_second(rounds * 64, start.elapsed())
    );
}

fn creates(bench: &mut Bench) {
    let rounds = 30_000_u32;
    let start = Instant::now();
    for file in 0..rounds {
        let put = |kind: &str, len: usize| Change::Put {
            key: Bytes::from(format!("{kind}/{file:08}")),
            value: Bytes::from(vec![3; len]),
        };
        let changes = vec![
            put("inode", 96),
            put("entry", 24),
            put("parent", 96),
            put("reply", 120),
        ];
        bench.append(changes, Bytes::new());
        if file % 64 == 63 {
            bench.flush();
        }
    }
    println!(
        "creates of 4 keys, by 64    {:>9.0}/s",
        per_second(rounds, start.elapsed())
    );
}

fn large_writes(bench: &mut Bench) {
    let data = Bytes::from(vec![5; 1 << 20]);
    for (name, object) in [("new", 2_u64), ("again", 2)] {
        let start = Instant::now();
        for part in 0..512_u64 {
            bench.write(object, part << 20, &data);
            bench.brick.push().expect("push");
            bench.brick.poll(&mut Vec::new());
        }
        bench.flush();
        let rate = 512.0 * 1.048_576 / start.elapsed().as_secs_f64();
        println!("1 MiB sequential, {name:<5} + flush {rate:>5.0} MB/s");
    }
}

fn reads(bench: &mut Bench) {
    let rounds = 100_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let block = bench.random(131_072);
        let read = bench.brick.read_now(ObjectId(2), block * 4096, 4096);
        assert_eq!(read.expect("read").len(), 4096);
    }
    println!(
        "4 KiB random read, cached   {:>9.0}/s",
        per_second(rounds, start.elapsed())
    );
}

fn recovery(dir: &Path, mut bench: Bench) -> Result<(), Box<dyn std::error::Error>> {
    bench.settle();
    let data = Bytes::from(vec![9; 4096]);
    // Less than what begins a checkpoint.
    for _ in 0..4000 {
        let block = bench.random(65_536);
        bench.write(1, block * 4096, &data);
    }
    bench.flush();
    drop(bench);
    let medium: DirMedium = open_medium(dir, EngineChoice::Best)?;
    let options = Options::for_room(medium.room()?);
    let mut start = Instant::now();
    let (brick, report) = loop {
        match Brick::open(medium.clone(), None, options.clone()) {
            // A checkpoint of the dropped brick is still at work.
            Err(OpenError::InUse) => start = Instant::now(),
            other => break other?,
        }
    };
    let took = start.elapsed();
    println!(
        "recovery of {} records      {:>9.1} ms ({:.1} ms per MiB of journal)",
        report.replayed_records,
        took.as_secs_f64() * 1000.0,
        took.as_secs_f64() * 1000.0 / 16.0
    );
    brick.close()?;
    Ok(())
}

/// Where writing once into the object's file begins to pay: random overwrites of one size, flushed
/// by 16, through the journal and directly.
fn thresholds(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "\nrandom overwrites within 64 MiB, flushed by 16: MB/s through the journal, directly"
    );
    for kib in [16_u64, 32, 64, 128, 256] {
        let mut rates = Vec::new();
        for direct in [false, true] {
            std::fs::create_dir(dir)?;
            create_brick(dir, true, identity(), Bytes::new())?;
            let medium = open_medium(dir, EngineChoice::Best)?;
            let mut options = Options::for_room(medium.room()?);
            options.large_write_bytes = if direct { 4096 } else { u64::MAX };
            let (brick, _) = Brick::open(medium, None, options)?;
            let mut bench = Bench { brick, random: 99 };
            let whole = Bytes::from(vec![1; 1 << 20]);
            for part in 0..64_u64 {
                bench.write(1, part << 20, &whole);
            }
            bench.flush();
            bench.settle();
            let data = Bytes::from(vec![2; usize::try_from(kib << 10)?]);
            let count = (192 << 10) / kib;
            let start = Instant::now();
            for number in 0..count {
                let place = bench.random((64 << 10) / kib);
                bench.write(1, place * (kib << 10), &data);
                if number % 16 == 15 {
                    bench.flush();
                }
            }
            // What the journal took must still be written into the file.
            bench.settle();
            rates.push((count * (kib << 10)) as f64 / 1e6 / start.elapsed().as_secs_f64());
            drop(bench);
            std::fs::remove_dir_all(dir)?;
        }
        println!("{kib:>4} KiB {:>6.0} {:>6.0}", rates[0], rates[1]);
    }
    Ok(())
}
