//! The console's part of the event loop: keyboard, clients of the console socket, and the log.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use devices::socket::ListeningSocket;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::ConsoleError;
use super::awaited::{Awaited, AwaitedText};
use super::hub::Hub;
use super::input::InputPort;
use super::keyboard::Keyboard;
use super::log::{Log, LogFile};
use super::server::Server;
use crate::exit::ExitSlot;

/// What a descriptor is registered with.
const TICK: u32 = 0;
const DRAINED: u32 = 1;
const KEYBOARD: u32 = 2;
const TERMINAL: u32 = 3;
/// The socket, and from there on its clients.
const SERVER: u32 = 4;

/// The console's subscriber.
pub struct ConsoleEvents {
    hub: Arc<Hub>,
    port: InputPort,
    keyboard: Option<Keyboard>,
    log: Option<Log>,
    /// Until the text was output.
    awaited: Option<Awaited>,
    server: Option<Server>,
}

impl ConsoleEvents {
    /// A console without a keyboard and without clients, whose input goes to `port`.
    pub(super) fn new(hub: &Arc<Hub>, port: InputPort) -> Self {
        Self { hub: Arc::clone(hub), port, keyboard: None, log: None, awaited: None, server: None }
    }

    /// Adds the keyboard `source`. If it `is_terminal`, it has an escape character, with which the user can end the VM
    /// through `exit`.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Terminal`].
    pub(super) fn add_keyboard(
        &mut self,
        source: Box<dyn AsFd>,
        is_terminal: bool,
        exit: Arc<ExitSlot>,
    ) -> Result<(), ConsoleError> {
        let keyboard = Keyboard::new(source, KEYBOARD, is_terminal, exit);
        self.keyboard = Some(keyboard.map_err(ConsoleError::Terminal)?);
        Ok(())
    }

    /// Keeps the latest output in `file`.
    pub(super) fn add_log(&mut self, file: LogFile) {
        self.log = Some(Log::new(file, self.hub.reader()));
    }

    /// Looks for a text in the output.
    pub(super) fn add_awaited(&mut self, text: AwaitedText) {
        self.awaited = Some(Awaited::new(text, self.hub.reader()));
    }

    /// Adds the console socket.
    pub(super) fn add_server(&mut self, listener: ListeningSocket) {
        self.server = Some(Server::new(listener, &self.hub, SERVER));
    }

    fn output(&mut self) {
        self.hub.tick();
        self.log.iter_mut().for_each(Log::write);
        // Behind the log, which has the text by then.
        if self.awaited.as_mut().is_some_and(Awaited::look) {
            self.awaited = None;
        }
        self.server.iter_mut().for_each(Server::send);
        self.server.iter_mut().for_each(Server::tick);
    }

    fn settle(&mut self, ops: &mut EventOps<'_>) {
        let port = &self.port;
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.settle(port, ops);
        }
        if let Some(server) = &mut self.server {
            server.settle(port, ops);
        }
    }
}

impl MutEventSubscriber for ConsoleEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (fd, token) in [(self.hub.tick_fd(), TICK), (self.port.drained().as_raw_fd(), DRAINED)] {
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                tracing::error!(%error, "cannot watch the console");
            }
        }
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.init(TERMINAL, ops);
        }
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let port = &self.port;
        match (events.data(), &mut self.keyboard, &mut self.server) {
            (TICK, ..) => self.output(),
            // Another event may have emptied it.
            (DRAINED, ..) => drop(port.drained().read()),
            (KEYBOARD, Some(keyboard), _) => keyboard.ready(port),
            (TERMINAL, Some(keyboard), _) => keyboard.look(),
            (token, _, Some(server)) => server.ready(token, events.event_set(), port, ops),
            _ => {}
        }
        self.settle(ops);
    }
}

