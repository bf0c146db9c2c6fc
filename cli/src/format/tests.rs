//! Templates: a table of cases, docker's answers to the same templates, and whatever comes.

use std::process::Command;

use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn document() -> Value {
    json!({
        "Id": "sha256:0123456789abcdef",
        "RepoTags": ["alpine:3.20", "alpine:latest"],
        "Created": null,
        "Size": 7_826_432,
        "Ratio": 0.5,
        "Big": u64::MAX,
        "Healthy": true,
        "Config": {
            "Env": ["PATH=/bin", "A=<1>"],
            "Labels": {"org.example.name": "web", "b": "2"},
            "Empty": {},
            "Volumes": null,
        },
        "Mounts": [{"Source": "/a", "RW": true}, {"Source": "/b", "RW": false}],
        "Labels": "org.example.name=web,b=2,c",
        "Names": "web",
    })
}

fn inspected(template: &str) -> Result<String, String> {
    let format: Format = template.parse().map_err(|error: FormatError| error.to_string())?;
    Format::inspect(Some(&format), &[document()]).map_err(|error| error.to_string())
}

#[rstest]
#[case("plain", "plain")]
#[case("{{.Id}}", "sha256:0123456789abcdef")]
#[case("{{.RepoTags}}", "[alpine:3.20 alpine:latest]")]
#[case("{{.Created}}", "<no value>")]
#[case("{{.Size}} {{.Ratio}} {{.Big}} {{.Healthy}}", "7826432 0.5 18446744073709551615 true")]
#[case("{{.Config.Labels}}", "map[b:2 org.example.name:web]")]
#[case("{{json .Config.Env}}", r#"["PATH=/bin","A=<1>"]"#)]
#[case("{{.Config.Env | json}}", r#"["PATH=/bin","A=<1>"]"#)]
#[case("{{json .Created}}{{json .Size}}{{json .Big}}", "null782643218446744073709551615")]
#[case("{{range .RepoTags}}<{{.}}>{{end}}", "<alpine:3.20><alpine:latest>")]
#[case(
    "{{range $i, $e := .RepoTags}}{{if $i}}, {{end}}{{$i}}={{$e}}{{end}}",
    "0=alpine:3.20, 1=alpine:latest"
)]
#[case("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "b=2;org.example.name=web;")]
#[case("{{range .Config.Volumes}}x{{else}}none{{end}}", "none")]
#[case(
    "{{range .Mounts}}{{.Source}}{{if .RW}} rw{{else}} ro{{end}} of {{$.Names}};{{end}}",
    "/a rw of web;/b ro of web;"
)]
#[case("{{range .Mounts}}{{if not .RW}}{{continue}}{{end}}{{.Source}}{{break}}{{end}}", "/a")]
#[case("{{if .Created}}a{{else if gt .Size 1000}}b{{else}}c{{end}}", "b")]
#[case("{{if and .Healthy (or .Created .Size)}}yes{{end}}", "yes")]
#[case("{{with .Config}}{{.Env}}{{end}}", "[PATH=/bin A=<1>]")]
#[case("{{with .Created}}a{{else}}b{{end}}", "b")]
#[case("{{with $x := .Names}}{{$x}}{{end}}", "web")]
#[case(r#"{{index .Config.Labels "org.example.name"}}"#, "web")]
#[case(
    r#"{{index .Config.Labels "none"}}|{{index .Config.Empty "none"}}|{{index .Config.Volumes "x"}}|"#,
    "|||"
)]
#[case("{{index .RepoTags 1}}", "alpine:latest")]
#[case("{{(index .Mounts 1).Source}}", "/b")]
#[case(r#"{{index .Mounts 0 "Source"}}"#, "/a")]
#[case("{{len .RepoTags}} {{len .Names}} {{len .Config.Labels}} {{len .Created}}", "2 3 2 0")]
#[case(r#"{{join .RepoTags ", "}}"#, "alpine:3.20, alpine:latest")]
#[case(r#"{{index (split .Id ":") 1}}"#, "0123456789abcdef")]
#[case("{{lower \"ABC\"}} {{upper .Names}} {{title \"a bc d_e\"}}", "abc WEB A Bc D_e")]
#[case("{{truncate .Id 12}} {{truncate .Names 12}} {{truncate \"aé\" 2}}", "sha256:01234 web a")]
#[case("{{pad .Names 1 2}}|{{pad \"\" 1 2}}|", " web  ||")]
#[case("{{println .Names}}x", "web\nx")]
#[case("{{print .Names .Size .Healthy}}", "web7826432 true")]
#[case(r#"{{printf "%s %d %v %q" .Names .Size .Healthy .Names}}"#, r#"web 7826432 true "web""#)]
#[case(
    r#"{{printf "%-6s|%6s|%06d|%.2f|%x" .Names .Names .Size .Ratio .Size}}"#,
    "web   |   web|7826432|0.50|776c00"
)]
#[case(r#"{{.Names | printf "%s-%s" "a"}}"#, "a-web")]
#[case(
    r#"{{eq .Names "web"}} {{ne .Size 1}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 1 2}}"#,
    "true true true true false false"
)]
#[case(r#"{{eq .Names "db" "web"}}"#, "true")]
#[case("a  {{- .Names -}}  b", "awebb")]
#[case("a{{/* a comment }} */}}b", "ab")]
#[case("a{{- /* a comment */ -}} b", "ab")]
#[case("{{$x := .Names}}{{$x = upper $x}}{{$x}}", "WEB")]
#[case("{{define \"T\"}}<{{.}}>{{end}}{{template \"T\" .Names}}", "<web>")]
#[case("{{`raw \\t`}}{{\"a\\tb\"}}", "raw \\ta\tb")]
#[case("{{.Names}}\\t{{.Names}}\\n", "web\\tweb\\n")]
#[case("{{slice .Id 7 10}}", "012")]
#[case("{{html \"<a>\"}} {{urlquery \"a b\"}} {{js \"'\"}}", "&lt;a&gt; a+b \\'")]
#[case("{{range 3}}{{.}}{{end}}", "012")]
fn templates_are_applied(#[case] template: &str, #[case] expected: &str) {
    assert_eq!(inspected(template), Ok(format!("{expected}\n")), "{template}");
}

