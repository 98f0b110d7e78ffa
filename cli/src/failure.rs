//! Why a command ends without success: kind, sentence, hint, exit status.

use protocol::control::exit;
use serde::Serialize;

/// One failure, printed once, in `main`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// One word for programs.
    pub(crate) kind: String,
    /// One sentence.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: String,
    /// Exit status.
    pub(crate) exit_code: u8,
}

impl Failure {
    /// Refused or failed.
    pub(crate) fn refused(kind: &str, message: impl std::fmt::Display, hint: &str) -> Self {
        Self::with(exit::REFUSED, kind, message, hint)
    }

    /// Wrong usage.
    pub(crate) fn usage(message: impl std::fmt::Display, hint: &str) -> Self {
        Self::with(exit::USAGE, "usage", message, hint)
    }

    /// The local daemon is not reachable.
    pub(crate) fn no_daemon(message: impl std::fmt::Display, hint: &str) -> Self {
        Self::with(exit::NO_DAEMON, "no_daemon", message, hint)
    }

    fn with(exit_code: u8, kind: &str, message: impl std::fmt::Display, hint: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            message: message.to_string(),
            hint: hint.to_owned(),
            exit_code,
        }
    }
}
