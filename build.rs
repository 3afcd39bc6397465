//! Compiles the CUDA kernels, `kernels/*.cu`, and embeds them; and writes their declarations as Rust, see [`sources`].
//!
//! Each file becomes one fatbin with machine code for every architecture of [`ARCHITECTURES`] and [`NEWER`], and PTX
//! for later cards. A file is compiled again only if it, a header that it includes, the flags or the compiler have
//! changed. The crate also builds without a compiler. Then the program says at run time what was missing.
//!
//! | variable | |
//! |---|---|
//! | `EFFNET_CUDA` | `auto` (the default): with kernels where a compiler is found; `require`: or fail; `skip`: without |
//! | `EFFNET_CUDA_HOME` | the CUDA toolkit to use, or a folder filled by `tools/install_nvcc.sh`; see [`compiler`] |
//! | `NVCC_CCBIN` | nvcc's own variable: the host compiler, whose headers kernels include |
//! | `EFFNET_CUDA_ARCH` | while developing: only these architectures and no PTX, such as `80` or `86,90` |
//! | `NCCL_LIBRARY` | if set, tests that need NCCL are run |
//! | `EFFNET_GPU` | `1` or `0`: whether tests that need a GPU are run; by default if kernels and a GPU are found |
//!
//! A kernel that does not compile fails the build, except with `EFFNET_CUDA=skip`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

/// Compute capabilities, 8.0 as 80: A100; RTX 30; RTX 40; H100. Every supported compiler knows them.
const ARCHITECTURES: [u32; 4] = [80, 86, 89, 90];
/// B200; RTX 50. Compilers know them from CUDA 12.8 on.
const NEWER: [u32; 2] = [100, 120];
/// The architecture of the intermediate code, PTX, from which all machine code is made, and which drivers compile for
/// cards that are not listed. Making it takes longer than making the machine code of two architectures, so it is made
/// once. Kernels do not look at the architecture, and compute_90 would differ only in how bf16 becomes fp32: by an
/// instruction for special functions in place of a shift. compute_100 takes up to 44 registers more.
const INTERMEDIATE: u32 = 80;
/// No fast-math: fp32 kernels are exact. Line numbers cost nothing at run time and let profilers show sources.
/// Spilled registers are slow, so they give a warning. `-v` tells the names of the kernels. Compression makes files
/// five times smaller; the driver decompresses them. Host compilers newer than nvcc knows are accepted, because no host
/// code is compiled.
const FLAGS: [&str; 7] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Xptxas=-warn-spills,-v",
    "-Xfatbin=-compress-all",
    "-allow-unsupported-compiler",
];

type Error = Box<dyn std::error::Error + Send + Sync>;

#[path = "src/ops/cuda/nvidia/branches.rs"]
mod branches;
#[path = "build/compiler.rs"]
mod compiler;
#[path = "build/sources.rs"]
mod sources;

use compiler::Compiler;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Error> {
    let out = PathBuf::from(variable("OUT_DIR").ok_or("OUT_DIR is not set: run by Cargo only")?);
    let compiler = compiler::compiler(&variable)?;
    tell_tests(compiler.is_ok())?;
    write_changed(&out.join("sources.rs"), sources::generate(Path::new("kernels"))?.as_bytes())?;
    let embedded = match compiler {
        Ok(compiler) => {
            let targets = Targets::chosen(&compiler)?;
            if let Some(warning) = compiler::warning(compiler.version) {
                println!("cargo::warning={warning}");
            }
            let files = compile_all(&compiler, &targets, &out)?;
            embedding(&compiler, &targets, &files)?
        }
        Err(reason) => format!("Err({reason:?})\n"),
    };
    write_changed(&out.join("kernels.rs"), embedded.as_bytes())
}

/// Sets `effnet_kernels`, `effnet_gpu` and `effnet_nccl`: without them tests that need kernels, a GPU or NCCL are
/// ignored.
fn tell_tests(kernels: bool) -> Result<(), Error> {
    println!("cargo::rustc-check-cfg=cfg(effnet_kernels, effnet_gpu, effnet_nccl)");
    if variable("NCCL_LIBRARY").is_some() {
        println!("cargo::rustc-cfg=effnet_nccl");
    }
    if kernels {
        println!("cargo::rustc-cfg=effnet_kernels");
    }
    let gpu = match variable("EFFNET_GPU").as_deref() {
        None => kernels && compiler::gpu_below(Path::new("/")),
        Some("0") => false,
        Some("1") => true,
        Some(other) => return Err(format!("EFFNET_GPU={other}: use 1 or 0").into()),
    };
    if gpu {
        println!("cargo::rustc-cfg=effnet_gpu");
    }
    Ok(())
}