#[rstest]
#[case("{{.Id", "line 1, column 6: unclosed action")]
#[case("a\n{{range .RepoTags}}", "needs one {{end}}")]
#[case("{{end}}", "needs one {{end}}")]
#[case("{{if .Id}}{{end}}{{else}}x", "needs one {{end}}")]
#[case("ab\n {{foo .Id}}", "line 2, column 4: there is no function \"foo\"")]
#[case("{{if (foo)}}{{end}}", "there is no function \"foo\"")]
#[case("{{define \"x\"}}{{foo}}{{end}}", "there is no function \"foo\"")]
#[case("{{\"a}}", "unterminated")]
#[case("{{}}", "line 1, column ")]
#[case("{{$x}}", "undefined variable")]
#[case("{{.Nothing}}", "there is no field \"Nothing\"")]
#[case("{{.Config.Nothing}}", "there is no field \"Nothing\"")]
#[case("{{.Names.More}}", "can't evaluate field More in type string")]
#[case("{{range .Names}}{{end}}", "cannot range over string")]
#[case("{{index .RepoTags 9}}", "index out of range: 9")]
#[case("{{index .RepoTags \"a\"}}", "a list cannot be indexed with a string")]
#[case("{{join .Names \",\"}}", "join: a string is not what it takes")]
#[case("{{upper .Size}}", "upper: a int is not what it takes")]
#[case("{{upper}}", "wrong number of arguments: upper expects 1, got 0")]
#[case("{{lt .Names 1}}", "cannot apply the template")]
#[case("{{template \"T\"}}", "undefined template: T")]
fn bad_templates_get_one_line(#[case] template: &str, #[case] part: &str) {
    let error = inspected(template).unwrap_err();
    assert!(error.contains(part) && !error.contains('\n'), "{template}: {error}");
}

