//! Local accounts, for teams without a provider: passwords, one-time codes, groups, and their administration.
//!
//! ```text
//! login, password --sign_in::Accounts::check_password--> PasswordStep::Done(proof)
//!                                                     or PasswordStep::SecondFactor(account) --check_code--> proof
//! administrator --Accounts::add, password_link, ...--> rows
//! ```
//!
//! An account's `sub` is drawn when it is made and never used again, so that a new account under an old login is
//! another person. Whatever takes rights away (disabling, removing, a new password, other groups) also ends the
//! account's login sessions in browsers; the caller ends its leases. A new password or a reset of the second factor makes
//! an account its owner's alone again: whoever knew the old one may have added a passkey, so all passkeys go, and
//! [`Account::secured`] says that nothing proven before counts, also when the core was not told before a crash.
//!
//! Rejected: keeping passkeys that are older than the former password. Their owner cannot tell them from a stranger's by their
//! names, and a passkey is added again in a minute.

use postern_common::time::WallTime;
use sha2::{Digest as _, Sha256};
use sqlx::{Row, Sqlite, SqlitePool, Transaction, sqlite::SqliteRow};
use std::{collections::BTreeSet, time::Duration};

use super::{
    StoreFailed,
    random::{self, Token},
};

#[cfg(test)]
pub(crate) mod authenticator;
mod passkey;
pub mod password;
mod sign_in;
pub mod totp;

pub use passkey::{CopiedPasskey, MAX_PASSKEYS, Passkey, PasskeyError, WaitingRegistration, WaitingSignIn};
pub use sign_in::{Enrolment, PasswordStep, SignInError};
pub use totp::SealingKey;

/// Local accounts and the limits on guessing at them.
#[derive(Debug)]
pub struct Accounts {
    pool: SqlitePool,
    issuer: String,
    key: SealingKey,
    limits: sign_in::Limits,
}

/// One local account, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's `sub`: drawn once, never reused.
    pub id: String,
    /// What the person types, in lower case.
    pub login: String,
    /// The groups that rules may name.
    pub groups: BTreeSet<String>,
    /// Whether it may sign in.
    pub status: AccountStatus,
    /// Whether it administers the controller.
    pub role: AccountRole,
    /// Whether a password was set.
    pub password: Credential,
    /// Whether a one-time code is asked for.
    pub second_factor: Credential,
    /// When it was made.
    pub created: WallTime,
    /// When its password was set, or its second factor reset: what was proven until then counts no more.
    pub secured: Option<WallTime>,
    /// Which password it had when it was read.
    pub(super) stamp: PasswordStamp,
}

impl Account {
    /// Tells whether the account still has the password that it had when `before` was read.
    pub fn has_password_of(&self, before: &Self) -> bool {
        self.id == before.id && self.stamp == before.stamp
    }
}

/// Tells one password of an account from another, so that what was begun with one does not end with the next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PasswordStamp([u8; 32]);

impl PasswordStamp {
    /// Stamps what is stored of a password; every setting of one is salted anew.
    fn of(stored: Option<&str>) -> Self {
        Self(Sha256::digest(stored.unwrap_or_default().as_bytes()).into())
    }
}

impl std::fmt::Debug for PasswordStamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Whether an account may sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountStatus {
    /// It may.
    Enabled,
    /// An administrator said no.
    Disabled,
}

/// What an account is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountRole {
    /// A person.
    Person,
    /// A person who also administers the controller.
    Administrator,
}

/// Whether an account has a credential of some kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// It was set up.
    Set,
    /// It was not, or it was reset.
    Missing,
}

/// What a new account is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccount {
    /// What the person will type; kept in lower case.
    pub login: String,
    /// Its groups.
    pub groups: BTreeSet<String>,
    /// What it is for.
    pub role: AccountRole,
}

/// Tells why an account was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The login is empty, long, or has spaces or control characters in it.
    #[error(
        "`{0}` is not a login: use 1 to 120 letters, digits or punctuation, without spaces, such as an e-mail address"
    )]
    Login(String),
    /// A group's name is empty, long, or has control characters in it.
    #[error("`{0}` is not a group name: use 1 to 120 characters")]
    Group(String),
    /// The login is taken.
    #[error("there is an account `{0}` already")]
    Taken(String),
    /// There is no such account.
    #[error("there is no account `{0}`: see `postern-controller user list`")]
    Unknown(String),
    /// The password is not accepted.
    #[error(transparent)]
    Weak(#[from] password::WeakPassword),
    /// The link is wrong, expired or used.
    #[error("this link has expired or was used: ask your administrator for a new one")]
    Link,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreFailed),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn checked_login(login: &str) -> Result<String, AccountError> {
    let good = |c: char| !c.is_whitespace() && !c.is_control();
    if (1..=120).contains(&login.chars().count()) && login.chars().all(good) {
        Ok(login.to_lowercase())
    } else {
        Err(AccountError::Login(login.chars().take(80).collect()))
    }
}

