//! Files of containers: `cp`, `diff`, `export` and `commit`, beside docker's daemon, which decides here as well. Its
//! client takes a fifth of podman's time. Where podman does something else the row says what.

use super::peers::{Row, Tool, compare_on_host, on_host};

const CODE: &str = "ends with 125";
const ENTRIES: &str = "names entries of archives in another way";

const ROWS: &[Row] = &[
    on_host(
        r#"mkdir -p from/sub; echo one >from/file; echo two >from/sub/deep; ln -s file from/link; chmod 750 from/sub; echo plain >plain
        $T run -d --name box --network none -h box $I sh -c 'mkdir -p /data/sub /scratch; echo in >/data/file; echo deep >/data/sub/deep
            ln -s file /data/link; ln -s sub /data/way; rm /etc/group; echo x >>/etc/passwd; chmod 700 /var/www; touch /ready; sleep 100000' | grep -c .
        $W '$T exec box test -e /ready'"#,
    ),
    on_host("$T diff box | sort").podman("leaves out the directory above one whose mode has changed"),
    // To this host.
    on_host("$T cp box:/data/file got; cat got; stat -c %a got"),
    on_host("$T cp box:/data out1; find out1 | sort; readlink out1/link"),
    on_host("mkdir out2; $T cp box:/data out2; find out2 | sort"),
    on_host("mkdir out3; $T cp box:/data/. out3; find out3 | sort"),
    on_host("$T cp box:/data/link l; readlink l || cat l").podman("follows the link"),
    on_host("$T cp -L box:/data/link l2; readlink l2 || cat l2").podman("has no -L"),
    on_host("$T cp box:/data/way/ w; find w | sort"),
    on_host("$T cp box:/data/way/deep deep; cat deep"),
    on_host("$T cp box:data/file rel; cat rel"),
    on_host("$T cp box:nosuch x; echo $?; test -e x; echo $?").podman(CODE),
    on_host("$T cp box:/data nosuch/dir; echo $?; $T cp box:/data plain; echo $?").podman(CODE),
    on_host("$T cp box:/data/file nosuch/; echo $?; $T cp box:/data/file/ f; echo $?").podman("copies the latter"),
    on_host("$T cp box:/data/file - | tar -t; $T cp box:/data/sub/../file - | tar -t"),
    on_host("$T cp box:/data - | tar -t | sort; $T cp box:/data/. - | tar -t | sort").podman(ENTRIES),
    on_host("$T cp box:/etc/hostname - | tar -xO").podman("has no line end in it"),
    on_host("$T cp box:/nosuch - | wc -c"),
    // Into the container.
    on_host(
        r#"$T cp plain box:/scratch; $T cp plain box:/scratch/new; $T cp plain box:/scratch/
        $T exec box sh -c "cd scratch; ls -l | awk '{print \$1, \$3, \$9}'; cat plain new""#,
    ),
    on_host("$T cp plain box:/nosuch/; echo $?; $T cp plain box:/nosuch/x; echo $?; $T cp plain box:/scratch/plain/; echo $?")
        .podman(CODE),
    on_host("$T cp from box:/scratch/plain; echo $?; $T cp nosuch box:/scratch; echo $?; $T cp plain/ box:/scratch; echo $?")
        .podman(CODE),
    on_host("$T cp box:/data/file box:/x; echo $?; $T cp plain other; echo $?; $T cp plain nobox:/x; echo $?")
        .podman("copies between containers"),
    on_host(
        r#"$T cp from box:/a1; $T cp from box:/a1; $T cp from/. box:/a2; $T cp from/ box:/a3; $T cp from/. box:/a1
        $T exec box sh -c 'find a1 a2 a3 | sort; readlink a1/link; stat -c %a a1/sub'"#,
    ),
    on_host(
        r#"$T cp from/link box:/scratch/l; $T cp -L from/link box:/scratch/l2; $T cp plain box:/data/link; $T cp from box:/data/way
        $T exec box sh -c 'readlink /scratch/l; cat /scratch/l2; cat data/file; readlink data/link; ls /data/sub'"#,
    )
    .podman("has no -L"),
    on_host(
        r#"tar -c from | $T cp - box:/scratch; tar -c plain | $T cp - box:/data/way/
        $T exec box sh -c 'find /scratch/from | sort; cat /data/sub/plain'"#,
    ),
    on_host(
        "tar -c plain | $T cp - box:/nosuch; echo $?; tar -c plain | $T cp - box:/scratch/plain; echo $?; echo text | $T cp - box:/; echo $?",
    )
    .podman(CODE),
    // All of it.
    on_host("$T export box | tar -t | grep -v -e ^dev/ -e ^bin/ -e ^.dockerenv$ | sort").podman("has run/.containerenv"),
    on_host("$T export -o all.tar box; tar -xOf all.tar data/sub/deep; $T export -o no/such/file box; echo $?").podman(CODE),
    on_host(
        r#"$T commit -m why -a me -c 'ENV B=2' -c 'CMD ["echo","hi"]' -c 'LABEL l=m' box localhost/made:1 | cut -c 1-7
        $T image inspect -f '{{json .Config.Cmd}} {{json .Config.Env}} {{.Config.Labels}} {{.Comment}} {{.Author}} {{len .RootFS.Layers}} {{.Architecture}} {{.Os}}' localhost/made:1
        $T commit -c 'NOSUCH x' box; echo $?; $T commit nobox; echo $?"#,
    )
    .podman("has no -m for OCI's format"),
    on_host(
        r#"$T run --rm --network none localhost/made:1; $T run --rm --network none localhost/made:1 sh -c 'cat /data/file; ls /etc; echo $B'
        $T rmi localhost/made:1 >/dev/null; echo $?"#,
    ),
    // One that does not run.
    on_host(
        "$T stop -t 1 box; $T cp box:/data/file stopped; cat stopped; $T cp plain box:/late; $T cp box:/late - | tar -xO; $T diff box | grep late; $T rm box",
    )
    .mvm_explains(),
];

#[test]
fn files_are_copied_as_docker_does() {
    compare_on_host(Tool::Docker, ROWS);
}
