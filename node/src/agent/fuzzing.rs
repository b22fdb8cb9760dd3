//! Bodies of the fuzz targets for what the agent reads from files and from people: plain functions, so that the ordinary
//! test command replays the kept corpus.
//!
//! Each asserts what must hold for any bytes; a panic is a finding.

pub use super::state::fuzz_sealed;
use super::{
    api::{Request, Right},
    target::ControllerTarget,
};

/// Any bytes as a request at the local socket. What is read says the same again, and only questions are everybody's.
pub fn fuzz_local_request(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else { return };
    let text = serde_json::to_string(&request).expect("a request has a JSON form");
    let again: Request = serde_json::from_str(&text).expect("what was written is read");
    assert_eq!(serde_json::to_string(&again).ok(), Some(text));
    let asks = matches!(
        request,
        Request::Status | Request::Resources | Request::Whois { .. } | Request::Explain { .. } | Request::StepUp { .. }
    );
    assert_eq!(request.right() == Right::Read, asks);
}

/// Any bytes as a join link. A link with a fragment has a pin or is none, and what is read is written and read the same.
pub fn fuzz_link(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<ControllerTarget>() {
        Ok(target) => {
            assert_eq!(target.pin().is_some(), text.contains('#'), "a cut-off link became an unpinned one");
            assert!(!target.host().is_empty());
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 1_000, "a refusal is no longer than a person reads");
        }
    }
}

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
    fn the_kept_corpus_of_the_agent_passes() {
        replay("local_request", super::fuzz_local_request);
        replay("link", super::fuzz_link);
        replay("sealed", super::fuzz_sealed);
    }

    #[test]
    fn the_corpus_reaches_what_it_is_for() {
        let read =
            |name: &str| std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/").to_owned() + name).unwrap();
        assert!(serde_json::from_slice::<super::Request>(&read("local_request/up")).is_ok());
        assert!(String::from_utf8(read("link/pinned")).unwrap().parse::<super::ControllerTarget>().is_ok());
        assert!(serde_json::from_slice::<postern_common::grant::SavedGrants>(&read("sealed/grants")).is_ok());
    }
}
