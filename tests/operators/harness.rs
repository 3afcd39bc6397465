//! The host harness itself: it runs correct kernels and detects mistakes.
//!
//! `kernels/host/planted` contains kernels with one mistake each. A mistake is detected if a launch fails, if the result
//! is NaN, or if its bits differ between orders.

use std::ffi::c_void;

use crate::common::formula::Formula;
use crate::common::host_gpu::HostGpu;
use effnet::ops::cuda::arguments::Arguments;
use effnet::ops::cuda::{CudaOps, Precision};
use effnet::ops::{Ops, StateSize, StepParams};
use effnet_kernel_host::{BUILD, Build, Count, Device, Field, Launch, Options, Order, kernels};
use half::{bf16, f16};

#[derive(Clone, Copy)]
#[repr(C)]
struct PlantedArguments {
    input: u64,
    out: u64,
    count: i32,
    zero: i32,
}

const FIELDS: [Field; 4] = [
    Field { name: "in", offset: 0, size: 8 },
    Field { name: "out", offset: 8, size: 8 },
    Field { name: "count", offset: 16, size: 4 },
    Field { name: "zero", offset: 20, size: 4 },
];

/// One launch of a planted kernel.
struct Case<'a> {
    kernel: &'a str,
    blocks: u32,
    shared: usize,
    outputs: usize,
    threads: u32,
}

impl<'a> Case<'a> {
    /// One block, with enough shared memory for each of them.
    fn new(kernel: &'a str) -> Case<'a> {
        Case { kernel, blocks: 1, shared: 4096, outputs: 64, threads: 64 }
    }

    fn launch(&self, options: Options) -> Launch<'_> {
        Launch {
            kernel: self.kernel,
            grid: [self.blocks, 1, 1],
            threads: self.threads,
            shared: self.shared,
            fields: &FIELDS,
            size: size_of::<PlantedArguments>(),
            options,
        }
    }

    /// The output for `input`, and the counted traffic.
    fn run(&self, input: &[f32], options: Options) -> Result<(Vec<f32>, Vec<Count>), String> {
        self.run_as(input, &self.launch(options))
    }

    fn run_as(&self, input: &[f32], launch: &Launch) -> Result<(Vec<f32>, Vec<Count>), String> {
        let mut device = Device::new()?;
        let from = device.allocate(size_of_val(input))?;
        let out = device.allocate(4 * self.outputs)?;
        device.label(from, size_of_val(input), "in");
        device.label(out, 4 * self.outputs, "out");
        let arguments = PlantedArguments { input: from, out, count: self.outputs as i32, zero: 0 };
        // SAFETY: the input was allocated with its size.
        unsafe { std::ptr::copy(input.as_ptr(), from as *mut f32, input.len()) };
        // Zeros, so that a NaN is a mistake and not what a kernel leaves out.
        // SAFETY: the output was allocated with this length.
        unsafe { std::ptr::write_bytes(out as *mut f32, 0, self.outputs) };
        // SAFETY: the arguments are laid out as the fields say, and their addresses are the device's.
        unsafe { device.launch(launch, (&raw const arguments).cast::<c_void>()) }?;
        // SAFETY: the output was allocated with this length.
        let values = unsafe { std::slice::from_raw_parts(out as *const f32, self.outputs) };
        Ok((values.to_vec(), device.counts()))
    }

