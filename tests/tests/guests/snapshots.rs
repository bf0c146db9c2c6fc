//! Guests that are saved, and go on in VMs of their own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tests::{Boot, Guest, mvm, rootfs, run_mvm};

/// Longer than any of these waits.
const WATCHDOG: Duration = Duration::from_secs(120);

/// Answers each line that is typed, and says that the answer is whole: what is typed later appears behind it. It
/// answers with what is only in its memory, what its disk has when it is read again, how many of its processors work,
/// and after a timer.
const ANSWERS: &str = "kept=$(cat /proc/sys/kernel/random/uuid); sum=$(md5sum </dev/vda)
    mount -t tmpfs tmpfs /mnt; head -c 1000000 /dev/urandom >/mnt/file; file=$(md5sum </mnt/file)
    echo uuid=$kept.; echo waiting
    while read -r word && [ $word != end ]; do
        echo 3 >/proc/sys/vm/drop_caches
        [ \"$(md5sum </dev/vda)\" = \"$sum\" ] && [ \"$(md5sum </mnt/file)\" = \"$file\" ] || echo differs
        cpus=0; for cpu in 0 1; do taskset $((1 << cpu)) sh -c : && cpus=$((cpus + 1)); done
        usleep 100000
        echo answer=$word,$kept,$cpus.; echo said=$word.
    done";

fn saved(guest: &mut Guest, directory: &Path) {
    guest.wait_for("waiting");
    let output = run_mvm(["snapshot", "first", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn restored(directory: &Path) -> Guest {
    let mut command = Command::new(mvm());
    command.arg("restore").arg(directory);
    Guest::spawn(command, TempDir::new().unwrap(), WATCHDOG)
}

#[test]
fn a_guest_goes_on_in_several_vms_beside_the_first() {
    let place = TempDir::new().unwrap();
    let directory = place.path().join("snapshot");
    let disk = format!("{},readonly", rootfs().display());
    let boot = Boot::new().flag("--name", "first").flag("--rootfs", disk).flag("--cpus", "2");
    let mut first = boot.switch("--balloon").script(ANSWERS).watchdog(WATCHDOG).start();
    saved(&mut first, &directory);
    let mut guests = [first, restored(&directory), restored(&directory)];
    for word in ["one", "two", "three"] {
        for guest in &mut guests {
            guest.type_text(&format!("{word}\n"));
        }
        for guest in &mut guests {
            guest.wait_for(&format!("said={word}."));
        }
    }
    let mut kept = Vec::new();
    for mut guest in guests {
        guest.type_text("end\n");
        let outcome = guest.finish().expect_code(0);
        assert!(!outcome.output.contains("differs"), "{outcome}");
        let answers = outcome.output.lines().filter_map(|line| line.trim().strip_prefix("answer=three,"));
        kept.extend(answers.map(str::to_owned));
    }
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept.iter().all(|answer| *answer == kept[0] && answer.ends_with(",2.")), "{kept:?}");
}

/// Answers each line that is typed with a random number and the first line of its disk, which becomes the one that was
/// typed. What goes on waits until it knows that.
const WRITES: &str = "for disk in /sys/block/vd*; do
        [ \"$(cat $disk/serial)\" = data ] && data=/dev/${disk##*/}
    done
    echo before | dd of=$data bs=512 count=1 conv=sync,fsync 2>/dev/null
    echo waiting
    while read -r word && [ $word != end ]; do
        until [ ${word%-*} = first ] || dmesg | grep -q 'virtual machine fork'; do usleep 10000; done
        uuid=$(cat /proc/sys/kernel/random/uuid)
        echo 3 >/proc/sys/vm/drop_caches
        was=$(head -c 512 $data | tr -d '\\000')
        echo $word | dd of=$data bs=512 count=1 conv=sync,fsync 2>/dev/null
        echo answer=$word,$was,$uuid.; echo said=$word.
    done";

#[test]
fn each_that_goes_on_has_its_own_disk_and_random_numbers() {
    let place = TempDir::new().unwrap();
    let (directory, disk) = (place.path().join("snapshot"), place.path().join("disk"));
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let rootfs = format!("{},readonly", rootfs().display());
    let boot = Boot::new().flag("--name", "first").flag("--rootfs", rootfs);
    let boot = boot.flag("--disk", format!("{},id=data", disk.display()));
    let mut first = boot.script(WRITES).watchdog(WATCHDOG).start();
    saved(&mut first, &directory);
    let mut guests = [("first", first), ("second", restored(&directory)), ("third", restored(&directory))];
    for turn in ["1", "2"] {
        for (name, guest) in &mut guests {
            guest.type_text(&format!("{name}-{turn}\n"));
            guest.wait_for(&format!("said={name}-{turn}."));
        }
    }
    let mut numbers = Vec::new();
    for (name, mut guest) in guests {
        guest.type_text("end\n");
        let outcome = guest.finish().expect_code(0);
        let answers = outcome.output.lines().filter_map(|line| line.trim().strip_prefix("answer="));
        let answers: Vec<Vec<&str>> =
            answers.map(|line| line.trim_end_matches('.').split(',').collect()).collect();
        for (answer, (turn, was)) in answers.iter().zip([("1", "before"), ("2", &format!("{name}-1"))]) {
            let [said, content, uuid] = answer[..] else { panic!("{answer:?}") };
            assert_eq!((said, content), (&*format!("{name}-{turn}"), was), "{outcome}");
            numbers.push(uuid.to_owned());
        }
    }
    assert_eq!(numbers.len(), 6);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 6, "{numbers:?}");
}
