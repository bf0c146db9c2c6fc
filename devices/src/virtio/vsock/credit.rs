//! How much may be on its way (5.10.6.3). All counts of bytes are modulo 2³², as in the packets.

/// What the guest may send: it knows the size of our buffer and how much of what it sent we are done with.
#[derive(Debug)]
pub(super) struct Window {
    /// The size that is sent to the guest (`buf_alloc`).
    size: u32,
    /// Bytes that the guest sent.
    received: u32,
    /// Bytes that the host's socket took, or that are discarded (`fwd_cnt`).
    forwarded: u32,
    /// `forwarded` as the guest last heard of it.
    announced: u32,
}

impl Window {
    pub(super) fn new(size: u32) -> Self {
        Self { size, received: 0, forwarded: 0, announced: 0 }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Takes `count` bytes; false, where the guest was not allowed to send as many.
    #[must_use]
    pub(super) fn receive(&mut self, count: u32) -> bool {
        // The guest counts with what it has heard, so that is what it is held to.
        let outstanding = self.received.wrapping_sub(self.announced);
        let allowed = outstanding.checked_add(count).is_some_and(|sum| sum <= self.size);
        if allowed {
            self.received = self.received.wrapping_add(count);
        }
        allowed
    }

    /// Is done with `count` of the received bytes.
    pub(super) fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Whether the guest should hear of what was forwarded even if there is nothing else to say to it. Half a
    /// buffer before it runs out, it goes on sending in the meantime.
    pub(super) fn update_is_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.announced) >= self.size / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that the guest is about to get.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.size, self.forwarded)
    }
}

/// What we may send to the guest.
#[derive(Debug, Default)]
pub(super) struct PeerWindow {
    /// The size of the guest's buffer.
    size: u32,
    /// Bytes that the guest is done with.
    forwarded: u32,
    /// Bytes sent to the guest.
    sent: u32,
}

impl PeerWindow {
    /// Takes what a packet of the guest says.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.size = buf_alloc;
        // A driver's threads may overtake each other, so that an older count comes after a newer one. A count that
        // is older than ours, or ahead of what was sent, would make more bytes seem to be on their way, and is left.
        if self.sent.wrapping_sub(fwd_cnt) <= self.sent.wrapping_sub(self.forwarded) {
            self.forwarded = fwd_cnt;
        }
    }

    /// How many bytes may be sent now.
    pub(super) fn credit(&self) -> u32 {
        self.size.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// Counts `count` bytes as sent.
    pub(super) fn send(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_held_to_what_it_has_heard() {
        let mut window = Window::new(100);
        assert!(window.receive(100));
        assert!(!window.receive(1));
        window.forward(60);
        assert!(!window.receive(1), "it has not heard of it");
        assert!(window.update_is_due());
        assert_eq!(window.announce(), (100, 60));
        assert!(!window.update_is_due());
        assert!(window.receive(60));
        assert!(!window.receive(u32::MAX));
    }

    #[test]
    fn counts_go_on_past_their_end() {
        let mut window =
            Window { size: 100, received: u32::MAX - 10, forwarded: u32::MAX - 10, announced: u32::MAX - 10 };
        assert!(window.receive(100));
        window.forward(100);
        assert_eq!(window.announce(), (100, 89));
        assert!(window.receive(100));
        let mut peer = PeerWindow { size: 100, forwarded: u32::MAX - 10, sent: u32::MAX - 10 };
        peer.send(100);
        assert_eq!(peer.credit(), 0);
        peer.update(100, 89);
        assert_eq!(peer.credit(), 100);
    }

    #[test]
    fn a_count_that_cannot_be_gives_no_credit() {
        let mut peer = PeerWindow::default();
        peer.update(100, 0);
        peer.send(80);
        peer.update(100, 50);
        assert_eq!(peer.credit(), 70);
        for impossible in [81, 49, 0, u32::MAX] {
            peer.update(100, impossible);
            assert_eq!(peer.credit(), 70);
        }
        peer.update(20, 50);
        assert_eq!(peer.credit(), 0, "a driver may shrink its buffer");
    }
}
