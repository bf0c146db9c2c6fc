//! Kernels, vCPUs, memory and devices, as the guest sees them.

use std::fs;

use rstest::rstest;
use tempfile::TempDir;
use tests::{Boot, debian_kernel, from_environment, initrd, kernel, run_mvm};

#[rstest]
#[case::elf("vmlinux")]
#[case::bzimage("bzImage")]
fn both_formats_of_our_kernel_boot_with_a_disk(#[case] format: &str) {
    let script = "grep ' / ' /proc/mounts; dmesg | grep -ci 'error\\|warning\\|bug:'";
    let outcome = Boot::new().flag("--kernel", kernel(format)).script(script).run().expect_code(0);
    assert!(outcome.output.contains("/dev/root / ext4 rw"), "{outcome}");
}

#[test]
fn our_kernel_boots_from_an_initrd_alone() {
    let boot = Boot::new().flag("--initrd", initrd()).append("rdinit=/init");
    boot.script("echo from=$(grep -c rootfs /proc/mounts)").run().expect_code(0).expect_line("from=1");
}

#[test]
fn the_kernel_of_debian_boots_with_an_initrd() {
    let boot = Boot::new().flag("--kernel", debian_kernel()).flag("--initrd", initrd());
    let boot = boot.flag("--memory", "512M").flag("--cpus", "2").append("rdinit=/init");
    // Its disk drivers are modules that this initrd has not, so the commands are typed.
    let mut guest = boot.start();
    guest.wait_for("init: started");
    guest.type_text("echo release=$(uname -r) cpus=$(nproc)\npoweroff -f\n");
    let outcome = guest.finish().expect_code(0);
    assert!(outcome.output.contains("cloud-amd64 cpus=2"), "{outcome}");
}

/// Processors and interrupts are then in the MP table, devices in the kernel's arguments.
#[test]
fn our_kernel_boots_from_a_disk_without_acpi() {
    let script = "echo acpi=$(ls /sys/firmware/acpi 2>/dev/null | wc -l) cpus=$(nproc)
        echo cmdline=$(grep -c 'virtio_mmio.device=4K@0xd0000000:5 ' /proc/cmdline)
        echo root=$(grep -c '^/dev/root / ext4 rw' /proc/mounts)
        dd if=/dev/vda of=/dev/null bs=1M count=4 2>/dev/null && echo read=4
        echo interrupts=$(awk '/virtio0/ { print ($2 + $3 > 0) }' /proc/interrupts)
        reboot -f";
    let outcome = Boot::new().flag("--cpus", "2").append("acpi=off").script(script).run().expect_code(0);
    for line in ["acpi=0 cpus=2", "cmdline=1", "root=1", "read=4", "interrupts=1"] {
        assert!(outcome.output.contains(line), "{line}: {outcome}");
    }
}

/// Of Debian's kernels, this one reads the MP table. None takes devices from its arguments, so that it has no disk.
#[test]
fn debians_real_time_kernel_boots_without_acpi() {
    let boot =
        Boot::new().flag("--kernel", from_environment("MVM_DEBIAN_RT_KERNEL")).flag("--initrd", initrd());
    let boot = boot.flag("--memory", "512M").flag("--cpus", "2").append("rdinit=/init acpi=off");
    let mut guest = boot.start();
    guest.wait_for("init: started");
    guest.type_text("echo acpi=$(ls /sys/firmware/acpi 2>/dev/null | wc -l) cpus=$(nproc)\nreboot -f\n");
    let outcome = guest.finish().expect_code(0);
    assert!(outcome.output.contains("acpi=0 cpus=2"), "{outcome}");
}

/// There is no timer to measure the frequency of the TSC with, which kvmclock tells otherwise.
#[test]
fn our_kernel_boots_without_kvmclock_where_it_is_told_the_frequency_of_the_tsc() {
    let script =
        "dmesg | sed -n 's/.*tsc: Detected \\([0-9]*\\)\\.\\([0-9]*\\) MHz processor.*/khz=\\1\\2/p'";
    let khz = Boot::new().script(script).run().expect_code(0).number("khz");
    // Linux tries for a second to measure the TSC before it takes it for good, and says so in the middle of lines.
    let script = "dmesg -n 1; clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
        before=$(date +%s); sleep 2; echo slept=$(($(date +%s) - before))
        for _ in 1 2 3 4 5 6 7 8 9 10; do grep -qx tsc $clock && break; sleep 1; done; echo clock=$(cat $clock)";
    let boot = Boot::new()
        .append(&format!("no-kvmclock tsc=reliable tsc_early_khz={khz}"))
        .flag("--timeout", "100s");
    let outcome = boot.flag("--stop-timeout", "1s").append("loglevel=7").script(script).run().expect_code(0);
    assert_eq!(outcome.value("clock"), "tsc", "{outcome}");
    assert!((1..60).contains(&outcome.number("slept")), "{outcome}");
}

