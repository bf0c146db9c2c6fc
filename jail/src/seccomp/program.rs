//! The programs of filters (seccomp(2), and "Linux Socket Filtering" in the kernel's documentation).
//!
//! The kernel translates a program when it is installed, and then tries it for every number of a system call, so that
//! those that are always allowed cost nothing later. Each thread of a VM installs one when it starts: what a program
//! costs is its length, and the steps to its end. Calls are therefore found by a search in a tree, and have few
//! instructions.

use libc::sock_filter;

use super::{Argument, Rule};

/// Where `struct seccomp_data` has the number of the call, the architecture, and the first of the arguments of 8 bytes.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// Instructions: `BPF_LD | BPF_W | BPF_ABS`, `BPF_ALU | BPF_AND`, `BPF_JMP` with `BPF_JA`, `BPF_JEQ` and `BPF_JGE`,
/// `BPF_RET`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// How many calls are looked at in turn once the search has come so far.
const IN_TURN: usize = 3;
/// The most instructions (`BPF_MAXINSNS`).
const MOST: usize = 4096;
/// System calls have so many arguments.
const MOST_ARGUMENTS: u8 = 6;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    /// The thread gets SIGSYS.
    Trap,
    /// The call fails with this error.
    Fail(u16),
    KillProcess,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Trap => 0x0003_0000,
            Self::Fail(error) => 0x0005_0000 | u32::from(error),
            Self::KillProcess => 0x8000_0000,
        }
    }
}

/// An instruction that is jumped to: so many stand between it and the program's end, with itself.
#[derive(Clone, Copy)]
struct Place(usize);

/// A program as it is made, from its end to its beginning: jumps lead forwards alone.
#[derive(Default)]
struct Reversed(Vec<sock_filter>);

impl Reversed {
    fn add(&mut self, code: u16, k: u32) -> Place {
        self.push(sock_filter { code, jt: 0, jf: 0, k })
    }

    fn push(&mut self, instruction: sock_filter) -> Place {
        self.0.push(instruction);
        Place(self.0.len())
    }

    /// Goes to `yes` or `no`, as what was loaded is compared with `k`.
    fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let (yes, no) = (self.near(yes), self.near(no));
        // The other one may have put an instruction in between.
        let (jt, jf) = (self.distance(yes), self.distance(no));
        self.push(sock_filter { code, jt, jf, k })
    }

    /// A place from which `place` is reached, and which the next two instructions can jump to.
    fn near(&mut self, place: Place) -> Place {
        let distance = self.0.len() - place.0;
        if distance < usize::from(u8::MAX) {
            return place;
        }
        // A program is refused before it is so long that this does not fit.
        self.add(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    fn distance(&self, place: Place) -> u8 {
        u8::try_from(self.0.len() - place.0).unwrap_or(u8::MAX)
    }
}

/// Makes the program by which the calls of `rules` get the action `matching`, others `other`. `process` is the ID of
/// the process that it is for. Calls of another architecture kill the process.
///
/// # Errors
///
/// What is wrong with the rules.
pub(super) fn make<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    process: u32,
    (matching, other): (Action, Action),
) -> Result<Vec<sock_filter>, &'static str> {
    let mut rules: Vec<_> = rules.into_iter().collect();
    rules.sort_by_key(|rule| rule.call);
    let mut program = Reversed::default();
    let kill = program.add(RETURN, Action::KillProcess.value());
    let other = program.add(RETURN, other.value());
    let matching = program.add(RETURN, matching.value());
    let mut calls = Vec::new();
    for rules in rules.chunk_by(|one, next| one.call == next.call) {
        let number = rules.first().and_then(|rule| u32::try_from(rule.call).ok());
        let number = number.ok_or("a call has no number")?;
        calls.push((number, arguments(&mut program, rules, process, (matching, other))?));
    }
    let found = search(&mut program, &calls, other);
    // The load goes on to the instruction behind it, which the search begins with unless there is no call.
    let distance = program.0.len() - found.0;
    if distance > 0 {
        program.add(JUMP, u32::try_from(distance).unwrap_or(u32::MAX));
    }
    let number = program.add(LOAD, NUMBER);
    program.branch(JUMP_IF_EQUAL, X86_64, number, kill);
    program.add(LOAD, ARCHITECTURE);
    let Reversed(mut instructions) = program;
    if instructions.len() > MOST {
        return Err("it is too long");
    }
    instructions.reverse();
    Ok(instructions)
}

