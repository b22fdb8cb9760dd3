//! Passkeys of local accounts (W3C Web Authentication Level 3): registered on a page, then a sign-in of their own.
//!
//! ```text
//! begin_passkey ----> (what waits here, options for the browser) --answer--> finish_passkey: stored
//! begin_passkey_sign_in --> (what waits here, options) --------answer--> check_passkey: the account
//! ```
//!
//! The ceremony itself (challenge, origin, RP ID, user presence and verification, signature, counter) is the library's,
//! `webauthn_rp`: pure Rust over the curves that are here already (docs/decisions/0012).
//!
//! Invariants: the authenticator has verified its user, in registration and in every use, so a passkey is possession and
//! knowledge or inherence; the answer is of this controller's own origin, which is why it cannot be phished; a counter that
//! goes back (a copied authenticator) gets nobody in, then or later: the passkey is marked, because nobody can tell which of the
//! two is its owner's. Only an answer whose signature holds marks one. Attestation is not asked for: which product it is does not
//! matter here.
//!
//! Bound: [`MAX_PASSKEYS`] of one account.

use std::net::IpAddr;

use postern_common::time::WallTime;
use sqlx::{Row, sqlite::SqliteRow};
use webauthn_rp::{
    AuthenticatedCredential, DiscoverableAuthentication64, DiscoverableAuthenticationServerState,
    DiscoverableCredentialRequestOptions, PublicKeyCredentialCreationOptions, Registration, RegistrationServerState,
    bin::{Decode, Encode},
    request::{
        AsciiDomain, PublicKeyCredentialDescriptor, RpId,
        auth::AuthenticationVerificationOptions,
        register::{
            CredProtect, PublicKeyCredentialUserEntity, RegistrationVerificationOptions, USER_HANDLE_MAX_LEN,
            UserHandle, UserHandle64, Username,
        },
    },
    response::{
        AuthTransports, CredentialId,
        auth::error::AuthCeremonyErr,
        register::{DynamicState, StaticState},
    },
};

use super::{
    super::{
        Proof, StoreFailed, random,
        rate::{AddressPrefix, TooMany},
    },
    Account, AccountStatus, Accounts, SignInError,
};

/// The most passkeys of one account.
pub const MAX_PASSKEYS: usize = 16;
/// The longest name of one, characters.
const MAX_NAME: usize = 60;

/// A registration that waits for the browser.
pub type WaitingRegistration = RegistrationServerState<USER_HANDLE_MAX_LEN>;
/// A sign-in that waits for the browser.
pub type WaitingSignIn = DiscoverableAuthenticationServerState;

/// A passkey, as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// Its identifier, in hexadecimal.
    pub id: String,
    /// What the person calls it.
    pub name: String,
    /// When it was added.
    pub added: WallTime,
    /// When it was last used.
    pub used: Option<WallTime>,
    /// When its counter went back: there may be two of it, and it signs nobody in.
    pub copied: Option<WallTime>,
}

/// A passkey of which there may be two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedPasskey {
    /// Whose it is.
    pub account: Account,
    /// What the person calls it.
    pub name: String,
    /// Whether this is the first that is known of it.
    pub newly: bool,
}

/// Why a passkey did not do.
#[derive(Debug, thiserror::Error)]
pub enum PasskeyError {
    /// This controller's URL has no domain name, without which there are no passkeys.
    #[error("there are no passkeys here: the controller's URL has no domain name")]
    NoDomain,
    /// The browser's answer does not hold.
    #[error("the passkey was refused: {0}")]
    Refused(String),
    /// Nobody here has this passkey.
    #[error("nobody here has this passkey")]
    Unknown,
    /// Its counter went back: there may be two of it.
    #[error("the passkey's counter went back: it may have been copied")]
    Copied(Box<CopiedPasskey>),
    /// The account has as many as one may have.
    #[error("an account may have {MAX_PASSKEYS} passkeys")]
    Full,
    /// The account is disabled.
    #[error("this account is disabled")]
    Disabled,
    /// Too many attempts.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreFailed),
}

