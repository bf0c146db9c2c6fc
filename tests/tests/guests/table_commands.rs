//! Commands for containers and volumes, beside docker's daemon, which decides here as well. Its client takes a fifth of
//! podman's time.

use super::peers::{Row, Tool, compare_on_host, on_host};

const COMMANDS: &[Row] = &[
    on_host(
        r#"$T run -d --name box --network none -h box -e A=1 -w /tmp -u 0:0 -l team=red -l empty= --stop-signal INT -m 64m --memory-swap 64m \
            --pids-limit 50 --restart on-failure:2 --read-only --tmpfs /scratch --cap-drop CHOWN --entrypoint sh $I \
            -c 'echo out; echo err >&2; trap "echo bye; exit 3" INT; sleep 100000 & wait' | grep -c .
        $W 'test $($T logs box 2>&1 | wc -l) -eq 2'"#,
    ),
    // What is known of it.
    on_host(
        r#"$T inspect -f '{{.Name}} {{.Config.Image}} {{.Config.Hostname}} {{.Config.WorkingDir}} {{.Config.User}} {{.Config.StopSignal}}' box
        $T inspect -f '{{range .Config.Env}}{{println .}}{{end}}' box | sort; $T inspect -f '{{json .Config.Labels}} {{json .Config.Entrypoint}}' box"#,
    ),
    on_host(
        "$T inspect -f '{{.Path}} {{index .Args 0}} {{len .Args}} {{len .Config.Cmd}} {{.Config.Tty}} {{.Config.OpenStdin}} {{.RestartCount}}' box",
    ),
    on_host(
        r#"$T inspect -f '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Privileged}}' box
        $T inspect -f '{{.HostConfig.AutoRemove}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}} {{json .HostConfig.CapDrop}} {{json .HostConfig.Tmpfs}}' box
        $T inspect -f '{{.HostConfig.NanoCpus}} {{.HostConfig.CpuShares}} {{.HostConfig.ShmSize}} {{.HostConfig.IpcMode}} {{.HostConfig.LogConfig.Type}}' box"#,
    ),
    on_host(
        r#"$T inspect -f '{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.Restarting}} {{.State.OOMKilled}} {{.State.Dead}}' box
        $T inspect -f '{{.State.ExitCode}} {{json .State.Error}} {{.State.FinishedAt}} {{len .Mounts}} {{json .NetworkSettings.Ports}}' box"#,
    ),
    on_host(
        "$T inspect -f '{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}{{if .State.Running}}up{{else}}down{{end}} {{upper .State.Status}}' box",
    ),
    on_host(
        "$T inspect nosuch; echo $?; $T inspect --type image box; echo $?; $T inspect box box | grep -c '\"Id\": \"'",
    ),
    // Further commands in it.
    on_host("$T exec -e B=2 -e A=7 -w /var -u 1000:1001 box sh -c 'echo $A $B; pwd; id -u; id -g'"),
    on_host(
        r#"$T exec -d box sh -c 'echo made >/scratch/by; sleep 100000'; $W '$T exec box test -s /scratch/by'
        $T exec box cat /scratch/by; echo in | $T exec -i box cat; $T exec nosuch true; echo $?"#,
    ),
    on_host(
        "$T top box | awk 'NR == 1 {print $1, $2, $3, $8} NR > 1 {print $1, $8, $9}' | sort; $T top nosuch; echo $?",
    ),
    // Lists.
    on_host(
        r#"$T ps --filter name=box --format '{{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Ports}} {{.Label "team"}} {{.Networks}} {{.Mounts}}'
        $T ps --format 'table {{.Names}}\t{{.Image}}' --filter name=box"#,
    ),
    on_host(
        r#"for f in label=team=red label=team=blue label=empty name='^box$' name=bo name='b.x$' name='^ox'; do $T ps -q --filter "$f" | wc -l; done"#,
    ),
    on_host(
        r#"$T ps -q --filter status=running --filter label=team | wc -l; $T ps -q --filter status=exited --filter label=team | wc -l
        $T ps -aq --filter ancestor=$I --filter label=team | wc -l; $T ps --filter status=nosuch; test $? -gt 0; echo $?"#,
    ),
    on_host("$T port box; echo $?; $T port box 80; echo $?; $T port nosuch; echo $?"),
    // What it has written.
    on_host(
        "$T logs box 2>/dev/null; $T logs box 2>&1 >/dev/null; $T logs -t box 2>/dev/null | sed 's/[0-9]/0/g'",
    ),
    on_host(
        "$T logs --tail 0 box; $T logs --tail 1 box 2>&1; $T logs -n 5 box 2>&1 | sort; $T logs --tail all box 2>/dev/null",
    ),
    on_host(
        r#"$T logs --since 2000-01-01 box 2>/dev/null; $T logs --since 1h box 2>/dev/null; $T logs --since 2099-01-01T00:00:00Z box
        $T logs --until 2000-01-01T00:00:00 box; $T logs --until 0s box 2>/dev/null; $T logs --since nosuch box; test $? -gt 0; echo $?; $T logs nosuch; echo $?"#,
    ),
    // Changes.
    on_host(
        r#"$T update --memory 48m --pids-limit 40 --cpu-shares 512 --restart no box | grep -x box
        $T exec box cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max
        $T inspect -f '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpuShares}} {{.HostConfig.RestartPolicy.Name}}' box"#,
    ),
    on_host("$T update --restart no nosuch; echo $?; $T update --memory 1 box; echo $?"),
    on_host(
        r#"$T rename box carton; $T exec carton hostname; $T exec box true; echo $?; $T inspect -f '{{.Name}}' carton
        $T rename nosuch x; echo $?; $T rename carton carton; echo $?; $T rename carton 'a b'; test $? -gt 0; echo $?"#,
    ),
    on_host(
        r#"$T run -d --name second --network none $I true | grep -c .; $T rename carton second; echo $?
        $T run --name second --network none $I true; echo $?"#,
    ),
    on_host(
        r#"$T pause carton; $T inspect -f '{{.State.Status}} {{.State.Paused}} {{.State.Running}}' carton; $T ps --filter status=paused --format '{{.Names}}'
        $T exec carton true; echo $?; $T pause carton; echo $?; $T unpause carton; $T unpause carton; echo $?"#,
    ),
    // Ends, and further lives.
    on_host(
        "$T wait second nosuch; echo $?; $T kill -s NOSUCH carton; test $? -gt 0; echo $?; $T kill second; echo $?; $T stop second; $T rm carton; echo $?",
    ),
    on_host(
        r#"$T restart -t 5 carton; $T inspect -f '{{.State.Status}} {{.RestartCount}}' carton
        $W 'test $($T logs carton 2>/dev/null | grep -c out) -eq 2'; $T logs carton 2>/dev/null"#,
    ),
    on_host(
        r#"$T wait second carton >waited & $T stop carton; wait; cat waited; $T inspect -f '{{.State.ExitCode}} {{.State.Status}}' carton"#,
    ),
    on_host(
        r#"$T start carton; $T kill -s KILL carton; $T wait carton; $T inspect -f '{{.State.ExitCode}}' carton
        $T rm second carton; $T rm second; echo $?; $T rm -f second; echo $?; $T ps -aq --filter label=team | wc -l"#,
    ),
    on_host(
        r#"$T create --name made --network none -i $I sh -c 'cat; echo done; exit 4' | grep -c .
        $T inspect -f '{{.State.Status}} {{.State.StartedAt}} {{.State.ExitCode}}' made; $T ps -a --filter status=created --format '{{.Names}} {{.Status}}'
        $T logs made; echo $?; echo input | $T start -ai made; echo $?; $T wait made; $T logs made"#,
    ),
    on_host(
        r#"$T start nosuch; echo $?; $T stop nosuch; echo $?; $T rm nosuch; echo $?; $T kill made; echo $?; $T exec made true; echo $?
        $T attach made; echo $?; $T pause made; echo $?; $T restart nosuch; echo $?; $T rm made"#,
    ),
    on_host(
        r#"$T create --name bad --network none $I nosuch | grep -c .; $T start bad; echo $?
        $T inspect -f '{{.State.Running}} {{.State.ExitCode}}' bad; $T rm bad"#,
    ),
];

