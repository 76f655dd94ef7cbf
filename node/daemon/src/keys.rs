//! Key files: a mesh's root key, a process's identity and credential.
//!
//! Secrets are written with mode 0600 and refused when others can read them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use shoal_net::identity::Identity;
use shoal_types::{
    Credential, Intermediate, IssuingKey, JoinToken, JoinTokenError, Keypair, MeshKey, MeshPublicKey, PeerId,
    SignedCredential, SignedIntermediate, WallTime,
};

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

/// Makes an intermediate: a new issuing key at `path`, with what the mesh's root key says of it.
///
/// # Errors
/// [`KeyError::Io`], also when there is a file already.
pub fn make_intermediate(
    path: &Path,
    mesh: &MeshKey,
    describe: impl FnOnce(PeerId) -> Intermediate,
) -> Result<IssuingKey, KeyError> {
    let keypair = Keypair::from_secret(&random_secret());
    let document = mesh.certify(describe(keypair.peer_id()));
    let lines = format!("{}\n{}\n", hex(&keypair.secret()), hex(&document.to_bytes()));
    write_new(path, &lines)?;
    Ok(IssuingKey::Intermediate(keypair, document))
}

/// Reads a key that can issue credentials: the root key, or an intermediate's.
///
/// # Errors
/// [`KeyError`].
pub fn read_issuing_key(path: &Path) -> Result<IssuingKey, KeyError> {
    let text = read_guarded(path, "; shoal mesh init and shoal mesh intermediate make keys")?;
    let mut lines = text.lines();
    let secret = parse_secret(path, lines.next().unwrap_or_default())?;
    let Some(document) = lines.next() else { return Ok(IssuingKey::Root(MeshKey::from_secret(&secret))) };
    let bad = |why: String| KeyError::Content { path: path.to_owned(), why };
    let bytes = data_encoding::HEXLOWER
        .decode(document.trim().as_bytes())
        .map_err(|_| bad("the second line is not hexadecimal".to_owned()))?;
    let document = SignedIntermediate::from_bytes(&bytes).map_err(|error| bad(error.to_string()))?;
    let keypair = Keypair::from_secret(&secret);
    if document.value().key != keypair.peer_id() {
        return Err(bad("the two lines do not belong together".to_owned()));
    }
    Ok(IssuingKey::Intermediate(keypair, document))
}

/// Writes a new file that only its owner can read: a join token.
///
/// # Errors
/// [`KeyError::Io`], also when there is a file already.
pub fn write_new_secret(path: &Path, text: &str) -> Result<(), KeyError> {
    write_new(path, text)
}

/// Reads a join token: `text` itself, or the file that it names.
///
/// # Errors
/// [`KeyError`].
pub fn read_join_token(text: &str) -> Result<JoinToken, KeyError> {
    if let Ok(token) = text.parse() {
        return Ok(token);
    }
    let path = PathBuf::from(text);
    if !path.exists() {
        // Not repeated: it may be most of a secret.
        let why = "neither a join token nor a file that holds one".to_owned();
        return Err(KeyError::Content { path: PathBuf::from("join"), why });
    }
    let held = read_guarded(&path, "")?;
    held.parse().map_err(|error: JoinTokenError| KeyError::Content { path, why: error.to_string() })
}

/// Makes a member of this machine with a join token: at the first start an identity, its credential and the mesh's public
/// key; later a new credential when the old one does not last much longer and the token still does.
///
/// # Errors
/// [`KeyError`].
pub fn join(token: &JoinToken, dir: &Path, mesh_pub: &Path, now: WallTime) -> Result<Identity, KeyError> {
    if mesh_pub.exists() {
        if read_mesh_public(mesh_pub)? != token.mesh() {
            let why = "the join token is of another mesh: remove this file to move".to_owned();
            return Err(KeyError::Content { path: mesh_pub.to_owned(), why });
        }
    } else {
        make_dir(mesh_pub.parent().unwrap_or(Path::new(".")))?;
        write_public(mesh_pub, format!("{}\n", token.mesh()).as_bytes())?;
    }
    let there = read_identity(dir, mesh_pub, now);
    if let Ok(identity) = &there {
        let value = identity.credential.value();
        let lasting =
            value.not_after.saturating_since(now) > value.not_after.saturating_since(value.not_before) / 3;
        if lasting || token.not_after() <= value.not_after {
            return there;
        }
    }
    let keypair = keep_or_make_identity(dir)?;
    let credential = token.issue(keypair.peer_id(), now).map_err(|error| KeyError::Content {
        path: PathBuf::from("join"),
        why: format!("the join token does not help: {error}"),
    })?;
    write_credential(dir, &credential)?;
    Ok(Identity { keypair, credential, mesh: token.mesh() })
}

/// Replaces the credential in an identity's directory.
///
/// # Errors
/// [`KeyError::Io`].
pub fn write_credential(dir: &Path, credential: &SignedCredential) -> Result<(), KeyError> {
    make_dir(dir)?;
    write_public(&dir.join(CREDENTIAL_FILE), &credential.to_bytes())
}

/// The identity's key in `dir`, made if there is none.
///
/// # Errors
/// [`KeyError`].
pub fn keep_or_make_identity(dir: &Path) -> Result<Keypair, KeyError> {
    make_dir(dir)?;
    let path = dir.join(IDENTITY_FILE);
    if path.exists() {
        return Ok(Keypair::from_secret(&read_secret(&path, "")?));
    }
    let keypair = Keypair::from_secret(&random_secret());
    write_secret(&path, &keypair.secret())?;
    Ok(keypair)
}

