//! `secure_boot`: whether the firmware checked what it started.
//!
//! A machine without UEFI did not, and neither did one in setup mode, whose keys anybody can replace (UEFI 2.10 §32.3).

use super::root::Root;

const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// EFI_GLOBAL_VARIABLE, UEFI 2.10 §3.3.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Reads a variable of one byte, after its four bytes of attributes.
fn variable(root: &Root, name: &str) -> Option<u8> {
    match root.bytes(format!("{VARIABLES}/{name}-{GLOBAL}"))?[..] {
        [_, _, _, _, value] => Some(value),
        _ => None,
    }
}

/// Tells whether the machine started by Secure Boot.
pub fn secure_boot(root: &Root) -> Option<bool> {
    if !root.exists("/sys/firmware/efi") {
        // A tree without a firmware at all says nothing.
        return root.exists("/sys/firmware").then_some(false);
    }
    if variable(root, "SetupMode") == Some(1) {
        return Some(false);
    }
    variable(root, "SecureBoot").map(|value| value == 1)
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    #[test]
    fn secure_boot_is_what_the_firmware_says_outside_setup_mode() {
        let tree = Tree::new(&[]);
        assert_eq!(secure_boot(&tree.root()), None);
        tree.folder("/sys/firmware");
        assert_eq!(secure_boot(&tree.root()), Some(false), "no UEFI");
        tree.folder("/sys/firmware/efi");
        assert_eq!(secure_boot(&tree.root()), None, "the variables are hidden");
        let set = |name: &str, value: u8| tree.write(&format!("{VARIABLES}/{name}-{GLOBAL}"), [6, 0, 0, 0, value]);
        set("SecureBoot", 1);
        assert_eq!(secure_boot(&tree.root()), Some(true));
        set("SetupMode", 1);
        assert_eq!(secure_boot(&tree.root()), Some(false));
        set("SetupMode", 0);
        set("SecureBoot", 0);
        assert_eq!(secure_boot(&tree.root()), Some(false));
        tree.write(&format!("{VARIABLES}/SecureBoot-{GLOBAL}"), [1]);
        assert_eq!(secure_boot(&tree.root()), None, "cut off");
    }
}
