//! `cairn volume create`: Gluster's grammar.

use protocol::control::{BrickPlace, ChangeBricks, ControlRequest, CreateVolume};
use protocol::options::{nearest, parse_size};
use protocol::volume::{Protocol, Quorum, VolumeKind};

use crate::args::{BricksArgs, CreateArgs, KindArg, ProtocolArg, QuorumArg};
use crate::failure::Failure;

const EXAMPLE: &str =
    "For example: cairn volume create v1 replica 2 node1:/bricks/v1 node2:/bricks/v1";

/// The words after the name.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    replica: usize,
    bricks: Vec<BrickPlace>,
    force: bool,
}

/// The request that the words mean.
pub(super) fn request(args: CreateArgs) -> Result<ControlRequest, Failure> {
    let words = parse(&args.words)?;
    let size_bytes = match &args.size {
        None => None,
        Some(text) => Some(parse_size(text).ok_or_else(|| {
            Failure::usage(
                format!("`{text}` is not a size"),
                "Sizes are bytes, or numbers with K, M, G or T.",
            )
        })?),
    };
    Ok(ControlRequest::VolumeCreate(CreateVolume {
        name: args.name,
        kind: match args.kind {
            KindArg::Fs => VolumeKind::Fs,
            KindArg::Block => VolumeKind::Block,
        },
        size_bytes,
        protocol: match args.protocol {
            ProtocolArg::A => Protocol::A,
            ProtocolArg::B => Protocol::B,
            ProtocolArg::C => Protocol::C,
        },
        quorum: args.quorum.map(|quorum| match quorum {
            QuorumArg::Majority => Quorum::Majority,
            QuorumArg::Off => Quorum::Off,
        }),
        replica: words.replica,
        bricks: words.bricks,
        force: words.force,
    }))
}

/// What is done to a volume's bricks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// They come.
    Add,
    /// They go.
    Remove,
    /// The second takes the place of the first.
    Replace,
}

/// The request that the words of `add-brick`, `remove-brick` and `replace-brick` mean.
pub(super) fn bricks(args: BricksArgs, change: Change) -> Result<ControlRequest, Failure> {
    let example = match change {
        Change::Add => "For example: cairn volume add-brick v1 replica 3 node3:/bricks/v1",
        Change::Remove => "For example: cairn volume remove-brick v1 replica 2 node3:/bricks/v1",
        Change::Replace => {
            "For example: cairn volume replace-brick v1 node2:/bricks/old node2:/bricks/new"
        }
    };
    let mut given = args.words;
    if change == Change::Replace {
        // Gluster's word for the only way there is.
        given.retain(|word| word != "commit");
    }
    let said = given.iter().any(|word| word == "replica");
    let words = parse(&given)?;
    let mut bricks = words.bricks;
    if said == (change == Change::Replace) {
        let what = if said {
            "is not said here"
        } else {
            "is missing"
        };
        return Err(Failure::usage(format!("`replica N` {what}"), example));
    }
    let (add, remove) = match change {
        Change::Add => (bricks, Vec::new()),
        Change::Remove => (Vec::new(), bricks),
        Change::Replace if bricks.len() == 2 => {
            let new = bricks.split_off(1);
            (new, bricks)
        }
        Change::Replace => {
            return Err(Failure::usage("an old and a new brick are needed", example));
        }
    };
    Ok(ControlRequest::VolumeBricks(ChangeBricks {
        name: args.name,
        replica: said.then_some(words.replica),
        add,
        remove,
        force: words.force,
        wait: args.wait,
    }))
}

/// `[replica N] [transport tcp] HOST:/path… [force]`.
fn parse(words: &[String]) -> Result<Words, Failure> {
    let mut replica = None;
    let mut bricks = Vec::new();
    let mut force = false;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "replica" => {
                let count = rest.next().map(String::as_str).unwrap_or_default();
                let parsed: usize = count.parse().map_err(|_| {
                    Failure::usage(format!("`replica {count}` is not a number"), EXAMPLE)
                })?;
                if replica.replace(parsed).is_some() {
                    return Err(Failure::usage("`replica` was given twice", EXAMPLE));
                }
            }
            "transport" => match rest.next().map(String::as_str) {
                Some("tcp") => {}
                other => {
                    return Err(Failure::usage(
                        format!("transport `{}` does not exist", other.unwrap_or_default()),
                        "The transport is tcp.",
                    ));
                }
            },
            "force" => force = true,
            brick => bricks.push(parse_brick(brick)?),
        }
    }
    if bricks.is_empty() {
        return Err(Failure::usage("no brick was given", EXAMPLE));
    }
    Ok(Words {
        replica: replica.unwrap_or(bricks.len()),
        bricks,
        force,
    })
}

