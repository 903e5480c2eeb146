//! A bad network: two network namespaces joined by a pump that loses, repeats and delays packets.
//!
//! Not every kernel has netem, so the wire is a pair of TUN devices and a thread of this process that carries packets from one
//! to the other. What happens to a packet is drawn from a generator with a seed. The device has no offloads: each packet is one
//! that a wire would carry.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{child, namespace};

const LIMIT: Duration = Duration::from_secs(10);
/// How long a packet that is to be overtaken waits. More than the gap between packets of a busy connection.
const DELAY: Duration = Duration::from_millis(4);
/// More than a packet of the device's MTU.
const PACKET: usize = 2048;

/// What befalls packets, in thousandths of all.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Begin of the generator.
    pub seed: u64,
    /// Lost.
    pub lost: u64,
    /// Delivered twice.
    pub repeated: u64,
    /// Held back, so that later ones overtake it.
    pub delayed: u64,
}

/// How many packets met which fate.
#[derive(Debug, Default)]
pub struct Fates {
    /// Delivered in time, once.
    pub delivered: AtomicU64,
    /// Lost.
    pub lost: AtomicU64,
    /// Delivered twice.
    pub repeated: AtomicU64,
    /// Held back.
    pub delayed: AtomicU64,
}

/// A network namespace with one interface, whose other side is this process. It goes when it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    name: String,
    end: u8,
}

impl Tunnel {
    /// Makes end 0 or 1 of a wire; the device takes and gives whole IP packets and never blocks.
    ///
    /// # Errors
    /// The caller is not root, `ip` is not installed, or the kernel has no TUN devices.
    pub fn new(end: u8) -> Result<(Self, File)> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        crate::require_root()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tunnel = Self { name: format!("auditor-tun-{}-{number}", std::process::id()), end };
        let name = tunnel.name();
        ip(&["netns", "add", name])?;
        let device = namespace::within(name, tun)??;
        let (v4, v6) = (format!("{}/30", address_v4(end)), format!("{}/64", address_v6(end)));
        ip(&["-n", name, "addr", "add", &v4, "dev", "tun0"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "link", "set", "tun0", "mtu", "1500", "up"])?;
        ip(&["-n", name, "addr", "add", &v6, "dev", "tun0", "nodad"])?;
        ip(&["-n", name, "route", "add", "default", "dev", "tun0"])?;
        Ok((tunnel, device))
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses of this end.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [address_v4(self.end).into(), address_v6(self.end).into()]
    }

    /// Those of the other.
    pub fn other_addresses(&self) -> [IpAddr; 2] {
        [address_v4(1 - self.end).into(), address_v6(1 - self.end).into()]
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // What was never made cannot be removed.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// The two ends, and the wire between them.
#[derive(Debug)]
pub struct Shaper {
    ends: [Tunnel; 2],
    fates: Arc<Fates>,
    done: Arc<AtomicBool>,
    pump: Option<thread::JoinHandle<()>>,
}

impl Shaper {
    /// Makes both ends and starts to carry.
    ///
    /// # Errors
    /// The caller is not root, `ip` is not installed, or the kernel has no TUN devices.
    pub fn start(faults: Faults) -> Result<Self> {
        let ((near, near_device), (far, far_device)) = (Tunnel::new(0)?, Tunnel::new(1)?);
        let (fates, done) = (Arc::<Fates>::default(), Arc::<AtomicBool>::default());
        let pump = Pump {
            ends: [near_device, far_device],
            faults,
            fates: Arc::clone(&fates),
            state: faults.seed,
            waiting: VecDeque::new(),
        };
        let until = Arc::clone(&done);
        let pump = Some(thread::spawn(move || pump.run(&until)));
        Ok(Self { ends: [near, far], fates, done, pump })
    }

    /// The near end's namespace.
    pub fn near(&self) -> &str {
        self.ends[0].name()
    }

    /// The far end's namespace.
    pub fn far(&self) -> &str {
        self.ends[1].name()
    }

    /// The far end's addresses.
    pub fn far_addresses(&self) -> [IpAddr; 2] {
        self.ends[1].addresses()
    }

    /// What happened so far.
    pub fn fates(&self) -> &Fates {
        &self.fates
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            // Its panic has been printed; without it nothing arrives, which the test notices.
            let _ = pump.join();
        }
    }
}

fn address_v4(end: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 77, 1 + end)
}

fn address_v6(end: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0xa0d1, 0, 0, 0, 0, 0, 1 + u16::from(end))
}

fn ip(arguments: &[&str]) -> Result<()> {
    child::succeed(Command::new("ip").args(arguments), LIMIT).map(drop)
}

/// A TUN device `tun0` in the namespace of this thread, without a header before the packets.
fn tun() -> Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun")?;
    // SAFETY: all zeroes is a valid value of this type.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"tun0") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("TUNSETIFF");
    }
    Ok(device)
}

struct Pump {
    ends: [File; 2],
    faults: Faults,
    fates: Arc<Fates>,
    state: u64,
    /// Packets held back: when they go on, and to which end.
    waiting: VecDeque<(Instant, usize, Vec<u8>)>,
}

impl Pump {
    fn run(mut self, done: &AtomicBool) {
        let mut buffer = [0; PACKET];
        while !done.load(Ordering::Relaxed) {
            let [near, far] = self.ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
            // A failure shows as a network over which nothing comes.
            let _ =
                poll(&mut [near, far], PollTimeout::from(if self.waiting.is_empty() { 20_u8 } else { 1 }));
            while self.waiting.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
                if let Some((_, to, packet)) = self.waiting.pop_front() {
                    self.deliver(to, &packet);
                }
            }
            for from in 0..2 {
                while let Some(length) = read(&self.ends[from], &mut buffer) {
                    self.carry(1 - from, &buffer[..length]);
                }
            }
        }
    }

    fn carry(&mut self, to: usize, packet: &[u8]) {
        let Faults { lost, repeated, delayed, .. } = self.faults;
        let drawn = self.draw() % 1000;
        let fate = if drawn < lost {
            &self.fates.lost
        } else if drawn < lost + repeated {
            self.deliver(to, packet);
            self.deliver(to, packet);
            &self.fates.repeated
        } else if drawn < lost + repeated + delayed {
            self.waiting.push_back((Instant::now() + DELAY, to, packet.to_vec()));
            &self.fates.delayed
        } else {
            self.deliver(to, packet);
            &self.fates.delivered
        };
        fate.fetch_add(1, Ordering::Relaxed);
    }

    /// A device that takes no more has lost the packet, as a full queue on a wire would.
    fn deliver(&self, to: usize, packet: &[u8]) {
        let _ = (&self.ends[to]).write(packet);
    }

    /// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
    fn draw(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}

fn read(mut device: &File, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match device.read(buffer) {
            Ok(length) => return Some(length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Nothing more for now; a device that is gone gives nothing more ever.
            Err(_) => return None,
        }
    }
}
