//! One machine: namespaces for its network, mounts, processes and name, held open by one small process.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};

use super::process::HostCommand;

/// Makes a machine out of fresh namespaces and then waits on its standard input. When that closes, for whatever
/// reason, it ends; as the first process of its process namespace it takes everything in there with it.
const HOLDER: &str = r#"
set -e
read outer rest < /proc/self/stat
d="$1"
mount -t tmpfs -o size=1g tmpfs "$d"
mkdir -p "$d/etc" "$d/etc.work" "$d/lib" "$d/lib.work" "$d/run/home" "$d/run/lock"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$d/etc,workdir=$d/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$d/lib,workdir=$d/lib.work" /var/lib
mount --bind "$d/run" /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
hostname "$2"
echo "$2" > /etc/hostname
rm -f /etc/resolv.conf
printf '127.0.0.1 localhost\n::1 localhost\n' > /etc/hosts
printf 'options timeout:1 attempts:1\n' > /etc/resolv.conf
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range
ip link set lo up
echo "ready $outer"
read _ || :
"#;

/// One machine in the lab. Cloning gives another handle on the same machine; it is gone when the last handle and the
/// lab are.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    holder: Mutex<Child>,
    holder_pid: u32,
    logs: PathBuf,
    log_number: AtomicU32,
    addresses: Mutex<(Option<Ipv4Addr>, Option<Ipv6Addr>)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Ok(mut holder) = self.holder.lock() {
            drop(holder.stdin.take()); // it ends by itself, and takes its processes with it
            let _ = holder.wait();
        }
    }
}

impl Host {
    pub(super) fn start(name: &str, lab_directory: &Path) -> Result<Self> {
        let directory = lab_directory.join(name);
        let logs = lab_directory.join("logs");
        std::fs::create_dir_all(&directory).context("cannot make the host's folder")?;
        std::fs::create_dir_all(&logs).context("cannot make the folder of logs")?;
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-c", HOLDER, "lab-host"])
            .arg(&directory)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("it was piped");
        BufReader::new(stdout).read_line(&mut line).context("the host does not answer")?;
        let pid = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        let Some(holder_pid) = pid else {
            let mut errors = String::new();
            if let Some(mut stderr) = holder.stderr.take() {
                let _ = std::io::Read::read_to_string(&mut stderr, &mut errors);
            }
            let _ = holder.wait();
            anyhow::bail!("cannot make the host {name}: {} (the lab needs root)", errors.trim());
        };
        let inner = Inner {
            name: name.to_owned(),
            holder: Mutex::new(holder),
            holder_pid,
            logs,
            log_number: AtomicU32::new(1),
            addresses: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the machine's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Prepares a program to run in this machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(self.clone(), program)
    }

    /// Runs a line of shell and returns what it printed.
    ///
    /// # Errors
    /// Fails with its output when it ends with another code than zero.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.command("sh").args(["-ec", line]).run()?.ok()
    }

    /// Returns how the test sees a file of this machine.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        PathBuf::from(format!("/proc/{}/root", self.inner.holder_pid)).join(inside)
    }

    /// Reads a file of this machine.
    ///
    /// # Errors
    /// Fails when it cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        std::fs::read_to_string(self.path(path))
            .with_context(|| format!("{}: cannot read {}", self.name(), path.display()))
    }

    /// Writes a file of this machine, and the folders above it.
    ///
    /// # Errors
    /// Fails when it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let outer = self.path(path);
        if let Some(folder) = outer.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("{}: cannot make {}", self.name(), folder.display()))?;
        }
        std::fs::write(outer, content).with_context(|| format!("{}: cannot write {}", self.name(), path.display()))
    }

    /// Returns the machine's outer IPv4 address.
    ///
    /// # Panics
    /// Panics when the machine is on no network.
    pub fn ipv4(&self) -> IpAddr {
        self.addresses().0.expect("the host is on a network").into()
    }

    /// Returns the machine's outer IPv6 address.
    ///
    /// # Panics
    /// Panics when the machine is on no network.
    pub fn ipv6(&self) -> IpAddr {
        self.addresses().1.expect("the host is on a network").into()
    }

    fn addresses(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        *self.inner.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn set_addresses(&self, ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
        *self.inner.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (Some(ipv4), Some(ipv6));
    }

    /// Returns what a person types to get a shell on this machine.
    pub fn shell_command(&self) -> String {
        format!("nsenter --target={} --net --mount --uts --ipc --pid -- bash", self.inner.holder_pid)
    }

    pub(super) fn holder_pid(&self) -> u32 {
        self.inner.holder_pid
    }

    pub(super) fn new_log(&self, program: &str) -> PathBuf {
        let number = self.inner.log_number.fetch_add(1, Relaxed);
        self.inner.logs.join(format!("{}-{number:02}-{program}.log", self.inner.name))
    }

    /// Makes the machine look as after a reboot: another boot identifier, an empty `/run`. Programs that were started
    /// here must have been killed before.
    ///
    /// # Errors
    /// Fails when the kernel gives no new identifier or it cannot be put in place.
    pub fn reboot(&self) -> Result<()> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("no new boot identifier")?;
        ensure!(id.trim().len() == 36, "an identifier has 36 characters");
        let script = "rm -rf /run/* && mkdir -p /run/home /run/lock && printf %s \"$0\" > /run/lab-boot-id \
                      && mount --bind /run/lab-boot-id /proc/sys/kernel/random/boot_id";
        self.command("sh").args(["-ec", script, id.as_str()]).run()?.ok().map(drop)
    }
}
