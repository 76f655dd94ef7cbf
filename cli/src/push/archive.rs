//! Files in a tar file or a directory, read where they are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use shoal_types::{Algorithm, Digest, DigestHasher};

/// Entries of a tar file that are looked at.
const ENTRIES_MAX: usize = 100_000;
/// Bytes a manifest, index or config may have.
const JSON_BYTES_MAX: u64 = 8 << 20;
/// What gzip begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An opened archive.
pub(super) struct Archive {
    path: PathBuf,
    /// Where each file of a tar file is; `None` for a directory.
    entries: Option<BTreeMap<String, (u64, u64)>>,
}

/// A file of an archive.
#[derive(Clone)]
pub(super) struct Part {
    path: PathBuf,
    offset: u64,
    /// Bytes.
    pub(super) size: u64,
}

impl Archive {
    /// Opens one, and reads a tar file's list of files.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Self { path: path.to_owned(), entries: None });
        }
        let file = File::open(path).context("cannot be read")?;
        let mut tar = tar::Archive::new(file);
        let (mut entries, mut links) = (BTreeMap::new(), Vec::new());
        for entry in tar.entries_with_seek().context("cannot be read")? {
            let entry = entry.context("it is not a tar file (a compressed one must be unpacked first)")?;
            ensure!(entries.len() < ENTRIES_MAX, "it has too many files");
            let name = plain(&entry.path()?);
            if let Some(target) = entry.link_name()? {
                // docker save links a layer that two images share.
                let base = Path::new(&name).parent().unwrap_or(Path::new(""));
                links.push((name.clone(), plain(&target), plain(&base.join(&target))));
            } else {
                entries.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        for (name, from_root, from_here) in links {
            if let Some(place) = entries.get(&from_here).or_else(|| entries.get(&from_root)).copied() {
                entries.insert(name, place);
            }
        }
        Ok(Self { path: path.to_owned(), entries: Some(entries) })
    }

    /// A file.
    pub(super) fn part(&self, name: &str) -> Option<Part> {
        match &self.entries {
            Some(entries) => {
                let (offset, size) = *entries.get(&plain(Path::new(name)))?;
                Some(Part { path: self.path.clone(), offset, size })
            }
            None => {
                let path = self.path.join(plain(Path::new(name)));
                let size = std::fs::metadata(&path).ok().filter(|meta| meta.is_file())?.len();
                Some(Part { path, offset: 0, size })
            }
        }
    }

    /// A small file's bytes.
    pub(super) fn bytes(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let part = self.part(name).with_context(|| format!("{name} is missing"))?;
        ensure!(part.size <= JSON_BYTES_MAX, "{name} has {} bytes: it is no manifest", part.size);
        let mut bytes = Vec::new();
        part.open()?.take(part.size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A small file's JSON.
    pub(super) fn json(&self, name: &str) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.bytes(name)?).with_context(|| format!("{name} is not JSON"))
    }
}

impl Part {
    /// The file, at its beginning; what follows `size` bytes is not its.
    pub(super) fn open(&self) -> anyhow::Result<File> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file)
    }

    /// Its digest, and whether it is compressed by gzip.
    pub(super) fn digest(&self) -> anyhow::Result<(Digest, bool)> {
        let mut file = self.open()?.take(self.size);
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; super::READ_BYTES];
        let mut is_gzip = None;
        loop {
            let read = file.read(&mut buffer)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                return Ok((hasher.finish(), is_gzip.unwrap_or_default()));
            }
            is_gzip.get_or_insert(bytes.starts_with(&GZIP));
            hasher.update(bytes);
        }
    }
}

/// A name without what does not make a difference, and without ways out.
fn plain(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(plain(Path::new("./a/b")), "a/b");
        assert_eq!(plain(Path::new("/a/../../b")), "b");
    }

    #[test]
    fn files_are_found_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        let mut tar = tar::Builder::new(File::create(&file).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        add("a/layer.tar", b"\x1f\x8bzip");
        add("b.json", b"{\"x\": 1}");
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "c/layer.tar", "../a/layer.tar").unwrap();
        tar.finish().unwrap();
        let archive = Archive::open(&file).unwrap();
        assert_eq!(archive.json("b.json").unwrap()["x"], 1);
        let (digest, is_gzip) = archive.part("c/layer.tar").unwrap().digest().unwrap();
        assert!(is_gzip);
        assert_eq!(digest, archive.part("./a/layer.tar").unwrap().digest().unwrap().0);
        assert!(archive.part("nothing").is_none());
        std::fs::write(dir.path().join("y"), "no archive").unwrap();
        assert!(Archive::open(&dir.path().join("y")).is_err());
    }
}
