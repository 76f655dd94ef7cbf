//! Users and passwords: an htpasswd file with bcrypt hashes (`htpasswd -B`).

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use bcrypt::HashParts;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Costs accepted: bcrypt's least, and 2 to the 16th rounds, which take seconds. (`htpasswd -B` writes 5 unless told
/// otherwise; 10 and more is advisable.)
const COST_RANGE: std::ops::RangeInclusive<u32> = 4..=16;
/// Longest password looked at, in bytes; bcrypt itself reads 72.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Most users in one file.
const USERS_MAX: usize = 100_000;
/// Checks at once: each keeps a processor busy for its whole time.
const CHECKS_MAX: usize = 2;
/// Passwords remembered as right. Clients send theirs with each request, and a check takes a tenth of a second.
const REMEMBERED_MAX: usize = 1024;

/// Why an htpasswd file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    /// A line is not `user:hash`.
    #[error("line {0}: not of the form user:hash")]
    Line(usize),
    /// The hash is not bcrypt's.
    #[error("line {line}: the hash of {user} is not bcrypt's: make it with htpasswd -B")]
    Hash {
        /// Line number, from 1.
        line: usize,
        /// Whose.
        user: String,
    },
    /// A user is there twice.
    #[error("line {line}: {user} is there already")]
    Twice {
        /// Line number, from 1.
        line: usize,
        /// Whose.
        user: String,
    },
    /// Too many users.
    #[error("more than {USERS_MAX} users")]
    TooMany,
}

/// The users of a file.
pub(crate) struct Passwords {
    hashes: BTreeMap<String, String>,
    /// Keyed hashes of user and password, by user: what was found right while this file is in force.
    right: Mutex<BTreeMap<String, blake3::Hash>>,
    key: [u8; 32],
    checks: Arc<Semaphore>,
}

impl FromStr for Passwords {
    type Err = HtpasswdError;

    fn from_str(text: &str) -> Result<Self, HtpasswdError> {
        let mut hashes = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let (line_number, line) = (number + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or(HtpasswdError::Line(line_number))?;
            if user.is_empty() {
                return Err(HtpasswdError::Line(line_number));
            }
            let bcrypt = hash.parse::<HashParts>().is_ok_and(|parts| COST_RANGE.contains(&parts.get_cost()));
            if !bcrypt {
                return Err(HtpasswdError::Hash { line: line_number, user: user.to_owned() });
            }
            if hashes.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(HtpasswdError::Twice { line: line_number, user: user.to_owned() });
            }
            if hashes.len() > USERS_MAX {
                return Err(HtpasswdError::TooMany);
            }
        }
        let key = super::random_key();
        Ok(Self { hashes, right: Mutex::default(), key, checks: Arc::new(Semaphore::new(CHECKS_MAX)) })
    }
}

impl Passwords {
    /// Whether it is known, without a bcrypt check, that this password is right.
    pub(crate) fn remembers(&self, user: &str, password: &str) -> bool {
        // Comparing `blake3::Hash`es takes the same time wherever they differ.
        self.right.lock().get(user).is_some_and(|known| *known == self.digest(user, password))
    }

    /// Whether `password` is `user`'s. An unknown user takes as long to refuse as a known one.
    pub(crate) async fn check(&self, user: &str, password: &str) -> bool {
        if password.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        if self.remembers(user, password) {
            return true;
        }
        let known = self.hashes.get(user).cloned();
        let is_known = known.is_some();
        let Some(hash) = known.or_else(|| self.hashes.values().next().cloned()) else { return false };
        let Ok(turn) = self.checks.clone().acquire_owned().await else { return false };
        let secret = password.to_owned();
        let checked = tokio::task::spawn_blocking(move || {
            let right = bcrypt::verify(secret, &hash).unwrap_or(false);
            drop(turn);
            right
        });
        let right = checked.await.unwrap_or(false) && is_known;
        if right {
            let mut remembered = self.right.lock();
            if remembered.len() >= REMEMBERED_MAX {
                remembered.pop_first();
            }
            remembered.insert(user.to_owned(), self.digest(user, password));
        }
        right
    }

    fn digest(&self, user: &str, password: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(user.len() as u64).to_le_bytes());
        hasher.update(user.as_bytes());
        hasher.update(password.as_bytes());
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &str, password: &str) -> String {
        format!(
            "{user}:{}\n",
            bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap().format_for_version(bcrypt::Version::TwoY)
        )
    }

    #[tokio::test]
    async fn passwords_are_checked_and_right_ones_remembered() {
        let text = format!("# users\n\n{}{}", line("alice", "secret"), line("bob", "other"));
        let passwords: Passwords = text.parse().unwrap();
        assert!(!passwords.remembers("alice", "secret"));
        assert!(passwords.check("alice", "secret").await && passwords.remembers("alice", "secret"));
        assert!(passwords.check("alice", "secret").await);
        for (user, password) in [("alice", "other"), ("bob", "secret"), ("carol", "secret"), ("alice", "")] {
            assert!(!passwords.check(user, password).await, "{user} {password}");
        }
        assert!(!passwords.check("alice", &"x".repeat(5000)).await);
        // Nobody, rather than everybody.
        assert!(!"".parse::<Passwords>().unwrap().check("alice", "").await);
    }

    #[test]
    fn files_that_are_none_are_refused_by_line() {
        let refused = |text: &str| text.parse::<Passwords>().err().unwrap();
        assert_eq!(refused("\nalice"), HtpasswdError::Line(2));
        for other in [
            "$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00",
            "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "plain",
            "$2y$31$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            let error = refused(&format!("alice:{other}"));
            assert_eq!(error, HtpasswdError::Hash { line: 1, user: "alice".into() });
            assert!(!error.to_string().contains(other), "a hash is not repeated");
        }
        let twice = format!("{}{}", line("a", "x"), line("a", "y"));
        assert_eq!(refused(&twice), HtpasswdError::Twice { line: 2, user: "a".into() });
    }
}
