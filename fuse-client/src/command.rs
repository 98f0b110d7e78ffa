//! `cairn mount` and `mount.cairn`.
//!
//! In the background the command starts itself again in the foreground, in a session of its own,
//! and waits until that process says on its standard output that the mount is usable, or why it
//! is not. (Forking a process that may have threads would need unsafe code.)

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::mount::MountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::connection::{SystemConnector, TlsSource};
use crate::identity::{NodeIdentity, ReadIdentityError};
use crate::log::Log;
use crate::mount::{MountError, MountPoint, attach};
use crate::options::{OptionError, Options, Source};
use crate::serve::FileSystem;
use crate::session::{DialError, Session, SessionConfig, StartError};
use crate::transport::Device;

/// Set for the process that serves a mount in the background: it reports on standard output.
const BACKGROUND: &str = "CAIRN_MOUNT_BACKGROUND";
const READY: &str = "ready";
const ENOENT: i32 = 2;

/// What to mount, as typed.
#[derive(Debug, Clone, Default)]
pub struct MountRequest {
    /// `HOST[:PORT][,HOST…]:/VOLUME[/DIR]`.
    pub source: String,
    /// Where.
    pub directory: PathBuf,
    /// Each `-o`.
    pub options: Vec<String>,
    /// Serve in this process and return when unmounted.
    pub foreground: bool,
    /// Say more in the log.
    pub verbose: bool,
    /// Check the words only (mount(8)'s `-f`).
    pub fake: bool,
    /// Directory of the local daemon.
    pub data_dir: PathBuf,
}

