//! Signing in to a local account: password, then a one-time code where one is set up.
//!
//! Limits, from the outside in: attempts per address prefix; attempts per login and prefix; attempts per login from
//! addresses where it never signed in. Somebody who guesses at an account from elsewhere empties only the last one:
//! its owner gets in from an address that is known, at once. Every limit refills by itself, and setting a password
//! at the controller or by a link forgives them. Codes have a limit per account, which only somebody who knows the
//! password can reach.

use std::{net::IpAddr, time::Duration};

use postern_common::time::WallTime;
use sqlx::{Row, sqlite::SqliteRow};

use super::{
    super::{
        Proof, StoreFailed,
        rate::{AddressPrefix, Allowance, Buckets, TooMany},
    },
    Account, AccountStatus, Accounts, Credential, PasswordStamp, password,
    totp::Secret,
};

/// The most known addresses of one account.
const MAX_KNOWN_ADDRESSES: i64 = 8;

/// What happened after a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordStep {
    /// It was right, and no code is needed.
    Done(Account),
    /// It was right, and a one-time code comes next.
    SecondFactor(Account),
}

/// An authenticator that is being set up.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The account.
    pub account: Account,
    /// The secret that the authenticator and the controller will share.
    pub secret: Secret,
}

/// Tells why a sign-in was refused.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Login or password is wrong; not told apart.
    #[error("login or password is wrong")]
    Wrong,
    /// The code is wrong, expired or was used.
    #[error("the code is wrong, expired or was used")]
    Code,
    /// The password was changed after it was given: the sign-in begins again.
    #[error("the password was changed meanwhile")]
    Changed,
    /// The account has a passkey, and the password alone is not enough.
    #[error("the account has a passkey, which is asked for")]
    Passkey,
    /// The account is disabled; told only to somebody who knows its password.
    #[error("this account is disabled")]
    Disabled,
    /// Too many attempts.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreFailed),
}

impl From<sqlx::Error> for SignInError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The limits on guessing.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) address: Buckets<AddressPrefix>,
    login_at: Buckets<(String, AddressPrefix)>,
    login_from_strangers: Buckets<String>,
    codes: Buckets<String>,
}

const fn every(burst: u32, seconds: u64) -> Allowance {
    Allowance { burst, interval: Duration::from_secs(seconds) }
}

impl Limits {
    pub(super) fn new() -> Self {
        Self {
            address: Buckets::new(every(30, 4), 8_192),
            login_at: Buckets::new(every(6, 30), 8_192),
            login_from_strangers: Buckets::new(every(20, 30), 4_096),
            codes: Buckets::new(every(5, 60), 4_096),
        }
    }

    pub(super) fn forgive(&self, login: &str) {
        self.login_from_strangers.forgive(&login.to_owned());
        self.codes.forgive(&login.to_owned());
    }
}

impl Accounts {
    /// Checks a password.
    ///
    /// # Errors
    /// The refusal; the same, and after the same time, whether the account or the password does not exist.
    pub async fn check_password(
        &self,
        login: &str,
        given: &str,
        from: IpAddr,
        now: WallTime,
    ) -> Result<PasswordStep, SignInError> {
        let prefix = AddressPrefix::from(from);
        let login: String = login.trim().to_lowercase().chars().take(120).collect();
        self.limits.address.take(&prefix, now)?;
        self.limits.login_at.take(&(login.clone(), prefix), now)?;
        let row = sqlx::query("SELECT * FROM local_accounts WHERE login = ?1")
            .bind(&login)
            .fetch_optional(&self.pool)
            .await?;
        let account = match &row {
            Some(row) => Some(self.with_groups(row).await?),
            None => None,
        };
        let known = match &account {
            Some(account) => self.is_known_address(account, prefix).await?,
            None => false,
        };
        if !known {
            self.limits.login_from_strangers.take(&login, now)?;
        }
        let hash: Option<String> = match &row {
            Some(row) => row.try_get("password_hash")?,
            None => None,
        };
        if !password::verify(given, hash).await {
            return Err(SignInError::Wrong);
        }
        let account = account.ok_or(SignInError::Wrong)?;
        self.limits.login_at.forgive(&(login, prefix));
        if account.status == AccountStatus::Disabled {
            return Err(SignInError::Disabled);
        }
        Ok(match account.second_factor {
            Credential::Set => PasswordStep::SecondFactor(account),
            Credential::Missing => PasswordStep::Done(account),
        })
    }

