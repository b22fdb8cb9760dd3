//! Why a controller does not start or does not go on.

use super::*;

/// Why the controller does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Somebody put a copy of the database in its place.
    #[error(
        "the database {} is older than the audit log: it ends with record {ends}, and {} goes on to {goes_on}. What was revoked since would be open again, and nodes would refuse what they are told. If it was put back on purpose: `postern-controller restore {}` (every login session ends, and a new epoch begins); if not, put the newer one back", database.display(), audit.display(), database.display()
    )]
    OlderDatabase {
        /// The database.
        database: PathBuf,
        /// The number of its last record.
        ends: u64,
        /// The folder of the audit log.
        audit: PathBuf,
        /// The number of the last record there.
        goes_on: u64,
    },
    /// The local accounts cannot be read.
    #[error(transparent)]
    Accounts(#[from] AccountError),
    /// The policy document of the first start.
    #[error("{0}\nThe controller does not start without a policy that checks.")]
    Policy(Diagnostics),
    /// The policy in force cannot be read by this version.
    #[error(
        "the policy in force (revision {revision}) does not check in this version:\n{error}\nPut a corrected document at {file} and start with `serve --apply-policy`."
    )]
    KeptPolicy {
        /// Its number.
        revision: u64,
        /// What is wrong.
        error: Diagnostics,
        /// The document on disk.
        file: PathBuf,
    },
    /// A port is taken.
    #[error(
        "{protocol} port {address} is taken by another program: stop it (`ss -lp 'sport = :{port}'` shows it), or change `{key}` in {file}"
    )]
    Occupied {
        /// TCP or UDP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// Its port.
        port: u16,
        /// The key in the configuration.
        key: &'static str,
        /// The configuration.
        file: PathBuf,
    },
    /// A port cannot be bound for another reason.
    #[error("cannot listen on {protocol} {address}: {cause}")]
    Bind {
        /// TCP or UDP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
    /// The settings of the provider cannot be used.
    #[error("[oidc] in {file}: {why}")]
    Provider {
        /// The configuration.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The settings of an issuer of machines' tokens cannot be used.
    #[error("[[machine_issuer]] in {file}: {why}")]
    MachineIssuer {
        /// The configuration.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Alerts cannot be delivered as it is written.
    #[error("[alerts] in {file}: {why}")]
    Alerts {
        /// The configuration.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A stream of security events cannot be received as it is written.
    #[error("{why}, in {file}")]
    Events {
        /// The configuration.
        file: PathBuf,
        /// What is wrong.
        why: CannotReceive,
    },
    /// A map of addresses cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The signing key is not where the configuration says.
    #[error(
        "there is no signing key at {}: correct `key_dir` in {}, restore the key from its copy, or run `postern-controller init` for a new controller", key.display(), file.display()
    )]
    NoSigningKey {
        /// Where it should be.
        key: PathBuf,
        /// The configuration.
        file: PathBuf,
    },
    /// The signing key's file holds something else.
    #[error(
        "{0} does not hold a signing key (64 hexadecimal digits): restore it, or run `postern-controller init` in a new folder"
    )]
    SigningKey(PathBuf),
    /// The actor ended.
    #[error(transparent)]
    Actor(#[from] ActorError),
}
