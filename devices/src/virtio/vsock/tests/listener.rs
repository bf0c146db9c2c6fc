//! The host's socket as a file; its rules are tested with [`crate::socket`].

use std::path::Path;

use tempfile::TempDir;

use crate::socket::SocketError;
use crate::virtio::vsock::VsockListener;

#[test]
fn it_is_there_as_long_as_the_device() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("v");
    let listener = VsockListener::open(&path).unwrap();
    let error = VsockListener::open(&path).unwrap_err();
    assert!(matches!(error.source, SocketError::InUse));
    assert_eq!(error.to_string(), format!("cannot make the vsock socket {}", path.display()));
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_path_leaves_room_for_ports() {
    let long = Path::new("/tmp").join("x".repeat(92));
    let error = VsockListener::open(&long).unwrap_err();
    assert!(matches!(error.source, SocketError::TooLong { length: 97, limit: 96 }));
}
