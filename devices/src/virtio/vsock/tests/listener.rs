//! The host's socket as a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::TempDir;

use super::super::{VsockListener, VsockPathError};

fn place() -> (TempDir, std::path::PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("v");
    (directory, path)
}

fn names(directory: &TempDir) -> usize {
    fs::read_dir(directory.path()).unwrap().count()
}

#[test]
fn it_is_for_the_user_alone_and_goes_with_the_device() {
    let (directory, path) = place();
    let listener = VsockListener::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(listener);
    assert_eq!(names(&directory), 0);
}

#[test]
fn a_socket_that_is_in_use_stays() {
    let (directory, path) = place();
    let _listener = VsockListener::open(&path).unwrap();
    assert!(matches!(VsockListener::open(&path), Err(VsockPathError::InUse(_))));
    assert!(path.exists());
    assert_eq!(names(&directory), 1);
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let (directory, path) = place();
    drop(UnixListener::bind(&path).unwrap());
    let _listener = VsockListener::open(&path).unwrap();
    assert_eq!(names(&directory), 1);
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[test]
fn what_is_no_socket_stays() {
    let (_directory, path) = place();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(VsockListener::open(&path), Err(VsockPathError::Occupied(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_replaced_it_stays() {
    let (_directory, path) = place();
    let listener = VsockListener::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    drop(listener);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_path_leaves_room_for_ports() {
    let long = Path::new("/tmp").join("x".repeat(92));
    let error = VsockListener::open(&long).unwrap_err();
    assert!(error.to_string().contains("97 bytes, 96 are possible"), "{error}");
}

#[test]
fn a_directory_that_does_not_exist_is_said() {
    let (directory, _) = place();
    let error = VsockListener::open(&directory.path().join("missing/v")).unwrap_err();
    assert!(matches!(error, VsockPathError::Host { .. }));
}
