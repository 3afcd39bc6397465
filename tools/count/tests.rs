//! Single instructions, known conflicts, and short programs whose count is known by hand.

use crate::block::{Block, Done, Last, Run};
use crate::check::Bytes;
use crate::conflicts::{self, Conflict};
use crate::instruction::{Control, Instruction};
use crate::integers::{permute, shift, table};
use crate::latency::Latency;
use crate::listing::Listing;
use crate::memory::{self, Cost, Touched};
use crate::model::Count;
use crate::operand::{half_bits, half_value};
use crate::pipe::Pipe;
use crate::warp::{LANES, Setting};

/// Bits of an encoding that stall one cycle and wait for nothing; that also write scoreboard 0; that wait for it.
const PLAIN: &str = "0x000fe20000000000";
const WRITES: &str = "0x000e220000000000";
const WAITS: &str = "0x001fe20000000000";

/// A listing as the disassembler prints it.
fn listing(lines: &[&str], encodings: &[&str]) -> Listing {
    let mut text = String::from("\n//--------- .text.kernel -----\n");
    let mut number = 0;
    for line in lines {
        if line.ends_with(':') {
            text += &format!("{line}\n");
            continue;
        }
        let encoding = encodings.get(number).unwrap_or(&PLAIN);
        text += &format!("        /*{:04x}*/  {line} ;  /* 0x0 */\n /* {encoding} */\n", 16 * number);
        number += 1;
    }
    let mut listing = Listing::default();
    listing.read(&text, &|_| true).unwrap();
    listing
}

fn run_encoded(lines: &[&str], encodings: &[&str], threads: u32, argument: &[u32]) -> Done {
    run_last(lines, encodings, threads, argument, 0)
}

fn run_last(lines: &[&str], encodings: &[&str], threads: u32, argument: &[u32], last_at: usize) -> Done {
    let listing = listing(lines, encodings);
    let mut constants = vec![0; 0x160];
    argument.iter().for_each(|value| constants.extend(value.to_le_bytes()));
    let setting = Setting { block: [3, 1, 0], threads, constants };
    let latency = Latency::of_card(600.0, 1.0);
    let run = Run { fill: 0x3c00_3c00, keep: true, last: Last::At(last_at), cached: false };
    Block::new(&listing.kernels["kernel"], &setting, &latency, run).run().unwrap()
}

fn run(lines: &[&str], threads: u32, argument: &[u32]) -> Done {
    run_encoded(lines, &[], threads, argument)
}

fn issued(done: &Done) -> Vec<u64> {
    done.tallies.iter().map(|tally| tally.issued).collect()
}

/// 100 numbers, 64 threads. Warp 0 has the numbers 0–31 and 64–95; warp 1 has 32–63 and, in four lanes, 96–99: two trips
/// each.
#[test]
fn loop_runs_as_often_as_counted_by_hand() {
    let done = run(
        &[
            "S2R R0, SR_TID.X",
            "ISETP.GE.AND P0, PT, R0, c[0x0][0x160], PT",
            "@P0 EXIT",
            ".L_x_0:",
            "IADD3 R0, R0, 0x40, RZ",
            "FFMA R1, R1, R1, R1",
            "ISETP.GE.AND P0, PT, R0, c[0x0][0x160], PT",
            "@!P0 BRA `(.L_x_0)",
            "EXIT",
        ],
        64,
        &[100],
    );
    assert_eq!(issued(&done), [2, 2, 2, 4, 4, 4, 4, 2]);
    assert_eq!(done.tallies[4].lanes, 32 + 32 + 32 + 4);
}

/// What follows the convergence barrier is issued once a warp.
#[test]
fn lanes_that_part_meet_again() {
    let done = run(
        &[
            "S2R R0, SR_TID.X",
            "LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT",
            "BSSY B0, `(.L_x_2)",
            "@P0 BRA `(.L_x_1)",
            "FADD R1, R1, 1",
            "BSYNC B0",
            ".L_x_1:",
            "FADD R1, R1, 2",
            "BSYNC B0",
            ".L_x_2:",
            "FMUL R1, R1, R1",
            "EXIT",
        ],
        32,
        &[],
    );
    assert_eq!(issued(&done), [1; 10]);
    assert_eq!([4, 6, 8].map(|i| done.tallies[i].lanes), [16, 16, 32]);
}

