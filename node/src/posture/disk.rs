//! `disk_encrypted`: whether dm-crypt stands behind every disk that holds data.
//!
//! ```text
//! mountinfo, swaps --which hold data--> MAJ:MIN --/sys/dev/block--> dm/uuid CRYPT-..., or slaves/ all of which are encrypted
//! ```
//!
//! Data are the root file system, every file system on a disk that can be written (but the boot partitions, which firmware and
//! loader have to read), and swap. It is encrypted when all of that is; it is unknown when the root is on nothing that can be
//! followed to a disk (an overlay, a network file system, ZFS), or when that is so of another file system with data.
//!
//! The mounts are those of process 1: a service's own view is another one, in which systemd makes everything read-only and puts an
//! empty folder over the homes. Where only that view is to be had, read-only mounts count for as long as their file system can be
//! written, and a place that is hidden leaves the fact unknown.
//!
//! Threat: dm-verity and dm-integrity call their devices `CRYPT-` too and hide nothing ([`CIPHERS`]).

use std::path::{Path, PathBuf};

use super::root::{Root, Whole};

/// The kinds of dm-crypt device that hide what is on the disk, as their `uuid` begins (cryptsetup's `dm_prepare_uuid`).
const CIPHERS: [&str; 8] = [
    "CRYPT-LUKS1-",
    "CRYPT-LUKS2-",
    "CRYPT-PLAIN-",
    "CRYPT-LOOPAES-",
    "CRYPT-TCRYPT-",
    "CRYPT-BITLK-",
    "CRYPT-FVAULT2-",
    "CRYPT-TEMP-",
];
/// File systems on which a Linux system and its homes lie. A stick with another one is no disk of the system.
const ON_DISKS: [&str; 11] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "nilfs2", "bcachefs", "zfs"];
/// Where firmware and loader read.
const BOOT: [&str; 4] = ["/boot", "/boot/efi", "/boot/firmware", "/efi"];
/// What systemd mounts over a place that a service shall not see (`InaccessiblePaths=`), as the root of the mount says.
const INACCESSIBLE: &str = "/systemd/inaccessible/";
/// Where systemd hides what is no disk of its own: `ProtectKernelModules=`, `ProtectKernelLogs=` and the like.
const NO_DISKS: [&str; 5] = ["/proc", "/sys", "/dev", "/usr/lib/modules", "/lib/modules"];
/// What `ProtectHome=tmpfs` covers with empty memory.
const HOMES: [&str; 2] = ["/home", "/root"];
/// How deep devices may lie on each other.
const MAX_DEPTH: usize = 16;
/// How many mounts are looked at; with more of them the fact is unknown, unless one of these is in clear.
const MAX_MOUNTS: usize = 4_096;

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
struct Mount<'a> {
    device: &'a str,
    root: &'a str,
    at: &'a str,
    kind: &'a str,
    source: &'a str,
    super_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, root, at) = (before.next()?, before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        Some(Self { device, root, at, kind, source, super_options: after.next().unwrap_or_default() })
    }

    /// Tells whether nothing can be written to the file system, by whatever mount of it.
    fn is_read_only(&self) -> bool {
        self.super_options.split(',').any(|option| option == "ro")
    }

    fn holds_data(&self) -> bool {
        self.at == "/" || (ON_DISKS.contains(&self.kind) && !self.is_read_only() && !BOOT.contains(&self.at))
    }

    /// Tells whether this hides from the agent what may be a disk.
    fn hides(&self) -> bool {
        let no_disk = NO_DISKS.iter().any(|place| Path::new(self.at).starts_with(place));
        (self.root.contains(INACCESSIBLE) && !no_disk) || (self.kind == "tmpfs" && HOMES.contains(&self.at))
    }
}

