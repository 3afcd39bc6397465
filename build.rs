//! Compiles the CUDA kernels, `kernels/*.cu`, and embeds them; and writes their declarations as Rust, see [`sources`].
//!
//! Each file becomes one fatbin with machine code for every architecture of [`ARCHITECTURES`] and PTX for later
//! cards. A file is compiled again only if it, a header that it includes, the flags or the compiler have changed. The
//! crate also builds without a compiler. Then the program says at run time what was missing.
//!
//! | variable | |
//! |---|---|
//! | `EFFNET_CUDA` | `auto` (the default): with kernels where a compiler is found; `require`: or fail; `skip`: without |
//! | `EFFNET_CUDA_HOME` | the CUDA toolkit to use, or a folder filled by `tools/install_nvcc.sh` |
//! | `EFFNET_CUDA_ARCH` | while developing: only these architectures and no PTX, such as `80` or `86,90` |
//! | `NCCL_LIBRARY` | if set, tests that need NCCL are run |
//! | `EFFNET_GPU` | `1` or `0`: whether tests that need a GPU are run; by default if kernels and a GPU are found |
//!
//! A kernel that does not compile fails the build, except with `EFFNET_CUDA=skip`.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

/// Compute capabilities, 8.0 as 80: A100; RTX 30; RTX 40; H100. The last one's PTX serves later cards.
const ARCHITECTURES: [u32; 4] = [80, 86, 89, 90];
/// No fast-math: fp32 kernels are exact. Line numbers cost nothing at run time and let profilers show sources.
/// Spilled registers are slow, so they give a warning. Compression makes files five times smaller; the driver
/// decompresses them.
const FLAGS: [&str; 6] =
    ["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas=-warn-spills", "-Xfatbin=-compress-all"];
