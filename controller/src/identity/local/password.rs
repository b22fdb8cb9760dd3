//! Passwords: what is accepted, and Argon2id hashes of them (RFC 9106; OWASP's parameters of 19 MiB, 2 passes).
//!
//! Hashing is slow on purpose, so it runs on a blocking thread, one at a time: a flood of sign-ins costs one core and
//! 19 MiB, not the controller's memory. Callers limit attempts before they come here.

use argon2::{
    Argon2, PasswordHasher, PasswordVerifier,
    password_hash::{PasswordHash, SaltString},
};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::super::random;

/// The shortest password, characters.
pub const MIN_CHARS: usize = 12;
/// The longest password, bytes; a limit on work, not on strength.
pub const MAX_BYTES: usize = 256;

/// What hashing may use at once.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// Of a random password that nobody knows: verified against when there is no account, so that the time tells nothing.
const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$m2kH5dTQ2Zb3xJ9Dqk0yYw$fXDvAcKiYgJJSzP0w1C2oEJj7pS6oHXoN2Hq0dE2K9A";

/// Tells why a password is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// Fewer than [`MIN_CHARS`] characters.
    #[error("the password is too short: use {MIN_CHARS} characters or more; a few words make a good one")]
    Short,
    /// More than [`MAX_BYTES`] bytes.
    #[error("the password is too long: use {MAX_BYTES} bytes or fewer")]
    Long,
    /// Contains the login, or repeats one or two characters.
    #[error("the password is too easy to guess: do not use your name or one character over and over")]
    Guessable,
}

/// Checks a new password (NIST SP 800-63B §3.1.1.2: length, and no rules of composition).
///
/// # Errors
/// The reason, for the person.
pub fn check(password: &str, login: &str) -> Result<(), WeakPassword> {
    let name = login.split('@').next().unwrap_or_default();
    let mut distinct: Vec<char> = password.chars().collect();
    if distinct.len() < MIN_CHARS {
        return Err(WeakPassword::Short);
    }
    if password.len() > MAX_BYTES {
        return Err(WeakPassword::Long);
    }
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < 4 || (name.len() >= 4 && password.to_lowercase().contains(&name.to_lowercase())) {
        return Err(WeakPassword::Guessable);
    }
    Ok(())
}

/// Hashes a password, in PHC form.
///
/// # Panics
/// If Argon2 fails with its own default parameters, or the runtime is going down.
pub async fn hash(password: &str) -> String {
    let password = Zeroizing::new(password.to_owned());
    let _turn = ONE_AT_A_TIME.acquire().await.expect("the semaphore is never closed");
    let work = move || {
        let salt = SaltString::encode_b64(&random::bytes::<16>()).expect("16 bytes make a salt");
        let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
        hash.expect("Argon2id hashes with its default parameters").to_string()
    };
    tokio::task::spawn_blocking(work).await.expect("the hashing thread does not panic")
}

/// Tells whether a password is the one of a hash; takes as long when there is no hash, and says no.
pub async fn verify(password: &str, hash: Option<String>) -> bool {
    let Ok(_turn) = ONE_AT_A_TIME.acquire().await else { return false };
    let password = Zeroizing::new(password.chars().take(MAX_BYTES + 1).collect::<String>());
    let work = move || {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODYS.to_owned());
        let fits = PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        known && fits && password.len() <= MAX_BYTES
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_itself_fits() {
        let hash = hash("correct horse battery").await;
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(verify("correct horse battery", Some(hash.clone())).await);
        assert!(!verify("correct horse batterz", Some(hash.clone())).await);
        assert!(!verify("", Some(hash)).await);
        assert!(!verify("correct horse battery", Some("not a hash".into())).await);
        assert!(!verify("correct horse battery", None).await);
        assert!(PasswordHash::new(NOBODYS).is_ok(), "the hash for nobody costs as much as a real one");
    }

    #[test]
    fn weak_passwords_are_refused_with_their_reason() {
        for (password, why) in [
            ("elevenchars", WeakPassword::Short),
            ("aaaaaaaaaaaaaaaa", WeakPassword::Guessable),
            ("my-Alice-password", WeakPassword::Guessable),
            (&"ab3d".repeat(65), WeakPassword::Long),
        ] {
            assert_eq!(check(password, "alice@corp.example"), Err(why));
        }
        assert_eq!(check("correct horse battery", "alice@corp.example"), Ok(()));
    }
}
