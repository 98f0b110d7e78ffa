//! Mounts as mount(8), fstab(5) and ordinary users make, change and end them, and what a mount
//! leaves whose process was killed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_tests::machine::{source, token};
use cairn_tests::system::{has_program, run};
use cairn_tests::{Mounted, binary, skip};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const ENOTCONN: i32 = 107;
/// An ordinary user: nobody, as fusermount3 wants one with a name.
const USER: u32 = 65_534;

/// mount(8) finds its helpers in one place of the system. Here they are laid over it, for these
/// commands only.
const WITH_HELPERS: &str = r#"
mount -t overlay helpers -o "lowerdir=$HELPERS:/usr/sbin" /usr/sbin
"#;

/// What a user types, one thing after the other. Whatever is not as it has to be ends it.
const JOURNEY: &str = r#"
say() { echo "$@" >&2; }
options() { grep " $AT " /proc/self/mountinfo | cut -d' ' -f6; }
refused() { if "$@" 2>"$DIR/said"; then say "it was done: $*"; exit 1; fi; }

say "fstab, with what systemd and mount(8) take for themselves"
mount -T "$FSTAB" "$AT"
options | grep -q noatime
mkdir -p "$AT/below/here"
echo one > "$AT/below/here/file"
exec 7< "$AT/below/here/file"
refused umount "$AT"
grep -q "It is in use" "$DIR/said"
exec 7<&-
umount "$AT"
refused mountpoint -q "$AT"

say "a directory of the volume"
mount -t cairn "$SOURCE/below/here" "$AT" -o "nosuid,log_file=$DIR/journey.log"
test "$(cat "$AT/file")" = one
umount "$AT"
refused mount -t cairn "$SOURCE/nowhere" "$AT" -o "log_file=$DIR/journey.log"
grep -q "directory .*/nowhere. of volume" "$DIR/said"

say "read-only and back"
mount -t cairn "$SOURCE" "$AT" -o "nosuid,log_file=$DIR/journey.log"
mount -o remount,ro "$AT"
options | grep -q '^ro,.*nosuid'
refused touch "$AT/refused"
grep -q "Read-only file system" "$DIR/said"
test "$(cat "$AT/below/here/file")" = one
shown true
mount -o remount,rw,noatime "$AT"
echo two > "$AT/below/here/file"
options | grep -q '^rw,.*nosuid.*noatime'
shown false
exec 9> "$AT/open"
refused mount -o remount,ro "$AT"
grep -q "cannot be remounted" "$DIR/said"
grep -q "open for writing" "$DIR/said"
exec 9>&-
refused mount -o remount,readonly "$AT"
grep -q "there is no mount option .readonly." "$DIR/said"

say "busy, then lazily"
exec 8< "$AT/below/here/file"
refused umount "$AT"
umount -l "$AT"
refused mountpoint -q "$AT"
test "$(cat <&8)" = two
exec 8<&-
refused mount -o remount,ro "$AT"
"#;

/// Waits until status shows the only mount as read-only or not.
const SHOWN: &str = r#"
shown() {
    for _ in $(seq 200); do
        if "$CAIRN" --data-dir "$NODE" --json volume status v1 | grep -q '"read_only":'"$1"; then
            return
        fi
        sleep 0.05
    done
    say "status does not show read_only $1"
    exit 1
}
"#;

#[test]
fn mount_8_mounts_remounts_and_unmounts_by_fstab_and_by_hand() -> Result<()> {
    if !cairn_lab::is_root() || !has_program("unshare") {
        skip("laying helpers over the system's needs root and unshare");
        return Ok(());
    }
    let Some(Mounted {
        dir,
        mut lab,
        mount,
    }) = Mounted::new("v1", 2)?
    else {
        return Ok(());
    };
    lab.umount(&mount)?;
    let helpers = dir.path().join("helpers");
    fs::create_dir(&helpers)?;
    for name in ["mount.cairn", "mount.fuse.cairn", "umount.fuse.cairn"] {
        symlink(binary(), helpers.join(name))?;
    }
    let at = dir.path().join("at");
    fs::create_dir(&at)?;
    let v1 = source(&lab, "v1");
    let log = dir.path().join("fstab.log");
    let options = "defaults,_netdev,nofail,noatime,x-systemd.mount-timeout=30";
    let line = format!(
        "{v1} {} cairn {options},log_file={} 0 0\n",
        at.display(),
        log.display()
    );
    let fstab = dir.path().join("fstab");
    fs::write(&fstab, line)?;
    let in_own = |script: &str| -> Result<Output> {
        let mut command = Command::new("unshare");
        command.args(["-m", "bash", "-ec", script]);
        command.env("HELPERS", &helpers).env("AT", &at);
        command.env("SOURCE", &v1).env("FSTAB", &fstab);
        command.env("DIR", dir.path()).env("NODE", lab.data_dir(0));
        command.env("CAIRN_DATA_DIR", lab.data_dir(0));
        command.env("CAIRN", binary());
        Ok(command.output()?)
    };
    if !in_own(WITH_HELPERS)?.status.success() {
        skip("there is no overlay file system to lay helpers over the system's with");
        return Ok(());
    }
    let output = in_own(&[WITH_HELPERS, SHOWN, JOURNEY].concat())?;
    let said = fs::read_to_string(dir.path().join("said")).unwrap_or_default();
    ensure!(
        output.status.success(),
        "{}\nlast: {said}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Lazily or not, no process stays, and no session.
    let gone = |volume: &Value| volume["clients"].as_array().is_some_and(Vec::is_empty);
    lab.wait_volume(0, "v1", "the mounts have ended", SOON, gone)?;
    lab.finish()?;
    Ok(())
}

/// The process that serves the mount.
fn process_of(at: &Path) -> Result<u32> {
    let at = at.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // It may have ended meanwhile.
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        if words.clone().any(|word| word == at) && words.any(|word| word == b"--foreground") {
            return Ok(number);
        }
    }
    anyhow::bail!("nobody serves it")
}

