//! Keeps threads on the processors near a GPU.
//!
//! In a machine with several sockets, a GPU is attached to one of them, and memory of the other socket reaches it by a
//! detour. Linux says which processors are near a device; threads that prepare images for it should stay there. All of
//! this is advice: where the system does not say, or refuses, threads run anywhere.

use std::fs;

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The largest set of processors that Linux takes here.
const MAX_PROCESSORS: usize = 1024;

/// The processors near the PCI device at this address, `0000:3b:00.0`; none where the system does not say.
pub fn near(address: &str) -> Vec<usize> {
    // Drivers write hexadecimal digits in capitals and domains of eight digits; the system does neither.
    let address = address.trim().to_ascii_lowercase();
    let short = match address.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => format!("{}:{rest}", &domain[domain.len() - 4..]),
        _ => address,
    };
    let list = fs::read_to_string(format!("/sys/bus/pci/devices/{short}/local_cpulist"));
    list.ok().and_then(|text| parse(&text)).unwrap_or_default()
}

/// "0-3,8" is 0, 1, 2, 3 and 8.
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut processors = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.trim().parse().ok()?;
        let last: usize = last.trim().parse().ok()?;
        if last >= MAX_PROCESSORS {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

/// Keeps the calling thread on these processors, as far as it may use them; if it may use none, nothing changes.
/// Returns whether the thread is kept.
#[cfg(target_os = "linux")]
pub fn stay_on(processors: &[usize]) -> bool {
    const { assert!(CpuSet::MAX_CPU == MAX_PROCESSORS) };
    let Ok(allowed) = sched_getaffinity(None) else { return false };
    let mut chosen = CpuSet::new();
    let usable = |processor: &usize| *processor < MAX_PROCESSORS && allowed.is_set(*processor);
    processors.iter().copied().filter(usable).for_each(|processor| chosen.set(processor));
    chosen.count() > 0 && sched_setaffinity(None, &chosen).is_ok()
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
pub fn stay_on(_: &[usize]) -> bool {
    false
}

/// The name of the machine's processor; none where the system does not say.
pub fn name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    named.map(|(_, name)| name.trim().to_string()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_read() {
        assert_eq!(parse("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse("\n"), Some(vec![]));
        assert_eq!(parse("5"), Some(vec![5]));
        assert_eq!(parse("0-99999999999"), None);
        assert_eq!(parse("a-b"), None);
        assert_eq!(near("0000:ff:1f.7"), Vec::<usize>::new());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn thread_stays_on_the_processors_it_may_use() {
        std::thread::spawn(|| {
            assert!(!stay_on(&[]) && !stay_on(&[MAX_PROCESSORS + 5]));
            let here = rustix::thread::sched_getcpu();
            assert!(stay_on(&[here, MAX_PROCESSORS + 5]));
            for _ in 0..100 {
                std::thread::yield_now();
                assert_eq!(rustix::thread::sched_getcpu(), here);
            }
        })
        .join()
        .unwrap();
    }
}
