//! `cairn mount` and `mount.cairn`: from words to a mount, and into the background.
//!
//! Without `--foreground` the program starts itself again with it, in a session of its own, and
//! waits for one line on a pipe: that the mount is usable, or why not.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::connection::SystemConnector;
use crate::dead;
use crate::identity::MachineIdentity;
use crate::kernel::{self, MountError};
use crate::options::{MountRequest, OptionError};
use crate::point;
use crate::remount;
use crate::serve::FileSystem;
use crate::session::{DialError, Session, SessionConfig, StartError};
use crate::transport::Device;

/// Tells a process started in the background where to say that it is ready.
const READY_ENV: &str = "CAIRN_MOUNT_READY_FD";

/// What was typed.
#[derive(Debug, Clone)]
pub struct MountArgs {
    /// `HOST[:PORT][,HOST…]:/VOL[/subdir]`.
    pub source: String,
    /// The mount point.
    pub point: PathBuf,
    /// Values of `-o`.
    pub options: Vec<String>,
    /// Stay.
    pub foreground: bool,
    /// The local daemon's directory.
    pub data_dir: PathBuf,
    /// Say more.
    pub verbose: bool,
}

/// Why there is no mount: one sentence and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct MountFailure {
    /// One sentence.
    pub sentence: String,
    /// What to do next.
    pub hint: String,
}

pub(crate) fn failure(sentence: impl std::fmt::Display, hint: impl Into<String>) -> MountFailure {
    MountFailure {
        sentence: sentence.to_string(),
        hint: hint.into(),
    }
}

impl From<OptionError> for MountFailure {
    fn from(error: OptionError) -> Self {
        failure(error, "See `cairn mount --help` for what can be given.")
    }
}

impl From<MountError> for MountFailure {
    fn from(error: MountError) -> Self {
        let hint = match &error {
            MountError::Device(_) => {
                "Load it with `modprobe fuse`; in a container, start it with `--device /dev/fuse`."
            }
            MountError::Point { .. } => "Name an existing directory that nothing is mounted on.",
            MountError::Kernel(_) => "Look at the kernel's log (`dmesg`).",
            MountError::Helper(said) if said.contains("/dev/fuse") => {
                "Let users open it, as udev does (`chmod 666 /dev/fuse`), or mount as root."
            }
            MountError::Helper(_) => "Install `fuse3`, or mount as root.",
        };
        failure(error, hint)
    }
}

impl From<StartError> for MountFailure {
    fn from(error: StartError) -> Self {
        if let StartError::Dial(DialError::Refused { message, hint, .. }) = &error {
            return failure(message, hint);
        }
        let hint = match &error {
            StartError::Dial(_) => {
                "Make sure that a node of the volume runs and can be reached: `cairn status` there."
            }
            StartError::NoHosts | StartError::Thread(_) => "See `cairn mount --help`.",
        };
        failure(error, hint)
    }
}

/// Mounts. In the background this returns when the mount is usable; with `foreground` when it was
/// unmounted.
pub fn mount(args: &MountArgs) -> Result<(), MountFailure> {
    let root = rustix::process::geteuid().is_root();
    if remount::is_asked(&args.options) {
        return remount::remount(&args.point, &args.options);
    }
    let request = MountRequest::parse(&args.source, &args.options, root)?;
    dead::take_away(&args.point)?;
    check_point(args, &request)?;
    if args.foreground {
        let mut ready = ready_pipe();
        let result = serve(args, &request, &mut ready);
        if let (Err(error), Some(pipe)) = (&result, &mut ready) {
            // Whoever waits may be gone.
            let _ = writeln!(
                pipe,
                "{}\t{}",
                one_line(&error.sentence),
                one_line(&error.hint)
            );
        }
        return result;
    }
    in_background(args, &request)
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ")
}

/// The end of a pipe that the process in front waits at: standard output of this one.
fn ready_pipe() -> Option<File> {
    std::env::var_os(READY_ENV)?;
    rustix::io::dup(io::stdout()).ok().map(File::from)
}

fn in_background(args: &MountArgs, request: &MountRequest) -> Result<(), MountFailure> {
    let cannot = |error: io::Error| failure(format!("the mount cannot be started: {error}"), "");
    let executable = std::env::current_exe().map_err(cannot)?;
    let point = std::path::absolute(&args.point).map_err(cannot)?;
    let data_dir = std::path::absolute(&args.data_dir).map_err(cannot)?;
    let log = match &request.log_file {
        Some(path) => {
            let path = std::path::absolute(path).map_err(cannot)?;
            let file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(|error| {
                    failure(
                        format!("the log {} cannot be opened: {error}", path.display()),
                        "Name another file with `-o log_file=`.",
                    )
                })?;
            Stdio::from(file)
        }
        None => syslog(),
    };
    // setsid(1) gives it a session of its own without unsafe code here.
    let mut command = Command::new("setsid");
    command.arg(executable).arg("--data-dir").arg(data_dir);
    if args.verbose {
        command.arg("-v");
    }
    command.arg("mount").arg(&args.source).arg(point);
    for option in &args.options {
        command.arg("-o").arg(option);
    }
    let mut child = command
        .arg("--foreground")
        .env(READY_ENV, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(cannot)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(cannot)?;
    }
    match line.trim_end_matches('\n').split_once('\t') {
        Some(("ready", _)) => Ok(()),
        Some((sentence, hint)) => Err(failure(sentence, hint)),
        None => Err(failure(
            "the mount process ended before the mount was usable",
            "See its log.",
        )),
    }
}

