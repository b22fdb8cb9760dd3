//! The form of the identity inside its sealed file. The core's types have no serde form, so that a secret can only be
//! written here.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use postern_common::{key::WireGuardPrivateKey, time::WallTime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::agent::core::{
    identity::{DeviceSeed, Enrolment, Farewell, Identity, Wanted},
    keyring::{HeldKey, Keyring, Standing},
};

/// The file's contents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IdentityFile {
    version: Version,
    device_seed: Secret,
    keys: Vec<KeyEntry>,
    enrolment: Option<Enrolment>,
    wanted: Wanted,
    #[serde(default)]
    farewell: Option<Farewell>,
}

#[derive(Serialize, Deserialize)]
enum Version {
    #[serde(rename = "1")]
    One,
}

#[derive(Serialize, Deserialize)]
struct KeyEntry {
    private: Secret,
    made: WallTime,
    listed: bool,
}

/// 32 secret bytes in base 64.
struct Secret(Zeroizing<[u8; 32]>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(*self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let mut bytes = BASE64.decode(&*text).map_err(|_| serde::de::Error::custom("a secret is not base 64"))?;
        let secret = <[u8; 32]>::try_from(bytes.as_slice());
        bytes.zeroize();
        secret
            .map(|secret| Self(Zeroizing::new(secret)))
            .map_err(|_| serde::de::Error::custom("a secret is not 32 bytes"))
    }
}

impl IdentityFile {
    pub(super) fn from_identity(identity: &Identity) -> Self {
        let keys = identity.keyring.keys().iter().map(|key| KeyEntry {
            private: Secret(Zeroizing::new(*key.private.expose())),
            made: key.made,
            listed: key.standing == Standing::Listed,
        });
        Self {
            version: Version::One,
            device_seed: Secret(Zeroizing::new(identity.device_seed.0)),
            keys: keys.collect(),
            enrolment: identity.enrolment.clone(),
            wanted: identity.wanted,
            farewell: identity.farewell.clone(),
        }
    }

    pub(super) fn into_identity(self) -> Identity {
        let Version::One = self.version;
        let keys = self.keys.into_iter().map(|entry| {
            let private = WireGuardPrivateKey::from_bytes(*entry.private.0);
            let standing = if entry.listed { Standing::Listed } else { Standing::Proposed };
            HeldKey { public: private.public(), private, made: entry.made, standing }
        });
        Identity {
            device_seed: DeviceSeed::from_bytes(*self.device_seed.0),
            keyring: Keyring::restore(keys.collect()),
            enrolment: self.enrolment,
            wanted: self.wanted,
            farewell: self.farewell,
        }
    }
}
