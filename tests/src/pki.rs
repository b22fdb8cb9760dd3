//! Certificates as an organisation's operator makes them by hand: an authority, and servers that it vouches for.

use anyhow::Result;

use crate::lab::host::Host;

/// The certificate of the authority, on the machine where [`make`] was called.
pub const AUTHORITY: &str = "/run/pki/ca.pem";

/// Makes a certificate for the server `name`, `/run/pki/NAME.pem` with the key `/run/pki/NAME.key`, and the authority that vouches for it,
/// [`AUTHORITY`], unless the machine has it already.
///
/// # Errors
/// Fails with what `openssl` said.
pub fn make(host: &Host, name: &str) -> Result<()> {
    host.sh(&format!(
        "mkdir -p /run/pki && cd /run/pki
[ -e ca.pem ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 \
  -subj '/CN=Corp CA' -addext keyUsage=critical,keyCertSign 2>openssl.log
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name} 2>>openssl.log
echo subjectAltName=DNS:{name} > names
openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem 2>>openssl.log"
    ))
    .map(drop)
}

/// Gives the server `name` its certificate and key, in the same place on its own machine; returns their paths.
///
/// # Errors
/// Fails when they were not made.
pub fn hand_over(from: &Host, to: &Host, name: &str) -> Result<(String, String)> {
    let [certificate, key] = ["pem", "key"].map(|kind| format!("/run/pki/{name}.{kind}"));
    for file in [&certificate, &key] {
        to.write(file, from.read(file)?)?;
    }
    Ok((certificate, key))
}
