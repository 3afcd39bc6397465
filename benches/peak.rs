//! The most multiply-adds a second that this processor does with its vector instructions, of one thread and of all.
//!
//! Nothing is loaded: factors and sums stay in registers. What another benchmark reaches in GFLOP/s is a share of this,
//! at the same number of threads: `cargo bench --bench peak`. `EFFNET_SIMD` chooses a lesser instruction set.

use std::sync::Barrier;
use std::time::Instant;

use effnet::ops::Precision;
use effnet::ops::cpu::peak::{instructions, multiply_adds};

/// Multiply-adds of each sum in a run: about a millisecond, which other programs often leave undisturbed.
const ROUNDS: u64 = 400_000;
/// The best of so many runs counts: other programs can only take time away.
const REPEATS: usize = 1000;

/// GFLOP/s of `threads` threads together. They begin at once, and the last one's end counts.
fn rate(precision: Precision, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let round = || {
        barrier.wait();
        let began = Instant::now();
        let operations = multiply_adds(precision, ROUNDS);
        (began, Instant::now(), operations)
    };
    (0..REPEATS)
        .map(|_| {
            let runs: Vec<_> = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(round)).collect();
                running.into_iter().map(|thread| thread.join().expect("multiply-adds do not fail")).collect()
            });
            let began = runs.iter().map(|run| run.0).min().expect("there is a thread");
            let ended = runs.iter().map(|run| run.1).max().expect("there is a thread");
            runs.iter().map(|run| run.2).sum::<u64>() as f64 / ended.duration_since(began).as_nanos() as f64
        })
        .fold(0.0, f64::max)
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(instructions) = instructions() else {
        return println!("no peak is known without AVX2: the compiler chooses the instructions");
    };
    println!("{instructions}, GFLOP/s in registers:");
    println!("  {:<32} {:>10} {:>16}", "", "one thread", format!("all {threads} threads"));
    for (precision, name) in
        [(Precision::Fp32, "multiply-adds of fp32"), (Precision::Bf16, "products of bf16, summed in fp32")]
    {
        println!("  {name:<32} {:>10.0} {:>16.0}", rate(precision, 1), rate(precision, threads));
    }
}
