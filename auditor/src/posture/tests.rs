use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;

use super::*;
use crate::kernel::btf::tests::kernel as types_with;

/// A host made of files.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    /// A host on which all is well.
    fn whole() -> Self {
        let fake = Self { directory: tempfile::tempdir().unwrap() };
        for (path, text) in [
            ("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n31 23 0:27 / /sys/fs/bpf rw - bpf none rw\n32 23 0:28 / /sys/kernel/tracing rw - tracefs none rw\n",
            ),
            ("proc/filesystems", "nodev\tbpf\nnodev\ttracefs\n\text4\n"),
            ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
            ("proc/sys/kernel/yama/ptrace_scope", "1\n"),
            ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
            ("proc/sys/dev/tty/legacy_tiocsti", "0\n"),
            ("sys/kernel/security/lsm", "lockdown,capability,yama,bpf"),
            ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"),
            ("etc/group", "root:x:0:\ndocker:x:998:alice,bob\nempty:x:997:\n"),
        ] {
            fake.write(path, text);
        }
        fs::create_dir_all(fake.directory.path().join("run")).unwrap();
        fake.write_types("BPF_CGROUP_UNIX_CONNECT");
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write_types(&self, hook: &str) {
        let path = self.directory.path().join("sys/kernel/btf/vmlinux");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, types_with(hook)).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.directory.path().join(path)).unwrap();
    }

    fn host(&self) -> Host {
        let root = self.directory.path();
        Host {
            proc: root.join("proc"),
            sys: root.join("sys"),
            run: root.join("run"),
            groups: root.join("etc/group"),
            users: root.join("etc/passwd"),
            clock_synchronised: Some(true),
        }
    }

    fn check(&self, name: &str) -> Check {
        examine(&self.host()).into_iter().find(|check| check.name == name).unwrap()
    }
}

#[test]
fn a_whole_host_is_whole() {
    let fake = Fake::whole();
    for check in examine(&fake.host()) {
        assert_eq!(check.status, State::Ok, "{check:?}");
        assert_eq!(check.loss(), None);
    }
}

#[test]
fn an_empty_host_lacks_what_is_required_and_says_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host {
        proc: directory.path().join("proc"),
        sys: directory.path().join("sys"),
        run: directory.path().join("run"),
        groups: directory.path().join("group"),
        users: directory.path().join("passwd"),
        clock_synchronised: None,
    };
    let checks = examine(&host);
    let missing: Vec<_> =
        checks.iter().filter(|check| check.status == State::Missing).map(|check| check.name).collect();
    assert_eq!(missing, ["privileges", "kernel", "cgroup2", "bpffs", "tracefs", "btf"]);
    for check in checks.iter().filter(|check| check.status != State::Ok) {
        assert!(check.remedy.is_some(), "{check:?}");
    }
}

#[test]
fn kernels_are_told_apart_by_their_numbers() {
    let fake = Fake::whole();
    for (release, status) in [
        ("5.15.0", State::Ok),
        ("5.4.0-200-generic", State::Missing),
        ("10.0.1", State::Ok),
        ("4.18.0-553.el8", State::Missing),
        ("odd", State::Degraded),
    ] {
        fake.write("proc/sys/kernel/osrelease", release);
        assert_eq!(fake.check("kernel").status, status, "{release}");
    }
}

#[test]
fn a_kernel_without_the_hook_for_unix_sockets_is_named() {
    let fake = Fake::whole();
    fake.write_types("BPF_CGROUP_SYSCTL");
    let check = fake.check("unix-sockets");
    assert_eq!((check.status, check.found.as_str()), (State::Degraded, "the kernel has no hook for them"));
    assert!(check.remedy.unwrap().contains("6.7"));
    fake.write("sys/kernel/btf/vmlinux", "not BTF");
    assert_eq!(fake.check("unix-sockets").status, State::Degraded);
}

#[test]
fn both_cgroup_layouts_are_recognised() {
    let fake = Fake::whole();
    assert!(fake.check("cgroup2").found.contains("unified layout"));
    fake.write(
        "proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         31 23 0:27 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n",
    );
    assert_eq!(fake.check("cgroup2").found, "/sys/fs/cgroup/unified (hybrid layout)");
    assert!(fake.check("bpffs").found.contains("the daemon mounts it"));
    fake.write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n");
    assert_eq!(fake.check("cgroup2").status, State::Missing);
}

