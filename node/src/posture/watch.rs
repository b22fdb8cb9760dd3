//! The thread that looks: at once when something may have changed, when it is asked, and slowly in any case.
//!
//! ```text
//! inotify (folders) --.
//! mount table --------|
//! nftables notices ---|--poll(2)--> a moment of quiet --> Collector::look --changed or asked--> Seen --> agent
//! ends of processes --|                                        '--> watches and processes for the next round
//! wake (asked, reload, a check's result) --'
//! ```
//!
//! What a notice says is not read: it is a reason to look. A notice that was lost is made good by the slow look ([`EVERY`], with
//! jitter).
//!
//! A second thread runs checks by command, so that a slow one keeps no other fact waiting.
//!
//! Rejected: the async runtime of the agent. The collectors read hundreds of small files and may wait for a disk; the agent's loop waits
//! for nothing that can hang.

use std::{
    collections::BTreeMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use postern_common::{
    id::{DeviceId, FactName},
    posture::Facts,
    time::{Monotonic, Now},
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::sync::mpsc;

use super::{
    checks::{self, Results},
    collect::Collector,
    config::PostureConfig,
    root::Root,
};
use crate::io::{clock::Clock, sys};

/// How often the machine is looked at when nothing seems to change, up to a third of it later.
pub const EVERY: Duration = Duration::from_secs(30);
/// How long the first look waits for the first results of checks.
const FIRST_RESULTS: Duration = Duration::from_secs(10);
/// How long it has to be quiet after a notice: an upgrade writes hundreds of files.
const QUIET: Duration = Duration::from_millis(100);
/// How long a look waits for quiet at most.
const NEVER_QUIET: Duration = Duration::from_secs(1);
/// How long a change may wait on a machine where looking is slow.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// The most processes whose end is waited for.
const MAX_PROCESSES: usize = 64;
/// The multicast group of nftables (`NFNLGRP_NFTABLES`).
const NFTABLES_GROUP: i32 = 7;
/// Notices that nobody has taken yet. The newest look says everything; one more waits for room.
const QUEUE: usize = 4;

/// What a look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The facts.
    pub facts: Facts,
    /// When the look began.
    pub at: Monotonic,
    /// What the person at the machine should know, one line each.
    pub problems: Vec<String>,
}

#[derive(Debug)]
struct Orders {
    config: PostureConfig,
    device: Option<DeviceId>,
    results: Results,
}

struct Shared {
    orders: Mutex<Orders>,
    /// Told when the orders change or all is over.
    changed: Condvar,
    asked: AtomicBool,
    over: AtomicBool,
    wake: OwnedFd,
    clock: Arc<dyn Clock>,
    root: Root,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks by the orders as they are now. They are not held meanwhile: the agent, which may give others, must not wait for a look.
    fn by_orders<T>(&self, look: impl FnOnce(&PostureConfig, &Results, Option<DeviceId>) -> T) -> T {
        let orders = self.orders();
        let (config, results, device) = (orders.config.clone(), orders.results.clone(), orders.device);
        drop(orders);
        look(&config, &results, device)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes()); // full: it wakes already
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Watches the machine's posture until it is dropped.
pub struct Watch {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        self.shared.wake();
    }
}

impl Watch {
    /// Begins to watch in the network namespace of the calling thread. What is seen comes when it differs from what was seen before,
    /// and after [`Watch::look`].
    ///
    /// # Errors
    /// Fails when the system gives no thread or descriptor.
    pub fn start(
        root: Root,
        config: PostureConfig,
        device: Option<DeviceId>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<(Self, mpsc::Receiver<Seen>)> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let orders = Mutex::new(Orders { config, device, results: Results::default() });
        let shared = Arc::new(Shared {
            orders,
            changed: Condvar::new(),
            asked: AtomicBool::new(false),
            over: AtomicBool::new(false),
            wake,
            clock,
            root,
        });
        let (seen, receiver) = mpsc::channel(QUEUE);
        let sources = Sources::open(&shared.root)?;
        let looking = shared.clone();
        std::thread::Builder::new().name("posture".into()).spawn(move || look_on(&looking, sources, &seen))?;
        let checking = shared.clone();
        std::thread::Builder::new().name("posture-checks".into()).spawn(move || check_on(&checking))?;
        Ok((Self { shared }, receiver))
    }

    /// Asks for a look whose outcome comes whatever it is.
    pub fn look(&self) {
        self.shared.asked.store(true, Ordering::SeqCst);
        self.shared.wake();
    }

    /// Takes over another configuration, or another device that this machine is.
    pub fn configure(&self, config: PostureConfig, device: Option<DeviceId>) {
        let mut orders = self.shared.orders();
        if orders.config == config && orders.device == device {
            return;
        }
        orders.results.keep(&config.checks);
        (orders.config, orders.device) = (config, device);
        drop(orders);
        self.shared.changed.notify_all();
        self.look();
    }
}

/// What tells of changes.
struct Sources {
    folders: OwnedFd,
    mounts: Option<std::fs::File>,
    ruleset: Option<OwnedFd>,
    processes: Vec<OwnedFd>,
}

impl Sources {
    fn open(root: &Root) -> std::io::Result<Self> {
        let folders = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let machine = root.is_machine();
        Ok(Self {
            folders,
            mounts: machine
                .then(|| root.open("/proc/1/mountinfo").or_else(|| root.open("/proc/self/mountinfo")))
                .flatten(),
            ruleset: machine.then(|| sys::open_netlink(libc::NETLINK_NETFILTER, NFTABLES_GROUP).ok()).flatten(),
            processes: vec![],
        })
    }

    fn follow(&mut self, folders: &[std::path::PathBuf], processes: &[u32]) {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        for folder in folders {
            let _ = inotify::add_watch(&self.folders, folder, flags); // a folder that is not there is watched once it is
        }
        let open = |process: &u32| {
            let pid = Pid::from_raw(i32::try_from(*process).ok()?)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        };
        self.processes = processes.iter().take(MAX_PROCESSES).filter_map(open).collect();
    }

    /// Waits for a notice; tells whether one came.
    fn wait(&mut self, wake: &OwnedFd, timeout: Duration) -> bool {
        let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(wake, PollFlags::IN), PollFd::new(&self.folders, PollFlags::IN)];
        // The kernel tells of a changed mount table as an exceptional condition (proc_pid_mounts(5)).
        fds.extend(self.mounts.iter().map(|mounts| PollFd::new(mounts, PollFlags::PRI)));
        fds.extend(self.ruleset.iter().map(|ruleset| PollFd::new(ruleset, PollFlags::IN)));
        fds.extend(self.processes.iter().map(|process| PollFd::new(process, PollFlags::IN)));
        let came = poll(&mut fds, Some(&timeout)).is_ok_and(|count| count > 0);
        if came {
            self.drain(wake);
        }
        came
    }

    fn drain(&mut self, wake: &OwnedFd) {
        let mut eight = [0; 8];
        let _ = rustix::io::read(wake, &mut eight); // nothing in it: it was not the reason
        let mut buffer = [MaybeUninit::uninit(); 4_096];
        let mut notices = Reader::new(self.folders.as_fd(), &mut buffer);
        while notices.next().is_ok() {}
        if let Some(ruleset) = &self.ruleset
            && sys::drain_netlink(ruleset.as_fd()).is_err()
        {
            self.ruleset = None; // the slow look has to do
        }
        let ended = |process: &OwnedFd| {
            let mut one = [PollFd::new(process, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut one, Some(&at_once)).is_ok_and(|count| count > 0)
        };
        self.processes.retain(|process| !ended(process)); // or it would wake for ever
    }
}

fn look_on(shared: &Shared, mut sources: Sources, seen: &mpsc::Sender<Seen>) {
    let mut collector = Collector::new(shared.root.clone());
    await_first_results(shared);
    let mut last: Option<(Facts, Vec<String>)> = None;
    let mut rest;
    while !shared.is_over() {
        let asked = shared.asked.swap(false, Ordering::SeqCst);
        let now: Now = shared.clock.now();
        let begun = Instant::now();
        let (look, folders) = shared.by_orders(|config, results, device| {
            (collector.look(config, results, device, now), collector.watched(config))
        });
        sources.follow(&folders, &look.processes);
        rest = rest_after(begun.elapsed());
        let same =
            last.as_ref().is_some_and(|(facts, problems)| facts.same_state(&look.facts) && *problems == look.problems);
        if asked || !same {
            last = Some((look.facts.clone(), look.problems.clone()));
            let told = Seen { facts: look.facts, at: now.monotonic, problems: look.problems };
            if seen.blocking_send(told).is_err() {
                return; // the agent has ended
            }
        }
        if sources.wait(&shared.wake, EVERY + jitter(EVERY / 3)) {
            let noticed = Instant::now();
            let mut quiet = false;
            while !quiet && noticed.elapsed() < NEVER_QUIET && !shared.asked.load(Ordering::SeqCst) {
                quiet = !sources.wait(&shared.wake, QUIET);
            }
            while begun.elapsed() < rest && !shared.asked.load(Ordering::SeqCst) && !shared.is_over() {
                sources.wait(&shared.wake, rest.saturating_sub(begun.elapsed()));
            }
        }
    }
}

/// Returns how long after the begin of a look the next one that nobody asked for comes at the earliest: a machine whose rules change
/// all the time spends a tenth of one processor on looking at most.
fn rest_after(look: Duration) -> Duration {
    (look * 10).min(LONGEST_REST)
}

/// Waits until every check has been run once: after a restart of the agent a check that passes must not be missing for a moment,
/// and cut what is open.
fn await_first_results(shared: &Shared) {
    let end = Instant::now() + FIRST_RESULTS;
    let mut orders = shared.orders();
    while !shared.is_over() && !orders.results.has_all(&orders.config.checks) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        orders = shared.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn jitter(span: Duration) -> Duration {
    let mut byte = [0; 1];
    getrandom::fill(&mut byte).expect("the operating system has random bytes once it has started");
    span * u32::from(byte[0]) / 256
}

/// Runs checks when they are due, one at a time.
fn check_on(shared: &Shared) {
    let mut due: BTreeMap<FactName, Instant> = BTreeMap::new();
    let mut known = BTreeMap::new();
    let mut orders = shared.orders();
    while !shared.is_over() {
        if known != orders.config.checks {
            // One that is configured anew is run at once; its former result counts until then.
            due.retain(|name, _| orders.config.checks.get(name).is_some_and(|check| known.get(name) == Some(check)));
            known.clone_from(&orders.config.checks);
        }
        for name in orders.config.checks.keys() {
            due.entry(name.clone()).or_insert_with(Instant::now);
        }
        let first = due.iter().min_by_key(|(_, at)| **at).map(|(name, at)| (name.clone(), *at));
        orders = match first {
            None => shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner),
            Some((_, at)) if at > Instant::now() => {
                let wait = at - Instant::now();
                shared.changed.wait_timeout(orders, wait).unwrap_or_else(PoisonError::into_inner).0
            }
            Some((name, _)) => {
                let Some(check) = orders.config.checks.get(&name).cloned() else { continue };
                drop(orders);
                let outcome = checks::run(&shared.root, &check);
                let every = check.every.get();
                due.insert(name.clone(), Instant::now() + every + jitter(every / 10));
                let at = shared.clock.now().monotonic;
                let mut orders = shared.orders();
                if orders.config.checks.contains_key(&name) && orders.results.put(&name, outcome, at) {
                    shared.wake();
                    shared.changed.notify_all();
                }
                orders
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};
    use crate::io::clock::SystemClock;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn start(tree: &Tree, config: PostureConfig) -> (Watch, mpsc::Receiver<Seen>) {
        Watch::start(tree.root(), config, None, Arc::new(SystemClock::default())).expect("a watch")
    }

    fn until(seen: &mut mpsc::Receiver<Seen>, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, async {
                loop {
                    let seen = seen.recv().await.expect("a look");
                    if wanted(&seen) {
                        return seen;
                    }
                }
            })
            .await
            .expect("seen in time")
        })
    }

    #[test]
    fn a_changed_file_is_seen_long_before_the_slow_look() {
        let tree = Tree::new(&[("/proc/sys/kernel/osrelease", "6.1.0\n")]);
        let (_watch, mut seen) = start(&tree, PostureConfig::default());
        until(&mut seen, |seen| seen.facts.kernel == "6.1".parse().ok());
        let begun = Instant::now();
        tree.write("/proc/sys/kernel/osrelease", "6.2.0\n");
        until(&mut seen, |seen| seen.facts.kernel == "6.2".parse().ok());
        assert!(begun.elapsed() < EVERY / 3, "{:?}", begun.elapsed());
        tree.write("/etc/os-release", "ID=debian\nVERSION_ID=12\n"); // in a folder that was not there
        until(&mut seen, |seen| seen.facts.distribution.is_some());
    }

    #[test]
    fn the_agent_gives_other_orders_while_a_look_lasts() {
        let tree = Tree::new(&[]);
        let (watch, _seen) = start(&tree, PostureConfig::default());
        let (told, given) = std::sync::mpsc::channel();
        let shared = watch.shared.clone();
        let marked: PostureConfig = toml::from_str("[agents.edr]\nunit = \"edr.service\"").expect("a configuration");
        std::thread::scope(|scope| {
            shared.by_orders(|_, _, _| {
                scope.spawn(|| {
                    watch.configure(marked, None);
                    told.send(()).expect("somebody waits");
                });
                assert!(given.recv_timeout(PATIENCE / 4).is_ok(), "the agent waits for a look");
            });
        });
        assert!(!shared.orders().config.agents.is_empty());
    }

    #[test]
    fn a_look_that_is_asked_for_is_told_though_nothing_changed() {
        let tree = Tree::new(&[]);
        let (watch, mut seen) = start(&tree, PostureConfig::default());
        let first = until(&mut seen, |_| true);
        watch.look();
        let second = until(&mut seen, |_| true);
        assert!(first.facts == second.facts && second.at > first.at);
    }

    #[test]
    fn a_checks_result_is_a_fact_as_soon_as_it_is_there_and_leaves_with_its_configuration() {
        let tree = Tree::new(&[("/etc/passwd", "nobody:x:65534:65534::/:/bin/sh\n")]);
        let config: PostureConfig =
            toml::from_str("[checks.fine]\ncommand = [\"/bin/echo\", \"all good\"]").expect("a configuration");
        let (watch, mut seen) = start(&tree, config);
        let told = until(&mut seen, |seen| !seen.facts.checks.is_empty());
        assert_eq!(told.facts.checks.values().next().map(|check| check.said.as_str()), Some("all good"));
        watch.configure(PostureConfig::default(), None);
        until(&mut seen, |seen| seen.facts.checks.is_empty());
    }

    #[test]
    fn the_end_of_an_agents_process_is_seen_at_once() {
        let mut agent = std::process::Command::new("/bin/sleep").arg("600").spawn().expect("a process");
        let exe = std::fs::canonicalize("/bin/sleep").expect("a program");
        let config: PostureConfig =
            toml::from_str(&format!("[agents.edr]\nexe = \"{}\"", exe.display())).expect("a configuration");
        let tree = Tree::new(&[]);
        let place = format!("/proc/{}/exe", agent.id());
        tree.link(&place, &exe.display().to_string());
        let (_watch, mut seen) = start(&tree, config);
        let runs = |seen: &Seen| seen.facts.agents.values().copied().next();
        until(&mut seen, |seen| runs(seen) == Some(true));
        tree.remove(&place); // as the kernel does it
        agent.kill().expect("ended");
        agent.wait().expect("ended");
        until(&mut seen, |seen| runs(seen) == Some(false));
    }
}
