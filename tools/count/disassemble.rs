//! Machine code of kernels as text: from cubins, and from fatbins, by the toolkit's `nvdisasm` and `cuobjdump`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::listing::Listing;

/// The toolkit's program of this name.
fn tool(name: &str) -> PathBuf {
    let homes = ["EFFNET_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cuda");
    let homes = homes.map(PathBuf::from).chain([own, PathBuf::from("/usr/local/cuda")]);
    let places = homes.flat_map(|home| [home.join("bin"), home.join("nvidia/cu13/bin")]);
    places.map(|folder| folder.join(name)).find(|path| path.is_file()).unwrap_or_else(|| name.into())
}

fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| format!("{name}: {error}; tools/install_nvcc.sh brings it"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The output of the newest build with kernels below the target folder.
pub fn newest() -> Result<PathBuf, String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(own, PathBuf::from);
    let mut builds = Vec::new();
    for build in folders(&target).iter().map(|profile| profile.join("build")).flat_map(|path| folders(&path))
    {
        let out = build.join("out");
        let kernels = files(&out, "depthwise.fatbin").unwrap_or_default();
        builds.extend(kernels.first().and_then(|file| Some((file.metadata().ok()?.modified().ok()?, out))));
    }
    let newest = builds.into_iter().max().map(|(_, out)| out);
    newest.ok_or_else(|| {
        format!("no build with kernels below {}; run cargo build, with nvcc", target.display())
    })
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

/// What files below `folder` have for an architecture: `*.sm_90.cubin`, or `*.fatbin` of a build.
pub fn read(folder: &Path, architecture: u32, wanted: &dyn Fn(&str) -> bool) -> Result<Listing, String> {
    let mut listing = Listing::default();
    let ending = format!("sm_{architecture}.cubin");
    let unpacked = std::env::temp_dir().join(format!("effnet-count-{}-{architecture}", std::process::id()));
    let mut cubins = files(folder, &ending)?;
    let fatbins = if cubins.is_empty() { files(folder, ".fatbin")? } else { Vec::new() };
    if !fatbins.is_empty() {
        std::fs::create_dir_all(&unpacked).map_err(|error| format!("{}: {error}", unpacked.display()))?;
        for fatbin in fatbins {
            let fatbin = fatbin.canonicalize().map_err(|error| format!("{}: {error}", fatbin.display()))?;
            let name = format!("sm_{architecture}");
            output(
                Command::new(tool("cuobjdump")).args(["-xelf", &name]).arg(fatbin).current_dir(&unpacked),
            )?;
        }
        cubins = files(&unpacked, &ending)?;
    }
    let mut read = || {
        for cubin in &cubins {
            if !kernels(cubin)?.iter().any(|name| wanted(name)) {
                continue;
            }
            let text = output(Command::new(tool("nvdisasm")).args(["-c", "-g", "-hex"]).arg(cubin))?;
            listing.read(&text, wanted)?;
            listing.registers(&output(Command::new(tool("cuobjdump")).arg("-res-usage").arg(cubin))?);
        }
        Ok(())
    };
    let result = read();
    let _ = std::fs::remove_dir_all(&unpacked);
    match result {
        Ok(()) if listing.kernels.is_empty() => {
            Err(format!("{}: no wanted kernel for sm_{architecture} in there", folder.display()))
        }
        Ok(()) => Ok(listing),
        Err(error) => Err(error),
    }
}

/// The kernels of a cubin: its sections' names. Taking it apart takes much longer.
fn kernels(cubin: &Path) -> Result<Vec<String>, String> {
    let bytes = std::fs::read(cubin).map_err(|error| format!("{}: {error}", cubin.display()))?;
    let names = bytes.split(|byte| *byte == 0).filter_map(|name| name.strip_prefix(b".text."));
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    paths.sort();
    Ok(paths)
}
