use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// An Ed25519 key and its JWKS.
struct Signer {
    id: &'static str,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = data_encoding::BASE64URL_NOPAD.encode(pair.public_key_raw());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": id, "x": x});
        Self { id, key: EncodingKey::from_ed_der(&pair.serialize_der()), jwk }
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut claims = json!({
            "iss": "https://issuer.example", "aud": "registry", "sub": "system:serviceaccount:ci:builder",
            "nbf": now - 5, "exp": now + 60,
        });
        change(&mut claims);
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.to_owned());
        encode(&header, &claims, &self.key).unwrap()
    }
}

fn jwks(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk.clone()).collect::<Vec<_>>() }).to_string()
}

/// An access file in a directory of its own.
struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn guard(&self, access: &str) -> Guard {
        self.write("access.toml", access);
        Guard::load(&self.dir.path().join("access.toml")).unwrap()
    }
}

const ISSUER: &str =
    "[[issuer]]\nname = \"k8s\"\nissuer = \"https://issuer.example\"\naudience = [\"registry\"]\n";

fn users() -> String {
    let hash = |password: &str| bcrypt::hash_with_salt(password, 4, [3; 16]).unwrap();
    format!("alice:{}\nbob:{}\n", hash("apple"), hash("pear"))
}

fn basic(user: &str, password: &str) -> HeaderMap {
    header(&format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes())))
}

fn bearer(token: &str) -> HeaderMap {
    header(&format!("Bearer {token}"))
}

fn header(value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("registry.example:5000"));
    headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    headers
}

fn nothing() -> HeaderMap {
    let mut headers = header("x");
    headers.remove(AUTHORIZATION);
    headers
}

fn pull(name: &str) -> Access {
    Access::Pull(name.parse().unwrap())
}

fn push(name: &str) -> Access {
    Access::Push(name.parse().unwrap())
}

async fn check(guard: &Guard, headers: &HeaderMap, wanted: Access) -> Result<(), AccessError> {
    guard.check(&Connection::default(), headers, &[wanted]).await
}

#[track_caller]
fn challenge(result: Result<(), AccessError>) -> String {
    match result {
        Err(AccessError::Unauthorized { challenge, .. }) => challenge,
        other => panic!("no challenge but {other:?}"),
    }
}

