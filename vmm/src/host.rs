//! What this host can and cannot do, for `mvm doctor`.

use std::time::{Duration, Instant};
use std::{fs, io};

use instance::{IdRange, examine_cgroups};
use jail::{Ids, Layer, State};
use kvm_ioctls::Kvm;

use crate::arch::current::host::{module, nested_paging, nesting, processor, timer};
use crate::check::{Check, Remedy};
use crate::kvm;
use crate::passt::PASST;
use crate::shares::VIRTIOFSD;
use crate::teardown::BackgroundTeardown;

/// Checks everything that a VM depends on. As root VMs become users of `ids`, the default ones if `None`.
pub fn examine(ids: Option<IdRange>) -> Vec<Check> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kvm = kvm::open().and_then(|kvm| match kvm::missing(&kvm) {
        Some(name) => Err(kvm::KvmError::Capability(name)),
        None => Ok(kvm),
    });
    let mut checks = vec![processor(&cpuinfo)];
    checks.push(match &kvm {
        Ok(_) => Check::good("KVM", format!("{} opens and has everything that mvm needs", kvm::DEVICE)),
        Err(error) => {
            let text = error.to_string();
            let (found, fix) = text.split_once(": ").unwrap_or((&text, "see `dmesg | grep kvm`"));
            Check::bad("KVM", found, fix).mended_by(kvm_remedy(error, &cpuinfo))
        }
    });
    if let Ok(kvm) = kvm {
        checks.push(vm(&kvm));
        checks.extend(first_vcpu(&kvm));
        checks.push(limits(&kvm));
        checks.push(timer(&kvm));
    }
    checks.extend([
        nested_paging(),
        nesting(),
        huge_pages(),
        io_uring(),
        shared_folders(),
        user_networks(),
        confinement(jail::probe(Ids::own(ids.unwrap_or_default().shared()), cgroups())),
        memory(),
    ]);
    checks
}

/// Whether folders of this host can be shared with a VM: virtiofsd is installed.
pub fn has_shared_folders() -> bool {
    VIRTIOFSD.find().is_some()
}

/// What gives this user KVM, where a command does.
fn kvm_remedy(error: &kvm::KvmError, cpuinfo: &str) -> Option<Remedy> {
    match error {
        kvm::KvmError::NoDevice => module(cpuinfo).map(|module| Remedy::Root(format!("modprobe {module}"))),
        kvm::KvmError::NoPermission(kvm::Access::Group(group)) => {
            let groups = fs::read_to_string("/etc/group").unwrap_or_default();
            let group = group_name(&groups, *group)?;
            Some(Remedy::Root(format!("usermod -aG {group} \"$(id -un)\"")))
        }
        _ => None,
    }
}

/// The name of a group in the lines of group(5); not that of root.
fn group_name(groups: &str, id: u32) -> Option<&str> {
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find_map(|fields| match *fields.as_slice() {
        [name, _, number, ..] if id != 0 && number.parse() == Ok(id) => Some(name),
        _ => None,
    })
}

fn vm(kvm: &Kvm) -> Check {
    match kvm::create_vm(kvm) {
        Ok(_) => Check::good("VM", "KVM can create one"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Check::bad(
                "VM",
                format!("KVM cannot create one: {cause}"),
                "see `dmesg | grep kvm`; another hypervisor may hold the processor",
            )
        }
    }
}

/// The time that a VM's first vCPU may take. It is some 0.1 ms, and 1 ms on a busy host.
const QUICK_VCPU: Duration = Duration::from_millis(4);
/// How often it is measured. The shortest time counts, as a busy host delays some of them.
const VCPU_ATTEMPTS: usize = 3;

/// The first vCPU after the interrupt controllers: some kernels wait there until all processors have seen these.
fn first_vcpu(kvm: &Kvm) -> Option<Check> {
    (0..VCPU_ATTEMPTS).filter_map(|_| time_first_vcpu(kvm)).min().map(judge_first_vcpu)
}

