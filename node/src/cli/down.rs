//! `postern down`: take tunnel, guard, routes and names away; also what an agent that was killed left behind.

use std::process::ExitCode;

use clap::Args;

use super::{
    Failure, Outcome, Places, client,
    show::{self, Mark},
};
use crate::{
    agent::{
        api::Request,
        core::identity::Wanted,
        shell::{host::Host, plane},
        state::{State, StateError},
    },
    config::NodeConfig,
    host::privileges,
    io::clock::{Clock, SystemClock},
};

/// Disconnect: remove tunnel, guard, routes and names; stay enrolled
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo postern down")]
pub(super) struct Down {}

impl Down {
    pub(super) fn run(self, places: &Places) -> Outcome {
        if client::is_answering(places) {
            let mut exchange = client::ask(places, &Request::Down)?;
            while exchange.next()?.is_some() {}
        } else {
            clean_up(places)?;
        }
        if places.json {
            show::json(&serde_json::json!({ "down": true }));
        } else {
            show::marked(Mark::Good, "Down. This machine stays enrolled: postern up");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Does what the agent would, because none runs.
fn clean_up(places: &Places) -> Result<(), Failure> {
    let config = NodeConfig::load(places.config.as_deref())?;
    privileges::check().map_err(|error| Failure::Failed(error.to_string()))?;
    // Damaged files must not keep the guard in place: it may be what locks the person out who has to mend them.
    let (_lock, noted) = match State::open(&places.state_dir, &places.runtime_dir) {
        Ok(state) => {
            let noted = note_down(&state);
            (Some(state), noted)
        }
        Err(error @ StateError::Locked(_)) => return Err(Failure::Failed(error.to_string())),
        Err(error) => (None, Err(error)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(error.to_string()))?;
    runtime.block_on(async {
        let clock = SystemClock::new();
        let mut host = Host::open(
            places.state_dir.clone(),
            std::sync::Arc::new(move || clock.now()),
            Default::default(),
            Default::default(),
        )?;
        let removed = host.remove().await;
        removed.and(plane::remove_interface(&config.interface))
    })?;
    noted.map_err(|error| {
        Failure::Failed(format!("tunnel, guard, routes and names are gone, but the state is not in order: {error}"))
    })
}

/// Writes down that the node shall stay down, and forgets what was enforced.
fn note_down(state: &State) -> Result<(), StateError> {
    state.remove_grants()?;
    if let Some(mut identity) = state.load()?.identity {
        identity.wanted = Wanted::Down;
        state.write_identity(&identity)?;
    }
    Ok(())
}
