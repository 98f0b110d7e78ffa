//! One-time codes: what proves that the operator of a node wants it admitted.
//!
//! Only a hash is kept, in memory: a code ends with the daemon, after an hour, after its use,
//! after a few wrong proofs, or when the next one is made.

use std::time::{Duration, Instant};

use hmac::{Hmac, Mac as _};
use protocol::ids::NodeId;
use sha2::Sha256;

/// How long a code may be used.
pub(crate) const CODE_LIFETIME: Duration = Duration::from_secs(3600);
/// Wrong proofs before the code is void: nobody guesses 80 bits, and nobody should try.
const ATTEMPTS_MAX: u32 = 5;
/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a code: 5 bits each, 80 bits together.
const CODE_CHARACTERS: usize = 16;
const GROUP_CHARACTERS: usize = 4;
/// Label of the TLS exporter (RFC 8446 7.5).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-cairn-join-1";
/// Bytes taken from the exporter.
pub(crate) const EXPORTER_BYTES: usize = 32;

/// What both sides derive from the code.
pub(crate) type CodeKey = [u8; 32];

/// Who proves: a proof of one role is worth nothing in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProofRole {
    /// The member that probes.
    Prober,
    /// The node that is probed.
    Probed,
}

/// The code that is in force.
#[derive(Debug)]
pub(crate) struct OneTimeCode {
    key: CodeKey,
    expires: Instant,
    attempts_left: u32,
}

/// The characters without grouping and look-alikes; `None` where it cannot be a code.
fn normalize(code: &str) -> Option<String> {
    let mut plain = String::with_capacity(CODE_CHARACTERS);
    for c in code.trim().chars().filter(|c| *c != '-' && *c != ' ') {
        let c = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            c => c,
        };
        if !c.is_ascii() || !ALPHABET.contains(&(c as u8)) {
            return None;
        }
        plain.push(c);
    }
    (plain.len() == CODE_CHARACTERS).then_some(plain)
}

/// The key of a code as typed; `None` where it cannot be a code.
pub(crate) fn key_of(code: &str) -> Option<CodeKey> {
    Some(blake3::derive_key(
        "cairn 2026 one-time code of a node",
        normalize(code)?.as_bytes(),
    ))
}

impl OneTimeCode {
    /// A new code and its text in groups of four.
    pub(crate) fn generate(now: Instant) -> (Self, String) {
        let mut text = String::new();
        for (at, byte) in rand::random::<[u8; CODE_CHARACTERS]>().iter().enumerate() {
            if at != 0 && at % GROUP_CHARACTERS == 0 {
                text.push('-');
            }
            // 256 is a multiple of 32: no character is likelier than another.
            text.push(ALPHABET[usize::from(byte % 32)] as char);
        }
        let key = key_of(&text).expect("made of the alphabet");
        let code = Self {
            key,
            expires: now + CODE_LIFETIME,
            attempts_left: ATTEMPTS_MAX,
        };
        (code, text)
    }

    /// Whether it may still be used.
    pub(crate) fn valid(&self, now: Instant) -> bool {
        now < self.expires && self.attempts_left > 0
    }

    /// Checks a prober's proof; a wrong one counts.
    pub(crate) fn check(&mut self, exporter: &[u8], ends: Ends, proof: &str) -> bool {
        let right = verify(&self.key, ProofRole::Prober, exporter, ends, proof);
        if !right {
            self.attempts_left = self.attempts_left.saturating_sub(1);
        }
        right
    }

    /// The probed node's own proof.
    pub(crate) fn prove(&self, exporter: &[u8], ends: Ends) -> String {
        prove(&self.key, ProofRole::Probed, exporter, ends)
    }
}

/// The two keys that the connection is between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) prober: NodeId,
    pub(crate) probed: NodeId,
}

fn mac(key: &CodeKey, role: ProofRole, exporter: &[u8], ends: Ends) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(match role {
        ProofRole::Prober => b"cairn join prober\0",
        ProofRole::Probed => b"cairn join probed\0",
    });
    mac.update(exporter);
    mac.update(&ends.prober.0);
    mac.update(&ends.probed.0);
    mac
}

/// HMAC-SHA256 over the role, the connection's exporter and both identities, in hexadecimal.
/// Bound to the connection, so someone in the middle, who has two of them, can use neither.
pub(crate) fn prove(key: &CodeKey, role: ProofRole, exporter: &[u8], ends: Ends) -> String {
    let bytes = mac(key, role, exporter, ends).finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `proof` is right, in constant time.
pub(crate) fn verify(
    key: &CodeKey,
    role: ProofRole,
    exporter: &[u8],
    ends: Ends,
    proof: &str,
) -> bool {
    let mut bytes = Vec::with_capacity(32);
    for pair in proof.as_bytes().chunks(2) {
        let Ok(text) = std::str::from_utf8(pair) else {
            return false;
        };
        let Ok(byte) = u8::from_str_radix(text, 16) else {
            return false;
        };
        bytes.push(byte);
    }
    mac(key, role, exporter, ends).verify_slice(&bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        prober: NodeId([1; 16]),
        probed: NodeId([2; 16]),
    };

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let (_, text) = OneTimeCode::generate(Instant::now());
        assert_eq!(text.len(), 19);
        let typed = text.to_lowercase().replace('-', " ").replace('0', "o");
        assert_eq!(key_of(&typed), key_of(&text));
        assert!(key_of("K7Q2").is_none());
        assert!(key_of(&text.replace(|c: char| c.is_ascii_digit() || c == '-', "U")).is_none());
    }

    #[test]
    fn a_proof_holds_for_one_connection_and_one_role_only() {
        let (mut code, text) = OneTimeCode::generate(Instant::now());
        let key = key_of(&text).expect("a code");
        let proof = prove(&key, ProofRole::Prober, b"connection 1", ENDS);
        assert!(code.check(b"connection 1", ENDS, &proof));
        assert!(!code.check(b"connection 2", ENDS, &proof));
        let answer = code.prove(b"connection 1", ENDS);
        assert!(verify(
            &key,
            ProofRole::Probed,
            b"connection 1",
            ENDS,
            &answer
        ));
        assert!(!verify(
            &key,
            ProofRole::Prober,
            b"connection 1",
            ENDS,
            &answer
        ));
        assert!(!verify(
            &key,
            ProofRole::Probed,
            b"connection 1",
            ENDS,
            "zz"
        ));
    }

    #[test]
    fn a_few_wrong_proofs_or_an_hour_void_the_code() {
        let now = Instant::now();
        let (mut code, _) = OneTimeCode::generate(now);
        assert!(code.valid(now));
        assert!(!code.valid(now + CODE_LIFETIME));
        for _ in 0..ATTEMPTS_MAX {
            assert!(code.valid(now));
            assert!(!code.check(b"x", ENDS, "00"));
        }
        assert!(!code.valid(now));
    }
}
