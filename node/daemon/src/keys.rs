//! Key files: a mesh's root key, a process's identity and credential.
//!
//! Secrets are written with mode 0600 and refused when others can read them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use shoal_net::identity::Identity;
use shoal_types::{Credential, Keypair, MeshKey, MeshPublicKey, SignedCredential, WallTime};

/// Name of the identity's secret key inside its directory.
pub const IDENTITY_FILE: &str = "identity.key";
/// Name of the credential inside the identity's directory.
pub const CREDENTIAL_FILE: &str = "credential.cbor";
/// Name of the mesh's secret root key.
pub const MESH_KEY_FILE: &str = "mesh.key";
/// Name of the mesh's public root key.
pub const MESH_PUBLIC_FILE: &str = "mesh.pub";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read or written.
    #[error("{path}: {source}{hint}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Others than its owner can read a secret.
    #[error("{path} can be read by others (mode {mode:03o}): run chmod 600 on it")]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Its content is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Makes a mesh: a new root key in `dir`, its secret and public halves. An existing key is never overwritten.
///
/// # Errors
/// [`KeyError::Io`], also when there is a key already.
pub fn init_mesh(dir: &Path) -> Result<MeshKey, KeyError> {
    let key = MeshKey::from_secret(&random_secret());
    make_dir(dir)?;
    write_secret(&dir.join(MESH_KEY_FILE), &key.secret())?;
    write_public(&dir.join(MESH_PUBLIC_FILE), format!("{}\n", key.public()).as_bytes())?;
    Ok(key)
}

/// Reads a mesh's secret root key.
///
/// # Errors
/// [`KeyError`].
pub fn read_mesh_key(path: &Path) -> Result<MeshKey, KeyError> {
    Ok(MeshKey::from_secret(&read_secret(path, "; shoal mesh init makes one")?))
}

/// Reads a mesh's public root key.
///
/// # Errors
/// [`KeyError`].
pub fn read_mesh_public(path: &Path) -> Result<MeshPublicKey, KeyError> {
    let text = fs::read_to_string(path)
        .map_err(|source| io_error(path, source, "; copy mesh.pub from where shoal mesh init made it"))?;
    text.trim().parse().map_err(|_| KeyError::Content {
        path: path.to_owned(),
        why: "not a mesh's public key (shoal1…)".to_owned(),
    })
}

/// Makes a process's identity in `dir`, or keeps the one that is there, and issues a credential for it.
/// `describe` fills in the credential for the identity's peer id.
///
/// # Errors
/// [`KeyError`].
pub fn issue_identity(
    dir: &Path,
    mesh: &MeshKey,
    describe: impl FnOnce(shoal_types::PeerId) -> Credential,
) -> Result<Identity, KeyError> {
    make_dir(dir)?;
    let path = dir.join(IDENTITY_FILE);
    let keypair = if path.exists() {
        Keypair::from_secret(&read_secret(&path, "")?)
    } else {
        let keypair = Keypair::from_secret(&random_secret());
        write_secret(&path, &keypair.secret())?;
        keypair
    };
    let credential = mesh.issue(describe(keypair.peer_id()));
    write_public(&dir.join(CREDENTIAL_FILE), &credential.to_bytes())?;
    Ok(Identity { keypair, credential, mesh: mesh.public() })
}

/// Reads a process's identity and checks its credential.
///
/// # Errors
/// [`KeyError::Content`] when the credential would not admit this process to the mesh of `mesh_pub` now.
pub fn read_identity(dir: &Path, mesh_pub: &Path, now: WallTime) -> Result<Identity, KeyError> {
    let mesh = read_mesh_public(mesh_pub)?;
    let hint = "; shoal credential issue --out DIR makes one";
    let keypair = Keypair::from_secret(&read_secret(&dir.join(IDENTITY_FILE), hint)?);
    let path = dir.join(CREDENTIAL_FILE);
    let bytes = fs::read(&path).map_err(|source| io_error(&path, source, hint))?;
    let content = |why: String| KeyError::Content { path: path.clone(), why };
    let credential = SignedCredential::from_bytes(&bytes).map_err(|error| content(error.to_string()))?;
    mesh.check(&credential, keypair.peer_id(), now).map_err(|error| content(error.to_string()))?;
    Ok(Identity { keypair, credential, mesh })
}

/// 32 bytes of the operating system's randomness.
pub fn random_secret() -> [u8; 32] {
    let mut secret = [0; 32];
    #[expect(
        clippy::expect_used,
        reason = "without the operating system's randomness nothing here is secure"
    )]
    getrandom::fill(&mut secret).expect("the operating system has randomness");
    secret
}

fn make_dir(dir: &Path) -> Result<(), KeyError> {
    fs::create_dir_all(dir).map_err(|source| io_error(dir, source, ""))
}

fn io_error(path: &Path, source: std::io::Error, hint: &'static str) -> KeyError {
    KeyError::Io { path: path.to_owned(), source, hint }
}

fn write_secret(path: &Path, secret: &[u8; 32]) -> Result<(), KeyError> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| io_error(path, source, "; it is never overwritten: move it away first"))?;
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    file.write_all(format!("{hex}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|source| io_error(path, source, ""))
}

/// Replaces the file at once, so that no reader sees half of it.
fn write_public(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(|source| io_error(path, source, ""))
}

fn read_secret(path: &Path, hint: &'static str) -> Result<[u8; 32], KeyError> {
    let meta = fs::metadata(path).map_err(|source| io_error(path, source, hint))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(|source| io_error(path, source, hint))?;
    let text = text.trim();
    let bad =
        || KeyError::Content { path: path.to_owned(), why: "not a key file: 64 hex characters".to_owned() };
    let mut secret = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(bad());
    }
    for (byte, at) in secret.iter_mut().zip((0..64).step_by(2)) {
        *byte = text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(bad)?;
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Role, Roles, Zone};

    fn describe(peer: shoal_types::PeerId) -> Credential {
        Credential {
            peer,
            roles: Roles::NONE.with(Role::Node),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::from_unix_millis(10),
            not_after: WallTime::from_unix_millis(20),
        }
    }

    #[test]
    fn an_identity_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = init_mesh(dir.path()).unwrap();
        let public = dir.path().join(MESH_PUBLIC_FILE);
        let own = dir.path().join("node");
        let made = issue_identity(&own, &mesh, describe).unwrap();
        let again = issue_identity(&own, &mesh, describe).unwrap();
        assert_eq!(made.keypair.peer_id(), again.keypair.peer_id());
        let read = read_identity(&own, &public, WallTime::from_unix_millis(15)).unwrap();
        assert_eq!(read.credential, again.credential);
        let late = read_identity(&own, &public, WallTime::from_unix_millis(21)).err().unwrap();
        assert!(late.to_string().contains("expired"), "{late}");
    }

    #[test]
    fn secrets_are_guarded() {
        let dir = tempfile::tempdir().unwrap();
        init_mesh(dir.path()).unwrap();
        assert!(init_mesh(dir.path()).is_err(), "a root key is never overwritten");
        let path = dir.path().join(MESH_KEY_FILE);
        assert!(read_mesh_key(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_mesh_key(&path), Err(KeyError::Permissions { mode: 0o640, .. })));
        let missing = read_mesh_key(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("shoal mesh init"), "{missing}");
    }
}
