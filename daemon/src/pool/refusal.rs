//! Refusals for people: one word for programs, one sentence, one hint.

use protocol::control::exit;
use protocol::node_rpc::Refusal;

/// Refused or failed (exit status 1).
pub(crate) fn refuse(code: &str, message: impl std::fmt::Display, hint: &str) -> Refusal {
    with_exit(exit::REFUSED, code, message, hint)
}

/// Refused because data could be lost (exit status 4).
pub(crate) fn refuse_loss(code: &str, message: impl std::fmt::Display, hint: &str) -> Refusal {
    with_exit(exit::DATA_LOSS, code, message, hint)
}

/// Wrong usage (exit status 2).
pub(crate) fn refuse_usage(code: &str, message: impl std::fmt::Display, hint: &str) -> Refusal {
    with_exit(exit::USAGE, code, message, hint)
}

fn with_exit(exit_code: u8, code: &str, message: impl std::fmt::Display, hint: &str) -> Refusal {
    Refusal {
        code: code.to_owned(),
        message: message.to_string(),
        hint: hint.to_owned(),
        exit_code,
    }
}
