//! Random tokens: 256 bits from the operating system, shown once, stored as their SHA-256.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Draws random bytes.
///
/// # Panics
/// If the operating system has no randomness to give: nothing secret can be made then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A bearer secret of 256 random bits, base 64 for URLs without padding (43 characters).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token(String);

/// What is stored of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl Token {
    /// The length of a token as text.
    pub const LENGTH: usize = 43;

    /// Draws a token.
    pub fn draw() -> Self {
        let mut secret = bytes::<32>();
        let token = Self(URL_SAFE_NO_PAD.encode(secret));
        secret.zeroize();
        token
    }

    /// Makes a token of random bytes that the caller has drawn.
    pub(crate) fn from_bytes(secret: [u8; 32]) -> Self {
        Self(URL_SAFE_NO_PAD.encode(secret))
    }

    /// Takes a token that somebody presented; `None` if it cannot be one.
    pub fn presented(text: &str) -> Option<Self> {
        let alphabet = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        (text.len() == Self::LENGTH && text.bytes().all(alphabet)).then(|| Self(text.to_owned()))
    }

    /// Lends the secret text, to hand it to its owner.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Computes what is stored and looked up. The hash hides the secret's bytes from the timing of a look-up.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl TokenHash {
    /// Returns the bytes, for the store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Compares two secret texts in a time that depends only on their lengths.
pub fn same(a: &str, b: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(a.as_bytes(), b.as_bytes()).into()
}