#[rstest]
#[case(1)]
#[case(2)]
#[case(4)]
fn all_vcpus_are_online_and_each_is_a_core(#[case] cpus: u32) {
    let script = "echo online=$(grep -c ^processor /proc/cpuinfo)
        echo cores=$(cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l)
        echo packages=$(cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort -u | wc -l)
        echo ids=$(grep ^apicid /proc/cpuinfo | sort -u | wc -l)
        echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)";
    let outcome = Boot::new().flag("--cpus", cpus.to_string()).script(script).run().expect_code(0);
    let numbers = ["online", "cores", "packages", "ids"].map(|name| outcome.number(name));
    assert_eq!(numbers, [u64::from(cpus), u64::from(cpus), 1, u64::from(cpus)], "{outcome}");
    assert!(["kvm-clock", "tsc"].contains(&outcome.value("clock")), "{outcome}");
}

/// What Linux keeps for itself at the least and at the most: its own image, and 16 bytes for each 4 KiB page.
#[rstest]
#[case("128M", 128)]
#[case("3G", 3072)]
#[case("5G", 5120)]
fn the_guest_sees_the_memory_that_it_was_given(#[case] size: &str, #[case] mib: u64) {
    let script = "echo kib=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
        echo e820=$(dmesg | sed -n 's/.*BIOS-e820: .mem 0x0*\\([0-9a-f]*\\)-0x0*\\([0-9a-f]*\\). usable/\\1-\\2/p' | tr '\\n' ' ')";
    let outcome = Boot::new().flag("--memory", size).script(script).run().expect_code(0);
    let total: u64 = outcome
        .value("e820")
        .split_whitespace()
        .map(|range| {
            let (start, end) = range.split_once('-').expect("a range has two ends");
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
            number(end) - number(start) + 1
        })
        .sum();
    // All but the hole below 1 MiB is usable.
    assert_eq!(total, (mib << 20) - (0x10_0000 - 0x9_fc00), "{outcome}");
    let seen = outcome.number("kib") >> 10;
    assert!(seen < mib && seen > mib * 9 / 10 - 24, "{seen} of {mib} MiB: {outcome}");
}

#[test]
fn the_entropy_device_feeds_the_guest() {
    let script = "echo rng=$(cat /sys/class/misc/hw_random/rng_current)
        echo bytes=$(dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c)
        echo different=$(dd if=/dev/hwrng bs=512 count=4 2>/dev/null | hexdump -v -e '1/1 \"%02x\\n\"' | sort -u | wc -l)";
    let outcome = Boot::new().script(script).run().expect_code(0);
    assert!(outcome.value("rng").starts_with("virtio_rng"), "{outcome}");
    assert_eq!(outcome.number("bytes"), 2048);
    assert!(outcome.number("different") > 200, "2048 random bytes have nearly all values: {outcome}");
}

#[test]
fn the_guest_has_the_hosts_time() {
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let outcome = Boot::new().script("echo now=$(date +%s)").run().expect_code(0);
    let now = outcome.number("now");
    assert!((before - 2..before + 300).contains(&now), "{now} is not about {before}");
}

#[test]
fn a_configuration_file_boots_the_same_vm_and_a_flag_wins() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("vm.toml");
    let rootfs = directory.path().join("root.ext4");
    fs::copy(tests::rootfs(), rootfs).unwrap();
    let text = format!(
        "kernel = '{}'\nrootfs = 'root.ext4'\ncpus = 1\nmemory = '128M'\n",
        kernel("vmlinux").display()
    );
    fs::write(&config, text).unwrap();
    let boot = Boot::new().flag("--config", &config).flag("--rootfs", directory.path().join("root.ext4"));
    boot.flag("--cpus", "2").script("echo cpus=$(nproc)").run().expect_code(0).expect_line("cpus=2");
}

#[test]
fn timing_shows_every_phase() {
    let outcome = Boot::new().switch("--timing").script("true").run().expect_code(0);
    let rows: Vec<_> = outcome.errors.lines().filter(|line| !line.contains("took")).collect();
    assert_eq!(rows.len(), 8, "{outcome}");
    let times: Vec<f64> = rows.iter().filter_map(|row| row.split_whitespace().last()?.parse().ok()).collect();
    assert_eq!(times.len(), rows.len(), "a phase was not reached: {outcome}");
    assert!(times.is_sorted(), "{outcome}");
}

#[test]
fn the_doctor_finds_this_host_well() {
    let output = run_mvm(["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().any(|line| line.contains("  ok  ") && line.contains("/dev/kvm")), "{text}");
}
