//! `effnet-pack SOURCE OUT` packs images into shards; `--verify OUT`, `--info OUT` and `--bench OUT` examine the result.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use effnet::cli::pack_bar::PackBar;
use effnet::cli::{Parsed, parse, survive_file_size_limits};
use effnet::data::augment::Auto;
use effnet::data::bench::{BenchOptions, bench};
use effnet::data::dataset::verify;
use effnet::data::pack::{PackEncoding, PackOptions, PackSummary, pack, skipped};
use effnet::data::{Dataset, Source, Split};
use effnet::names::{plural, quoted, shown, shown_path};
use effnet::train::program::command;

/// Pack images into the shards that effnet-train and effnet-eval read.
///
/// SOURCE is recognised by its content. It may be: a folder of class folders; train/, val/ and test/ with class
/// folders; tar files of class folders or in WebDataset's form, also in gzip; a CSV or TSV list of files and labels; Parquet
/// files as Hugging Face has them; a folder with CIFAR's binary files or with the four IDX files of an MNIST-layout set. Images are JPEG, PNG,
/// WebP, GIF, BMP or TIFF, of several pictures in a file the first. Where there are no validation images, --val-fraction
/// of each class is taken. What is left out is counted, and listed in OUT/skipped.jsonl. An interrupted pack continues
/// when the same command is run again.
#[derive(Parser)]
#[command(name = "effnet-pack", version)]
struct Arguments {
    /// Folder or file with images
    #[arg(required_unless_present_any = ["verify", "info", "bench"])]
    source: Option<PathBuf>,
    /// Directory to make
    #[arg(required_unless_present_any = ["verify", "info", "bench"])]
    out: Option<PathBuf>,
    /// Share of each class that becomes validation if SOURCE is not split
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = fraction)]
    val_fraction: f64,
    /// Chooses which images become validation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// auto: JPEG files as they are, all else as pixels; raw: pixels; jpeg: all else as JPEG. JPEG files that EXIF
    /// turns, CMYK and rare ones are encoded anew, with --quality, unless raw
    #[arg(long, default_value = "auto", value_parser = PackEncoding::from_str)]
    encoding: PackEncoding,
    /// Quality of JPEG files that are written here
    #[arg(long, default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Scale larger images down until no side is longer
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,
    /// Scale larger images down until the shorter side is as long
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    resize_shorter: Option<u32>,
    /// Validation images: a source of its own, of any kind; classes are matched by name
    #[arg(long, value_name = "SOURCE")]
    val: Option<PathBuf>,
    /// Classes of the images of a val/ without class folders: `file,class` in each line, by name or number from 0
    #[arg(long, value_name = "FILE", conflicts_with = "val")]
    val_list: Option<PathBuf>,
    /// Size of a shard in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    shard_size: u64,
    /// Replace what OUT holds
    #[arg(long)]
    force: bool,
    /// Threads that decode; all cores unless given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Compare every byte of a dataset with its checksums
    #[arg(long, value_name = "OUT", conflicts_with_all = ["source", "out", "info"])]
    verify: Option<PathBuf>,
    /// Describe a dataset
    #[arg(long, value_name = "OUT", conflicts_with_all = ["source", "out", "bench"])]
    info: Option<PathBuf>,
    /// Measure how fast training images of a dataset are prepared, by stage. --threads and --resize-shorter count
    #[arg(long, value_name = "OUT", conflicts_with_all = ["source", "out", "verify"])]
    bench: Option<PathBuf>,
    /// Of --bench: side of the network's input
    #[arg(long, value_name = "PIXELS", default_value_t = 224, conflicts_with_all = ["source", "verify", "info"], value_parser = clap::value_parser!(u16).range(8..=4096))]
    resolution: u16,
    /// Of --bench: as effnet-train's
    #[arg(long, value_name = "NAME", default_value = "none", conflicts_with_all = ["source", "verify", "info"], value_parser = Auto::from_str)]
    augment: Auto,
    /// Of --bench: seconds of each of three measurements
    #[arg(long, value_name = "SECONDS", default_value_t = 3, conflicts_with_all = ["source", "verify", "info"], value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("must be a number above 0 and below 1".into()),
    }
}