fn time_first_vcpu(kvm: &Kvm) -> Option<Duration> {
    let vm = kvm::create_vm(kvm).ok()?;
    // Otherwise each attempt would also wait until its VM is freed.
    let _teardown = BackgroundTeardown::prepare(&vm);
    vm.create_irq_chip().ok()?;
    let start = Instant::now();
    let vcpu = vm.create_vcpu(0);
    let took = start.elapsed();
    drop((vcpu.ok()?, vm));
    Some(took)
}

fn judge_first_vcpu(took: Duration) -> Check {
    const NAME: &str = "first vCPU";
    let found = format!("KVM creates it in {:.1} ms", took.as_secs_f64() * 1e3);
    if took <= QUICK_VCPU {
        Check::good(NAME, found)
    } else {
        let fix = "each VM starts that much later: try another kernel (Linux 6.18 on Intel is known for it)";
        Check::poor(NAME, found, fix)
    }
}

fn limits(kvm: &Kvm) -> Check {
    let most = kvm.get_max_vcpus().min(crate::config::MAX_CPUS as usize);
    Check::good("vCPUs", format!("up to {most} in a VM"))
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let choice = enabled.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(choice, _)| choice);
    match choice {
        Some(choice @ ("always" | "madvise")) => Check::good(NAME, format!("transparent ({choice})")),
        Some(choice) => Check::poor(
            NAME,
            format!("transparent huge pages are off ({choice})"),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: guests fault less",
        )
        .mended_by([Remedy::Root(
            "sh -c 'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled'".into(),
        )]),
        None => Check::poor(
            NAME,
            "this kernel has no transparent huge pages",
            "use a kernel with them: guests fault less",
        ),
    }
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    // SAFETY: the call gets no memory to write to, so that it fails: with EFAULT where io_uring is allowed.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    let errno = if result < 0 { std::io::Error::last_os_error().raw_os_error() } else { None };
    match errno {
        Some(libc::EFAULT) => Check::good(NAME, "available for disks"),
        Some(libc::EPERM) => Check::poor(
            NAME,
            "forbidden; disks fall back to one request at a time",
            "sysctl kernel.io_uring_disabled=0, or allow it in the container's seccomp profile",
        )
        .mended_by(is_disabled().then(|| Remedy::Root("sysctl kernel.io_uring_disabled=0".into()))),
        _ => Check::poor(
            NAME,
            "not in this kernel; disks fall back to one request at a time",
            "use a kernel with CONFIG_IO_URING",
        ),
    }
}

/// io_uring is off by the host's own choice, which is not the only thing that forbids it.
fn is_disabled() -> bool {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value.trim() != "0")
}

fn shared_folders() -> Check {
    const NAME: &str = "shared folders";
    match VIRTIOFSD.find() {
        Some(program) => Check::good(NAME, format!("served by {}", program.display())),
        None => Check::poor(NAME, "virtiofsd is not installed, which --share needs", VIRTIOFSD.advice())
            .mended_by(VIRTIOFSD.remedies()),
    }
}

fn user_networks() -> Check {
    const NAME: &str = "user networks";
    match PASST.find() {
        Some(program) => Check::good(NAME, format!("through {}", program.display())),
        None => {
            Check::poor(NAME, "passt is not installed, which --net user and --publish need", PASST.advice())
                .mended_by(PASST.remedies())
        }
    }
}

/// Whether a VM gets a control group.
fn cgroups() -> State {
    examine_cgroups().map_or_else(|error| State::Missing(error.to_string()), |()| State::On(String::new()))
}

