//! The one tool: `cargo xtask COMMAND`. See `docs/testing.md`.

#![forbid(unsafe_code)]

mod packages;
mod tidy;
mod tools;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

const HELP: &str = "\
cargo xtask test [--full]      everything that must hold: packages, tidy, format, lints, documentation, tests, demo
cargo xtask ci                 the same, as .ci/run calls it: a skipped test is a failure
cargo xtask tidy               dependency edges, purity, file and function lengths, words
cargo xtask sim --seeds N      N fresh seeds of the simulated system; --seed S repeats one and tells everything
cargo xtask mistakes --seeds N deliberate mistakes, N seeds for each to be found in
cargo xtask schedules --seeds N   N fresh schedules of the replica-set machine; --seed S draws 1,000 from one seed
cargo xtask crash --seeds N    N seeds of the crashing disk under the brick
cargo xtask power-cut --moments N   cuts the power of real bricks at N random moments
cargo xtask kill --rounds N    kills daemons under a writer, N rounds
cargo xtask failover [--rounds N] [--only FAULT] [--out FILE]   nodes die, freeze, are cut off: how long a writer waits
cargo xtask resync [--mib N] [--object-mib N] [--out DIR]   what a resync sends, how fast, and what applications notice
cargo xtask volumes [--count N] [--out FILE]   N volumes over five nodes: what they cost, and what the leader's death does
cargo xtask memory --files N   how the memory of daemons and of a mount grows with files and sparse data
cargo xtask soak [--minutes N] a mount under load for an hour: how its memory grows with time
cargo xtask suites [--full]    pjdfstest, fsx on one file, and databases, git and the like on a mount; --full: 1,000,000 operations of fsx a mode, 200,000 while the primary is killed every second, ten times the data, minutes of load
cargo xtask fuzz [--seconds S] random and mutated bytes into every decoder
cargo xtask bench [ARGS…]      benches/compare: the same workloads on local, FUSE, GlusterFS and Cairn
cargo xtask docs               builds the documentation, warnings are errors
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

// A table: one row a command.
fn run(args: &[String]) -> Result<()> {
    let root = root()?;
    std::env::set_current_dir(&root).context("enter the workspace")?;
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", rest @ ..] => test(rest.contains(&"--full"), false),
        ["ci"] => test(false, true),
        ["tidy"] => tidy::check(&root),
        ["docs"] => docs(),
        ["sim", rest @ ..] => sim(rest),
        ["mistakes", rest @ ..] => {
            let seeds = number(rest, "--seeds")?.unwrap_or(300);
            simulation(
                "deliberate_mistakes",
                &[("CAIRN_SIM_HUNT", seeds.to_string())],
            )
        }
        ["schedules", rest @ ..] => schedules(rest),
        ["crash", rest @ ..] => {
            let seeds = number(rest, "--seeds")?.unwrap_or(1000);
            let env = [("CAIRN_CRASH_SEEDS", seeds.to_string())];
            let args = [
                "test",
                "--release",
                "-p",
                "cairn-storage",
                "crash",
                "--",
                "--nocapture",
            ];
            cargo_env(&args, &env)
        }
        ["kill", rest @ ..] => {
            let rounds = number(rest, "--rounds")?.unwrap_or(200);
            let env = [("CAIRN_KILL_ROUNDS", rounds.to_string())];
            cargo(&["build", "-p", "cairn"])?;
            cargo_env(
                &[
                    "test",
                    "-p",
                    "cairn-tests",
                    "--test",
                    "kill",
                    "--",
                    "--nocapture",
                ],
                &env,
            )
        }
        ["failover", rest @ ..] => failover(rest),
        ["resync", rest @ ..] => resync(rest),
        ["volumes", rest @ ..] => volumes(rest),
        ["suites"] => suites(false),
        ["suites", "--full"] => suites(true),
        ["power-cut", rest @ ..] => {
            let moments = number(rest, "--moments")?.unwrap_or(200);
            let env = [("CAIRN_POWER_CUTS", moments.to_string())];
            cargo(&["build", "-p", "cairn"])?;
            let args = [
                "test",
                "-p",
                "cairn-tests",
                "--test",
                "power_cut",
                "--",
                "--nocapture",
            ];
            cargo_env(&args, &env)
        }
        ["memory", rest @ ..] => {
            let files = number(rest, "--files")?.unwrap_or(1_000_000);
            let env = [
                ("CAIRN_MEMORY_FILES", files.to_string()),
                ("CAIRN_MEMORY_SPARSE_GB", "100".to_owned()),
            ];
            measure("memory", env.into())
        }
        ["soak", rest @ ..] => {
            let minutes = number(rest, "--minutes")?.unwrap_or(60);
            let env = [
                ("CAIRN_MEMORY_SPARSE_GB", "1".to_owned()),
                ("CAIRN_SOAK_SECONDS", (minutes * 60).to_string()),
            ];
            measure("memory", env.into())
        }
        ["fuzz", rest @ ..] => {
            let seconds = number(rest, "--seconds")?.unwrap_or(60);
            let env = [("CAIRN_FUZZ_SECONDS", seconds.to_string())];
            let args = [
                "test",
                "--release",
                "-p",
                "cairn-tests",
                "--test",
                "decoders",
                "--",
            ];
            cargo_env(&[&args[..], &["--nocapture"]].concat(), &env)
        }
        ["bench", rest @ ..] => {
            cargo(&["build", "--release", "-p", "cairn"])?;
            let args = [
                "run",
                "--release",
                "-p",
                "cairn-benches",
                "--bin",
                "compare",
                "--",
            ];
            cargo(&[&args[..], rest].concat())
        }
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        [other, ..] => bail!("there is no `{other}`\n{HELP}"),
    }
}

