//! KDE's screen locker: `kscreenlockerrc`, the person's over the administrator's, as KConfig reads it.
//!
//! It locks unless `Autolock` says no or `Timeout` is 0. What is marked `[$i]` in `/etc/xdg` the person cannot change. A word that KConfig would
//! take from elsewhere (`[$e]`), or that is neither yes nor no, leaves the answer unknown. Other folders of `XDG_CONFIG_DIRS` are not looked at.

use crate::posture::{
    homes::{Homes, Told},
    root::Root,
};

const SYSTEM: &str = "/etc/xdg/kscreenlockerrc";
const OF_HOME: &str = ".config/kscreenlockerrc";
const SECTION: &str = "Daemon";

/// A key as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    value: String,
    /// Nobody after this file may say otherwise.
    is_fixed: bool,
    /// It is not what it says: a variable or a command.
    is_expanded: bool,
}

/// Splits `Autolock[$i]` into its name and flags; another one's translation (`Autolock[de]`) is none.
fn flagged(text: &str) -> Option<(&str, &str)> {
    match text.split_once('[') {
        None => Some((text.trim(), "")),
        Some((name, rest)) => Some((name.trim(), rest.strip_prefix('$')?.strip_suffix(']')?)),
    }
}

/// Reads a key of the section; the last one counts. `None` if the file does not have it.
fn entry(text: &str, key: &str) -> Option<Entry> {
    let (mut in_section, mut all_fixed, mut section_fixed, mut found) = (false, false, false, None);
    let mut begun = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "[$i]" {
            // Before every section the whole file is meant, after one that section.
            if begun { section_fixed |= in_section } else { all_fixed = true }
        } else if let Some(rest) = line.strip_prefix('[') {
            begun = true;
            let name = rest.split(']').next().unwrap_or_default();
            let more = rest.get(name.len() + 1..).unwrap_or_default();
            in_section = name == SECTION && matches!(more, "" | "[$i]");
            section_fixed |= in_section && more == "[$i]";
        } else if in_section
            && let Some((name, value)) = line.split_once('=')
            && let Some((name, flags)) = flagged(name)
            && name == key
        {
            let is_gone = flags.contains('d');
            let entry = Entry {
                value: value.trim().to_owned(),
                is_fixed: flags.contains('i'),
                is_expanded: flags.contains('e'),
            };
            found = (!is_gone).then_some(entry);
        }
    }
    found.map(|entry| Entry { is_fixed: entry.is_fixed || all_fixed || section_fixed, ..entry })
}

/// Tells what the locker takes for a key: the administrator's word, the person's over it unless that is fixed.
fn setting(system: &str, own: &str, key: &str) -> Option<Entry> {
    let fixed = entry(system, key);
    match fixed {
        Some(Entry { is_fixed: true, .. }) => fixed,
        Some(_) | None => entry(own, key).or(fixed),
    }
}

/// Tells whether the person's screen locks by itself.
pub(super) fn locks(root: &Root, homes: &mut Homes, home: &str) -> Option<bool> {
    let Told::Text(own) = homes.text(root, home, OF_HOME) else { return None };
    let system = match root.exists(SYSTEM) {
        true => root.text(SYSTEM)?,
        false => String::new(),
    };
    let autolock = match setting(&system, &own, "Autolock") {
        None => true,
        Some(Entry { is_expanded: true, .. }) => return None,
        Some(entry) => match entry.value.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => true,
            "false" | "off" | "no" | "0" => false,
            _ => return None,
        },
    };
    let waits = match setting(&system, &own, "Timeout") {
        None => true,
        Some(Entry { is_expanded: true, .. }) => return None,
        Some(entry) => entry.value.parse::<i64>().ok()? > 0,
    };
    Some(autolock && waits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posture::root::testing::Tree;

    fn judged(system: Option<&str>, own: &str) -> Option<bool> {
        let tree = Tree::new(&[("/home/bob/.config/kscreenlockerrc", own)]);
        if let Some(system) = system {
            tree.write(SYSTEM, system);
        }
        locks(&tree.root(), &mut Homes::default(), "/home/bob")
    }

    #[test]
    fn it_locks_unless_a_word_for_no_or_no_time_says_otherwise() {
        for (own, expected) in [
            ("", Some(true)),
            ("[Daemon]\nAutolock=true\nTimeout=10\n", Some(true)),
            ("[Daemon]\nAutolock=false\n", Some(false)),
            ("[Daemon]\nAutolock=No\n", Some(false)),
            ("[Daemon]\nAutolock=OFF\n", Some(false)),
            ("[Daemon]\nAutolock=0\n", Some(false)),
            ("[Daemon]\nTimeout=0\n", Some(false)),
            ("[Daemon]\nTimeout = 0\n", Some(false)),
            ("[Daemon]\nAutolock=perhaps\n", None),
            ("[Daemon]\nTimeout=soon\n", None),
            ("[Daemon]\nAutolock[$e]=$(echo true)\n", None),
            ("[Daemon]\nAutolock[de]=false\n", Some(true)),
            ("[Other]\nAutolock=false\n[Daemon]\nAutolock=true\n", Some(true)),
            ("[Daemon][Sub]\nAutolock=false\n", Some(true)),
            ("[Daemon]\nAutolock=false\nAutolock[$d]\n", Some(false)),
        ] {
            assert_eq!(judged(None, own), expected, "{own:?}");
        }
    }

    #[test]
    fn the_administrators_word_holds_where_the_person_says_nothing_or_may_not() {
        let no = "[Daemon]\nAutolock=false\n";
        let yes = "[Daemon]\nAutolock=true\n";
        assert_eq!(judged(Some(no), ""), Some(false));
        assert_eq!(judged(Some(no), yes), Some(true), "the person may say otherwise");
        for fixed in
            ["[Daemon]\nAutolock[$i]=true\n", "[Daemon][$i]\nAutolock=true\n", "[$i]\n[Daemon]\nAutolock=true\n"]
        {
            assert_eq!(judged(Some(fixed), no), Some(true), "{fixed:?}");
            assert_eq!(judged(Some(&fixed.replace("true", "no")), yes), Some(false), "{fixed:?}");
        }
        assert_eq!(judged(Some("[Daemon]\nTimeout[$i]=0\n"), "[Daemon]\nTimeout=5\n"), Some(false));
    }
}
