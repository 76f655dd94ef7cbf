//! What operators write and disks give back.

use std::collections::BTreeMap;

use shoal_daemon::config::{Config, KEYS};
use shoal_origin::{BackendRule, BackendUrl};

use crate::documents::{credential_seeds, metainfo_seeds, record_seeds};
use crate::{choose, chosen, text_of};

/// A file, one variable, one flag, a backend.
pub(crate) fn config(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    let Some(text) = text_of(data) else { return };
    let key = KEYS.get(usize::from(choice) % (KEYS.len() + 2));
    match (key, choice % 2) {
        (None, _) => {
            let _ = toml::from_str::<Config>(text);
            if let Ok(url) = text.parse::<BackendUrl>() {
                let _ = url.to_string();
            }
            let _ = text.parse::<BackendRule>();
        }
        (Some(key), 0) => {
            let _ = Config::load(None, [(key.variable(), text.to_owned())], &BTreeMap::new());
        }
        (Some(key), _) => {
            let flags = [(key.name, text.lines().map(str::to_owned).collect())].into_iter().collect();
            let _ = Config::load(None, [], &flags);
        }
    }
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    let files = u8::try_from(KEYS.len()).unwrap_or_default();
    let mut seeds = vec![
        chosen(
            files,
            "origin = true\nbackend = [\"fs:/srv/shoal\"]\nreplicas = 2\ngateway = \"127.0.0.1:5000\"\n",
        ),
        chosen(
            files,
            "rate-in = \"64MiB\"\nsearch-patience = \"30s\"\nlisten = [\"/ip4/0.0.0.0/tcp/4001\"]\n",
        ),
        chosen(
            files,
            "prod/.*=s3://bucket/prefix?region=eu-west-1&endpoint=http://127.0.0.1:9000&write=back",
        ),
        chosen(files, "registry://user@registry.example/mirror"),
        chosen(files, "azblob://container/prefix?account=a"),
    ];
    seeds.extend((0..files).map(|n| chosen(n, "64MiB")));
    seeds.extend((0..files).map(|n| chosen(n, "127.0.0.1:5000")));
    seeds
}

pub(crate) fn access(data: &[u8]) {
    if let Some(text) = text_of(data) {
        shoal_gateway::fuzzing::access(text);
    }
}

pub(crate) fn access_seeds() -> Vec<Vec<u8>> {
    [
        "htpasswd = \"users\"\n[[rule]]\nwho = [\"user:a*\", \"anyone\"]\nrepositories = \"team/.*\"\nallow = [\"pull\", \"push\"]\n",
        "[[issuer]]\nname = \"k8s\"\nissuer = \"https://k.example\"\naudience = [\"r\"]\ngrants = \"token\"\nrealm = \"https://a/t\"\nservice = \"r\"\n",
        "alice:$2y$05$abcdefghijklmnopqrstuuDa4g2h5bZ8m4tq0bD1ZyYqg1k0kQk6K\n# nobody\n",
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
        r#"{"keys":[{"kty":"RSA","alg":"RS256","n":"AQAB","e":"AQAB","use":"sig"}]}"#,
        "eyJhbGciOiJFZERTQSIsImtpZCI6ImUifQ.eyJpc3MiOiJhIn0.c2ln",
        "https://keys.example/jwks",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn disk(data: &[u8]) {
    shoal_store::fuzzing::stored(data);
    shoal_daemon::fuzzing::stored(data);
}

/// Version 1 of each, before what the other targets' documents are.
pub(crate) fn disk_seeds() -> Vec<Vec<u8>> {
    let documents = metainfo_seeds().into_iter().chain(credential_seeds()).chain(record_seeds());
    let mut seeds: Vec<Vec<u8>> = documents
        .flat_map(|document| {
            let bare = document.get(1..).unwrap_or_default().to_vec();
            [chosen(1, &bare), chosen(1, [&[0x82, 0x00, 0x81], bare.as_slice()].concat()), bare]
        })
        .collect();
    // A blob's record, the pieces of a partial one.
    seeds.push(vec![1, 0x85, 0x05, 0xf5, 0x1a, 0, 1, 2, 3, 0xf4, 0xf4]);
    seeds.push(vec![1, 0x81, 0x42, 0x80, 0x40]);
    seeds
}