/// HOST:/path, IPv6 in brackets.
fn parse_brick(word: &str) -> Result<BrickPlace, Failure> {
    let not_a_brick = || {
        let keywords = ["replica", "transport", "force"];
        let hint = match nearest(word, keywords.into_iter()) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => EXAMPLE.to_owned(),
        };
        Failure::usage(format!("`{word}` is not a brick: HOST:/path"), &hint)
    };
    let (host, path) = match word.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").ok_or_else(not_a_brick)?,
        None => word.split_once(':').ok_or_else(not_a_brick)?,
    };
    if host.is_empty() || !path.starts_with('/') {
        return Err(not_a_brick());
    }
    Ok(BrickPlace {
        host: host.to_owned(),
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Words, Failure> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn glusters_words_parse_in_any_order() {
        let usual = words("replica 2 transport tcp node1:/b node2:/b force").expect("valid");
        assert_eq!(usual.replica, 2);
        assert!(usual.force);
        assert_eq!(usual.bricks[1].host, "node2");
        let other = words("transport tcp node1:/b force node2:/b replica 2").expect("valid");
        assert_eq!(usual, other);
    }

    #[test]
    fn ipv6_hosts_stand_in_brackets() {
        let words = words("[fd00::1]:/bricks/v1").expect("valid");
        assert_eq!(words.bricks[0].host, "fd00::1");
        assert_eq!(words.replica, 1);
    }

    #[test]
    fn a_wrong_word_is_wrong_usage_with_the_nearest() {
        for (text, hint) in [
            ("replcia 2 node1:/b", "Did you mean `replica`?"),
            ("node1:/b forec", "Did you mean `force`?"),
            ("node1:relative", EXAMPLE),
            ("replica two node1:/b", EXAMPLE),
            ("replica 2", EXAMPLE),
            ("transport rdma node1:/b", "The transport is tcp."),
        ] {
            let failure = words(text).expect_err(text);
            assert_eq!(
                (failure.exit_code, failure.hint.as_str()),
                (2, hint),
                "{text}"
            );
        }
    }

    fn changed(text: &str, change: Change) -> Result<ChangeBricks, Failure> {
        let args = BricksArgs {
            name: "v1".to_owned(),
            words: text.split_whitespace().map(str::to_owned).collect(),
            wait: false,
        };
        match bricks(args, change)? {
            ControlRequest::VolumeBricks(change) => Ok(change),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bricks_are_changed_in_glusters_words() {
        let added = changed("replica 3 node3:/b force", Change::Add).expect("valid");
        assert_eq!(
            (added.replica, added.add.len(), added.force),
            (Some(3), 1, true)
        );
        let gone = changed("replica 1 node3:/b node2:/b", Change::Remove).expect("valid");
        assert_eq!((gone.replica, gone.remove.len()), (Some(1), 2));
        let other = changed("n:/old n:/new commit force", Change::Replace).expect("valid");
        assert_eq!(other.replica, None);
        assert_eq!(
            (&*other.remove[0].path, &*other.add[0].path),
            ("/old", "/new")
        );
        for (text, change, why) in [
            ("node3:/b", Change::Add, "`replica N` is missing"),
            ("replica 2 a:/b c:/d", Change::Replace, "is not said here"),
            ("a:/b", Change::Replace, "an old and a new brick"),
            ("replica 2", Change::Remove, "no brick was given"),
        ] {
            let failure = changed(text, change).expect_err(text);
            assert!(
                failure.message.contains(why) && failure.exit_code == 2,
                "{failure:?}"
            );
        }
    }
}
