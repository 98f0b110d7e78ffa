//! Certificates as X.509 wants them, for NBD's clients. Among cairn's own programs a certificate only
//! carries its key; libnbd and QEMU check more: that an authority signed it, of those that they were
//! given, that it has the server's name, that it is valid now. So each key is an authority of its own,
//! which signs one certificate, for the same key.

use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;

use super::{SERVER_NAME, id_of_spki};

/// Characters of a line of PEM.
const LINE: usize = 64;

/// The authority that a key is. Its name is the key's, so that clients tell several apart.
fn authority_params(pair: &KeyPair) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    let id = id_of_spki(&pair.subject_public_key_info());
    params.distinguished_name = named(&format!("cairn {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The certificate that a key shows to cairn's own programs, and that others take for its authority.
pub(super) fn authority(pair: &KeyPair) -> Result<CertificateDer<'static>, rcgen::Error> {
    let certificate = authority_params(pair)?.self_signed(pair)?;
    Ok(certificate.der().clone())
}

/// The certificate that the authority signs for its own key, under these names and addresses.
pub(super) fn leaf(
    pair: &KeyPair,
    names: Vec<String>,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named("cairn disk");
    params.is_ca = IsCa::ExplicitNoCa;
    // QEMU takes no certificate without the second one, which such a key has no use for.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let authority = authority_params(pair)?;
    let issuer = Issuer::from_params(&authority, pair);
    Ok(params.signed_by(pair, &issuer)?.der().clone())
}

/// An Ed25519 key in PKCS#8 (RFC 8410) up to its 32 bytes, in the first version of that form: GnuTLS
/// reads no other.
const KEY_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Where both versions are the same.
const KEY_SAME: usize = 5;
const KEY_BYTES: usize = 32;

/// A private key as GnuTLS takes it, from either version; `None`: it is of another kind.
pub(super) fn plain_key(pkcs8: &[u8]) -> Option<String> {
    let same = pkcs8.get(KEY_SAME..KEY_PREFIX.len())?;
    let key = pkcs8.get(KEY_PREFIX.len()..KEY_PREFIX.len() + KEY_BYTES)?;
    let known = same == &KEY_PREFIX[KEY_SAME..];
    known.then(|| armoured("PRIVATE KEY", &[&KEY_PREFIX[..], key].concat()))
}

/// A certificate as text.
#[must_use]
pub fn pem(certificate: &[u8]) -> String {
    armoured("CERTIFICATE", certificate)
}

fn armoured(what: &str, bytes: &[u8]) -> String {
    let text = BASE64.encode(bytes);
    let mut out = format!("-----BEGIN {what}-----\n");
    for line in text.as_bytes().chunks(LINE) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {what}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_written_in_the_first_form_whichever_it_had() {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let second = pair.serialize_der();
        assert_eq!(second[4], 1, "with its public key behind");
        let text = plain_key(&second).expect("a key");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "-----BEGIN PRIVATE KEY-----");
        let first = BASE64.decode(lines[1].as_bytes()).expect("a line of it");
        assert_eq!(first.len(), KEY_PREFIX.len() + KEY_BYTES);
        assert_eq!(first[5..], second[5..first.len()]);
        assert_eq!(plain_key(&first), Some(text));
        assert_eq!(plain_key(b"short"), None);
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        assert_eq!(plain_key(&other.serialize_der()), None);
    }

    #[test]
    fn text_has_lines_of_64_characters() {
        let text = pem(&[7; 100]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((lines[1].len(), lines[3].len()), (64, 8));
        assert_eq!(lines[4], "-----END CERTIFICATE-----");
    }
}