fn check_group(group: &str) -> Result<(), AccountError> {
    let good = (1..=120).contains(&group.chars().count()) && !group.chars().any(char::is_control);
    if good { Ok(()) } else { Err(AccountError::Group(group.chars().take(80).collect())) }
}

impl Accounts {
    /// Uses the tables of `0002_identity.sql` in `pool`. `issuer` is the controller's public URL: it is the `iss` of
    /// every local account.
    pub fn new(pool: SqlitePool, issuer: impl Into<String>, key: SealingKey) -> Self {
        Self { pool, issuer: issuer.into(), key, limits: sign_in::Limits::new() }
    }

    /// Returns the issuer of local accounts.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes an account. It has no password yet: set one, or hand out a link.
    ///
    /// # Errors
    /// If the login or a group is not acceptable, or the login is taken.
    pub async fn add(&self, new: NewAccount, now: WallTime) -> Result<Account, AccountError> {
        let login = checked_login(&new.login)?;
        let id = format!("acc_{}", hex::encode(random::bytes::<16>()));
        let mut transaction = self.pool.begin().await?;
        let made = sqlx::query(
            "INSERT INTO local_accounts (id, login, is_admin, created_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (login) DO NOTHING",
        )
        .bind(&id)
        .bind(&login)
        .bind(new.role == AccountRole::Administrator)
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await?;
        if made.rows_affected() == 0 {
            return Err(AccountError::Taken(login));
        }
        put_groups(&mut transaction, &id, &new.groups).await?;
        transaction.commit().await?;
        self.find(&login).await
    }

    /// Finds an account by its login.
    ///
    /// # Errors
    /// [`AccountError::Unknown`] if there is none.
    pub async fn find(&self, login: &str) -> Result<Account, AccountError> {
        let row = sqlx::query("SELECT * FROM local_accounts WHERE login = ?1")
            .bind(login.to_lowercase())
            .fetch_optional(&self.pool)
            .await?;
        let row = row.ok_or_else(|| AccountError::Unknown(login.chars().take(80).collect()))?;
        Ok(self.with_groups(&row).await?)
    }

