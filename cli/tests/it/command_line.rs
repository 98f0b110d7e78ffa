//! The command line itself: exit statuses, errors, pipes.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::support::{CAIRN, Node, Run, cairn, directory, output, signal, spawn};

#[test]
fn without_a_daemon_every_command_ends_with_3_and_a_hint() {
    let root = directory();
    let dir = root.path().to_str().expect("text");
    for words in [
        vec!["peer", "status"],
        vec!["volume", "list"],
        vec!["status"],
        vec!["why"],
        vec!["events"],
    ] {
        // Global flags stand before and after the command.
        let before: Vec<&str> = [&["--data-dir", dir][..], &words].concat();
        let after: Vec<&str> = [&words[..], &["--data-dir", dir]].concat();
        for args in [before, after] {
            cairn(&args).refused(3, "no daemon runs with the data directory", "cairn daemon");
        }
    }
}

#[test]
fn wrong_words_end_with_2_and_the_nearest_right_one() {
    for (words, hint) in [
        (&["pear", "status"][..], "Did you mean `peer`?"),
        (&["volume", "strat", "v1"], "Did you mean `start`?"),
        (&["status", "--jsno"], "Did you mean `--json`?"),
        (
            &["volume", "create", "v1", "--protcol", "C", "n:/b"],
            "Did you mean `--protocol`?",
        ),
        (
            &["volume", "create", "v1", "--type", "blok", "n:/b"],
            "Did you mean `block`?",
        ),
        (&["volume", "promote", "v1"], "cairn volume promote --help"),
        (&["volume"], "cairn volume --help"),
    ] {
        let run = cairn(words).refused(2, "", hint);
        assert_eq!(run.stderr.lines().count(), 2, "{run:?}");
        assert_eq!(run.stdout, "");
        let run = cairn(&[words, &["--json"]].concat());
        assert_eq!((run.code, run.stderr.lines().count()), (2, 2), "{run:?}");
        let error = &run.json()["error"];
        assert_eq!(
            (&error["kind"], &error["exit_code"]),
            (&"usage".into(), &2.into())
        );
        assert!(run.stderr.contains(error["hint"].as_str().expect("a hint")));
    }
}

#[test]
fn an_error_is_one_sentence_one_hint_and_with_json_one_value() {
    let root = directory();
    let dir = root.path().to_str().expect("text");
    let run = cairn(&["--json", "--data-dir", dir, "volume", "list"]);
    assert_eq!(run.stderr.lines().count(), 2, "{run:?}");
    let error = &run.json()["error"];
    assert_eq!(error["kind"], "no_daemon");
    assert_eq!(error["exit_code"], 3);
    assert!(error["message"].is_string() && error["hint"].is_string());
}

#[test]
fn help_and_version_and_completions_are_answers() {
    assert!(cairn(&["--version"]).done().stdout.starts_with("cairn "));
    assert!(cairn(&["--help"]).done().stdout.contains("volume"));
    assert!(
        cairn(&["volume", "create", "--help"])
            .done()
            .stdout
            .contains("replica N")
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            cairn(&["completions", shell])
                .done()
                .stdout
                .contains("volume")
        );
    }
}

#[test]
fn the_option_table_needs_no_daemon() {
    let run = cairn(&["volume", "options", "--json"]).done();
    let table = run.json();
    let rows = table["options"].as_array().expect("rows");
    for row in rows {
        for key in ["key", "default", "range", "meaning"] {
            assert!(row[key].is_string(), "{row}");
        }
    }
    assert!(rows.iter().any(|row| row["key"] == "min-in-sync"));
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let mut command = Command::new(CAIRN);
    command.args(["volume", "options"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command).expect("runs");
    // Closed before anything was read.
    drop(child.stdout.take());
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().expect("piped");
    pipe.read_to_string(&mut stderr).expect("text");
    let code = child.wait().expect("ends").code();
    // It may have written into the pipe before we closed it.
    assert!(matches!(code, Some(0 | 141)), "{code:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn wrong_settings_are_named() {
    cairn(&["daemon", "--listen", "nowhere"]).refused(2, "`nowhere` is not ADDR", "--help");
    cairn(&["daemon", "--listen", "127.0.0.1", "--name", "a b"]).refused(
        2,
        "cannot be a node's name",
        "--help",
    );
    cairn(&["daemon", "--config", "/no/such/file"]).refused(1, "/no/such/file", "--config");
}

#[test]
fn the_program_called_cairnd_is_the_daemon() {
    let root = directory();
    let link = root.path().join("cairnd");
    std::os::unix::fs::symlink(CAIRN, &link).expect("a link");
    let output = output(Command::new(&link).arg("--help")).expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("--listen"));
}

#[test]
fn events_are_kept_across_a_restart_and_printed_as_one_value() {
    let root = directory();
    let mut node = Node::start(root.path(), "node1");
    let other = Node::start(root.path(), "node2");
    node.admit(&other);
    node.kill();
    node.restart();
    let events = node.facts("events");
    let admitted = events["events"]
        .as_array()
        .expect("events")
        .iter()
        .find(|event| event["kind"] == "node_admitted")
        .expect("it is kept");
    assert_eq!(admitted["node"], "node1");
    assert!(admitted["time"].is_string());
}

#[test]
fn sighup_reads_the_settings_again_and_says_what_waits_for_a_restart() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    std::fs::write(node.settings_path(), "http-full = true\n").expect("settings");
    signal("-HUP", node.pid());
    node.wait("events", |events| {
        events["events"].as_array().is_some_and(|all| {
            all.iter().any(|event| {
                event["kind"] == "configuration_read"
                    && event["message"]
                        .as_str()
                        .is_some_and(|text| text.contains("http-full"))
            })
        })
    });
}

/// An ordinary user who may not use the local daemon is told so at once, and not after waiting for
/// a node.
#[test]
fn a_mount_by_a_user_without_the_right_says_which_right_is_missing() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.path(), open).expect("opened");
    let program = root.path().join("cairn");
    std::fs::copy(CAIRN, &program).expect("a copy that everybody may run");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(&program).arg("--data-dir").arg(&node.dir);
    command.args(["mount", "127.0.0.1:/v1", "/mnt", "--foreground"]);
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: becoming another user needs root");
        return;
    }
    let run = Run::of(&output(&mut command).expect("setpriv runs"));
    run.refused(
        1,
        "this user may not use the local daemon",
        "usermod -aG cairn",
    );
}