/// Tells whether every disk that holds data is encrypted.
pub fn encrypted(root: &Root) -> Option<bool> {
    let (text, is_own) = match root.whole_text("/proc/1/mountinfo") {
        Whole::Text(text) => (text, false),
        Whole::Absent => (root.text("/proc/self/mountinfo")?, true),
        Whole::Unreadable => return None, // the own view could hide what is at its end
    };
    let mounts: Vec<Mount<'_>> = text.lines().filter_map(Mount::parse).take(MAX_MOUNTS + 1).collect();
    let mut told = mounts.len() <= MAX_MOUNTS && !(is_own && mounts.iter().any(Mount::hides));
    let (mut found_root, mut all) = (false, true);
    for mount in mounts.iter().filter(|mount| mount.holds_data()) {
        let devices = devices(root, mount);
        let on_disk = ON_DISKS.contains(&mount.kind);
        if mount.at == "/" {
            // The last mount at a place is the one that shows.
            found_root = on_disk && !devices.is_empty();
        }
        told &= !on_disk || !devices.is_empty();
        all &= devices.iter().all(|device| is_encrypted(root, device, 0));
    }
    all &= swaps(root).iter().all(|device| is_encrypted(root, device, 0));
    // One disk in clear is certain, whatever the rest is on.
    if !all { Some(false) } else { (found_root && told).then_some(true) }
}

/// Returns the folders in `/sys` of the devices that a mount lies on.
fn devices(root: &Root, mount: &Mount<'_>) -> Vec<PathBuf> {
    let by_number = PathBuf::from(format!("/sys/dev/block/{}", mount.device));
    if root.exists(&by_number) {
        return vec![by_number];
    }
    // btrfs has a number of its own, and may lie on several devices.
    let Some(name) = kernel_name(root, mount.source) else { return vec![] };
    for pool in root.names("/sys/fs/btrfs") {
        let folder = format!("/sys/fs/btrfs/{pool}/devices");
        let members = root.names(&folder);
        if members.contains(&name) {
            return members.into_iter().map(|member| PathBuf::from(format!("/sys/class/block/{member}"))).collect();
        }
    }
    vec![PathBuf::from(format!("/sys/class/block/{name}"))]
}

/// Finds the kernel's name of a device: `dm-0` for `/dev/mapper/root`.
fn kernel_name(root: &Root, source: &str) -> Option<String> {
    let name = source.strip_prefix("/dev/")?;
    if let Some(mapped) = name.strip_prefix("mapper/") {
        let mut names = root.names("/sys/class/block").into_iter();
        return names.find(|block| {
            root.text(format!("/sys/class/block/{block}/dm/name")).is_some_and(|text| text.trim() == mapped)
        });
    }
    (!name.contains('/') && root.exists(format!("/sys/class/block/{name}"))).then(|| name.to_owned())
}

/// Returns the partitions that are swapped to; a file in a file system is counted with that, memory is no disk.
fn swaps(root: &Root) -> Vec<PathBuf> {
    let text = root.text("/proc/swaps").unwrap_or_default();
    let rows = text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    });
    let partitions = rows.filter(|(name, kind)| *kind == "partition" && !name.starts_with("/dev/zram"));
    partitions
        .map(|(name, _)| {
            let name = kernel_name(root, name).unwrap_or_else(|| "unknown".into());
            PathBuf::from(format!("/sys/class/block/{name}"))
        })
        .collect()
}

