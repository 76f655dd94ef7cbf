//! What a bootstrap peer remembers across restarts: the list of revocations, in a file. The rest the mesh teaches again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_net::control::persist::{Change, ControlPersistence, MemoryPersistence, PersistError, Remembered};
use shoal_types::SignedRevocations;

/// The file in the data directory.
const FILE: &str = "revocations.cbor";

/// Remembers the list of revocations in a directory, and everything else until the process ends.
#[derive(Debug)]
pub struct DoorMemory {
    path: PathBuf,
    rest: Arc<MemoryPersistence>,
}

impl DoorMemory {
    /// In the directory `dir`, which is made when there is something to remember.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), rest: MemoryPersistence::shared() }
    }

    fn read(&self) -> Result<Option<SignedRevocations>, PersistError> {
        let failed = |why: &dyn std::fmt::Display| PersistError(format!("{}: {why}", self.path.display()));
        match std::fs::read(&self.path) {
            Ok(bytes) => SignedRevocations::from_bytes(&bytes).map(Some).map_err(|error| failed(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    fn write(&self, list: &SignedRevocations) -> std::io::Result<()> {
        use std::io::Write as _;
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // Whole or not at all.
        let fresh = self.path.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(&list.to_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)
    }
}

impl ControlPersistence for DoorMemory {
    fn load(&self) -> Result<Remembered, PersistError> {
        Ok(Remembered { revocations: self.read()?, ..self.rest.load()? })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), PersistError> {
        for change in &changes {
            if let Change::SetRevocations(list) = change {
                self.write(list)
                    .map_err(|error| PersistError(format!("{}: {error}", self.path.display())))?;
            }
        }
        self.rest.apply(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{MeshKey, RevocationList};

    #[test]
    fn revocations_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data");
        assert_eq!(DoorMemory::new(&dir).load().unwrap().revocations, None);
        let list = MeshKey::from_secret(&[1; 32]).revoke(RevocationList::default());
        DoorMemory::new(&dir).apply(vec![Change::SetRevocations(list.clone())]).unwrap();
        assert_eq!(DoorMemory::new(&dir).load().unwrap().revocations, Some(list));
        std::fs::write(dir.join(FILE), "torn").unwrap();
        assert!(DoorMemory::new(&dir).load().is_err(), "it is said rather than passed over");
    }
}