impl From<sqlx::Error> for PasskeyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Cuts a library's word for a log.
fn short(error: &impl std::fmt::Display) -> PasskeyError {
    PasskeyError::Refused(error.to_string().chars().filter(|c| !c.is_control()).take(200).collect())
}

fn to_json(options: &impl serde::Serialize) -> String {
    serde_json::to_string(options).expect("options for a browser have a JSON form")
}

impl Accounts {
    fn relying_party(&self) -> Option<(RpId, String)> {
        let url = url::Url::parse(&self.issuer).ok()?;
        let Some(url::Host::Domain(domain)) = url.host() else { return None };
        let id = AsciiDomain::try_from(domain.to_owned()).ok()?;
        Some((RpId::Domain(id), url.origin().ascii_serialization()))
    }

    async fn handle_of(&self, account: &Account) -> Result<UserHandle64, PasskeyError> {
        sqlx::query("INSERT OR IGNORE INTO local_passkey_handles (account, handle) VALUES (?1, ?2)")
            .bind(&account.id)
            .bind(&random::bytes::<64>()[..])
            .execute(&self.pool)
            .await?;
        let handle: Vec<u8> = sqlx::query_scalar("SELECT handle FROM local_passkey_handles WHERE account = ?1")
            .bind(&account.id)
            .fetch_one(&self.pool)
            .await?;
        let handle = <[u8; 64]>::try_from(handle).map_err(|_| sqlx::Error::Decode("a user handle".into()))?;
        UserHandle::decode(handle).map_err(|error| short(&error))
    }

    /// Begins to add a passkey to an account: what waits for the answer, and the options for the browser, JSON.
    ///
    /// # Errors
    /// [`PasskeyError`].
    pub async fn begin_passkey(&self, account: &Account) -> Result<(WaitingRegistration, String), PasskeyError> {
        let (party, _) = self.relying_party().ok_or(PasskeyError::NoDomain)?;
        let handle = self.handle_of(account).await?;
        let known: Vec<Vec<u8>> = sqlx::query_scalar("SELECT id FROM local_passkeys WHERE account = ?1")
            .bind(&account.id)
            .fetch_all(&self.pool)
            .await?;
        if known.len() >= MAX_PASSKEYS {
            return Err(PasskeyError::Full);
        }
        let descriptor = |id: Vec<u8>| {
            let id = CredentialId::decode(id).ok()?;
            let transports = AuthTransports::decode(0).ok()?; // the browser asks all
            Some(PublicKeyCredentialDescriptor { id, transports })
        };
        let name = Username::try_from(account.login.as_str()).map_err(|error| short(&error))?;
        let user = PublicKeyCredentialUserEntity { name, id: &handle, display_name: None };
        let known = known.into_iter().filter_map(descriptor).collect();
        let mut options = PublicKeyCredentialCreationOptions::passkey(&party, user, known);
        // Many authenticators do not know the extension and would be refused; verification is asked for at every use here.
        options.extensions.cred_protect = CredProtect::None;
        let (waiting, client) = options.start_ceremony().map_err(|error| short(&error))?;
        Ok((waiting, to_json(&client)))
    }

