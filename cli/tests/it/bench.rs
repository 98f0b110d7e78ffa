//! `cairn bench`: that it measures, says what, and leaves nothing behind. Not how fast it is.

use serde_json::Value;

use crate::support::{Node, Run, cairn, directory};

/// The figures, each checked to be one.
fn figures(run: Run) -> Vec<Value> {
    let report = run.done().json();
    for key in ["kernel", "cpu", "cores", "memory_bytes", "load_before"] {
        assert!(!report["machine"][key].is_null(), "{key}: {report}");
    }
    let results = report["results"].as_array().expect("figures").clone();
    for figure in &results {
        assert!(figure["value"].as_f64() > Some(0.0), "{figure}");
        for key in [
            "workload",
            "unit",
            "p50_us",
            "p99_us",
            "limit",
            "ratio_to_limit",
        ] {
            assert!(figure.get(key).is_some(), "{key} is left out: {figure}");
        }
    }
    results
}

#[test]
fn a_disk_is_measured_and_left_as_it_was() {
    let root = directory();
    let dir = root.path().to_str().expect("text");
    let results = figures(cairn(&["bench", "disk", dir, "--small", "--json", "-q"]));
    let of = |name: &str| results.iter().find(|figure| figure["workload"] == name);
    for name in [
        "seq_write_1m",
        "rand_write_4k_fdatasync",
        "rand_read_4k_direct_16",
    ] {
        assert!(of(name).is_some(), "{name}: {results:?}");
    }
    assert_eq!(std::fs::read_dir(root.path()).expect("list").count(), 0);
}

#[test]
fn the_way_to_a_node_is_measured_beside_its_limit() {
    let root = directory();
    let node = Node::start(root.path(), "a");
    let results = figures(node.run(&["bench", "net", "a", "--small", "--json", "-q"]));
    assert_eq!(results.len(), 2);
    for figure in results {
        assert!(figure["ratio_to_limit"].as_f64() > Some(0.0), "{figure}");
    }
    let run = node.run(&["bench", "net", "b", "--small"]);
    run.refused(1, "no node of the pool is called `b`", "peer status");
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    for what in ["fs", "disk"] {
        let run = cairn(&["bench", what, "/nowhere/at/all", "--small"]);
        run.refused(1, "/nowhere/at/all cannot be used", "existing directory");
    }
}
