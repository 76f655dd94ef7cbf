//! Arbitrary sequences of upload requests against a naive model.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use proptest::prelude::*;
use shoal_gateway::conformance::Registry;
use shoal_types::Digest;
use support::start;

/// A request about one of two uploads.
#[derive(Clone, Debug)]
enum Operation {
    Begin {
        upload: usize,
    },
    /// `Content-Range` begins this far from where the upload stands.
    Chunk {
        upload: usize,
        skew: i64,
        bytes: Vec<u8>,
    },
    Append {
        upload: usize,
        bytes: Vec<u8>,
    },
    Status {
        upload: usize,
    },
    Cancel {
        upload: usize,
    },
    Finish {
        upload: usize,
        bytes: Vec<u8>,
        right: bool,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let upload = 0..2usize;
    let bytes = prop::collection::vec(any::<u8>(), 1..20);
    prop_oneof![
        3 => upload.clone().prop_map(|upload| Operation::Begin { upload }),
        4 => (upload.clone(), prop_oneof![3 => Just(0i64), 1 => -3..4i64], bytes.clone())
            .prop_map(|(upload, skew, bytes)| Operation::Chunk { upload, skew, bytes }),
        3 => (upload.clone(), bytes.clone()).prop_map(|(upload, bytes)| Operation::Append { upload, bytes }),
        2 => upload.clone().prop_map(|upload| Operation::Status { upload }),
        1 => upload.clone().prop_map(|upload| Operation::Cancel { upload }),
        2 => (upload, prop::collection::vec(any::<u8>(), 0..20), any::<bool>())
            .prop_map(|(upload, bytes, right)| Operation::Finish { upload, bytes, right }),
    ]
}

/// An upload as the model knows it: where, and what has been sent; `None` when it is over.
#[derive(Default)]
struct Model {
    location: String,
    content: Option<Vec<u8>>,
}

fn progress(content: &[u8]) -> String {
    format!("0-{}", content.len().saturating_sub(1))
}

async fn run(registry: &Registry, operations: Vec<Operation>) -> Result<(), String> {
    let repository = registry.fresh_repository();
    let mut models = [Model::default(), Model::default()];
    for operation in operations {
        match operation {
            Operation::Begin { upload } => {
                let path = format!("/v2/{repository}/blobs/uploads/");
                let reply = registry.send("POST", &path, &[], "").await?.expect_status(202)?;
                models[upload] =
                    Model { location: reply.header("location").to_owned(), content: Some(Vec::new()) };
            }
            Operation::Chunk { upload, skew, bytes } => {
                let model = &mut models[upload];
                let stands = model.content.as_ref().map_or(0, Vec::len) as i64;
                let first = (stands + skew).max(0);
                let range = format!("{first}-{}", first + bytes.len() as i64 - 1);
                append(registry, model, &[("content-range", &range)], bytes, first == stands).await?;
            }
            Operation::Append { upload, bytes } => {
                append(registry, &mut models[upload], &[], bytes, true).await?;
            }
            Operation::Status { upload } => {
                let model = &models[upload];
                if model.location.is_empty() {
                    continue;
                }
                let reply = registry.get(&model.location).await?;
                match &model.content {
                    Some(content) => assert_eq!(reply.expect_status(204)?.header("range"), progress(content)),
                    None => drop(reply.expect_status(404)?),
                }
            }
            Operation::Cancel { upload } => {
                let model = &mut models[upload];
                if model.location.is_empty() {
                    continue;
                }
                let wanted = if model.content.take().is_some() { 204 } else { 404 };
                registry.send("DELETE", &model.location, &[], "").await?.expect_status(wanted)?;
            }
            Operation::Finish { upload, bytes, right } => {
                finish(registry, &repository, &mut models[upload], bytes, right).await?;
            }
        }
    }
    Ok(())
}

async fn append(
    registry: &Registry,
    model: &mut Model,
    headers: &[(&str, &str)],
    bytes: Vec<u8>,
    in_order: bool,
) -> Result<(), String> {
    if model.location.is_empty() {
        return Ok(());
    }
    let reply = registry.send("PATCH", &model.location, headers, bytes.clone()).await?;
    match &mut model.content {
        None => drop(reply.expect_status(404)?),
        Some(content) => {
            if in_order {
                content.extend(bytes);
            }
            let reply = reply.expect_status(if in_order { 202 } else { 416 })?;
            assert_eq!(reply.header("range"), progress(content));
        }
    }
    Ok(())
}

async fn finish(
    registry: &Registry,
    repository: &str,
    model: &mut Model,
    bytes: Vec<u8>,
    right: bool,
) -> Result<(), String> {
    if model.location.is_empty() {
        return Ok(());
    }
    let over = model.content.take();
    let whole: Option<Vec<u8>> = over.map(|content| [content, bytes.clone()].concat());
    let digest = match &whole {
        Some(whole) if right => Digest::sha256(whole),
        _ => Digest::sha256(b"what nobody uploads here: longer than any of it"),
    };
    let path = format!("{}?digest={digest}", model.location);
    let reply = registry.send("PUT", &path, &[], bytes).await?;
    let blob = format!("/v2/{repository}/blobs/{digest}");
    match whole {
        None => drop(reply.expect_status(404)?),
        Some(whole) if right => {
            reply.expect_status(201)?;
            assert_eq!(registry.get(&blob).await?.expect_status(200)?.body, whole);
        }
        Some(_) => {
            reply.expect_status(400)?;
            registry.get(&blob).await?.expect_status(404)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn uploads_follow_the_model(operations in prop::collection::vec(operation(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let gateway = start().await;
            run(&gateway.client(), operations).await
        });
        prop_assert_eq!(result, Ok(()));
    }
}