#[tokio::test]
async fn users_do_what_the_rules_allow() {
    let setup = Setup::new();
    setup.write("users", &users());
    let guard = setup.guard(
        "htpasswd = \"users\"\n[[rule]]\nwho = [\"user:alice\"]\nrepositories = \"team/.*\"\nallow = [\"pull\", \"push\"]\n",
    );
    let (alice, bob) = (basic("alice", "apple"), basic("bob", "pear"));
    assert_eq!(check(&guard, &alice, push("team/app")).await, Ok(()));
    assert_eq!(check(&guard, &bob, Access::Ping).await, Ok(()), "docker login asks no more");
    assert!(matches!(check(&guard, &bob, pull("team/app")).await, Err(AccessError::Denied(_))));
    assert!(matches!(check(&guard, &alice, push("other")).await, Err(AccessError::Denied(_))));
    for wrong in
        [nothing(), basic("alice", "pear"), basic("", ""), header("Basic !"), header("Digest x"), header("x")]
    {
        let challenge = challenge(check(&guard, &wrong, pull("team/app")).await);
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
    assert!(guard.wants_encryption());
}

#[tokio::test]
async fn guessing_passwords_is_slowed_and_the_right_one_known_goes_on() {
    let setup = Setup::new();
    setup.write("users", &users());
    let guard =
        setup.guard("htpasswd = \"users\"\n[[rule]]\nwho = [\"authenticated\"]\nallow = [\"pull\"]\n");
    assert_eq!(check(&guard, &basic("bob", "pear"), pull("a")).await, Ok(()));
    let mut refused = 0;
    for number in 0..30 {
        let guess = basic("alice", &number.to_string());
        refused +=
            u32::from(matches!(check(&guard, &guess, pull("a")).await, Err(AccessError::TooMany { .. })));
    }
    assert_eq!(refused, 10);
    assert!(matches!(
        check(&guard, &basic("alice", "apple"), pull("a")).await,
        Err(AccessError::TooMany { .. })
    ));
    assert_eq!(check(&guard, &basic("bob", "pear"), pull("a")).await, Ok(()), "known to be right");
}

#[tokio::test]
async fn anonymous_pulls_and_the_gateway_s_own_tokens() {
    let setup = Setup::new();
    setup.write("users", &users());
    let guard = setup.guard(
        "htpasswd = \"users\"\n[[rule]]\nwho = [\"anyone\"]\nrepositories = \"public/.*\"\nallow = [\"pull\"]\n\
         [[rule]]\nwho = [\"user:alice\"]\nallow = [\"pull\", \"push\"]\n",
    );
    assert_eq!(check(&guard, &nothing(), pull("public/a")).await, Ok(()));
    let first = challenge(check(&guard, &nothing(), Access::Ping).await);
    let expected =
        "Bearer realm=\"http://registry.example:5000/auth/token\",service=\"registry.example:5000\"";
    assert_eq!(first, expected);
    let scoped = challenge(check(&guard, &nothing(), push("public/a")).await);
    assert!(scoped.ends_with(",scope=\"repository:public/a:pull,push\""), "{scoped}");

    let issue = async |headers: HeaderMap| {
        guard
            .issue_token(&Connection::default(), headers.get(AUTHORIZATION))
            .await
            .map(|token| token.unwrap().token)
    };
    let anonymous = bearer(&issue(nothing()).await.unwrap());
    assert_eq!(check(&guard, &anonymous, pull("public/a")).await, Ok(()));
    assert!(matches!(
        check(&guard, &anonymous, pull("private")).await,
        Err(AccessError::Unauthorized { .. })
    ));
    let alice = bearer(&issue(basic("alice", "apple")).await.unwrap());
    assert_eq!(check(&guard, &alice, push("private")).await, Ok(()));
    assert_eq!(check(&guard, &alice, Access::Ping).await, Ok(()));
    assert!(issue(basic("alice", "wrong")).await.is_err());
    // Wrong credentials are refused even where none are needed.
    assert!(check(&guard, &basic("alice", "wrong"), pull("public/a")).await.is_err());
    assert!(check(&guard, &bearer("shoal.forged"), pull("public/a")).await.is_err());
}

#[tokio::test]
async fn workload_tokens_are_checked_to_the_last_claim() {
    let setup = Setup::new();
    let (good, other) = (Signer::new("one"), Signer::new("one"));
    setup.write("jwks.json", &jwks(&[&good]));
    let guard = setup.guard(&format!(
        "{ISSUER}keys = \"jwks.json\"\n[[rule]]\nwho = [\"token:k8s/system:serviceaccount:ci:*\"]\nallow = [\"push\"]\n"
    ));
    let may = async |token: &str| check(&guard, &bearer(token), push("app")).await;
    assert_eq!(may(&good.token(|_| ())).await, Ok(()));
    let as_password = basic("token", &good.token(|_| ()));
    assert_eq!(
        check(&guard, &as_password, push("app")).await,
        Ok(()),
        "for clients that know only passwords"
    );
    assert_eq!(may(&good.token(|claims| claims["aud"] = json!(["x", "registry"]))).await, Ok(()));
    let denied = may(&good.token(|claims| claims["sub"] = json!("system:serviceaccount:evil:x"))).await;
    assert!(matches!(denied, Err(AccessError::Denied(_))), "{denied:?}");
    let now = jsonwebtoken::get_current_timestamp();
    type Change = Box<dyn FnOnce(&mut Value)>;
    let bad: [(&str, Change); 7] = [
        ("expired", Box::new(move |claims| claims["exp"] = json!(now - 120))),
        ("not yet", Box::new(move |claims| claims["nbf"] = json!(now + 120))),
        ("another audience", Box::new(|claims| claims["aud"] = json!("other"))),
        ("no audience", Box::new(|claims| drop(claims.as_object_mut().unwrap().remove("aud")))),
        ("no expiry", Box::new(|claims| drop(claims.as_object_mut().unwrap().remove("exp")))),
        ("another issuer", Box::new(|claims| claims["iss"] = json!("https://evil.example"))),
        ("no issuer", Box::new(|claims| drop(claims.as_object_mut().unwrap().remove("iss")))),
    ];
    for (what, change) in bad {
        let refused = may(&good.token(change)).await;
        assert!(matches!(refused, Err(AccessError::Unauthorized { .. })), "{what}: {refused:?}");
    }
    let forged = may(&other.token(|_| ())).await;
    assert!(
        matches!(forged, Err(AccessError::Unauthorized { .. })),
        "another key under the same id: {forged:?}"
    );
    // Signed with the public key as an HMAC secret, and not signed at all.
    let claims = good.token(|_| ());
    let claims = claims.split('.').nth(1).unwrap();
    for head in [json!({"alg": "none"}), json!({"alg": "HS256", "kid": "one"})] {
        let head = data_encoding::BASE64URL_NOPAD.encode(head.to_string().as_bytes());
        assert!(may(&format!("{head}.{claims}.AAAA")).await.is_err());
        assert!(may(&format!("{head}.{claims}.")).await.is_err());
    }
    for garbage in ["", "a.b.c", "eyJ", &"x".repeat(100_000)] {
        assert!(may(garbage).await.is_err());
    }
}

#[tokio::test]
async fn registry_tokens_grant_what_they_say() {
    let setup = Setup::new();
    let signer = Signer::new("k");
    setup.write("jwks.json", &jwks(&[&signer]));
    let guard = setup.guard(&format!(
        "{ISSUER}keys = \"jwks.json\"\ngrants = \"token\"\nrealm = \"https://auth.example/token\"\nservice = \"registry\"\n"
    ));
    let access = json!([{"type": "repository", "name": "app", "actions": ["pull"]}]);
    let token = bearer(&signer.token(|claims| claims["access"] = access));
    assert_eq!(check(&guard, &token, pull("app")).await, Ok(()));
    assert_eq!(check(&guard, &token, Access::Ping).await, Ok(()));
    let more = challenge(check(&guard, &token, push("app")).await);
    assert_eq!(
        more,
        "Bearer realm=\"https://auth.example/token\",service=\"registry\",scope=\"repository:app:pull,push\",\
         error=\"insufficient_scope\""
    );
    let wanted = [push("app"), pull("base")];
    let mount = guard.check(&Connection::default(), &nothing(), &wanted).await;
    assert!(challenge(mount).contains("scope=\"repository:app:pull,push repository:base:pull\""));
    let none = bearer(&signer.token(|claims| claims["access"] = Value::Null));
    assert!(challenge(check(&guard, &none, pull("app")).await).contains("insufficient_scope"));
}

#[tokio::test]
async fn certificates_name_their_holders() {
    let setup = Setup::new();
    let guard = setup.guard("[[rule]]\nwho = [\"certificate:spiffe://mesh/ci/*\"]\nallow = [\"push\"]\n");
    let with = |names: &[&str]| Connection {
        tls: true,
        certificate: Some(Arc::new(crate::access::ClientCertificate {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        })),
        ..Connection::default()
    };
    let push = [push("a")];
    assert_eq!(guard.check(&with(&["ci", "spiffe://mesh/ci/one"]), &nothing(), &push).await, Ok(()));
    for wrong in [with(&["spiffe://mesh/other"]), with(&[]), Connection::default()] {
        let refused = guard.check(&wrong, &nothing(), &push).await;
        assert!(
            matches!(refused, Err(AccessError::Denied(_))),
            "there is nothing to log in with: {refused:?}"
        );
    }
}

/// Serves a key set that can be changed, and counts how often it is fetched.
async fn key_server(document: Arc<RwLock<String>>) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fetched = Arc::new(AtomicU64::new(0));
    let (counter, base) = (fetched.clone(), url.clone());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (document, counter, base) = (document.clone(), counter.clone(), base.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let body = if request.contains("/.well-known/openid-configuration ") {
                    json!({"issuer": base, "jwks_uri": format!("{base}/keys")}).to_string()
                } else {
                    counter.fetch_add(1, Ordering::SeqCst);
                    document.read().clone()
                };
                let head = if body.is_empty() { "HTTP/1.1 500 x" } else { "HTTP/1.1 200 OK" };
                let length = body.len();
                let answer = format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (url, fetched)
}

#[tokio::test]
async fn keys_are_discovered_fetched_once_and_rotated() {
    let setup = Setup::new();
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let document = Arc::new(RwLock::new(jwks(&[&old])));
    let (url, fetched) = key_server(document.clone()).await;
    let guard = setup.guard(&format!(
        "[[issuer]]\nname = \"k8s\"\nissuer = \"{url}\"\naudience = [\"registry\"]\n\
         [[rule]]\nwho = [\"token:k8s/*\"]\nallow = [\"pull\"]\n"
    ));
    let by = |signer: &Signer| {
        let issuer = url.clone();
        bearer(&signer.token(move |claims| claims["iss"] = json!(issuer)))
    };
    for _ in 0..5 {
        assert_eq!(check(&guard, &by(&old), pull("a")).await, Ok(()));
    }
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    // Tokens with invented key ids do not make it ask again and again.
    for _ in 0..20 {
        assert!(check(&guard, &by(&new), pull("a")).await.is_err());
    }
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    *document.write() = jwks(&[&new]);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    assert_eq!(check(&guard, &by(&new), pull("a")).await, Ok(()), "a new key is asked for");
    assert!(check(&guard, &by(&old), pull("a")).await.is_err(), "the old one was taken back");
    assert!(fetched.load(Ordering::SeqCst) >= 2);
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_no_client_s_fault() {
    let setup = Setup::new();
    let signer = Signer::new("k");
    let (url, _) = key_server(Arc::default()).await;
    let guard = setup.guard(&format!(
        "{ISSUER}keys = \"{url}/keys\"\n[[rule]]\nwho = [\"token:k8s/*\"]\nallow = [\"pull\"]\n"
    ));
    let answer = check(&guard, &bearer(&signer.token(|_| ())), pull("a")).await;
    assert!(matches!(answer, Err(AccessError::Unavailable { .. })), "{answer:?}");
    assert_eq!(
        crate::error::ApiError::from(answer.unwrap_err()).into_response().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn changes_come_into_force_and_mistakes_do_not() {
    let setup = Setup::new();
    setup.write("users", &users());
    let rule = |who: &str| format!("htpasswd = \"users\"\n[[rule]]\nwho = [\"{who}\"]\nallow = [\"pull\"]\n");
    let guard = Arc::new(setup.guard(&rule("user:alice")));
    let stop = CancellationToken::new();
    let following = tokio::spawn(guard.clone().follow(stop.clone()));
    let becomes = async |user: HeaderMap, allowed: bool| {
        let wait = async {
            while check(&guard, &user, pull("a")).await.is_ok() != allowed {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the change comes into force");
    };
    becomes(basic("alice", "apple"), true).await;
    setup.write("access.toml", &rule("user:bob"));
    becomes(basic("bob", "pear"), true).await;
    assert!(check(&guard, &basic("alice", "apple"), pull("a")).await.is_err());
    setup.write("access.toml", "[[rule]]\nwho = [\"anyone\"]\nallow = [\"fly\"]\n");
    tokio::time::sleep(FOLLOW_INTERVAL + Duration::from_millis(500)).await;
    assert_eq!(
        check(&guard, &basic("bob", "pear"), pull("a")).await,
        Ok(()),
        "the last good file stays in force"
    );
    // A user that is taken out is out, though its password was remembered as right.
    setup.write("access.toml", &rule("user:bob"));
    setup.write("users", users().lines().next().unwrap());
    becomes(basic("bob", "pear"), false).await;
    stop.cancel();
    following.await.unwrap();
}
