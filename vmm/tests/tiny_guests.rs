//! Guests of a few instructions, booted through the public API alone: each test writes a kernel that exercises
//! one behaviour of the machine and says on its serial port what it found.
//!
//! They need `/dev/kvm`; without it each test prints why it is skipped.
#![cfg(target_arch = "x86_64")]

#[cfg(test)]
mod tiny;
