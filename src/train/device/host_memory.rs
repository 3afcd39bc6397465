//! The memory that Linux can still give to this process.

use std::fs;
use std::path::Path;

/// Bytes available to this process: what the kernel calls available, within the limit of its control group. None if
/// the system does not say.
pub fn available() -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    memory.into_iter().chain(group_room()).min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The room under the limits of the control group and of its ancestors (version 2, then version 1).
fn group_room() -> Option<u64> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let room = |dir: &Path, limit: &str, used: &str| {
        Some(number(&dir.join(limit))?.saturating_sub(number(&dir.join(used))?))
    };
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            list if list.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let own = Path::new(root).join(path.trim_start_matches('/'));
        let ancestors = own.ancestors().take_while(|dir| dir.starts_with(root));
        least = ancestors.filter_map(|dir| room(dir, limit, used)).chain(least).min();
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mem_available_is_read_in_kibibytes() {
        let text = "MemTotal:  8000 kB\nMemAvailable:    1234 kB\n";
        assert_eq!(mem_available(text), Some(1234 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB"), None);
    }
}
