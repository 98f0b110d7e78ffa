//! Random operations against a slow file system made of standard collections. Each change is
//! also repeated (its kept reply must come back) and applied a second time (nothing may change).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use protocol::fs::{Operation, Outcome, SetAttributes};
use protocol::units::ObjectId;

use super::{Bench, ROOT, name};
use crate::errno::*;

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Directory(BTreeMap<String, ObjectId>),
    File(Vec<u8>),
    Symlink,
}

#[derive(Debug, Clone, PartialEq)]
struct Node {
    kind: Kind,
    names: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// The slow file system.
struct Model {
    nodes: BTreeMap<ObjectId, Node>,
    open: BTreeSet<ObjectId>,
}

type Answer = Result<Option<ObjectId>, i32>;

impl Model {
    fn new() -> Self {
        let root = Node {
            kind: Kind::Directory(BTreeMap::new()),
            names: 1,
            xattrs: BTreeMap::new(),
        };
        Self {
            nodes: [(ROOT, root)].into(),
            open: BTreeSet::new(),
        }
    }

    fn directory(&self, object: ObjectId) -> Result<&BTreeMap<String, ObjectId>, i32> {
        match self.nodes.get(&object) {
            None => Err(ENOENT),
            Some(Node {
                kind: Kind::Directory(names),
                names: 1,
                ..
            }) => Ok(names),
            Some(Node {
                kind: Kind::Directory(_),
                ..
            }) => Err(ENOENT),
            Some(_) => Err(ENOTDIR),
        }
    }

    fn names(&mut self, object: ObjectId) -> &mut BTreeMap<String, ObjectId> {
        match &mut self.nodes.get_mut(&object).expect("checked").kind {
            Kind::Directory(names) => names,
            _ => panic!("checked to be a directory"),
        }
    }

    fn is_directory(&self, object: ObjectId) -> bool {
        matches!(self.nodes[&object].kind, Kind::Directory(_))
    }

    fn make(&mut self, parent: ObjectId, text: &str, kind: Kind, new: ObjectId) -> Answer {
        if self.directory(parent)?.contains_key(text) {
            return Err(EEXIST);
        }
        self.names(parent).insert(text.to_owned(), new);
        let node = Node {
            kind,
            names: 1,
            xattrs: BTreeMap::new(),
        };
        self.nodes.insert(new, node);
        Ok(Some(new))
    }

    fn unname(&mut self, object: ObjectId) {
        let node = self.nodes.get_mut(&object).expect("named");
        node.names -= 1;
        if node.names == 0 && !self.open.contains(&object) {
            self.nodes.remove(&object);
        }
    }

    fn remove(&mut self, parent: ObjectId, text: &str, directory: bool) -> Answer {
        let object = *self.directory(parent)?.get(text).ok_or(ENOENT)?;
        match (&self.nodes[&object].kind, directory) {
            (Kind::Directory(_), false) => return Err(EISDIR),
            (Kind::Directory(names), true) if !names.is_empty() => return Err(ENOTEMPTY),
            (Kind::Directory(_), true) => {}
            (_, true) => return Err(ENOTDIR),
            (_, false) => {}
        }
        self.names(parent).remove(text);
        self.unname(object);
        Ok(None)
    }

    /// Whether `object` is `top` or anywhere below it.
    fn below(&self, object: ObjectId, top: ObjectId) -> bool {
        if object == top {
            return true;
        }
        match &self.nodes[&top].kind {
            Kind::Directory(names) => names.values().any(|child| self.below(object, *child)),
            _ => false,
        }
    }

