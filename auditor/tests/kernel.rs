//! The kernel accepts the programs, and they attach to a cgroup. Needs root and a kernel with BPF; fails without.

use std::fs;
use std::path::Path;

use auditor::kernel::bpffs;
use auditor::kernel::cgroup::Hierarchy;
use auditor::kernel::object::{Object, RingSizes};
use auditor::kernel::tracefs;

#[test]
fn the_programs_load_and_attach_to_a_cgroup() {
    assert!(nix::unistd::geteuid().is_root(), "this test loads BPF programs: run it as root");
    tracefs::ensure_mounted(Path::new(tracefs::MOUNT)).unwrap();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchy = Hierarchy::find(&mountinfo).unwrap();
    let cgroup = hierarchy.make(Path::new(&format!("auditor-test-{}", std::process::id()))).unwrap();
    let mount = Path::new("/sys/fs/bpf");
    bpffs::ensure_mounted(mount).unwrap();
    let pins = mount.join(format!("auditor-test-kernel-{}", std::process::id()));
    let result =
        Object::load(RingSizes { payload: 1 << 20, lifecycle: 1 << 18 }, &pins).and_then(|mut loaded| {
            let attached = loaded.object.attach(&cgroup, &pins)?.programs().count();
            Ok((attached, loaded.object.unix_unsupported().map(ToString::to_string)))
        });
    bpffs::remove_all(&pins).unwrap();
    cgroup.remove().unwrap();
    match result {
        Ok((attached, None)) => assert_eq!(attached, 11),
        // The one reason for which they may be missing; the verifier's is none.
        Ok((attached, Some(reason))) => {
            assert!(reason.contains("has no hook for unix sockets"), "{reason}");
            assert_eq!(attached, 9);
        }
        Err(error) => panic!("{error}"),
    }
}