/// An environment variable. Cargo runs this script again if it changes.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

// ---- compiling --------------------------------------------------------------------------------------------

struct Targets {
    architectures: Vec<u32>,
    /// Whether the intermediate code is added.
    ptx: bool,
}

impl Targets {
    fn chosen(compiler: &Compiler) -> Result<Targets, Error> {
        let Some(list) = variable("EFFNET_CUDA_ARCH") else {
            let known = compiler.architectures()?;
            let newer = NEWER.into_iter().filter(|arch| known.contains(arch));
            return Ok(Targets {
                architectures: ARCHITECTURES.into_iter().chain(newer).collect(),
                ptx: true,
            });
        };
        let parse = |text: &str| text.trim().parse().ok().filter(|arch| *arch >= INTERMEDIATE);
        let architectures: Option<BTreeSet<u32>> = list.split(',').map(parse).collect();
        let usage = "use compute capabilities from 80 on, such as 80 or 86,90";
        let architectures = architectures.ok_or_else(|| format!("EFFNET_CUDA_ARCH={list}: {usage}"))?;
        Ok(Targets { architectures: architectures.into_iter().collect(), ptx: false })
    }

    fn flag(&self) -> String {
        let mut codes: Vec<String> = self.architectures.iter().map(|arch| format!("sm_{arch}")).collect();
        if self.ptx {
            codes.push(format!("compute_{INTERMEDIATE}"));
        }
        format!("-gencode=arch=compute_{INTERMEDIATE},code=[{}]", codes.join(","))
    }
}

/// A source's stem and the kernels in its fatbin.
type File = (String, Vec<String>);

/// Compiles every file whose fatbin is not yet in the cache and copies all to `out`; the files, sorted.
fn compile_all(compiler: &Compiler, targets: &Targets, out: &Path) -> Result<Vec<File>, Error> {
    let flags: Vec<String> = FLAGS.iter().map(|flag| flag.to_string()).chain([targets.flag()]).collect();
    let environment = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(variable);

    // Profiles share one cache, in the folder above `<profile>/build/<package>/out`.
    let cache = out.ancestors().nth(4).unwrap_or(out).join("kernel-cache");
    fs::create_dir_all(&cache)?;
    let mut sources = Vec::new();
    for entry in fs::read_dir("kernels")? {
        sources.push(entry?.path());
    }
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();

    let mut files = Vec::new();
    let mut jobs = Vec::new();
    for source in sources {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut hasher = DefaultHasher::new();
        (&compiler.banner, &environment, &flags).hash(&mut hasher);
        hash_source(&source, &mut BTreeSet::new(), &mut hasher)?;
        let fatbin = cache.join(format!("{stem}-{:016x}.fatbin", hasher.finish()));
        jobs.push(Job { source, fatbin, embedded: out.join(format!("{stem}.fatbin")), stem });
    }
    let missing: Vec<&Job> = jobs.iter().filter(|job| !job.fatbin.is_file()).collect();
    compile(compiler, &flags, missing)?;
    for job in &jobs {
        write_changed(&job.embedded, &fs::read(&job.fatbin)?)?;
        let kernels = fs::read_to_string(job.fatbin.with_extension(KERNELS))?;
        files.push((job.stem.clone(), kernels.lines().map(Into::into).collect()));
    }
    Ok(files)
}

/// The ending of the file beside a fatbin that lists its kernels.
const KERNELS: &str = "kernels";

struct Job {
    stem: String,
    source: PathBuf,
    fatbin: PathBuf,
    embedded: PathBuf,
}

