//! What `doctor` finds of Xids: the errors that NVIDIA's driver has written to the kernel's log since the machine
//! started. NVML tells only those that come while someone listens.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use super::{Finding, Level, finding};
use crate::power::CRITICAL_XIDS;

/// Of the log that is read: the kernel's ring is smaller.
const MOST_BYTES: usize = 16 << 20;

/// The kernel's log, from its start to now.
///
/// # Errors
/// Without the right to read it, or where there is none.
pub fn kernel_log() -> std::io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut log = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut text, mut record) = (String::new(), [0; 16 << 10]);
    // One record a call; at the end it would wait for the next.
    while text.len() < MOST_BYTES {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(read) => text += &String::from_utf8_lossy(&record[..read]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // A record was overwritten before it was read.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(text)
}

/// A finding for each Xid of each board, and one where nothing can be said.
pub fn findings(log: std::io::Result<String>) -> Vec<Finding> {
    let log = match log {
        Ok(log) => log,
        Err(error) => {
            let found = format!("Xids since the start of the machine are unknown: /dev/kmsg: {error}");
            let fix = "run doctor as root, or allow it by `sysctl kernel.dmesg_restrict=0`";
            return vec![finding("xid", Level::Warn, found, fix)];
        }
    };
    let mut count: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for (board, xid) in log.lines().filter_map(of_line) {
        *count.entry((board, xid)).or_default() += 1;
    }
    if count.is_empty() {
        return vec![finding("xid", Level::Pass, "none since the start of the machine".into(), "")];
    }
    let one = |((board, xid), times): ((String, u64), usize)| {
        let level = if CRITICAL_XIDS.contains(&xid) { Level::Error } else { Level::Warn };
        let fix = match level {
            Level::Error => {
                "reset the board or reboot; if it comes again, have it replaced (NVIDIA's Xid catalog)"
            }
            _ => "`dmesg | grep NVRM` says what it was of; NVIDIA's Xid catalog says what to do",
        };
        finding(
            "xid",
            level,
            format!("{board}: Xid {xid}, {times} times since the start of the machine"),
            fix,
        )
    };
    count.into_iter().map(one).collect()
}

/// Of "NVRM: Xid (PCI:0000:3b:00): 79, pid=…": the board and the number.
fn of_line(line: &str) -> Option<(String, u64)> {
    let (_, rest) = line.split_once("NVRM: Xid (")?;
    let (board, rest) = rest.split_once("):")?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    Some((board.chars().take(32).collect(), digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_are_counted_by_board_and_weighed() {
        let log = "6,1,1,-;usb 1-1: new device\n\
             4,2,9,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python, Ch 00000008\n\
             4,3,9,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=77\n\
             4,4,9,-;NVRM: Xid (PCI:0000:af:00): 79, GPU has fallen off the bus.\n\
             4,5,9,-;NVRM: Xid (PCI";
        let found = findings(Ok(log.into()));
        let said: Vec<_> = found.iter().map(|f| (f.found.as_str(), f.level == Level::Error)).collect();
        let since = "times since the start of the machine";
        assert_eq!(
            said,
            [
                (format!("PCI:0000:3b:00: Xid 31, 2 {since}").as_str(), false),
                (format!("PCI:0000:af:00: Xid 79, 1 {since}").as_str(), true),
            ]
        );
        assert!(found.iter().all(|f| !f.fix.is_empty()));
        assert!(findings(Ok("nothing".into()))[0].level == Level::Pass);
        let unreadable = std::io::Error::from(ErrorKind::PermissionDenied);
        assert!(findings(Err(unreadable))[0].level == Level::Warn);
    }
}