#[test]
fn templates_have_bounds() {
    for (template, part) in [
        ("x".repeat(17 << 10), "more than 16 KiB"),
        ("{{if 1}}".repeat(2000), "nesting depth exceeded"),
        (format!("{{{{{}1{}}}}}", "(".repeat(8000), ")".repeat(8000)), "nesting depth exceeded"),
        (format!("{}x{}", "{{if 1}}".repeat(99), "{{end}}".repeat(99)), ""),
        ("{{if 1}}".repeat(101) + &"{{end}}".repeat(101), "nesting depth exceeded"),
        (format!("{{{{{}1{}}}}}", "(".repeat(99), ")".repeat(99)), ""),
        ("{{define \"T\"}}{{template \"T\"}}{{end}}{{template \"T\"}}".into(), "recursion limit"),
        ("{{range 1000}}{{range 1000}}{{range 1000}}{{end}}{{end}}{{end}}".into(), "range iteration budget"),
        ("{{range 1000}}{{printf \"%65535d\" 1}}{{printf \"%65535d\" 1}}{{end}}".into(), "more than 64 MiB"),
        ("{{$x := \"ab\"}}{{range 99}}{{$x = print $x $x}}{{end}}".into(), "more than 4 MiB"),
        ("{{$x := \"ab\"}}{{range 99}}{{$x = printf \"%s%s\" $x $x}}{{end}}".into(), "more than 4 MiB"),
        ("{{$x := \"ab\"}}{{range 99}}{{$x = json $x}}{{end}}".into(), "more than 4 MiB"),
        (
            "{{$x := \"%65535d\"}}{{range 10}}{{$x = print $x $x}}{{end}}{{printf $x}}".into(),
            "more than 4 KiB",
        ),
    ] {
        let result = inspected(&template);
        match part {
            "" => assert!(result.is_ok(), "{template:.40}: {result:?}"),
            _ => assert!(result.clone().unwrap_err().contains(part), "{template:.40}: {result:?}"),
        }
    }
}

const COLUMNS: &[Column] = &[("ID", "CONTAINER ID"), ("Names", "NAMES"), ("Labels", "LABELS")];

fn listed(format: &str) -> Result<String, String> {
    let rows = [
        json!({"ID": "abc", "Names": "web", "Labels": "org.a-b=1,c=2"}),
        json!({"ID": "d", "Names": "database", "Labels": ""}),
    ];
    let format: Format = format.parse().map_err(|error: FormatError| error.to_string())?;
    format.list(COLUMNS, &["ID", "Names"], &rows).map_err(|error| error.to_string())
}

#[rstest]
#[case("table", "CONTAINER ID   NAMES\nabc            web\nd              database\n")]
#[case("table {{.Names}}\\t{{.ID}}", "NAMES      CONTAINER ID\nweb        abc\ndatabase   d\n")]
#[case("table  {{upper .Names}}", "NAMES\nWEB\nDATABASE\n")]
#[case("table {{.Names}}\\t{{.Label \"org.a-b\"}}", "NAMES      a b\nweb        1\ndatabase\n")]
#[case("table {{if eq .ID \"d\"}}yes{{else}}{{.ID}}{{end}}", "CONTAINER ID\nabc\nyes\n")]
#[case("{{.ID}}\\t{{.Names}}", "abc\tweb\nd\tdatabase\n")]
#[case("{{.ID}}: {{.Label \"c\"}}", "abc: 2\nd: \n")]
#[case("{{json .Names}}", "\"web\"\n\"database\"\n")]
#[case("tables {{.ID}}", "tables abc\ntables d\n")]
fn lists_have_docker_s_formats(#[case] format: &str, #[case] expected: &str) {
    assert_eq!(listed(format), Ok(expected.to_owned()), "{format}");
}

#[test]
fn a_terminal_gets_no_commands_of_an_image() {
    let shown = |value: Value| functions::to_template(&value, true).to_string();
    assert_eq!(shown(json!("a\x1b[31m\u{9b}b\tc\n")), "a\\u{1b}[31m\\u{9b}b\tc\n");
    assert_eq!(shown(json!({"k\x07": ["\r"]})), "map[k\\u{7}:[\\r]]");
    assert_eq!(functions::to_template(&json!("a\x1b"), false).to_string(), "a\x1b");
}