/// What confines the process of a container's VM.
fn confinement(report: io::Result<jail::Report>) -> Check {
    const NAME: &str = "confinement";
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            return Check::poor(
                NAME,
                format!("cannot be tried: {error}"),
                "see `dmesg`; --jail off does without",
            );
        }
    };
    let missing: Vec<_> = report.missing().collect();
    if missing.is_empty() {
        let text = |(_, state): &(Layer, State)| match state {
            State::On(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let landlock = report.layers.iter().find(|(layer, _)| *layer == Layer::Landlock).and_then(text);
        return Check::good(NAME, format!("all layers; Landlock: {}", landlock.unwrap_or_default()));
    }
    let found: Vec<_> = missing.iter().map(|(layer, why)| format!("no {layer}: {why}")).collect();
    let fixes = missing.iter().filter_map(|(layer, _)| match layer {
        Layer::Cgroup => Some(
            "have a control group delegated to mvm (`systemd-run --user --scope -p Delegate=yes mvm run …`, as root \
             without --user, in a unit Delegate=yes), on a host with version 2 alone \
             (systemd.unified_cgroup_hierarchy=1)",
        ),
        Layer::Ids => Some("set jail-ids in /etc/mvm/config.toml to IDs that root can become here"),
        Layer::Namespaces => Some(
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)",
        ),
        Layer::Root => Some("run mvm where the root is a mount (not in a chroot)"),
        Layer::Landlock => Some("use Linux 5.13 or later with landlock in the kernel's argument lsm="),
        Layer::Seccomp => Some("use a kernel with CONFIG_SECCOMP_FILTER"),
        _ => None,
    });
    let fixes: Vec<_> = fixes.collect();
    Check::poor(NAME, found.join("; "), format!("{}: VMs are confined by the other layers", fixes.join("; ")))
}

/// The host's memory in bytes.
pub fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    match available {
        Some(kib) if kib >= 512 << 10 => Check::good(NAME, format!("{} MiB available", kib >> 10)),
        Some(kib) => Check::poor(
            NAME,
            format!("{} MiB available", kib >> 10),
            "free some, or give guests less --memory",
        ),
        None => Check::poor(NAME, "/proc/meminfo does not say", "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn a_slow_first_vcpu_is_reported() {
        let quick = judge_first_vcpu(Duration::from_micros(250));
        assert_eq!((quick.verdict, quick.found.as_str()), (Verdict::Good, "KVM creates it in 0.2 ms"));
        let slow = judge_first_vcpu(Duration::from_millis(17));
        assert_eq!((slow.verdict, slow.found.as_str()), (Verdict::Poor, "KVM creates it in 17.0 ms"));
        assert!(slow.fix.is_some());
    }

    #[test]
    fn kvm_is_got_by_its_module_or_its_group() {
        let remedy = |error, cpuinfo| kvm_remedy(&error, cpuinfo);
        let modprobe = |module| Some(Remedy::Root(format!("modprobe {module}")));
        assert_eq!(remedy(kvm::KvmError::NoDevice, "flags : svm"), modprobe("kvm_amd"));
        assert_eq!(remedy(kvm::KvmError::NoDevice, "flags : vmx"), modprobe("kvm_intel"));
        assert_eq!(remedy(kvm::KvmError::NoDevice, "flags : fpu"), None);
        let groups = "root:x:0:\nkvm:x:104:a,b\nbroken\n";
        assert_eq!(
            (group_name(groups, 104), group_name(groups, 0), group_name(groups, 7)),
            (Some("kvm"), None, None)
        );
    }

    #[test]
    fn layers_that_are_missing_are_named_with_what_helps() {
        let report = |states: [State; 2]| {
            let layers = [Layer::Namespaces, Layer::Landlock].into_iter().zip(states).collect();
            Ok(jail::Report { mode: jail::Mode::BestEffort, layers })
        };
        let on = |text: &str| State::On(text.into());
        let check = confinement(report([on("user"), on("files (ABI 2)")]));
        assert_eq!((check.verdict, &*check.found), (Verdict::Good, "all layers; Landlock: files (ABI 2)"));
        let check = confinement(report([State::Missing("cannot make namespaces".into()), on("")]));
        assert_eq!((check.verdict, &*check.found), (Verdict::Poor, "no namespaces: cannot make namespaces"));
        assert!(check.fix.unwrap().starts_with("allow user namespaces"));
        let check = confinement(Err(io::ErrorKind::OutOfMemory.into()));
        assert!(check.found.starts_with("cannot be tried: "));
    }

    #[test]
    fn the_memory_is_that_of_meminfo() {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        let kib: u64 = kib.unwrap().parse().unwrap();
        assert_eq!(total_memory() >> 10, kib);
    }

    #[test]
    fn a_check_that_is_not_good_says_how_to_fix_it() {
        for check in examine(None) {
            assert_eq!(check.verdict == Verdict::Good, check.fix.is_none(), "{check:?}");
        }
    }
}
