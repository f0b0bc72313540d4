//! What this machine is, from Linux's own files, and a fingerprint of what two reports must share.
//!
//! What cannot be read is empty, never guessed.

use std::fs;

use sha2::{Digest, Sha256};

use super::report::{Gpu, Hardware};

const HEX_DIGITS: usize = 16;
const GIB: f64 = (1u64 << 30) as f64;

/// This machine. `instructions` are those its kernels use; `gpus` what the driver says.
pub fn of_this_machine(instructions: &str, gpus: Vec<Gpu>) -> Hardware {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let mut hardware = Hardware {
        cpu: cpu_name(&read("/proc/cpuinfo")),
        cores: std::thread::available_parallelism().map_or(1, usize::from) as u32,
        instructions: instructions.into(),
        memory_bytes: memory(&read("/proc/meminfo")),
        os: os_name(&read("/etc/os-release")),
        kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        gpus,
        fingerprint: String::new(),
    };
    hardware.fingerprint = fingerprint(&hardware);
    hardware
}

/// Processor, cores, memory to the gibibyte, and each GPU's name and memory: software may change between
/// two reports that are compared, these may not.
pub fn fingerprint(hardware: &Hardware) -> String {
    let gib = |bytes: u64| (bytes as f64 / GIB).round();
    let mut text = format!("{}|{}|{}", hardware.cpu, hardware.cores, gib(hardware.memory_bytes));
    for gpu in &hardware.gpus {
        text += &format!("|{}|{}", gpu.name, gpu.memory_bytes.map_or(0.0, gib));
    }
    sha256(&[text.as_bytes()])[..HEX_DIGITS].to_string()
}

/// Hash of pieces one after another, in hexadecimal.
pub fn sha256(pieces: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|p| hash.update(p));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The value of a line `name <separator> value`.
fn field<'a>(text: &'a str, names: &[&str], separator: char) -> Option<&'a str> {
    let pairs = || text.lines().filter_map(|l| l.split_once(separator));
    names.iter().find_map(|n| pairs().find(|(name, _)| name.trim() == *n)).map(|(_, v)| v.trim())
}

fn cpu_name(text: &str) -> String {
    // Arm names a part by numbers only.
    field(text, &["model name", "Hardware", "CPU part"], ':').unwrap_or_default().into()
}

fn memory(text: &str) -> u64 {
    let kilobytes = field(text, &["MemTotal"], ':').and_then(|v| v.strip_suffix("kB"));
    kilobytes.and_then(|k| k.trim().parse::<u64>().ok()).map_or(0, |k| k * 1024)
}

fn os_name(text: &str) -> String {
    field(text, &["PRETTY_NAME", "NAME"], '=').unwrap_or_default().trim_matches('"').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_linux_are_read() {
        let cpu = "processor\t: 0\nmodel name\t: A Processor 9000 @ 2.0GHz\nprocessor\t: 1\nmodel name\t: B";
        assert_eq!(cpu_name(cpu), "A Processor 9000 @ 2.0GHz");
        assert_eq!(memory("MemTotal:       16777216 kB\nMemFree: 1 kB"), 16 << 30);
        assert_eq!(os_name("NAME=\"X\"\nPRETTY_NAME=\"X 12 (y)\""), "X 12 (y)");
        assert_eq!((cpu_name("x"), memory("x"), os_name("x")), (String::new(), 0, String::new()));
    }

    #[test]
    fn the_fingerprint_is_of_the_hardware_only() {
        let gpu = Gpu { name: "H".into(), memory_bytes: Some(80 << 30), ..Gpu::default() };
        let a = Hardware { cpu: "A".into(), cores: 2, gpus: vec![gpu], ..Hardware::default() };
        let mut b = a.clone();
        b.kernel = "6.1".into();
        b.gpus[0].driver = Some("580".into());
        b.memory_bytes = 1 << 20;
        assert_eq!(fingerprint(&a), fingerprint(&b));
        b.gpus[0].name = "G".into();
        assert_ne!(fingerprint(&a), fingerprint(&b));
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&[b"a", b"bc"]), abc);
    }
}