/// Why there is no mount. For people: one sentence by `Display`, what to do next by
/// [`MountFailure::hint`].
#[derive(Debug, thiserror::Error)]
pub enum MountFailure {
    /// Words that are wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// Arguments that are wrong.
    #[error("{0}")]
    Usage(&'static str),
    /// The identity cannot be read.
    #[error(transparent)]
    Identity(#[from] ReadIdentityError),
    /// No session.
    #[error("volume `{volume}` cannot be mounted: {source}")]
    Start {
        /// The volume.
        volume: String,
        /// Why.
        source: StartError,
    },
    /// The directory in the volume.
    #[error("`{directory}` is no directory of volume `{volume}`")]
    Directory {
        /// The directory.
        directory: String,
        /// The volume.
        volume: String,
        /// Linux's number of the error.
        errno: i32,
    },
    /// The kernel.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The background process said so.
    #[error("{message}")]
    Background {
        /// One sentence.
        message: String,
        /// What to do next.
        hint: String,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> MountFailure {
    move |source| MountFailure::Io { what, source }
}

impl MountFailure {
    /// Whether the words were wrong rather than the world.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Option(_) | Self::Usage(_))
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Option(OptionError::Source { .. } | OptionError::Host { .. })
            | Self::Usage(_) => "Write `cairn mount HOST[:PORT][,HOST…]:/VOLUME[/DIR] DIR`.",
            Self::Option(_) => "See the options in `docs/mount.md`.",
            Self::Identity(_) => "Run it as the user whose file that is.",
            Self::Start { source, .. } => return start_hint(source),
            Self::Directory { .. } => "Mount the whole volume and make the directory first.",
            Self::Mount(error) => mount_hint(error),
            Self::Io { .. } => "Look at the message and at the system's log.",
            Self::Background { hint, .. } => hint,
        };
        hint.to_owned()
    }
}

fn start_hint(error: &StartError) -> String {
    match error {
        StartError::Dial(DialError::Refused { hint, .. }) => hint.clone(),
        StartError::Dial(DialError::Io { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            "Start the daemon on this machine, or run it as root or in group `cairn`.".to_owned()
        }
        StartError::Dial(_) => {
            "See whether the nodes run: `cairn peer status` on one of them.".to_owned()
        }
        StartError::NoHosts => "See whether the volume has replicas: `cairn volume info`.".into(),
        StartError::Block { .. } => {
            "Serve it with `cairn volume export NAME --nbd ADDR:PORT`.".into()
        }
        StartError::Thread(_) => "See whether the machine has memory and processes left.".into(),
    }
}

fn mount_hint(error: &MountError) -> &'static str {
    match error {
        MountError::Device { .. } => "Load the kernel's FUSE: `modprobe fuse`.",
        MountError::Directory { .. } => "Make the directory, or unmount what hangs there.",
        MountError::Refused { .. } => "Run it as root in the initial namespaces.",
        MountError::Helper { .. } => "Install the package `fuse3`, or run it as root.",
        MountError::HelperRefused { .. } => {
            "See whether the directory is yours and /etc/fuse.conf allows what was asked."
        }
    }
}

impl MountRequest {
    /// Reads the arguments of mount(8)'s helper: `SOURCE DIR [-sfnv] [-N NS] [-t TYPE] [-o OPTS]`,
    /// without the program's name.
    pub fn from_helper_arguments(
        arguments: impl IntoIterator<Item = OsString>,
        data_dir: PathBuf,
    ) -> Result<Self, MountFailure> {
        let mut request = Self {
            data_dir,
            ..Self::default()
        };
        let mut plain = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(word) = arguments.next() {
            let text = word.to_string_lossy().into_owned();
            let Some(letters) = text.strip_prefix('-').filter(|l| !l.is_empty()) else {
                plain.push(word);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                match letter {
                    // Sloppy options and no mtab mean nothing here.
                    's' | 'n' => {}
                    'f' => request.fake = true,
                    'v' => request.verbose = true,
                    'o' | 'N' | 't' => {
                        let rest = &letters[at + 1..];
                        let value = if rest.is_empty() {
                            let next = arguments.next();
                            next.map(|word| word.to_string_lossy().into_owned())
                        } else {
                            Some(rest.to_owned())
                        };
                        let value =
                            value.ok_or(MountFailure::Usage("an option lacks its value"))?;
                        if letter == 'o' {
                            request.options.push(value);
                        }
                        break;
                    }
                    _ => return Err(MountFailure::Usage("an option is not known")),
                }
            }
        }
        let [source, directory] = <[OsString; 2]>::try_from(plain)
            .map_err(|_| MountFailure::Usage("a source and a directory are needed"))?;
        request.source = source.to_string_lossy().into_owned();
        request.directory = PathBuf::from(directory);
        Ok(request)
    }

    /// Mounts. In the background it returns when the mount is usable, in the foreground when it
    /// is unmounted.
    pub fn run(mut self) -> Result<(), MountFailure> {
        let source = Source::parse(&self.source)?;
        let mut options = Options::default();
        for words in &self.options {
            options.take(words)?;
        }
        // From here on the working directory may change.
        self.directory = absolute(&self.directory)?;
        self.data_dir = absolute(options.data_dir.as_deref().unwrap_or(&self.data_dir))?;
        if let Some(path) = &mut options.log_file {
            *path = absolute(path)?;
        }
        if self.fake {
            return Ok(());
        }
        if self.foreground {
            return self.run_here(&source, &options);
        }
        self.run_in_background(&options)
    }

    fn run_in_background(&self, options: &Options) -> Result<(), MountFailure> {
        let program = std::env::current_exe().map_err(failed("this program was not found"))?;
        let mut command = Command::new(program);
        command.arg0("cairn").arg("mount").arg(&self.source);
        command.arg(&self.directory).arg("--foreground");
        command.arg("--data-dir").arg(&self.data_dir);
        for words in &self.options {
            command.arg("-o").arg(words);
        }
        if let Some(path) = &options.log_file {
            // Absolute, over what was said before.
            let mut word = OsString::from("log_file=");
            word.push(path);
            command.arg("-o").arg(word);
        }
        if self.verbose {
            command.arg("-v");
        }
        command.env(BACKGROUND, "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .map_err(failed("the mount's process did not start"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(failed("the mount's process cannot be heard"))?;
        }
        let line = line.trim_end();
        if line == READY {
            return Ok(());
        }
        // It failed, or died: it ends now, and is not left as a zombie.
        let _ = child.wait();
        let (message, hint) = line.split_once('\t').unwrap_or((line, ""));
        if message.is_empty() {
            return Err(MountFailure::Background {
                message: "the mount's process ended before the mount was usable".to_owned(),
                hint: "Run it with `--foreground` to see why.".to_owned(),
            });
        }
        Err(MountFailure::Background {
            message: message.to_owned(),
            hint: hint.to_owned(),
        })
    }

    fn run_here(&self, source: &Source, options: &Options) -> Result<(), MountFailure> {
        let background = std::env::var_os(BACKGROUND).is_some();
        let result = self.serve(source, options, background);
        if let (Err(failure), true) = (&result, background) {
            // Once the mount was usable nobody listens any more.
            report(&format!("{failure}\t{}", failure.hint()));
        }
        result
    }

    fn serve(
        &self,
        source: &Source,
        options: &Options,
        background: bool,
    ) -> Result<(), MountFailure> {
        if background {
            // Fails only where it leads a session already, which is what is wanted.
            let _ = rustix::process::setsid();
            std::env::set_current_dir("/")
                .map_err(failed("the root directory cannot be entered"))?;
        }
        let log = match &options.log_file {
            Some(path) => Log::file(path).map_err(failed("the log file cannot be opened"))?,
            None if background => Log::Syslog,
            None => Log::Stderr,
        };
        log.start(self.verbose);
        let session = self.connect(source, options)?;
        let root = FileSystem::resolve(&session, source.directory.as_bytes());
        let root = root.map_err(|errno| MountFailure::Directory {
            directory: source.directory.clone(),
            volume: source.volume.clone(),
            errno,
        })?;
        let (fd, point) = attach(&self.source, &self.directory, options).inspect_err(|_| {
            session.end();
        })?;
        let carrier = session.carrier().unwrap_or("nothing");
        tracing::info!(source = %self.source, directory = %self.directory.display(), carrier, "mounted");
        let ready = move || {
            if background {
                report(READY);
                detach_stdio();
            }
        };
        let file_system = FileSystem::new(Arc::new(Device::new(fd)), session, root);
        file_system.when_ready(Box::new(ready));
        watch_signals(point).map_err(failed("signals cannot be received"))?;
        file_system
            .run()
            .map_err(failed("the kernel's requests cannot be received"))?;
        tracing::info!("unmounted");
        Ok(())
    }

    fn connect(&self, source: &Source, options: &Options) -> Result<Arc<Session>, MountFailure> {
        let tls = NodeIdentity::read(&self.data_dir)?
            .map(|identity| Box::new(identity) as Box<dyn TlsSource>);
        let socket = self.data_dir.join("data.sock");
        let mut hosts = source.hosts.clone();
        hosts.extend(options.hosts.iter().cloned());
        let config = SessionConfig {
            volume: source.volume.clone(),
            hosts,
            local_socket: socket.exists().then_some(socket),
            client_name: client_name(),
            read_only: options.flags.contains(MountFlags::RDONLY),
            no_primary_eio: options.no_primary_eio,
            mount_timeout: options.mount_timeout,
        };
        Session::start(config, Arc::new(SystemConnector::new(tls))).map_err(|error| {
            MountFailure::Start {
                volume: source.volume.clone(),
                source: error,
            }
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf, MountFailure> {
    if path.as_os_str() == OsStr::new("") {
        let source = rustix::io::Errno::from_raw_os_error(ENOENT).into();
        return Err(failed("the directory is not named")(source));
    }
    std::path::absolute(path).map_err(failed("the working directory is gone"))
}

/// The machine's name, as `volume status` shows it.
fn client_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    name.chars().take(64).collect()
}

fn report(line: &str) {
    let mut stdout = io::stdout();
    // Who started this process may have gone.
    let _ = writeln!(stdout, "{}", line.replace('\n', " "));
    let _ = stdout.flush();
}

fn detach_stdio() {
    let open = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    match open {
        Ok(null) => {
            let done = rustix::stdio::dup2_stdin(&null)
                .and_then(|()| rustix::stdio::dup2_stdout(&null))
                .and_then(|()| rustix::stdio::dup2_stderr(&null));
            if let Err(error) = done {
                tracing::warn!(%error, "standard input and output stay attached");
            }
        }
        Err(error) => tracing::warn!(%error, "standard input and output stay attached"),
    }
}

/// A request to end is answered by unmounting, so that nothing that is under way is lost.
fn watch_signals(point: MountPoint) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new()
        .name("cairn-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    // The terminal has gone; the mount stays.
                    continue;
                }
                tracing::info!(signal, "unmounting");
                if let Err(error) = point.detach() {
                    tracing::error!(%error, "unmounting failed");
                }
            }
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(words: &[&str]) -> Result<MountRequest, MountFailure> {
        let words = words.iter().map(OsString::from);
        MountRequest::from_helper_arguments(words, PathBuf::from("/d"))
    }

    #[test]
    fn the_helpers_arguments_are_read_as_mount_gives_them() {
        let request = helper(&[
            "n1:/v",
            "/mnt",
            "-sfv",
            "-o",
            "rw,noatime",
            "-ox-a",
            "-N",
            "/ns",
        ]);
        let request = request.expect("well-formed");
        assert_eq!(request.source, "n1:/v");
        assert_eq!(request.directory, Path::new("/mnt"));
        assert_eq!(request.options, ["rw,noatime", "x-a"]);
        assert!(request.fake && request.verbose && !request.foreground);
        for wrong in [
            &["n1:/v"][..],
            &["a", "b", "c"],
            &["a", "b", "-o"],
            &["a", "b", "-Q"],
        ] {
            assert!(helper(wrong).expect_err("wrong").is_usage(), "{wrong:?}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused_before_anything_is_tried() {
        let mut request = helper(&["n1:/v", "/nonexistent", "-o", "turbo"]).expect("well-formed");
        request.foreground = true;
        let failure = request.run().expect_err("unknown");
        assert!(failure.is_usage());
        assert!(failure.to_string().contains("turbo"), "{failure}");
    }
}