    /// The first mistake that is detected in any order.
    fn noticed(&self) -> Option<String> {
        let mut input = Formula::of("planted").values(self.outputs, 1.0, 2.0);
        input[self.outputs - 3..].fill(0.0); // counts of arrivals
        let mut first: Option<Vec<f32>> = None;
        for options in Options::ALL {
            match self.run(&input, options) {
                Err(error) => return Some(error),
                Ok((values, _)) if values.iter().any(|v| v.is_nan()) => return Some("NaN".into()),
                Ok((values, _)) if first.as_ref().is_some_and(|first| *first != values) => {
                    return Some("different bits".into());
                }
                Ok((values, _)) => first = Some(values),
            }
        }
        None
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn engine_opens_in_every_storage_type() {
    for precision in Precision::ALL {
        let mut ops =
            CudaOps::new(HostGpu::new(Options::default()), StateSize::new(10, 12), &[], precision).unwrap();
        ops.set_step(StepParams::default()).unwrap();
        assert!(ops.gpu().launches >= 2);
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn correct_kernels_pass_in_every_order() {
    let input = Formula::of("sums").values(4 * 64, 1.0, 2.0);
    let sums = Case { blocks: 4, outputs: 4, ..Case::new("planted_sum") };
    for options in Options::ALL {
        let (values, counts) = sums.run(&input, options).unwrap();
        for (sum, values) in values.iter().zip(input.chunks(64)) {
            assert!((sum - values.iter().sum::<f32>()).abs() < 1e-3);
        }
        if BUILD == Build::Race {
            let of = |label: &str, loaded, stored| Count { label: label.into(), loaded, stored };
            assert_eq!(counts, [of("in", 4 * 64 * 4, 0), of("out", 0, 4 * 4)]);
        }
        let (values, _) = Case::new("planted_warp").run(&input, options).unwrap();
        let expected: Vec<f32> = (0..64).map(|t| input[t ^ 1] + 1.0 + 1.0 + 1.0).collect();
        assert_eq!(values, expected);
        let (values, _) = Case::new("planted_count").run(&input, options).unwrap();
        assert_eq!(values, [2.0; 64]);
        let mut counting = input[..64].to_vec();
        counting[61..].fill(0.0);
        let last = Case { blocks: 4, ..Case::new("planted_last") };
        let (values, _) = last.run(&counting, options).unwrap();
        assert_eq!(values[0], (input[0] + input[1]) + (input[2] + input[3]));
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn traffic_is_counted_to_the_byte() {
    let case = Case { blocks: 4, outputs: 250, ..Case::new("planted_copy") };
    let input = Formula::of("copy").values(250, 1.0, 2.0);
    let (values, counts) = case.run(&input, Options::default()).unwrap();
    assert_eq!(values, input);
    if BUILD == Build::Race {
        let counts: Vec<_> = counts.iter().map(|c| (&c.label[..], c.loaded, c.stored)).collect();
        assert_eq!(counts, [("in", 1000, 0), ("out", 0, 1000)]);
    } else {
        assert_eq!(counts, []);
    }
}

/// Compares products of tiles with the definition, through both matrix loads: a wrong fragment layout shows.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn tile_products_are_matrix_products() {
    let (rows, columns, depth) = (32, 32, 16);
    let input = Formula::of("product").values((rows + columns) * depth, -1.0, 1.0);
    for (kernel, round) in [
        ("planted_product_f16", (|v: f32| f16::from_f32(v).to_f32()) as fn(f32) -> f32),
        ("planted_product_bf16", |v: f32| bf16::from_f32(v).to_f32()),
    ] {
        let (a, b) = input.split_at(rows * depth);
        let case = Case { outputs: rows * columns, threads: 32, shared: 1 << 14, ..Case::new(kernel) };
        let (values, _) = case.run(&input, Options::default()).unwrap();
        for (at, value) in values.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let term = |k: usize| round(a[row * depth + k]) as f64 * round(b[column * depth + k]) as f64;
            let expected: f64 = (0..depth).map(term).sum();
            assert!((*value as f64 - expected).abs() < 1e-5, "{kernel}: {row}, {column}");
        }
    }
}

/// All numbers near the middle between two half numbers, including subnormal ones, and numbers that overflow.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn halves_round_to_nearest_even() {
    let beside = |v: f32| [v.next_down(), v, v.next_up()];
    let mut input = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 65_519.99, 65_520.0, 1e-45];
    for bits in (0..u16::MAX).step_by(7) {
        let (one, other) = (f16::from_bits(bits), f16::from_bits(bits + 1));
        if one.is_finite() && other.is_finite() {
            input.extend(beside((one.to_f32() + other.to_f32()) / 2.0));
        }
        let (one, other) = (bf16::from_bits(bits), bf16::from_bits(bits + 1));
        if one.is_finite() && other.is_finite() {
            input.extend(beside((one.to_f32() / 2.0) + other.to_f32() / 2.0));
        }
    }
    let blocks = input.len().div_ceil(64) as u32;
    for (kernel, round) in [
        ("planted_round_f16", (|v: f32| f16::from_f32(v).to_f32()) as fn(f32) -> f32),
        ("planted_round_bf16", |v: f32| bf16::from_f32(v).to_f32()),
    ] {
        let case = Case { blocks, outputs: input.len(), ..Case::new(kernel) };
        let (values, _) = case.run(&input, Options::default()).unwrap();
        for (value, from) in values.iter().zip(&input) {
            assert_eq!(value.to_bits(), round(*from).to_bits(), "{kernel} of {from:e}");
        }
    }
}

/// Kernel, blocks, and the builds that must detect the mistake.
const MISTAKES: [(&str, u32, &[Build]); 28] = {
    use Build::{Address, Plain, Race};
    const ALL: &[Build] = &[Plain, Address, Race];
    [
        ("planted_neighbour", 1, ALL),
        ("planted_write_beyond", 3, ALL),
        ("planted_read_beyond", 3, &[Address, Race]),
        ("planted_far_away", 1, ALL),
        ("planted_misaligned", 1, &[Address]),
        ("planted_division", 1, ALL),
        ("planted_uninitialised", 1, ALL),
        ("planted_pieces", 1, ALL),
        ("planted_barrier", 1, ALL),
        ("planted_second_barrier", 1, ALL),
        ("planted_warp_barrier", 1, ALL),
        ("planted_count_emptied", 1, ALL),
        ("planted_count_read", 1, ALL),
        ("planted_divergent", 1, ALL),
        ("planted_half_barrier", 1, ALL),
        ("planted_shuffle", 1, ALL),
        ("planted_half_shuffle", 1, ALL),
        ("planted_wait", 1, ALL),
        ("planted_wait_barrier", 1, ALL),
        ("planted_buffer", 1, ALL),
        ("planted_never_waited", 1, ALL),
        ("planted_blocks_add", 3, &[Race]),
        ("planted_blocks_read", 3, ALL),
        ("planted_late_write", 3, &[Race]),
        ("planted_not_last", 3, ALL),
        ("planted_too_many", 3, &[Race]),
        ("planted_nowhere", 1, ALL),
        ("planted_copy", 0, ALL),
    ]
};

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn mistakes_are_noticed() {
    let mut missed = Vec::new();
    for (kernel, blocks, builds) in MISTAKES {
        let noticed = Case { blocks, outputs: 128, ..Case::new(kernel) }.noticed();
        println!("{kernel}: {}", noticed.as_deref().unwrap_or("nothing"));
        if noticed.is_none() && builds.contains(&BUILD) {
            missed.push(kernel);
        }
    }
    assert!(missed.is_empty(), "{BUILD:?} misses {missed:?}");
}

/// Each planted kernel is either correct or listed with its mistake.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn planted_kernels_are_all_tested() {
    let right = [
        "planted_copy",
        "planted_sum",
        "planted_warp",
        "planted_count",
        "planted_last",
        "planted_product_f16",
        "planted_product_bf16",
    ];
    let round = ["planted_round_f16", "planted_round_bf16"];
    let planted = kernels().into_iter().map(|k| k.name).filter(|name| name.starts_with("planted_"));
    for name in planted {
        let known = right.contains(&name) || round.contains(&name) || MISTAKES.iter().any(|m| m.0 == name);
        assert!(known, "{name}");
    }
}

/// A new thread's machine may get memory that was used before.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn copies_are_waited_for_whatever_the_memory_held_before() {
    let run = || {
        // The allocator returns the first large block to the system, and keeps later ones.
        for _ in 0..3 {
            drop(std::hint::black_box(vec![0xffu8; 1 << 20]));
        }
        Case::new("planted_sum").run(&[1.0; 256], Options { late_copies: true, ..Options::default() })
    };
    std::thread::spawn(run).join().unwrap().unwrap();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn messages_say_what_is_wrong() {
    let input = vec![1.0; 256];
    let error = |case: &Case, options| case.run(&input, options).unwrap_err();
    let of = |kernel| error(&Case::new(kernel), Options { order: Order::Reverse, late_copies: true });
    let stuck = of("planted_half_barrier");
    assert!(stuck.contains("threads 0 to 47 at the barrier of ") && stuck.contains("planted.cu"), "{stuck}");
    let divergent = of("planted_divergent");
    assert!(divergent.contains("threads meet at different barriers"), "{divergent}");
    let shuffle = of("planted_half_shuffle");
    assert!(shuffle.contains("threads 32 to 47 in the warp's shuffle_xor"), "{shuffle}");
    let beside = of("planted_neighbour");
    assert!(beside.contains("past the end of piece 0") || BUILD == Build::Address, "{beside}");
    let beyond = error(&Case { blocks: 2, ..Case::new("planted_write_beyond") }, Options::default());
    assert!(beyond.contains("past the end of out") || BUILD == Build::Address, "{beyond}");
    let shared = error(&Case { shared: 256, ..Case::new("planted_sum") }, Options::default());
    assert!(shared.contains("piece 1 makes 272 bytes of shared memory, launched with 256"), "{shared}");
    let threads = error(&Case { threads: 32, ..Case::new("planted_copy") }, Options::default());
    assert!(threads.contains("launched with 32 threads a block, compiled for 64"), "{threads}");
    if BUILD == Build::Race {
        let race = error(&Case::new("planted_barrier"), Options::default());
        assert!(race.contains("race on piece 0 of shared memory") && race.contains("planted.cu:"), "{race}");
        let race = error(&Case { blocks: 3, ..Case::new("planted_blocks_add") }, Options::default());
        assert!(race.contains("race on out + 0") && race.contains("another block"), "{race}");
        let mut counting = input;
        counting[61..].fill(0.0);
        let late = Case { blocks: 3, ..Case::new("planted_late_write") };
        let race = late.run(&counting, Options::default()).unwrap_err();
        assert!(race.contains("race on out + 4") && race.contains("another block"), "{race}");
    }
}

/// The whole layout of the arguments is compared before a kernel runs.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn arguments_that_differ_are_refused() {
    let input = vec![1.0; 64];
    let case = Case::new("planted_copy");
    let refused = |change: &dyn Fn(&mut Vec<Field<'static>>, &mut usize)| {
        let (mut fields, mut size) = (FIELDS.to_vec(), size_of::<PlantedArguments>());
        change(&mut fields, &mut size);
        case.run_as(&input, &Launch { fields: &fields, size, ..case.launch(Options::default()) }).unwrap_err()
    };
    let name = refused(&|fields, _| fields[2].name = "rows");
    assert!(name.contains("field 2 is `rows` of 4 bytes at 16 in the launch, `count`"), "{name}");
    assert!(refused(&|fields, _| fields.swap(0, 1)).contains("field 0 is `out`"));
    assert!(refused(&|fields, _| fields[3].size = 8).contains("`zero` of 8 bytes"));
    assert!(refused(&|fields, _| fields.truncate(3)).contains("lacks the field `zero`"));
    let more = refused(&|fields, _| fields.push(Field { name: "more", offset: 24, size: 4 }));
    assert!(more.contains("no field `more`"));
    assert!(refused(&|_, size| *size = 32).contains("arguments of 32 bytes"));
}

/// An error does not affect the next launch, also with several threads at a time.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn launch_that_fails_leaves_nothing_behind() {
    let input = Formula::of("again").values(4 * 64, 1.0, 2.0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for kernel in
                    ["planted_half_barrier", "planted_far_away", "planted_pieces", "planted_division"]
                {
                    assert!(Case::new(kernel).run(&input, Options::default()).is_err(), "{kernel}");
                    let sums = Case { blocks: 4, outputs: 4, ..Case::new("planted_sum") };
                    sums.run(&input, Options::ALL[2]).unwrap();
                }
            });
        }
    });
}

/// Rust and the kernel declare the same arguments.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn table_lists_the_kernels_of_the_engine() {
    let all = kernels();
    let begin = all.iter().find(|k| k.name == "step_begin").expect("a kernel of the engine");
    let fields: Vec<_> = effnet::ops::cuda::sources::step::StepBeginArguments::FIELDS
        .iter()
        .map(|f| Field { name: f.name, offset: f.offset, size: f.size })
        .collect();
    assert_eq!(begin.fields, fields);
    assert_eq!(begin.threads, 32);
}
