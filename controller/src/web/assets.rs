//! Style, script and icon, from the binary. Their names carry a hash of their content, so that browsers may keep them
//! for a year and still get the new ones at once.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::header,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::fault::Fault;

struct Asset {
    path: String,
    kind: &'static str,
    content: &'static str,
}

fn asset(stem: &str, extension: &str, kind: &'static str, content: &'static str) -> Asset {
    let hash = hex::encode(&Sha256::digest(content)[..8]);
    Asset { path: format!("/assets/{stem}-{hash}.{extension}"), kind, content }
}

static STYLE: LazyLock<Asset> =
    LazyLock::new(|| asset("postern", "css", "text/css; charset=utf-8", include_str!("assets/postern.css")));
static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| asset("keys", "js", "text/javascript; charset=utf-8", include_str!("assets/keys.js")));
static PASSKEY: LazyLock<Asset> =
    LazyLock::new(|| asset("passkey", "js", "text/javascript; charset=utf-8", include_str!("assets/passkey.js")));
static ICON: LazyLock<Asset> =
    LazyLock::new(|| asset("postern", "svg", "image/svg+xml", include_str!("assets/postern.svg")));

pub(super) fn style() -> &'static str {
    &STYLE.path
}

pub(super) fn script() -> &'static str {
    &SCRIPT.path
}

pub(super) fn passkey_script() -> &'static str {
    &PASSKEY.path
}

pub(super) fn icon() -> &'static str {
    &ICON.path
}

pub(super) async fn serve(Path(name): Path<String>) -> Result<Response, Fault> {
    let asset = [&STYLE, &SCRIPT, &PASSKEY, &ICON]
        .into_iter()
        .find(|asset| asset.path.strip_prefix("/assets/") == Some(name.as_str()))
        .ok_or(Fault::NotFound)?;
    let headers = [(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((headers, asset.content).into_response())
}