impl Drop for ConsoleEvents {
    fn drop(&mut self) {
        // The last output of the guest; the server sends it to its clients when it is dropped.
        self.output();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use devices::legacy::Serial;
    use devices::{Interrupt, MachineEvent, MachineEvents};
    use event_manager::{EventManager, SubscriberOps};

    use instance::CONSOLE_SOCKET;

    use super::*;
    use crate::console::hub::Output;
    use crate::console::ring::CAPACITY;

    struct Ignored;

    impl Interrupt for Ignored {
        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MachineEvents for Ignored {
        fn report(&self, _: MachineEvent) {}
    }

    /// A serial port, open where a guest is to read from it.
    fn serial(open: bool) -> (Serial, InputPort) {
        use devices::BusDevice;
        let serial = Serial::new(Arc::new(Ignored), Arc::new(Ignored), Box::new(io::sink())).unwrap();
        if open {
            serial.write(4, &[1]);
            serial.write(1, &[1]);
            serial.read(5, &mut [0]);
        }
        let port = InputPort::Serial(serial.input().unwrap());
        (serial, port)
    }

    fn typed(serial: &Serial, length: usize) -> Vec<u8> {
        use devices::BusDevice;
        (0..length)
            .map(|_| {
                let mut byte = [0];
                serial.read(0, &mut byte);
                byte[0]
            })
            .collect()
    }

    #[test]
    fn a_client_that_does_not_read_delays_neither_the_guest_nor_other_clients() {
        let directory = tempfile::tempdir().unwrap();
        let hub = Hub::new().unwrap();
        let mut console = ConsoleEvents::new(&hub, serial(false).1);
        console.add_log(LogFile::create(directory.path().join("console.log")).unwrap());
        console.add_server(Server::listen(directory.path().join(CONSOLE_SOCKET)).unwrap());
        let mut events = EventManager::<ConsoleEvents>::new().unwrap();
        events.add_subscriber(console);
        let connect = || UnixStream::connect(directory.path().join(CONSOLE_SOCKET)).unwrap();
        let (mut stuck, mut quick) = (connect(), connect());
        let done = Arc::new(AtomicBool::new(false));
        let seen = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut seen = vec![0; 3 * CAPACITY];
                quick.read_exact(&mut seen).unwrap();
                done.store(true, Ordering::SeqCst);
                seen
            }
        });
        let mut output = Output::new(&hub);
        for _ in 0..3 * CAPACITY / 4096 {
            output.write_all(&[b'x'; 4096]).unwrap();
            events.run_with_timeout(10_000).unwrap();
        }
        while !done.load(Ordering::SeqCst) {
            events.run_with_timeout(10).unwrap();
        }
        assert!(seen.join().unwrap().iter().all(|byte| *byte == b'x'));
        let stuck_reads = std::thread::spawn(move || {
            stuck.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut text = String::new();
            stuck.read_to_string(&mut text).unwrap();
            text
        });
        drop(events);
        let text = stuck_reads.join().unwrap();
        assert_eq!(text.matches("console output dropped").count(), 1);
        assert!(text.len() > CAPACITY && text.len() < 3 * CAPACITY);
    }

    #[test]
    fn input_of_a_client_that_has_gone_is_delivered_and_at_most_16_clients_are_connected() {
        let directory = tempfile::tempdir().unwrap();
        let hub = Hub::new().unwrap();
        let (serial, port) = serial(true);
        let mut console = ConsoleEvents::new(&hub, port);
        console.add_log(LogFile::create(directory.path().join("console.log")).unwrap());
        console.add_server(Server::listen(directory.path().join(CONSOLE_SOCKET)).unwrap());
        let mut events = EventManager::<ConsoleEvents>::new().unwrap();
        events.add_subscriber(console);
        let connect = || UnixStream::connect(directory.path().join(CONSOLE_SOCKET)).unwrap();
        // More than the port holds: the rest is read as the guest reads.
        connect().write_all(&[b'a'; 100]).unwrap();
        let mut input = Vec::new();
        while input.len() < 100 {
            events.run_with_timeout(10_000).unwrap();
            let room = 100 - input.len();
            input.extend(typed(&serial, room).into_iter().filter(|byte| *byte == b'a'));
        }
        // Clients that are connected stay so; no more are accepted.
        let mut clients: Vec<_> = (0..17).map(|_| connect()).collect();
        let last = clients.last_mut().unwrap();
        last.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        while matches!(last.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            events.run_with_timeout(100).unwrap();
        }
        Output::new(&hub).write_all(b"hello").unwrap();
        events.run_with_timeout(10_000).unwrap();
        for client in &mut clients[..16] {
            let mut seen = [0; 5];
            client.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"hello");
        }
    }

    #[test]
    fn an_escape_command_works_though_the_guest_reads_no_input() {
        let (keys, mut typist) = io::pipe().unwrap();
        let exit = Arc::new(ExitSlot::new().unwrap());
        let mut console = ConsoleEvents::new(&Hub::new().unwrap(), serial(false).1);
        console.add_keyboard(Box::new(keys), true, exit.clone()).unwrap();
        let mut events = EventManager::<ConsoleEvents>::new().unwrap();
        events.add_subscriber(console);
        typist.write_all(&[b'z'; 1000]).unwrap();
        typist.write_all(b"\x01x").unwrap();
        while exit.reason().is_none() {
            assert_ne!(events.run_with_timeout(10_000).unwrap(), 0, "the command was not seen");
        }
        assert_eq!(exit.reason(), Some(crate::ExitReason::Stopped));
    }
}