/// Finds the place of the call that was loaded. `calls` are in their order.
fn search(program: &mut Reversed, calls: &[(u32, Place)], other: Place) -> Place {
    if calls.len() <= IN_TURN {
        return calls
            .iter()
            .rev()
            .fold(other, |next, (call, place)| program.branch(JUMP_IF_EQUAL, *call, *place, next));
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let first = high.first().map_or(u32::MAX, |(call, _)| *call);
    let high = search(program, high, other);
    let low = search(program, low, other);
    program.branch(JUMP_IF_AT_LEAST, first, high, low)
}

/// Looks at the arguments of a call by its `rules`, of which one has to hold.
fn arguments(
    program: &mut Reversed,
    rules: &[&Rule],
    process: u32,
    (matching, other): (Place, Place),
) -> Result<Place, &'static str> {
    if rules.iter().any(|rule| rule.arguments.is_empty()) {
        return Ok(matching);
    }
    let mut next = other;
    // An argument that several rules compare is loaded once.
    for together in
        rules.chunk_by(|one, next| compared(one).is_some() && compared(one) == compared(next)).rev()
    {
        for rule in together.iter().rev() {
            let mut place = matching;
            for argument in rule.arguments.iter().rev() {
                let (index, mask, value) = condition(*argument, process);
                if index >= MOST_ARGUMENTS {
                    return Err("a call has six arguments");
                }
                place = program.branch(JUMP_IF_EQUAL, value, place, next);
                if compared(rule).is_some() {
                    continue;
                }
                if let Some(mask) = mask {
                    program.add(AND, mask);
                }
                place = program.add(LOAD, argument_at(index));
            }
            next = place;
        }
        if let Some(index) = together.first().and_then(|rule| compared(rule)) {
            next = program.add(LOAD, argument_at(index));
        }
    }
    Ok(next)
}

/// Where the lower half of an argument is.
fn argument_at(index: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(index)
}

/// The argument of a rule that does nothing but compare one.
fn compared(rule: &Rule) -> Option<u8> {
    match rule.arguments {
        [Argument::Is(index, _) | Argument::IsThisProcess(index)] => Some(*index),
        _ => None,
    }
}

