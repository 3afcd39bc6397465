//! Keeping threads on processors near a GPU.
//!
//! In a machine with several sockets a GPU hangs on one of them, and what comes from the other's memory takes a detour.
//! Linux says which processors are near a device; threads that prepare images for it should stay there. All of this is
//! advice: where the machine does not tell, or refuses, threads run anywhere.

use std::fs;

/// The processors near the PCI device of this address, `0000:3b:00.0`; none where the machine does not tell.
pub fn near(address: &str) -> Vec<usize> {
    // Drivers write hexadecimal digits in capitals, and domains of eight digits; the system does neither.
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
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

/// More processors than this no set of the system's holds.
const MOST: usize = 1024;

/// Keeps the calling thread on those of these processors that it may use anyway; where that is none, nothing changes.
/// Says whether it did.
#[cfg(target_os = "linux")]
pub fn stay_on(processors: &[usize]) -> bool {
    // SAFETY: a set of processors is plain bits, all zero for none.
    let (mut allowed, mut chosen): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: writes a set of `size` bytes.
    if processors.is_empty() || unsafe { libc::sched_getaffinity(0, size, &mut allowed) } != 0 {
        return false;
    }
    let mut some = false;
    for &processor in processors.iter().filter(|&&processor| processor < MOST) {
        // SAFETY: `processor` is within the set.
        unsafe {
            if libc::CPU_ISSET(processor, &allowed) {
                libc::CPU_SET(processor, &mut chosen);
                some = true;
            }
        }
    }
    // SAFETY: reads a set of `size` bytes.
    some && unsafe { libc::sched_setaffinity(0, size, &chosen) } == 0
}

/// Elsewhere there is no such call.
#[cfg(not(target_os = "linux"))]
pub fn stay_on(_: &[usize]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse("\n"), Some(vec![]));
        assert_eq!(parse("5"), Some(vec![5]));
        assert_eq!(parse("0-99999999999"), None);
        assert_eq!(parse("a-b"), None);
        assert_eq!(near("0000:ff:1f.7"), Vec::<usize>::new());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_stays_where_it_may_be() {
        std::thread::spawn(|| {
            assert!(!stay_on(&[]) && !stay_on(&[MOST + 5]));
            // SAFETY: takes nothing.
            let here = unsafe { libc::sched_getcpu() } as usize;
            assert!(stay_on(&[here, MOST + 5]));
            for _ in 0..100 {
                std::thread::yield_now();
                // SAFETY: takes nothing.
                assert_eq!(unsafe { libc::sched_getcpu() } as usize, here);
            }
        })
        .join()
        .unwrap();
    }
}
