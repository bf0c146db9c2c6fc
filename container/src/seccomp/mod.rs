//! The filter of containers' system calls, which is docker's default: calls that most programs never make, or that a
//! capability is needed for, fail with EPERM.
//!
//! It is compiled here, so that the agent has to load programs only. A container cannot make a socket of vsock, by
//! which it would reach the agent and the host.

mod table;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use self::table::{ALLOWED, WITH_CAPABILITY};

/// Flags of clone(2) that make namespaces, which need CAP_SYS_ADMIN.
const NAMESPACES: u64 = 0x7e02_0000;
/// What personality(2) may be asked for: Linux, 32 bits, without randomization, all of these, and what there is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The last system call of Linux that the filters know: later ones do not exist for containers, so that programs which
/// try them fall back.
const LAST: u32 = 462;

/// The programs for a container that has the capabilities for which `has` is true, in the order in which they are
/// loaded.
///
/// # Errors
///
/// The table has an error, which tests would have found.
pub fn programs(has: impl Fn(&str) -> bool) -> Result<Vec<Vec<u8>>, BackendError> {
    let mut rules = BTreeMap::new();
    let mut allow = |calls: &[table::Call]| {
        for (_, number) in calls {
            rules.insert(*number, Vec::new());
        }
    };
    allow(ALLOWED);
    for (capability, calls) in WITH_CAPABILITY {
        if has(capability) {
            allow(calls);
        }
    }
    let is_admin = has("SYS_ADMIN");
    let condition = |index, operator, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let vsock = u64::from(libc::AF_VSOCK.cast_unsigned());
    rules.insert(libc::SYS_socket, vec![condition(0, SeccompCmpOp::Ne, vsock)?]);
    let personalities = PERSONALITIES.map(|value| condition(0, SeccompCmpOp::Eq, value));
    rules.insert(libc::SYS_personality, personalities.into_iter().collect::<Result<_, _>>()?);
    let clone =
        if is_admin { Vec::new() } else { vec![condition(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?] };
    rules.insert(libc::SYS_clone, clone);
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)?;
    let program: BpfProgram = filter.try_into()?;
    let instructions = program.iter().flat_map(|instruction| {
        let [c0, c1] = instruction.code.to_le_bytes();
        let [k0, k1, k2, k3] = instruction.k.to_le_bytes();
        [c0, c1, instruction.jt, instruction.jf, k0, k1, k2, k3]
    });
    Ok(vec![instructions.collect(), unknown(!is_admin)])
}

/// A program by which calls later than [`LAST`], and clone3, whose flags a filter can't see, fail with ENOSYS: programs
/// then use what there was before. Linux takes the most severe of all filters' answers, of which an error is more
/// severe than what is allowed, and the last loaded one of two errors.
fn unknown(without_clone3: bool) -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ENOSYS: u32 = 0x0005_0000 | 38;
    let clone3 = if without_clone3 { 435 } else { u32::MAX };
    let program: [(u16, u8, u8, u32); 6] = [
        // The number is the first field of `struct seccomp_data`.
        (LOAD, 0, 0, 0),
        (JUMP_EQUAL, 3, 0, clone3),
        // The numbers of x32 are larger than all; the first filter refuses them.
        (JUMP_GREATER, 1, 0, 0x3fff_ffff),
        (JUMP_GREATER, 1, 0, LAST),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ENOSYS),
    ];
    let bytes = program.iter().flat_map(|&(code, jt, jf, k)| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_le_bytes(), k.to_le_bytes());
        [c0, c1, jt, jf, k0, k1, k2, k3]
    });
    bytes.collect()
}

#[cfg(test)]
mod tests;