/// The argument, the bits of it that are looked at, if not all of the lower 32, and what they are.
fn condition(argument: Argument, process: u32) -> (u8, Option<u32>, u32) {
    match argument {
        Argument::Is(index, value) => (index, None, value),
        Argument::Lacks(index, bits) => (index, Some(bits), 0),
        Argument::Has(index, bits) => (index, Some(bits), bits),
        Argument::IsThisProcess(index) => (index, None, process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule;

    const PROCESS: u32 = 1234;
    const ACTIONS: (Action, Action) = (Action::Allow, Action::Trap);

    fn lower(value: u64) -> u32 {
        u32::try_from(value & u64::from(u32::MAX)).unwrap()
    }

    /// What the kernel makes of a call; the number of instructions that it takes.
    fn run(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> (u32, usize) {
        let mut data = [call, architecture, 0, 0].to_vec();
        data.extend(arguments.iter().flat_map(|value| [lower(*value), lower(*value >> 32)]));
        let (mut at, mut loaded) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |is: bool| usize::from(if is { jt } else { jf });
            match code {
                LOAD => loaded = data[k as usize / 4],
                AND => loaded &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += branch(loaded == k),
                JUMP_IF_AT_LEAST => at += branch(loaded >= k),
                RETURN => return (k, steps),
                _ => panic!("{code:#x}"),
            }
        }
        unreachable!("jumps lead forwards")
    }

    /// What is to become of it.
    fn expected(rules: &[Rule], call: u32, arguments: [u64; 6]) -> Action {
        let holds = |argument: &Argument| {
            let of = |index: u8| lower(arguments[usize::from(index)]);
            match *argument {
                Argument::Is(index, value) => of(index) == value,
                Argument::Lacks(index, bits) => of(index) & bits == 0,
                Argument::Has(index, bits) => of(index) & bits == bits,
                Argument::IsThisProcess(index) => of(index) == PROCESS,
            }
        };
        let allowed = |rule: &Rule| rule.call == i64::from(call) && rule.arguments.iter().all(holds);
        if rules.iter().any(allowed) { ACTIONS.0 } else { ACTIONS.1 }
    }

    fn check(rules: &[Rule]) {
        let program = make(rules, PROCESS, ACTIONS).unwrap();
        let values = [0, 1, 2, 3, 4, 5, 6, 7, 0xae80, PROCESS, u32::MAX];
        let high = [0, 1 << 32, u64::MAX << 32];
        let numbers = rules.iter().map(|rule| u32::try_from(rule.call).unwrap());
        let numbers: Vec<_> =
            numbers.flat_map(|call| [call.wrapping_sub(1), call, call + 1, call | 1 << 30]).collect();
        for call in (0..600).chain(numbers).chain([u32::MAX]) {
            for (value, other) in values.iter().flat_map(|value| [(*value, 0), (*value, 4)]) {
                for value in high.map(|high| u64::from(value) | high) {
                    for arguments in [[other, value, other, 0, 0, 0], [value, other, value, 0, 0, 0]] {
                        let (made, _) = run(&program, X86_64, call, arguments);
                        assert_eq!(made, expected(rules, call, arguments).value(), "{call} {arguments:x?}");
                    }
                }
            }
            let (made, _) = run(&program, 0x4000_0003, call, [0; 6]);
            assert_eq!(made, Action::KillProcess.value(), "{call} of another architecture");
        }
    }

    const RULES: &[Rule] = &[
        rule!(write: "always"),
        rule!(ioctl, [Argument::Is(1, 0xae80)]: "one"),
        rule!(ioctl, [Argument::Is(1, 5)]: "another"),
        rule!(ioctl, [Argument::Is(0, 4), Argument::Has(1, 3)]: "two conditions"),
        rule!(ioctl, [Argument::Is(2, 7)]: "of another argument"),
        rule!(mmap, [Argument::Lacks(2, 4)]: "no bit"),
        rule!(mmap, [Argument::Has(0, 6)]: "all bits"),
        rule!(tgkill, [Argument::IsThisProcess(0)]: "this process"),
        rule!(fcntl, [Argument::Is(1, 1)]: "a condition"),
        rule!(fcntl: "none"),
        rule!(read: "always"),
    ];

    #[test]
    fn a_program_does_what_the_rules_say() {
        for count in 0..=RULES.len() {
            check(&RULES[..count]);
        }
    }

    fn numbered(count: i64) -> Vec<Rule> {
        const CONDITION: &[Argument] = &[Argument::Is(1, 5), Argument::Has(0, 3)];
        let arguments = |call| if call % 2 == 0 { CONDITION } else { &[] };
        (0..count).map(|call| Rule { name: "x", call, arguments: arguments(call), why: "" }).collect()
    }

    #[test]
    fn jumps_may_be_longer_than_an_instruction_can_say() {
        check(&numbered(400));
        assert_eq!(make(&numbered(4000), PROCESS, ACTIONS).err(), Some("it is too long"));
    }

    #[test]
    fn calls_are_found_in_few_steps() {
        let rules: Vec<_> = numbered(100).into_iter().filter(|rule| rule.arguments.is_empty()).collect();
        let program = make(&rules, PROCESS, ACTIONS).unwrap();
        assert!(program.len() < 80, "{} instructions for {} calls", program.len(), rules.len());
        let steps = (0..600).map(|call| run(&program, X86_64, call, [0; 6]).1).max();
        assert!(steps < Some(14), "{steps:?}");
    }

    #[test]
    fn a_seventh_argument_is_refused() {
        const SEVENTH: &[Rule] = &[rule!(ioctl, [Argument::Is(6, 1)]: "there is none")];
        assert_eq!(make(SEVENTH, PROCESS, ACTIONS).err(), Some("a call has six arguments"));
    }
}