fn main() -> ExitCode {
    survive_file_size_limits();
    let arguments = match parse::<Arguments>(std::env::args_os()) {
        Ok(Parsed::Flags(arguments)) => arguments,
        Ok(Parsed::Text(text)) => {
            let _ = write!(io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(status) => status,
        // The reader of the output is gone, so there is nobody to report to.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let out = &mut io::stdout().lock();
    match arguments {
        Arguments { verify: Some(dir), json, .. } => run_verify(dir, *json, out),
        Arguments { info: Some(dir), json, .. } => run_info(dir, *json, out),
        Arguments { bench: Some(dir), .. } => run_bench(dir, arguments, out),
        Arguments { source: Some(source), out: Some(dir), .. } => run_pack(source, dir, arguments, out),
        _ => unreachable!("clap requires SOURCE and OUT"),
    }
}

fn run_pack(source: &Path, dir: &Path, arguments: &Arguments, out: &mut dyn Write) -> Result<ExitCode> {
    let defaults = PackOptions::default();
    let options = PackOptions {
        val_fraction: arguments.val_fraction,
        seed: arguments.seed,
        encoding: arguments.encoding,
        quality: arguments.quality,
        max_side: arguments.max_side,
        resize_shorter: arguments.resize_shorter,
        val: arguments.val.clone(),
        val_list: arguments.val_list.clone(),
        shard_bytes: arguments.shard_size << 20,
        force: arguments.force,
        threads: arguments.threads.map_or(defaults.threads, usize::from),
        stop: defaults.stop,
    };
    let bar = PackBar::new();
    let summary = pack(source, dir, &options, &mut |progress| bar.show(progress))?;
    drop(bar);
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&summary).context("summary as JSON")?)?;
    } else {
        print_summary(&summary, options.quality, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Broken images that are named one by one; the list of all lies beside the set.
const NAMED: usize = 10;

fn print_summary(summary: &PackSummary, quality: u8, out: &mut dyn Write) -> io::Result<()> {
    for broken in summary.broken.iter().take(NAMED) {
        writeln!(out, "left out {}: {}", shown(&broken.file), shown(&broken.problem))?;
    }
    for notice in &summary.notices {
        writeln!(out, "notice: {}", shown(notice))?;
    }
    for class in &summary.empty_classes {
        writeln!(out, "warning: no training image of class `{}` could be read", shown(class))?;
    }
    for (duplicates, what) in [(&summary.duplicates, "validation"), (&summary.test_duplicates, "test")] {
        let Some([train, other]) = &duplicates.example else { continue };
        let (images, train, other) = (duplicates.images, shown(train), shown(other));
        let are = if images == 1 { "image is a" } else { "images are" };
        let many = plural(images);
        writeln!(out, "warning: {images} {what} {are} training image{many} too, such as {other}: {train}")?;
    }
    let converted = &summary.converted;
    let resumed = summary.resumed_shards as u64;
    let kept = format!("shard{} kept from the interrupted pack", plural(resumed));
    let anew =
        format!("JPEG files encoded anew at quality {quality} (turned, CMYK, scaled down or of a rare kind)");
    let counts = [
        (converted.cmyk, "CMYK converted to RGB"),
        (converted.sixteen_bit, "16-bit reduced to 8"),
        (converted.palette, "palettes expanded"),
        (converted.alpha, "alpha channels dropped"),
        (converted.rotated, "turned upright as EXIF says"),
        (converted.scaled_down, "scaled down"),
        (converted.encoded_anew, anew.as_str()),
        (resumed, kept.as_str()),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "{count:>9}  {what}")?;
    }
    for (count, what, example) in skipped::counts(&summary.skipped) {
        let (file, reason) = (shown(&example.file), shown(&example.reason));
        writeln!(out, "{count:>9}  {what}, such as {file}: {reason}")?;
    }
    writeln!(out, "{:>9}  classes", summary.classes)?;
    let splits = [(&summary.train, "training"), (&summary.val, "validation"), (&summary.test, "test")];
    for (split, what) in splits.into_iter().filter(|(split, _)| split.images > 0) {
        let mib = split.bytes as f64 / (1 << 20) as f64;
        let (images, shards) = (split.images, split.shards as u64);
        let (many, more) = (plural(images), plural(shards));
        writeln!(out, "{images:>9}  {what} image{many}, {mib:.1} MiB in {shards} shard{more}")?;
    }
    if !summary.skipped.is_empty() {
        writeln!(out, "what was left out is listed in {}", shown_path(&summary.out.join(skipped::SKIPPED)))?;
    }
    let (dir, fingerprint) = (shown_path(&summary.out), &summary.fingerprint);
    writeln!(out, "packed {} to {dir}, fingerprint {fingerprint}", shown(&summary.source))?;
    writeln!(out, "train on it: {} --data {}", command("effnet-train"), quoted(&summary.out))
}

fn run_verify(dir: &Path, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let report = verify(dir)?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&report).context("report as JSON")?)?;
    } else {
        for line in &report.damage {
            writeln!(out, "{}", shown(line))?;
        }
        let (samples, shards, damaged) = (report.samples, report.shards, report.damage.len());
        let verdict =
            if damaged == 0 { "all sound".into() } else { format!("{damaged} damaged: pack again") };
        writeln!(out, "{}: {samples} samples in {shards} shards, {verdict}", shown_path(dir))?;
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_info(dir: &Path, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let dataset = Dataset::open(dir)?;
    let splits = Split::ALL.into_iter().filter(|&split| dataset.samples(split) > 0);
    let splits: Vec<(Split, Vec<u64>)> = splits.map(|split| (split, dataset.class_counts(split))).collect();
    let manifest = dataset.manifest();
    if json {
        let mut value = serde_json::json!({
            "classes": manifest.classes, "encoding": manifest.encoding, "mean": manifest.mean,
            "deviation": manifest.deviation, "fingerprint": dataset.fingerprint(),
        });
        for (split, counts) in &splits {
            value[split.as_ref()] = split_info(&dataset, *split, counts);
        }
        writeln!(out, "{value}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{}: fingerprint {}, encoding {}",
        shown_path(dir),
        dataset.fingerprint(),
        manifest.encoding
    )?;
    writeln!(out, "mean {:.4?}, deviation {:.4?}", manifest.mean, manifest.deviation)?;
    for &(split, _) in &splits {
        let (width, height) = dataset.largest(split);
        let entry = manifest.split(split);
        let mib = entry.bytes as f64 / (1 << 20) as f64;
        let (images, shards) = (entry.samples, entry.shards.len());
        writeln!(
            out,
            "{split} {images} images, {mib:.1} MiB in {shards} shard{}, sides up to {width}x{height}",
            plural(shards as u64)
        )?;
    }
    let row =
        |cells: &mut dyn Iterator<Item = String>| cells.map(|cell| format!("{cell:>9} ")).collect::<String>();
    writeln!(out, "{} class", row(&mut splits.iter().map(|(split, _)| split.to_string())))?;
    for (label, class) in dataset.classes().iter().enumerate() {
        let counts = row(&mut splits.iter().map(|(_, counts)| counts[label].to_string()));
        writeln!(out, "{counts} {}", shown(class))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_bench(dir: &Path, arguments: &Arguments, out: &mut dyn Write) -> Result<ExitCode> {
    let options = BenchOptions {
        resolution: arguments.resolution.into(),
        augment: arguments.augment,
        threads: arguments.threads.map_or(PackOptions::default().threads, usize::from),
        time: Duration::from_secs(arguments.seconds.into()),
        resize_shorter: arguments.resize_shorter,
    };
    let bench = bench(&Source::open(dir)?, &options)?;
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&bench).context("figures as JSON")?)?;
    } else {
        write!(out, "{bench}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn split_info(dataset: &Dataset, split: Split, class_counts: &[u64]) -> serde_json::Value {
    let entry = dataset.manifest().split(split);
    let (width, height) = dataset.largest(split);
    serde_json::json!({
        "images": entry.samples, "bytes": entry.bytes, "shards": entry.shards.len(),
        "class_counts": class_counts, "largest": [width, height],
    })
}
