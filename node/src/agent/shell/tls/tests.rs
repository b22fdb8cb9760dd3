//! Real handshakes over loopback against certificates that should, and should not, be accepted.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const HOST: &str = "ctl.corp.example";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// What a server shows: its chain, and the key of the first certificate.
#[derive(Clone)]
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn pin_of(certificate: &CertificateDer<'_>) -> SpkiPin {
    let (_, parsed) = X509Certificate::from_der(certificate).expect("a certificate");
    SpkiPin(Sha256::digest(parsed.public_key().raw).into())
}

/// Makes a server's certificate, signed by `issuer`, which is appended as the last of the chain.
fn server(issuer: &Authority, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
    params.distinguished_name.push(rcgen::DnType::CommonName, "server");
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).expect("signs");
    Shown { chain: vec![certificate.der().clone(), issuer.der().clone()], key: key.serialize_der() }
}

/// Shakes hands with a server that shows this, and returns what the person would read.
fn shake(
    shown: &Shown,
    pin: Option<SpkiPin>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<(), String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key.clone()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), key)
        .expect("a chain and its key");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(async move { TlsAcceptor::from(Arc::new(config)).accept(far).await.map(drop) });
        let config = Arc::new(client_config(pin).map_err(|error| error.to_string())?);
        let name = ServerName::try_from(HOST).expect("a name");
        let shaken = TlsConnector::from(config).connect(name, near).await.map(drop);
        let _ = serving.await; // what the server thinks of it does not matter
        shaken.map_err(|error| explain(&error, HOST, pin).0)
    })
}

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[test]
fn the_pinned_authority_is_accepted_and_any_other_key_is_not() {
    let authority = authority("postern");
    let shown = server(&authority, HOST, |_| {});
    assert_eq!(shake(&shown, Some(pin_of(authority.der())), TLS13), Ok(()));
    let error = shake(&shown, Some(SpkiPin([7; 32])), TLS13).expect_err("another key");
    assert!(error.contains("k=07070707...") && error.contains("new join link"), "{error}");
}

#[test]
fn showing_the_pinned_certificate_without_being_signed_by_it_gains_nothing() {
    let (real, evil) = (authority("postern"), authority("postern"));
    let mut shown = server(&evil, HOST, |_| {});
    shown.chain.push(real.der().clone());
    let error = shake(&shown, Some(pin_of(real.der())), TLS13).expect_err("not signed by the pinned key");
    assert!(error.contains("refused"), "{error}");
    // The pinned certificate in front, as if it were the server's own, with another key behind.
    let mut shown = server(&evil, HOST, |_| {});
    shown.chain.swap(0, 1);
    shown.chain[0] = real.der().clone();
    let provider = aws_lc_rs::default_provider();
    let verifier = PinnedVerifier { pin: pin_of(real.der()), provider: Arc::new(provider) };
    let name = ServerName::try_from(HOST).expect("a name");
    let verified = verifier.verify_server_cert(&shown.chain[0], &shown.chain[1..], &name, &[], UnixTime::now());
    assert!(verified.is_err(), "an authority is no server");
}

#[test]
fn a_pin_replaces_neither_the_name_nor_the_dates() {
    let authority = authority("postern");
    let pin = Some(pin_of(authority.der()));
    let other_name = server(&authority, "other.corp.example", |_| {});
    assert!(shake(&other_name, pin, TLS13).expect_err("another name").contains("another name"));
    let expired = server(&authority, HOST, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(shake(&expired, pin, TLS13).expect_err("expired").contains("expired"));
    let early = server(&authority, HOST, |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
    assert!(shake(&early, pin, TLS13).expect_err("not valid yet").contains("clock"));
}

#[test]
fn without_a_pin_an_unknown_authority_is_refused() {
    let shown = server(&authority("postern"), HOST, |_| {});
    let error = shake(&shown, None, TLS13).expect_err("nobody knows it");
    assert!(error.contains("#k=") || error.contains("root certificates"), "{error}");
}

#[test]
fn an_older_tls_is_not_spoken() {
    let authority = authority("postern");
    let shown = server(&authority, HOST, |_| {});
    assert!(shake(&shown, Some(pin_of(authority.der())), &[&rustls::version::TLS12]).is_err());
}
