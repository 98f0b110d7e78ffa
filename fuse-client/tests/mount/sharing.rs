//! Several mounts of one volume (COH-1, COH-2).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::Bench;
use cairn_fuse_client::command::{MountArgs, mount};

fn two() -> Option<(Bench, std::path::PathBuf, std::path::PathBuf)> {
    let mut bench = Bench::new()?;
    let one = bench.mount("node1:/v1", "");
    let two = bench.mount("node1:/v1", "");
    Some((bench, one, two))
}

#[test]
fn coh_1_what_one_mount_did_the_other_sees_at_once() {
    let Some((_bench, one, two)) = two() else {
        return;
    };
    for n in 0..50 {
        let name = format!("f{n}");
        assert!(!two.join(&name).exists());
        fs::write(one.join(&name), name.as_bytes()).expect("written");
        assert_eq!(fs::read(two.join(&name)).expect("read"), name.as_bytes());
        let reader = File::open(two.join(&name)).expect("opened");
        fs::write(one.join(&name), b"changed content").expect("written");
        let mut now = Vec::new();
        (&reader).read_to_end(&mut now).expect("read");
        assert_eq!(now, b"changed content");
        assert_eq!(reader.metadata().expect("stat").len(), 15);
        fs::rename(one.join(&name), one.join("moved")).expect("renamed");
        assert!(!two.join(&name).exists() && two.join("moved").exists());
    }
}

#[test]
fn the_same_volume_is_not_mounted_twice_at_one_place() {
    let Some((mut bench, first, _)) = two() else {
        return;
    };
    let again = |source: &str| {
        let args = MountArgs {
            source: source.to_owned(),
            point: first.clone(),
            options: Vec::new(),
            foreground: true,
            data_dir: first.parent().expect("a parent").to_owned(),
            verbose: false,
        };
        mount(&args).expect_err("refused")
    };
    let hellos = bench.server.hellos();
    let refused = again("node2:/v1");
    assert!(refused.sentence.contains("is mounted at"), "{refused:?}");
    assert!(refused.hint.contains("umount"), "{refused:?}");
    assert_eq!(bench.server.hellos(), hellos, "nobody was asked");
    assert!(std::fs::read_dir(&first).is_ok(), "the first one goes on");
    bench.mount("node1:/v1", "");
}

#[test]
fn coh_2_appends_of_two_mounts_do_not_overlap() {
    let Some((_bench, one, two)) = two() else {
        return;
    };
    fs::write(one.join("log"), b"").expect("made");
    let writers = [(one.clone(), b'1'), (two, b'2')].map(|(dir, mark)| {
        std::thread::spawn(move || {
            let mut log = OpenOptions::new()
                .append(true)
                .open(dir.join("log"))
                .expect("opened");
            for _ in 0..300 {
                log.write_all(&[mark; 100]).expect("appended");
            }
        })
    });
    for writer in writers {
        writer.join().expect("wrote");
    }
    let log = fs::read(one.join("log")).expect("read");
    assert_eq!(log.len(), 60_000);
    assert!(
        log.chunks(100)
            .all(|chunk| chunk.iter().all(|b| *b == chunk[0]))
    );
}

#[test]
fn coh_2_exclusive_creates_have_one_winner() {
    let Some((_bench, one, two)) = two() else {
        return;
    };
    for n in 0..50 {
        let racers = [one.clone(), two.clone()].map(|dir| {
            std::thread::spawn(move || {
                let path = dir.join(format!("lock{n}"));
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path)
                    .is_ok()
            })
        });
        let won: usize = racers
            .into_iter()
            .map(|r| usize::from(r.join().expect("ran")))
            .sum();
        assert_eq!(won, 1);
    }
}

#[test]
fn coh_2_an_unlinked_file_stays_usable_until_its_last_close_on_every_mount() {
    let Some((bench, one, two)) = two() else {
        return;
    };
    let before = bench.server.objects();
    fs::write(one.join("f"), b"still here").expect("written");
    let here = File::open(one.join("f")).expect("opened");
    let again = File::open(one.join("f")).expect("opened");
    let there = OpenOptions::new()
        .read(true)
        .write(true)
        .open(two.join("f"))
        .expect("opened");
    fs::remove_file(one.join("f")).expect("removed");
    assert!(!two.join("f").exists());
    let mut text = [0; 10];
    for file in [&here, &again, &there] {
        file.read_exact_at(&mut text, 0).expect("read");
        assert_eq!(&text, b"still here");
        assert_eq!(file.metadata().expect("stat").nlink(), 0);
    }
    drop(here);
    there.write_all_at(b"STILL", 0).expect("written");
    drop(there);
    again.read_exact_at(&mut text, 0).expect("read");
    assert_eq!(&text, b"STILL here");
    bench.server.wait_until(|s| s.held().0 == 1);
    assert_eq!(bench.server.held(), (1, 1));
    drop(again);
    bench.server.wait_until(|s| s.objects() == before);
    assert_eq!(bench.server.held(), (0, 0));
}

#[test]
fn coh_2_a_file_replaced_by_a_rename_stays_readable_for_who_has_it_open() {
    let Some((bench, one, two)) = two() else {
        return;
    };
    fs::write(one.join("config"), b"old").expect("written");
    let old = File::open(two.join("config")).expect("opened");
    fs::write(one.join("config.new"), b"new").expect("written");
    fs::rename(one.join("config.new"), one.join("config")).expect("renamed");
    let mut text = [0; 3];
    old.read_exact_at(&mut text, 0).expect("read");
    assert_eq!(&text, b"old");
    assert_eq!(fs::read(two.join("config")).expect("read"), b"new");
    drop(old);
    bench.server.wait_until(|s| s.held() == (0, 0));
}
