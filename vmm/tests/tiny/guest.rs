//! Guests in assembly, which rustc assembles into the test program as data.

/// Defines the function `$name`, which returns the machine code of `$body`; no two guests have the same name.
///
/// The code is in Intel syntax, begins in 64-bit mode (see `.code16` and `.code32` for others), and has to work
/// at any address: data is reached with `[rip + label]`. Local labels are numbers from 2 on: 0 and 1 could be
/// taken for binary digits. Each `$operand` is a constant that the code writes as `{operand}`.
///
/// These macros of the assembler are there; they change RAX, RDX and what they name:
///
/// | macro | what it does |
/// | --- | --- |
/// | `put8` | AL to the console |
/// | `put32`, `put64` | EAX or RAX to the console, the lowest byte first |
/// | `say 'x'` | a character to the console |
/// | `send` | ECX bytes from RSI to the console |
/// | `print_pages pages` | so many times 4096 characters `x` to the console; RCX, RSI, RDI, RBP |
/// | `write_port port, value` | a byte to a port |
/// | `power_off` | ends the VM |
/// | `map_gib n, table` | maps GiB `n` onto itself with the page directory `table`; RCX, RDI |
/// | `store offset, value` | 32 bits to RBX + offset |
/// | `map_virtio` | maps the registers of virtio devices; RBX becomes the first device; RCX, RDI |
/// | `accept_version_1` | resets the virtio device at RBX and accepts VERSION_1 and no other feature, as far as
/// FEATURES_OK |
/// | `take_interrupt gsi, handler` | local APIC, I/O APIC and IDT deliver `gsi` to `handler`; RBX becomes the local
/// APIC; RBP |
/// | `end_of_interrupt` | tells the local APIC; RBX |
/// | `start_device` | the same, and sets the device up with queue 0, as far as DRIVER_OK |
/// | `descriptor index, address, length, flags` | writes a descriptor of queue 0 |
/// | `offer` | makes descriptor 0 available and notifies the device at RBX |
/// | `await_used count` | waits until the used index of queue 0 is `count` |
macro_rules! guest {
    ($name:ident, $body:literal $(, $operand:ident = $value:expr)* $(,)?) => {
        core::arch::global_asm!(
            include_str!("macros.s"),
            concat!(
                ".pushsection .guests, \"a\", @progbits\n",
                ".p2align 12\n",
                ".globl tiny_guest_", stringify!($name), "\n",
                "tiny_guest_", stringify!($name), ":\n",
                ".code64",
            ),
            $body,
            concat!(
                ".code64\n",
                ".globl tiny_guest_", stringify!($name), "_end\n",
                "tiny_guest_", stringify!($name), "_end:\n",
                ".popsection",
            ),
            COM1 = const devices::legacy::Serial::PORT,
            POWER = const devices::legacy::PowerRegisters::PORT,
            SOFT_OFF = const $crate::tiny::guest::SOFT_OFF,
            PDPT = const vmm::layout::PAGE_TABLES.0 + 0x1000,
            LOCAL_APIC = const vmm::layout::LOCAL_APIC,
            IO_APIC = const vmm::layout::IO_APIC,
            VIRTIO = const vmm::layout::VIRTIO_MMIO,
            $($operand = const $value,)*
        );

        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("tiny_guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("tiny_guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels are in one section of the program, which nothing writes to, the first before
            // the second.
            unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    };
}

/// What the guest writes to the sleep control register to power off: S5 and the bit that enables it.
pub(crate) const SOFT_OFF: u8 = devices::legacy::S5_SLEEP_TYPE << 2 | 1 << 5;
