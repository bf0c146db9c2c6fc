//! What a user can get wrong on the command line: one line that says what is wrong and what to write instead, with exit
//! code 2. Nothing here gets as far as KVM.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs mvm in a directory of its own, where it finds no VMs.
fn mvm(directory: &TempDir, arguments: &[&str]) -> Output {
    // What says no line may go on without end.
    let mut program = Command::new("timeout");
    program.args(["--signal", "KILL", "60", env!("CARGO_BIN_EXE_mvm")]);
    program.args(arguments).current_dir(directory.path()).env("XDG_RUNTIME_DIR", directory.path());
    program.env("MVM_DATA_DIR", directory.path().join("data"));
    program.env_remove("MVM_LOG").output().unwrap()
}

/// Checks that mvm ends with `code` and says one line in its style, which has each of `parts`.
fn expect(output: &Output, code: i32, parts: &[&str], what: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {errors}");
    assert!(errors.starts_with("mvm: ") && errors.trim_end().lines().count() == 1, "{what}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{what}: no {part:?} in {errors}");
    }
    assert!(output.stdout.is_empty(), "{what} printed something");
}

/// Each row: what follows `mvm`, and a part of the answer.
fn check(rows: &[(&str, &str)]) {
    let directory = TempDir::new().unwrap();
    for (arguments, expected) in rows {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        expect(&mvm(&directory, &words), 2, &[expected], &format!("mvm {arguments}"));
    }
}

#[test]
fn options_of_containers_are_checked() {
    let directory = TempDir::new().unwrap();
    for (arguments, expected) in [
        (
            "run --storage-opt size=1m x",
            "invalid storage option \"size=1m\": write size=SIZE, from 256M to 1T, or memory",
        ),
        ("run --storage-opt 20G x", "invalid storage option \"20G\""),
        ("run --dns x y", "--dns: invalid address \"x\": use one as in 1.1.1.1"),
        ("run --oom-score-adj 9999 y", "invalid number \"9999\": use -1000 to 1000"),
        ("run -c x y", "invalid number \"x\": use a whole one"),
        ("run --isolation x y", "a VM of its own"),
        ("run --network mynet x", "unknown network \"mynet\": use `user` (the host's networks)"),
        ("run --network host x", "use `user,host` to reach the host's loopback"),
        ("run --network bridge=br0 x", "bridge=br0 needs the container's address"),
        ("run --network tap=t,ip=10.0.0.2 x", "invalid address \"10.0.0.2\""),
        ("run -p 80/sctp x", "unknown protocol \"sctp\""),
        ("run -p [::1]:80:80 x", "the container has IPv4 only"),
        ("run -p 1-2:1-3 x", "differ in length"),
        ("run --expose 0 x", "invalid port \"0\""),
        ("run --mac-address zz x", "invalid MAC address \"zz\""),
        ("run --add-host up x", "write NAME:IP"),
        ("run", "missing argument: mvm run IMAGE"),
        ("create --gpus all x", "has its VM's devices and none of the host's"),
        ("create -d x", "unknown option -d"),
        ("run --restart never x", "use no, on-failure[:TIMES], always or unless-stopped"),
        ("run --rm --restart always x", "--rm and --restart exclude each other"),
        ("run --detach-keys ctrl-1 x", "as in ctrl-p,ctrl-q"),
        ("run --mount type=bind,src=/a x", "--mount needs a target: add target=PATH"),
        (
            "run --mount type=npipe,dst=/a x",
            "invalid value \"npipe\" of type in --mount: use bind, volume or tmpfs",
        ),
        ("run -v /a:/b:shiny x", "invalid mode \"shiny\" of volume \"/a:/b:shiny\": use ro or rw"),
        ("run --tmpfs /a:huge=always x", "invalid tmpfs option \"huge=always\""),
        ("run --volumes-from web x", "--volumes-from web: there is no VM or container \"web\""),
        ("run --volumes-from web:nocopy x", "use NAME, or NAME:ro to read only"),
        ("run -d -a stdout x", "--attach and --detach exclude each other"),
        ("run --attach all x", "use stdin, stdout or stderr"),
        ("create --annotation =x y", "invalid annotation \"=x\": write NAME=VALUE"),
        ("run --cidfile / x", "--cidfile / exists: remove it"),
        ("create --cidfile none/id x", "cannot make --cidfile none/id: "),
        ("run --log-opt compress=true x", "files of output are not compressed"),
        ("run --log-opt tag={{.No}} x", "there is no field"),
        ("run --log-driver journald --log-opt max-size=1m x", "set SystemMaxUse= in journald.conf"),
        ("run --log-driver syslog x", "invalid value \"syslog\""),
        ("run --mount src=data,dst=/b,volume-subpath=../a x", "invalid volume-subpath \"../a\""),
        ("run --device-read-bps /dev/sda:1mb x", "those of `mvm boot` have"),
        ("run --gpus all x", "has its VM's devices and none of the host's"),
        ("run --platform linux/arm64 x", "images are for linux/amd64"),
        ("run --link db x", "host.docker.internal"),
        ("run --health-interval 5 x", "invalid time \"5\": use a number and a unit"),
        (
            "run --pid host x",
            "containers see each other's processes in a pod of `mvm pod create --share pid`",
        ),
        ("run -v ../data:/data:rslave x", "bind propagation \"rslave\" is not possible"),
        ("run -v a/b:/data x", "invalid volume name \"a/b\": use 2 to 255 letters"),
    ] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        expect(&mvm(&directory, &words), 125, &[expected], &format!("mvm {arguments}"));
    }
}