/// A function that both halves of a warp call, each from its own place: each half goes back to where it came from.
#[test]
fn lanes_return_to_where_they_called() {
    let done = run(
        &[
            "S2R R0, SR_TID.X",
            "LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT",
            "@P0 BRA `(.L_x_1)",
            "MOV R4, 0x50",
            "CALL.REL.NOINC `(.L_x_2)",
            "EXIT",
            ".L_x_1:",
            "MOV R4, 0x80",
            "CALL.REL.NOINC `(.L_x_2)",
            "FADD R1, R1, 2",
            "EXIT",
            ".L_x_2:",
            "FMUL R1, R1, R1",
            "RET.REL.NODEC R4 `(kernel)",
        ],
        32,
        &[],
    );
    assert_eq!([5, 8, 9, 10].map(|i| done.tallies[i].lanes), [16, 16, 16, 32]);
}

/// The compiler's division of unsigned numbers: conversions, a reciprocal, two corrections.
#[test]
fn division_gives_the_right_quotient() {
    for (a, b) in [(1000, 7), (5, 9), (4_294_967_295, 3), (786_432, 1024), (99, 1)] {
        let done = run(
            &[
                "I2F.U32.RP R0, c[0x0][0x164]",
                "MUFU.RCP R0, R0",
                "IADD3 R2, R0, 0xffffffe, RZ",
                "F2I.FTZ.U32.TRUNC.NTZ R3, R2",
                "HFMA2.MMA R2, -RZ, RZ, 0, 0",
                "IADD3 R4, RZ, -R3, RZ",
                "IMAD R5, R4, c[0x0][0x164], RZ",
                "IMAD.HI.U32 R3, R3, R5, R2",
                "IMAD.HI.U32 R3, R3, c[0x0][0x160], RZ",
                "IMAD.MOV R4, RZ, RZ, -R3",
                "IMAD R2, R4, c[0x0][0x164], c[0x0][0x160]",
                "ISETP.GE.U32.AND P0, PT, R2, c[0x0][0x164], PT",
                "@P0 IADD3 R2, R2, -c[0x0][0x164], RZ",
                "@P0 IADD3 R3, R3, 0x1, RZ",
                "ISETP.GE.U32.AND P0, PT, R2, c[0x0][0x164], PT",
                "@P0 IADD3 R3, R3, 0x1, RZ",
                "CS2R R6, SRZ",
                "IMAD.WIDE.U32 R6, R3, 0x10, R6",
                "STG.E [R6.64], R3",
                "EXIT",
            ],
            32,
            &[a, b],
        );
        assert_eq!(done.stores[0].0, u64::from(a / b) * 16, "{a} / {b}");
    }
}

/// Additions of 64 bits in two halves, with a carry, with a borrow, and with a shift.
#[test]
fn sums_carry_into_their_upper_half() {
    let done = run(
        &[
            "MOV R0, 0xffffffff",
            "MOV R1, 0x1",
            "IADD3 R2, P0, R0, 0x2, RZ",
            "IADD3.X R3, R1, RZ, RZ, P0, !PT",
            "STG.E [R2.64], R0",
            "IADD3 R4, P0, R2, -R0, RZ",
            "IADD3.X R5, R3, ~RZ, RZ, P0, !PT",
            "STG.E [R4.64], R0",
            "LEA R4, P0, R0, R2, 0x2",
            "LEA.HI.X R5, R0, R3, R1, 0x2, P0",
            "STG.E [R4.64], R0",
            "EXIT",
        ],
        32,
        &[],
    );
    let stored: Vec<u64> = done.stores.iter().map(|(at, _)| *at).step_by(LANES).collect();
    assert_eq!(stored, [0x2_0000_0001, 0x1_0000_0002, 0x2_0000_0001 + (0x1_ffff_ffff << 2)]);
}

#[test]
fn logic_shifts_and_permutations_are_right() {
    assert_eq!(table(0b1100, 0b1010, 0, 0xc0) & 15, 0b1000);
    assert_eq!(table(0b1100, 0b1010, 0, 0x3c) & 15, 0b0110);
    assert_eq!(shift(0, 4, 0xf000_0000, (false, true, true, false, false)), 0xff00_0000);
    assert_eq!(shift(0x8000_0001, 31, 7, (false, false, false, true, false)), 15);
    assert_eq!(shift(0x8000_0000, 1, 1, (true, false, true, true, false)), 3);
    assert_eq!(permute(0x4433_2211, 0x5410, 0x8877_6655), 0x6655_2211);
}

#[test]
fn halves_are_read_and_written() {
    for (value, bits) in [(1.0, 0x3c00), (-2.5, 0xc100), (2f64.powi(-24), 1), (65504.0, 0x7bff), (0.0, 0)] {
        assert_eq!(half_bits(value), bits);
        assert_eq!(f64::from(half_value(bits)), value);
    }
}

