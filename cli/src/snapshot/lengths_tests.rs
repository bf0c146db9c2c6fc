//! A VM's process that lies of what it has saved.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rstest::rstest;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

use super::*;

/// A VM of 1 MiB whose directory is `directory`.
fn vm(directory: &Path) -> Running {
    std::fs::write(
        directory.join("started.json"),
        json!({ "config": { "cpus": 1, "memory": "1M" }, "files": [] }).to_string(),
    )
    .unwrap();
    let record = json!({
        "id": "0123456789ab", "name": null, "created": 0,
        "process": { "pid": 1, "start_time": 1, "boot_id": "" },
        "config": { "cpus": 1, "memory": 1 << 20, "kernel": "/k", "rootfs": null },
    });
    Running { record: serde_json::from_value(record).unwrap(), directory: directory.to_owned() }
}

/// Answers one request as if all went well, having given its files these lengths, and keeps them open until the end.
fn lie(listener: &UnixListener, lengths: [u64; 2]) {
    let (mut client, _) = listener.accept().unwrap();
    let mut request = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&client, &mut [IoSliceMut::new(&mut request)], &mut ancillary, RecvFlags::empty()).unwrap();
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent.map(File::from));
        }
    }
    for (file, length) in files.iter().zip(lengths) {
        file.set_len(length).unwrap();
    }
    client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
}

#[rstest]
#[case::whole([MAX_STATE, 1 << 20], None)]
#[case::long_state([MAX_STATE + 1, 1 << 20], Some(MAX_STATE + 1))]
#[case::long_memory([1, (1 << 20) + 1], Some((1 << 20) + 1))]
#[case::endless([1, 1 << 40], Some(1 << 40))]
fn what_a_vm_has_saved_is_no_longer_than_the_vm(#[case] lengths: [u64; 2], #[case] refused: Option<u64>) {
    let directory = tempfile::tempdir().unwrap();
    let vm = vm(directory.path());
    let listener = UnixListener::bind(vm.control_socket()).unwrap();
    let [state, memory] = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let (_ours, hold) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2).for_each(|_| lie(&listener, lengths)));
        // `mvm pause --save` and `mvm fork`, and `mvm snapshot`.
        let saved = [save_memory(&vm, &state, &memory, &hold), create(&vm, (&state, &memory), &[])];
        for saved in saved {
            match refused {
                None => saved.unwrap(),
                Some(length) => {
                    let says = saved.unwrap_err();
                    assert!(
                        says.starts_with(&format!("its process has saved {length} bytes, and ")),
                        "{says}"
                    );
                }
            }
        }
    });
}