#[test]
fn a_file_for_the_id_goes_where_no_container_is_made() {
    let directory = TempDir::new().unwrap();
    for command in ["run", "create"] {
        let output = mvm(&directory, &[command, "--cidfile", "id", "--pull", "never", "nosuch"]);
        // What is missing depends on whether the VM's kernel is there.
        expect(&output, 125, &[], command);
        assert!(!directory.path().join("id").exists(), "{command}");
    }
    fs::write(directory.path().join("id"), "x").unwrap();
    let output = mvm(&directory, &["run", "--cidfile", "id", "--pull", "never", "nosuch"]);
    expect(&output, 125, &["--cidfile id exists"], "run");
    assert_eq!(fs::read_to_string(directory.path().join("id")).unwrap(), "x");
}

#[test]
fn a_wrong_file_of_defaults_is_named_with_its_line() {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("mvm")).unwrap();
    fs::write(directory.path().join("mvm/config.toml"), "cpus = 2\nmemroy = '1G'\n").unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_mvm"));
    program.args(["run", "x"]).env("XDG_CONFIG_HOME", directory.path()).env_remove("MVM_LOG");
    expect(&program.output().unwrap(), 125, &["config.toml, line 2: unknown key \"memroy\""], "mvm run");
}

#[test]
fn words_of_other_programs_are_answered_with_the_word_to_use() {
    check(&[
        ("prune", "`mvm system prune` for both"),
        ("port web 0", "invalid port \"0\": write 80 or 53/udp"),
        ("update web", "nothing to update"),
        ("update --cpus 0 web", "invalid number of CPUs"),
        ("update --cpus 1 --cpu-quota 50000 web", "--cpus and --cpu-quota say the same"),
        ("update --cpu-quota 5 web", "use 1000 microseconds or more"),
        ("update --cpu-period 5 web", "use 1000 to 1000000 microseconds"),
        ("update --cpu-rt-runtime 5 web", "control groups v2 have no limits of real-time processes"),
        ("stop --signal NOPE web", "unknown signal \"NOPE\""),
        ("restart -s 65 web", "unknown signal \"65\""),
        ("rename web -", "invalid name \"-\""),
        ("events --since x", "invalid time \"x\""),
        ("search nginx", "`mvm pull IMAGE`"),
        ("compose up", "use `mvm run -d` for each"),
        ("network ls", "`mvm run --network user`"),
        ("volumes", "use `mvm volume ls`"),
        ("system info", "use `mvm doctor`"),
        ("swarm init", "neither a daemon nor a cluster"),
        ("shutdown web", "use `mvm stop NAME`"),
        ("destroy web", "use `mvm kill NAME`"),
        ("suspend web", "use `mvm pause NAME`"),
        ("checkpoint create web one", "use `mvm pause --save NAME` and `mvm resume NAME`"),
        (
            "start --checkpoint one web",
            "unknown option --checkpoint: use `mvm pause --save` and `mvm resume`",
        ),
        ("template create", "use `mvm template build`"),
        ("template rm 1c-1024m-user", "use `mvm template prune`"),
        ("exec web", "missing argument: mvm exec CONTAINER COMMAND"),
        ("rm", "missing argument: mvm rm NAME"),
        ("build .", "docker, podman or buildah"),
        ("boot -it --kernel x", "unknown option -it: leave it out"),
        ("boot -i --kernel x", "unknown option -i: leave it out"),
        ("boot -t", "unknown option -t: leave it out"),
        ("boot -dit --kernel x", "use --detach"),
        ("boot --daemonize", "use --detach"),
        ("boot -e A=b", "pass kernel arguments with --append"),
        ("boot --env A=b", "pass kernel arguments with --append"),
        ("boot --smp 4", "unknown option --smp: use --cpus N"),
        ("boot -smp 4", "unknown option -smp: use --cpus N"),
        ("boot --vcpus=4", "unknown option --vcpus: use --cpus N"),
        ("boot --drive file=d.img", "use --rootfs PATH"),
        ("boot -drive file=d.img,format=raw", "unknown option -drive: use --rootfs PATH"),
        ("boot -kernel vmlinux", "unknown option -kernel: use --kernel FILE"),
        ("boot -append quiet", "use --append ARGS"),
        ("boot -machine microvm", "unknown option -machine: leave it out"),
        ("boot -nographic", "unknown option -nographic: leave it out"),
        ("boot -netdev user", "use --net user"),
        ("boot --network host", "use --net user"),
        ("boot --config-file vm.json", "use --config FILE"),
        ("boot --api-sock x.sock", "`mvm ps --json`"),
        ("boot --image d.img", "use --rootfs PATH"),
        ("boot --mount x", "use --share DIR:PATH"),
        ("boot --privileged", "use --nested"),
        ("stop --all", "mvm stop $(mvm ps --quiet)"),
        ("stop --force web", "use `mvm kill NAME`"),
        ("kill -9 web", "use --signal"),
        ("help", "use `mvm --help`"),
        ("help boot", "`mvm COMMAND --help`"),
        ("metrics", "use `mvm stats`"),
        ("-v", "unknown option -v: use --version"),
        ("boot -hda d.img", "unknown option -hda: use --rootfs PATH"),
        ("boot -device virtio-net-pci", "use --disk, --net"),
        ("boot --hostname web", "set it in the guest"),
        ("boot --label a=b", "name it with --name"),
        ("stats -f name=web", "name them, as in `mvm stats web db`"),
        ("stats --no-stream --format {{.", "invalid template"),
        ("login -p x --password-stdin", "--password and --password-stdin cannot be used together"),
        ("login a.io b.io", "unexpected argument \"b.io\""),
        ("logout --all", "unknown option --all"),
        ("pull --max-unpacked big alpine", "--max-unpacked: invalid"),
        ("load --max-unpacked", "--max-unpacked needs a value"),
        ("worker", "mvm runs this command itself"),
        ("console -it web", "unknown option -it: leave it out"),
    ]);
}

