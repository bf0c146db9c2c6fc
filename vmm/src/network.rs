//! The host's side of network devices.
//!
//! Nothing has to be cleaned up, however the VM ends: a tap that is made here is removed by the kernel when its
//! descriptors are closed, and passt ends when its socket is.

use std::io;

use devices::virtio::net::{
    Backend, Interface, InterfaceName, MacAddress, Net, NetError, NetSettings, Stream, Tap, TapError,
};
use thiserror::Error;

use crate::config::{NetBackend, NetConfig, PublishConfig};
use crate::helper::Helper;
use crate::passt::{self, Passt, PasstError, PasstSettings};

/// Why a network can't be set up.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The device.
    #[error(transparent)]
    Device(#[from] NetError),
    /// No such interface.
    #[error("there is no bridge {0}: make it with `ip link add {0} type bridge` and `ip link set {0} up`")]
    NoBridge(InterfaceName),
    /// Another kind of interface.
    #[error("{0} is not a bridge: make one with `ip link add NAME type bridge`")]
    NotABridge(InterfaceName),
    /// passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The socket to passt.
    #[error("cannot use the socket to passt")]
    Socket(#[source] io::Error),
    /// Any other error of the host.
    #[error("cannot {doing} {name}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// To which interface.
        name: InterfaceName,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// No random MAC address.
    #[error("cannot choose a MAC address")]
    Random(#[source] io::Error),
}

impl NetworkError {
    /// Whether the cause is the host, not the configuration.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Tap(error) => matches!(
                error,
                TapError::Driver(_)
                    | TapError::DriverPermission(_)
                    | TapError::DriverOpen(_)
                    | TapError::Permission(_)
                    | TapError::MayNotMake
                    | TapError::Host { .. }
            ),
            Self::Passt(error) => error.is_the_hosts(),
            Self::Host { .. } | Self::Socket(_) | Self::Random(_) => true,
            Self::Device(_) | Self::NoBridge(_) | Self::NotABridge(_) => false,
        }
    }

    fn host(doing: &'static str, name: &InterfaceName) -> impl FnOnce(io::Error) -> Self {
        let name = name.clone();
        move |source| Self::Host { doing, name, source }
    }
}

/// A network that is being set up: what its device is made of, and passt if it uses that. The device is made with the
/// VM, for it has threads.
pub struct Network {
    settings: NetSettings,
    backends: Vec<Backend>,
    passt: Option<Passt>,
}

/// Opens the network of `config`, with the ports that are `published` if its backend can do that. Its process gets
/// ready while the VM is built.
///
/// # Errors
///
/// [`NetworkError`] says what is missing, and how to make it.
pub fn open(config: &NetConfig, published: &[PublishConfig]) -> Result<Network, NetworkError> {
    let ((backends, mtu), passt) = match &config.backend {
        NetBackend::Tap(name) => (open_tap(name, config)?, None),
        NetBackend::Bridge(name) => (make_port(name, config)?, None),
        NetBackend::User { reaches_host } => {
            let mtu = config.mtu.unwrap_or(passt::MAX_MTU).min(passt::MAX_MTU);
            let settings =
                PasstSettings { mtu, reaches_host: *reaches_host, addresses: config.addresses, published };
            let (passt, socket) = Passt::start(settings)?;
            let stream = Stream::new(socket).map_err(NetworkError::Socket)?;
            ((vec![Backend::Stream(stream)], Some(mtu)), Some(passt))
        }
    };
    let mac = config.mac.map_or_else(MacAddress::random, Ok).map_err(NetworkError::Random)?;
    tracing::debug!(network = %config, %mac, "a network device");
    Ok(Network { settings: NetSettings { mac, mtu, limits: config.limits }, backends, passt })
}

impl Network {
    /// The number of the process, where there is one.
    pub fn helper(&self) -> Option<u32> {
        self.passt.as_ref().map(Passt::pid)
    }

    /// Makes the device, once the backend is ready. The process is for the event loop, which logs its
    /// messages.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] says why the process can't be used, with its last messages.
    pub fn into_device(self) -> Result<(Net, Option<Helper>), NetworkError> {
        let Self { settings, backends, passt } = self;
        let process = passt.map(Passt::into_ready).transpose()?;
        Ok((Net::new(settings, backends)?, process))
    }
}

/// The backends of a device, and its MTU.
type Opened = (Vec<Backend>, Option<u16>);

fn backends(taps: Vec<Tap>) -> Vec<Backend> {
    taps.into_iter().map(Backend::Tap).collect()
}

fn find(name: &InterfaceName) -> Result<Option<Interface>, NetworkError> {
    Interface::find(name).map_err(NetworkError::host("look for", name))
}

fn open_tap(name: &InterfaceName, config: &NetConfig) -> Result<Opened, NetworkError> {
    let taps = Tap::open(name, config.queues)?;
    let interface = find(name)?.ok_or_else(|| TapError::Missing(name.clone()))?;
    if !interface.is_up().map_err(NetworkError::host("look at", name))? {
        tracing::warn!("tap {name} is down and passes no packets: bring it up with `ip link set {name} up`");
    }
    let mtu = interface.mtu().map_err(NetworkError::host("look at", name))?;
    Ok((backends(taps), config.mtu.or_else(|| u16::try_from(mtu).ok())))
}

/// Makes a tap that is a port of the bridge called `bridge`.
fn make_port(bridge: &InterfaceName, config: &NetConfig) -> Result<Opened, NetworkError> {
    let interface = find(bridge)?.ok_or_else(|| NetworkError::NoBridge(bridge.clone()))?;
    let (name, taps) = Tap::make(config.queues)?;
    let port = find(&name)?.ok_or_else(|| TapError::Missing(name.clone()))?;
    // A port with a smaller MTU would lower that of the bridge.
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => {
            let mtu = interface.mtu().map_err(NetworkError::host("look at", bridge))?;
            u16::try_from(mtu).unwrap_or(devices::virtio::net::MAX_MTU).min(devices::virtio::net::MAX_MTU)
        }
    };
    port.set_mtu(mtu.into()).map_err(NetworkError::host("set the MTU of tap", &name))?;
    interface.add_port(&port).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => NetworkError::NotABridge(bridge.clone()),
        _ => NetworkError::host("add a port to bridge", bridge)(error),
    })?;
    port.bring_up().map_err(NetworkError::host("bring up tap", &name))?;
    if !interface.is_up().map_err(NetworkError::host("look at", bridge))? {
        tracing::warn!(
            "bridge {bridge} is down and passes no packets: bring it up with `ip link set {bridge} up`"
        );
    }
    Ok((backends(taps), Some(mtu)))
}