#[test]
fn json_is_an_object_on_each_line() {
    let lines = listed("json").unwrap();
    let objects: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects.first().unwrap().get("Names"), Some(&json!("web")));
}

#[rstest]
#[case("{{.Name}}", "there is no field \"Name\": use ID, Names, Labels")]
#[case("table {{.Name}}", "there is no field \"Name\": use ID, Names, Labels")]
#[case("table {{", "invalid template: line 1")]
fn a_field_that_no_row_has_is_answered_with_those_that_there_are(#[case] format: &str, #[case] part: &str) {
    let error = listed(format).unwrap_err();
    assert!(error.contains(part), "{error}");
}

/// docker's command line has Go's own templates, and what it says of contexts needs no daemon.
fn docker(arguments: &[&str]) -> Option<(bool, String)> {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("docker");
    command
        .args(arguments)
        .env("DOCKER_CONFIG", home.path())
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT");
    let output = command.output().ok()?;
    Some((output.status.success(), String::from_utf8(output.stdout).unwrap()))
}

const INSPECTED: &[&str] = &[
    "{{.Name}}",
    "{{json .}}",
    "{{json .Endpoints}}",
    "{{.Endpoints.docker.Host | printf \"%q\"}}",
    "{{range $k, $v := .Endpoints}}{{$k}}: {{$v.Host}} {{$v.SkipTLSVerify}}{{end}}",
    "{{with index .Endpoints \"docker\"}}{{.Host}}{{end}}",
    "{{if .Endpoints.docker.SkipTLSVerify}}a{{else if eq .Name \"default\"}}b{{else}}c{{end}}",
    "{{len .Name}} {{len .Endpoints}}",
    "{{upper .Name}} {{title .Name}} {{lower \"ÄB\"}}",
    "{{split .Name \"a\"}} {{join (split .Name \"f\") \"-\"}}",
    "{{truncate .Name 3}}|{{truncate .Name 30}}|{{pad .Name 2 3}}|",
    "{{printf \"%10s|%-10s|%.3s|%v|%t|%5d|%-5d|%05d|%x|%c|%U\" .Name .Name .Name .Name true 42 42 42 255 65 65}}",
    "{{printf \"%d %s %z\" .Name 3 1}}",
    "{{printf \"%s\"}} {{printf \"a\" 1}}",
    "{{println .Name 1 true}}{{print 1 2 \"a\" \"b\" 3}}",
    "a {{- .Name -}} b",
    "{{/* x */}}{{- /* y */ -}} z",
    "{{$x := 1}}{{range $i, $c := split \"a,b,c\" \",\"}}{{if $i}},{{end}}{{$c}}{{$x = $i}}{{end}} {{$x}}",
    "{{and 1 0}} {{or 0 \"x\"}} {{not true}} {{and true (eq 1 1)}}",
    "{{eq 1 2 1}} {{ne \"a\" \"b\"}} {{lt 1 2}} {{ge 2.5 2.5}}",
    "{{index (split \"a:b\" \":\") 1}} {{slice .Name 1 3}}",
    "{{html \"<a&'>\"}} {{js \"<'x'>\"}} {{urlquery \"a b&c\"}}",
    "{{define \"T\"}}[{{.}}]{{end}}{{template \"T\" .Name}}{{block \"B\" 3}}{{.}}{{end}}",
    "{{\"tab\\there\"}} {{`raw\\n`}} {{'a'}} {{0x10}} {{1e3}} {{1_000}}",
    "{{.Name}}\\t\\n",
    "{{range split \"abc\" \"\"}}{{.}};{{else}}none{{end}}",
    "{{with .Metadata.Description}}x{{else}}none{{end}}",
    "{{.Nothing}}",
    "{{nothing .}}",
    "{{.Name",
    "{{end}}",
    "{{if .Name}}",
    "{{index .Name 99}}",
    "{{range .Name}}{{end}}",
    "{{.Name.More}}",
    "{{lt 1 \"a\"}}",
    "{{1 | 2}}",
];