#[test]
fn wrong_arguments_say_what_to_write() {
    check(&[
        ("boost", "unknown command \"boost\": did you mean boot?"),
        // Near to a command that is not for users.
        ("docker", "unknown command \"docker\"; see `mvm --help`"),
        ("compose up", "those that reach each other go into one pod"),
        ("kill --signal -1 x", "unknown option -1: where it is the value of an option, write it behind ="),
        ("frobnicate", "unknown command \"frobnicate\"; see `mvm --help`"),
        ("boot --kernle x", "unknown option --kernle: did you mean --kernel?"),
        ("boot --frobnicate", "unknown option --frobnicate; see `mvm boot --help`"),
        ("boot vmlinux", "unexpected argument \"vmlinux\": options start with --, as in --kernel FILE"),
        ("boot", "no kernel: use --kernel FILE"),
        ("boot --kernel", "--kernel needs a value: --kernel <FILE>"),
        ("boot --kernel a --kernel b", "--kernel is given twice"),
        ("boot --kernel x --ready a", "an option that is given needs --detach"),
        ("boot --kernel x -d --ready-timeout 3s", "an option that is given needs --ready"),
        ("boot --kernel x -d --ready=", "--ready: the text is empty"),
        ("boot --kernel x -d --ready a --ready-timeout x", "--ready-timeout: invalid time \"x\""),
        ("boot --balloon=big", "--balloon takes no value"),
        ("ps --json --quiet", "--json and --quiet cannot be used together"),
        ("kill", "missing argument: mvm kill NAME"),
        ("console", "missing argument: mvm console VM"),
        ("balloon", "missing argument: mvm balloon VM"),
        ("resize web", "missing argument: mvm resize VM DISK"),
        ("--log-level warn", "missing command: mvm COMMAND; see `mvm --help`"),
        ("man boast", "unknown command \"boast\""),
        ("completions tcsh", "invalid value \"tcsh\": use bash, fish, zsh"),
        (
            "--log-level verbose ps",
            "--log-level: invalid value \"verbose\": use off, error, warn, info, debug, trace",
        ),
        (
            "kill --signal SEGF x",
            "--signal: unknown signal \"SEGF\": use a name such as TERM, or a number from 1 to 64",
        ),
        ("kill --signal 65 x", "unknown signal \"65\""),
        ("kill --signal RTMIN+31 x", "unknown signal \"RTMIN+31\""),
        ("stop --time abc x", "--time: invalid time \"abc\": use a number of seconds, as in 30"),
        ("stop -t abc x", "use a number of seconds, as in 30"),
        ("balloon x much", "SIZE: invalid size \"much\""),
        ("fork x --count abc", "--count: invalid number \"abc\": use a whole number from 1 to 1000"),
        ("fork x --count 1001", "--count: invalid number \"1001\": use a whole number from 1 to 1000"),
        ("template build -m 1k", "invalid --memory of 1024 bytes: use 6m or more"),
        ("template build --network bridge=br0", "--network: templates are for user and none alone"),
        ("restore gone", "cannot restore gone: there is no such directory"),
        ("balloon x 512", "512 is 512 bytes; for MiB write a unit, as in 256M"),
    ]);
}