fn is_encrypted(root: &Root, device: &Path, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return false;
    }
    let uuid = root.text(device.join("dm/uuid")).unwrap_or_default();
    if CIPHERS.iter().any(|cipher| uuid.starts_with(cipher)) {
        return true;
    }
    let slaves = root.names(device.join("slaves"));
    !slaves.is_empty() && slaves.iter().all(|slave| is_encrypted(root, &device.join("slaves").join(slave), depth + 1))
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    const ROOT_ON_DM: &str = "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/root rw\n";
    const PROC: &str = "23 22 0:5 / /proc rw - proc proc rw\n";

    /// A device with a number; `uuid` if it is of the device mapper.
    fn device(tree: &Tree, number: &str, name: &str, uuid: Option<&str>, slaves: &[&str]) {
        let folder = format!("/sys/devices/virtual/block/{name}");
        tree.folder(&folder);
        if let Some(uuid) = uuid {
            tree.write(&format!("{folder}/dm/uuid"), format!("{uuid}\n"));
            tree.write(&format!("{folder}/dm/name"), format!("{}\n", name.replace("dm-", "map")));
        }
        for slave in slaves {
            tree.link(&format!("{folder}/slaves/{slave}"), &format!("../../{slave}"));
        }
        tree.link(&format!("/sys/dev/block/{number}"), &format!("../../devices/virtual/block/{name}"));
        tree.link(&format!("/sys/class/block/{name}"), &format!("../../devices/virtual/block/{name}"));
    }

    fn with_mounts(mounts: &str) -> Tree {
        Tree::new(&[("/proc/self/mountinfo", mounts)])
    }

    #[test]
    fn a_cipher_directly_under_root_or_under_volumes_is_found() {
        for (uuid, expected) in [
            ("CRYPT-LUKS2-0123-root", true),
            ("CRYPT-PLAIN-root", true),
            ("CRYPT-VERITY-0123-root", false),
            ("CRYPT-INTEGRITY-root", false),
            ("mpath-3600", false),
        ] {
            let tree = with_mounts(&format!("{ROOT_ON_DM}{PROC}"));
            device(&tree, "253:0", "dm-0", Some(uuid), &["sda2"]);
            device(&tree, "8:2", "sda2", None, &[]);
            assert_eq!(encrypted(&tree.root()), Some(expected), "{uuid}");
        }
        let tree = with_mounts(ROOT_ON_DM);
        device(&tree, "253:0", "dm-0", Some("LVM-abcdef"), &["dm-1"]);
        device(&tree, "253:1", "dm-1", Some("CRYPT-LUKS2-0123-pv"), &["sda3"]);
        assert_eq!(encrypted(&tree.root()), Some(true), "volumes on a cipher");
    }

    #[test]
    fn one_disk_in_clear_is_enough() {
        let mounts = "30 22 8:17 / /home rw - xfs /dev/sdb1 rw\n";
        let tree = with_mounts(&format!("{ROOT_ON_DM}{mounts}"));
        device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
        device(&tree, "8:17", "sdb1", None, &[]);
        assert_eq!(encrypted(&tree.root()), Some(false));
        let striped = with_mounts(ROOT_ON_DM);
        device(&striped, "253:0", "dm-0", Some("LVM-x"), &["dm-1", "sdb1"]);
        device(&striped, "253:1", "dm-1", Some("CRYPT-LUKS2-0123-pv"), &[]);
        device(&striped, "8:17", "sdb1", None, &[]);
        assert_eq!(encrypted(&striped.root()), Some(false), "a volume over a cipher and a plain disk");
    }

    #[test]
    fn boot_partitions_and_images_that_cannot_be_written_do_not_count() {
        let mounts = "24 22 8:1 / /boot rw - ext4 /dev/sda1 rw\n\
                      25 24 8:3 / /boot/efi rw - ext4 /dev/sda3 rw\n\
                      26 22 7:0 / /snap/core ro - squashfs /dev/loop0 ro\n\
                      27 22 8:33 / /mnt/install ro - ext4 /dev/sdc1 ro\n";
        let tree = with_mounts(&format!("{ROOT_ON_DM}{mounts}"));
        device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
        for (number, name) in [("8:1", "sda1"), ("8:3", "sda3"), ("7:0", "loop0"), ("8:33", "sdc1")] {
            device(&tree, number, name, None, &[]);
        }
        assert_eq!(encrypted(&tree.root()), Some(true));
    }

    #[test]
    fn a_services_read_only_view_hides_no_disk_in_clear() {
        let home = "30 22 8:17 / /home rw - xfs /dev/sdb1 rw\n";
        let strict = "22 1 253:0 / / ro,relatime - ext4 /dev/mapper/root rw\n";
        let over = "31 22 0:23 /systemd/inaccessible/dir /home ro,nosuid - tmpfs tmpfs rw,mode=755\n";
        let with_disks = |own: &str| {
            let tree = with_mounts(own);
            device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
            device(&tree, "8:17", "sdb1", None, &[]);
            tree
        };
        let tree = with_disks(&format!("{strict}{}", home.replace(" rw - ", " ro - ")));
        assert_eq!(encrypted(&tree.root()), Some(false), "ProtectSystem=strict");
        let tree = with_disks(&format!("{strict}{over}"));
        assert_eq!(encrypted(&tree.root()), None, "ProtectHome=yes: nobody knows what is below");
        tree.write("/proc/1/mountinfo", format!("{ROOT_ON_DM}{home}"));
        assert_eq!(encrypted(&tree.root()), Some(false), "process 1 sees the homes");
        tree.write("/proc/1/mountinfo", ROOT_ON_DM);
        assert_eq!(encrypted(&tree.root()), Some(true), "process 1 sees that there is nothing else");
        let memory = "31 22 0:40 / /home ro - tmpfs tmpfs ro,size=0k\n";
        assert_eq!(encrypted(&with_disks(&format!("{strict}{memory}")).root()), None, "ProtectHome=tmpfs");
        let modules = over.replace("/home", "/usr/lib/modules");
        assert_eq!(encrypted(&with_disks(&format!("{strict}{modules}")).root()), Some(true), "no disk is hidden there");
    }

    #[test]
    fn a_disk_that_cannot_be_told_is_not_taken_for_an_encrypted_one() {
        for home in ["0:44 / /home rw - btrfs /dev/mapper/gone rw", "0:45 / /home rw - zfs tank/home rw"] {
            let tree = with_mounts(&format!("{ROOT_ON_DM}30 22 {home}\n"));
            device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
            assert_eq!(encrypted(&tree.root()), None, "{home}");
        }
    }

    #[test]
    fn more_mounts_than_are_looked_at_hide_no_disk_in_clear() {
        let many = |count: usize| PROC.repeat(count);
        let clear = "30 22 8:17 / /home rw - xfs /dev/sdb1 rw\n";
        let judged = |mounts: String, of_machine: Option<String>| {
            let tree = with_mounts(&mounts);
            of_machine.iter().for_each(|text| tree.write("/proc/1/mountinfo", text));
            device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
            device(&tree, "8:17", "sdb1", None, &[]);
            encrypted(&tree.root())
        };
        assert_eq!(judged(format!("{ROOT_ON_DM}{}", many(MAX_MOUNTS - 1)), None), Some(true), "all of them are seen");
        assert_eq!(judged(format!("{ROOT_ON_DM}{}{clear}", many(MAX_MOUNTS)), None), None);
        assert_eq!(
            judged(format!("{ROOT_ON_DM}{clear}{}", many(MAX_MOUNTS)), None),
            Some(false),
            "one in clear is certain"
        );
        let too_long = format!("{ROOT_ON_DM}{}{clear}", many((4 << 20) / PROC.len()));
        assert_eq!(judged(ROOT_ON_DM.to_owned(), Some(too_long)), None, "the own view does not stand for it");
    }

    #[test]
    fn swap_in_clear_counts_and_swap_in_memory_does_not() {
        let tree = with_mounts(ROOT_ON_DM);
        device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
        device(&tree, "8:4", "sda4", None, &[]);
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        tree.write("/proc/swaps", format!("{head}/dev/zram0 partition 1 0 100\n/swapfile file 1 0 -2\n"));
        assert_eq!(encrypted(&tree.root()), Some(true));
        tree.write("/proc/swaps", format!("{head}/dev/sda4 partition 1 0 -2\n"));
        assert_eq!(encrypted(&tree.root()), Some(false));
        tree.write("/proc/swaps", format!("{head}/dev/mapper/map0 partition 1 0 -2\n"));
        assert_eq!(encrypted(&tree.root()), Some(true));
        tree.write("/proc/swaps", format!("{head}/dev/mapper/gone partition 1 0 -2\n"));
        assert_eq!(encrypted(&tree.root()), Some(false), "what cannot be found is not encrypted");
    }

    #[test]
    fn btrfs_is_followed_to_all_of_its_devices() {
        let tree = with_mounts("22 1 0:24 /@ / rw - btrfs /dev/mapper/map0 rw,subvol=/@\n");
        device(&tree, "253:0", "dm-0", Some("CRYPT-LUKS2-0123-root"), &["sda2"]);
        device(&tree, "8:17", "sdb1", None, &[]);
        assert_eq!(encrypted(&tree.root()), Some(true));
        tree.folder("/sys/fs/btrfs/0123/devices/dm-0");
        assert_eq!(encrypted(&tree.root()), Some(true));
        tree.folder("/sys/fs/btrfs/0123/devices/sdb1");
        assert_eq!(encrypted(&tree.root()), Some(false));
    }

    #[test]
    fn what_cannot_be_followed_to_a_disk_is_unknown() {
        assert_eq!(encrypted(&Tree::new(&[]).root()), None);
        let overlay = "22 1 0:30 / / rw - overlay overlay rw,lowerdir=/l\n";
        assert_eq!(encrypted(&with_mounts(overlay).root()), None);
        assert_eq!(encrypted(&with_mounts("22 1 0:30 / / rw - zfs tank/root rw\n").root()), None);
        let tree = with_mounts(&format!("{overlay}30 22 8:17 / /home rw - xfs /dev/sdb1 rw\n"));
        device(&tree, "8:17", "sdb1", None, &[]);
        assert_eq!(encrypted(&tree.root()), Some(false), "the homes are certain");
    }
}
