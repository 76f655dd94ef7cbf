//! The gateway's own tokens: who has shown a password, or nobody, in a form that clients of the token protocol carry
//! back. They are opaque, good for this process only, and say who, not what: the rules are asked at each use.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use tokio::time::Instant;

use super::rules::Caller;
use crate::access::IssuedToken;

/// How a ticket begins, so that it is never taken for somebody's JWT.
const PREFIX: &str = "shoal.";
/// How long one lasts: less than a slow pull, for clients fetch another by themselves.
const LIFETIME: Duration = Duration::from_secs(300);
/// Bytes of the expiry in a ticket.
const EXPIRY_BYTES: usize = 8;
/// Bytes of the keyed hash at its end.
const MAC_BYTES: usize = blake3::OUT_LEN;

/// Makes and checks tickets.
pub(crate) struct Tickets {
    key: [u8; 32],
    start: Instant,
}

impl Tickets {
    pub(crate) fn new() -> Self {
        Self { key: super::random_key(), start: Instant::now() }
    }

    /// A ticket for a user, or for nobody; `None` for callers that prove themselves otherwise each time.
    pub(crate) fn issue(&self, caller: &Caller) -> Option<IssuedToken> {
        let user = match caller {
            Caller::Anonymous => "",
            Caller::User(name) => name,
            _ => return None,
        };
        let expires = (self.start.elapsed() + LIFETIME).as_secs();
        let mut ticket = expires.to_be_bytes().to_vec();
        ticket.extend_from_slice(user.as_bytes());
        let mac = blake3::keyed_hash(&self.key, &ticket);
        ticket.extend_from_slice(mac.as_bytes());
        Some(IssuedToken {
            token: format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&ticket)),
            lifetime: LIFETIME,
        })
    }

    /// Who a ticket is for; `None` when the token is no ticket at all.
    pub(crate) fn redeem(&self, token: &str) -> Option<Result<Caller, &'static str>> {
        let text = token.strip_prefix(PREFIX)?;
        Some(self.read(text).ok_or("the token is not of this gateway, or has expired: log in again"))
    }

    fn read(&self, text: &str) -> Option<Caller> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (signed, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        // Compared in constant time, as `blake3::Hash` does.
        if blake3::keyed_hash(&self.key, signed) != blake3::Hash::from_slice(mac).ok()? {
            return None;
        }
        let (expires, user) = signed.split_at_checked(EXPIRY_BYTES)?;
        let expires = u64::from_be_bytes(expires.try_into().ok()?);
        if self.start.elapsed().as_secs() > expires {
            return None;
        }
        let user = std::str::from_utf8(user).ok()?;
        Some(if user.is_empty() { Caller::Anonymous } else { Caller::User(user.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tickets_are_for_their_user_and_their_time() {
        let tickets = Tickets::new();
        let issue = |caller: &Caller| tickets.issue(caller).unwrap().token;
        let alice = Caller::User("alice".into());
        let ticket = issue(&alice);
        assert_eq!(tickets.redeem(&ticket), Some(Ok(alice.clone())));
        assert_eq!(tickets.redeem(&issue(&Caller::Anonymous)), Some(Ok(Caller::Anonymous)));
        assert!(tickets.issue(&Caller::Certificate(vec![])).is_none());
        assert!(Tickets::new().redeem(&ticket).unwrap().is_err(), "another process's");
        let mut forged = ticket.clone().into_bytes();
        forged[PREFIX.len() + 12] ^= 1;
        assert!(tickets.redeem(std::str::from_utf8(&forged).unwrap()).unwrap().is_err());
        assert!(tickets.redeem("shoal.").unwrap().is_err());
        assert!(tickets.redeem("eyJ.x.y").is_none());
        tokio::time::advance(LIFETIME + Duration::from_secs(2)).await;
        assert!(tickets.redeem(&ticket).unwrap().is_err());
    }
}