/// The value after a flag.
fn number(args: &[&str], flag: &str) -> Result<Option<u64>> {
    let Some(at) = args.iter().position(|arg| *arg == flag) else {
        ensure!(args.is_empty(), "unknown words: {}", args.join(" "));
        return Ok(None);
    };
    let value = args
        .get(at + 1)
        .with_context(|| format!("{flag} needs a number"))?;
    Ok(Some(value.parse().with_context(|| {
        format!("{flag} needs a number, not `{value}`")
    })?))
}

fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("xtask lies in the workspace")?
        .to_owned())
}

fn cargo(args: &[&str]) -> Result<()> {
    cargo_env(args, &[])
}

fn cargo_env(args: &[&str], env: &[(&str, String)]) -> Result<()> {
    eprintln!("── cargo {}", args.join(" "));
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(args);
    for (key, value) in env {
        command.env(key, value);
    }
    let began = std::time::Instant::now();
    let status = command.status().context("run cargo")?;
    eprintln!("── {} s", began.elapsed().as_secs());
    ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}

fn docs() -> Result<()> {
    let flags = "-D warnings -A rustdoc::private_intra_doc_links".to_owned();
    cargo_env(
        &[
            "doc",
            "--workspace",
            // Comments on a program's arguments are its help, not documentation.
            "--lib",
            "--no-deps",
            "--document-private-items",
            "--quiet",
        ],
        &[("RUSTDOCFLAGS", flags)],
    )
}

/// Runs a test of the simulation, optimised as development builds are, with assertions.
fn simulation(name: &str, env: &[(&str, String)]) -> Result<()> {
    let args = ["test", "-p", "cairn-tests", "--test", "simulation", name];
    cargo_env(&[&args[..], &["--", "--nocapture"]].concat(), env)
}

fn sim(args: &[&str]) -> Result<()> {
    let name = "whatever_happens";
    if let Some(seed) = number_of(args, "--seed")? {
        return simulation(name, &[("CAIRN_SIM_SEED", seed.to_string())]);
    }
    let seeds = number_of(args, "--seeds")?.unwrap_or(20_000);
    let from = match number_of(args, "--from")? {
        Some(from) => from,
        None => u64::from(std::process::id()) * 1_000_000,
    };
    let env = [
        ("CAIRN_SIM_SEEDS", seeds.to_string()),
        ("CAIRN_SIM_FROM", from.to_string()),
    ];
    simulation(name, &env)
}

