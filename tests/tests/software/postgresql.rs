//! PostgreSQL 15, with checksums of its pages and else as it comes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::databases::{ALL, Client, TABLE, all_there, clients, some_confirmed};
use crate::place::{Desk, Place, Server, load, run, scale};

const PROGRAMS: [&str; 6] = [
    "initdb",
    "postgres",
    "psql",
    "pgbench",
    "pg_amcheck",
    "pg_checksums",
];
const CLIENTS: u64 = 2;
/// Each of pgbench's transactions changes these four by the same amount.
const EQUAL_SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) \
    = (SELECT sum(tbalance) FROM pgbench_tellers) \
    AND (SELECT sum(tbalance) FROM pgbench_tellers) \
    = (SELECT sum(bbalance) FROM pgbench_branches) \
    AND (SELECT sum(bbalance) FROM pgbench_branches) \
    = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";

/// A cluster of databases on the mount.
struct Cluster {
    desk: Desk,
    data: PathBuf,
}

impl Cluster {
    fn new(desk: Desk) -> Result<Self> {
        let data = desk.home.join("data");
        let mut initdb = desk.command("initdb");
        initdb.args(["--username=postgres", "--auth=trust", "--data-checksums"]);
        run(initdb.arg("-D").arg(&data))?;
        Ok(Self { desk, data })
    }

    fn start(&self) -> Result<Server> {
        let mut postgres = self.desk.unbounded("postgres");
        postgres.arg("-D").arg(&self.data);
        postgres.args(["-c", "listen_addresses="]);
        postgres.arg("-k").arg(&self.desk.beside);
        let mut server = self.desk.serve("postgres", postgres, "QUIT")?;
        server.wait(|| Ok(self.client("pg_isready").output()?.status.success()))?;
        Ok(server)
    }

    /// One of the client programs.
    fn client(&self, program: &str) -> Command {
        self.to_server(self.desk.command(program))
    }

    fn to_server(&self, mut command: Command) -> Command {
        command.env("PGHOST", &self.desk.beside);
        command
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    fn sql(&self, text: &str) -> Result<String> {
        let mut psql = self.client("psql");
        run(psql.args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", text]))
    }

    fn clients(&self, from: u64) -> Result<Vec<Client>> {
        clients(from, CLIENTS, || {
            let mut psql = self.to_server(self.desk.unbounded("psql"));
            psql.args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1"]);
            psql
        })
    }

    /// pgbench, as long as a load lasts.
    fn pgbench(&self) -> Command {
        let mut pgbench = self.client("pgbench");
        let seconds = load().as_secs().to_string();
        // Before a run it empties the history, unless told not to.
        pgbench.args(["--no-vacuum", "--client=4", "--jobs=2"]);
        pgbench.args(["--time", &seconds]);
        pgbench
    }

    /// Everything that can be checked while it serves.
    fn check(&self, confirmed: &BTreeSet<u64>) -> Result<()> {
        all_there(confirmed, &self.sql(ALL)?)?;
        ensure!(self.sql(EQUAL_SUMS)?.trim() == "t", "the sums differ");
        let mut amcheck = self.client("pg_amcheck");
        amcheck.args(["--all", "--install-missing"]);
        amcheck.args(["--heapallindexed", "--parent-check"]);
        run(&mut amcheck)?;
        Ok(())
    }

    /// Stops it in order, and has the checksum of each page checked.
    fn stop(&self, server: Server) -> Result<()> {
        let said = server.said();
        let status = server.end_by("INT")?;
        ensure!(status.success(), "{status}: {said}");
        // Also what went wrong in the background, of which no client is told.
        for word in ["PANIC", "corrupt", "Input/output error", "Interrupted"] {
            ensure!(!said.contains(word), "{said}");
        }
        let mut checksums = self.desk.command("pg_checksums");
        run(checksums.arg("--check").arg("-D").arg(&self.data))?;
        Ok(())
    }
}

#[test]
fn postgresql_recovers_from_an_immediate_stop_and_sees_no_death_of_the_primary() -> Result<()> {
    let Some(mut place) = Place::new(&PROGRAMS)? else {
        return Ok(());
    };
    let cluster = Cluster::new(place.desk("postgresql")?)?;
    let server = cluster.start()?;
    cluster.sql(TABLE)?;
    let size = scale().to_string();
    run(cluster
        .client("pgbench")
        .args(["--initialize", "--quiet", "--scale", &size]))?;

    // Stopped at once under load: no checkpoint, no word to anybody.
    let mut confirmed = BTreeSet::new();
    let asking = cluster.clients(0)?;
    let mut pgbench = cluster.pgbench();
    let mut pgbench = pgbench
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    some_confirmed(&asking)?;
    server.end_by("QUIT")?;
    for client in asking {
        confirmed.extend(client.broken()?);
    }
    ensure!(!pgbench.wait()?.success(), "pgbench saw nothing of it");
    let server = cluster.start()?;
    ensure!(
        server.said().contains("was not properly shut down"),
        "there was nothing to recover: {}",
        server.said()
    );
    cluster.check(&confirmed)?;

    // A primary that dies is none of its business.
    let asking = cluster.clients(CLIENTS)?;
    let said = place.while_primaries_die("pgbench", || run(&mut cluster.pgbench()))?;
    for client in asking {
        confirmed.extend(client.finish()?);
    }
    let failed = "number of failed transactions: 0 ";
    ensure!(said.contains(failed) && !said.contains("error"), "{said}");
    cluster.check(&confirmed)?;
    cluster.stop(server)?;
    for line in said
        .lines()
        .filter(|line| line.contains("actually processed"))
    {
        println!("pgbench: {line}");
    }
    place.finish()
}
