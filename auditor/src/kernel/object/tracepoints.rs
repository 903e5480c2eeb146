//! Programs on tracepoints: those that are always attached, and those that read streams between unix sockets.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Program, ProgramError};

use super::{KernelError, Object, TRACEPOINTS_PREFIX, as_descriptor, load_program, program_number};
use crate::kernel::tables::Tables;
use crate::kernel::{bpffs, unix_stream};

/// Group and name.
const TRACEPOINTS: [(&str, &str); 4] = [
    ("sched", "sched_process_exec"),
    ("sched", "sched_process_fork"),
    ("sched", "sched_process_exit"),
    ("cgroup", "cgroup_attach_task"),
];

/// Links for tracepoints (BPF_LINK_TYPE_PERF_EVENT).
const TRACEPOINT_KERNEL: &str = "5.15";

impl Object {
    /// Attaches the programs on tracepoints and pins their links. Where the very same programs are attached already, they stay: a
    /// tracepoint's link cannot be given another program. Where an earlier version's are, each goes right after its successor has
    /// come: what happens in between is told twice, and nothing is missed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach_tracepoints(&mut self) -> Result<(), KernelError> {
        let directory = self.tracepoint_pins.clone();
        let earlier = self.other_tracepoints();
        bpffs::make_directory(&directory)
            .map_err(|error| KernelError::Pins { path: directory.clone(), error })?;
        for (group, name) in TRACEPOINTS {
            let path = directory.join(name);
            let link = match PinnedLink::from_pin(&path) {
                Ok(link) => link,
                Err(_) => {
                    load_program(&mut self.ebpf, name, TRACEPOINT_KERNEL)?;
                    let link = attach_tracepoint(&mut self.ebpf, group, name)
                        .map_err(|error| KernelError::Program { name, kernel: TRACEPOINT_KERNEL, error })?;
                    link.pin(&path).map_err(|error| KernelError::Pin {
                        name,
                        path: path.clone(),
                        error: error.to_string(),
                    })?
                }
            };
            self.tracepoints.push(link.into());
            for earlier in &earlier {
                let path = earlier.join(name);
                bpffs::remove(&path).map_err(|error| KernelError::Pin {
                    name,
                    path,
                    error: error.to_string(),
                })?;
            }
        }
        Ok(())
    }

    /// Directories with links of other versions' programs on tracepoints. Earlier versions kept them beside the tables.
    pub(super) fn other_tracepoints(&self) -> Vec<PathBuf> {
        let mut others = bpffs::directories(&self.layout, TRACEPOINTS_PREFIX);
        others.extend(bpffs::directories(&self.pins, TRACEPOINTS_PREFIX));
        others.retain(|directory| *directory != self.tracepoint_pins);
        others
    }

    /// Has streams between unix sockets read from now on, or no longer. Where another version's programs do so, these take over
    /// in one step.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn read_streams(&mut self, tables: &mut Tables, reads: bool) -> Result<(), KernelError> {
        let directory = self.tracepoint_pins.clone();
        if !reads {
            self.streams.clear();
            return unix_stream::TRACEPOINTS.into_iter().try_for_each(|name| {
                let path = directory.join(name);
                bpffs::remove(&path).map_err(|error| KernelError::Pin {
                    name,
                    path,
                    error: error.to_string(),
                })
            });
        }
        if !self.streams.is_empty() || self.unix.is_err() {
            return Ok(());
        }
        // Not before they are needed: the kernel takes a quarter of a second to check them.
        for name in unix_stream::TRACEPOINTS.into_iter().chain([unix_stream::LOOK]) {
            if self.ebpf.program(name).is_some_and(|program| program.fd().is_err()) {
                load_program(&mut self.ebpf, name, unix_stream::KERNEL)?;
            }
        }
        bpffs::make_directory(&directory)
            .map_err(|error| KernelError::Pins { path: directory.clone(), error })?;
        let mut links = Vec::with_capacity(unix_stream::TRACEPOINTS.len());
        for name in unix_stream::TRACEPOINTS {
            let path = directory.join(name);
            let link = match PinnedLink::from_pin(&path) {
                Ok(link) => link,
                Err(_) => {
                    let kernel = unix_stream::KERNEL;
                    let link = attach_tracepoint(&mut self.ebpf, "sock", name)
                        .map_err(|error| KernelError::Program { name, kernel, error })?;
                    link.pin(&path).map_err(|error| KernelError::Pin {
                        name,
                        path: path.clone(),
                        error: error.to_string(),
                    })?
                }
            };
            links.push(link.into());
        }
        tables.put_in_charge(program_number())?;
        self.streams = links;
        Ok(())
    }

    /// Whether streams between unix sockets are read.
    pub fn reads_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Asks the kernel whether the stream of an agent's unix socket goes on. `forced`: its end is recorded in any case.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn look_at_stream(&self, cookie: u64, forced: bool) -> Result<unix_stream::State, KernelError> {
        let (name, kernel) = (unix_stream::LOOK, unix_stream::KERNEL);
        let refused = |error| KernelError::Program { name, kernel, error };
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(name) else {
            return Err(KernelError::Missing(name));
        };
        let program = program.fd().map_err(refused)?;
        unix_stream::look(program.as_fd(), cookie, forced)
            .map_err(|error| refused(ProgramError::IOError(error)))
    }

    /// Names of the programs that are attached to tracepoints.
    pub fn tracepoints(&self) -> impl Iterator<Item = &'static str> {
        let streams = unix_stream::TRACEPOINTS.into_iter().take(self.streams.len());
        TRACEPOINTS.into_iter().take(self.tracepoints.len()).map(|(_, name)| name).chain(streams)
    }
}

fn attach_tracepoint(ebpf: &mut Ebpf, group: &str, name: &'static str) -> Result<FdLink, ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::TracePoint(program)) => {
            let id = program.attach(group, name)?;
            as_descriptor(program.take_link(id)?.try_into())
        }
        Some(Program::RawTracePoint(program)) => {
            let id = program.attach(name)?;
            Ok(program.take_link(id)?.into())
        }
        _ => Err(ProgramError::NotAttached),
    }
}
