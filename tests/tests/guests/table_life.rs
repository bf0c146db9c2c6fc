//! The life of containers, beside podman's: scripts of the host's shell that both of them run.

use super::passt::Uplink;
use super::peers::{Tool, compare_scripts};

/// In the background, with their signals and logs, and on a terminal.
const LIVES: &[&str] = &[
    // Output of both streams is kept; what stops it is its own signal, and its code is known afterwards.
    r#"$T run -d --name life --network none --stop-signal INT -e A=1 $I sh -c '
            trap "echo bye; exit 5" INT; trap "echo usr1" USR1; echo err >&2; echo out $A; while :; do sleep 0.1; done' >/dev/null
        $W '$T logs life 2>/dev/null | grep -q out'
        $T kill -s USR1 life; $W '$T logs life 2>/dev/null | grep -q usr1'
        $T stop life; $T wait life; $T logs life 2>/dev/null; $T logs life 2>&1 >/dev/null
        $T inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Running}} {{.State.OOMKilled}}' life
        $T exec life true 2>/dev/null; test $? -gt 0; echo "ended: $?"; $T rm life >/dev/null"#,
    // One that hears nothing is killed.
    r#"$T run -d --name deaf --network none $I sh -c 'trap "" TERM; echo ready; while :; do sleep 1; done' >/dev/null
        $W '$T logs deaf | grep -q ready'
        $T stop -t 1 deaf >/dev/null 2>&1; $T wait deaf; $T rm deaf >/dev/null"#,
    // One without memory.
    r#"$T run -d --name full --network none -m 32m $I tail -c 100000000 /dev/zero >/dev/null
        $T wait full; $T inspect -f '{{.State.ExitCode}}' full; $T rm full >/dev/null"#,
    // A terminal of 132 columns. `script` types the end of its own input into it.
    r#"{ script -qec "stty rows 43 cols 132; $T run --rm -it --network none $I sh -c 'stty size; tty | cut -c 1-5; exit 6'" /dev/null </dev/null
        echo $?; } | sed 's/\^@//'"#,
];

#[test]
fn lives_are_those_of_podman() {
    compare_scripts(Tool::Podman, LIVES);
}

#[test]
fn published_ports_are_those_of_podman() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let script = r#"$T run -d --rm --name web -p 127.0.0.1:18300:80 $I sh -c 'echo served >/tmp/index.html; exec httpd -f -p 80 -h /tmp' >/dev/null
        for i in $(seq 100); do curl -s -m 5 http://127.0.0.1:18300/ && break; sleep 0.1; done
        $T exec web wget -qO- http://127.0.0.1/
        $T run --rm -p 127.0.0.1:18300:80 $I true 2>/dev/null; echo "in use: $?" | sed s/126/125/
        $T rm -f web >/dev/null; curl -s -m 5 http://127.0.0.1:18300/; echo $?"#;
    compare_scripts(Tool::Podman, &[script]);
}
