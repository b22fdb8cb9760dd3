//! The controller's certificate: from an authority of its own, or from the operator's PEM files.
//!
//! ```text
//! init:  make_authority -> ca.crt, ca.key          (20 years; its public key is what join links pin)
//! serve: Certificates::load -> leaf + ca -> TLS 1.3 -> renewed from ca.key 30 days before the leaf ends
//! ```
//!
//! The join link carries the SHA-256 of the SubjectPublicKeyInfo (RFC 7469 §2.4) of the last certificate in the chain, so a leaf can
//! be renewed without a new link. The whole chain is presented, the authority's certificate included: a node that
//! was given the hash finds the anchor in the chain itself.
//!
//! Rejected: a self-signed leaf that is pinned itself. It could never be renewed without visiting every machine.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use postern_common::time::WallTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::files::{self, FileError};

/// How long a leaf certificate holds, in days.
const LEAF_DAYS: i64 = 90;
/// How long before its end a leaf is made anew.
const RENEW_BEFORE: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);
/// How long the authority's certificate holds, in days.
const AUTHORITY_DAYS: i64 = 20 * 365;

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written, or others may read a key.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

fn content(path: &Path, what: impl Into<String>) -> TlsError {
    TlsError::Content { path: path.to_owned(), what: what.into() }
}

fn made(error: rcgen::Error) -> TlsError {
    TlsError::Make(error.to_string())
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The controller's own authority: `ca.crt`, `ca.key`, `tls.crt` and `tls.key` in this folder.
    Own {
        /// The folder of keys.
        dir: PathBuf,
        /// The names and addresses under which the controller is reached.
        names: Vec<String>,
    },
    /// PEM files that the operator keeps.
    Given {
        /// The chain, leaf first.
        chain: PathBuf,
        /// The leaf's private key.
        key: PathBuf,
    },
}

/// A chain with its key, and what a join link pins.
#[derive(Debug, Clone)]
pub struct Loaded {
    certified: Arc<CertifiedKey>,
    /// SHA-256 of the last certificate's SubjectPublicKeyInfo, if the chain has an authority in it.
    pub pin: Option<[u8; 32]>,
    /// When the leaf ends.
    pub not_after: WallTime,
}

fn validity(params: &mut CertificateParams, now: WallTime, days: i64) -> Result<(), TlsError> {
    let moment = |offset: i64| {
        let at = now.as_millis().saturating_add(offset * 86_400_000);
        let date = jiff::Timestamp::from_millisecond(at).map_err(|error| TlsError::Make(error.to_string()))?;
        let date = date.to_zoned(jiff::tz::TimeZone::UTC).date();
        Ok::<_, TlsError>(rcgen::date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        ))
    };
    params.not_before = moment(-1)?; // a machine whose clock is some hours behind still gets in
    params.not_after = moment(days)?;
    Ok(())
}

/// Makes the controller's own authority in `dir`: `ca.crt` and `ca.key`, the latter for its owner alone.
///
/// # Errors
/// [`TlsError`] if a file cannot be written or exists already.
pub fn make_authority(dir: &Path, name: &str, now: WallTime) -> Result<(), TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Postern authority of {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, AUTHORITY_DAYS)?;
    let key = KeyPair::generate().map_err(made)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    files::write_new(&dir.join("ca.key"), key.serialize_pem().as_bytes(), files::SECRET)?;
    files::write_new(&dir.join("ca.crt"), certificate.pem().as_bytes(), files::PUBLIC)?;
    Ok(())
}

/// Makes a leaf certificate from the authority in `dir`: `tls.crt` (leaf and authority) and `tls.key`.
fn make_leaf(dir: &Path, names: &[String], now: WallTime) -> Result<(), TlsError> {
    let authority_path = dir.join("ca.crt");
    let authority = files::read(&authority_path)?;
    let key_path = dir.join("ca.key");
    let authority_key = KeyPair::from_pem(&files::read_secret(&key_path)?)
        .map_err(|error| content(&key_path, format!("not a private key in PEM ({error})")))?;
    let issuer = Issuer::from_ca_cert_pem(&authority, authority_key)
        .map_err(|error| content(&authority_path, format!("not a certificate in PEM ({error})")))?;
    let mut params = CertificateParams::default();
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(made)?),
        });
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("postern-controller", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, LEAF_DAYS)?;
    let key = KeyPair::generate().map_err(made)?;
    let leaf = params.signed_by(&key, &issuer).map_err(made)?;
    files::replace(&dir.join("tls.key"), key.serialize_pem().as_bytes(), files::SECRET)?;
    files::replace(&dir.join("tls.crt"), format!("{}{authority}", leaf.pem()).as_bytes(), files::PUBLIC)?;
    Ok(())
}

fn load_files(chain_path: &Path, key_path: &Path) -> Result<Loaded, TlsError> {
    let pem = files::read(chain_path)?;
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(chain_path, format!("not certificates in PEM ({error})")))?;
    let secret = files::read_secret(key_path)?;
    let key = PrivateKeyDer::from_pem_slice(secret.as_bytes())
        .map_err(|error| content(key_path, format!("not a private key in PEM ({error})")))?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| content(key_path, format!("a key of a kind that TLS cannot use ({error})")))?;
    let mut authority = false;
    let mut last_spki = None;
    let mut not_after = None;
    for der in &chain {
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| content(chain_path, format!("not a certificate ({error})")))?;
        authority |= certificate.is_ca();
        last_spki = Some(<[u8; 32]>::from(Sha256::digest(certificate.tbs_certificate.subject_pki.raw)));
        let end = WallTime::from_millis(certificate.validity().not_after.timestamp().saturating_mul(1_000));
        not_after = not_after.or(Some(end));
    }
    let not_after = not_after.ok_or_else(|| content(chain_path, "there is no certificate in it"))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| {
        content(key_path, format!("this key does not belong to the first certificate in {}", chain_path.display()))
    })?;
    Ok(Loaded { certified: Arc::new(certified), pin: last_spki.filter(|_| authority), not_after })
}

