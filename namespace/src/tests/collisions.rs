//! Names that share a hash (in tests: all that begin with `collide`).

use super::{Bench, ROOT, name};
use crate::errno::{ENOENT, ENOSPC};
use protocol::fs::{Operation, Outcome};

fn lookup(bench: &mut Bench, text: &str) -> Outcome {
    bench.run(Operation::Lookup {
        parent: ROOT,
        name: name(text),
    })
}

fn unlink(bench: &mut Bench, text: &str) {
    bench.done(Operation::Unlink {
        parent: ROOT,
        name: name(text),
    });
}

#[test]
fn names_of_one_hash_are_found_after_any_of_them_was_removed() {
    for removed in 0..4 {
        let mut bench = Bench::new();
        let names: Vec<_> = (0..4).map(|n| format!("collide{n}")).collect();
        let objects: Vec<_> = names.iter().map(|n| bench.file(ROOT, n)).collect();
        unlink(&mut bench, &names[removed]);
        for (index, text) in names.iter().enumerate() {
            match lookup(&mut bench, text) {
                Outcome::Entry(a) => assert_eq!(a.object, objects[index]),
                other => {
                    assert_eq!((index, other), (removed, Outcome::Error(ENOENT)));
                }
            }
        }
        assert_eq!(bench.names(ROOT, 1).len(), 3);
        bench.file(ROOT, &names[removed]);
        assert_eq!(bench.names(ROOT, 1 << 20).len(), 4);
    }
}

#[test]
fn removing_all_names_of_one_hash_leaves_no_key_behind() {
    let order = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for order in order {
        let mut bench = Bench::new();
        for n in 0..3 {
            bench.file(ROOT, &format!("collide{n}"));
        }
        for n in order {
            unlink(&mut bench, &format!("collide{n}"));
        }
        let mut keys = 0;
        crate::Store::scan(&bench.volume, b"d", b"e", &mut |_, _| {
            keys += 1;
            true
        })
        .expect("memory");
        assert_eq!(keys, 0, "{order:?}");
    }
}

#[test]
fn a_name_keeps_its_cookie_while_others_of_its_hash_come_and_go() {
    let mut bench = Bench::new();
    for n in 0..3 {
        bench.file(ROOT, &format!("collide{n}"));
    }
    let cookie = |bench: &mut Bench, text: &str| {
        let read = Operation::ReadDirectory {
            object: ROOT,
            cookie: 0,
            bytes_max: 1 << 20,
            plus: false,
        };
        let Outcome::Entries(entries) = bench.run(read) else {
            panic!("no entries");
        };
        let entry = entries.into_iter().find(|e| e.name == text);
        entry.expect("listed").cookie
    };
    let before = cookie(&mut bench, "collide1");
    assert!(before > 2 && before < 1 << 63);
    unlink(&mut bench, "collide0");
    assert_eq!(cookie(&mut bench, "collide1"), before);
    bench.file(ROOT, "collide9");
    assert_eq!(cookie(&mut bench, "collide1"), before);
}

#[test]
fn a_257th_name_of_one_hash_is_refused() {
    let mut bench = Bench::new();
    for n in 0..256 {
        bench.file(ROOT, &format!("collide{n}"));
    }
    let create = Operation::Create {
        parent: ROOT,
        name: name("collide256"),
        mode: 0o644,
        exclusive: true,
    };
    assert_eq!(bench.errno(create), ENOSPC);
    assert_eq!(bench.names(ROOT, 4096).len(), 256);
}

#[test]
fn renaming_inside_one_hash_moves_the_name() {
    let mut bench = Bench::new();
    let first = bench.file(ROOT, "collide0");
    bench.file(ROOT, "collide1");
    assert_eq!(
        bench.rename(ROOT, "collide0", ROOT, "collide2", 0),
        Outcome::Done
    );
    assert_eq!(
        bench.rename(ROOT, "collide2", ROOT, "collide1", 0),
        Outcome::Done
    );
    assert_eq!(bench.names(ROOT, 4096), ["collide1"]);
    match lookup(&mut bench, "collide1") {
        Outcome::Entry(a) => assert_eq!(a.object, first),
        other => panic!("{other:?}"),
    }
}
