//! What a file of the hub must hash to: SHA-256 of large ones, git's own hash of small ones.

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::name::is_commit;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    Sha256(String),
    /// SHA-1 over git's header and the content.
    GitBlob(String),
}

impl Checksum {
    /// The hub's etags are checksums; those of other servers may be anything.
    pub fn of_etag(etag: &str) -> Option<Checksum> {
        match etag.len() {
            64 if etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Some(Checksum::Sha256(etag.into()))
            }
            _ => is_commit(etag).then(|| Checksum::GitBlob(etag.into())),
        }
    }

    /// `size`: of the whole file; git hashes it first.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Checksum::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Checksum::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub fn hex(&self) -> &str {
        match self {
            Checksum::Sha256(hex) | Checksum::GitBlob(hex) => hex,
        }
    }
}

pub enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub fn hex(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::GitBlob(hasher) => hex(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_hash_as_their_makers_do() {
        let hash = |checksum: Checksum, text: &str| {
            let mut hasher = checksum.hasher(text.len() as u64);
            let (one, other) = text.as_bytes().split_at(text.len() / 2);
            hasher.update(one);
            hasher.update(other);
            hasher.hex()
        };
        // `git hash-object` of a file with this line, and FIPS 180-4's first example.
        let git = hash(Checksum::GitBlob(String::new()), "hello\n");
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha = hash(Checksum::Sha256(String::new()), "abc");
        assert_eq!(sha, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Checksum::of_etag(&git), Some(Checksum::GitBlob(git)));
        assert_eq!(Checksum::of_etag(&sha), Some(Checksum::Sha256(sha)));
        assert_eq!(Checksum::of_etag("abc"), None);
    }
}
