//! The system calls of a running VM, by the kind of its threads.
//!
//! What is opened, made or mapped executable is not among them, nor are signals to other processes. Each rule says what
//! it is for; a rule that no test needs is to be removed, which `tests/allowances` looks for.

use jail::rule;
use jail::seccomp::Argument::{Is, IsThisProcess, Lacks};
use jail::seccomp::Rule;

use crate::snapshot::CLONE_FLAGS;

/// `PROT_EXEC` (mmap(2)).
const EXECUTE: u32 = 4;
/// `F_GETFD` and `F_GETFL` (fcntl(2)).
const GET_FD: u32 = 1;
const GET_FL: u32 = 3;
/// `FIONBIO` (ioctl(2)).
const NON_BLOCKING: u32 = 0x5421;
/// Of ioctl_tty(2): `TCGETS`, `TIOCGPGRP`, `TIOCGWINSZ`.
const GET_TERMINAL: u32 = 0x5401;
const GET_GROUP: u32 = 0x540f;
const GET_WINDOW: u32 = 0x5413;
/// `TUNSETOFFLOAD`, `TUNSETVNETHDRSZ`, `TUNSETIFF` is not among them (linux/if_tun.h).
const SET_OFFLOAD: u32 = 0x4004_54d0;
const SET_CARRIER: u32 = 0x4004_54e2;
const SET_QUEUE: u32 = 0x4004_54d9;
/// Of the KVM API: `KVM_RUN`, `KVM_KVMCLOCK_CTRL`, `KVM_GET_REGS`, `KVM_GET_SREGS`.
const RUN: u32 = 0xae80;
const CLOCK_CONTROL: u32 = 0xaead;
const GET_REGS: u32 = 0x8090_ae81;
const GET_SREGS: u32 = 0x8138_ae83;
/// The same, for debuggers: `KVM_SET_REGS`, `KVM_SET_SREGS`, `KVM_GET_FPU`, `KVM_SET_FPU`, `KVM_GET_MSRS`,
/// `KVM_SET_MSRS`, `KVM_GET_MP_STATE`, `KVM_SET_GUEST_DEBUG`, `KVM_TRANSLATE`.
const SET_REGS: u32 = 0x4090_ae82;
const SET_SREGS: u32 = 0x4138_ae84;
const GET_FPU: u32 = 0x81a0_ae8c;
const SET_FPU: u32 = 0x41a0_ae8d;
const GET_MSRS: u32 = 0xc008_ae88;
const SET_MSRS: u32 = 0x4008_ae89;
const GET_MP_STATE: u32 = 0x8004_ae98;
const SET_GUEST_DEBUG: u32 = 0x4048_ae9b;
const TRANSLATE: u32 = 0xc018_ae85;
/// The same, for saving a VM: `KVM_GET_LAPIC`, `KVM_GET_XSAVE`, `KVM_GET_XSAVE2`, `KVM_GET_XCRS`, `KVM_GET_DEBUGREGS`,
/// `KVM_GET_CPUID2`, `KVM_GET_VCPU_EVENTS`, `KVM_GET_TSC_KHZ`, `KVM_GET_IRQCHIP`, `KVM_GET_CLOCK`.
const GET_LAPIC: u32 = 0x8400_ae8e;
const GET_XSAVE: u32 = 0x9000_aea4;
const GET_XSAVE2: u32 = 0x9000_aecf;
const GET_XCRS: u32 = 0x8188_aea6;
const GET_DEBUGREGS: u32 = 0x8080_aea1;
const GET_CPUID: u32 = 0xc008_ae91;
const GET_EVENTS: u32 = 0x8040_ae9f;
const GET_TSC_KHZ: u32 = 0xaea3;
const GET_IRQCHIP: u32 = 0xc208_ae62;
const GET_CLOCK: u32 = 0x8030_ae7c;
/// `IORING_REGISTER_ENABLE_RINGS` (io_uring_register(2)).
const ENABLE_RINGS: u32 = 12;

/// What every thread does.
pub const COMMON: &[Rule] = &[
    rule!(futex: "locks, and waiting for another thread"),
    rule!(read: "eventfds and timers"),
    rule!(write: "eventfds, log lines, the report of a violation"),
    rule!(close: "what is not used any more"),
    rule!(brk: "malloc"),
    rule!(mmap, [Lacks(2, EXECUTE)]: "malloc"),
    rule!(mprotect, [Lacks(2, EXECUTE)]: "malloc, for the memory of a thread"),
    rule!(mremap: "realloc of much"),
    rule!(munmap: "free, and a thread's end"),
    rule!(madvise: "free, and a thread's end"),
    rule!(clock_gettime: "a host whose vDSO has no clock"),
    rule!(sched_yield: "channels whose other end is at work"),
    rule!(restart_syscall: "a wait that SIGSTOP interrupted"),
    rule!(rt_sigreturn: "the end of a signal handler"),
    rule!(rt_sigprocmask: "signals to threads"),
    rule!(sigaltstack: "a thread's end"),
    rule!(getpid: "signals to threads"),
    rule!(gettid: "signals to threads"),
    rule!(tgkill, [IsThisProcess(0)]: "kicks vCPUs, and abort"),
    rule!(exit: "a thread's end"),
    rule!(exit_group: "the process's end"),
];

