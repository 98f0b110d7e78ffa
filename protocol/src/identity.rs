//! Who someone is: an Ed25519 key pair, named by a [`NodeId`], proven by mutual TLS 1.3.
//!
//! There is no authority and no clock in this. A certificate only carries the key: its dates,
//! names and own signature are not looked at, so a node whose clock is wrong is still itself. TLS
//! proves that the other end holds the key; whether that key may do what it asks for is decided
//! by the application, for each connection and each request, from the pool's member table.

mod certificates;

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};

use crate::ids::NodeId;

pub use certificates::pem;

/// SubjectPublicKeyInfo of Ed25519 up to the 32 bytes of the key (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const ED25519_SPKI_BYTES: usize = ED25519_SPKI_PREFIX.len() + 32;

/// The name that clients say in the handshake; nothing depends on it.
const SERVER_NAME: &str = "cairn.invalid";

/// Why an identity cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is no private key in PEM form.
    #[error("the identity's key is not a private key in PEM form: {source}")]
    Key {
        /// What the parser says.
        source: rcgen::Error,
    },
    /// The key is of another kind.
    #[error("the identity's key is not an Ed25519 key")]
    KeyKind,
    /// The certificate could not be made.
    #[error("the identity's certificate could not be made: {source}")]
    Certificate {
        /// What the generator says.
        source: rcgen::Error,
    },
    /// TLS refused the key or certificate.
    #[error("TLS refused the identity: {source}")]
    Tls {
        /// What TLS says.
        source: rustls::Error,
    },
}

/// The other end showed no usable certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdError {
    /// None or several.
    #[error("the other end showed {0} certificates instead of one")]
    Count(usize),
    /// Not an X.509 certificate.
    #[error("the other end's certificate cannot be read")]
    Malformed,
    /// Another kind of key.
    #[error("the other end's key is not an Ed25519 key")]
    KeyKind,
}

/// A key pair with its certificate.
pub struct Identity {
    id: NodeId,
    certificate: CertificateDer<'static>,
    key_der: Vec<u8>,
    key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key never reaches a log.
        f.debug_struct("Identity")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A new key pair.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .map_err(|source| IdentityError::Key { source })?;
        Self::from_pair(&pair)
    }

    /// Reads what [`Identity::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let pair = rcgen::KeyPair::from_pem(pem).map_err(|source| IdentityError::Key { source })?;
        Self::from_pair(&pair)
    }

    fn from_pair(pair: &rcgen::KeyPair) -> Result<Self, IdentityError> {
        if !pair.is_compatible(&rcgen::PKCS_ED25519) {
            return Err(IdentityError::KeyKind);
        }
        let certificate = certificates::authority(pair)
            .map_err(|source| IdentityError::Certificate { source })?;
        let id = id_of(&certificate).map_err(|_| IdentityError::KeyKind)?;
        Ok(Self {
            id,
            certificate,
            key_der: pair.serialize_der(),
            key_pem: pair.serialize_pem(),
        })
    }

    /// The private key in PEM form. Whoever reads it is this node.
    #[must_use]
    pub fn to_pem(&self) -> &str {
        &self.key_pem
    }

    /// The id that the public key gives.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()))
    }

    /// TLS for accepting: TLS 1.3 only, the other end must show a key, any key. Without
    /// resumption: each connection proves the key anew, so a revoked one ends with its connection.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        self.server(vec![self.certificate.clone()], self.key())
    }

    fn server(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<ServerConfig>, IdentityError> {
        let tls = |source| IdentityError::Tls { source };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(Arc::new(AnyKey::new(None)))
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// TLS for disks by NBD, whose clients check that the certificate was signed by an authority that
    /// they were given ([`Identity::certificate`]), and has the name or address that they went to.
    pub fn disk_server_config(
        &self,
        names: Vec<String>,
    ) -> Result<Arc<ServerConfig>, IdentityError> {
        self.server(vec![self.leaf(names)?], self.key())
    }

    /// This key's certificate in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A certificate in DER that an NBD client shows, signed by [`Identity::certificate`].
    pub fn client_certificate(&self) -> Result<Vec<u8>, IdentityError> {
        let leaf = self.leaf(vec![SERVER_NAME.to_owned()])?;
        Ok(leaf.to_vec())
    }

    /// The private key in PEM form, as NBD clients take it.
    pub fn client_key(&self) -> Result<String, IdentityError> {
        certificates::plain_key(&self.key_der).ok_or(IdentityError::KeyKind)
    }

    fn leaf(&self, names: Vec<String>) -> Result<CertificateDer<'static>, IdentityError> {
        let pair = rcgen::KeyPair::from_pem(&self.key_pem)
            .map_err(|source| IdentityError::Key { source })?;
        certificates::leaf(&pair, names).map_err(|source| IdentityError::Certificate { source })
    }

    /// TLS for connecting to anyone: the caller looks at [`peer_id`] before it believes a byte.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        self.client(None)
    }

    /// TLS for connecting to `expected` and nobody else: the handshake fails with any other key.
    pub fn client_config_for(&self, expected: NodeId) -> Result<Arc<ClientConfig>, IdentityError> {
        self.client(Some(vec![expected]))
    }

    /// TLS for connecting to any of `expected` and nobody else.
    pub fn client_config_among(
        &self,
        expected: Vec<NodeId>,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        self.client(Some(expected))
    }

    fn client(&self, expected: Option<Vec<NodeId>>) -> Result<Arc<ClientConfig>, IdentityError> {
        let tls = |source| IdentityError::Tls { source };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey::new(expected)))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key())
            .map_err(tls)?;
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

