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
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let authority = authority_params(pair)?;
    let issuer = Issuer::from_params(&authority, pair);
    Ok(params.signed_by(pair, &issuer)?.der().clone())
}

/// A certificate as text.
#[must_use]
pub fn pem(certificate: &[u8]) -> String {
    let text = BASE64.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(LINE) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
