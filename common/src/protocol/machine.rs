//! What machines of services say: tokens of the platform that they run on, what kind of machine they are, and what was used
//! on them for the first time.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::Join;
use crate::{
    id::{DeviceId, ResourceName},
    net::Service,
};

/// The most bytes of a platform's token: those of Kubernetes have about 1 KiB, those of GitHub Actions 2 KiB.
pub const MAX_PLATFORM_TOKEN_BYTES: usize = 16 << 10;
/// The most entries of one [`super::FromNode::FirstUses`].
pub const MAX_FIRST_USES: usize = 64;

/// A token of a platform (RFC 7519), as the platform wrote it. Wiped when dropped, prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformToken(String);

impl PlatformToken {
    /// Takes the text of a token, without white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// Returns the token's text, which whoever has it can use.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for PlatformToken {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for PlatformToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A machine of a service joins, or signs in again, with a token of its platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlatformJoin {
    /// The join that the token confirms.
    pub join: Join,
    /// The token.
    pub token: PlatformToken,
}

/// What kind of machine a node runs on, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineKind {
    /// The kernel's name: `Linux`.
    pub system: String,
    /// The processor: `x86_64`.
    pub processor: String,
    /// The kernel's line: `6.12`.
    pub kernel: String,
}

/// A service that a peer used on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FirstUse {
    /// The peer's device.
    pub peer: DeviceId,
    /// The resource whose rule let it pass.
    pub resource: ResourceName,
    /// The protocol and the one port.
    pub service: Service,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FromNode, MAX_NODE_MESSAGE_BYTES};

    #[test]
    fn the_largest_of_these_messages_fit() {
        let use_ = FirstUse {
            peer: DeviceId::from_bytes([0xff; 16]),
            resource: "r".repeat(ResourceName::MAX).parse().expect("a name"),
            service: "tcp/65535".parse().expect("a service"),
        };
        let uses = FromNode::FirstUses { uses: vec![use_; MAX_FIRST_USES] };
        let token = FromNode::PlatformToken { token: PlatformToken::new(&"x".repeat(MAX_PLATFORM_TOKEN_BYTES)) };
        for message in [uses, token] {
            let text = serde_json::to_string(&message).expect("a message has a JSON form");
            assert!(text.len() <= MAX_NODE_MESSAGE_BYTES, "{} bytes", text.len());
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = PlatformToken::new(" eyJ.secret.sig \n");
        assert_eq!(token.expose(), "eyJ.secret.sig");
        assert!(!format!("{token:?}").contains("secret"));
    }
}
