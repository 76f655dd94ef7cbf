use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::backend::Backend;
use crate::conformance::servers::{S3_KEY, S3_SECRET, Server};
use crate::objects::ObjectBackend;

async fn backend(url: &str, secret: &str) -> ObjectBackend<S3Store> {
    let credentials = Credentials::new(S3_KEY, secret, None, None, "test");
    let store = S3Store::open_as(&url.parse().unwrap(), Some(credentials)).await.unwrap();
    ObjectBackend::new(store, Throttle::new(None))
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_garage() {
    let garage = Server::garage().await;
    let dir = tempfile::tempdir().unwrap();
    let inside = Arc::new(backend(&(garage.s3_url("a/b") + "&part-size=5MiB"), S3_SECRET).await);
    inside.probe().await.unwrap();
    // Garage passes over conditions of writes, and that is found out.
    assert!(!inside.has_conditional_writes());
    crate::conformance::check(inside.clone(), dir.path()).await;
    // Two under one another do not see each other's objects.
    let outside = backend(&garage.s3_url(""), S3_SECRET).await;
    let digest = shoal_types::Digest::sha256(b"x");
    let source = dir.path().join("x");
    std::fs::write(&source, b"x").unwrap();
    inside.put(&digest, &source, 1, b"m").await.unwrap();
    assert_eq!(outside.stat(&digest, None).await.unwrap(), None);
    assert!(outside.list_blobs().next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_more_than_a_page_are_complete() {
    let garage = Server::garage().await;
    let backend = backend(&garage.s3_url("many"), S3_SECRET).await;
    let key = |number: u32| shoal_types::RecordKey {
        repository: "a".parse().unwrap(),
        kind: shoal_types::RecordKind::Tag(format!("v{number}").parse().unwrap()),
    };
    let puts = (0..1100).map(|number| {
        let (backend, key) = (&backend, key(number));
        async move { backend.put_record(&key, b"x", None).await.unwrap() }
    });
    let put: Vec<bool> = futures::stream::iter(puts).buffer_unordered(16).collect().await;
    assert!(put.into_iter().all(|put| put));
    assert_eq!(backend.list_records().count().await, 1100);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart_and_keep_secrets() {
    let mut garage = Server::garage().await;
    let url = garage.s3_url("x");
    let digest = shoal_types::Digest::sha256(b"x");
    let wrong = backend(&url, "not-the-secret").await;
    for error in [wrong.probe().await.unwrap_err(), wrong.stat(&digest, None).await.unwrap_err()] {
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("not-the-secret"), "{error:?}");
    }
    let missing = backend(&url.replace("shoal-test", "other-bucket"), S3_SECRET).await;
    let error = missing.probe().await.unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");

    let good = backend(&url, S3_SECRET).await;
    assert_eq!(good.stat(&digest, None).await.unwrap(), None);
    garage.stop().await;
    let asked = Instant::now();
    let error = good.stat(&digest, None).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(60), "a server that is down is waited for too long");
    garage.resume().await;
    assert_eq!(good.stat(&digest, None).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_leaves_no_parts() {
    let garage = Server::garage().await;
    let url = garage.s3_url("x") + "&part-size=5MiB&concurrency=1";
    let backend = backend(&url, S3_SECRET).await;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::File::create(&source).unwrap().set_len(40 << 20).unwrap();
    let store = backend.store();
    let open = async || {
        let listed = store.client.list_multipart_uploads().bucket(&store.bucket).send().await.unwrap();
        listed.uploads().len()
    };
    // Slow enough to be in the middle when it is dropped.
    let slow = Throttle::new(Some(5 << 20));
    let put = store.put_file("blob", &source, 40 << 20, &slow);
    let begun = async {
        while open().await == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        put = put => panic!("it was over at once: {put:?}"),
        () = begun => {}
    }
    let started = Instant::now();
    while open().await > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "parts are left behind");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.size("blob").await.unwrap(), None);
}

#[test]
fn part_sizes_stay_within_the_limits() {
    // 5 TiB, the largest object there is (Amazon S3 User Guide), in 10,000 parts.
    let size: u64 = 5 << 40;
    let part = PART_BYTES.max(size.div_ceil(PARTS_MAX));
    assert!(size.div_ceil(part) <= PARTS_MAX && part <= 5 << 30);
}
