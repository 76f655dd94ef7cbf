//! Credentials in a running mesh: joining with a token, renewal, expiry and revocation, all without a restart of anybody.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use shoal_tests::contract::metric;
use shoal_tests::process::run_program;
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Mesh, NodeSpec, wait_until};

use crate::{MIB, pushed_blob};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How often a process of the mesh has disconnected somebody whose credential was no longer good.
async fn turned_away(mesh: &Mesh, name: &str, reason: &str) -> Result<f64> {
    Ok(mesh.node(name)?.metrics().await?.sum_where(metric::REJECTED, &[(metric::REJECTION, reason)]))
}

/// Whether `name` has a connection on either plane with the process `peer`.
async fn is_connected(mesh: &Mesh, name: &str, peer: &str) -> Result<bool> {
    let rows = mesh.node(name)?.api("/api/v1/peers").await?;
    let row = rows.as_array().context("no list")?.iter().find(|row| row["peer"] == peer).cloned();
    Ok(row.is_some_and(|row| row["data_connected"] == true))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_member_is_cut_off_everywhere_and_stays_out() -> Result<()> {
    let mut mesh = Mesh::with_gateways(2).start().await?;
    let blob = pushed_blob(&mesh, "g0", 1101, MIB).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    let victim = mesh.node("g1")?.peer().to_owned();
    wait_until("the member to be revoked is connected", PATIENCE, async || {
        Ok((is_connected(&mesh, "o0", &victim).await? || is_connected(&mesh, "g0", &victim).await?)
            .then_some(()))
    })
    .await?;

    // Handed to one gateway, it is in force at all, the door included.
    let list = text(&mesh.scratch("keys")?.join("revocations.cbor"));
    let key = text(&mesh.mesh_key()?);
    let ops = mesh.node("g0")?.ops()?.to_string();
    let revoke =
        words(&["credential", "revoke", "--mesh-key", &key, "--list", &list, "--ops", &ops, &victim]);
    let said = run_program(&revoke).await?;
    ensure!(said.contains("version 1, 1 keys"), "{said}");
    for name in ["o0", "g0"] {
        wait_until(&format!("{name} has let the revoked member go"), PATIENCE, async || {
            let list = mesh.node(name)?.api("/api/v1/revocations").await?;
            ensure!(list["version"] == 1, "{list}");
            ensure!(!is_connected(&mesh, name, &victim).await?, "still connected");
            Ok(Some(()))
        })
        .await?;
    }
    wait_until("the revoked member is alone", PATIENCE, async || {
        let status = mesh.node("g1")?.api("/api/v1/status").await?;
        ensure!(status["members_connected"] == 0 && status["data_connections"] == 0, "{status}");
        Ok(Some(()))
    })
    .await?;
    wait_until("o0 refuses it", PATIENCE, async || {
        Ok((turned_away(&mesh, "o0", "revoked").await? > 0.0).then_some(()))
    })
    .await?;
    // It gets nothing that it does not have already, and cannot push.
    let secret = pushed_blob(&mesh, "g0", 1102, MIB).await?;
    let refused = mesh.registry("g1", "e2e/blob")?.blob(&secret.digest).await?;
    ensure!(!refused.status.is_success(), "{}", refused.status);

    // A restart of the others does not let it in again: the list is remembered, by the door too.
    for name in ["b0", "o0"] {
        mesh.kill(name).await?;
    }
    mesh.restart("b0").await?;
    mesh.restart("o0").await?;
    let list = mesh.node("o0")?.api("/api/v1/revocations").await?;
    ensure!(list["version"] == 1, "{list}");
    wait_until("the restarted origin refuses it", PATIENCE, async || {
        Ok((turned_away(&mesh, "o0", "revoked").await? > 0.0).then_some(()))
    })
    .await?;
    let status = mesh.node("g1")?.api("/api/v1/status").await?;
    ensure!(status["members_connected"] == 0, "{status}");

    // An older list, and one of another mesh, change nothing.
    let other = mesh.scratch("other")?;
    run_program(&words(&["mesh", "init", "--dir", &text(&other)])).await?;
    let foreign = text(&other.join("list.cbor"));
    let key = text(&other.join("mesh.key"));
    let good = mesh.node("g0")?.peer().to_owned();
    let revoke =
        words(&["credential", "revoke", "--mesh-key", &key, "--list", &foreign, "--ops", &ops, &good]);
    let refused = format!("{:#}", run_program(&revoke).await.err().context("another mesh's list is taken")?);
    ensure!(refused.contains("another mesh"), "{refused}");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_renewed_in_time_and_end_when_they_are_not() -> Result<()> {
    let mut mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).start().await?;
    let dir = mesh.scratch("keys")?;
    let key = text(&mesh.mesh_key()?);
    // May renew gateways and nothing else.
    let renewer = text(&dir.join("renewer.key"));
    let scope = ["--roles", "node,gateway", "--valid-for", "1day"];
    run_program(&words(
        &[&["mesh", "intermediate", "--mesh-key", &key, "--out", &renewer], &scope[..]].concat(),
    ))
    .await?;
    mesh.add(NodeSpec::origin("o0").flag("--renewal-key", &renewer)).await?;
    mesh.add(NodeSpec::gateway("g0")).await?;
    mesh.add(NodeSpec::gateway("short").credential("--valid-for", "20s")).await?;
    let of = |name: &str| anyhow::Ok(std::fs::read(mesh.identity_dir(name)?.join("credential.cbor"))?);
    let first = of("short")?;
    wait_until("the short credential is renewed", PATIENCE, async || {
        Ok((of("short")? != first).then_some(()))
    })
    .await?;
    // Beyond the end of the first one it is still a member.
    let second = of("short")?;
    wait_until("it is renewed again", PATIENCE, async || Ok((of("short")? != second).then_some(()))).await?;
    let blob = pushed_blob(&mesh, "short", 1103, MIB).await?;
    mesh.registry("g0", "e2e/blob")?.pull_blob(&blob.digest).await?;
    let shown =
        run_program(&words(&["credential", "show", "--identity", &text(&mesh.identity_dir("short")?)]))
            .await?;
    ensure!(shown.contains("intermediate"), "{shown}");

    // The origin's own credential is beyond the renewer: a new file does it, without a restart.
    let issue = ["credential", "issue", "--mesh-key", &key, "--roles", "node,origin", "--zone", "home"];
    let out = text(&mesh.identity_dir("o0")?);
    run_program(&words(&[&issue[..], &["--valid-for", "2days", "--out", &out]].concat())).await?;
    wait_until("the origin takes its new credential", PATIENCE, async || {
        Ok(mesh.log("o0")?.contains("a new credential is in use").then_some(()))
    })
    .await?;

    // Nobody renews when nobody who may is there: what is open ends.
    mesh.stop("o0").await?;
    let peer = mesh.node("short")?.peer().to_owned();
    wait_until("the expired member is alone", PATIENCE, async || {
        let status = mesh.node("short")?.api("/api/v1/status").await?;
        ensure!(status["members_connected"] == 0 && status["data_connections"] == 0, "{status}");
        ensure!(!is_connected(&mesh, "g0", &peer).await?, "g0 holds on to it");
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_makes_a_member_with_one_command() -> Result<()> {
    let mut mesh = Mesh::with_gateways(1).start().await?;
    let blob = pushed_blob(&mesh, "g0", 1104, MIB).await?;
    let token = mesh.scratch("keys")?.join("token");
    let door = mesh.bootstrap_peers().first().context("no door")?.clone();
    let key = text(&mesh.mesh_key()?);
    let made = run_program(&words(&[
        "mesh",
        "join-token",
        "--mesh-key",
        &key,
        "--roles",
        "node,gateway",
        "--zone",
        "home",
        "--bootstrap",
        &door,
        "--valid-for",
        "1hour",
        "--out",
        &text(&token),
    ]))
    .await?;
    mesh.add(NodeSpec::gateway("new").join(&token)).await?;
    mesh.registry("new", "e2e/blob")?.pull_blob(&blob.digest).await?;
    pushed_blob(&mesh, "new", 1105, MIB).await?;
    // Its key was made where it is and is its own.
    let identity = mesh.identity_dir("new")?;
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(identity.join("identity.key"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let secret = std::fs::read_to_string(&token)?;
    ensure!(!mesh.log("new")?.contains(secret.trim()), "the token is in the log");
    let peer = mesh.node("new")?.peer().to_owned();
    mesh.stop("new").await?;
    mesh.restart("new").await?;
    ensure!(mesh.node("new")?.peer() == peer);

    // The token's key is revoked: whoever came by it goes.
    let list = text(&mesh.scratch("keys")?.join("revocations.cbor"));
    let ops = mesh.node("g0")?.ops()?.to_string();
    let revoke =
        words(&["credential", "revoke", "--mesh-key", &key, "--list", &list, "--ops", &ops, made.trim()]);
    run_program(&revoke).await?;
    wait_until("who joined with the token is out", PATIENCE, async || {
        let status = mesh.node("new")?.api("/api/v1/status").await?;
        ensure!(status["members_connected"] == 0, "{status}");
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}
