//! Files that have no name yet (O_TMPFILE).

use protocol::fs::{Operation, Outcome};
use protocol::units::ObjectId;

use super::{Bench, ROOT, name};
use crate::errno::{ENOENT, ENOTDIR, ESTALE};

fn link(object: ObjectId, text: &str) -> Operation {
    Operation::Link {
        object,
        new_parent: ROOT,
        new_name: name(text),
    }
}

impl Bench {
    fn unnamed(&mut self, parent: ObjectId) -> ObjectId {
        let made = self.entry(Operation::MakeUnnamed {
            parent,
            mode: 0o600,
        });
        assert_eq!((made.mode, made.nlink), (0o100_600, 0));
        self.open.insert(made.object);
        made.object
    }

    fn close(&mut self, object: ObjectId) {
        self.open.remove(&object);
        self.volume.release(object).expect("memory");
    }
}

#[test]
fn a_file_without_a_name_is_gone_with_its_last_close() {
    let mut bench = Bench::new();
    let before = bench.volume.clone();
    let file = bench.unnamed(ROOT);
    assert!(matches!(
        bench.write(file, 0, b"data"),
        Outcome::Written { len: 4, .. }
    ));
    assert_eq!(bench.names(ROOT, 1000), Vec::<String>::new());
    bench.close(file);
    assert_eq!(
        bench.errno(Operation::GetAttributes { object: file }),
        ESTALE
    );
    let count = |volume| crate::objects(volume).expect("memory");
    assert_eq!(count(&bench.volume), count(&before));
    assert_eq!(bench.volume.objects_with_data().count(), 0);
}

#[test]
fn a_file_without_a_name_gets_one_and_stays() {
    let mut bench = Bench::new();
    let file = bench.unnamed(ROOT);
    bench.write(file, 0, b"data");
    assert_eq!(bench.entry(link(file, "named")).nlink, 1);
    assert_eq!(bench.entry(link(file, "again")).nlink, 2);
    bench.close(file);
    assert_eq!(bench.attributes(file).nlink, 2);
    assert_eq!(bench.names(ROOT, 1000).len(), 2);
}

#[test]
fn a_file_that_lost_its_last_name_gets_none_again() {
    let mut bench = Bench::new();
    let once = bench.file(ROOT, "f");
    let never = bench.unnamed(ROOT);
    bench.entry(link(never, "n"));
    for (object, text) in [(once, "f"), (never, "n")] {
        bench.open.insert(object);
        bench.done(Operation::Unlink {
            parent: ROOT,
            name: name(text),
        });
        assert_eq!(bench.errno(link(object, "x")), ENOENT);
    }
}

#[test]
fn a_file_without_a_name_belongs_to_a_directory_that_is_there() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "f");
    let unnamed = |parent| Operation::MakeUnnamed { parent, mode: 0 };
    assert_eq!(bench.errno(unnamed(file)), ENOTDIR);
    assert_eq!(bench.errno(unnamed(ObjectId(7))), ENOENT);
}
