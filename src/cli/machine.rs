//! What this machine has: memory that may be used, cores, and the instructions the kernels can take.

use crate::ops::cpu::Isa;

/// Memory a process may still take, and what sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub available: u64,
    /// True when a control group (a container) allows less than the machine has.
    pub by_cgroup: bool,
}

/// Memory available to this process; `None` where the system does not say.
pub fn memory() -> Option<Memory> {
    let free = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(match cgroup_room() {
        Some(room) if room < free => Memory { available: room, by_cgroup: true },
        _ => Memory { available: free, by_cgroup: false },
    })
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// What the control group leaves: version 2, else version 1.
fn cgroup_room() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let room = |limit: &str, used: &str| Some(read(limit)?.saturating_sub(read(used).unwrap_or(0)));
    room("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        room("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
    })
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU kernels' instruction set, as the banner and `doctor` name it.
pub fn instructions() -> &'static str {
    match Isa::detect() {
        Isa::Avx512 => "AVX-512 BF16",
        Isa::Avx2 => "AVX2 and FMA",
        Isa::Scalar => "no SIMD",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn available_memory_is_read() {
        assert_eq!(super::meminfo("MemTotal: 5 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(super::meminfo("nonsense"), None);
    }
}
