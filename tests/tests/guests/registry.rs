//! What users do all day with images that are in no store yet, by the names that they know: a mirror of Docker Hub has
//! them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use tests::{Terminal, container_assets, container_image, debian_containers};

use super::container_networks::ask;
use super::passt::Uplink;
use crate::place::{Place, text};
use crate::server::{PASSWORD, Registry, USER, Wants};
use crate::tls::{Authority, TokenServer};

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A user, and a mirror of Docker Hub, which is reached by TLS, with a certificate of the tests' own authority, and
/// wants tokens.
struct Hub {
    registry: Registry,
    _tokens: TokenServer,
    authority: Authority,
    place: Place,
}

impl Hub {
    fn new() -> Self {
        let authority = Authority::new();
        let tokens = TokenServer::start(&authority);
        let registry = Registry::start(&Wants { tls: Some(&authority), tokens: Some(&tokens), basic: false });
        let hub = Self { registry, _tokens: tokens, authority, place: Place::new() };
        let layout = |tag: &str| format!("oci:{}:{tag}", debian_containers().display());
        let busybox = format!("oci-archive:{}", container_image().display());
        for (source, name) in [
            (busybox, "library/alpine:latest"),
            (layout("python"), "library/python:3.13"),
            (layout("nginx"), "library/nginx:latest"),
        ] {
            hub.registry.push_from(&hub.place, &source, name, Some(&hub.authority));
        }
        hub
    }

    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.mvm(arguments);
        command.env("MVM_ASSETS", container_assets()).env("SSL_CERT_FILE", self.authority.ca());
        command.env("MVM_REGISTRY_MIRROR", &self.registry.host).stdin(Stdio::null());
        command
    }

    /// What mvm prints, which succeeds.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.mvm(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn on_terminal(&self, arguments: &[&str]) -> Terminal {
        let mut command = self.mvm(arguments);
        command.env("TERM", "xterm");
        Terminal::of(command)
    }
}

#[test]
fn everyday_commands_work_with_images_of_docker_hub() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let hub = Hub::new();
    let login = with_input(hub.mvm(&["login", "-u", USER, "--password-stdin", &hub.registry.host]), PASSWORD);
    assert!(login.status.success(), "{}", text(&login));

    assert_eq!(hub.says(&["run", "alpine", "echo", "hello"]), "hello\n");
    python_on_a_terminal(&hub);
    nginx_in_the_background(&hub);
    images_are_managed(&hub);

    // What is not there is mvm's failure, not the command's.
    let output = hub.mvm(&["run", "--pull", "never", "debian", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(text(&output).contains("there is no image"), "{}", text(&output));
    hub.says(&["logout", &hub.registry.host]);
    let output = hub.mvm(&["pull", "alpine"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

fn python_on_a_terminal(hub: &Hub) {
    let options = ["-it", "--rm", "-e", "A=1", "-w", "/src", "-p", "8080:80", "-m", "512m", "--cpus", "2"];
    let mut terminal = hub.on_terminal(&[&["run"], &options[..], &["python:3.13", "bash"]].concat());
    terminal.wait_for(":/src# ", 1);
    terminal.press("echo is $A in $PWD, $(nproc) CPUs, $(stty size), $TERM\n");
    terminal.wait_for("is 1 in /src, 2 CPUs, 43 132, xterm", 1);
    terminal.press("echo served by $((40 + 2)) >index.html; python3 -m http.server 80\n");
    assert!(ask("127.0.0.1:8080").contains("served by 42"), "{}", terminal.text());
    terminal.press("\x03");
    terminal.wait_for(":/src# ", 3);
    // One carriage return is the container's, and none is added.
    assert!(!terminal.text().contains("\r\r\n"), "{:?}", terminal.text());
    terminal.press("exit 7\n");
    assert_eq!(terminal.finish().code(), Some(7));
    assert!(!hub.says(&["ps", "-a"]).contains("python"));
}

fn nginx_in_the_background(hub: &Hub) {
    let id = hub.says(&["run", "-d", "--name", "web", "-p", "127.0.0.1:8081:80", "nginx"]);
    assert!(ask("127.0.0.1:8081").contains("Welcome to nginx"), "{id}");
    let mut logs = hub.mvm(&["logs", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"GET / HTTP/1.0\" 200")));
    let mut terminal = hub.on_terminal(&["exec", "-it", "web", "sh"]);
    terminal.press("tr '\\0' ' ' </proc/1/cmdline; echo; exit 3\n");
    terminal.wait_for("nginx: master process nginx -g daemon off;", 1);
    assert_eq!(terminal.finish().code(), Some(3));
    let listed = hub.says(&["ps", "--format", "{{.Names}} {{.Image}} {{.Ports}}"]);
    assert_eq!(listed, "web nginx 127.0.0.1:8081->80/tcp\n");
    assert_eq!(hub.says(&["stop", "web"]), "web\n");
    // Its end is theirs.
    assert!(lines.all(|line| !line.is_empty()) && logs.wait().unwrap().success());
    let listed = hub.says(&["ps", "-a", "--filter", "name=web", "--format", "{{.Status}}"]);
    assert!(listed.starts_with("Exited (0)"), "{listed}");
    assert_eq!(hub.says(&["rm", "web"]), "web\n");
    assert!(!hub.says(&["ps", "-a"]).contains("web"));
}

fn images_are_managed(hub: &Hub) {
    let mine = format!("{}/me/mine:1", hub.registry.host);
    hub.says(&["tag", "alpine", &mine]);
    hub.says(&["push", &mine]);
    hub.says(&["rmi", &mine]);
    hub.says(&["pull", &mine]);
    let images = hub.says(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut images: Vec<_> = images.lines().collect();
    images.sort_unstable();
    assert_eq!(images, [&mine[..], "alpine:latest", "nginx:latest", "python:3.13"]);
    let saved = hub.place.path("saved.tar");
    let saved = saved.to_str().unwrap();
    hub.says(&["save", "-o", saved, &mine]);
    hub.says(&["rmi", &mine]);
    assert_eq!(hub.says(&["load", "-i", saved]), format!("Loaded image: {mine}\n"));
    let archive = hub.place.archive(&[1000]);
    hub.says(&["import", archive.to_str().unwrap(), "imported"]);
    assert_eq!(hub.says(&["history", "-q", "imported"]).lines().count(), 1);
    let command = hub.says(&["image", "inspect", "-f", "{{json .Config.Cmd}}", "nginx"]);
    assert_eq!(command, "[\"nginx\",\"-g\",\"daemon off;\"]\n");
    hub.says(&["rmi", "imported"]);
    hub.says(&["image", "prune", "-f"]);
    let types = hub.says(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert!(types.contains("Images 3\n"), "{types}");
}
