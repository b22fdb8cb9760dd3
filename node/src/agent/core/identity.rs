//! Who this machine is: its device key, its WireGuard keys, and what the controller made of it.

use ipnet::IpNet;
use postern_common::{
    id::{DeviceId, MachineName, SessionId},
    key::{ControllerPublicKey, DeviceSigningKey},
    time::WallTime,
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::keyring::Keyring;
use crate::agent::target::ControllerTarget;

/// Everything that outlives a restart of the machine. Kept in one sealed file.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The seed of the device key. It never leaves the machine.
    pub device_seed: DeviceSeed,
    /// The WireGuard keys.
    pub keyring: Keyring,
    /// What the controller made of the machine, once it joined.
    pub enrolment: Option<Enrolment>,
    /// Whether the person or operator wants the node to be up.
    pub wanted: Wanted,
    /// A sign-out of which the controller has not been told yet.
    pub farewell: Option<Farewell>,
}

/// A sign-out of which the controller has to be told, so that the login session ends there too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// The controller's address and pin.
    pub controller: ControllerTarget,
    /// The device.
    pub device: DeviceId,
    /// When the session ends by itself.
    pub until: Option<WallTime>,
}

/// The seed of an Ed25519 device key. Wiped when dropped, prints as `[redacted]`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DeviceSeed(pub(crate) [u8; 32]);

impl DeviceSeed {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Makes the signing key.
    pub fn key(&self) -> DeviceSigningKey {
        DeviceSigningKey::from_seed(&self.0)
    }
}

impl std::fmt::Debug for DeviceSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What `up` and `down` asked for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Connected and enforcing.
    Up,
    /// Quiet: no stream, no tunnel, no guard.
    Down,
}

/// What the controller made of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The controller's address and pin.
    pub controller: ControllerTarget,
    /// The device.
    pub device: DeviceId,
    /// The machine's name as the controller keeps it.
    pub name: MachineName,
    /// The subject's name for people.
    pub subject_name: String,
    /// The key that signs this node's documents.
    pub controller_key: ControllerPublicKey,
    /// Who is signed in.
    pub login: Login,
    /// The overlay's prefixes as the newest document had them: what is kept shut from the start of a boot on, before
    /// the controller has spoken. Empty before the first document.
    #[serde(default)]
    pub overlay: Vec<IpNet>,
}

/// Who is signed in on an enrolled machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Login {
    /// Nobody: the machine is a service, which proves itself by its device key.
    Service,
    /// A person.
    Session {
        /// The login session.
        session: SessionId,
        /// When it ends at the latest.
        until: Option<WallTime>,
    },
    /// A service by a token of its platform.
    Platform {
        /// The login session.
        session: SessionId,
        /// When it ends unless a fresh token renews it.
        until: WallTime,
    },
    /// Nobody any more.
    Ended {
        /// Why, for the person.
        reason: String,
    },
}

impl Login {
    /// Tells whether a stream makes sense: somebody or some service is signed in.
    pub const fn is_open(&self) -> bool {
        match self {
            Self::Service | Self::Session { .. } | Self::Platform { .. } => true,
            Self::Ended { .. } => false,
        }
    }
}
