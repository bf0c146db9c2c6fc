//! What can't be seen from outside: that nothing grows.

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::virtio::testing::{Driver, FREE};
use crate::virtio::vsock::header::op;
use crate::virtio::vsock::tests::guest::{CID, HEADER, header};

#[test]
fn a_guest_that_takes_nothing_makes_no_list_grow() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("v");
    let hosts = std::os::unix::net::UnixListener::bind(directory.path().join("v_80")).unwrap();
    let setup = Setup {
        guest_cid: CID.into(),
        listener: Arc::new(VsockListener::open(&path).unwrap()),
        dialer: None,
        most: 100,
        metrics: Arc::default(),
        epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        reset_event: Flag::default(),
    };
    let mut drivers = Driver::several(&[16, 16, 16]);
    let mut muxer = Muxer::new(setup, Driver::activation_of(&drivers, 0), None).unwrap();
    let mut send = |muxer: &mut Muxer, packet: Header| {
        drivers[TX as usize].write(FREE, &packet.encode());
        drivers[TX as usize].add(&[(FREE, HEADER, 0)]);
        muxer.serve_transmit_queue();
        assert_eq!(drivers[TX as usize].take_used().len(), 1);
    };
    for port in 0..1000 {
        send(&mut muxer, Header { op: op::REQUEST, ..header(80, port) });
        assert_eq!((muxer.connections.ready.len(), muxer.connections.resets.len()), (1, 0));
        drop(hosts.accept().unwrap());
        send(&mut muxer, Header { op: op::RST, ..header(80, port) });
        assert_eq!((muxer.connections.ready.len(), muxer.connections.resets.len()), (0, 0));
        assert!(!muxer.turn());
    }
    assert_eq!(muxer.connections.pool.take(), Pool::default().take(), "memory was not given back");
}