/// The name to give to TLS when connecting; it is not sent and not checked.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a constant host name")
}

/// Who the other end of an established session is: pass `peer_certificates()` of the session.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Result<NodeId, PeerIdError> {
    let certificates = certificates.unwrap_or_default();
    let [certificate] = certificates else {
        return Err(PeerIdError::Count(certificates.len()));
    };
    id_of(certificate)
}

/// The id of a public key given as SubjectPublicKeyInfo in DER.
#[must_use]
pub fn id_of_spki(spki: &[u8]) -> NodeId {
    let hash = blake3::hash(spki);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    NodeId(id)
}

fn id_of(certificate: &CertificateDer<'_>) -> Result<NodeId, PeerIdError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| PeerIdError::Malformed)?;
    let spki = parsed.subject_public_key_info();
    if spki.len() != ED25519_SPKI_BYTES || !spki.starts_with(&ED25519_SPKI_PREFIX) {
        return Err(PeerIdError::KeyKind);
    }
    Ok(id_of_spki(&spki))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts any Ed25519 key whose owner signs the handshake, or only one.
#[derive(Debug)]
struct AnyKey {
    expected: Option<Vec<NodeId>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyKey {
    fn new(expected: Option<Vec<NodeId>>) -> Self {
        Self {
            expected,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if !others.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        let id = id_of(certificate).map_err(|_| CertificateError::BadEncoding)?;
        if self
            .expected
            .as_ref()
            .is_some_and(|expected| !expected.contains(&id))
        {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }

    fn proof(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

/// TLS 1.2 is switched off; a call for it is refused rather than believed impossible.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.proof(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.proof(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Runs a handshake in memory and returns who each end saw, or what the client failed with.
    fn handshake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<(NodeId, NodeId), rustls::Error> {
        let mut client = rustls::ClientConnection::new(client, server_name())?;
        let mut server = rustls::ServerConnection::new(server)?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory");
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).expect("memory");
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory");
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("memory");
                client.process_new_packets()?;
            }
        }
        client.writer().write_all(b"x").expect("memory");
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        server.read_tls(&mut wire.as_slice()).expect("memory");
        server.process_new_packets()?;
        let mut got = [0];
        server.reader().read_exact(&mut got).expect("one byte");
        let seen_by_client = peer_id(client.peer_certificates()).expect("a key");
        let seen_by_server = peer_id(server.peer_certificates()).expect("a key");
        Ok((seen_by_client, seen_by_server))
    }

    #[test]
    fn both_ends_learn_who_the_other_is() {
        let a = Identity::generate().expect("identity");
        let b = Identity::generate().expect("identity");
        let seen = handshake(
            a.client_config().expect("tls"),
            b.server_config().expect("tls"),
        );
        assert_eq!(seen, Ok((b.id(), a.id())));
    }

    #[test]
    fn an_identity_survives_its_file() {
        let made = Identity::generate().expect("identity");
        let read = Identity::from_pem(made.to_pem()).expect("identity");
        assert_eq!(made.id(), read.id());
        assert!(Identity::from_pem("not a key").is_err());
    }

    #[test]
    fn a_pinned_connection_fails_with_any_other_key() {
        let a = Identity::generate().expect("identity");
        let b = Identity::generate().expect("identity");
        let pinned = a.client_config_for(b.id()).expect("tls");
        assert!(handshake(pinned, b.server_config().expect("tls")).is_ok());
        let pinned = a.client_config_for(a.id()).expect("tls");
        assert!(handshake(pinned, b.server_config().expect("tls")).is_err());
    }

    #[test]
    fn a_key_of_another_kind_is_no_identity() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        assert!(matches!(
            Identity::from_pem(&pair.serialize_pem()),
            Err(IdentityError::KeyKind)
        ));
    }
}
