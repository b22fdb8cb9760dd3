//! `os.linux`: kernel and distribution; and the serial number that the firmware tells.

use postern_common::posture::{Distribution, Version, facts::MAX_TEXT};

use super::root::Root;

/// What firmware says where nobody wrote a serial number.
const NO_SERIALS: [&str; 7] =
    ["", "0", "none", "not specified", "default string", "to be filled by o.e.m.", "system serial number"];

/// Returns the running kernel's version.
pub fn kernel(root: &Root) -> Option<Version> {
    Version::lenient(root.text("/proc/sys/kernel/osrelease")?.trim())
}

/// Returns the distribution, by os-release(5).
pub fn distribution(root: &Root) -> Option<Distribution> {
    let text = root.text("/etc/os-release").or_else(|| root.text("/usr/lib/os-release"))?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?.trim();
        let bare = ['"', '\''].iter().find_map(|quote| line.strip_prefix(*quote)?.strip_suffix(*quote));
        Some(bare.unwrap_or(line))
    };
    Some(Distribution { id: value("ID")?.parse().ok()?, version: value("VERSION_ID").and_then(Version::lenient) })
}

/// Returns the firmware's serial number, for people who bind it to the device.
pub fn serial(root: &Root) -> Option<String> {
    let text = root.text("/sys/class/dmi/id/product_serial")?;
    let text = text.trim();
    let good = !NO_SERIALS.contains(&text.to_ascii_lowercase().as_str())
        && text.chars().count() <= MAX_TEXT
        && !text.chars().any(char::is_control);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    #[test]
    fn kernel_and_distribution_are_read_as_the_system_writes_them() {
        let tree = Tree::new(&[]);
        assert_eq!((kernel(&tree.root()), distribution(&tree.root()), serial(&tree.root())), (None, None, None));
        tree.write("/proc/sys/kernel/osrelease", "6.1.0-27-amd64\n");
        assert_eq!(kernel(&tree.root()), "6.1.0".parse().ok());
        tree.write("/usr/lib/os-release", "NAME=Arch\nID=arch\n");
        assert_eq!(distribution(&tree.root()), "arch".parse().ok());
        tree.write("/etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\nID_LIKE=x\n");
        assert_eq!(distribution(&tree.root()), "debian 12".parse().ok());
        tree.write("/etc/os-release", "VERSION_ID=24.04\nID='ubuntu'\n");
        assert_eq!(distribution(&tree.root()), "ubuntu 24.04".parse().ok());
        tree.write("/etc/os-release", "ID=/etc\n");
        assert_eq!(distribution(&tree.root()), None);
    }

    #[test]
    fn a_serial_that_nobody_wrote_is_none() {
        for (text, expected) in
            [("PF3ABC12\n", Some("PF3ABC12")), ("To be filled by O.E.M.\n", None), ("a\u{7}\n", None)]
        {
            let tree = Tree::new(&[("/sys/class/dmi/id/product_serial", text)]);
            assert_eq!(serial(&tree.root()).as_deref(), expected, "{text:?}");
        }
    }
}