/// This one stalls 5 cycles, writes scoreboard 1 and waits for 0 and 2.
#[test]
fn encoding_says_what_to_wait_for() {
    let upper = 5 << 41 | 1 << 46 | 7 << 49 | 0b101 << 52;
    assert_eq!(Control::of(upper), Control { stall: 5, writes: Some(1), reads: None, wait: 0b101 });
}

/// Cycles of the instructions, of all warps.
fn cycles(done: &Done) -> Vec<u64> {
    done.tallies.iter().map(|tally| tally.cycles).collect()
}

/// Who waits for a load waits as long as memory takes; the second load of the same words is answered by the cache.
#[test]
fn load_that_is_waited_for_costs_its_latency() {
    let load = ["LDG.E R2, [R0.64]", "FADD R3, R2, R2", "EXIT"];
    let twice = ["LDG.E R2, [R0.64]", "FADD R3, R2, R2", "LDG.E R2, [R0.64]", "FADD R3, R2, R2", "EXIT"];
    let run = |lines: &[&str], encodings: &[&str]| run_encoded(lines, encodings, 32, &[]);
    assert_eq!(run(&load, &[WRITES, PLAIN]).cycles, 3);
    let waited = run(&load, &[WRITES, WAITS]);
    let once = waited.cycles;
    assert!((600..610).contains(&once), "{once}");
    // The wait is that of the instruction that waits.
    let by = cycles(&waited);
    assert!(by[1] >= 598 && by.iter().sum::<u64>() == once, "{by:?}");
    let again = run(&twice, &[WRITES, WAITS, WRITES, WAITS]).cycles - once;
    assert!((30..60).contains(&again), "{again}");
}

/// Warp 1 stores nothing before warp 0 has reached the barrier.
#[test]
fn barrier_waits_for_the_slowest_warp() {
    let done = run_encoded(
        &[
            "S2R R0, SR_TID.X",
            "ISETP.GE.AND P0, PT, R0, 0x20, PT",
            "@!P0 LDG.E R2, [R4.64]",
            "@!P0 FADD R2, R2, R2",
            "BAR.SYNC.DEFER_BLOCKING 0x0",
            "EXIT",
        ],
        &[PLAIN, PLAIN, WRITES, WAITS],
        64,
        &[],
    );
    assert_eq!(issued(&done), [2; 6]);
    assert!(done.cycles > 600, "{}", done.cycles);
    // Warp 1, whose load has no lanes and takes as long as one from the cache, 35 cycles, waits at the barrier for the rest of
    // the 600 that warp 0 waits. Both end together.
    let by = cycles(&done);
    assert!((635..645).contains(&by[3]) && (565..600).contains(&by[4]), "{by:?}");
    assert_eq!(by.iter().sum::<u64>(), 2 * done.cycles);
}

/// Of four blocks only the last one adds what the others have left: all its threads learn it from the one that counted.
#[test]
fn last_block_to_arrive_does_more() {
    let program = [
        "S2R R0, SR_TID.X",
        "ISETP.NE.AND P1, PT, R0, RZ, PT",
        "MOV R3, 0x3",
        "PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0",
        "@P1 BRA `(.L_x_1)",
        "MEMBAR.SC.GPU",
        "ATOMG.E.INC.STRONG.GPU PT, R4, [R6.64], R3",
        "ISETP.EQ.AND P0, PT, R4, R3, PT",
        ".L_x_1:",
        "BAR.RED.OR.DEFER_BLOCKING 0x0, P0",
        "B2R.RESULT RZ, P0",
        "@!P0 EXIT",
        "FADD R1, R1, R1",
        "EXIT",
    ];
    let done = [0, 1].map(|last_at| run_last(&program, &[], 64, &[], last_at));
    assert_eq!(done.each_ref().map(|done| done.tallies[11].issued), [0, 2]);
    assert_eq!(done.each_ref().map(|done| done.arrivals.clone()), [[4], [4]]);
    let fenced = Latency::of_card(600.0, 1.0).fence;
    assert!(done.iter().all(|done| done.cycles > fenced));
}

fn every(step: u64) -> [u64; LANES] {
    std::array::from_fn(|lane| lane as u64 * step)
}

/// Words 0, 32, 64, … lie in one bank; with a stride of 33 words no two do. Lanes that read one word share it. Of 16
/// bytes a lane, quarter warps take turns: 64 bytes apart, their eight lanes have two of the eight places.
#[test]
fn conflicts_are_counted() {
    let waves = |step: u64, width: u32| memory::shared(&every(step), u32::MAX, width).wavefronts;
    assert_eq!([waves(4, 4), waves(128, 4), waves(132, 4), waves(8, 4), waves(0, 4)], [1, 32, 1, 2, 1]);
    assert_eq!([waves(16, 16), waves(64, 16), waves(8, 8), waves(16, 8)], [4, 16, 2, 4]);
    assert_eq!(memory::shared(&every(4), 0xff, 4), Cost { wavefronts: 1, least: 1, ..Cost::default() });
}