/// Loads the certificate; for the own authority, makes a leaf if there is none, if it ends soon, or if the names changed.
///
/// # Errors
/// [`TlsError`] says which file, what is wrong with it and what to do.
pub fn load(source: &Source, now: WallTime) -> Result<Loaded, TlsError> {
    match source {
        Source::Given { chain, key } => load_files(chain, key),
        Source::Own { dir, names } => {
            let (chain, key) = (dir.join("tls.crt"), dir.join("tls.key"));
            let fresh = chain.exists() && key.exists() && leaf_fits(&chain, names, now);
            if !fresh {
                make_leaf(dir, names, now)?;
            }
            load_files(&chain, &key)
        }
    }
}

/// Tells whether a leaf names everything that it should and does not end soon.
fn leaf_fits(chain: &Path, names: &[String], now: WallTime) -> bool {
    let fits = || {
        let pem = std::fs::read(chain).ok()?;
        let der = CertificateDer::pem_slice_iter(&pem).next()?.ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let end = WallTime::from_millis(certificate.validity().not_after.timestamp().saturating_mul(1_000));
        let named: Vec<String> = certificate
            .subject_alternative_name()
            .ok()??
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
                    .map(|octets| IpAddr::from(octets).to_string())
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(|octets| IpAddr::from(octets).to_string()))
                    .ok(),
                _ => None,
            })
            .collect();
        Some(end.since(now) > RENEW_BEFORE && names.iter().all(|name| named.contains(name)))
    };
    fits().unwrap_or(false)
}

/// The certificate that is presented now; it can be exchanged while connections are open.
#[derive(Debug)]
pub struct Certificates {
    source: Source,
    current: RwLock<Loaded>,
}

impl Certificates {
    /// Loads the certificate for the first time.
    ///
    /// # Errors
    /// As [`load`].
    pub fn open(source: Source, now: WallTime) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(load(&source, now)?);
        Ok(Arc::new(Self { source, current }))
    }

    /// Loads it again: renewed from the own authority, or as the operator's files stand now.
    ///
    /// # Errors
    /// As [`load`]; the present certificate stays.
    pub fn reload(&self, now: WallTime) -> Result<(), TlsError> {
        let loaded = load(&self.source, now)?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Returns what is presented now.
    pub fn current(&self) -> Loaded {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Makes the server's TLS configuration: TLS 1.3 alone, X25519MLKEM768 preferred, HTTP/1.1.
    ///
    /// # Errors
    /// [`TlsError::Make`] if the cryptographic provider refuses TLS 1.3.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Make(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.max_early_data_size = 0; // early data can be replayed
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(days: i64) -> WallTime {
        WallTime::from_millis(1_790_000_000_000 + days * 86_400_000)
    }

    #[test]
    fn a_leaf_is_renewed_before_it_ends_and_the_pin_stays() {
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "ctl.test", days(0)).unwrap();
        let source = Source::Own { dir: dir.path().into(), names: vec!["ctl.test".into(), "127.0.0.1".into()] };
        let first = load(&source, days(0)).unwrap();
        let same = load(&source, days(50)).unwrap();
        let renewed = load(&source, days(65)).unwrap();
        assert_eq!(first.certified.cert, same.certified.cert);
        assert_ne!(first.certified.cert[0], renewed.certified.cert[0]);
        assert!(first.pin.is_some());
        assert_eq!(first.pin, renewed.pin);
        assert_eq!(renewed.certified.cert.len(), 2, "the authority is presented with the leaf");
    }

    #[test]
    fn a_new_name_makes_a_new_leaf() {
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "ctl.test", days(0)).unwrap();
        let named = |name: &str| Source::Own { dir: dir.path().into(), names: vec![name.into()] };
        let one = load(&named("one.test"), days(0)).unwrap();
        let two = load(&named("two.test"), days(0)).unwrap();
        assert_ne!(one.certified.cert[0], two.certified.cert[0]);
    }

    #[test]
    fn a_key_that_others_may_read_or_that_does_not_fit_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "ctl.test", days(0)).unwrap();
        let source = Source::Own { dir: dir.path().into(), names: vec!["ctl.test".into()] };
        load(&source, days(0)).unwrap();
        let given = Source::Given { chain: dir.path().join("tls.crt"), key: dir.path().join("ca.key") };
        assert!(load(&given, days(0)).unwrap_err().to_string().contains("does not belong"));
        std::fs::set_permissions(dir.path().join("tls.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load(&source, days(0)).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_chain_without_an_authority_has_no_pin() {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["ctl.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (chain, key_path) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        std::fs::write(&chain, leaf.pem()).unwrap();
        files::write_new(&key_path, key.serialize_pem().as_bytes(), files::SECRET).unwrap();
        assert_eq!(load(&Source::Given { chain, key: key_path }, days(0)).unwrap().pin, None);
    }
}
