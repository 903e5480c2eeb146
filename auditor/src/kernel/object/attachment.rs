//! Programs on cgroups: which there are, and how each is put on a cgroup or behind the link that an earlier daemon left.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::cgroup_skb::CgroupSkbAttachType;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps,
};

use super::{KernelError, Object, as_descriptor};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::{bpf, bpffs, link, orphan, unix};

/// How the programs of one kind are attached to a cgroup.
type AttachToCgroup = fn(&mut Program, &fs::File) -> Result<FdLink, ProgramError>;

/// A program that is attached to cgroups, and the kernel that it needs at least.
pub(super) struct Hook {
    pub(super) name: &'static str,
    pub(super) kernel: &'static str,
    attach: AttachToCgroup,
}

pub(super) const HOOKS: [Hook; 9] = [
    Hook { name: "connect4", kernel: "4.17", attach: attach_sock_addr },
    Hook { name: "connect6", kernel: "4.17", attach: attach_sock_addr },
    Hook { name: "sendmsg4", kernel: "4.18", attach: attach_sock_addr },
    Hook { name: "sendmsg6", kernel: "4.18", attach: attach_sock_addr },
    Hook { name: "sock_create", kernel: "4.10", attach: attach_sock },
    Hook { name: "sock_release", kernel: "5.9", attach: attach_sock },
    Hook { name: "sock_operation", kernel: "4.13", attach: attach_sock_ops },
    Hook { name: "ingress", kernel: "4.10", attach: attach_skb },
    // Last: from here on packets of sockets without a session are refused.
    Hook { name: "egress", kernel: "4.10", attach: attach_skb },
];

/// Links to one cgroup, pinned in a directory: they outlive the daemon, and only [`Self::detach`] ends them.
#[derive(Debug)]
pub struct Attachment {
    links: Vec<(&'static str, FdLink)>,
    pins: PathBuf,
}

impl Attachment {
    /// What of an earlier daemon's links is pinned in a directory, with that daemon's programs.
    pub fn left_in(pins: &Path) -> Self {
        let found = |name| Some((name, PinnedLink::from_pin(pins.join(name)).ok()?.into()));
        Self { links: hook_names().filter_map(found).collect(), pins: pins.to_owned() }
    }

    /// Detaches.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach(self) -> io::Result<()> {
        for name in hook_names() {
            bpffs::remove(&self.pins.join(name))?;
        }
        // The directory may hold more than these links.
        let _ = fs::remove_dir(&self.pins);
        Ok(())
    }

    /// Names of the programs.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.links.iter().map(|(name, _)| *name)
    }
}