#[test]
fn wrong_values_of_boot_say_what_to_write() {
    check(&[
        ("boot --cpus two", "--cpus: invalid CPU count \"two\": use 1 to 254"),
        ("boot --cpus 0", "invalid CPU count \"0\": use 1 to 254"),
        ("boot --cpus 255", "invalid CPU count \"255\": use 1 to 254"),
        (
            "boot --memory lots",
            "--memory: invalid size \"lots\": use a number with K, M, G or T, as in 512M or 2G",
        ),
        ("boot --mem lots", "--memory: invalid size \"lots\""),
        ("boot -m lots", "--memory: invalid size \"lots\""),
        ("boot --memory size=1G", "invalid size \"size=1G\""),
        ("boot --memory 99999999999999999999G", "is too large"),
        (
            "boot --kernel x -m 512",
            "512 bytes of memory is too small: a guest needs at least 16M (a number without a unit counts bytes; for MiB write 512M)",
        ),
        ("boot --kernel x -m 8m", "8M of memory is too small: a guest needs at least 16M"),
        ("boot --kernel x -m 67108865", "not a multiple of 4K"),
        (
            "boot --disk a.img,wo",
            "--disk: unknown disk option \"wo\"; valid options: readonly (or ro), format=raw",
        ),
        ("boot --disk ,readonly", "--disk: no path"),
        ("boot --disk a,id=much-too-long-for-a-disk", "1 to 20"),
        ("boot --disk d,limit-iops=0", "a limit of \"0\" would let nothing pass"),
        ("boot --disk d,limit-bandwidth=1M:0", "would let nothing pass"),
        ("boot --disk d,limit-iops=fast", "invalid rate \"fast\""),
        ("boot --disk d,limit-bandwidth=fast", "invalid size \"fast\""),
        ("boot --kernel x --disk d.img --disk d.img", "disk d.img is given twice"),
        ("boot --kernel x --rootfs d.img --disk ./d.img", "disk ./d.img is given twice"),
        ("boot --kernel x --rootfs d.img,ro --disk d.img", "is given twice"),
        ("boot --kernel x --pmem d.img,cow --disk d.img", "is given twice"),
        ("boot --vsock 3", "--vsock: \"3\" does not look like a path"),
        ("boot --vsock ,cid=3", "--vsock: no path"),
        ("boot --vsock ./v,cid=2", "invalid CID \"2\": use a number from 3 to 4294967294"),
        ("boot --vsock ./v,port=1", "unknown vsock option \"port=1\"; valid option: cid=N"),
        (
            "boot --console tty",
            "--console: unknown console \"tty\": use stdio, virtio, off, or a file's path",
        ),
        ("boot --pmem a.img,wo", "unknown pmem option \"wo\""),
        ("boot --pmem a.img,cow,readonly", "readonly (or ro) or cow, not both"),
        ("boot --pmem ,readonly", "--pmem: no path"),
        ("boot --gdb localhost:1", "--gdb: invalid GDB address \"localhost:1\""),
        ("boot --gdb 65536", "invalid GDB address \"65536\""),
        ("boot --name a/b", "--name: invalid name \"a/b\""),
        ("boot --name 0123456789ab", "could be the ID of a VM"),
        ("boot --id web", "--id: invalid ID \"web\": use 12 hexadecimal digits"),
        ("boot --rootfs image:", "--rootfs: no image: write image:IMAGE"),
        ("boot --rootfs image:a,readonly", "unknown option \"readonly\" of an image"),
        ("boot --rootfs image:a --initrd x", "--initrd and --rootfs image: exclude each other"),
        ("boot --rootfs image:a --append init=/x", "use --append mvm.init=/x"),
        ("boot --agent --kernel x --runtime-dir none", "--agent needs the VM's directory"),
        ("boot --share src", "--share: invalid share \"src\": write HOSTDIR:PATH"),
        ("boot --share src:", "1 to 36 characters"),
        ("boot --share src:/a-path-that-is-longer-than-a-tag-can-be", "1 to 36 characters"),
        ("boot --share src:/wörk", "invalid share tag \"/wörk\": use letters, digits and /"),
        ("boot --share src:/x\"y", "use letters, digits and /"),
        ("boot --share src:/x,sandbox=jail", "sandbox=namespace|chroot|none"),
        ("boot -v src:/x:z", "--share: unknown share option \"z\"; valid options: readonly (or ro), rw"),
        ("boot --vhost-user blk=x", "write fs=SOCKET,tag=TAG"),
        ("boot --net tap0", "--net: invalid network \"tap0\""),
        ("boot --net tap=tap0,script=no", "unknown network option \"script=no\""),
        ("boot --net tap=a-tap-with-a-long-name", "1 to 15 bytes"),
        ("boot --net tap=t,limit-rx=0", "a limit of \"0\" would let nothing pass"),
        ("boot --net tap=t,limit-tx-pps=fast", "invalid rate \"fast\""),
        ("boot --net tap=t,limit-rx=fast", "invalid size \"fast\""),
        ("boot --net tap=t,queues=17", "invalid queues=17: use 1 to 16"),
        ("boot --net user,queues=2", "user has one queue"),
        ("boot --net tap=t,mtu=1", "invalid mtu=1: use 68 to 65521"),
        ("boot --net tap=t,mac=52:54:00", "use six bytes"),
        ("boot --net tap=t,mac=01:00:5e:00:00:01", "multicast"),
        ("boot --net tap=t,no-host", "no-host works with user only"),
        ("boot -p 80", "invalid port \"80\": write [ADDRESS:]HOST:GUEST[/udp]"),
        ("boot -p 0:80", "invalid port \"0\""),
        ("boot -p 8080:65536", "invalid port \"65536\""),
        ("boot -p 8000-8010:80", "differ in length"),
        ("boot -p localhost:8080:80", "invalid IP address \"localhost\""),
        ("boot -p 8080:80/sctp", "unknown protocol \"sctp\""),
        ("boot -p ::1:8080:80", "in brackets, as in [::1]:8080:80"),
    ]);
}