#[test]
fn settings_that_weaken_the_audit_are_named() {
    let fake = Fake::whole();
    fake.write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    assert_eq!(fake.check("lockdown").status, State::Missing);
    fake.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n");
    assert_eq!(fake.check("lockdown").status, State::Degraded);
    fake.write("sys/kernel/security/lsm", "lockdown,apparmor");
    assert!(fake.check("lsm").remedy.unwrap().contains("lsm=lockdown,apparmor,bpf"));
    fake.write("proc/sys/kernel/yama/ptrace_scope", "0");
    assert_eq!(fake.check("ptrace-scope").status, State::Degraded);
    fake.write("proc/sys/kernel/unprivileged_bpf_disabled", "0");
    assert_eq!(fake.check("unprivileged-bpf").status, State::Degraded);
    fake.remove("proc/sys/dev/tty/legacy_tiocsti");
    assert_eq!(fake.check("terminal-injection").status, State::Degraded);
    let unsynchronised = Host { clock_synchronised: Some(false), ..fake.host() };
    assert!(examine(&unsynchronised).iter().any(|check| check.name == "clock" && check.loss().is_some()));
}

#[test]
fn a_root_without_capabilities_is_not_root_enough() {
    let fake = Fake::whole();
    fake.write("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n");
    let check = fake.check("privileges");
    assert_eq!(check.status, State::Missing);
    assert!(check.found.contains("CAP_BPF") && check.remedy.unwrap().contains("container"));
    fake.write("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n");
    assert_eq!(fake.check("privileges").remedy.as_deref(), Some("run this as root"));
}

#[test]
fn container_sockets_count_if_somebody_besides_root_reaches_them() {
    assert!(nix::unistd::geteuid().is_root(), "this test gives files to groups and must run as root");
    let fake = Fake::whole();
    let path = fake.directory.path().join("run/docker.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    for (gid, mode, status) in [
        (998, 0o660, State::Degraded),
        (997, 0o660, State::Ok),
        (0, 0o660, State::Ok),
        (0, 0o666, State::Degraded),
        (998, 0o600, State::Ok),
        (996, 0o660, State::Degraded),
    ] {
        chown(&path, None, Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let check = fake.check("container-sockets");
        assert_eq!(check.status, status, "{gid} {mode:o}: {check:?}");
    }
}

#[test]
fn what_is_asked_for_and_not_given_is_told_with_its_remedy() {
    let fake = Fake::whole();
    fake.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n");
    let wanted = ["lockdown", "kernel"].into();
    let told = not_given(&examine(&fake.host()), &wanted);
    assert_eq!(told, ["lockdown is asked for and not given: none; boot with lockdown=integrity"]);
    assert!(names().contains(&"lockdown") && names().contains(&"container-sockets"));
}

fn guarantees(fake: &Fake, who: &session::Who<'_>) -> Vec<&'static str> {
    let root = fake.directory.path().join("cgroup");
    let lacks = session::lacks(&fake.host(), who, &root, &root.join("user/1000/agent"));
    lacks.iter().map(|lack| lack.guarantee.name()).collect()
}

#[test]
fn what_a_session_lacks_depends_on_whose_it_is() {
    use session::Who;

    assert!(nix::unistd::geteuid().is_root(), "this test gives files to users and must run as root");
    let fake = Fake::whole();
    for directory in ["", "/user", "/user/1000", "/user/1000/agent"] {
        fake.write(&format!("cgroup{directory}/cgroup.procs"), "");
    }
    assert_eq!(guarantees(&fake, &Who::Command(1000)), [""; 0]);
    assert_eq!(guarantees(&fake, &Who::Command(0)), ["unprivileged", "kept-in-cgroup"]);
    let status = |uid: u32, capabilities: &str, seccomp: u32, groups: &str| {
        format!(
            "Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\nGroups:\t{groups}\nCapPrm:\t{capabilities}\nSeccomp:\t{seccomp}\n"
        )
    };
    fake.write("proc/7/status", &status(1000, "0000000000000000", 2, ""));
    fake.write("proc/8/status", &status(1000, "0000000000002000", 0, "998"));
    assert_eq!(guarantees(&fake, &Who::Running(&[7])), ["confined"]);
    assert_eq!(guarantees(&fake, &Who::Running(&[7, 8])), ["confined", "unprivileged"]);
    // One that has gone is none.
    assert_eq!(guarantees(&fake, &Who::Running(&[9])), ["confined"]);
    // A part of the hierarchy that was given to a user, as a session manager's is.
    chown(fake.directory.path().join("cgroup/user/1000/cgroup.procs"), Some(1000), None).unwrap();
    assert_eq!(guarantees(&fake, &Who::Command(1000)), ["kept-in-cgroup"]);
    // An engine's socket: for its group, which alice is a member of and process 8 is in.
    let path = fake.directory.path().join("run/docker.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    chown(&path, None, Some(998)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(guarantees(&fake, &Who::Command(1000)), ["kept-in-cgroup", "no-container-engine"]);
    assert_eq!(guarantees(&fake, &Who::Running(&[7])), ["confined", "kept-in-cgroup"]);
    assert!(guarantees(&fake, &Who::Running(&[8])).contains(&"no-container-engine"));
}