impl Object {
    /// Attaches all cgroup programs to a cgroup and pins their links in `pins`. Where an earlier daemon's links are there, these
    /// programs take the place of its own, one by one, each in one step.
    ///
    /// # Errors
    /// The cgroup is gone ([`CgroupError::is_gone`]), or the kernel refused; what this call attached is detached again, and what was there before stays.
    pub fn attach(&mut self, cgroup: &Cgroup, pins: &Path) -> Result<Attachment, KernelError> {
        let directory = cgroup.open()?;
        bpffs::make_directory(pins).map_err(|error| KernelError::Pins { path: pins.to_owned(), error })?;
        let mut links = Vec::with_capacity(HOOKS.len());
        let mut made = Vec::new();
        if let Err(error) = self.hold_all(&directory, pins, &mut links, &mut made) {
            for path in made {
                // The error at hand matters more than one more of the same kind.
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_dir(pins);
            return Err(error);
        }
        Ok(Attachment { links, pins: pins.to_owned() })
    }

    /// Puts this object's programs behind the links of a session that nobody knows any more: see [`orphan`]. `false`: the cgroup
    /// is gone, and the links are too now.
    ///
    /// # Errors
    /// The kernel refused. The old programs stay, and hold the cgroup by tables that nobody renews.
    pub fn hold_closed(&mut self, pins: &Path) -> io::Result<bool> {
        if orphan::cgroup_of(pins)?.is_none() {
            bpffs::remove_all(pins)?;
            return Ok(false);
        }
        for Hook { name, .. } in &HOOKS {
            let Some(program) = self.ebpf.program(name) else { continue };
            let program = program.fd().map_err(io::Error::other)?;
            replace(&pins.join(name), program.as_fd())?;
        }
        let Ok(programs) = &self.unix else {
            unix::programs().try_for_each(|name| bpffs::remove(&pins.join(name)))?;
            return Ok(true);
        };
        for program in programs.iter() {
            replace(&pins.join(program.name()), program.as_fd())?;
        }
        Ok(true)
    }

    /// All programs on one cgroup. `made`: pins of links that are new.
    fn hold_all(
        &mut self,
        cgroup: &fs::File,
        pins: &Path,
        links: &mut Vec<(&'static str, FdLink)>,
        made: &mut Vec<PathBuf>,
    ) -> Result<(), KernelError> {
        for hook in &HOOKS {
            let path = pins.join(hook.name);
            let (link, new) = self.hold(hook, cgroup, &path)?;
            links.push((hook.name, link));
            made.extend(new.then_some(path));
        }
        let Ok(programs) = &self.unix else {
            // An earlier daemon's would go on with rules that nobody keeps.
            return unix::programs().try_for_each(|name| {
                let path = pins.join(name);
                bpffs::remove(&path).map_err(|error| KernelError::Pin {
                    name,
                    path,
                    error: error.to_string(),
                })
            });
        };
        for program in programs.iter() {
            let (name, path) = (program.name(), pins.join(program.name()));
            let pin =
                |error: io::Error| KernelError::Pin { name, path: path.clone(), error: error.to_string() };
            let new = !replace(&path, program.as_fd()).map_err(pin)?;
            if new {
                let link = program.attach(cgroup.as_fd()).map_err(|error| KernelError::Program {
                    name,
                    kernel: unix::KERNEL,
                    error: ProgramError::IOError(error),
                })?;
                bpf::pin(link.as_fd(), &path).map_err(pin)?;
                made.push(path.clone());
            }
            let link = PinnedLink::from_pin(&path).map_err(|error| pin(io::Error::other(error)))?;
            links.push((name, link.into()));
        }
        Ok(())
    }

    /// One program on one cgroup. Answers whether the link is new.
    fn hold(&mut self, hook: &Hook, cgroup: &fs::File, path: &Path) -> Result<(FdLink, bool), KernelError> {
        let Hook { name, kernel, attach } = *hook;
        let pin = |error: String| KernelError::Pin { name, path: path.to_owned(), error };
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        let descriptor =
            program.fd().map_err(|error| KernelError::Program { name, kernel, error })?.try_clone();
        let descriptor = descriptor.map_err(|error| pin(error.to_string()))?;
        if replace(path, descriptor.as_fd()).map_err(|error| pin(error.to_string()))? {
            let link = PinnedLink::from_pin(path).map_err(|error| pin(error.to_string()))?;
            return Ok((link.into(), false));
        }
        let link = attach(program, cgroup).map_err(|error| KernelError::Program { name, kernel, error })?;
        let link = link.pin(path).map_err(|error| pin(error.to_string()))?;
        Ok((link.into(), true))
    }
}

/// Names of all programs on cgroups, and of their links' pins.
pub(in crate::kernel) fn hook_names() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name).chain(unix::programs())
}

/// Puts a program behind the link that an earlier daemon left at `path`. `false`: there is none that could be used.
fn replace(path: &Path, program: BorrowedFd<'_>) -> io::Result<bool> {
    match link::replace_program(path, program) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // The cgroup that it was on is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(path).map(|()| false),
        Err(error) => Err(error),
    }
}

fn attach_sock_addr(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSockAddr = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_sock(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSock = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_skb(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSkb = program.try_into()?;
    let direction = (*program.expected_attach_type()).unwrap_or(CgroupSkbAttachType::Egress);
    let id = program.attach(cgroup, direction, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_sock_ops(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut SockOps = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}
