//! All facts at once.

use std::{path::PathBuf, time::SystemTime};

use postern_common::{
    id::DeviceId,
    posture::{Facts, OsKind},
    time::Now,
};

use super::{
    agents, boot, checks::Results, config::PostureConfig, disk, firewall, homes::Homes, lock, marker, root::Root,
    system, updates::SecurityUpdates,
};

/// The most folders of a tree that is not the machine that are watched.
const MAX_WATCHED: usize = 4_096;
/// Folders in which a change may change a fact. What lies in `/proc` and `/sys` tells of changes by other means, or not at all.
const WATCHED: [&str; 11] = [
    "/etc",
    "/etc/ufw",
    "/etc/dconf/db",
    "/run/systemd/sessions",
    "/var/lib/apt/lists",
    "/var/lib/apt/periodic",
    "/var/lib/dpkg",
    "/var/lib/update-notifier",
    "/sys/firmware/efi/efivars",
    "/sys/fs/cgroup/system.slice",
    "/dev/mapper",
];

/// What one look brought.
#[derive(Debug, Default)]
pub struct Look {
    /// The facts.
    pub facts: Facts,
    /// What the person at the machine should know, one line each.
    pub problems: Vec<String>,
    /// Processes whose end changes a fact.
    pub processes: Vec<u32>,
}

/// Reads facts below a root.
#[derive(Debug)]
pub struct Collector {
    root: Root,
    updates: SecurityUpdates,
    homes: Homes,
}

impl Collector {
    /// Makes a collector of what lies below `root`.
    pub fn new(root: Root) -> Self {
        Self { root, updates: SecurityUpdates::default(), homes: Homes::default() }
    }

    /// Returns below what it reads.
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Looks at everything.
    pub fn look(&mut self, config: &PostureConfig, checks: &Results, device: Option<DeviceId>, now: Now) -> Look {
        let root = &self.root;
        let mut problems = checks.problems();
        let managed_by = config.marker.as_ref().and_then(|marker| {
            marker::managed_by(root, marker, device, now.wall).map_err(|why| problems.extend(why)).ok()
        });
        let found = agents::find(root, &config.agents);
        let facts = Facts {
            disk_encrypted: disk::encrypted(root),
            firewall: firewall::on(root, &mut problems),
            screen_lock: lock::on(root, &mut self.homes),
            secure_boot: boot::secure_boot(root),
            os: Some(OsKind::Linux),
            kernel: system::kernel(root),
            distribution: system::distribution(root),
            security_updates: self.updates.waiting(root, SystemTime::now()),
            managed_by,
            agents: found.agents,
            checks: checks.facts(now.monotonic),
            compliant: None, // others say that
            serial: system::serial(root),
        };
        problems.extend(self.homes.hanging().map(|home| {
            format!("{} does not answer, so nobody can tell whether the screen of its person locks: is its file system there?", home.display())
        }));
        Look { facts, problems, processes: found.processes }
    }

    /// Returns the folders that are worth a watch.
    pub fn watched(&self, config: &PostureConfig) -> Vec<PathBuf> {
        if !self.root.is_machine() {
            return tree(self.root.path("/"));
        }
        let mut folders: Vec<PathBuf> = WATCHED.iter().map(PathBuf::from).collect();
        for db in self.root.names("/etc/dconf/db") {
            folders.push(format!("/etc/dconf/db/{db}").into());
            folders.push(format!("/etc/dconf/db/{db}/locks").into());
        }
        folders.extend(config.marker.as_ref().and_then(|marker| marker.file.parent()).map(Into::into));
        for unit in config.agents.values().filter_map(|agent| agent.unit.as_ref()) {
            folders.push(format!("/sys/fs/cgroup/system.slice/{unit}").into());
        }
        folders
    }
}

/// Lists a tree's folders; links are not followed.
fn tree(top: PathBuf) -> Vec<PathBuf> {
    let mut folders = vec![top];
    let mut next = 0;
    while next < folders.len() && folders.len() < MAX_WATCHED {
        let entries = std::fs::read_dir(&folders[next]);
        let below = entries.into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        folders.extend(below.collect::<Vec<_>>());
        next += 1;
    }
    folders
}
