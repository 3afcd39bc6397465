//! Finds the CUDA compiler, and what is known of it and of this machine's driver and GPU.
//!
//! Toolkits that the environment names come first, then those in the usual places, and last the one that
//! `tools/install_nvcc.sh` installs. So a compiler that was once downloaded never hides the one that a user chose.

use std::collections::BTreeSet;
use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::branches::branch_for;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The oldest supported compiler.
const OLDEST_MAJOR: u32 = 12;
/// The compiler's own folder, which `tools/install_nvcc.sh` fills.
const OWN_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/cuda");

pub struct Compiler {
    pub path: PathBuf,
    pub version: (u32, u32),
    /// All that it prints about its version.
    pub banner: String,
}

/// Reads an environment variable; none if it is not set or empty.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The compiler, or the reason why kernels are not compiled, as one clause.
///
/// # Errors
/// A wrong setting, or no compiler where one is required.
pub fn compiler(variable: Variable) -> Result<Result<Compiler, String>, Error> {
    let required = match variable("EFFNET_CUDA").as_deref() {
        None | Some("auto") => false,
        Some("require") => true,
        Some("skip") => return Ok(Err("it was built with EFFNET_CUDA=skip".into())),
        Some(other) => return Err(format!("EFFNET_CUDA={other}: use auto, require or skip").into()),
    };
    if let Some(home) = variable("EFFNET_CUDA_HOME") {
        let path = toolkits(Path::new(&home)).into_iter().find(|nvcc| nvcc.is_file());
        let path = path.ok_or_else(|| format!("EFFNET_CUDA_HOME={home}: no bin/nvcc there"))?;
        return Ok(Ok(version_of(&path)?));
    }
    let mut reason = "no CUDA compiler was found when it was built".to_string();
    for path in candidates(variable, Path::new(OWN_FOLDER)).filter(|nvcc| nvcc.is_file()) {
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

/// Where nvcc may be, the most deliberate choice first.
fn candidates<'a>(variable: Variable<'a>, own: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    let named = move || {
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        homes.flat_map(|home| toolkits(Path::new(&home))).collect::<Vec<_>>()
    };
    let search_path = move || {
        let path = variable("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(nvcc())).collect()
    };
    let python = move || {
        let _ = (variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")); // so that Cargo notices a change
        python_packages()
    };
    let usual = || toolkits(Path::new("/usr/local/cuda"));
    // Each search runs only if those before it have found nothing.
    let searches: [Box<dyn Fn() -> Vec<PathBuf> + 'a>; 5] = [
        Box::new(named),
        Box::new(search_path),
        Box::new(python),
        Box::new(usual),
        Box::new(move || toolkits(own)),
    ];
    searches.into_iter().flat_map(|search| search())
}

fn nvcc() -> String {
    format!("nvcc{EXE_SUFFIX}")
}

/// Possible paths of nvcc, in a toolkit or in a folder into which pip installed NVIDIA's wheels.
fn toolkits(home: &Path) -> Vec<PathBuf> {
    let wheels = fs::read_dir(home.join("nvidia")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut homes: Vec<PathBuf> = wheels.collect();
    homes.sort();
    homes.push(home.to_path_buf());
    homes.iter().rev().map(|home| home.join("bin").join(nvcc())).collect()
}

fn python_packages() -> Vec<PathBuf> {
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

impl Compiler {
    /// The architectures that it has machine code for, 8.0 as 80.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn architectures(&self) -> Result<Vec<u32>, Error> {
        let output = Command::new(&self.path).arg("--list-gpu-code").output();
        let output = output.map_err(|error| format!("{}: {error}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok()).collect())
    }
}

/// What a compiler said while it compiled a file.
pub struct Said<'a> {
    /// The kernels that it compiled.
    pub kernels: BTreeSet<&'a str>,
    /// Everything apart from the facts about each kernel.
    pub warnings: Vec<&'a str>,
}

/// Reads the output of ptxas with `-v`.
pub fn said(text: &str) -> Said<'_> {
    let info = |line: &&str| line.starts_with("ptxas info") || line.contains(" bytes stack frame, ");
    let entries = text.split("Compiling entry function '").skip(1);
    let kernels = entries.filter_map(|rest| rest.split('\'').next()).collect();
    let warnings = text.lines().filter(|line| !line.trim().is_empty() && !info(line)).collect();
    Said { kernels, warnings }
}

// ---- the machine ------------------------------------------------------------------------------------------

/// Whether there is an NVIDIA GPU, by the files below `root`, which is `/`.
///
/// Containers get the files of their own GPUs only, so `nvidia0` may be missing; `nvidiactl` is there without any. In
/// WSL2 all makers' GPUs are `/dev/dxg`, and Windows' NVIDIA driver brings its library.
pub fn gpu_below(root: &Path) -> bool {
    let numbered = |name: &str| {
        name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok() && !rest.starts_with('+'))
    };
    let devices = fs::read_dir(root.join("dev")).into_iter().flatten().flatten();
    devices.into_iter().any(|entry| numbered(&entry.file_name().to_string_lossy()))
        || root.join("dev/dxg").exists() && root.join("usr/lib/wsl/lib/libcuda.so.1").exists()
}

/// A warning if this machine's driver is older than what the compiler's code needs.
pub fn warning(compiler: (u32, u32)) -> Option<String> {
    let told = fs::read_to_string("/proc/driver/nvidia/version").ok().or_else(|| {
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        let output = Command::new("nvidia-smi").args(query).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    old_driver(&driver_version(&told?)?, compiler)
}

/// The first word like 535.129.03 in what the driver says about itself.
fn driver_version(told: &str) -> Option<String> {
    let branch = |word: &str| word.split_once('.').and_then(|(branch, _)| branch.parse::<u32>().ok());
    told.split_whitespace().find(|word| branch(word).is_some_and(|branch| branch >= 100)).map(Into::into)
}

fn old_driver(driver: &str, (major, minor): (u32, u32)) -> Option<String> {
    let branch: u32 = driver.split('.').next()?.parse().ok()?;
    let needs = branch_for(major)?;
    let older = if major > OLDEST_MAJOR { ", or compile with tools/install_nvcc.sh --cuda 12" } else { "" };
    (branch < needs).then(|| {
        format!(
            "this machine's NVIDIA driver is {driver}, but code of CUDA {major}.{minor} needs {needs} or later: \
             update the driver{older}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that says what nvcc says.
    #[cfg(unix)]
    fn compiler_in(folder: &Path, release: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("bin/nvcc");
        fs::create_dir_all(folder.join("bin")).unwrap();
        let text = format!(
            "#!/bin/sh\nif [ $1 = --version ]; then echo 'Cuda compilation tools, release {release}, V{release}.1'\n\
             else echo sm_80; echo sm_120; fi\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    #[cfg(unix)]
    fn environment_is_searched_before_the_own_folder() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let own = compiler_in(&at("own/nvidia/cu13"), "13.0");
        let [home, path] = ["home", "path"].map(|name| compiler_in(&at(name), "12.4"));
        let found = |variables: &[(&str, PathBuf)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(of, _)| *of == name)?;
                Some(found.1.display().to_string())
            };
            candidates(&variable, &at("own"))
                .filter(|nvcc| nvcc.is_file() && nvcc.starts_with(root.path()))
                .collect::<Vec<_>>()
        };
        let (home_at, path_at) = (at("home"), at("path/bin"));
        assert_eq!(found(&[]), std::slice::from_ref(&own));
        assert_eq!(found(&[("PATH", path_at.clone())]), [path.clone(), own.clone()]);
        assert_eq!(found(&[("PATH", path_at), ("CUDA_PATH", home_at)]), [home, path, own]);
    }

    #[test]
    #[cfg(unix)]
    fn named_toolkit_is_used_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().display().to_string();
        let named = |name: &str| (name == "EFFNET_CUDA_HOME").then(|| home.clone());
        let refused = || compiler(&named).map(|_| ()).unwrap_err().to_string();
        assert_eq!(refused(), format!("EFFNET_CUDA_HOME={home}: no bin/nvcc there"));
        compiler_in(root.path(), "11.8");
        assert!(refused().ends_with("CUDA 11.8, needs 12.0 or later"), "{}", refused());
        compiler_in(root.path(), "12.9");
        let found = compiler(&named).unwrap().unwrap();
        assert_eq!((found.version, found.architectures().unwrap()), ((12, 9), vec![80, 120]));
    }

    #[test]
    fn output_of_the_compiler_names_kernels_and_warns() {
        let text = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'some_f16' for 'sm_80'
ptxas info    : Function properties for some_f16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
ptxas info    : Compile time = 2.004 ms
ptxas info    : Compiling entry function 'some_f16' for 'sm_90'
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas warning : Registers are spilled to local memory in function 'other', 4 bytes spill stores, 12 bytes spill loads

kernels/some.cu(3): warning #177-D: variable \"x\" was declared but never referenced
";
        let Said { kernels, warnings } = said(text);
        assert_eq!(kernels.into_iter().collect::<Vec<_>>(), ["other", "some_f16"]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("spilled") && warnings[1].contains("never referenced"), "{warnings:?}");
    }

    #[test]
    fn gpu_is_found_in_containers_and_windows() {
        for (files, found) in [
            (vec![], false),
            (vec!["dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-caps"], false),
            (vec!["dev/nvidiactl", "dev/nvidia0"], true),
            (vec!["dev/nvidiactl", "dev/nvidia13"], true),
            (vec!["dev/dxg"], false),
            (vec!["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"], true),
        ] {
            let root = tempfile::tempdir().unwrap();
            for file in &files {
                let path = root.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            assert_eq!(gpu_below(root.path()), found, "{files:?}");
        }
    }

    #[test]
    fn driver_older_than_the_compiler_is_told() {
        for (told, version) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\nGCC version:  gcc 12.3.0",
                Some("535.129.03"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
                Some("580.65.06"),
            ),
            ("566.36\n566.36\n", Some("566.36")),
            ("no devices were found", None),
        ] {
            assert_eq!(driver_version(told).as_deref(), version);
        }
        let text = old_driver("535.129.03", (13, 0)).unwrap();
        assert!(text.contains("535.129.03") && text.contains("580") && text.contains("--cuda 12"), "{text}");
        let text = old_driver("520.61", (12, 4)).unwrap();
        assert!(text.contains("525") && !text.contains("--cuda"), "{text}");
        let newer = [("580.65.06", (13, 0)), ("535.129.03", (12, 9)), ("610.1", (14, 0))];
        assert!(newer.iter().all(|(driver, compiler)| old_driver(driver, *compiler).is_none()));
    }
}