    /// Stores a passkey whose registration holds.
    ///
    /// # Errors
    /// [`PasskeyError`].
    pub async fn finish_passkey(
        &self,
        account: &Account,
        waiting: WaitingRegistration,
        answer: &str,
        name: &str,
        now: WallTime,
    ) -> Result<(), PasskeyError> {
        let (party, origin) = self.relying_party().ok_or(PasskeyError::NoDomain)?;
        let answer = Registration::from_json_relaxed(answer.as_bytes()).map_err(|error| short(&error))?;
        let origins = [origin.as_str()];
        let options = RegistrationVerificationOptions::<&str, &str> {
            allowed_origins: &origins,
            error_on_unsolicited_extensions: false, // browsers add some by themselves
            ..Default::default()
        };
        let made = waiting.verify(&party, &answer, &options).map_err(|error| short(&error))?;
        let name: String = name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
        let public_key = made.static_state().encode().expect("encoding cannot fail");
        let state = made.dynamic_state().encode().expect("encoding cannot fail");
        // An identifier that is somebody's already stays theirs, and an account that started over meanwhile is not this one.
        let stored = sqlx::query(
            "INSERT INTO local_passkeys (id, account, public_key, state, name, added_at)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE (SELECT count(*) FROM local_passkeys WHERE account = ?2) < ?7
             AND EXISTS (SELECT 1 FROM local_accounts WHERE id = ?2 AND secured_at IS ?8)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(made.id().as_ref())
        .bind(&account.id)
        .bind(public_key)
        .bind(&state[..])
        .bind(if name.is_empty() { "passkey" } else { name.as_str() })
        .bind(now.as_millis())
        .bind(i64::try_from(MAX_PASSKEYS).unwrap_or(i64::MAX))
        .bind(account.secured.map(WallTime::as_millis))
        .execute(&self.pool)
        .await?;
        if stored.rows_affected() == 1 { Ok(()) } else { Err(PasskeyError::Full) }
    }

    /// Begins a sign-in by passkey, whosever it will be. `None` where there are no passkeys.
    pub fn begin_passkey_sign_in(&self) -> Option<(WaitingSignIn, String)> {
        let (party, _) = self.relying_party()?;
        let (waiting, client) = DiscoverableCredentialRequestOptions::passkey(&party).start_ceremony().ok()?;
        Some((waiting, to_json(&client)))
    }

    /// Checks an answer of a passkey, and returns whose it is.
    ///
    /// # Errors
    /// [`PasskeyError`].
    pub async fn check_passkey(
        &self,
        waiting: WaitingSignIn,
        answer: &str,
        from: IpAddr,
        now: WallTime,
    ) -> Result<Account, PasskeyError> {
        self.limits.address.take(&AddressPrefix::from(from), now)?;
        let (party, origin) = self.relying_party().ok_or(PasskeyError::NoDomain)?;
        let answer =
            DiscoverableAuthentication64::from_json_relaxed(answer.as_bytes()).map_err(|error| short(&error))?;
        let row = sqlx::query(
            "SELECT p.account, p.public_key, p.state, p.name, p.copied_at FROM local_passkeys p
             JOIN local_passkey_handles h ON h.account = p.account WHERE p.id = ?1 AND h.handle = ?2",
        )
        .bind(answer.raw_id().as_ref())
        .bind(answer.response().user_handle().as_ref())
        .fetch_optional(&self.pool)
        .await?
        .ok_or(PasskeyError::Unknown)?;
        let (account, public_key, state) = stored(&row)?;
        let is_marked = row.try_get::<Option<i64>, _>("copied_at")?.is_some();
        let public_key = StaticState::decode(public_key.as_slice()).map_err(|error| short(&error))?;
        let state = DynamicState::decode(state).map_err(|error| short(&error))?;
        let handle = *answer.response().user_handle();
        let mut known =
            AuthenticatedCredential::new(answer.raw_id(), &handle, public_key, state).map_err(|error| short(&error))?;
        let origins = [origin.as_str()];
        let options = AuthenticationVerificationOptions::<&str, &str> {
            allowed_origins: &origins,
            error_on_unsolicited_extensions: false,
            ..Default::default()
        };
        match waiting.verify(&party, &answer, &mut known, &options) {
            Ok(_) if !is_marked => {}
            // The signature holds: the library looks at the counter after it.
            Ok(_) | Err(AuthCeremonyErr::SignatureCounter) => {
                let newly = self.mark_copied(answer.raw_id().as_ref(), now).await?;
                let account = self.find_by_id(&account).await?.ok_or(PasskeyError::Unknown)?;
                let name = row.try_get("name")?;
                return Err(PasskeyError::Copied(Box::new(CopiedPasskey { account, name, newly })));
            }
            Err(other) => return Err(short(&other)),
        }
        // The condition keeps the counter from going back even against a second request at the same moment.
        let next = known.dynamic_state().encode().expect("encoding cannot fail");
        let noted = sqlx::query(
            "UPDATE local_passkeys SET state = ?2, used_at = ?3 WHERE id = ?1 AND state = ?4 AND copied_at IS NULL",
        )
        .bind(answer.raw_id().as_ref())
        .bind(&next[..])
        .bind(now.as_millis())
        .bind(&state.encode().expect("encoding cannot fail")[..])
        .execute(&self.pool)
        .await?;
        if noted.rows_affected() != 1 {
            return Err(PasskeyError::Refused("used twice at the same moment".into()));
        }
        let account = self.find_by_id(&account).await?.ok_or(PasskeyError::Unknown)?;
        if account.status == AccountStatus::Disabled { Err(PasskeyError::Disabled) } else { Ok(account) }
    }

    /// Marks a passkey of which there may be two; tells whether it was not yet.
    async fn mark_copied(&self, id: &[u8], now: WallTime) -> Result<bool, sqlx::Error> {
        let marked = sqlx::query("UPDATE local_passkeys SET copied_at = ?2 WHERE id = ?1 AND copied_at IS NULL")
            .bind(id)
            .bind(now.as_millis())
            .execute(&self.pool)
            .await?;
        Ok(marked.rows_affected() == 1)
    }

    /// Tells whether an account has a passkey that signs it in.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn has_passkey(&self, account: &str) -> Result<bool, StoreFailed> {
        Ok(self.passkeys(account).await?.iter().any(|passkey| passkey.copied.is_none()))
    }

