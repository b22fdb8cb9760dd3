//! The TUN interface: super-packets with their virtio-net headers, out of and into the kernel.
//!
//! The interface is persistent: it, its addresses and its routes outlive the process (`kill -9` included), so that packets
//! for the overlay meet an interface without a reader, which drops them, and never another way out. Attaching again is
//! [`Tun::open`] once more; only [`Tun::remove`] ends it. One process can be attached at a time.
//!
//! Reads and writes never block. A read gives one frame of up to 64 KiB.
//!
//! The interface has [`LANES`] queues, and a flow stays on one of them: on the one where the kernel put it first, because its
//! answers are written there (the kernel's automatic steering). The worker takes from them in turn, so an interactive flow does not wait
//! behind the megabyte of a bulk flow, and nothing overtakes within a flow. An interface of one queue, made by somebody else, works too.
//!
//! Rejected: a scheduler of our own behind one queue. It has to read ahead what it wants to reorder; senders then put more into the
//! kernel's queue, whose length only drops could bound.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use postern_dataplane::packet::{
    batch::Lane,
    join::{Frame, Joining},
    offload::{MAX_PACKET, VIRTIO_HEADER_LENGTH},
};

use super::sys::{self, Queues};

/// The interface's name unless `node.toml` says otherwise.
pub const DEFAULT_NAME: &str = "postern0";
/// Queues of the interface: all that the kernel gives to one, so that no second process can attach.
pub const LANES: usize = 256;
/// Bytes of the longest frame.
pub const MAX_FRAME: usize = VIRTIO_HEADER_LENGTH + MAX_PACKET;

/// Why the TUN cannot be used, for the person at the machine.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// There is no `/dev/net/tun`.
    #[error(
        "there is no /dev/net/tun: load the `tun` kernel module, or give the container the device (--device /dev/net/tun)"
    )]
    NoDevice(#[source] io::Error),
    /// The process may not make interfaces.
    #[error("no permission to make the interface `{name}`: run as root, or with CAP_NET_ADMIN")]
    NoPrivilege {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the interface `{name}` is in use: is another postern running? choose another name with `interface` in node.toml"
    )]
    Busy {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name is taken by an interface of another kind, or is no name.
    #[error(
        "`{name}` cannot be a TUN interface: the name is taken by another kind of interface, or is not 1 to 15 characters"
    )]
    Name {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else.
    #[error("cannot set up the interface `{name}`")]
    Setup {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Which offloads to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offloads {
    /// All that the kernel has.
    #[default]
    All,
    /// None: each frame is one finished packet.
    None,
}

/// An attached TUN interface.
#[derive(Debug)]
pub struct Tun {
    /// At least one.
    queues: Vec<OwnedFd>,
    name: String,
    joining: Joining,
}

impl Tun {
    /// Makes the interface, or attaches to the one that is there; it persists.
    ///
    /// # Errors
    /// [`TunError`], in words for the person at the machine.
    pub fn open(name: &str, offloads: Offloads) -> Result<Self, TunError> {
        let first = match sys::open_tun(name, Queues::Many) {
            // The interface is there, and has one queue.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => sys::open_tun(name, Queues::One),
            other => other,
        };
        let first = first.map_err(|error| explain(name, error))?;
        let setup = |source| TunError::Setup { name: name.into(), source };
        sys::set_tun_persist(first.as_fd(), true).map_err(setup)?;
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let joining = match offloads {
            Offloads::None => {
                sys::set_tun_offload(first.as_fd(), 0).map_err(setup)?;
                Joining::Nothing
            }
            // USO came with Linux 6.2.
            Offloads::All => match sys::set_tun_offload(first.as_fd(), tcp | udp) {
                Ok(()) => Joining::TcpAndUdp,
                Err(_) => {
                    sys::set_tun_offload(first.as_fd(), tcp).map_err(setup)?;
                    Joining::Tcp
                }
            },
        };
        let mut queues = vec![first];
        while queues.len() < LANES {
            match sys::open_tun(name, Queues::Many) {
                Ok(queue) => queues.push(queue),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break, // it has one queue
                Err(error) => return Err(explain(name, error)),
            }
        }
        Ok(Self { queues, name: name.into(), joining })
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what may be joined for this interface.
    pub const fn joining(&self) -> Joining {
        self.joining
    }

    /// Lists the descriptors of the lanes, in order.
    pub fn lanes(&self) -> impl Iterator<Item = (Lane, BorrowedFd<'_>)> {
        self.queues.iter().enumerate().map(|(lane, queue)| (Lane(lane as u8), queue.as_fd()))
    }

    /// Reads one frame of a lane; `None` when the kernel has no more there at present.
    ///
    /// # Errors
    /// What the kernel says: `EBADFD` if the interface was removed under us, `EIO` while it is down.
    pub fn read(&self, lane: Lane, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match sys::read(self.queue(lane), buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one frame, on its flow's lane.
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` for a frame that it does not like, `EIO` while the interface is down.
    pub fn write(&self, frame: &Frame<'_>) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); postern_dataplane::packet::join::MAX_JOINED];
        let mut count = 0;
        for (slot, slice) in slices.iter_mut().zip(frame.slices()) {
            *slot = IoSlice::new(slice);
            count += 1;
        }
        sys::write_vectored(self.queue(frame.lane()), &slices[..count]).map(drop)
    }

    /// Removes the interface with its addresses and routes once it is closed: `down`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(self) -> io::Result<()> {
        sys::set_tun_persist(self.queue(Lane::default()), false)
    }

    fn queue(&self, lane: Lane) -> BorrowedFd<'_> {
        self.queues[usize::from(lane.0) % self.queues.len()].as_fd()
    }
}

fn explain(name: &str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice(source),
        Some(libc::EPERM | libc::EACCES) => TunError::NoPrivilege { name, source },
        Some(libc::EBUSY | libc::E2BIG) => TunError::Busy { name, source },
        Some(libc::EINVAL) | None => TunError::Name { name, source },
        Some(_) => TunError::Setup { name, source },
    }
}