    /// Checks a one-time code of an account whose password was right, and uses it up.
    ///
    /// # Errors
    /// The refusal.
    pub async fn check_code(&self, account: &Account, code: &str, now: WallTime) -> Result<(), SignInError> {
        self.limits.codes.take(&account.login, now)?;
        let row = sqlx::query("SELECT totp_secret, totp_last_step, password_hash FROM local_accounts WHERE id = ?1")
            .bind(&account.id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or(SignInError::Code)?;
        same_password(account, &row)?;
        let sealed: Vec<u8> = row.try_get::<Option<Vec<u8>>, _>("totp_secret")?.ok_or(SignInError::Code)?;
        let secret = Secret::open(&sealed, &self.key, &account.id).ok_or_else(|| {
            tracing::error!(subject = %account.id, "a second factor does not open under the sealing key");
            SignInError::Code
        })?;
        let step = secret.step_of(&digits(code), row.try_get("totp_last_step")?, now).ok_or(SignInError::Code)?;
        // The condition makes the code single-use even against a second request at the same moment.
        let claimed =
            sqlx::query("UPDATE local_accounts SET totp_last_step = ?2 WHERE id = ?1 AND totp_last_step < ?2")
                .bind(&account.id)
                .bind(step)
                .execute(&self.pool)
                .await?;
        if claimed.rows_affected() != 1 {
            return Err(SignInError::Code);
        }
        self.limits.codes.forgive(&account.login);
        Ok(())
    }

    /// Begins to set up an authenticator. Nothing is stored before the first code was right.
    pub fn begin_enrolment(&self, account: Account) -> Enrolment {
        Enrolment { account, secret: Secret::draw() }
    }

    /// Stores an authenticator whose first code is right. An account that has one keeps it.
    ///
    /// # Errors
    /// The refusal.
    pub async fn finish_enrolment(&self, enrolment: &Enrolment, code: &str, now: WallTime) -> Result<(), SignInError> {
        let Enrolment { account, secret } = enrolment;
        self.limits.codes.take(&account.login, now)?;
        let step = secret.step_of(&digits(code), 0, now).ok_or(SignInError::Code)?;
        let mut transaction = self.pool.begin().await?;
        let row = sqlx::query("SELECT password_hash FROM local_accounts WHERE id = ?1")
            .bind(&account.id)
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or(SignInError::Code)?;
        // Whoever knew only a former password must not choose the second factor of the next one.
        same_password(account, &row)?;
        let stored = sqlx::query(
            "UPDATE local_accounts SET totp_secret = ?2, totp_last_step = ?3 WHERE id = ?1 AND totp_secret IS NULL",
        )
        .bind(&account.id)
        .bind(secret.seal(&self.key, &account.id))
        .bind(step)
        .execute(&mut *transaction)
        .await?;
        if stored.rows_affected() != 1 {
            return Err(SignInError::Code);
        }
        transaction.commit().await?;
        self.limits.codes.forgive(&account.login);
        Ok(())
    }

    /// Writes the proof of a finished sign-in and remembers the address. The account is read again, because it may
    /// have been disabled, or its password changed, between the steps.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn prove(
        &self,
        account: &Account,
        second: Credential,
        from: IpAddr,
        now: WallTime,
    ) -> Result<Proof, SignInError> {
        let methods: &[&str] = match second {
            Credential::Set => &["pwd", "otp"],
            Credential::Missing => &["pwd"],
        };
        let now_set = self.find_by_id(&account.id).await?.ok_or(SignInError::Wrong)?.second_factor;
        if now_set == Credential::Set && second == Credential::Missing {
            return Err(SignInError::Code);
        }
        self.proof_of(account, methods, None, from, now).await
    }

    /// Writes a proof for an account that is still what it was when the sign-in began.
    pub(super) async fn proof_of(
        &self,
        account: &Account,
        methods: &[&str],
        class: Option<&str>,
        from: IpAddr,
        now: WallTime,
    ) -> Result<Proof, SignInError> {
        let begun_with = account.stamp;
        let account = self.find_by_id(&account.id).await?.ok_or(SignInError::Wrong)?;
        if account.stamp != begun_with {
            return Err(SignInError::Changed);
        }
        if account.status == AccountStatus::Disabled {
            return Err(SignInError::Disabled);
        }
        self.remember_address(&account, from.into(), now).await?;
        Ok(Proof {
            issuer: self.issuer.clone(),
            subject: account.id,
            name: account.login,
            groups: Some(account.groups),
            acr: class.map(str::to_owned),
            amr: methods.iter().map(|method| (*method).to_owned()).collect(),
            auth_time: Some(now),
            provisioned_as: None,
            sid: None,
        })
    }

    async fn is_known_address(&self, account: &Account, prefix: AddressPrefix) -> Result<bool, sqlx::Error> {
        let found = sqlx::query("SELECT 1 FROM local_known_addresses WHERE account = ?1 AND prefix = ?2")
            .bind(&account.id)
            .bind(prefix.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.is_some())
    }

    async fn remember_address(&self, account: &Account, at: AddressPrefix, now: WallTime) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO local_known_addresses (account, prefix, last_used_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (account, prefix) DO UPDATE SET last_used_at = excluded.last_used_at",
        )
        .bind(&account.id)
        .bind(at.to_string())
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "DELETE FROM local_known_addresses WHERE account = ?1 AND prefix NOT IN
             (SELECT prefix FROM local_known_addresses WHERE account = ?1 ORDER BY last_used_at DESC LIMIT ?2)",
        )
        .bind(&account.id)
        .bind(MAX_KNOWN_ADDRESSES)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }
}

/// Refuses to go on with a sign-in whose password is not the account's any more. `row` holds `password_hash`.
fn same_password(account: &Account, row: &SqliteRow) -> Result<(), SignInError> {
    let stored: Option<String> = row.try_get("password_hash")?;
    if PasswordStamp::of(stored.as_deref()) == account.stamp { Ok(()) } else { Err(SignInError::Changed) }
}

/// Takes a code as people type it, with spaces.
fn digits(code: &str) -> String {
    code.chars().filter(|c| !c.is_whitespace()).take(12).collect()
}
