//! Sealing of files: XChaCha20-Poly1305 under a key of this machine, bound to the file's name.
//!
//! ```text
//! "postern sealed v1\n" | nonce, 24 random bytes | ciphertext and tag
//! ```
//!
//! Nonces are random: 192 bits do not repeat, whereas a counter would have to survive every crash and every copy of the
//! directory. The name is authenticated with the contents, so that one file cannot be passed off as another.

use std::path::Path;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    StateError,
    files::{self, FileError},
};

const MAGIC: &[u8] = b"postern sealed v1\n";
const NONCE_BYTES: usize = 24;
const FOLDER: &str = "sealing";
const KEY: &str = "key";
/// The name of a systemd credential that holds the key: `LoadCredentialEncrypted=postern-sealing-key:...`.
pub const CREDENTIAL: &str = "postern-sealing-key";
/// Cache Directory Tagging Specification: tar, restic and borg leave a folder out that holds this file.
const CACHEDIR_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# The key that seals postern's state lives here. Backups leave it out, so that a copy of the state is no copy of the machine.\n";

/// Why sealed bytes cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsealable {
    /// Not of this format.
    #[error("it is not one of postern's sealed files, or was cut off")]
    Format,
    /// Changed, of another name, or sealed with another key.
    #[error("it was changed, or sealed on another machine")]
    Tampered,
}

/// The machine's sealing key. Wiped when dropped, prints as `[redacted]`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SealKey {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Takes the key from the systemd credential, or from its file under `state`, or makes the file.
    ///
    /// A missing key next to a file that was sealed with it is an error: making another one would hide the loss.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load_or_make(state: &Path, sealed: &Path) -> Result<Self, StateError> {
        if let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") {
            let path = Path::new(&directory).join(CREDENTIAL);
            if let Some(secret) = files::read(&path)? {
                return Ok(Self(Sha256::digest(Zeroizing::new(secret).as_slice()).into()));
            }
        }
        let folder = state.join(FOLDER);
        let path = folder.join(KEY);
        if let Some(bytes) = files::read(&path)? {
            let bytes = Zeroizing::new(bytes);
            return match <[u8; 32]>::try_from(bytes.as_slice()) {
                Ok(key) => Ok(Self(key)),
                Err(_) => Err(super::set_aside(path, format!("it has {} bytes instead of 32", bytes.len()))),
            };
        }
        if sealed.exists() {
            return Err(StateError::KeyMissing { identity: sealed.to_owned(), key: path });
        }
        files::make_directory(&folder, 0o700)?;
        files::replace(&folder, "CACHEDIR.TAG", CACHEDIR_TAG)?;
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0)
            .map_err(|error| FileError::new("draw random bytes for", &path, std::io::Error::other(error)))?;
        files::replace(&folder, KEY, &key.0)?;
        Ok(key)
    }

    /// Seals `plain` for the file called `name`.
    ///
    /// # Panics
    /// If the operating system has no random bytes.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the operating system has random bytes once it has started");
        let sealed = XChaCha20Poly1305::new(&self.0.into())
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: name.as_bytes() })
            .expect("state files are far shorter than the cipher's limit");
        [MAGIC, &nonce, &sealed].concat()
    }

    /// Opens what [`SealKey::seal`] made for the same name.
    ///
    /// # Errors
    /// [`Unsealable`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
        let body = sealed.strip_prefix(MAGIC).ok_or(Unsealable::Format)?;
        let (nonce, body) = body.split_at_checked(NONCE_BYTES).ok_or(Unsealable::Format)?;
        XChaCha20Poly1305::new(&self.0.into())
            .decrypt(XNonce::from_slice(nonce), Payload { msg: body, aad: name.as_bytes() })
            .map(Zeroizing::new)
            .map_err(|_| Unsealable::Tampered)
    }
}