/// What every thread does where mvm is built with debug assertions.
pub const DEBUG: &[Rule] = &[rule!(fcntl, [Is(1, GET_FD)]: "whether what is closed was open")];

/// A vCPU's thread. It enters the guest, and does what the guest's accesses to devices ask for.
pub const VCPU: &[Rule] = &[
    rule!(ioctl, [Is(1, RUN)]: "enters the guest"),
    rule!(ioctl, [Is(1, CLOCK_CONTROL)]: "tells the guest that it was paused"),
    rule!(ioctl, [Is(1, GET_REGS)]: "says where a guest crashed"),
    rule!(ioctl, [Is(1, GET_SREGS)]: "says where a guest crashed"),
    rule!(ioctl, [Is(1, GET_MP_STATE)]: "saves the VM, and tells a debugger which vCPUs run"),
    rule!(ioctl, [Is(1, GET_MSRS)]: "saves the VM, and reads registers for a debugger"),
    rule!(ioctl, [Is(1, GET_XSAVE)]: "saves the VM, where the host is older than Linux 5.17"),
    rule!(ioctl, [Is(1, GET_XSAVE2)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_XCRS)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_DEBUGREGS)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_LAPIC)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_CPUID)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_EVENTS)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_TSC_KHZ)]: "saves the VM"),
    rule!(timerfd_settime: "the timers of devices that work on a vCPU's thread"),
    rule!(shutdown: "gives up a back end that its driver cannot start or stop"),
    rule!(epoll_ctl: "the same: its queues are watched in its place"),
    rule!(getrandom: "the same: a hash table of its requests"),
];

/// The same of a VM with a debugger.
pub const VCPU_DEBUGGED: &[Rule] = &[
    rule!(ioctl, [Is(1, SET_REGS)]: "sets registers"),
    rule!(ioctl, [Is(1, SET_SREGS)]: "sets system registers"),
    rule!(ioctl, [Is(1, GET_FPU)]: "reads registers"),
    rule!(ioctl, [Is(1, SET_FPU)]: "sets registers"),
    rule!(ioctl, [Is(1, SET_MSRS)]: "sets registers"),
    rule!(ioctl, [Is(1, SET_GUEST_DEBUG)]: "sets breakpoints and steps"),
    rule!(ioctl, [Is(1, TRANSLATE)]: "finds the memory at an address of the guest"),
];

/// The event loop: console, control socket, balloon, random numbers, serial port.
pub const MAIN: &[Rule] = &[
    rule!(epoll_wait: "waits for all of them"),
    rule!(epoll_ctl: "watches clients"),
    rule!(accept4: "takes clients"),
    rule!(recvfrom: "reads from clients"),
    rule!(recvmsg: "reads from clients, with files"),
    rule!(sendto: "writes to clients, and tells the keeper of the end"),
    rule!(sendmsg: "writes to clients"),
    rule!(shutdown: "ends clients"),
    rule!(ppoll: "waits at the VM's end for clients and processes"),
    rule!(ioctl, [Is(1, NON_BLOCKING)]: "clients"),
    rule!(ioctl, [Is(1, GET_WINDOW)]: "the size of the user's window"),
    rule!(ioctl, [Is(1, GET_TERMINAL)]: "whether it is a terminal"),
    rule!(ioctl, [Is(1, GET_GROUP)]: "whose terminal it is"),
    rule!(getpgrp: "whether that is this process's"),
    rule!(timerfd_settime: "timers of devices and clients"),
    rule!(getrandom: "random numbers of the guest, and hash tables"),
    rule!(pread64: "what the process uses, from a file of /proc that is open"),
    rule!(lseek: "the console's log"),
    rule!(fstat: "the length of a file that is open"),
    rule!(wait4: "the end of a process that serves a device"),
];

/// A disk's thread.
pub const BLOCK: &[Rule] = &[
    rule!(ppoll: "waits for requests"),
    rule!(io_uring_enter: "requests by the ring, which is limited to them"),
    rule!(io_uring_register, [Is(1, ENABLE_RINGS)]: "the ring's beginning"),
    rule!(preadv: "requests without a ring"),
    rule!(pwritev: "requests without a ring"),
    rule!(fdatasync: "flushes"),
    rule!(fallocate: "discards, and zeros"),
    rule!(timerfd_settime: "limits of the rate"),
    rule!(clock_nanosleep: "waits where the host is short of resources"),
];

