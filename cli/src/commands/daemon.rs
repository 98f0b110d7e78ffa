//! `cairn daemon`.

use daemon::config::{ConfigError, DaemonConfig, RawConfig};
use daemon::{Daemon, DaemonError};
use protocol::control::exit;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DaemonArgs, Global};
use crate::connection::data_dir;
use crate::failure::Failure;

/// Threads of the control plane. Volumes have their own; this carries Raft, requests and commands.
const CONTROL_THREADS: usize = 2;

fn read_config(global: &Global, args: &DaemonArgs) -> Result<DaemonConfig, ConfigError> {
    let flags = RawConfig {
        name: args.name.clone(),
        listen: args.listen.clone(),
        advertise: args.advertise.clone(),
        http: args.http.clone(),
        http_full: args.http_full.then_some(true),
    };
    let file = RawConfig::read(args.config.as_deref())?;
    flags.or(file).resolve(&data_dir(global))
}

fn config_failure(error: &ConfigError) -> Failure {
    match error {
        ConfigError::Read { .. } | ConfigError::Parse { .. } => Failure::refused(
            "config",
            error,
            "Correct the file, or name another with --config.",
        ),
        ConfigError::Address { .. } | ConfigError::Name { .. } => {
            Failure::usage(error, "See `cairn daemon --help`.")
        }
    }
}

fn start_failure(error: &DaemonError) -> Failure {
    let hint = match error {
        DaemonError::Listen { .. } => "Is another daemon running? Choose with --listen ADDR:PORT.",
        DaemonError::DataDir(_) => "Choose another directory with --data-dir, or repair this one.",
        _ => "Look at the lines above.",
    };
    Failure::refused("daemon", error, hint)
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(global: &Global, args: DaemonArgs) -> Result<u8, Failure> {
    daemon::logging::init();
    let config = read_config(global, &args).map_err(|error| config_failure(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::refused("daemon", error, "The machine is out of resources."))?;
    runtime.block_on(serve(global, &args, config))?;
    Ok(exit::DONE)
}

async fn serve(global: &Global, args: &DaemonArgs, config: DaemonConfig) -> Result<(), Failure> {
    let signals = |error| Failure::refused("daemon", error, "The machine is out of resources.");
    // Before the start, so that a SIGTERM during a long start is not lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(signals)?;
    let mut daemon = Daemon::start(config)
        .await
        .map_err(|error| start_failure(&error))?;
    announce(&daemon.ready_line());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => match read_config(global, args) {
                Ok(config) => daemon.reload(config).await,
                Err(error) => tracing::error!(%error, "the configuration stays as it was"),
            },
        }
    }
    daemon.stop().await;
    Ok(())
}

/// The only line on standard output. Whoever started the daemon may have closed it: that is no
/// reason to stop serving.
fn announce(line: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    if let Err(error) = written {
        tracing::warn!(%error, "nobody reads standard output");
    }
}
