//! The bodies of the fuzz targets: plain functions, so that the ordinary test command replays the kept corpus.

pub use crate::{
    identity::{machine::fuzz_platform_token, oidc::fuzz_claims},
    serve::proxy_protocol::fuzz_proxy_header,
    signals::events::fuzz_security_event,
    signals::posture::fuzz_import,
    signals::provider::logout::fuzz_logout_token,
    signals::scim::fuzzing::fuzz_scim,
    web::fuzzing::{fuzz_cookie, fuzz_form},
};

#[cfg(test)]
mod tests {
    /// Replays every kept input of one target.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/").to_owned() + target;
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")).collect();
        assert!(files.len() >= 3, "{folder} has lost its corpus");
        for file in files {
            body(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn the_kept_corpus_of_the_controller_passes() {
        replay("claims", super::fuzz_claims);
        replay("platform_token", super::fuzz_platform_token);
        replay("proxy_header", super::fuzz_proxy_header);
        replay("security_event", super::fuzz_security_event);
        replay("logout_token", super::fuzz_logout_token);
        replay("scim", super::fuzz_scim);
        replay("cookie", super::fuzz_cookie);
        replay("form", super::fuzz_form);
        replay("import", super::fuzz_import);
    }
}
