//! Where pip may have put NVIDIA's package of NCCL: `nvidia/nccl/lib` among the packages of a Python.
//!
//! No Python is started for this. A Python keeps its packages in `lib/python3.12/site-packages` below its prefix, or in
//! Debian's `dist-packages`. Prefixes are, in this order: the active environments, the folders above the programs
//! `python3` on the search path, the user's own, and the system's.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of the package, whether it is there or not, for all Pythons whose packages are there. Each appears once.
/// `variable` reads the environment; the system's folders are below `root`, which is `/`.
pub(super) fn folders(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let lists = |name: &str| set(name).map(|list| std::env::split_paths(&list).collect()).unwrap_or_default();
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).map(PathBuf::from).collect();
    let search_path: Vec<PathBuf> = lists("PATH");
    prefixes.extend(search_path.iter().flat_map(|folder| prefixes_of_programs(folder)));
    let user = set("PYTHONUSERBASE").map(PathBuf::from);
    prefixes.extend(user.or_else(|| set("HOME").map(|home| Path::new(&home).join(".local"))));
    prefixes.extend(["usr/local", "usr"].map(|system| root.join(system)));

    let named: Vec<PathBuf> = lists("PYTHONPATH");
    let mut found: Vec<PathBuf> = Vec::new();
    for site in named.into_iter().chain(prefixes.iter().flat_map(|prefix| sites(prefix))) {
        let folder = site.join("nvidia/nccl/lib");
        if site.is_dir() && !found.contains(&folder) {
            found.push(folder);
        }
    }
    found
}

/// The prefixes of the Pythons in a folder of programs: the folder above, and the one above the program that a link
/// leads to.
fn prefixes_of_programs(folder: &Path) -> Vec<PathBuf> {
    let programs = ["python3", "python"].map(|name| folder.join(name));
    let there = programs.iter().filter(|program| program.is_file());
    let above = |program: &Path| program.parent()?.parent().map(Path::to_owned);
    there
        .flat_map(|program| [above(program), fs::canonicalize(program).ok().and_then(|real| above(&real))])
        .flatten()
        .collect()
}

/// The folders of packages below a prefix, those of the latest Python first.
fn sites(prefix: &Path) -> Vec<PathBuf> {
    let mut pythons = Vec::new();
    for lib in ["lib", "lib64"] {
        for entry in fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(version) = name.strip_prefix("python") {
                let numbers: Vec<u32> =
                    version.split('.').map(|number| number.parse().unwrap_or(0)).collect();
                pythons.push((Reverse(numbers), entry.path()));
            }
        }
    }
    pythons.sort();
    let kinds = ["site-packages", "dist-packages"];
    pythons.iter().flat_map(|(_, python)| kinds.map(|kind| python.join(kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of packages, and the folder of NCCL in it.
    fn packages(root: &Path, at: &str) -> PathBuf {
        fs::create_dir_all(root.join(at)).unwrap();
        root.join(at).join("nvidia/nccl/lib")
    }

    #[test]
    fn packages_of_every_usual_python_are_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let expected = [
            "given",
            "active/lib/python3.12/site-packages",
            "conda/lib/python3.11/site-packages",
            "venv/lib64/python3.9/site-packages",
            "own/lib/python3.13/site-packages",
            "own/lib/python3.9/site-packages",
            "home/.local/lib/python3.11/site-packages",
            "usr/local/lib/python3.11/dist-packages",
            "usr/lib/python3/dist-packages",
        ]
        .map(|folder| packages(root.path(), folder));
        // No Python is on the search path in the first of these; the last leads to another folder.
        for folder in ["empty", "venv/bin", "own/bin", "links", "usr/bin"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for program in ["venv/bin/python3", "own/bin/python3.13", "usr/bin/python3"] {
            fs::write(at(program), "").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(at("own/bin/python3.13"), at("links/python")).unwrap();
        let variable = |name: &str| {
            let folders: &[&str] = match name {
                "PYTHONPATH" => &["given", "missing"],
                "VIRTUAL_ENV" => &["active"],
                "CONDA_PREFIX" => &["conda"],
                "PATH" => &["empty", "venv/bin", "links", "active/bin"],
                "HOME" => &["home"],
                _ => return None,
            };
            Some(std::env::join_paths(folders.iter().map(|folder| at(folder))).unwrap())
        };
        assert_eq!(folders(&variable, root.path()), expected);

        let other = packages(root.path(), "base/lib/python3.10/site-packages");
        let elsewhere = |name: &str| match name {
            "PYTHONUSERBASE" => Some(at("base").into_os_string()),
            "VIRTUAL_ENV" => Some("".into()),
            "HOME" => Some(at("home").into_os_string()),
            _ => None,
        };
        assert_eq!(folders(&elsewhere, root.path()), [&[other], &expected[7..]].concat());
        assert_eq!(folders(&|_| None, &at("empty")), Vec::<PathBuf>::new());
    }
}