/// Kills a mount's process, and waits until the kernel says what it always says then.
fn kill_mount(at: &Path) -> Result<u32> {
    let process = process_of(at)?;
    cairn_lab::signal(process, "KILL")?;
    let began = Instant::now();
    loop {
        let answer = fs::read_dir(at);
        if answer.is_err_and(|error| error.raw_os_error() == Some(ENOTCONN)) {
            return Ok(process);
        }
        ensure!(began.elapsed() < SOON, "it is not dead");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mount_whose_process_was_killed_is_named_taken_away_and_made_anew() -> Result<()> {
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    fs::write(mount.join("file"), "kept")?;
    let mut open = fs::File::options().append(true).open(mount.join("file"))?;
    open.sync_all()?;
    let process = kill_mount(&mount)?;
    let v1 = source(&lab, "v1");
    let (at, log) = (mount.display().to_string(), dir.path().join("mount.log"));
    let log = format!("log_file={}", log.display());
    let ran = lab.run(0, &["mount", &v1, &at, "-o", &log])?;
    ensure!(ran.status == 0, "{ran:?}");
    ensure!(
        ran.stderr
            .contains(&format!("a dead mount of {v1} is at {at}")),
        "{ran:?}"
    );
    if cairn_lab::is_root() {
        // Whose notes are kept.
        ensure!(
            ran.stderr
                .contains(&format!("its process {process}, which mounted it at 20")),
            "{ran:?}"
        );
    }
    ensure!(fs::read(mount.join("file"))? == b"kept");
    let error = open.write_all(b"x").expect_err("it was of the dead one");
    ensure!(error.raw_os_error() == Some(ENOTCONN), "{error}");
    // One that is alive is not touched, whatever it waits for.
    let ran = lab.run(0, &["mount", &v1, &at, "-o", &log])?;
    ensure!(
        ran.status == 1 && ran.stderr.contains("is mounted at"),
        "{ran:?}"
    );
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(table.matches(&format!(" {at} ")).count() == 1, "{table}");
    drop(open);
    lab.finish()?;
    Ok(())
}

/// A device that everybody may use, as udev has it where it runs. Afterwards it is as before.
struct Everybodys {
    path: &'static str,
    before: fs::Permissions,
}

impl Everybodys {
    fn new(path: &'static str) -> Result<Self> {
        let before = fs::metadata(path)?.permissions();
        let all = fs::Permissions::from_mode(before.mode() | 0o666);
        fs::set_permissions(path, all)?;
        Ok(Self { path, before })
    }
}

impl Drop for Everybodys {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = fs::set_permissions(self.path, self.before.clone());
    }
}

/// Runs a command as an ordinary user.
fn as_user(program: &Path, words: &[&str]) -> Result<Output> {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command
        .arg(program)
        .args(words)
        .env_remove("XDG_RUNTIME_DIR");
    command.output().context("setpriv")
}

#[test]
fn an_ordinary_user_mounts_for_himself_and_takes_a_dead_mount_away() -> Result<()> {
    if !cairn_lab::is_root() || !has_program("fusermount3") || !has_program("setpriv") {
        skip("changing users needs root, setpriv and fusermount3");
        return Ok(());
    }
    let _device = Everybodys::new("/dev/fuse")?;
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o777))?;
    let home = dir.path().join("home");
    let at = home.join("mnt");
    fs::create_dir_all(&at)?;
    for path in [&home, &at] {
        chown(path, Some(USER), Some(USER))?;
    }
    let data = home.join("cairn").display().to_string();
    let done = |words: &[&str]| -> Result<Output> {
        let output = as_user(&binary(), &[&["--data-dir", &data], words].concat())?;
        ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(output)
    };
    done(&["client", "join", &token(&lab, &["user"])?])?;
    let (v1, text) = (source(&lab, "v1"), at.display().to_string());
    let log = format!("log_file={}", home.join("mount.log").display());
    let mount_it = ["mount", v1.as_str(), text.as_str(), "-o", log.as_str()];
    done(&mount_it)?;
    let file = at.join("file").display().to_string();
    let script = format!("echo mine > {file} && stat -c %u {file}");
    let output = as_user(Path::new("/bin/sh"), &["-c", &script])?;
    let owner = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && owner == USER.to_string(),
        "{output:?}"
    );
    ensure!(
        fs::read(at.join("file")).is_err(),
        "it is for that user only"
    );
    ensure!(fs::read(mount.join("file"))? == b"mine\n");
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let line = table
        .lines()
        .find(|line| line.contains(&text))
        .context("a line")?;
    ensure!(line.contains("nosuid,nodev"), "{line}");
    let refused = as_user(&binary(), &["mount", &v1, &text, "-o", "remount,ro"])?;
    ensure!(!refused.status.success(), "only root remounts");

    cairn_lab::signal(process_of(&at)?, "KILL")?;
    let began = Instant::now();
    loop {
        let looked = as_user(Path::new("/bin/ls"), &[&text])?;
        if !looked.status.success() {
            break;
        }
        ensure!(began.elapsed() < SOON, "it is not dead");
    }
    let output = done(&mount_it)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("a dead mount of"), "{said}");
    let ended = as_user(Path::new("fusermount3"), &["-u", &text])?;
    ensure!(ended.status.success(), "{ended:?}");
    run("mountpoint", &["-q", &text]).expect_err("it has ended");
    lab.finish()?;
    Ok(())
}
