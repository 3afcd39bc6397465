//! Compiles the kernels and the interpreter with g++; nothing else is needed. See `src/lib.rs`.
//!
//! `EFFNET_HARNESS` chooses what watches the kernels: `plain` (nothing), `address` (address and undefined-behaviour
//! sanitisers) or `race` (the race checker, which also counts memory traffic). `EFFNET_HOST_KERNELS="depthwise,step"`
//! compiles only these kernels, for work on one of them. `CXX` is the compiler.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

const COMMON: &[&str] = &[
    "-std=c++20",
    "-O2",
    "-g1",
    "-fPIC",
    "-ftls-model=initial-exec",
    "-fno-strict-aliasing",
    "-fstack-clash-protection", // a stack that overflows hits its guard page, however large the frame
    "-mf16c",
    "-mfma",
    "-mavx2",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-invalid-offsetof",
];
const ADDRESS: &[&str] =
    &["-fsanitize=address,undefined", "-fsanitize-recover=all", "-fno-omit-frame-pointer"];
const RACE: &[&str] = &["-DEFFNET_RACE"];
/// For kernels only: they report their accesses to the interpreter.
const RACE_KERNELS: &[&str] = &["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"];

const INTERPRETER: [&str; 5] = ["fibers.cpp", "launch.cpp", "memory.cpp", "race.cpp", "warp.cpp"];

/// An object file.
struct Unit {
    /// The compiled text, which includes the source.
    text: String,
    source: PathBuf,
    flags: Vec<String>,
    object: PathBuf,
}

/// The source and every header of ours that it includes.
fn closure(source: &Path, folders: &[PathBuf], found: &mut BTreeSet<PathBuf>) {
    let source = source.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    if !found.insert(source.clone()) {
        return;
    }
    let text = fs::read_to_string(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    for line in text.lines() {
        let Some(name) = line.trim_start().strip_prefix("#include \"") else { continue };
        let name = name.split('"').next().unwrap_or("");
        let beside = source.parent().map(Path::to_path_buf);
        let path = beside.iter().chain(folders).map(|folder| folder.join(name)).find(|path| path.is_file());
        if let Some(path) = path {
            closure(&path, folders, found);
        }
    }
}

fn compile(compiler: &str, unit: &Unit) -> Result<(), String> {
    if unit.object.is_file() {
        return Ok(());
    }
    let text = unit.object.with_extension("cc");
    let scratch = unit.object.with_extension(format!("{}.part", std::process::id()));
    fs::write(&text, &unit.text).map_err(|e| e.to_string())?;
    let mut command = Command::new(compiler);
    command.args(&unit.flags).arg("-c").arg(&text).arg("-o").arg(&scratch);
    let output = command.output().map_err(|e| format!("{compiler} (the host harness needs g++): {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    for line in said.lines().filter(|line| line.contains("warning:")) {
        println!("cargo:warning={line}");
    }
    if !output.status.success() {
        return Err(format!("{} does not compile for the host\n{said}", unit.source.display()));
    }
    fs::rename(&scratch, &unit.object).map_err(|e| e.to_string())
}

/// `.cu` files of a folder by name, in order.
fn kernels(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    all.sort();
    all
}

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = here.parent().expect("the folder of kernels").to_path_buf();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed={}", folder.display());
    for variable in ["EFFNET_HARNESS", "EFFNET_HOST_KERNELS", "CXX"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-check-cfg=cfg(harness, values(\"plain\", \"address\", \"race\"))");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let harness = env::var("EFFNET_HARNESS").unwrap_or_else(|_| "plain".into());
    let (watching, of_kernels): (&[&str], &[&str]) = match harness.as_str() {
        "plain" => (&[], &[]),
        "address" => (ADDRESS, &[]),
        "race" => (RACE, RACE_KERNELS),
        other => panic!("EFFNET_HARNESS is `{other}`: plain, address or race"),
    };
    println!("cargo:rustc-cfg=harness=\"{harness}\"");
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
    let version = Command::new(&compiler).arg("--version").output().map(|o| o.stdout).unwrap_or_default();

    let wanted = env::var("EFFNET_HOST_KERNELS").ok();
    let wanted: Option<Vec<&str>> = wanted.as_ref().map(|names| names.split(',').map(str::trim).collect());
    let chosen = |path: &PathBuf| {
        let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
        wanted.as_ref().is_none_or(|wanted| wanted.contains(&name))
    };
    let mut sources: Vec<(PathBuf, bool)> = INTERPRETER.iter().map(|name| (here.join(name), false)).collect();
    sources.extend(kernels(&folder).into_iter().filter(chosen).map(|path| (path, true)));
    sources.extend(kernels(&here.join("planted")).into_iter().map(|path| (path, true)));

    let folders = [folder.clone(), here.clone()];
    let units: Vec<Unit> = sources
        .into_iter()
        .map(|(source, kernel)| {
            let mut flags: Vec<String> = COMMON.iter().chain(watching).map(|s| s.to_string()).collect();
            let shown = source.display();
            let text = if kernel {
                flags.extend(of_kernels.iter().map(|s| s.to_string()));
                // CUDA does not link files with each other, so two files may use a name for different things: each gets
                // its own namespace.
                format!("#include \"host/shim.h\"\nnamespace {{\n#include \"{shown}\"\n}}\n")
            } else {
                format!("#include \"{shown}\"\n")
            };
            flags.extend(folders.iter().map(|folder| format!("-I{}", folder.display())));
            let mut read = BTreeSet::new();
            closure(&source, &folders, &mut read);
            closure(&here.join("shim.h"), &folders, &mut read);
            let mut hasher = DefaultHasher::new();
            (&compiler, &version, &flags, &text).hash(&mut hasher);
            for path in &read {
                fs::read(path).unwrap_or_default().hash(&mut hasher);
            }
            let stem = source.file_stem().and_then(|s| s.to_str()).unwrap_or("kernel").to_string();
            let kind = if kernel { "kernel" } else { "host" };
            let object = out.join(format!("{kind}-{stem}-{:016x}.o", hasher.finish()));
            Unit { text, source, flags, object }
        })
        .collect();

    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2usize).clamp(1, 8);
    let next = Mutex::new(units.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(unit) = next.lock().expect("no panic").next() else { break };
                    if let Err(failure) = compile(&compiler, unit) {
                        failures.lock().expect("no panic").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    if !failures.is_empty() {
        eprintln!("{}", failures.join("\n"));
        std::process::exit(1);
    }

    let library = out.join("libeffnet_kernel_host.a");
    let _ = fs::remove_file(&library);
    let archived = Command::new("ar").arg("crs").arg(&library).args(units.iter().map(|u| &u.object)).status();
    assert!(archived.is_ok_and(|status| status.success()), "ar could not make {}", library.display());
    println!("cargo:rustc-link-search=native={}", out.display());
    // The whole archive: kernels are found through a table that their constructors fill.
    println!("cargo:rustc-link-lib=static:+whole-archive=effnet_kernel_host");
    // The sanitisers' libraries come first, before the C++ library that they wrap.
    if harness == "address" {
        println!("cargo:rustc-link-lib=dylib=asan");
        println!("cargo:rustc-link-lib=dylib=ubsan");
    }
    println!("cargo:rustc-link-lib=dylib=stdc++");
}
