//! Standing in for other registries: a client that asks for an image of one of them is given it from the mesh, which
//! pulls it through.
//!
//! containerd says which registry it means with `?ns=` on what it sends to a mirror. dockerd, which only knows mirrors of
//! Docker Hub (`registry-mirrors`), does not, so a mirror for it has a listener of its own: were names that the mesh does
//! not have looked for at Docker Hub, whoever registers the name of somebody's internal image there could have it pulled.

use std::collections::BTreeMap;

use http::{Method, StatusCode};

use crate::error::{ApiError, Code};
use crate::route::{Query, Target};

/// The registries a gateway is a mirror of.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    /// What their repositories' names begin with in the mesh, by the registry's name.
    prefixes: BTreeMap<String, String>,
    /// The prefix of the one that everything is asked of.
    only: Option<String>,
}

impl Mirrors {
    /// A mirror of these for clients that say which they mean. Each has its name, and what the names of its repositories
    /// begin with in the mesh.
    pub fn new(registries: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { prefixes: registries.into_iter().collect(), only: None }
    }

    /// A mirror of the one whose repositories begin with `prefix` in the mesh, and of nothing else.
    pub fn of(prefix: &str) -> Self {
        Self { prefixes: BTreeMap::new(), only: Some(prefix.to_owned()) }
    }

    /// What a request means: of a mirrored registry's repository the one that stands for it in the mesh. A namespace that
    /// is not mirrored is no namespace: images of any name can be pushed to the mesh and pulled by it.
    ///
    /// # Errors
    /// Mirrors are read, and do not list.
    pub(crate) fn target(&self, target: Target, method: &Method, query: &Query) -> Result<Target, ApiError> {
        let named = query.get("ns").and_then(|host| self.prefixes.get(&host.to_ascii_lowercase()));
        let Some(prefix) = self.only.as_ref().or(named) else { return Ok(target) };
        match target {
            Target::Base | Target::Token | Target::Health => Ok(target),
            Target::Manifest(..) | Target::Blob(..) if method == Method::GET || method == Method::HEAD => {
                target.below(prefix)
            }
            _ => Err(ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::Unsupported,
                format!("this is a mirror of {prefix}, to pull from: ask the registry itself"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::parse;

    fn target(mirrors: &Mirrors, method: Method, path: &str, query: &str) -> Result<String, StatusCode> {
        let target = mirrors.target(parse(path).unwrap(), &method, &Query::parse(Some(query)));
        match target {
            Ok(
                Target::Manifest(name, _)
                | Target::Blob(name, _)
                | Target::Tags(name)
                | Target::Uploads(name),
            ) => Ok(name.to_string()),
            Ok(other) => Ok(format!("{other:?}")),
            Err(error) => Err(error.into_response().status()),
        }
    }

    #[test]
    fn namespaces_become_prefixes() {
        let mirrors =
            Mirrors::new([("docker.io".into(), "docker.io".into()), ("r:5000".into(), "r_5000".into())]);
        let get = |path: &str, query: &str| target(&mirrors, Method::GET, path, query);
        assert_eq!(get("/v2/library/x/manifests/1", "ns=docker.io").unwrap(), "docker.io/library/x");
        assert_eq!(get("/v2/library/x/manifests/1", "ns=R%3A5000").unwrap(), "r_5000/library/x");
        assert_eq!(get("/v2/app/manifests/1", "ns=other.example").unwrap(), "app");
        assert_eq!(get("/v2/app/manifests/1", "").unwrap(), "app");
        assert_eq!(get("/v2/", "ns=docker.io").unwrap(), "Base");
        assert_eq!(get("/v2/app/tags/list", "ns=docker.io"), Err(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(get("/v2/app/tags/list", "").unwrap(), "app");
        for (method, path) in [(Method::PUT, "/v2/app/manifests/1"), (Method::POST, "/v2/app/blobs/uploads/")]
        {
            let refused = target(&mirrors, method, path, "ns=docker.io");
            assert_eq!(refused, Err(StatusCode::METHOD_NOT_ALLOWED), "{path}");
        }
    }

    #[test]
    fn a_mirror_of_one_means_it_always() {
        let mirrors = Mirrors::of("docker.io");
        for query in ["", "ns=docker.io", "ns=other.example"] {
            let got = target(&mirrors, Method::HEAD, "/v2/library/x/manifests/1", query);
            assert_eq!(got.unwrap(), "docker.io/library/x");
        }
        let long = format!("/v2/{}/manifests/1", "a/".repeat(125) + "a");
        assert_eq!(target(&mirrors, Method::GET, &long, ""), Err(StatusCode::BAD_REQUEST));
    }
}