    /// Finds an account by its `sub`.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn find_by_id(&self, id: &str) -> Result<Option<Account>, StoreFailed> {
        let row = sqlx::query("SELECT * FROM local_accounts WHERE id = ?1").bind(id).fetch_optional(&self.pool).await?;
        match row {
            Some(row) => Ok(Some(self.with_groups(&row).await?)),
            None => Ok(None),
        }
    }

    /// Lists the accounts by login.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self) -> Result<Vec<Account>, AccountError> {
        let rows = sqlx::query("SELECT * FROM local_accounts ORDER BY login").fetch_all(&self.pool).await?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in &rows {
            accounts.push(self.with_groups(row).await?);
        }
        Ok(accounts)
    }

    /// Sets a password, as an administrator at the controller's own terminal does. Ends the account's sessions, passkeys and
    /// links, and forgives failed attempts. Returns how many passkeys went.
    ///
    /// # Errors
    /// If the password is weak or there is no such account.
    pub async fn set_password(&self, login: &str, new: &str, now: WallTime) -> Result<u64, AccountError> {
        let account = self.find(login).await?;
        password::check(new, &account.login)?;
        let hash = password::hash(new).await;
        let mut transaction = self.pool.begin().await?;
        let passkeys = self.store_password(&mut transaction, &account, &hash, now).await?;
        transaction.commit().await?;
        self.limits.forgive(&account.login);
        Ok(passkeys)
    }

    /// Makes a one-time link's token by which the person sets a password at `/password/TOKEN`. Older links die.
    ///
    /// # Errors
    /// If there is no such account.
    pub async fn password_link(&self, login: &str, lives: Duration, now: WallTime) -> Result<Token, AccountError> {
        let account = self.find(login).await?;
        let token = Token::draw();
        let mut transaction = self.pool.begin().await?;
        sqlx::query("DELETE FROM local_password_links WHERE account = ?1")
            .bind(&account.id)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO local_password_links (hash, account, expires_at) VALUES (?1, ?2, ?3)")
            .bind(&token.hash().as_bytes()[..])
            .bind(&account.id)
            .bind(now.saturating_add(lives).as_millis())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(token)
    }

    /// Tells whose password a link sets, without using it up.
    ///
    /// # Errors
    /// [`AccountError::Link`] if the link is wrong, expired or used.
    pub async fn look_at_link(&self, link: &Token, now: WallTime) -> Result<Account, AccountError> {
        let row = sqlx::query(
            "SELECT local_accounts.* FROM local_password_links JOIN local_accounts ON id = account
             WHERE hash = ?1 AND expires_at > ?2 AND NOT is_disabled",
        )
        .bind(&link.hash().as_bytes()[..])
        .bind(now.as_millis())
        .fetch_optional(&self.pool)
        .await?;
        let row = row.ok_or(AccountError::Link)?;
        Ok(self.with_groups(&row).await?)
    }

    /// Sets a password by a one-time link and uses the link up, in one transaction. Returns whose it is, and how many passkeys
    /// went with the old one.
    ///
    /// # Errors
    /// If the link is wrong, expired or used, or the password is weak; the link lives on after a weak password.
    pub async fn set_password_by_link(
        &self,
        link: &Token,
        new: &str,
        now: WallTime,
    ) -> Result<(Account, u64), AccountError> {
        let account = self.look_at_link(link, now).await?;
        password::check(new, &account.login)?;
        let hash = password::hash(new).await;
        let mut transaction = self.pool.begin().await?;
        let claimed = sqlx::query("DELETE FROM local_password_links WHERE hash = ?1 AND expires_at > ?2")
            .bind(&link.hash().as_bytes()[..])
            .bind(now.as_millis())
            .execute(&mut *transaction)
            .await?;
        if claimed.rows_affected() != 1 {
            return Err(AccountError::Link); // another request claimed it while this one hashed
        }
        let passkeys = self.store_password(&mut transaction, &account, &hash, now).await?;
        transaction.commit().await?;
        self.limits.forgive(&account.login);
        Ok((account, passkeys))
    }

    /// Lets an account sign in, or no longer. Disabling ends its sessions.
    ///
    /// # Errors
    /// If there is no such account.
    pub async fn set_status(&self, login: &str, status: AccountStatus) -> Result<Account, AccountError> {
        let disabled = status == AccountStatus::Disabled;
        self.change(login, sqlx::query("UPDATE local_accounts SET is_disabled = ?2 WHERE id = ?1"), disabled).await
    }

    /// Makes an account an administrator, or no longer. Ends its sessions.
    ///
    /// # Errors
    /// If there is no such account.
    pub async fn set_role(&self, login: &str, role: AccountRole) -> Result<Account, AccountError> {
        let admin = role == AccountRole::Administrator;
        self.change(login, sqlx::query("UPDATE local_accounts SET is_admin = ?2 WHERE id = ?1"), admin).await
    }

    /// Replaces an account's groups. Ends its sessions, because they carry the old ones.
    ///
    /// # Errors
    /// If there is no such account or a group's name is not acceptable.
    pub async fn set_groups(&self, login: &str, groups: &BTreeSet<String>) -> Result<Account, AccountError> {
        let account = self.find(login).await?;
        let mut transaction = self.pool.begin().await?;
        sqlx::query("DELETE FROM local_groups WHERE account = ?1").bind(&account.id).execute(&mut *transaction).await?;
        put_groups(&mut transaction, &account.id, groups).await?;
        self.end_sessions(&mut transaction, &account.id).await?;
        transaction.commit().await?;
        self.find(login).await
    }

    /// Forgets an account's second factor and passkeys, for somebody who lost the authenticator. Ends its sessions. The last used
    /// step is kept, so that an old code cannot come back with the same secret.
    ///
    /// # Errors
    /// If there is no such account.
    pub async fn reset_totp(&self, login: &str, now: WallTime) -> Result<Account, AccountError> {
        let account = self.find(login).await?;
        let mut transaction = self.pool.begin().await?;
        sqlx::query("UPDATE local_accounts SET totp_secret = NULL WHERE id = ?1")
            .bind(&account.id)
            .execute(&mut *transaction)
            .await?;
        // Who lost the authenticator has most often lost the device with the passkeys.
        self.start_over(&mut transaction, &account, now).await?;
        transaction.commit().await?;
        self.find(login).await
    }

    /// Removes an account for good and ends its sessions. Returns what it was, so that the caller can end its leases.
    ///
    /// # Errors
    /// If there is no such account.
    pub async fn remove(&self, login: &str) -> Result<Account, AccountError> {
        let account = self.find(login).await?;
        let mut transaction = self.pool.begin().await?;
        for table in [
            "DELETE FROM local_groups WHERE account = ?1",
            "DELETE FROM local_password_links WHERE account = ?1",
            "DELETE FROM local_known_addresses WHERE account = ?1",
            "DELETE FROM local_accounts WHERE id = ?1",
        ] {
            sqlx::query(table).bind(&account.id).execute(&mut *transaction).await?;
        }
        self.end_sessions(&mut transaction, &account.id).await?;
        transaction.commit().await?;
        Ok(account)
    }

    async fn change<'q>(
        &self,
        login: &str,
        update: sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>,
        value: bool,
    ) -> Result<Account, AccountError> {
        let account = self.find(login).await?;
        let mut transaction = self.pool.begin().await?;
        update.bind(account.id.clone()).bind(value).execute(&mut *transaction).await?;
        self.end_sessions(&mut transaction, &account.id).await?;
        transaction.commit().await?;
        self.find(login).await
    }

    async fn store_password(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        account: &Account,
        hash: &str,
        now: WallTime,
    ) -> Result<u64, sqlx::Error> {
        sqlx::query("UPDATE local_accounts SET password_hash = ?2 WHERE id = ?1")
            .bind(&account.id)
            .bind(hash)
            .execute(&mut **transaction)
            .await?;
        sqlx::query("DELETE FROM local_password_links WHERE account = ?1")
            .bind(&account.id)
            .execute(&mut **transaction)
            .await?;
        self.start_over(transaction, account, now).await
    }

    /// Ends what hangs on an account's former credentials; returns how many passkeys those were.
    async fn start_over(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        account: &Account,
        now: WallTime,
    ) -> Result<u64, sqlx::Error> {
        sqlx::query("UPDATE local_accounts SET secured_at = ?2 WHERE id = ?1")
            .bind(&account.id)
            .bind(now.as_millis())
            .execute(&mut **transaction)
            .await?;
        let passkeys = sqlx::query("DELETE FROM local_passkeys WHERE account = ?1")
            .bind(&account.id)
            .execute(&mut **transaction)
            .await?;
        self.end_sessions(transaction, &account.id).await?;
        Ok(passkeys.rows_affected())
    }

    async fn end_sessions(&self, transaction: &mut Transaction<'_, Sqlite>, id: &str) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM web_sessions WHERE issuer = ?1 AND subject = ?2")
            .bind(&self.issuer)
            .bind(id)
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }

    async fn with_groups(&self, row: &SqliteRow) -> Result<Account, StoreFailed> {
        let id: String = row.try_get("id")?;
        let groups = sqlx::query_scalar::<_, String>("SELECT name FROM local_groups WHERE account = ?1")
            .bind(&id)
            .fetch_all(&self.pool)
            .await?;
        let credential = |set: bool| if set { Credential::Set } else { Credential::Missing };
        let stored = row.try_get::<Option<String>, _>("password_hash")?;
        Ok(Account {
            login: row.try_get("login")?,
            groups: groups.into_iter().collect(),
            status: if row.try_get("is_disabled")? { AccountStatus::Disabled } else { AccountStatus::Enabled },
            role: if row.try_get("is_admin")? { AccountRole::Administrator } else { AccountRole::Person },
            password: credential(stored.is_some()),
            stamp: PasswordStamp::of(stored.as_deref()),
            second_factor: credential(row.try_get::<Option<Vec<u8>>, _>("totp_secret")?.is_some()),
            created: WallTime::from_millis(row.try_get("created_at")?),
            secured: row.try_get::<Option<i64>, _>("secured_at")?.map(WallTime::from_millis),
            id,
        })
    }
}

async fn put_groups(
    transaction: &mut Transaction<'_, Sqlite>,
    account: &str,
    groups: &BTreeSet<String>,
) -> Result<(), AccountError> {
    for group in groups {
        check_group(group)?;
        sqlx::query("INSERT INTO local_groups (account, name) VALUES (?1, ?2)")
            .bind(account)
            .bind(group)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
