//! What the node needs from the machine before it starts, and clear words where it is missing.

use std::{io, path::Path};

use caps::{CapSet, Capability};

/// Where the kernel makes TUN interfaces.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// No CAP_NET_ADMIN.
    #[error("postern needs CAP_NET_ADMIN to make the tunnel and its guard: run it with sudo, or as the service")]
    NetAdmin,
    /// The kernel has no TUN driver, or the container hides it.
    #[error(
        "{TUN_DEVICE} is not there: load it with `modprobe tun`, or give it to the container (--device {TUN_DEVICE})"
    )]
    NoTunDevice,
    /// The device is there, but this process may not open it.
    #[error("{TUN_DEVICE} cannot be opened: run postern with sudo, or let its group use the device")]
    TunDevice(#[source] io::Error),
    /// The machine does not tell what this process may do.
    #[error("cannot read the capabilities of this process: {0}")]
    Unknown(String),
}

/// Tells whether this process may make a tunnel: CAP_NET_ADMIN in force and a TUN device that opens.
///
/// # Errors
/// Fails with what is missing and what to do about it.
pub fn check() -> Result<(), PrivilegeError> {
    let admin = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN);
    check_with(admin.map_err(|error| PrivilegeError::Unknown(error.to_string()))?, Path::new(TUN_DEVICE))
}

fn check_with(net_admin: bool, device: &Path) -> Result<(), PrivilegeError> {
    if !net_admin {
        return Err(PrivilegeError::NetAdmin);
    }
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PrivilegeError::NoTunDevice),
        Err(error) => Err(PrivilegeError::TunDevice(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let nowhere = Path::new("/nonexistent/tun");
        assert!(matches!(check_with(false, nowhere), Err(PrivilegeError::NetAdmin)));
        assert!(matches!(check_with(true, nowhere), Err(PrivilegeError::NoTunDevice)));
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(check_with(true, directory.path()), Err(PrivilegeError::TunDevice(_))));
    }
}