#[test]
fn accepted_habits_get_as_far_as_the_kernel() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("d.img"), vec![0; 2 << 20]).unwrap();
    for arguments in [
        "-m 512m",
        "-m 1g",
        "--memory 512MB",
        "--mem 1GiB",
        "--memory=1G",
        "-m 536870912",
        "--disk d.img,ro",
        "--disk d.img,ro --disk d.img,readonly",
        "--pmem d.img,ro",
        "-v .:/work",
        "--volume .:/work,readonly",
        "-p 8080:80",
    ] {
        let mut words = vec!["boot", "--kernel", "missing"];
        words.extend(arguments.split_whitespace());
        let output = mvm(&directory, &words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // A host without KVM ends with 3.
        assert!(errors.contains("missing") || output.status.code() == Some(3), "{arguments}: {errors}");
    }
}

#[test]
fn memory_beyond_the_hosts_is_warned_of() {
    let directory = TempDir::new().unwrap();
    let warned = mvm(&directory, &["boot", "--kernel", "gone", "--memory", "100T"]);
    let errors = String::from_utf8_lossy(&warned.stderr);
    assert!(errors.starts_with("mvm: warning: --memory 100T is more than this host's "), "{errors}");
}

#[test]
fn wrong_configuration_files_name_line_and_key() {
    let directory = TempDir::new().unwrap();
    for (text, parts) in [
        ("kernel = 'x'\ncpus = \"2\"", &["vm.toml, line 2: cpus: write 2 without quotes"][..]),
        ("kernel = 'x'\nmemory = 512", &["line 2: memory: write it in quotes"]),
        ("kernel = 'x'\nmemory = '512'", &["512 bytes of memory is too small", "write 512M"]),
        ("kernel = 'x'\nrootfilesystem = 'y'", &["unknown key \"rootfilesystem\"", "rootfs"]),
        ("kernel = \n", &["vm.toml, line 1"]),
        ("cpus = 0\nkernel = 'x'", &["invalid CPU count 0: use 1 to 254"]),
        ("cpus = 1", &["no kernel: use --kernel FILE"]),
    ] {
        fs::write(directory.path().join("vm.toml"), text).unwrap();
        expect(&mvm(&directory, &["boot", "--config", "vm.toml"]), 2, parts, text);
    }
    expect(
        &mvm(&directory, &["boot", "--config", "gone.toml"]),
        2,
        &["cannot read", "No such file"],
        "gone.toml",
    );
}

