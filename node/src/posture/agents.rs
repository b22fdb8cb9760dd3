//! `agents`: whether endpoint agents run, by their executable and their systemd unit.
//!
//! With both named, a process of that executable has to be in that unit: neither a copy of the unit's name nor a program that the
//! person started themselves is enough. With the unit alone, any process in it counts: only root can put one there. The executable's
//! path alone says what runs, not who started it.
//!
//! Which executable a process of another user runs is told to root with CAP_SYS_PTRACE; without it the answer is unknown.

use std::{collections::BTreeMap, path::Path};

use postern_common::id::FactName;

use super::{config::AgentConfig, root::Root};

/// The most processes that are looked at.
const MAX_PROCESSES: usize = 65_536;
/// The most groups of one unit that are looked at.
const MAX_GROUPS: usize = 64;

/// What was found of the agents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether each runs; one that cannot be told is absent.
    pub agents: BTreeMap<FactName, bool>,
    /// The processes that make it so: the end of one is worth another look.
    pub processes: Vec<u32>,
}

/// Tells whether a unit of the system's manager has a process.
pub fn unit_runs(root: &Root, unit: &str) -> bool {
    !processes_of(root, unit).is_empty()
}

/// Lists the processes of a unit, with those of the groups below its own: a unit with `Delegate=` keeps none in its own.
fn processes_of(root: &Root, unit: &str) -> Vec<u32> {
    let mut groups = vec![format!("/sys/fs/cgroup/system.slice/{unit}")];
    let mut processes = Vec::new();
    let mut next = 0;
    while let Some(group) = groups.get(next).cloned() {
        let text = root.text(format!("{group}/cgroup.procs")).unwrap_or_default();
        processes.extend(text.lines().filter_map(|line| line.trim().parse::<u32>().ok()));
        let room = MAX_GROUPS.saturating_sub(groups.len());
        groups.extend(root.folders(&group).into_iter().take(room).map(|name| format!("{group}/{name}")));
        next += 1;
    }
    processes
}

/// Looks for every configured agent.
pub fn find(root: &Root, wanted: &BTreeMap<FactName, AgentConfig>) -> Found {
    let mut found = Found::default();
    if wanted.is_empty() {
        return found;
    }
    let numbers = root.names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let processes: Vec<u32> =
        if wanted.values().any(|agent| agent.exe.is_some()) { numbers.take(MAX_PROCESSES).collect() } else { vec![] };
    for (name, agent) in wanted {
        let in_unit = agent.unit.as_ref().map(|unit| processes_of(root, unit));
        let (runs, mut these) = match (&agent.exe, in_unit) {
            (Some(exe), Some(in_unit)) => by_executable(root, exe, &in_unit),
            (Some(exe), None) => by_executable(root, exe, &processes),
            (None, Some(in_unit)) => (Some(!in_unit.is_empty()), in_unit),
            (None, None) => (None, vec![]),
        };
        found.agents.extend(runs.map(|runs| (name.clone(), runs)));
        found.processes.append(&mut these);
    }
    found
}

fn by_executable(root: &Root, exe: &Path, among: &[u32]) -> (Option<bool>, Vec<u32>) {
    let mut hidden = false;
    let mut these = Vec::new();
    for process in among {
        match root.link(format!("/proc/{process}/exe")) {
            Ok(runs) if runs == exe => these.push(*process),
            Ok(_) => {}
            Err(error) => hidden |= error.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
    let runs = if !these.is_empty() {
        Some(true)
    } else if hidden {
        None
    } else {
        Some(false)
    };
    (runs, these)
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    const UNIT: &str = "/sys/fs/cgroup/system.slice/edr.service/cgroup.procs";

    fn judged(tree: &Tree, exe: Option<&str>, unit: Option<&str>) -> (Option<bool>, Vec<u32>) {
        let name: FactName = "edr".parse().expect("a name");
        let agent = AgentConfig { exe: exe.map(Into::into), unit: unit.map(Into::into) };
        let mut found = find(&tree.root(), &[(name.clone(), agent)].into());
        (found.agents.remove(&name), found.processes)
    }

    #[test]
    fn an_agent_is_a_process_of_its_executable_in_its_unit() {
        let tree = Tree::new(&[(UNIT, "")]);
        tree.link("/proc/1/exe", "/sbin/init");
        let (exe, unit) = (Some("/opt/edr/edrd"), Some("edr.service"));
        assert_eq!(judged(&tree, exe, unit), (Some(false), vec![]));
        tree.link("/proc/77/exe", "/opt/edr/edrd");
        assert_eq!(judged(&tree, exe, None), (Some(true), vec![77]));
        assert_eq!(judged(&tree, exe, unit).0, Some(false), "somebody started it outside of the unit");
        assert_eq!(judged(&tree, None, unit).0, Some(false));
        tree.write(UNIT, "1\n");
        assert_eq!(judged(&tree, exe, unit).0, Some(false), "something else runs in the unit");
        tree.write(UNIT, "");
        let below = "/sys/fs/cgroup/system.slice/edr.service/worker/inner/cgroup.procs";
        tree.write(below, "77\n");
        assert_eq!(judged(&tree, exe, unit), (Some(true), vec![77]), "in a group below the unit's");
        tree.remove(below);
        tree.write(UNIT, "77\n78\n");
        assert_eq!(judged(&tree, exe, unit), (Some(true), vec![77]));
        assert_eq!(judged(&tree, None, unit), (Some(true), vec![77, 78]));
    }

    #[test]
    fn a_deleted_executable_is_another_one() {
        let tree = Tree::new(&[]);
        tree.link("/proc/77/exe", "/opt/edr/edrd (deleted)");
        assert_eq!(judged(&tree, Some("/opt/edr/edrd"), None).0, Some(false));
    }
}