const VOLUMES: &[Row] = &[
    on_host(
        r#"$T volume create --label a=b vol; $T volume create vol; $T volume ls -q | grep -x vol; $T volume ls -q --filter label=a=c
        $T volume ls --filter label=a --format '{{.Name}} {{.Driver}} {{.Label "a"}}'"#,
    ),
    on_host(
        "$T volume ls -q --filter name=nosuch; $T volume create 'a b'; test $? -gt 0; echo $?; $T volume create -d nosuch x; test $? -gt 0; echo $?",
    ),
    on_host(
        "$T volume inspect -f '{{.Name}} {{json .Labels}} {{.Scope}} {{.Driver}}' vol; $T volume inspect nosuch; echo $?; $T volume rm nosuch; echo $?",
    ),
    on_host(
        r#"$T run --rm --network none -v vol:/data -v /anon $I sh -c 'echo kept >/data/file; touch /anon/x; ls /anon'
        $T run --rm --network none -v vol:/data:ro $I sh -c 'cat /data/file; touch /data/x; echo $?'"#,
    ),
    on_host(
        r#"$T create --name user --network none -v vol:/data --mount type=volume,source=other,target=/other,readonly -v /anon $I true | grep -c .
        $T inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}} {{.Driver}}{{println}}{{end}}' user | sort
        $T ps -a --filter volume=vol --format '{{.Names}}'; $T volume rm vol; echo $?; $T volume ls -q --filter dangling=true --filter name=vol"#,
    ),
    on_host("$T rm -v user; $T volume rm vol other; $T volume rm vol; echo $?; $T volume rm -f vol; echo $?"),
    on_host(
        r#"for v in relative/path:/x vol:relative vol:/x:nosuch; do $T run --rm --network none -v $v $I true; echo $?; done; $T volume rm -f vol"#,
    ),
];

#[test]
fn commands_are_those_of_docker() {
    compare_on_host(Tool::Docker, COMMANDS);
}

#[test]
fn volumes_are_those_of_docker() {
    compare_on_host(Tool::Docker, VOLUMES);
}
