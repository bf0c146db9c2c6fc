//! Disks through the control socket.

use super::*;
use instance::api::{Drive, DriveUpdate};

fn update(id: &str, size_bytes: Option<u64>, shrink: bool) -> DriveUpdate {
    DriveUpdate { drive_id: id.into(), size_bytes, shrink }
}

#[test]
fn a_disk_is_resized_by_any_of_its_names() {
    let config = VmConfig { rootfs: Some("root,id=system".parse().unwrap()), ..config() };
    let server = Server::start_with(config);
    let mut client = server.client();
    for (size, id) in [(2 << 20, "vda"), (3 << 20, "system")] {
        client.send("PATCH", &format!("/drives/{id}"), &update(id, Some(size), false)).unwrap();
        let drive = client.get::<Drive>(&format!("/drives/{id}")).unwrap();
        assert_eq!((drive.drive_id.as_str(), drive.path_on_host.as_str()), ("vda", "root"));
        assert_eq!((drive.is_read_only, drive.size_bytes), (false, size));
    }
    client.send("PATCH", "/drives/vda", &update("vda", None, false)).unwrap();
    client.send("PATCH", "/drives/vda", &update("vda", Some(512), true)).unwrap();
    assert_eq!(client.get::<Drive>("/drives/vda").unwrap().size_bytes, 512);
    assert!(client.get::<Drive>("/drives/vdb").unwrap().is_read_only);
}

#[test]
fn what_cannot_be_resized_is_said() {
    let server = Server::start();
    let mut client = server.client();
    for (path, body, said) in [
        ("vdc", update("vdc", None, false), "there is no disk \"vdc\"; there are vda, vdb"),
        ("vda", update("vdb", None, false), "the body is for drive \"vdb\", the path for \"vda\""),
        ("vda", update("vda", Some(513), false), "a size of 513 bytes is not a positive multiple of 512"),
        (
            "vda",
            update("vda", Some(512), false),
            "it has 1048576 bytes, and the data beyond 512 would be lost",
        ),
        ("vdb", update("vdb", Some(2 << 20), false), "it is read-only"),
        ("vda", update("vda", Some(1 << 63), false), "cannot change its size: "),
    ] {
        let error = client.send("PATCH", &format!("/drives/{path}"), &body).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(client.get::<Drive>("/drives/vda").unwrap().size_bytes, 1 << 20);
    assert_eq!(
        statuses(&server.exchange(b"GET /drives/nosuch HTTP/1.1\r\nConnection: close\r\n\r\n")),
        [404]
    );
    assert_eq!(statuses(&server.exchange(b"PUT /drives/vda HTTP/1.1\r\nConnection: close\r\n\r\n")), [405]);

    let server = Server::start_with(VmConfig { rootfs: None, disks: Vec::new(), ..config() });
    let error = server.client().get::<Drive>("/drives/vda").unwrap_err().to_string();
    assert_eq!(error, "this VM has no disks");
    let same = || Some("a,id=x".parse().unwrap());
    let config = VmConfig { rootfs: same(), disks: same().into_iter().collect(), ..config() };
    let error = Server::start_with(config).client().get::<Drive>("/drives/x").unwrap_err().to_string();
    assert_eq!(error, "several disks have the ID \"x\": vda, vdb");
}
