//! Proxies.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::place::{Place, fails, succeeds};
use crate::server::{Registry, Wants};
use crate::tls::{Authority, NAME};

/// A proxy that knows CONNECT, and takes every name for this machine. It ends with the test's process.
struct Proxy {
    host: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let seen = Arc::clone(&seen);
                // Either side may go away at any time.
                std::thread::spawn(move || drop(serve(client.unwrap(), &seen)));
            }
        });
        Self { host, heads }
    }

    fn heads(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().unwrap())
    }
}

fn serve(mut client: TcpStream, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    seen.lock().unwrap().push(head.clone());
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let Some(port) = target.and_then(|target| target.rsplit(':').next()) else {
        return client.write_all(b"HTTP/1.1 405 no\r\ncontent-length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    client.write_all(b"HTTP/1.1 200 ok\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)
}

#[test]
fn registries_are_reached_by_the_proxy_that_the_environment_names() {
    let authority = Authority::new();
    let secure = Registry::start(&Wants { tls: Some(&authority), ..Wants::default() });
    let plain = Registry::start(&Wants::default());
    let place = Place::new();
    let archive = place.archive(&[300_000]);
    secure.push(&place, &archive, "a:1", Some(&authority));
    plain.push(&place, &archive, "a:1", None);
    let proxy = Proxy::start();
    let url = format!("http://{}", proxy.host);
    let with_user = format!("http://user:p%40ss@{}", proxy.host);
    let image = |registry: &Registry| format!("{NAME}:{}/a:1", registry.port);
    let connect = |registry: &Registry| format!("CONNECT {NAME}:{} ", registry.port);
    for (variables, registry, option) in [
        (&[("HTTPS_PROXY", &url)][..], &secure, None),
        (&[("https_proxy", &with_user)], &secure, None),
        (&[("ALL_PROXY", &url), ("NO_PROXY", &"other.test,example".to_owned())], &secure, None),
        (&[("HTTP_PROXY", &url)], &plain, Some("--plain-http")),
    ] {
        let image = image(registry);
        let mut arguments = vec!["pull", &image];
        arguments.extend(option);
        let mut mvm = place.mvm(&arguments);
        mvm.env("SSL_CERT_FILE", authority.ca()).envs(variables.iter().copied());
        succeeds(&mut mvm);
        let heads = proxy.heads();
        assert!(
            !heads.is_empty() && heads.iter().all(|head| head.starts_with(&connect(registry))),
            "{heads:?}"
        );
        let has_user =
            heads.iter().all(|head| head.to_lowercase().contains("proxy-authorization: basic dxnlcjpwqhnz"));
        assert_eq!(has_user, variables[0].1 == &with_user, "{heads:?}");
        succeeds(&mut place.mvm(&["rmi", &image]));
    }
    for variables in [
        vec![("HTTPS_PROXY", &*url), ("NO_PROXY", NAME)],
        vec![("HTTPS_PROXY", &*url), ("no_proxy", "*")],
        vec![("HTTPS_PROXY", &*url), ("NO_PROXY", ".test")],
        vec![("HTTP_PROXY", &*url)],
    ] {
        let mut mvm = place.mvm(&["pull", &image(&secure)]);
        mvm.env("SSL_CERT_FILE", authority.ca()).envs(variables.iter().copied());
        let error = fails(&mut mvm, 1);
        assert!(error.contains("cannot reach https://registry.test"), "{variables:?}: {error}");
        assert_eq!(proxy.heads(), Vec::<String>::new(), "{variables:?}");
    }
    // The machine itself is reached without one.
    let mut mvm = place.mvm(&["pull", &format!("{}/a:1", secure.host)]);
    succeeds(mvm.env("SSL_CERT_FILE", authority.ca()).env("HTTPS_PROXY", &url));
    assert_eq!(proxy.heads(), Vec::<String>::new());
}
