//! Who connects through a load balancer: the PROXY protocol, version 2, from addresses that the operator named.
//!
//! ```text
//! TCP accept from a trusted proxy --16 bytes + addresses--> the client's address --> limits, TLS, pages, streams
//! ```
//!
//! TLS ends at the controller and nowhere else: it carries passwords, the cookies of sessions and the pre-shared keys that keep
//! recorded traffic closed, and nodes pin the controller's own key. So a proxy in front of it passes TCP through, and cannot add
//! a header such as `X-Forwarded-For`; this protocol is how such a proxy says whose connection it is.
//!
//! What must hold: a header is read from a trusted proxy alone, and from it always; anybody else's bytes are TLS or nothing, so
//! nobody can choose the address by which limits count and rules with `network` decide.
//!
//! Source: HAProxy, 'The PROXY protocol', version 2, section 2.2. Rejected: version 1, a line of text of which the end has to be
//! searched; every proxy of this kind speaks version 2.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD: usize = 16;
/// The longest addresses and extensions that are read, bytes; what proxies send stays far below.
const MAX_BODY: usize = 2_048;

/// The addresses whose word about their clients is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts these prefixes.
    pub const fn new(prefixes: Vec<IpNet>) -> Self {
        Self(prefixes)
    }

    /// Tells whether connections from `address` begin with a header.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|prefix| prefix.contains(&address))
    }
}

/// What the first 16 bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    family: Family,
    /// Bytes that follow.
    length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// The proxy speaks for itself (a health check), or for a client whose address it does not know.
    Own,
    V4,
    V6,
}

fn head(bytes: &[u8; HEAD]) -> Option<Head> {
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if bytes[..12] != SIGNATURE || length > MAX_BODY {
        return None;
    }
    let family = match (bytes[12], bytes[13]) {
        (0x20, _) | (0x21, 0x00) => Family::Own,
        (0x21, 0x11) => Family::V4,
        (0x21, 0x21) => Family::V6,
        _ => return None, // another version, or no TCP
    };
    Some(Head { family, length })
}

/// Reads the source of the connection; `None` within if the proxy speaks for itself.
fn source(head: Head, body: &[u8]) -> Option<Option<SocketAddr>> {
    match head.family {
        Family::Own => Some(None),
        Family::V4 => {
            let (source, rest) = body.split_first_chunk::<4>()?;
            let port = u16::from_be_bytes(*rest.get(4..)?.first_chunk::<2>()?);
            rest.get(..8)?; // the whole of it, destination and both ports
            Some(Some((Ipv4Addr::from(*source), port).into()))
        }
        Family::V6 => {
            let (source, rest) = body.split_first_chunk::<16>()?;
            let port = u16::from_be_bytes(*rest.get(16..)?.first_chunk::<2>()?);
            rest.get(..20)?;
            Some(Some((Ipv6Addr::from(*source).to_canonical(), port).into()))
        }
    }
}

/// Reads the header of a connection from a trusted proxy, and nothing behind it. Returns whose connection it is; `None` if it
/// is the proxy's own.
///
/// # Errors
/// If the connection ends or does not begin with a header of version 2.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header of version 2");
    let mut bytes = [0; HEAD];
    stream.read_exact(&mut bytes).await?;
    let head = head(&bytes).ok_or_else(wrong)?;
    let mut body = vec![0; head.length];
    stream.read_exact(&mut body).await?;
    source(head, &body).ok_or_else(wrong)
}

/// Body of a fuzz target: any bytes as what comes from a trusted proxy. A header is read to its end and no further.
///
/// # Panics
/// If something does not hold that must hold for any bytes: that is a finding.
pub fn fuzz_proxy_header(bytes: &[u8]) {
    let mut stream = bytes;
    let found = {
        let reading = std::pin::pin!(read(&mut stream));
        match std::future::Future::poll(reading, &mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(found) => found,
            std::task::Poll::Pending => panic!("bytes that are there have to be waited for"),
        }
    };
    if found.is_ok() {
        let length = HEAD + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        assert!(bytes.starts_with(&SIGNATURE) && length <= HEAD + MAX_BODY);
        assert_eq!(stream, &bytes[length..], "what follows is left alone");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    async fn parsed(bytes: &[u8]) -> Option<(Option<SocketAddr>, Vec<u8>)> {
        let mut stream = bytes;
        let found = read(&mut stream).await.ok()?;
        Some((found, stream.to_vec()))
    }

    #[tokio::test]
    async fn the_client_is_whom_a_proxy_names_and_what_follows_is_left_alone() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 1, 187];
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[32], v6[33]) = (0x20, 0x01, 9, 0x30, 0x39);
        let with_extension = [&v4[..], &[4, 0, 1, 0]].concat();
        for (bytes, expected) in [
            (header(0x21, 0x11, &v4), Some("192.0.2.7:12345")),
            (header(0x21, 0x11, &with_extension), Some("192.0.2.7:12345")),
            (header(0x21, 0x21, &v6), Some("[2001::9]:12345")),
            (header(0x20, 0x00, &[]), None),
            (header(0x21, 0x00, &[1, 2, 3]), None),
        ] {
            let expected: Option<SocketAddr> = expected.map(|text| text.parse().unwrap());
            assert_eq!(parsed(&[&bytes[..], b"tls"].concat()).await, Some((expected, b"tls".to_vec())));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 1, 187];
        for bytes in [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n".to_vec(),
            header(0x11, 0x11, &v4),
            header(0x21, 0x12, &v4),
            header(0x21, 0x31, &v4),
            header(0x21, 0x11, &v4[..11]),
            header(0x21, 0x21, &v4),
            header(0x21, 0x11, &[0; MAX_BODY + 1]),
            header(0x21, 0x11, &v4)[..20].to_vec(),
        ] {
            assert_eq!(parsed(&bytes).await, None, "{bytes:?}");
        }
    }

    #[test]
    fn only_named_prefixes_are_trusted_in_either_form_of_an_address() {
        let trusted = TrustedProxies::new(vec!["10.0.0.0/24".parse().unwrap(), "2001:db8::5/128".parse().unwrap()]);
        for (address, expected) in [
            ("10.0.0.9", true),
            ("::ffff:10.0.0.9", true),
            ("10.0.1.9", false),
            ("2001:db8::5", true),
            ("2001:db8::6", false),
        ] {
            assert_eq!(trusted.contain(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!TrustedProxies::default().contain("127.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(first in any::<[u8; HEAD]>(), body in proptest::collection::vec(any::<u8>(), 0..64), signed: bool) {
            let mut first = first;
            if signed {
                first[..12].copy_from_slice(&SIGNATURE);
            }
            if let Some(head) = head(&first) {
                prop_assert!(head.length <= MAX_BODY);
                let _ = source(head, &body);
            }
        }
    }
}
