//! MariaDB with InnoDB, a smaller redo log than it comes with, and no word of the file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::databases::{ALL, Client, TABLE, all_there, clients, some_confirmed};
use crate::place::{Desk, Place, Server, load, run};

const PROGRAMS: [&str; 7] = [
    "mariadb-install-db",
    "mariadbd",
    "mariadb",
    "mariadb-admin",
    "mariadb-slap",
    "mariadb-check",
    "innochecksum",
];
const CLIENTS: u64 = 2;
/// Queries of one run of mariadb-slap. It reads whole tables, which grow with it.
const QUERIES: &str = "400";
/// By default the redo log is 96 MiB, which it fills with zeros first.
const SMALL: &str = "--innodb-log-file-size=8M";

/// A server's data on the mount.
struct Databases {
    desk: Desk,
    data: PathBuf,
}

impl Databases {
    fn new(desk: Desk) -> Result<Self> {
        let data = desk.home.join("data");
        let mut install = desk.command("mariadb-install-db");
        install.args(["--no-defaults", "--basedir=/usr", "--skip-test-db", SMALL]);
        install.arg("--auth-root-authentication-method=normal");
        run(install.arg(format!("--datadir={}", data.display())))?;
        Ok(Self { desk, data })
    }

    fn socket(&self) -> String {
        let socket = self.desk.beside.join("socket");
        format!("--socket={}", socket.display())
    }

    fn start(&self) -> Result<Server> {
        let mut mariadbd = self.desk.unbounded("mariadbd");
        mariadbd.args(["--no-defaults", "--skip-networking", SMALL]);
        mariadbd.arg(format!("--datadir={}", self.data.display()));
        mariadbd.arg(self.socket());
        let mut server = self.desk.serve("mariadbd", mariadbd, "KILL")?;
        server.wait(|| {
            let ping = self.client("mariadb-admin").arg("ping").output()?;
            Ok(ping.status.success())
        })?;
        Ok(server)
    }

    /// One of the client programs.
    fn client(&self, program: &str) -> Command {
        self.to_server(self.desk.command(program))
    }

    fn to_server(&self, mut command: Command) -> Command {
        command.args(["--no-defaults", "--user=root", &self.socket()]);
        command
    }

    fn sql(&self, text: &str) -> Result<String> {
        let mut mariadb = self.client("mariadb");
        run(mariadb.args(["--batch", "--skip-column-names", "-e", text]))
    }

    fn clients(&self, from: u64) -> Result<Vec<Client>> {
        clients(from, CLIENTS, || {
            let mut mariadb = self.to_server(self.desk.unbounded("mariadb"));
            mariadb.args(["--batch", "--skip-column-names", "--unbuffered", "asked"]);
            mariadb
        })
    }

    /// mariadb-slap's own tables and mixture of queries, made and dropped again and again for as
    /// long as a load lasts.
    fn slap(&self) -> Result<String> {
        let (began, mut said) = (Instant::now(), String::new());
        while began.elapsed() < load() {
            let mut slap = self.client("mariadb-slap");
            slap.args(["--auto-generate-sql", "--auto-generate-sql-load-type=mixed"]);
            slap.args(["--auto-generate-sql-add-autoincrement", "--engine=innodb"]);
            slap.args(["--concurrency=4", "--number-of-queries", QUERIES]);
            said += &run(&mut slap)?;
        }
        Ok(said)
    }

    /// Everything that can be checked while it serves.
    fn check(&self, confirmed: &BTreeSet<u64>) -> Result<()> {
        all_there(confirmed, &self.sql(&format!("USE asked; {ALL}"))?)?;
        let mut check = self.client("mariadb-check");
        let said = run(check.args(["--all-databases", "--check", "--extended"]))?;
        let (mut tables, mut before) = (0, "");
        for line in said.lines() {
            tables += u64::from(line.ends_with("OK"));
            // Tables of other kinds than InnoDB's are named, and then a remark.
            let fine = line.ends_with("OK") || line.starts_with("note") || !line.contains(' ');
            ensure!(fine, "{before}\n{line}");
            before = line;
        }
        ensure!(tables > 0, "{said}");
        Ok(())
    }

    /// Stops it in order, and has the checksum of each page of InnoDB checked.
    fn stop(&self, server: Server) -> Result<()> {
        let said = server.said();
        let status = server.end_by("TERM")?;
        ensure!(status.success(), "{status}: {said}");
        ensure!(!said.contains("[ERROR]"), "{said}");
        let mut pages = Vec::new();
        for database in ["asked", "mysql"] {
            for file in fs::read_dir(self.data.join(database))? {
                pages.push((file?.path(), "--start-page=0"));
            }
        }
        pages.retain(|(file, _)| file.extension().is_some_and(|kind| kind == "ibd"));
        ensure!(pages.len() > 1, "no file of a table: {pages:?}");
        // Between them are copies of other pages, which innochecksum takes for wrong ones.
        for part in ["--end-page=63", "--start-page=192"] {
            pages.push((self.data.join("ibdata1"), part));
        }
        for (file, part) in pages {
            run(self.desk.command("innochecksum").arg(part).arg(file))?;
        }
        Ok(())
    }
}

#[test]
fn mariadb_recovers_from_sigkill_and_sees_no_death_of_the_primary() -> Result<()> {
    let Some(mut place) = Place::new(&PROGRAMS)? else {
        return Ok(());
    };
    let databases = Databases::new(place.desk("mariadb")?)?;
    let server = databases.start()?;
    databases.sql(&format!("CREATE DATABASE asked; USE asked; {TABLE}"))?;

    let mut confirmed = BTreeSet::new();
    let asking = databases.clients(0)?;
    databases.slap()?;
    some_confirmed(&asking)?;
    server.end_by("KILL")?;
    for client in asking {
        confirmed.extend(client.broken()?);
    }
    let server = databases.start()?;
    ensure!(
        server.said().contains("Starting crash recovery"),
        "there was nothing to recover: {}",
        server.said()
    );
    databases.check(&confirmed)?;

    let asking = databases.clients(CLIENTS)?;
    let said = place.while_primaries_die("mariadb-slap", || databases.slap())?;
    for client in asking {
        confirmed.extend(client.finish()?);
    }
    let lower = said.to_lowercase();
    ensure!(
        !lower.contains("error") && !lower.contains("cannot"),
        "{said}"
    );
    databases.check(&confirmed)?;
    databases.stop(server)?;
    place.finish()
}
