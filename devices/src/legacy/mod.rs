//! Devices at I/O ports: what a PC is expected to have, as little of it as unmodified kernels need.

mod cmos;
mod exit_code;
mod i8042;
mod marker;
mod power;
mod pvpanic;
mod reset;
mod serial;
mod stateless;

pub use cmos::Cmos;
pub use exit_code::ExitCode;
pub use i8042::I8042;
pub use marker::{BootMarker, INIT_STARTED};
pub use power::{
    EVENT_GENERATION, EVENT_POWER_BUTTON, GENERATION_NOTIFY, POWER_BUTTON_NOTIFY, PowerEvents,
    PowerRegisters, S5_SLEEP_TYPE, registers,
};
pub use pvpanic::PvPanic;
pub use reset::ResetControl;
pub use serial::{Serial, SerialInput};
