//! Where the lanes of a warp go: branches, calls, convergence barriers, votes of a block.
//!
//! Lanes that are at one instruction are a group, and groups of a warp take turns: the one that is behind the others goes
//! on. So lanes that part meet again where the compiler's barriers say, or where they happen to be at one place.

use crate::code::Code;
use crate::instruction::Instruction;
use crate::integers::where_true;
use crate::operand::Operand;
use crate::warp::{Group, LANES, Setting, Waits, Warp};

/// All warps learn what was voted at the barrier.
pub fn vote(warps: &mut [Warp]) {
    let any = warps.iter().any(|warp| warp.votes);
    for warp in warps.iter_mut() {
        (warp.votes, warp.voted) = (false, any);
    }
}

/// The group that is to go on: the one that is behind the others.
pub fn next(groups: &[Group]) -> Option<usize> {
    match groups {
        [one] => one.waits.is_none().then_some(0),
        _ => {
            let ready = (0..groups.len()).filter(|&i| groups[i].waits.is_none());
            ready.min_by_key(|&i| groups[i].at)
        }
    }
}

/// Groups that are at one place and wait for nothing are one.
pub fn merge(groups: &mut Vec<Group>) {
    let mut merged: Vec<Group> = Vec::with_capacity(groups.len());
    for group in groups.drain(..) {
        match merged.iter_mut().find(|known| known.at == group.at && known.waits == group.waits) {
            Some(known) => known.lanes |= group.lanes,
            None => merged.push(group),
        }
    }
    *groups = merged;
}

/// Lets go those whose wait is over: true if there are any.
pub fn settle(warp: &mut Warp) -> bool {
    let mut any = false;
    for barrier in 0..16 {
        any |= release(warp, barrier);
    }
    if !any {
        for group in warp.groups.iter_mut().filter(|group| group.waits == Some(Waits::Warp)) {
            (group.waits, any) = (None, true);
        }
    }
    merge(&mut warp.groups);
    any
}

/// Lets go the lanes at a convergence barrier that wait for nobody else: true if there are any. Lanes that began it at
/// different times wait only for those that began it together with them.
fn release(warp: &mut Warp, barrier: u8) -> bool {
    let wait = Some(Waits::Convergence(barrier));
    let arrived = warp.groups.iter().filter(|group| group.waits == wait).fold(0, |all, g| all | g.lanes);
    let (mut left, mut any) = (arrived, false);
    while left != 0 {
        let (of, then) = warp.convergence[usize::from(barrier)][left.trailing_zeros() as usize];
        let together = of & arrived | 1 << left.trailing_zeros();
        left &= !together;
        if of & warp.live & !arrived == 0 {
            let waiting = warp.groups.iter_mut().filter(|group| group.waits == wait);
            waiting.for_each(|group| group.lanes &= !together);
            warp.groups.push(Group { at: then, lanes: together, waits: None });
            any = true;
        }
    }
    if any {
        warp.groups.retain(|group| group.lanes != 0);
    }
    any
}

/// Branches, and what lanes wait for.
pub fn control(
    warp: &mut Warp,
    setting: &Setting,
    instruction: &Instruction,
    number: usize,
    lanes: u32,
) -> Result<(), String> {
    let all = warp.groups[number].lanes;
    let label = instruction.from.iter().find_map(|operand| match operand {
        Operand::Label(address) => Some(*address),
        _ => None,
    });
    let barrier = instruction.from.iter().find_map(|operand| match operand {
        Operand::Barrier(number) => Some(*number),
        _ => None,
    });
    let no = |what: &str| format!("{what}: {}", instruction.text);
    match instruction.code {
        Code::Branch | Code::Call => {
            // `BRA P1, label`: one more condition.
            let lanes = instruction.conditions.iter().fold(lanes, |lanes, c| lanes & warp.condition(*c));
            go(warp, number, lanes, label.ok_or_else(|| no("where to"))?);
        }
        Code::BranchDivergent | Code::Fence | Code::Nothing => {}
        Code::Return => {
            let to = warp.integer(setting, instruction.from.first().ok_or_else(|| no("where to"))?);
            // Lanes that called from different places may have met in the function.
            let mut left = lanes;
            while left != 0 {
                let there = to[left.trailing_zeros() as usize];
                let same = left & where_true(|lane| to[lane] == there);
                go(warp, number, same, there);
                left &= !same;
            }
        }
        Code::Exit => {
            warp.live &= !lanes;
            warp.groups[number].lanes &= !lanes;
            if warp.groups[number].lanes == 0 {
                warp.groups.remove(number);
            }
            settle(warp);
            if warp.groups.is_empty() {
                warp.groups.push(Group { at: 0, lanes: 0, waits: None });
            }
        }
        Code::Begin => {
            let barrier = barrier.ok_or_else(|| no("which barrier"))?;
            let begun = (all, label.ok_or_else(|| no("where to"))?);
            let lanes = (0..LANES).filter(|lane| all >> lane & 1 == 1);
            lanes.for_each(|lane| warp.convergence[usize::from(barrier)][lane] = begun);
        }
        Code::Join if lanes == all => {
            let barrier = barrier.ok_or_else(|| no("which barrier"))?;
            warp.groups[number].waits = Some(Waits::Convergence(barrier));
            release(warp, barrier);
        }
        Code::Join => {}
        Code::Leave => {
            let barrier = barrier.ok_or_else(|| no("which barrier"))?;
            let others = warp.convergence[usize::from(barrier)].iter_mut();
            others.filter(|(of, _)| of & lanes != 0).for_each(|(of, _)| *of &= !lanes);
            release(warp, barrier);
        }
        Code::Together if all != warp.live => warp.groups[number].waits = Some(Waits::Warp),
        Code::Together => {}
        Code::Barrier => warp.groups[number].waits = Some(Waits::Block),
        Code::BarrierVote => {
            let votes = instruction.conditions.first().ok_or_else(|| no("which vote"))?;
            warp.votes |= warp.condition(*votes) & all != 0;
            warp.groups[number].waits = Some(Waits::Block);
        }
        Code::VoteResult => {
            let flag = instruction.flags.first().ok_or_else(|| no("whose result"))?;
            warp.set_condition(*flag, if warp.voted { u32::MAX } else { 0 }, lanes);
        }
        _ => return Err(no("unknown instruction")),
    }
    Ok(())
}

/// Some lanes of a group go elsewhere.
fn go(warp: &mut Warp, number: usize, lanes: u32, to: u32) {
    let group = &mut warp.groups[number];
    if lanes == group.lanes {
        group.at = to;
    } else if lanes != 0 {
        group.lanes &= !lanes;
        warp.groups.push(Group { at: to, lanes, waits: None });
    }
}
