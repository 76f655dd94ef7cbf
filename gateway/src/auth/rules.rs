//! Who may do what in which repositories.

use regex::Regex;
use serde::Deserialize;
use shoal_types::RepositoryName;

use crate::access::Access;

/// What a rule can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write blobs, manifests and tags.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
    /// Have gateways fetch images, by notifications of pushes.
    Preheat,
    /// List all repositories, whatever the rule's pattern.
    Catalog,
}

/// Whoever makes a request, as far as it has been proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Nobody in particular.
    Anonymous,
    /// A user of the htpasswd file.
    User(String),
    /// The holder of a client certificate with these names.
    Certificate(Vec<String>),
    /// The subject of a token of the named issuer.
    Token { issuer: String, subject: String },
    /// The bearer of a token whose issuer has decided what it may do.
    Granted { subject: String, grants: Vec<Grant> },
}

/// What a registry token allows: one entry of its `access` claim (distribution, "Token Authentication Specification").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Grant {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The repository, or `catalog`.
    pub(crate) name: String,
    /// `pull`, `push`, `delete` or `*`.
    pub(crate) actions: Vec<String>,
}

impl Grant {
    fn allows(&self, kind: &str, name: &str, action: &str) -> bool {
        self.kind == kind
            && self.name == name
            && self.actions.iter().any(|given| given == action || given == "*")
    }
}

impl Caller {
    /// How it is called in logs and messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Anonymous => "nobody".to_owned(),
            Self::User(name) => format!("user {name}"),
            Self::Certificate(names) => format!("certificate {}", names.join(", ")),
            Self::Token { issuer, subject } => format!("token {issuer}/{subject}"),
            Self::Granted { subject, .. } => format!("token of {subject}"),
        }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        *self == Self::Anonymous
    }
}

/// Whom a rule is for: one entry of its `who`.
#[derive(Clone, Debug)]
enum Who {
    Anyone,
    Authenticated,
    User(Regex),
    Certificate(Regex),
    Token { issuer: String, subject: Regex },
}

/// The text does not name anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "who: {0:?} is none of anyone, authenticated, user:NAME, certificate:NAME, token:ISSUER/SUBJECT (* in a name \
     stands for any characters)"
)]
pub struct WhoError(String);

impl Who {
    fn parse(text: &str) -> Result<Self, WhoError> {
        let bad = || WhoError(text.to_owned());
        let glob =
            |pattern: &str| if pattern.is_empty() { Err(bad()) } else { glob(pattern).ok_or_else(bad) };
        match text.split_once(':') {
            None if text == "anyone" => Ok(Self::Anyone),
            None if text == "authenticated" => Ok(Self::Authenticated),
            Some(("user", name)) => Ok(Self::User(glob(name)?)),
            Some(("certificate", name)) => Ok(Self::Certificate(glob(name)?)),
            Some(("token", rest)) => {
                let (issuer, subject) = rest.split_once('/').ok_or_else(bad)?;
                Ok(Self::Token { issuer: issuer.to_owned(), subject: glob(subject)? })
            }
            _ => Err(bad()),
        }
    }

    fn is(&self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Anyone, _) => true,
            (Self::Authenticated, caller) => !caller.is_anonymous(),
            (Self::User(pattern), Caller::User(name)) => pattern.is_match(name),
            (Self::Certificate(pattern), Caller::Certificate(names)) => {
                names.iter().any(|name| pattern.is_match(name))
            }
            (Self::Token { issuer, subject }, Caller::Token { issuer: of, subject: is }) => {
                issuer == of && subject.is_match(is)
            }
            _ => false,
        }
    }
}

/// A pattern in which only `*` is special.
fn glob(pattern: &str) -> Option<Regex> {
    let parts: Vec<String> = pattern.split('*').map(regex::escape).collect();
    Regex::new(&format!("(?s)^(?:{})$", parts.join(".*"))).ok()
}

/// A rule: these may do this there. What no rule allows is refused.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    who: Vec<Who>,
    repositories: Regex,
    allow: Vec<Action>,
}

/// Why a rule is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It names nobody.
    #[error(transparent)]
    Who(#[from] WhoError),
    /// It is for nobody, or allows nothing.
    #[error("a rule needs at least one entry in who and in allow")]
    Empty,
    /// The pattern is none.
    #[error("repositories: {pattern:?} is not a regular expression: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong, on one line.
        why: String,
    },
}

impl Rule {
    /// A rule over repositories whose whole name matches the regular expression `repositories`.
    pub(crate) fn new(who: &[String], repositories: &str, allow: Vec<Action>) -> Result<Self, RuleError> {
        if who.is_empty() || allow.is_empty() {
            return Err(RuleError::Empty);
        }
        let who = who.iter().map(|text| Who::parse(text)).collect::<Result<_, _>>()?;
        let pattern = Regex::new(&format!("^(?:{repositories})$")).map_err(|error| RuleError::Pattern {
            pattern: repositories.to_owned(),
            why: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
        })?;
        Ok(Self { who, repositories: pattern, allow })
    }

    fn allows(&self, caller: &Caller, action: Action, repository: Option<&RepositoryName>) -> bool {
        self.allow.contains(&action)
            && repository.is_none_or(|name| self.repositories.is_match(name.as_str()))
            && self.who.iter().any(|who| who.is(caller))
    }
}

