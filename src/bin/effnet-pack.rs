//! `effnet-pack SOURCE OUT` packs images into shards; `--verify OUT` and `--info OUT` examine the result.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Parser;
use effnet::cli::{Parsed, parse, survive_file_size_limits};
use effnet::data::dataset::verify;
use effnet::data::pack::{PackEncoding, PackOptions, PackSummary, Progress, pack};
use effnet::data::{Dataset, Split};
use indicatif::{ProgressBar, ProgressStyle};

/// Pack images into the shards that effnet-train and effnet-eval read.
///
/// SOURCE is a folder with train/ and val/ that hold a folder for each class; or a folder of class folders, of each
/// of which --val-fraction becomes validation; or a folder with the four IDX files of an MNIST-layout set, plain
/// or gzipped. Images are JPEG, PNG, WebP, GIF, BMP or TIFF, of several pictures in a file the first. Broken ones are
/// left out and listed. An interrupted pack continues when the same command is run again.
#[derive(Parser)]
#[command(name = "effnet-pack", version)]
struct Arguments {
    /// Folder of images or IDX files
    #[arg(required_unless_present_any = ["verify", "info"])]
    source: Option<PathBuf>,
    /// Directory to make
    #[arg(required_unless_present_any = ["verify", "info"])]
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
    #[arg(long, value_name = "OUT", conflicts_with_all = ["source", "out"])]
    info: Option<PathBuf>,
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
        shard_bytes: arguments.shard_size << 20,
        force: arguments.force,
        threads: arguments.threads.map_or(defaults.threads, usize::from),
    };
    let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images, {eta} left")?);
    let summary = pack(source, dir, &options, &mut |progress: Progress| {
        bar.set_message(progress.split.to_string());
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let summary = summary?;
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&summary).context("summary as JSON")?)?;
    } else {
        print_summary(&summary, options.quality, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_summary(summary: &PackSummary, quality: u8, out: &mut dyn Write) -> io::Result<()> {
    for broken in &summary.broken {
        writeln!(out, "left out {}: {}", broken.file, broken.problem)?;
    }
    for class in &summary.empty_classes {
        writeln!(out, "warning: no training image of class `{class}` could be read")?;
    }
    let converted = &summary.converted;
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
        (summary.ignored, "files ignored, being no JPEG or PNG by name"),
        (summary.broken.len() as u64, "broken images left out"),
        (summary.resumed_shards as u64, "shards kept from the interrupted pack"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "{count:>9}  {what}")?;
    }
    writeln!(out, "{:>9}  classes", summary.classes)?;
    for (split, what) in [(&summary.train, "training"), (&summary.val, "validation")] {
        let mib = split.bytes as f64 / (1 << 20) as f64;
        writeln!(out, "{:>9}  {what} images, {mib:.1} MiB in {} shard(s)", split.images, split.shards)?;
    }
    writeln!(out, "packed to {}, fingerprint {}", summary.out.display(), summary.fingerprint)?;
    writeln!(out, "train on it: effnet-train --data {}", summary.out.display())
}

fn run_verify(dir: &Path, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let report = verify(dir)?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&report).context("report as JSON")?)?;
    } else {
        for line in &report.damage {
            writeln!(out, "{line}")?;
        }
        let (samples, shards, damaged) = (report.samples, report.shards, report.damage.len());
        let verdict =
            if damaged == 0 { "all sound".into() } else { format!("{damaged} damaged: pack again") };
        writeln!(out, "{}: {samples} samples in {shards} shards, {verdict}", dir.display())?;
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_info(dir: &Path, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let dataset = Dataset::open(dir)?;
    let counts = Split::BOTH.map(|split| dataset.class_counts(split));
    let manifest = dataset.manifest();
    if json {
        let value = serde_json::json!({
            "classes": manifest.classes, "encoding": manifest.encoding, "mean": manifest.mean,
            "deviation": manifest.deviation, "fingerprint": dataset.fingerprint(),
            "train": split_info(&dataset, Split::Train, &counts[0]),
            "val": split_info(&dataset, Split::Val, &counts[1]),
        });
        writeln!(out, "{value}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{}: fingerprint {}, encoding {}",
        dir.display(),
        dataset.fingerprint(),
        manifest.encoding
    )?;
    writeln!(out, "mean {:.4?}, deviation {:.4?}", manifest.mean, manifest.deviation)?;
    for split in Split::BOTH {
        let (width, height) = dataset.largest(split);
        let entry = manifest.split(split);
        let mib = entry.bytes as f64 / (1 << 20) as f64;
        let (images, shards) = (entry.samples, entry.shards.len());
        writeln!(
            out,
            "{split} {images} images, {mib:.1} MiB in {shards} shard(s), sides up to {width}x{height}"
        )?;
    }
    writeln!(out, "{:>9} {:>9}  class", "train", "val")?;
    for (label, class) in dataset.classes().iter().enumerate() {
        writeln!(out, "{:>9} {:>9}  {class}", counts[0][label], counts[1][label])?;
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
