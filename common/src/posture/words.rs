//! What to do about a fact that is not as it must be, in one line for the person at the machine.

use super::facts::FactKind;

/// Returns what mends a fact that should be on, met, or there.
pub(super) const fn fix(kind: FactKind) -> &'static str {
    match kind {
        FactKind::DiskEncrypted => {
            "encrypt every disk that holds the system or homes (LUKS), or ask who manages the machine"
        }
        FactKind::Firewall => "turn a firewall on that drops what is not asked for: `ufw enable`, or start firewalld",
        FactKind::ScreenLock => "let the screen lock by itself, in the desktop's settings under privacy",
        FactKind::SecureBoot => "turn Secure Boot on in the firmware's setup",
        FactKind::Os => "update the system and restart it",
        FactKind::SecurityUpdates => "install the updates: `apt update && apt upgrade`",
        FactKind::ManagedBy => "enrol the machine with the device management, or ask who runs it for a new marker",
        FactKind::Agents => "start the endpoint agent, or install it",
        FactKind::Compliant => "look at what your device management finds, or ask who runs it",
        FactKind::Checks => "look at what the check says, or ask who wrote it",
    }
}

/// Names a kind of fact in a sentence.
pub(super) const fn name(kind: FactKind) -> &'static str {
    match kind {
        FactKind::DiskEncrypted => "disk encryption",
        FactKind::Firewall => "the firewall",
        FactKind::ScreenLock => "the screen lock",
        FactKind::SecureBoot => "Secure Boot",
        FactKind::Os => "the operating system",
        FactKind::SecurityUpdates => "security updates",
        FactKind::ManagedBy => "who manages the machine",
        FactKind::Agents => "endpoint agents",
        FactKind::Compliant => "compliance",
        FactKind::Checks => "checks",
    }
}
