//! `postern run`: the agent in the foreground, for systemd and other service managers.

use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{Failure, Outcome, Places};
use crate::{
    agent::shell::{self, RunOptions},
    config::{LogFormat, NodeConfig},
};

/// Run the agent in the foreground, for service managers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo postern run\n  POSTERN_LOG=debug sudo -E postern run --config ./node.toml\n\nSIGTERM ends it and leaves guard, blackhole routes and interface in place; `postern down` removes them. SIGHUP reads node.toml again."
)]
pub(super) struct Run {
    /// Started by `postern up`: end with `postern down`
    #[arg(long, hide = true)]
    detached: bool,
}

impl Run {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let config = NodeConfig::load(places.config.as_deref())?;
        start_log(config.log);
        let options = RunOptions {
            config: places.config.clone(),
            state: places.state_dir.clone(),
            runtime: places.runtime_dir.clone(),
            socket: places.socket(),
            detached: self.detached,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .thread_keep_alive(std::time::Duration::from_secs(2))
            .build()
            .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
        runtime.block_on(shell::run(options, config))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            use std::io::IsTerminal;
            let builder = builder.with_ansi(std::io::stderr().is_terminal());
            if std::env::var_os("JOURNAL_STREAM").is_some() {
                builder.without_time().init(); // the journal has the time
            } else {
                builder.init();
            }
        }
    }
}