/// Hashes a source and its includes in quotation marks, each file once.
fn hash_source(path: &Path, seen: &mut BTreeSet<PathBuf>, hasher: &mut impl Hasher) -> Result<(), Error> {
    if !seen.insert(path.to_path_buf()) {
        return Ok(());
    }
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    text.hash(hasher);
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")) {
        let header = path.with_file_name(line.split('"').next().unwrap_or_default());
        // Headers of the harness are not for this compiler.
        if header.is_file() && !header.starts_with("kernels/host") {
            hash_source(&header, seen, hasher)?;
        }
    }
    Ok(())
}

/// Compiles in parallel, the largest first. All failures are reported together.
fn compile(compiler: &Compiler, flags: &[String], mut jobs: Vec<&Job>) -> Result<(), Error> {
    let cores: usize = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let workers = cores.min(jobs.len()).max(1);
    // With more cores than files, the architectures of a file are compiled in parallel, too.
    let threads = cores.div_ceil(workers);
    jobs.sort_by_key(|job| fs::metadata(&job.source).map_or(0, |metadata| metadata.len()));
    let queue = Mutex::new(jobs);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = { queue.lock().unwrap().pop() } {
                    if let Err(error) = compile_one(compiler, flags, threads, job) {
                        failures.lock().unwrap().push(error.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    if !failures.is_empty() {
        let remedy = "if the fault is in a header of the host compiler, NVCC_CCBIN names another one, such as g++-12; \
                      EFFNET_CUDA=skip builds without CUDA";
        return Err(format!("{}\n({remedy})", failures.join("\n")).into());
    }
    Ok(())
}

fn compile_one(compiler: &Compiler, flags: &[String], threads: usize, job: &Job) -> Result<(), Error> {
    let source = job.source.display();
    // Under another name until it is complete, so that an interrupted build leaves no half file in the cache.
    let part = job.fatbin.with_extension(format!("{}.part", std::process::id()));
    let mut command = Command::new(&compiler.path);
    command.args(flags).arg(format!("--threads={threads}")).arg("-o").arg(&part).arg(&job.source);
    let output = command.output().map_err(|error| format!("{}: {error}", compiler.path.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        let _ = fs::remove_file(&part);
        return Err(format!("{source} does not compile ({}):\n{said}", compiler.path.display()).into());
    }
    let compiler::Said { kernels, warnings } = compiler::said(&said);
    if kernels.is_empty() {
        return Err(format!("{source}: {} names no kernel:\n{said}", compiler.path.display()).into());
    }
    for line in warnings {
        println!("cargo::warning={source}: {line}");
    }
    let kernels: Vec<&str> = kernels.into_iter().collect();
    fs::write(job.fatbin.with_extension(KERNELS), kernels.join("\n"))?;
    fs::rename(&part, &job.fatbin)?;
    Ok(())
}

// ---- embedding --------------------------------------------------------------------------------------------

/// The expression that `src/ops/cuda/embedded.rs` includes: a `Result<Embedded, &str>`.
fn embedding(compiler: &Compiler, targets: &Targets, files: &[File]) -> Result<String, Error> {
    let mut kernels = BTreeMap::new();
    for (number, (stem, names)) in files.iter().enumerate() {
        for name in names {
            if let Some(other) = kernels.insert(name, number) {
                return Err(format!("kernel {name} is in {}.cu and in {stem}.cu", files[other].0).into());
            }
        }
    }
    let bytes = |stem: &str| format!(r#"include_bytes!(concat!(env!("OUT_DIR"), "/{stem}.fatbin"))"#);
    let file = |(stem, _): &File| format!("        ({stem:?}, &Aligned(*{}).0),\n", bytes(stem));
    let files: String = files.iter().map(file).collect();
    let kernels: String =
        kernels.iter().map(|(name, number)| format!("        ({name:?}, {number}),\n")).collect();
    let Targets { architectures, .. } = targets;
    let ptx = targets.ptx.then_some(INTERMEDIATE);
    let targets = format!("architectures: &{architectures:?},\n    ptx: {ptx:?}");
    let lists = format!("files: &[\n{files}    ],\n    kernels: &[\n{kernels}    ]");
    let version = compiler.version;
    Ok(format!("Ok(Embedded {{\n    compiler: {version:?},\n    {targets},\n    {lists},\n}})\n"))
}

fn write_changed(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if !fs::read(path).is_ok_and(|old| old == bytes) {
        fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