/// Whether `caller` may have `wanted`. [`Access::Ping`] is for whoever is somebody.
pub(crate) fn allowed(rules: &[Rule], caller: &Caller, wanted: &Access) -> bool {
    let (action, name, repository) = match wanted {
        Access::Ping => return !caller.is_anonymous(),
        Access::Catalog => (Action::Catalog, "*", None),
        Access::Pull(name) => (Action::Pull, "pull", Some(name)),
        Access::Push(name) => (Action::Push, "push", Some(name)),
        Access::Delete(name) => (Action::Delete, "delete", Some(name)),
        Access::Preheat(name) => (Action::Preheat, "preheat", Some(name)),
    };
    if let Caller::Granted { grants, .. } = caller {
        return match repository {
            Some(repository) => {
                grants.iter().any(|grant| grant.allows("repository", repository.as_str(), name))
            }
            None => grants.iter().any(|grant| grant.allows("registry", "catalog", name)),
        };
    }
    rules.iter().any(|rule| rule.allows(caller, action, repository))
}

/// Whether somebody who has not logged in may do anything at all.
pub(crate) fn anonymous_allowed(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| rule.who.iter().any(|who| matches!(who, Who::Anyone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(who: &[&str], repositories: &str, allow: &[Action]) -> Rule {
        let who: Vec<String> = who.iter().map(|who| (*who).to_owned()).collect();
        Rule::new(&who, repositories, allow.to_vec()).unwrap()
    }

    fn pull(name: &str) -> Access {
        Access::Pull(name.parse().unwrap())
    }

    fn push(name: &str) -> Access {
        Access::Push(name.parse().unwrap())
    }

    #[test]
    fn what_no_rule_allows_is_refused() {
        let rules = [
            rule(&["anyone"], "public/.*", &[Action::Pull]),
            rule(&["user:alice", "certificate:*.build.example"], "team/.*", &[Action::Pull, Action::Push]),
            rule(&["token:github/repo:acme/*:ref:refs/heads/main"], "acme/.*", &[Action::Push]),
            rule(&["authenticated"], "shared", &[Action::Pull, Action::Catalog]),
        ];
        let alice = Caller::User("alice".into());
        let build = Caller::Certificate(vec!["x".into(), "one.build.example".into()]);
        let token = |subject: &str| Caller::Token { issuer: "github".into(), subject: subject.into() };
        let may = |caller: &Caller, wanted: &Access| allowed(&rules, caller, wanted);
        assert!(
            may(&Caller::Anonymous, &pull("public/app")) && !may(&Caller::Anonymous, &push("public/app"))
        );
        assert!(!may(&Caller::Anonymous, &pull("team/app")) && !may(&Caller::Anonymous, &pull("shared")));
        assert!(may(&alice, &push("team/app")) && may(&build, &push("team/app")));
        assert!(!may(&Caller::User("alicex".into()), &push("team/app")), "the whole name counts");
        assert!(!may(&alice, &push("team2/app")) && !may(&alice, &push("x/team/app")));
        assert!(!may(&alice, &Access::Delete("team/app".parse().unwrap())));
        assert!(may(&token("repo:acme/web:ref:refs/heads/main"), &push("acme/web")));
        assert!(!may(&token("repo:evil/web:ref:refs/heads/main"), &push("acme/web")));
        let other =
            Caller::Token { issuer: "other".into(), subject: "repo:acme/web:ref:refs/heads/main".into() };
        assert!(!may(&other, &push("acme/web")), "a subject counts with its issuer");
        assert!(may(&alice, &Access::Catalog) && !may(&Caller::Anonymous, &Access::Catalog));
        assert!(may(&alice, &Access::Ping) && !may(&Caller::Anonymous, &Access::Ping));
        assert!(anonymous_allowed(&rules) && !anonymous_allowed(&rules[1..]));
    }

    #[test]
    fn a_registry_token_allows_what_it_says_and_rules_add_nothing() {
        let rules = [rule(&["anyone"], ".*", &[Action::Pull, Action::Push])];
        let grant = |kind: &str, name: &str, actions: &[&str]| Grant {
            kind: kind.into(),
            name: name.into(),
            actions: actions.iter().map(|action| (*action).to_owned()).collect(),
        };
        let grants = vec![grant("repository", "a", &["pull"]), grant("registry", "catalog", &["*"])];
        let caller = Caller::Granted { subject: "x".into(), grants };
        assert!(allowed(&rules, &caller, &pull("a")) && allowed(&rules, &caller, &Access::Catalog));
        assert!(!allowed(&rules, &caller, &push("a")) && !allowed(&rules, &caller, &pull("a/b")));
    }

    #[test]
    fn bad_rules_are_named() {
        let error = |who: &str, pattern: &str| {
            Rule::new(&[who.to_owned()], pattern, vec![Action::Pull]).unwrap_err().to_string()
        };
        assert!(error("alice", ".*").contains("\"alice\""));
        assert!(error("token:github", ".*").contains("token:ISSUER/SUBJECT"));
        assert!(error("user:", ".*").contains("user:"));
        let pattern = error("anyone", "(");
        assert!(pattern.contains("\"(\"") && pattern.lines().count() == 1, "{pattern}");
        assert_eq!(Rule::new(&[], ".*", vec![Action::Pull]).unwrap_err(), RuleError::Empty);
    }
}