#[test]
fn sectors_are_counted_once_a_request() {
    let mut touched = Touched::default();
    let sectors = |touched: &mut Touched, step: u64, width: u32| {
        let cost = touched.global(&every(step), u32::MAX, width);
        (cost.sectors, cost.fresh)
    };
    assert_eq!(sectors(&mut touched, 4, 4), (4, 4));
    assert_eq!(sectors(&mut touched, 4, 4), (4, 0));
    assert_eq!(sectors(&mut touched, 32, 4), (32, 28));
    assert_eq!(sectors(&mut Touched::default(), 16, 16), (16, 16));
}

#[test]
fn instruction_goes_to_its_unit() {
    let pipe = |text: &str| Instruction::parse(0, text, 0, &|_| None).unwrap().pipe;
    let known = [
        ("FFMA R0, R1, R2, R3", Pipe::Fma),
        ("IMAD.MOV.U32 R0, RZ, RZ, R1", Pipe::IntegerFma),
        ("HADD2.F32 R0, -RZ, R1.H0_H0", Pipe::Half),
        ("F2FP.PACK_AB R0, R1, R2", Pipe::Alu),
        ("F2F.F64.F32 R0, R1", Pipe::Special),
        ("DADD R0, R2, R4", Pipe::Fp64),
        ("UIADD3 UR4, UR5, 0x1, URZ", Pipe::Uniform),
        ("LDSM.16.M88.4 R0, [R4+UR5]", Pipe::Shared),
        ("LDGSTS.E.BYPASS.128 [R0], [R2.64], P0", Pipe::Global),
    ];
    known.iter().for_each(|(text, expected)| assert_eq!(pipe(text), *expected, "{text}"));
    assert!(Instruction::parse(0, "FADD R0, R1, X?", 0, &|_| None).is_err());
}

/// Ranges that overlap, touch, or close a gap: what was there already is told, and what lies in a range is counted.
#[test]
fn bytes_that_are_stored_twice_are_told() {
    let mut bytes = Bytes::default();
    assert_eq!(bytes.add(100, 16), 0);
    assert_eq!(bytes.add(132, 16), 0);
    assert_eq!([bytes.of(100, 48), bytes.of(116, 16), bytes.of(0, 1000), bytes.of(140, 100)], [32, 0, 32, 8]);
    assert_eq!(bytes.add(116, 16), 0);
    assert_eq!(bytes.of(100, 48), 48);
    assert_eq!(bytes.add(90, 100), 48);
    assert_eq!([bytes.add(120, 4), bytes.add(190, 4)], [4, 0]);
    assert_eq!(bytes.of(90, 104), 104);
}

/// A conflict that is not known is a fault, and so is a known one that is no longer there.
#[test]
fn conflicts_are_those_that_are_known() {
    let known = conflicts::faults(&[]);
    assert!(!known.is_empty() && known.iter().all(|fault| fault.contains("no conflict any more")));
    let (kernel, file) = ("no_such_kernel".to_string(), "no_such_file.cuh".to_string());
    let new = Conflict { kernel, file, line: 7, taken: 8.0, least: 1.0, share: 0.5 };
    let faults = conflicts::faults(&[new]);
    assert_eq!(faults.len(), known.len() + 1);
    assert_eq!(
        faults[0],
        "no_such_file.cuh:7 in no_such_kernel: 8.0 wavefronts a request, 1.0 without bank conflicts"
    );
}

/// Blocks of one kind run in waves; of two, the places that the first leaves are taken at once.
#[test]
fn places_that_become_free_take_the_next_block() {
    let span = |kinds: &[[f64; 2]], slots| {
        let blocks = kinds.iter().map(|[blocks, _]| blocks).sum();
        Count { blocks, kinds: kinds.to_vec(), ..Count::default() }.span(slots)
    };
    assert_eq!(span(&[[5.0, 10.0]], 2.0), 30.0);
    assert_eq!(span(&[[21.0, 10.0]], 2.0), 105.0);
    assert_eq!(span(&[[2.0, 30.0], [6.0, 10.0]], 4.0), 30.0);
    assert_eq!(span(&[[6.0, 10.0], [2.0, 30.0]], 4.0), 40.0);
    assert_eq!(span(&[[1.0, 10.0], [1.0, 50.0]], 1.0), 60.0);
}