#[test]
fn a_vm_that_does_not_exist_is_one_message_and_code_1() {
    let directory = TempDir::new().unwrap();
    for command in
        ["stop", "kill", "pause", "resume", "console", "balloon", "stats", "logs", "rm", "wait", "exec"]
    {
        for word in ["web", "0123456789ab", "../x", ""] {
            if command == "exec" {
                expect(
                    &mvm(&directory, &[command, word, "true"]),
                    1,
                    &["mvm: there is no VM or container"],
                    command,
                );
                continue;
            }
            expect(&mvm(&directory, &[command, word]), 1, &["there is no VM", "mvm ps"], command);
        }
    }
}

#[test]
fn other_names_of_commands_work() {
    let directory = TempDir::new().unwrap();
    for command in ["list", "ls", "ps"] {
        let output = mvm(&directory, &[command, "--quiet"]);
        assert!(output.status.success() && output.stdout.is_empty(), "{command}");
    }
    for arguments in [&["version"][..], &["--version"], &["-V"]] {
        assert_eq!(
            mvm(&directory, arguments).stdout,
            concat!("mvm ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
        );
    }
    for (other, name) in [("unpause", "resume"), ("info", "doctor")] {
        let help = |command| mvm(&directory, &[command, "--help"]).stdout;
        assert_eq!(help(other), help(name), "{other}");
    }
}

/// `mvm doctor` answers programs too, and its exit code says what its report says.
#[test]
fn the_doctor_reports_as_json_and_by_its_exit_code() {
    let directory = TempDir::new().unwrap();
    let output = mvm(&directory, &["info", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let can_boot = report["can_boot"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if can_boot { 0 } else { 3 }));
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 5);
    assert_eq!(can_boot, checks.iter().all(|check| check["result"] != "fail"));
    for check in checks {
        assert_eq!(check["result"] == "ok", check["fix"].is_null(), "{check}");
    }
}
