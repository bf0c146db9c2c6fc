//! What is particular to a processor architecture.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as current;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("mvm runs on x86_64 only");
