//! Copies of VMs of `mvm boot`.

use instance::{Running, VmName};
use vmm::VmConfig;

use super::{ForkCommand, Refusal};
use crate::background::{Report, Reporter};
use crate::snapshot::Live;
use crate::{boot, chain, exit_code};

/// A VM as it was, and what copies of it have.
pub struct Original {
    live: Live,
    config: VmConfig,
    removes: bool,
}

impl Original {
    /// Saves `vm`, for what `command` asks.
    pub fn of(vm: &Running, command: &ForkCommand) -> Result<Self, Refusal> {
        let publish =
            ::container::publish_ports(&command.publish).map_err(|error| Refusal::usage(chain(&error)))?;
        let place = instance::make_data_directory();
        let place = place
            .map_err(|error| Refusal::failed(format!("cannot make a directory for its memory: {error}")))?;
        let live = Live::of(vm, &place).map_err(Refusal::failed)?;
        let config = VmConfig { publish, ..live.config().clone() };
        if !config.publish.is_empty() && !config.nets.iter().any(vmm::NetConfig::is_user) {
            return Err(Refusal::failed(
                "it has no network of `--net user`, in which ports can be published",
            ));
        }
        let config = boot::confined(config, None).map_err(Refusal::usage)?;
        Ok(Self { live, config, removes: command.rm })
    }
}

impl super::Original for Original {
    fn run(self, name: Option<VmName>, is_only: bool, mut reporter: Reporter) -> u8 {
        let Self { live, config, removes } = self;
        let opened = live.opened(is_only);
        drop(live);
        match opened {
            Ok(opened) => boot::go_on(config, name, opened, removes, reporter),
            Err(error) => {
                let (code, message) = (exit_code::HOST, format!("cannot copy a descriptor: {error}"));
                reporter.report(&Report::Failed { code, message });
                code
            }
        }
    }
}
