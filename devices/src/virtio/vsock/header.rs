//! The header of a packet (5.10.6).

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

/// The length of a header, in bytes.
pub(super) const LENGTH: usize = PKT_HEADER_SIZE;

/// The CID of the host (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// A connection that is a stream of bytes (5.10.6).
pub(super) const STREAM: u16 = 1;

/// What a packet is for (`enum virtio_vsock_op`, 5.10.6).
pub(super) mod op {
    pub(in crate::virtio::vsock) const REQUEST: u16 = 1;
    pub(in crate::virtio::vsock) const RESPONSE: u16 = 2;
    pub(in crate::virtio::vsock) const RST: u16 = 3;
    pub(in crate::virtio::vsock) const SHUTDOWN: u16 = 4;
    pub(in crate::virtio::vsock) const RW: u16 = 5;
    pub(in crate::virtio::vsock) const CREDIT_UPDATE: u16 = 6;
    pub(in crate::virtio::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of SHUTDOWN (5.10.6.6.1): what its sender will do no more.
pub(super) mod shutdown {
    pub(in crate::virtio::vsock) const RECEIVE: u32 = 1;
    pub(in crate::virtio::vsock) const SEND: u32 = 2;
    pub(in crate::virtio::vsock) const BOTH: u32 = RECEIVE | SEND;
}

/// The fields of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// The length of the payload, in bytes.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How many bytes the sender keeps for this connection.
    pub(super) buf_alloc: u32,
    /// How many bytes of this connection the sender is done with, modulo 2³².
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header as it lies in guest memory.
    pub(super) fn decode(bytes: [u8; LENGTH]) -> Self {
        let mut place = [0; LENGTH];
        let Some(mut packet) = packet_at(&mut place) else { return Self::default() };
        if packet.set_header_from_raw(&bytes).is_err() {
            return Self::default();
        }
        Self {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            kind: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }

    /// The header as it lies in guest memory.
    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let mut place = [0; LENGTH];
        if let Some(mut packet) = packet_at(&mut place) {
            packet
                .set_src_cid(self.src_cid)
                .set_dst_cid(self.dst_cid)
                .set_src_port(self.src_port)
                .set_dst_port(self.dst_port)
                .set_len(self.len)
                .set_type(self.kind)
                .set_op(self.op)
                .set_flags(self.flags)
                .set_buf_alloc(self.buf_alloc)
                .set_fwd_cnt(self.fwd_cnt);
        }
        place
    }
}

/// A packet whose header is at `place`.
///
/// The crate could read one from a descriptor chain too, but takes the payload in one descriptor only, while
/// drivers split it (2.7.4.1): Linux does from 6.7 on.
fn packet_at(place: &mut [u8; LENGTH]) -> Option<VsockPacket<'_, ()>> {
    // SAFETY: the lifetimes are tied by this function: `place` outlives the packet, and there is no other reference to
    // it.
    unsafe { VsockPacket::new(place, None) }.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: HOST_CID,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: STREAM,
            op: op::RW,
            flags: 0x4142_4344,
            buf_alloc: 0x5152_5354,
            fwd_cnt: 0x6162_6364,
        };
        let bytes = header.encode();
        let expected = [
            [8, 7, 6, 5, 4, 3, 2, 1].as_slice(),
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0x14, 0x13, 0x12, 0x11],
            &[0x24, 0x23, 0x22, 0x21],
            &[0x34, 0x33, 0x32, 0x31],
            &[1, 0, 5, 0],
            &[0x44, 0x43, 0x42, 0x41],
            &[0x54, 0x53, 0x52, 0x51],
            &[0x64, 0x63, 0x62, 0x61],
        ];
        assert_eq!(bytes.as_slice(), expected.concat());
        assert_eq!(Header::decode(bytes), header);
    }
}
