//! SQLite as Python has it, several processes at one database.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Result, ensure};

use crate::databases::{ALL, Client, TABLE, all_there, clients, some_confirmed};
use crate::place::{Place, command, load, run, said, unbounded};

const CLIENTS: u64 = 2;
/// Each transaction adds one to the number of rows beside adding a row: a reader that finds them
/// different, at any moment, found half a transaction.
const TABLES: &str = "CREATE TABLE rows (count BIGINT); INSERT INTO rows VALUES (0); \
    CREATE TRIGGER counted AFTER INSERT ON confirmed BEGIN UPDATE rows SET count = count + 1; END";
/// A question a line; the answer when the transaction is done.
const CLIENT: &str = r#"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None)
for question in sys.stdin:
    answer = database.execute(question).fetchall()
    print(*(row[0] for row in answer), sep="\n", flush=True)
"#;
/// Reads until its input ends.
const READER: &str = r#"
import sqlite3, sys, threading
database = sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
looks = 0
while not ended.is_set():
    rows, count = database.execute("SELECT (SELECT count(*) FROM confirmed), count FROM rows").fetchone()
    assert rows == count, (rows, count)
    looks += 1
print(looks)
"#;

/// A database in one of the journal modes.
struct Database<'a> {
    file: &'a Path,
}

impl Database<'_> {
    fn sql(&self, text: &str) -> Result<String> {
        let program = "import sqlite3, sys\n\
            database = sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None)\n\
            for part in sys.argv[2:]:\n    for row in database.execute(part): print(row[0])";
        let mut python = command("python3");
        run(python.args(["-c", program]).arg(self.file).arg(text))
    }

    fn clients(&self, from: u64) -> Result<Vec<Client>> {
        clients(from, CLIENTS, || {
            let mut python = unbounded("python3");
            python.args(["-c", CLIENT]).arg(self.file);
            python
        })
    }

    fn reader(&self) -> Result<Child> {
        let mut python = command("python3");
        python.args(["-c", READER]).arg(self.file);
        let pipes = python.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(pipes.stderr(Stdio::piped()).spawn()?)
    }

    fn check(&self, confirmed: &BTreeSet<u64>) -> Result<()> {
        let verdict = self.sql("PRAGMA integrity_check")?;
        ensure!(verdict.trim() == "ok", "{verdict}");
        all_there(confirmed, &self.sql(ALL)?)
    }
}

/// Writers of which one is killed, then the primary; a reader beside them.
fn keeps_what_it_confirmed(mode: &str) -> Result<()> {
    let Some(mut place) = Place::new(&["python3"])? else {
        return Ok(());
    };
    let file = place.mount().join("database");
    let database = Database { file: &file };
    let now = database.sql(&format!("PRAGMA journal_mode={mode}"))?;
    ensure!(now.trim() == mode, "{now}");
    database.sql(TABLE)?;
    for part in TABLES.splitn(3, "; ") {
        database.sql(part)?;
    }

    let mut confirmed = BTreeSet::new();
    let mut asking = database.clients(0)?;
    let mut reader = database.reader()?;
    some_confirmed(&asking)?;
    let mut killed = asking.remove(0);
    killed.kill()?;
    confirmed.extend(killed.broken()?);
    database.check(&confirmed)?;

    asking.extend(database.clients(CLIENTS)?);
    place.while_primaries_die(mode, || {
        std::thread::sleep(load());
        Ok(())
    })?;
    for client in asking {
        confirmed.extend(client.finish()?);
    }
    drop(reader.stdin.take());
    let looked = reader.wait_with_output()?;
    ensure!(looked.status.success(), "{}", said(&looked));
    println!("{mode}: a reader looked {} times", said(&looked).trim());
    database.check(&confirmed)?;
    place.finish()
}

#[test]
fn sqlite_keeps_what_it_confirmed_with_a_write_ahead_log() -> Result<()> {
    keeps_what_it_confirmed("wal")
}

#[test]
fn sqlite_keeps_what_it_confirmed_with_a_rollback_journal() -> Result<()> {
    keeps_what_it_confirmed("delete")
}
