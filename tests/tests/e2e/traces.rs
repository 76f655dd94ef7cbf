//! A pull as one trace: from the client's span through gateway, engine and peer down to the backend.

use anyhow::{Context, Result, ensure};
use http::{Method, Request, StatusCode};
use shoal_tests::collector::{Collector, Span};
use shoal_tests::{Mesh, NodeSpec, http as client};

use crate::{MIB, pushed_blob};

const SIZE: usize = 5 * MIB;
const TOKEN: &str = "collect-me";

/// Gets a blob as a client with a trace of its own.
async fn get(mesh: &Mesh, gateway: &str, digest: &str, traceparent: &str) -> Result<()> {
    let address = mesh.node(gateway)?.gateway()?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/v2/e2e/blob/blobs/{digest}"))
        .header("traceparent", traceparent)
        .body(client::full(""))?;
    let answer = client::send(address, request).await?.expect(StatusCode::OK).await?;
    ensure!(answer.bytes().await?.len() == SIZE);
    Ok(())
}

/// The one span of this name at a process.
fn one<'a>(spans: &'a [Span], instance: &str, name: &str) -> Result<&'a Span> {
    let mut found = spans.iter().filter(|span| span.instance == instance && span.name == name);
    let span = found.next().with_context(|| format!("no {name:?} of {instance} in {spans:#?}"))?;
    ensure!(found.next().is_none(), "two {name:?} of {instance} in {spans:#?}");
    Ok(span)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_one_trace_from_client_to_backend() -> Result<()> {
    let collector = Collector::start(TOKEN).await?;
    let url = format!("http://{}", collector.addr);
    // No process decides by itself to trace anything: the client does.
    let traced = |spec: NodeSpec| {
        let header = format!("x-token={TOKEN}");
        spec.flag("--otlp", &url).flag("--trace-sample", "0").envs(&[("OTEL_EXPORTER_OTLP_HEADERS", &header)])
    };
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(traced(NodeSpec::origin("o0")))
        .node(NodeSpec::gateway("g0"))
        .node(traced(NodeSpec::gateway("g1")))
        .start()
        .await?;
    let blob = pushed_blob(&mesh, "g0", 2601, SIZE).await?;
    let other = pushed_blob(&mesh, "g0", 2602, SIZE).await?;
    // Only the origin's backend has them.
    mesh.stop("g0").await?;
    mesh.stop("o0").await?;
    mesh.wipe("o0")?;
    mesh.restart("o0").await?;

    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    get(&mesh, "g1", &blob.digest, &format!("00-{trace}-{caller}-01")).await?;
    let unsampled = "1af7651916cd43dd8448eb211c80319c";
    get(&mesh, "g1", &other.digest, &format!("00-{unsampled}-{caller}-00")).await?;
    let (gateway, origin) = (mesh.node("g1")?.peer().to_owned(), mesh.node("o0")?.peer().to_owned());
    // What a process has not sent yet it sends when it stops.
    mesh.stop("g1").await?;
    mesh.stop("o0").await?;

    let spans = collector.spans();
    ensure!(spans.iter().all(|span| span.trace == trace), "{spans:#?}");
    let request = one(&spans, &gateway, "GET /v2/<name>/blobs/<digest>")?;
    ensure!(
        request.parent == caller && request.attribute("http.response.status_code") == "200",
        "{request:?}"
    );
    ensure!(request.attribute("shoal.source") == "mesh", "{request:?}");
    let pull = one(&spans, &gateway, "pull")?;
    ensure!(pull.parent == request.id && pull.attribute("shoal.digest") == blob.digest, "{pull:?}");
    ensure!(pull.attribute("shoal.size") == SIZE.to_string(), "{pull:?}");
    ensure!(!pull.attribute("shoal.bounded_by").is_empty(), "{pull:?}");
    // As often as it takes until the origin, which has just come back, is found.
    let mut searches = spans.iter().filter(|span| span.name == "find owners").peekable();
    ensure!(searches.peek().is_some(), "{spans:#?}");
    ensure!(searches.all(|search| search.instance == gateway && search.parent == pull.id), "{spans:#?}");
    let fetch = one(&spans, &gateway, "fetch")?;
    ensure!(fetch.parent == pull.id && fetch.attribute("shoal.peer") == origin, "{fetch:?}");
    ensure!(fetch.attribute("shoal.bytes") == SIZE.to_string(), "{fetch:?}");
    let serve = one(&spans, &origin, "serve")?;
    ensure!(serve.parent == fetch.id && serve.attribute("shoal.peer") == gateway, "{serve:?}");
    ensure!(serve.attribute("shoal.bytes") == SIZE.to_string(), "{serve:?}");
    let backend = one(&spans, &origin, "read backend")?;
    ensure!(backend.parent == serve.id, "{backend:?}");
    ensure!(backend.attribute("shoal.bytes") == SIZE.to_string(), "{backend:?}");
    for span in &spans {
        ensure!(span.time.0 > 0 && span.time.0 <= span.time.1, "{span:?}");
    }
    mesh.finish().await
}