    /// Writes the proof of a sign-in by passkey. The account is read again, as with a password.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn prove_passkey(
        &self,
        account: &Account,
        from: IpAddr,
        now: WallTime,
    ) -> Result<Proof, SignInError> {
        // RFC 8176 §2: `hwk` would claim hardware, which nobody attested; `pop` and `mfa` are what was seen.
        self.proof_of(account, &["pop", "mfa"], Some("phr"), from, now).await
    }

    /// Lists an account's passkeys, oldest first.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn passkeys(&self, account: &str) -> Result<Vec<Passkey>, StoreFailed> {
        let rows = sqlx::query("SELECT * FROM local_passkeys WHERE account = ?1 ORDER BY added_at")
            .bind(account)
            .fetch_all(&self.pool)
            .await?;
        let passkey = |row: &SqliteRow| -> Result<Passkey, sqlx::Error> {
            Ok(Passkey {
                id: hex::encode(row.try_get::<&[u8], _>("id")?),
                name: row.try_get("name")?,
                added: WallTime::from_millis(row.try_get("added_at")?),
                used: row.try_get::<Option<i64>, _>("used_at")?.map(WallTime::from_millis),
                copied: row.try_get::<Option<i64>, _>("copied_at")?.map(WallTime::from_millis),
            })
        };
        Ok(rows.iter().map(passkey).collect::<Result<_, _>>()?)
    }

    /// Removes a passkey of an account; tells whether there was one.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn remove_passkey(&self, account: &str, id: &str) -> Result<bool, StoreFailed> {
        let Ok(id) = hex::decode(id) else { return Ok(false) };
        let done = sqlx::query("DELETE FROM local_passkeys WHERE account = ?1 AND id = ?2")
            .bind(account)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn stored(row: &SqliteRow) -> Result<(String, Vec<u8>, [u8; 7]), sqlx::Error> {
    let state: &[u8] = row.try_get("state")?;
    let state = <[u8; 7]>::try_from(state).map_err(|_| sqlx::Error::Decode("a passkey's state".into()))?;
    Ok((row.try_get("account")?, row.try_get("public_key")?, state))
}