/// A network's thread.
pub const NET: &[Rule] = &[
    rule!(epoll_wait: "waits for packets"),
    rule!(epoll_ctl: "waits for room"),
    rule!(readv: "packets to the guest"),
    rule!(writev: "packets of the guest"),
    rule!(recvfrom: "packets to the guest, by a socket"),
    rule!(sendmsg: "packets of the guest, by a socket"),
    rule!(ioctl, [Is(1, SET_OFFLOAD)]: "what the driver has agreed to"),
    rule!(ioctl, [Is(1, SET_CARRIER)]: "whether there is a driver"),
    rule!(ioctl, [Is(1, SET_QUEUE)]: "how many queues the driver uses"),
    rule!(timerfd_settime: "limits of the rate"),
];

/// The sockets' thread.
pub const VSOCK: &[Rule] = &[
    rule!(epoll_pwait: "waits for sockets"),
    rule!(epoll_ctl: "watches sockets"),
    rule!(ppoll: "waits for messages"),
    rule!(accept4: "takes connections of the host"),
    rule!(recvfrom: "what the host sends"),
    rule!(readv: "what the host sends"),
    rule!(sendmsg: "what the guest sends"),
    rule!(sendto: "asks for a connection"),
    rule!(recvmsg: "gets a connection, by its descriptor"),
    rule!(shutdown: "ends a direction"),
    rule!(getrandom: "hash tables"),
];

/// The thread of persistent memory.
pub const PMEM: &[Rule] = &[rule!(ppoll: "waits for requests"), rule!(fdatasync: "flushes")];

/// The thread that talks to a process which serves a device.
pub const VHOST_USER: &[Rule] = &[
    rule!(ppoll: "waits for messages"),
    rule!(sendmsg: "requests, with descriptors of memory and queues"),
    rule!(recvmsg: "answers"),
];

/// The thread that writes the console's output.
pub const CONSOLE: &[Rule] =
    &[rule!(ppoll: "waits for room"), rule!(fstat: "which file it is that has grown")];

/// The thread that writes log lines.
pub const LOG: &[Rule] = &[rule!(ppoll: "waits for room")];

/// The thread that pauses the VM and changes disks.
pub const BACKGROUND: &[Rule] = &[
    rule!(ppoll: "waits for devices, and for who copies disks"),
    rule!(sendto: "tells the keeper that the power button was pressed, and who copies disks that the VM stands still"),
    rule!(lseek: "the size of a disk"),
    rule!(ioctl, [Is(1, GET_IRQCHIP)]: "saves the VM"),
    rule!(ioctl, [Is(1, GET_CLOCK)]: "saves the VM"),
    rule!(ftruncate: "saves the VM's memory"),
    rule!(pwrite64: "saves the VM's memory"),
    rule!(clone, [Is(0, CLONE_FLAGS)]: "makes the process that writes the VM's memory"),
    rule!(close_range: "that process needs no other file"),
    rule!(getppid: "that process ends with the VM"),
    rule!(waitid: "the end of that process"),
    rule!(timerfd_settime: "timers of devices"),
    rule!(pread64: "what the process uses, from a file of /proc that is open"),
    rule!(shutdown: "gives up a back end that cannot be paused or resumed"),
    rule!(epoll_ctl: "the same: its queues are watched in its place"),
    rule!(getrandom: "the same: a hash table of its requests"),
];

/// The thread that ends the VM.
pub const SUPERVISOR: &[Rule] = &[
    rule!(ppoll: "waits for requests"),
    rule!(timerfd_settime: "the power button"),
    rule!(sendto: "tells the keeper of the end"),
];

/// The thread that hears the process which keeps the VM.
pub const KEEPER: &[Rule] = &[rule!(recvmsg: "messages, with files")];

/// The thread that puts disks into slots and takes them out.
pub const SLOTS: &[Rule] = &[
    rule!(sendto: "answers"),
    rule!(fstat: "what a file is"),
    rule!(fcntl, [Is(1, GET_FL)]: "how a file is open"),
    rule!(lseek: "how long a file is"),
    rule!(pread64: "the format of a file"),
    rule!(ppoll: "waits for the device"),
];

/// The debugger's thread.
pub const GDB: &[Rule] = &[
    rule!(accept4: "takes a debugger"),
    rule!(ppoll: "waits for the debugger and vCPUs"),
    rule!(recvfrom: "reads from the debugger"),
    rule!(sendto: "writes to the debugger"),
    rule!(setsockopt: "small packets at once"),
    rule!(shutdown: "ends the connection"),
    rule!(ioctl, [Is(1, NON_BLOCKING)]: "the connection"),
    rule!(getrandom: "hash tables"),
];

/// The tables by the names of the threads; a vCPU's has its number behind it.
pub const KINDS: &[(&str, &[Rule])] = &[
    ("main", MAIN),
    ("vcpu", VCPU),
    ("block", BLOCK),
    ("net", NET),
    ("vsock", VSOCK),
    ("pmem", PMEM),
    ("vhost-user", VHOST_USER),
    ("console", CONSOLE),
    ("log", LOG),
    ("background", BACKGROUND),
    ("supervisor", SUPERVISOR),
    ("keeper", KEEPER),
    ("slots", SLOTS),
    ("gdb", GDB),
];