/// Where a process in the background logs by default: syslog, by logger(1).
fn syslog() -> Stdio {
    let logger = Command::new("logger")
        .args(["-t", "cairn-mount"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match logger.map(|mut child| child.stdin.take()) {
        Ok(Some(pipe)) => Stdio::from(pipe),
        _ => Stdio::null(),
    }
}

fn serve(
    args: &MountArgs,
    request: &MountRequest,
    ready: &mut Option<File>,
) -> Result<(), MountFailure> {
    start_log(args.verbose);
    let session = connect(args, request)?;
    let root = FileSystem::resolve(&session, &request.subdir).map_err(|errno| {
        let error = io::Error::from_raw_os_error(errno);
        let path = String::from_utf8_lossy(&request.subdir).into_owned();
        failure(
            format!(
                "the directory `/{path}` of volume `{}`: {error}",
                request.volume
            ),
            "Name a directory that exists in the volume.",
        )
    })?;
    let device = kernel::mount(&request.source, &args.point, &request.flags)?;
    tracing::info!(
        source = %request.source, carrier = session.carrier().unwrap_or("none"), "mounted"
    );
    remount::watch(&args.point, &session);
    let mounted = dead::Note::leave(&args.point);
    let system = FileSystem::new(Arc::new(Device::new(device)), session, root);
    unmount_on_signal(&args.point);
    if let Some(mut pipe) = ready.take() {
        let _ = writeln!(pipe, "ready\t");
        drop(pipe);
        detach_output();
    }
    let served = system.run();
    drop(mounted);
    served.map_err(|error| failure(format!("the mount ended: {error}"), "Mount it again."))
}

fn connect(args: &MountArgs, request: &MountRequest) -> Result<Arc<Session>, MountFailure> {
    let identity = MachineIdentity::read(&args.data_dir);
    let socket = args.data_dir.join("data.sock");
    let local_socket = socket.exists().then_some(socket);
    match (&identity, &local_socket) {
        (Err(error), None) => {
            let dir = args.data_dir.display();
            return Err(failure(
                format!("this machine has no identity for a pool: {dir}: {error}"),
                "Invite this machine on a node (`cairn client add NAME`) and run the `cairn client join \
                 TOKEN` that it prints here; on a node mount as root, with its --data-dir.",
            ));
        }
        (Err(_), Some(socket)) => check_right(socket)?,
        (Ok(_), _) => {}
    }
    let tls = identity.ok().map(|identity| Box::new(identity) as Box<_>);
    let config = SessionConfig {
        volume: request.volume.clone(),
        hosts: request.hosts.clone(),
        local_socket,
        client_name: host_name(),
        read_only: request.flags.read_only,
        no_primary_eio: request.no_primary_eio,
        mount_timeout: request.mount_timeout,
        early: !request.flags.sync && !request.flags.read_only,
        cache_bytes: request.cache_bytes,
    };
    Ok(Session::start(config, Arc::new(SystemConnector::new(tls)))?)
}

/// Without an identity the local daemon is the only way in, and its socket's mode says who may
/// take it. A daemon that is down is waited for; a right that is missing is not.
fn check_right(socket: &Path) -> Result<(), MountFailure> {
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failure(
            format!(
                "this user may not use the local daemon: {} is for root and the group `cairn`",
                socket.display()
            ),
            "Mount as root, or have an administrator make the group where it is missing (then \
             restart the daemon) and add this user to it: `usermod -aG cairn USER`.",
        )),
        _ => Ok(()),
    }
}

/// The same volume twice at one place would only hide itself.
fn check_point(args: &MountArgs, request: &MountRequest) -> Result<(), MountFailure> {
    let at = point::real_path(&args.point);
    let Some(shown) = at.and_then(|at| point::cairn_at(&point::table(), &at)) else {
        return Ok(());
    };
    let same = MountRequest::parse(&shown.source, &[], false)
        .is_ok_and(|other| (&other.volume, &other.subdir) == (&request.volume, &request.subdir));
    if !same {
        return Ok(());
    }
    Err(failure(
        format!(
            "volume `{}` is mounted at {} already",
            request.volume,
            args.point.display()
        ),
        "Unmount it first (`umount DIR`), or name another directory.",
    ))
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn start_log(verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CAIRN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
    // Somebody set one up before: then that one is used.
    drop(started);
}

/// Standard output was the pipe to the process in front; from now on it is nothing.
fn detach_output() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        debug_assert!(null.as_raw_fd() > 2);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// SIGTERM and SIGINT unmount: what is under way is finished, then the process ends.
fn unmount_on_signal(point: &Path) {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let point = point.to_owned();
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]);
    let Ok(mut signals) = signals else { return };
    let thread = std::thread::Builder::new()
        .name("cairn-signals".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                kernel::unmount(&point);
            }
        });
    if let Err(error) = thread {
        tracing::warn!(%error, "signals will end the mount without unmounting");
    }
}
