//! Writing ustar archives (POSIX.1-1988), as far as image layers and archives need them.

use std::io::{self, Write};

const BLOCK_BYTES: usize = 512;

/// Writes one archive.
#[derive(Debug)]
pub struct Tar<W> {
    out: W,
}

impl<W: Write> Tar<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds a directory; `name` ends with a slash.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dir(&mut self, name: &str) -> io::Result<()> {
        self.out.write_all(&header(name, 0o755, 0, b'5')?)
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(name, mode, content.len(), b'0')?)?;
        self.out.write_all(content)?;
        let padding = content.len().next_multiple_of(BLOCK_BYTES) - content.len();
        self.out.write_all(&[0; BLOCK_BYTES][..padding])
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn header(name: &str, mode: u32, size: usize, kind: u8) -> io::Result<[u8; BLOCK_BYTES]> {
    if name.len() > 100 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a name too long for ustar: {name}"),
        ));
    }
    let mut header = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_systems_tar_reads_it() {
        let mut tar = Tar::new(Vec::new());
        tar.dir("a/").unwrap();
        tar.file("a/b", 0o644, &[7; 700]).unwrap();
        let bytes = tar.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let mut child = Command::new("tar")
            .args(["-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && listing.contains("a/\n") && listing.contains(" 700 "),
            "{listing}"
        );
    }
}