/// Makes a process's identity in `dir`, or keeps the one that is there, and issues a credential for it.
/// `describe` fills in the credential for the identity's peer id.
///
/// # Errors
/// [`KeyError`].
pub fn issue_identity(
    dir: &Path,
    (key, mesh): (&IssuingKey, MeshPublicKey),
    describe: impl FnOnce(PeerId) -> Credential,
) -> Result<Identity, KeyError> {
    let keypair = keep_or_make_identity(dir)?;
    let credential = key.issue(describe(keypair.peer_id()));
    let credential = credential
        .map_err(|error| KeyError::Content { path: dir.join(CREDENTIAL_FILE), why: error.to_string() })?;
    write_credential(dir, &credential)?;
    Ok(Identity { keypair, credential, mesh })
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

/// 16 bytes of the operating system's randomness: an id that nobody guesses.
pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&random_secret()[..16]);
    id
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

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn write_secret(path: &Path, secret: &[u8; 32]) -> Result<(), KeyError> {
    write_new(path, &format!("{}\n", hex(secret)))
}

fn write_new(path: &Path, text: &str) -> Result<(), KeyError> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| io_error(path, source, "; it is never overwritten: move it away first"))?;
    file.write_all(text.as_bytes())
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
    parse_secret(path, &read_guarded(path, hint)?)
}

/// The text of a file that only its owner can read.
fn read_guarded(path: &Path, hint: &'static str) -> Result<String, KeyError> {
    let meta = fs::metadata(path).map_err(|source| io_error(path, source, hint))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { path: path.to_owned(), mode });
    }
    fs::read_to_string(path).map_err(|source| io_error(path, source, hint))
}

fn parse_secret(path: &Path, text: &str) -> Result<[u8; 32], KeyError> {
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
            issuer: None,
        }
    }

    #[test]
    fn an_identity_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = init_mesh(dir.path()).unwrap();
        let public = dir.path().join(MESH_PUBLIC_FILE);
        let own = dir.path().join("node");
        let key = (&IssuingKey::Root(mesh.clone()), mesh.public());
        let made = issue_identity(&own, key, describe).unwrap();
        let again = issue_identity(&own, key, describe).unwrap();
        assert_eq!(made.keypair.peer_id(), again.keypair.peer_id());
        let read = read_identity(&own, &public, WallTime::from_unix_millis(15)).unwrap();
        assert_eq!(read.credential, again.credential);
        let late = read_identity(&own, &public, WallTime::from_unix_millis(21)).err().unwrap();
        assert!(late.to_string().contains("expired"), "{late}");
    }

    #[test]
    fn an_intermediate_s_file_issues_within_its_scope() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = init_mesh(dir.path()).unwrap();
        let path = dir.path().join("ci.key");
        let scope = |key| Intermediate {
            key,
            roles: Roles::NONE.with(Role::Node),
            zones: vec![],
            namespaces: vec![],
            not_before: WallTime::from_unix_millis(5),
            not_after: WallTime::from_unix_millis(20),
        };
        make_intermediate(&path, &mesh, scope).unwrap();
        assert!(make_intermediate(&path, &mesh, scope).is_err(), "never overwritten");
        let key = read_issuing_key(&path).unwrap();
        let own = dir.path().join("node");
        issue_identity(&own, (&key, mesh.public()), describe).unwrap();
        assert!(
            read_identity(&own, &dir.path().join(MESH_PUBLIC_FILE), WallTime::from_unix_millis(15)).is_ok()
        );
        let beyond = |peer| Credential { roles: Roles::NONE.with(Role::Origin), ..describe(peer) };
        let refused = issue_identity(&own, (&key, mesh.public()), beyond).err().unwrap().to_string();
        assert!(refused.contains("roles"), "{refused}");
        assert!(matches!(read_issuing_key(&dir.path().join(MESH_KEY_FILE)), Ok(IssuingKey::Root(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_issuing_key(&path), Err(KeyError::Permissions { .. })));
    }

    #[test]
    fn a_join_token_makes_a_member_once_and_renews_it() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = init_mesh(&dir.path().join("mesh")).unwrap();
        let key = Keypair::from_secret(&random_secret());
        let intermediate = mesh.certify(Intermediate {
            key: key.peer_id(),
            roles: Roles::NONE.with(Role::Node),
            zones: vec![],
            namespaces: vec![],
            not_before: WallTime::from_unix_millis(0),
            not_after: WallTime::from_unix_millis(10_000),
        });
        let lifetime = std::time::Duration::from_millis(3_000);
        let token =
            JoinToken::new(mesh.public(), &key, intermediate, Zone::default(), vec![], lifetime).unwrap();
        let (own, public) = (dir.path().join("etc/identity"), dir.path().join("etc/mesh.pub"));
        let join_at = |millis| join(&token, &own, &public, WallTime::from_unix_millis(millis));
        let first = join_at(1_000).unwrap();
        assert_eq!(first.credential.value().not_after, WallTime::from_unix_millis(4_000));
        let mode = fs::metadata(own.join(IDENTITY_FILE)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(join_at(2_000).unwrap().credential, first.credential, "what is good is kept");
        let renewed = join_at(3_500).unwrap();
        assert_eq!(renewed.peer_id(), first.peer_id());
        assert_eq!(renewed.credential.value().not_after, WallTime::from_unix_millis(6_500));
        join_at(9_900).unwrap();
        assert!(join_at(10_001).is_err(), "both are over");
        let other = MeshKey::from_secret(&[9; 32]).public();
        fs::write(&public, format!("{other}\n")).unwrap();
        assert!(join_at(1_000).unwrap_err().to_string().contains("another mesh"));
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
