//! An authenticator in software for tests: it registers, answers, and can be copied.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// User present, user verified.
const SEEN: u8 = 0b101;
/// With a new key.
const ATTESTED: u8 = 0b100_0000;

/// One passkey on one device; its copy is another one with the same key and counter.
#[derive(Clone)]
pub(crate) struct Authenticator {
    key: SigningKey,
    id: [u8; 32],
    user: String,
    counter: u32,
}

/// Finds a text in the options for a browser, wherever it stands.
fn told(options: &str, path: &[&str]) -> String {
    let options: Value = serde_json::from_str(options).expect("JSON");
    let inner = options.get("publicKey").unwrap_or(&options);
    let found = path.iter().fold(inner, |at, key| &at[*key]);
    found.as_str().unwrap_or_else(|| panic!("{path:?} in {options}")).to_owned()
}

impl Authenticator {
    /// Makes a passkey; returns it with the browser's answer.
    pub(crate) fn register(seed: u8, origin: &str, options: &str) -> (Self, String) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let made = Self { key, id: [seed; 32], user: told(options, &["user", "id"]), counter: 1 };
        let mut data = made.data(origin, SEEN | ATTESTED);
        data.extend([0; 16]); // no product is told
        data.extend([0, 32]);
        data.extend(made.id);
        // {1: 1 (OKP), 3: -8 (EdDSA), -1: 6 (Ed25519), -2: key} (RFC 9053 §7.2)
        data.extend([0xa4, 0x01, 0x01, 0x03, 0x27, 0x20, 0x06, 0x21, 0x58, 0x20]);
        data.extend(made.key.verifying_key().as_bytes());
        let mut attestation = b"\xa3cfmtdnonegattStmt\xa0hauthDataX".to_vec();
        attestation.push(u8::try_from(data.len()).expect("short"));
        attestation.extend(data);
        let client = made.client("webauthn.create", origin, options);
        let response = json!({
            "clientDataJSON": BASE64.encode(client), "attestationObject": BASE64.encode(attestation), "transports": [],
        });
        let answer = made.answer(&response);
        (made, answer)
    }

    /// Answers a sign-in.
    pub(crate) fn sign_in(&mut self, origin: &str, options: &str) -> String {
        self.counter += 1;
        let (data, client) = (self.data(origin, SEEN), self.client("webauthn.get", origin, options));
        let signed = [data.clone(), Sha256::digest(&client).to_vec()].concat();
        let response = json!({
            "clientDataJSON": BASE64.encode(client), "authenticatorData": BASE64.encode(data),
            "signature": BASE64.encode(self.key.sign(&signed).to_bytes()), "userHandle": self.user,
        });
        self.answer(&response)
    }

    fn data(&self, origin: &str, flags: u8) -> Vec<u8> {
        let domain = origin.strip_prefix("https://").expect("an origin");
        let mut data = Sha256::digest(domain).to_vec();
        data.push(flags);
        data.extend(self.counter.to_be_bytes());
        data
    }

    fn client(&self, kind: &str, origin: &str, options: &str) -> Vec<u8> {
        let challenge = told(options, &["challenge"]);
        format!(r#"{{"type":"{kind}","challenge":"{challenge}","origin":"{origin}","crossOrigin":false}}"#).into_bytes()
    }

    fn answer(&self, response: &Value) -> String {
        let id = BASE64.encode(self.id);
        json!({
            "id": id, "rawId": id, "type": "public-key", "response": response, "clientExtensionResults": {},
            "authenticatorAttachment": "platform",
        })
        .to_string()
    }
}
