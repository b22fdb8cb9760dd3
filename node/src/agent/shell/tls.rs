//! TLS to the controller: version 1.3 with X25519MLKEM768 preferred, and exactly two ways to trust a certificate.
//!
//! - With a pin (`#k=` of the join link): a certificate of the presented chain has that public key, and the chain
//!   verifies to it as the *only* trust anchor, for the URL's host and for now. The system's roots count for nothing then:
//!   a public authority that is talked into a certificate for the controller's name gains nothing.
//! - Without a pin: the system's roots, as browsers do.
//!
//! Rejected: comparing the end certificate alone with a pin. It would skip names and dates, and every renewal of the
//! certificate would need a new link.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::agent::target::SpkiPin;

/// No certificate of the presented chain has the public key that the join link names.
#[derive(Debug, thiserror::Error)]
#[error("no certificate that the controller shows has the key that the join link names")]
pub struct PinMismatch;

/// Why TLS cannot be set up at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The system has no root certificates, and the join link has no pin.
    #[error(
        "this system has no root certificates to check the controller with: use the join link with its `#k=...`, or install the package ca-certificates"
    )]
    NoRoots,
    /// The cryptography library refuses.
    #[error("TLS cannot be set up")]
    Library(#[from] Error),
}

/// Makes the TLS configuration for a controller.
///
/// # Errors
/// [`TlsSetupError`].
pub fn client_config(pin: Option<SpkiPin>) -> Result<ClientConfig, TlsSetupError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = match pin {
        Some(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedVerifier { pin, provider }))
            .with_no_client_auth(),
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsSetupError::NoRoots);
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.resumption = rustls::client::Resumption::disabled(); // one stream for hours: nothing to win, state to lose
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts a chain that contains the pinned public key and verifies to it alone.
#[derive(Debug)]
struct PinnedVerifier {
    pin: SpkiPin,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, parsed)| Sha256::digest(parsed.public_key().raw).as_slice() == self.pin.0)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchor = std::iter::once(end_entity)
            .chain(intermediates)
            .find(|certificate| self.is_pinned(certificate))
            .ok_or_else(|| CertificateError::Other(OtherError(Arc::new(PinMismatch))))?;
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Says what a failed TLS handshake means for the person at the machine, and whether trying again can help.
pub fn explain(error: &std::io::Error, authority: &str, pin: Option<SpkiPin>) -> (String, bool) {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return (format!("{authority} does not speak TLS 1.3 as a controller does: {error}"), true);
    };
    let what = match tls {
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Other(other) if other.0.is::<PinMismatch>() => {
                let pin = pin.map(|pin| hex::encode(&pin.0[..4])).unwrap_or_default();
                format!(
                    "none of its certificates has the key that the join link names (k={pin}...). Somebody may be in between, or the controller has new keys: ask its administrator for a new join link"
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "it is valid for another name. Use the name that the join link has, or let the administrator add this one to `controller.toml`".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "it has expired. Check this machine's clock; else the administrator must renew it".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet. Check this machine's clock".into()
            }
            CertificateError::UnknownIssuer if pin.is_none() => {
                "no authority that this system trusts has signed it. Use the join link with its `#k=...` from the administrator".into()
            }
            other => format!("{other:?}"),
        },
        other => return (format!("TLS with {authority} failed: {other}"), true),
    };
    (format!("the certificate of {authority} is refused: {what}"), false)
}

#[cfg(test)]
mod tests;