/// The oldest supported compiler.
const OLDEST_MAJOR: u32 = 12;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[path = "build/sources.rs"]
mod sources;

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
    let compiler = compiler()?;
    tell_tests(compiler.is_ok())?;
    write_changed(&out.join("sources.rs"), sources::generate(Path::new("kernels"))?.as_bytes())?;
    let embedded = match compiler {
        Ok(compiler) => {
            let targets = Targets::chosen()?;
            let stems = compile_all(&compiler, &targets, &out)?;
            embedding(&compiler, &targets, &stems)
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
        None => kernels && Path::new("/dev/nvidia0").exists(),
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

// ---- the compiler -----------------------------------------------------------------------------------------

struct Compiler {
    path: PathBuf,
    version: (u32, u32),
    /// All that it prints about its version.
    banner: String,
}

/// The compiler, or the reason why kernels are not compiled, as one clause.
fn compiler() -> Result<Result<Compiler, String>, Error> {
    let required = match variable("EFFNET_CUDA").as_deref() {
        None | Some("auto") => false,
        Some("require") => true,
        Some("skip") => return Ok(Err("it was built with EFFNET_CUDA=skip".into())),
        Some(other) => return Err(format!("EFFNET_CUDA={other}: use auto, require or skip").into()),
    };
    if let Some(home) = variable("EFFNET_CUDA_HOME") {
        let home = PathBuf::from(home);
        let path = toolkits(&home).into_iter().find(|nvcc| nvcc.is_file());
        let path = path.ok_or_else(|| format!("EFFNET_CUDA_HOME={}: no bin/nvcc there", home.display()))?;
        return Ok(Ok(version_of(&path)?));
    }
    let mut reason = "no CUDA compiler was found when it was built".to_string();
    let own_folder = || toolkits(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/cuda")));
    let usual_folder = || toolkits(Path::new("/usr/local/cuda"));
    let searches: [&dyn Fn() -> Vec<PathBuf>; 5] =
        [&own_folder, &toolkit_variables, &search_path, &python_environment, &usual_folder];
    for path in searches.iter().flat_map(|search| search()).filter(|nvcc| nvcc.is_file()) {
        match version_of(&path) {
            Ok(compiler) => return Ok(Ok(compiler)),
            Err(error) => reason = format!("no usable CUDA compiler was found when it was built ({error})"),
        }
    }
    if required {
        let remedy = "run tools/install_nvcc.sh, or set EFFNET_CUDA_HOME";
        return Err(format!("EFFNET_CUDA=require, but {reason}: {remedy}").into());
    }
    Ok(Err(reason))
}

/// Possible paths of nvcc, in a toolkit or in a folder into which pip installed NVIDIA's wheels.
fn toolkits(home: &Path) -> Vec<PathBuf> {
    let wheels = fs::read_dir(home.join("nvidia")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut homes: Vec<PathBuf> = wheels.collect();
    homes.sort();
    homes.push(home.to_path_buf());
    homes.iter().rev().map(|home| home.join("bin").join(format!("nvcc{EXE_SUFFIX}"))).collect()
}

fn toolkit_variables() -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    homes.flat_map(|home| toolkits(Path::new(&home))).collect()
}

fn search_path() -> Vec<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(format!("nvcc{EXE_SUFFIX}"))).collect()
}

fn python_environment() -> Vec<PathBuf> {
    let _ = (variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"));
    let program = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let Ok(output) = Command::new("python3").args(["-c", program]).output() else { return Vec::new() };
    toolkits(Path::new(String::from_utf8_lossy(&output.stdout).trim()))
}

fn version_of(path: &Path) -> Result<Compiler, Error> {
    let failed = |what: &str| format!("{}: {what}", path.display());
    let output = Command::new(path).arg("--version").output().map_err(|error| failed(&error.to_string()))?;
    let banner = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = banner.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let (major, minor) = release
        .and_then(|release| release.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| failed("does not say its version"))?;
    if major < OLDEST_MAJOR {
        return Err(failed(&format!("CUDA {major}.{minor}, needs {OLDEST_MAJOR}.0 or later")).into());
    }
    println!("cargo::rerun-if-changed={}", path.display());
    Ok(Compiler { path: path.to_path_buf(), version: (major, minor), banner })
}

// ---- compiling --------------------------------------------------------------------------------------------

struct Targets {
    architectures: Vec<u32>,
    /// The one whose PTX is added.
    ptx: Option<u32>,
}

impl Targets {
    fn chosen() -> Result<Targets, Error> {
        let Some(list) = variable("EFFNET_CUDA_ARCH") else {
            return Ok(Targets { architectures: ARCHITECTURES.to_vec(), ptx: ARCHITECTURES.last().copied() });
        };
        let parse = |text: &str| text.trim().parse().ok().filter(|arch| *arch >= ARCHITECTURES[0]);
        let architectures: Option<BTreeSet<u32>> = list.split(',').map(parse).collect();
        let usage = "use compute capabilities from 80 on, such as 80 or 86,90";
        let architectures = architectures.ok_or_else(|| format!("EFFNET_CUDA_ARCH={list}: {usage}"))?;
        Ok(Targets { architectures: architectures.into_iter().collect(), ptx: None })
    }

    /// Kernels do not look at the architecture, so those of one generation (8.0 to 8.9) are made of the same
    /// intermediate code, which is compiled once. The machine code is the same as from intermediate code of their own.
    fn flags(&self) -> Vec<String> {
        let generation = |arch: u32| arch / 10 * 10;
        let mut generations: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for arch in &self.architectures {
            generations.entry(generation(*arch)).or_default().push(format!("sm_{arch}"));
        }
        if let Some(arch) = self.ptx.map(generation) {
            generations.entry(arch).or_default().push(format!("compute_{arch}"));
        }
        let option = |(arch, codes): (&u32, &Vec<String>)| {
            format!("-gencode=arch=compute_{arch},code=[{}]", codes.join(","))
        };
        generations.iter().map(option).collect()
    }
}

/// Compiles every file whose fatbin is not yet in the cache and copies all to `out`; the files' stems, sorted.
fn compile_all(compiler: &Compiler, targets: &Targets, out: &Path) -> Result<Vec<String>, Error> {
    let flags: Vec<String> = FLAGS.iter().map(|flag| flag.to_string()).chain(targets.flags()).collect();
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

    let mut stems = Vec::new();
    let mut jobs = Vec::new();
    for source in sources {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut hasher = DefaultHasher::new();
        (&compiler.banner, &environment, &flags).hash(&mut hasher);
        hash_source(&source, &mut BTreeSet::new(), &mut hasher)?;
        let fatbin = cache.join(format!("{stem}-{:016x}.fatbin", hasher.finish()));
        jobs.push(Job { source, fatbin, embedded: out.join(format!("{stem}.fatbin")) });
        stems.push(stem);
    }
    let missing: Vec<&Job> = jobs.iter().filter(|job| !job.fatbin.is_file()).collect();
    compile(compiler, &flags, missing)?;
    for job in &jobs {
        write_changed(&job.embedded, &fs::read(&job.fatbin)?)?;
    }
    Ok(stems)
}

struct Job {
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
        return Err(format!("{}\n(EFFNET_CUDA=skip builds without CUDA)", failures.join("\n")).into());
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
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={source}: {line}");
    }
    fs::rename(&part, &job.fatbin)?;
    Ok(())
}

// ---- embedding --------------------------------------------------------------------------------------------

/// The expression that `src/ops/cuda/embedded.rs` includes: a `Result<Embedded, &str>`.
fn embedding(compiler: &Compiler, targets: &Targets, stems: &[String]) -> String {
    let bytes = |stem: &String| format!(r#"include_bytes!(concat!(env!("OUT_DIR"), "/{stem}.fatbin"))"#);
    let file = |stem: &String| format!("        ({stem:?}, &Aligned(*{}).0),\n", bytes(stem));
    let files: String = stems.iter().map(file).collect();
    let Targets { architectures, ptx } = targets;
    let targets = format!("architectures: &{architectures:?},\n    ptx: {ptx:?}");
    format!(
        "Ok(Embedded {{\n    compiler: {:?},\n    {targets},\n    files: &[\n{files}    ],\n}})\n",
        compiler.version
    )
}

fn write_changed(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if !fs::read(path).is_ok_and(|old| old == bytes) {
        fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