#[test]
fn docker_answers_the_same_to_the_same_templates() {
    let Some((true, whole)) = docker(&["context", "inspect", "default"]) else {
        eprintln!("skipped: there is no docker command");
        return;
    };
    let whole: Vec<Value> = serde_json::from_str(&whole).unwrap();
    let mut wrong = Vec::new();
    for template in INSPECTED {
        let (is_ok, theirs) = docker(&["context", "inspect", "default", "--format", template]).unwrap();
        let format = template.parse::<Format>();
        let ours = format.and_then(|format| Format::inspect(Some(&format), &whole));
        // Objects have an order there, and none here.
        let is_json = template.contains("json");
        let same = |ours: &str| match is_json {
            true => serde_json::from_str::<Value>(ours).ok() == serde_json::from_str::<Value>(&theirs).ok(),
            false => ours == theirs,
        };
        if ours.is_ok() != is_ok || ours.as_ref().is_ok_and(|ours| !same(ours)) {
            wrong.push(format!("{template}\n  docker: {is_ok} {theirs:?}\n  mvm: {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn docker_lists_the_same() {
    let Some((true, whole)) = docker(&["context", "ls", "--format", "{{json .}}"]) else {
        eprintln!("skipped: there is no docker command");
        return;
    };
    let rows: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let columns = [
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("DockerEndpoint", "DOCKER ENDPOINT"),
        ("Error", "ERROR"),
    ];
    for template in [
        "table {{.Description}}\\t{{.DockerEndpoint}}",
        "table {{upper .Description}}\\t{{join (split .DockerEndpoint \":\") \"-\"}}\\t{{.Name}}",
        "table {{.DockerEndpoint}} {{truncate .Name 3}}",
        "{{.Name}}\\t{{.Current}}",
        "{{.Name}}\\n{{json .Current}}",
        " {{.Name}} ",
        "{{if .Current}}*{{end}}{{.Name}}",
    ] {
        let (is_ok, theirs) = docker(&["context", "ls", "--format", template]).unwrap();
        assert!(is_ok);
        let ours = template.parse::<Format>().unwrap().list(&columns, &[], &rows).unwrap();
        // docker fills the last column of a table with spaces.
        let trimmed =
            |text: &str| text.lines().map(|line| line.trim_end().to_owned() + "\n").collect::<String>();
        assert_eq!(trimmed(&ours), trimmed(&theirs), "{template}");
    }
}

proptest! {
    #[test]
    fn no_text_is_too_odd_to_be_a_template(text in ".{0,60}") {
        let _ = inspected(&text);
    }

    #[test]
    fn no_template_is_too_odd_to_be_applied(
        words in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", ".", ".Id", ".Config", ".Mounts", "$", "$x", ":=", "=", "|", "(", ")", " ",
            "range", "if", "with", "else", "end", "define", "template", "block", "break", "continue", "\"T\"",
            "`", "'", "\"%d%s%*v\"", "9", "-1", "index", "len", "join", "split", "printf", "json", "truncate",
            "slice", "call", "eq", "lt", "and", "not", "nil", "true", ",", "/*", "*/", "x", "\n", "é",
        ]), 0..24),
    ) {
        let _ = inspected(&words.concat());
        let _ = inspected(&format!("{{{{{}}}}}", words.join(" ")));
        let _ = listed(&format!("table {}", words.concat()));
    }
}

/// What JSON has no need to escape can move a terminal's cursor.
#[test]
fn json_has_no_control_characters() {
    let values = [json!({ "Output": "a\u{1b}\u{7f}\u{80}\u{9b}2Jb\u{a0}\u{e4}" })];
    let columns: &[Column] = &[("Output", "OUTPUT")];
    for text in [
        Format::inspect(None, &values).unwrap(),
        Format::inspect(Some(&Format::Json), &values).unwrap(),
        Format::Json.list(columns, &[], &values).unwrap(),
        crate::json(&values),
    ] {
        assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read.get(0).unwrap_or(&read), &values[0]);
    }
}