/// Runs a test program of whole nodes on a release build, one test after the other, and shows what
/// it prints.
fn measure(test: &str, mut env: Vec<(&'static str, String)>) -> Result<()> {
    cargo(&["build", "--release", "-p", "cairn"])?;
    env.push(("CAIRN_BIN", absolute("target/release/cairn")?));
    let args = ["test", "-p", "cairn-tests", "--test", test, "--"];
    let one = ["--nocapture", "--test-threads=1"];
    cargo_env(&[&args[..], &one[..]].concat(), &env)
}

/// A path as a test sees it, which runs in its own crate's directory.
fn absolute(path: &str) -> Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

/// Faults of real nodes, N rounds of each with the pool's leader there and elsewhere.
fn failover(args: &[&str]) -> Result<()> {
    let mut env = vec![("CAIRN_FAILOVER_MEASURE", "1".to_owned())];
    let mut rounds = 20;
    for pair in args.chunks(2) {
        match pair {
            ["--rounds", value] => {
                rounds = value
                    .parse()
                    .ok()
                    .filter(|rounds| *rounds > 0)
                    .with_context(|| format!("--rounds needs a number from 1 on, not `{value}`"))?;
            }
            ["--only", fault] => env.push(("CAIRN_FAILOVER_ONLY", (*fault).to_owned())),
            ["--out", file] => env.push(("CAIRN_FAILOVER_OUT", absolute(file)?)),
            other => bail!("unknown or incomplete: {}", other.join(" ")),
        }
    }
    env.push(("CAIRN_FAILOVER_ROUNDS", u64::to_string(&rounds)));
    measure("failover", env)
}

/// Suites that others wrote, and software as it comes from Debian, on a release build.
fn suites(full: bool) -> Result<()> {
    packages::ensure()?;
    tools::ensure()?;
    let sizes = |sizes: &[(&'static str, &str)]| {
        let sizes = sizes.iter().filter(|_| full);
        sizes
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect()
    };
    let operations = [
        ("CAIRN_FSX_OPERATIONS", "1000000"),
        ("CAIRN_FSX_KILLED_OPERATIONS", "200000"),
    ];
    measure("suites", sizes(&operations))?;
    let software = [
        ("CAIRN_SOFTWARE_SECONDS", "120"),
        ("CAIRN_SOFTWARE_SCALE", "10"),
        ("CAIRN_SOFTWARE_KILL_EVERY", "10"),
        ("CAIRN_SOFTWARE_STRESS_SECONDS", "10"),
    ];
    measure("software", sizes(&software))
}

fn resync(args: &[&str]) -> Result<()> {
    let (mut mib, mut object_mib) = (4096, 10_240);
    let mut env = vec![("CAIRN_CATCHING_UP_SECONDS", "20".to_owned())];
    for pair in args.chunks(2) {
        let number = |value: &str| value.parse::<u64>().with_context(|| format!("{pair:?}"));
        match pair {
            ["--mib", value] => mib = number(value)?,
            ["--object-mib", value] => object_mib = number(value)?,
            ["--out", dir] => env.push(("CAIRN_CATCHING_UP_OUT", absolute(dir)?)),
            other => bail!("unknown or incomplete: {}", other.join(" ")),
        }
    }
    env.push(("CAIRN_CATCHING_UP_MIB", mib.to_string()));
    env.push(("CAIRN_CATCHING_UP_OBJECT_MIB", object_mib.to_string()));
    env.push(("CAIRN_CATCHING_UP_WRITES", (object_mib * 50).to_string()));
    measure("catching_up", env)
}

fn volumes(args: &[&str]) -> Result<()> {
    let mut env = vec![("CAIRN_VOLUMES_SECONDS", "10".to_owned())];
    let mut count = 1000;
    for pair in args.chunks(2) {
        match pair {
            ["--count", value] => {
                let number = value.parse::<u64>().ok().filter(|count| *count >= 20);
                count = number.with_context(|| format!("--count from 20 on, not `{value}`"))?;
            }
            ["--out", file] => env.push(("CAIRN_VOLUMES_OUT", absolute(file)?)),
            other => bail!("unknown or incomplete: {}", other.join(" ")),
        }
    }
    env.push(("CAIRN_VOLUMES", count.to_string()));
    measure("many_volumes", env)
}

fn schedules(args: &[&str]) -> Result<()> {
    let (cases, seed) = match (number_of(args, "--seed")?, number_of(args, "--seeds")?) {
        (Some(seed), _) => (1000, seed),
        (None, cases) => (cases.unwrap_or(20_000), std::process::id().into()),
    };
    // Proptest draws every schedule from this one seed: the same seed and count are the same run.
    println!("schedules: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}");
    let env = [
        ("PROPTEST_RNG_SEED", seed.to_string()),
        ("PROPTEST_CASES", cases.to_string()),
    ];
    cargo_env(
        &[
            "test",
            "--release",
            "-p",
            "cairn-replication",
            "machine::tests",
        ],
        &env,
    )?;
    println!("schedules: {cases} a property, seed {seed}, none failed");
    Ok(())
}

fn number_of(args: &[&str], flag: &str) -> Result<Option<u64>> {
    if args.contains(&flag) {
        number(args, flag)
    } else {
        Ok(None)
    }
}

/// Everything that must hold. Two builds: tests with assertions, the demo as it ships.
fn test(full: bool, ci: bool) -> Result<()> {
    packages::ensure()?;
    tools::ensure()?;
    let root = root()?;
    tidy::check(&root)?;
    if ci {
        eprintln!("── a part that is missing makes a test say SKIPPED; here that is a failure");
    }
    let strict = [(
        "CAIRN_SKIP_IS_FAILURE",
        if ci { "1" } else { "0" }.to_owned(),
    )];
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])?;
    docs()?;
    cargo(&["build", "--workspace", "--bins"])?;
    cargo_env(&["test", "--workspace", "--no-fail-fast"], &strict)?;
    cargo(&["run", "--release", "--quiet", "-p", "cairn", "--", "demo"])?;
    if full {
        run(&["crash".to_owned(), "--seeds".to_owned(), "5000".to_owned()])?;
        run(&["sim".to_owned(), "--seeds".to_owned(), "20000".to_owned()])?;
        run(&[
            "schedules".to_owned(),
            "--seeds".to_owned(),
            "50000".to_owned(),
        ])?;
        run(&[
            "power-cut".to_owned(),
            "--moments".to_owned(),
            "200".to_owned(),
        ])?;
        run(&["kill".to_owned(), "--rounds".to_owned(), "200".to_owned()])?;
        run(&["suites".to_owned(), "--full".to_owned()])?;
        run(&["fuzz".to_owned(), "--seconds".to_owned(), "3600".to_owned()])?;
    }
    Ok(())
}
