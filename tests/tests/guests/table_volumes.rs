//! Volumes, folders and files, as podman has them.

use super::peers::{Tool, compare_scripts};

/// Scripts of the host's shell that mvm and podman run. Unlike docker, podman makes no folder for -v, does not know all
/// keys of --mount, and ends with 126 where the target is the root.
const BINDS: &[&str] = &[
    r#"d=$(mktemp -d); echo given >$d/file; R="$T run --rm --network none"
        $R -v $d:/data $I sh -c 'cat /data/file; echo made >/data/new; stat -c %u:%g:%a /data/new'; cat $d/new
        $R -v $d:/data:ro $I touch /data/x 2>/dev/null; echo $?; ls $d
        $R --mount type=bind,src=$d/missing,dst=/data $I true 2>/dev/null; echo $?; ls $d; rm -r $d"#,
    r#"d=$(mktemp -d); echo given >$d/file; R="$T run --rm --network none"
        $R --mount type=bind,source=$d,destination=/data,readonly $I sh -c 'cat /data/file; touch /data/x 2>/dev/null; echo $?'
        $R -v $d/file:/etc/passwd:ro $I sh -c 'cat /etc/passwd; echo x 2>/dev/null >>/etc/passwd; echo $?'
        $R -v $d:/deep/er/and/deeper $I ls /deep/er/and/deeper; rm -r $d"#,
];

const VOLUMES: &[&str] = &[
    r#"R="$T run --rm --network none"; $R -v vol:/v $I sh -c 'echo one >/v/a; ls /v'
        $R --mount type=volume,src=vol,dst=/w,ro $I sh -c 'cat /w/a; touch /w/b 2>/dev/null; echo $?'
        $T volume ls -q | grep -x vol; $T volume inspect -f '{{.Name}} {{.Driver}}' vol; $T volume rm vol; $T volume ls -q | grep -c -x vol
        $T volume create --label a=b labelled; $T volume ls -q --filter label=a; $T volume inspect -f '{{.Labels.a}}' labelled; $T volume rm labelled
        $T volume rm missing 2>/dev/null; echo $?; $T volume inspect missing >/dev/null 2>&1; test $? -gt 0; echo $?"#,
    r#"R="$T run --rm --network none"; $R -v vol:/bin2 -v /anon $I sh -c 'ls /bin2 | wc -l; touch /anon/x; ls /anon'; $T volume rm vol
        $R -v full:/etc $I sh -c 'ls /etc/passwd'; $R -v full:/x $I sh -c 'ls /x/passwd'; $T volume rm full
        $R -v full:/etc:nocopy $I sh -c 'ls /etc/passwd 2>/dev/null; echo $?'; $T volume rm full"#,
    r#"R="$T run --rm --network none"; $R -v a/b:/x $I true 2>/dev/null; echo $?; $R -v :/x $I true 2>/dev/null; echo $?
        $R -v /tmp:/x:bogus $I true 2>/dev/null; echo $?; $R --mount type=bogus,dst=/x $I true 2>/dev/null; echo $?
        $R --mount type=bind,src=/tmp $I true 2>/dev/null; echo $?; $R -v /tmp:/x -v /var:/x $I true 2>/dev/null; echo $?"#,
    r#"R="$T run --rm --network none"; $R --tmpfs /t:size=64k,mode=700 $I sh -c 'stat -c %a /t; df -k /t | tail -1 | awk "{print \$2}"'
        $R --mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770 $I sh -c 'stat -c %a /t; df -k /t | tail -1 | awk "{print \$2}"; touch /t/x; ls /t'"#,
];

#[test]
fn folders_and_files_are_those_of_podman() {
    compare_scripts(Tool::Podman, BINDS);
}

#[test]
fn volumes_are_those_of_podman() {
    compare_scripts(Tool::Podman, VOLUMES);
}