    fn rename(
        &mut self,
        (from, a): (ObjectId, &str),
        (to, b): (ObjectId, &str),
        flags: u32,
    ) -> Answer {
        self.directory(from)?;
        self.directory(to)?;
        let source = *self.directory(from)?.get(a).ok_or(ENOENT)?;
        let target = self.directory(to)?.get(b).copied();
        if flags == 1 && target.is_some() {
            return Err(EEXIST);
        }
        if flags == 2 && target.is_none() {
            return Err(ENOENT);
        }
        if self.is_directory(source) && self.below(to, source) {
            return Err(EINVAL);
        }
        if let Some(target) = target.filter(|t| self.is_directory(*t) && self.below(from, *t)) {
            assert_ne!(target, source);
            return Err(if flags == 2 { EINVAL } else { ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(None);
        }
        if flags == 2 {
            let target = target.expect("checked");
            self.names(from).insert(a.to_owned(), target);
            self.names(to).insert(b.to_owned(), source);
            return Ok(None);
        }
        if let Some(target) = target {
            match (&self.nodes[&source].kind, &self.nodes[&target].kind) {
                (Kind::Directory(_), Kind::Directory(names)) if !names.is_empty() => {
                    return Err(ENOTEMPTY);
                }
                (Kind::Directory(_), Kind::Directory(_)) => {}
                (Kind::Directory(_), _) => return Err(ENOTDIR),
                (_, Kind::Directory(_)) => return Err(EISDIR),
                _ => {}
            }
        }
        self.names(from).remove(a);
        self.names(to).insert(b.to_owned(), source);
        if let Some(target) = target {
            self.unname(target);
        }
        Ok(None)
    }

    fn link(&mut self, object: ObjectId, parent: ObjectId, text: &str) -> Answer {
        if self.directory(parent)?.contains_key(text) {
            return Err(EEXIST);
        }
        let node = self.nodes.get_mut(&object).ok_or(ESTALE)?;
        if matches!(node.kind, Kind::Directory(_)) {
            return Err(EPERM);
        }
        if node.names == 0 {
            return Err(ENOENT);
        }
        node.names += 1;
        self.names(parent).insert(text.to_owned(), object);
        Ok(Some(object))
    }

    fn data(&mut self, object: ObjectId) -> Result<&mut Vec<u8>, i32> {
        match self.nodes.get_mut(&object).map(|node| &mut node.kind) {
            None => Err(ESTALE),
            Some(Kind::Directory(_)) => Err(EISDIR),
            Some(Kind::Symlink) => Err(EINVAL),
            Some(Kind::File(data)) => Ok(data),
        }
    }

    fn nlink(&self, object: ObjectId) -> u32 {
        let node = &self.nodes[&object];
        match &node.kind {
            Kind::Directory(_) if node.names == 0 => 0,
            Kind::Directory(names) => {
                let below = names.values().filter(|child| self.is_directory(**child));
                2 + u32::try_from(below.count()).expect("few")
            }
            _ => node.names,
        }
    }

    fn paths(&self, at: ObjectId, prefix: &str, all: &mut BTreeMap<String, ObjectId>) {
        if let Kind::Directory(names) = &self.nodes[&at].kind {
            for (text, child) in names {
                let path = format!("{prefix}{text}");
                self.paths(*child, &format!("{path}/"), all);
                all.insert(path, *child);
            }
        }
    }
}

/// A random step; numbers choose among the objects that ever existed and few names.
#[derive(Debug, Clone)]
enum Step {
    File(usize, usize),
    Directory(usize, usize),
    Symlink(usize, usize),
    Unlink(usize, usize),
    Rmdir(usize, usize),
    Rename(usize, usize, usize, usize, u32),
    Link(usize, usize, usize),
    Write(usize, u16, u16, bool),
    Resize(usize, u16),
    Punch(usize, u16, u16),
    Open(usize),
    Close(usize),
    SetXattr(usize, usize, u32),
    RemoveXattr(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (o, n) = (|| 0_usize..12, || 0_usize..6);
    prop_oneof![
        3 => (o(), n()).prop_map(|(a, b)| Step::File(a, b)),
        3 => (o(), n()).prop_map(|(a, b)| Step::Directory(a, b)),
        1 => (o(), n()).prop_map(|(a, b)| Step::Symlink(a, b)),
        3 => (o(), n()).prop_map(|(a, b)| Step::Unlink(a, b)),
        2 => (o(), n()).prop_map(|(a, b)| Step::Rmdir(a, b)),
        5 => (o(), n(), o(), n(), 0_u32..3).prop_map(|(a, b, c, d, f)| Step::Rename(a, b, c, d, f)),
        2 => (o(), o(), n()).prop_map(|(a, b, c)| Step::Link(a, b, c)),
        4 => (o(), 0_u16..9000, 0_u16..9000, any::<bool>())
            .prop_map(|(a, b, c, d)| Step::Write(a, b, c, d)),
        2 => (o(), 0_u16..20_000).prop_map(|(a, b)| Step::Resize(a, b)),
        1 => (o(), 0_u16..9000, 1_u16..9000).prop_map(|(a, b, c)| Step::Punch(a, b, c)),
        1 => o().prop_map(Step::Open),
        1 => o().prop_map(Step::Close),
        1 => (o(), 0_usize..3, 0_u32..3).prop_map(|(a, b, c)| Step::SetXattr(a, b, c)),
        1 => (o(), 0_usize..3).prop_map(|(a, b)| Step::RemoveXattr(a, b)),
    ]
}

const NAMES: [&str; 6] = ["a", "b", "collide1", "collide2", "collide3", "z"];
const XATTRS: [&str; 3] = ["user.a", "user.b", "security.capability"];

struct Duel {
    bench: Bench,
    model: Model,
    made: Vec<ObjectId>,
}

impl Duel {
    fn object(&self, index: usize) -> ObjectId {
        self.made[index % self.made.len()]
    }

    /// The operation with its payload and the model's answer.
    fn plan(&mut self, step: &Step) -> Option<(Operation, Vec<u8>, Answer)> {
        // The id that the next request would make.
        let new = ObjectId(self.bench.next + 1);
        let text = |index: usize| NAMES[index];
        let plain = |operation, answer| Some((operation, Vec::new(), answer));
        match *step {
            Step::File(p, n) => {
                let parent = self.object(p);
                let answer = self
                    .model
                    .make(parent, text(n), Kind::File(Vec::new()), new);
                let (name, mode, exclusive) = (name(text(n)), 0o644, true);
                plain(
                    Operation::Create {
                        parent,
                        name,
                        mode,
                        exclusive,
                    },
                    answer,
                )
            }
            Step::Directory(p, n) => {
                let parent = self.object(p);
                let kind = Kind::Directory(BTreeMap::new());
                let answer = self.model.make(parent, text(n), kind, new);
                let (name, mode) = (name(text(n)), 0o755);
                plain(Operation::MakeDirectory { parent, name, mode }, answer)
            }
            Step::Symlink(p, n) => {
                let parent = self.object(p);
                let answer = self.model.make(parent, text(n), Kind::Symlink, new);
                let (name, target) = (name(text(n)), name("target"));
                plain(
                    Operation::Symlink {
                        parent,
                        name,
                        target,
                    },
                    answer,
                )
            }
            Step::Unlink(p, n) => {
                let parent = self.object(p);
                let answer = self.model.remove(parent, text(n), false);
                let name = name(text(n));
                plain(Operation::Unlink { parent, name }, answer)
            }
            Step::Rmdir(p, n) => {
                let parent = self.object(p);
                let answer = self.model.remove(parent, text(n), true);
                let name = name(text(n));
                plain(Operation::RemoveDirectory { parent, name }, answer)
            }
            Step::Rename(p, a, q, b, flags) => {
                let (from, to) = (self.object(p), self.object(q));
                let answer = self.model.rename((from, text(a)), (to, text(b)), flags);
                let operation = Operation::Rename {
                    parent: from,
                    name: name(text(a)),
                    new_parent: to,
                    new_name: name(text(b)),
                    flags,
                };
                plain(operation, answer)
            }
            Step::Link(o, p, n) => {
                let (object, new_parent) = (self.object(o), self.object(p));
                let answer = self.model.link(object, new_parent, text(n));
                let new_name = name(text(n));
                plain(
                    Operation::Link {
                        object,
                        new_parent,
                        new_name,
                    },
                    answer,
                )
            }
            _ => self.plan_data(step),
        }
    }

    fn plan_data(&mut self, step: &Step) -> Option<(Operation, Vec<u8>, Answer)> {
        match *step {
            Step::Write(o, offset, len, append) => {
                let object = self.object(o);
                let data: Vec<u8> = (0..len).map(|n| (n % 251) as u8 + 1).collect();
                let answer = self.model.data(object).map(|stored| {
                    let at = if append {
                        stored.len()
                    } else {
                        usize::from(offset)
                    };
                    if !data.is_empty() {
                        stored.resize(stored.len().max(at + data.len()), 0);
                        stored[at..at + data.len()].copy_from_slice(&data);
                    }
                    None
                });
                if answer.is_ok() && !data.is_empty() {
                    let node = self.model.nodes.get_mut(&object).expect("written");
                    node.xattrs.remove("security.capability");
                }
                let offset = u64::from(offset);
                let operation = Operation::Write {
                    object,
                    offset,
                    append,
                    kill_privileges: false,
                };
                Some((operation, data, answer))
            }
            Step::Resize(o, size) => {
                let object = self.object(o);
                let answer = self.model.data(object).map(|stored| {
                    stored.resize(usize::from(size), 0);
                    Some(object)
                });
                if answer.is_ok() {
                    let node = self.model.nodes.get_mut(&object).expect("resized");
                    node.xattrs.remove("security.capability");
                }
                let set = SetAttributes {
                    size: Some(u64::from(size)),
                    ..SetAttributes::default()
                };
                Some((Operation::SetAttributes { object, set }, Vec::new(), answer))
            }
            Step::Punch(o, offset, len) => {
                let object = self.object(o);
                let answer = self.model.data(object).map(|stored| {
                    let end = stored.len().min(usize::from(offset) + usize::from(len));
                    if let Some(hole) = stored.get_mut(usize::from(offset)..end) {
                        hole.fill(0);
                    }
                    Some(object)
                });
                let answer = answer.map_err(|e| if e == EINVAL { ENODEV } else { e });
                let (mode, offset, len) = (3, u64::from(offset), u64::from(len));
                let operation = Operation::Allocate {
                    object,
                    mode,
                    offset,
                    len,
                };
                Some((operation, Vec::new(), answer))
            }
            _ => self.plan_rest(step),
        }
    }

    fn plan_rest(&mut self, step: &Step) -> Option<(Operation, Vec<u8>, Answer)> {
        match *step {
            Step::Open(o) => {
                let object = self.object(o);
                if self.model.nodes.contains_key(&object) {
                    self.model.open.insert(object);
                    self.bench.open.insert(object);
                }
                None
            }
            Step::Close(o) => {
                let object = self.object(o);
                self.model.open.remove(&object);
                self.bench.open.remove(&object);
                if self.model.nodes.get(&object).is_some_and(|n| n.names == 0) {
                    self.model.nodes.remove(&object);
                }
                self.bench.volume.release(object).expect("memory");
                None
            }
            Step::SetXattr(o, x, flags) => {
                let object = self.object(o);
                let answer = match self.model.nodes.get_mut(&object) {
                    None => Err(ESTALE),
                    Some(node) => match (node.xattrs.contains_key(XATTRS[x]), flags) {
                        (true, 1) => Err(EEXIST),
                        (false, 2) => Err(ENODATA),
                        _ => {
                            node.xattrs.insert(XATTRS[x].to_owned(), b"value".to_vec());
                            Ok(None)
                        }
                    },
                };
                let name = name(XATTRS[x]);
                let operation = Operation::SetXattr {
                    object,
                    name,
                    flags,
                };
                Some((operation, b"value".to_vec(), answer))
            }
            Step::RemoveXattr(o, x) => {
                let object = self.object(o);
                let answer = match self.model.nodes.get_mut(&object) {
                    None => Err(ESTALE),
                    Some(node) => match node.xattrs.remove(XATTRS[x]) {
                        None => Err(ENODATA),
                        Some(_) => Ok(None),
                    },
                };
                let name = name(XATTRS[x]);
                Some((Operation::RemoveXattr { object, name }, Vec::new(), answer))
            }
            _ => None,
        }
    }

    fn play(&mut self, step: &Step) {
        let Some((operation, payload, expected)) = self.plan(step) else {
            return;
        };
        let request = self.bench.request(operation, &payload);
        let outcome = self.bench.serve(&request);
        let got = match &outcome {
            Outcome::Error(errno) => Err(*errno),
            Outcome::Entry(a) | Outcome::Attributes(a) => Ok(Some(a.object)),
            _ => Ok(None),
        };
        assert_eq!(got, expected, "{request:?}");
        if let Ok(Some(object)) = got
            && !self.made.contains(&object)
        {
            self.made.push(object);
        }
        // The reply is kept: asking again answers the same and changes nothing. (A failed
        // request keeps none, but fails again as long as nothing else happened.)
        let before = self.bench.volume.clone();
        assert_eq!(self.bench.serve(&request), outcome, "again: {request:?}");
        assert_eq!(self.bench.volume, before, "again: {request:?}");
    }

    fn compare(&mut self) {
        let mut expected = BTreeMap::new();
        self.model.paths(ROOT, "", &mut expected);
        let mut walked = BTreeMap::new();
        crate::walk(&self.bench.volume, &mut |path, object, _| {
            walked.insert(String::from_utf8_lossy(path).into_owned(), object);
            true
        })
        .expect("memory");
        assert_eq!(walked, expected);
        let objects = crate::objects(&self.bench.volume).expect("memory");
        assert_eq!(objects, self.model.nodes.len() as u64);
        let orphans = self.model.nodes.iter().filter(|(_, n)| n.names == 0);
        let orphans: Vec<_> = orphans.map(|(object, _)| *object).collect();
        assert_eq!(crate::orphans(&self.bench.volume).expect("memory"), orphans);
        for (object, node) in self.model.nodes.clone() {
            let attributes = self.bench.attributes(object);
            assert_eq!(attributes.nlink, self.model.nlink(object), "{object}");
            let mut list = Vec::new();
            for text in node.xattrs.keys() {
                list.extend_from_slice(text.as_bytes());
                list.push(0);
            }
            let listed = self.bench.run(Operation::ListXattrs { object });
            assert_eq!(listed, Outcome::Data(Bytes::from(list)));
            match node.kind {
                Kind::File(data) => {
                    assert_eq!(attributes.size, data.len() as u64);
                    let len = u32::try_from(data.len()).expect("small");
                    assert_eq!(self.bench.volume.read(object, 0, len), data);
                }
                // A removed directory cannot be listed, held open or not.
                Kind::Directory(_) if node.names == 0 => {}
                Kind::Directory(names) => {
                    assert_eq!(attributes.size, names.len() as u64);
                    let listed = self.bench.names(object, 1);
                    let listed: BTreeSet<_> = listed.into_iter().collect();
                    assert_eq!(listed, names.into_keys().collect());
                }
                Kind::Symlink => {}
            }
        }
        let live = |object: &ObjectId| self.model.nodes.contains_key(object);
        assert!(self.bench.volume.objects_with_data().all(|o| live(&o)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_end_as_in_a_simple_file_system(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut duel = Duel {
            bench: Bench::new(),
            model: Model::new(),
            made: vec![ROOT],
        };
        for step in &steps {
            duel.play(step);
        }
        duel.compare();
    }
}
