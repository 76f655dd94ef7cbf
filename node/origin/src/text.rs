//! Texts of foreign errors, made fit for logs: with their causes, on one line, and without what URLs may carry.

use std::error::Error;
use std::fmt;

/// Most characters of a foreign text that are shown.
const SHOWN_MAX: usize = 600;

/// An error of a library, as a text without secrets.
#[derive(Debug)]
pub(crate) struct Told(String);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Told {}

/// The error and its causes.
pub(crate) fn told(error: &(dyn Error + 'static)) -> Told {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Many print their cause themselves.
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    Told(scrub(&texts.join(": ")))
}

/// A text of somebody else's.
pub(crate) fn told_text(text: &str) -> Told {
    Told(scrub(text))
}

/// One line, of bounded length, in which URLs have lost their queries (signatures, tokens) and user information.
pub(crate) fn scrub(text: &str) -> String {
    let mut shown = String::new();
    for word in text.split_whitespace() {
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.push_str(&scrub_word(word));
        if shown.len() > SHOWN_MAX {
            let end = (0..=SHOWN_MAX).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or_default();
            shown.truncate(end);
            shown.push('…');
            break;
        }
    }
    shown
}

fn scrub_word(word: &str) -> String {
    let Some(scheme_end) = word.find("://") else {
        // A path with a query, as in a request line.
        return match word.find('?') {
            Some(at) if word.starts_with('/') => format!("{}?…", &word[..at]),
            _ => word.to_owned(),
        };
    };
    let (scheme, rest) = word.split_at(scheme_end + 3);
    let authority_end = rest.find(['/', '?', '#', ')', '"', '\'']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = match path.find('?') {
        Some(at) => {
            let end = path.find([')', '"', '\'']).filter(|end| *end > at).unwrap_or(path.len());
            format!("{}?…{}", &path[..at], &path[end..])
        }
        None => path.to_owned(),
    };
    format!("{scheme}{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_may_be_secret() {
        assert_eq!(
            scrub("error sending request for url (https://u:p@host:1/a/b?sig=SECRET&se=1): timed\nout"),
            "error sending request for url (https://host:1/a/b?…): timed out"
        );
        assert_eq!(scrub("GET /webhdfs/v1/x?delegation=SECRET now"), "GET /webhdfs/v1/x?… now");
        assert_eq!(scrub("is it there? no"), "is it there? no");
        assert_eq!(scrub("\"https://host?token=SECRET\""), "\"https://host?…\"");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "é".repeat(1000);
        let shown = scrub(&text);
        assert!(shown.len() <= SHOWN_MAX + '…'.len_utf8() && shown.ends_with('…'));
    }

    #[test]
    fn causes_are_told_once() {
        let cause = std::io::Error::other("the cause");
        let error = crate::BackendError::unavailable("x", cause);
        assert_eq!(told(&error).to_string(), "the backend failed at x: the cause");
    }
}
