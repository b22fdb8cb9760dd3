//! `serve`: run until told to stop.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::Desk;
use crate::serve::{self, AtStart, Running};

/// Run the controller.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  postern-controller serve --config /etc/postern-controller/controller.toml\n\nStops on SIGTERM or Ctrl-C; nodes go on with what they enforce until their leases end.\nThe log's level is set by POSTERN_LOG, for instance POSTERN_LOG=debug."
)]
pub(super) struct Serve {
    /// Make policy.toml the policy in force at this start. Without it, the policy that was applied last stays.
    #[arg(long)]
    apply_policy: bool,
    /// How the log is written.
    #[arg(long, value_enum, default_value = "text")]
    log: LogForm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogForm {
    /// Lines for people.
    Text,
    /// JSON lines.
    Json,
}

impl Serve {
    pub(super) fn run(&self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let config = desk.config()?;
        self.begin_log();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)))
            .max_blocking_threads(16)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let at_start = if self.apply_policy { AtStart::ApplyPolicy } else { AtStart::KeepPolicy };
        runtime.block_on(async move {
            let running = serve::start(config, at_start).await?;
            tracing::info!(listening = ?running.listening, probes = %running.probes, "serving");
            until_told(running).await
        })
    }

    fn begin_log(&self) {
        use tracing_subscriber::{EnvFilter, fmt};
        let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
        let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
        // A second begin fails; the first one's form stays.
        drop(match self.log {
            LogForm::Text => {
                let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
                if std::env::var_os("JOURNAL_STREAM").is_some() {
                    log.without_time().try_init() // the journal has the time
                } else {
                    log.try_init()
                }
            }
            LogForm::Json => log.json().try_init(),
        });
    }
}

async fn until_told(mut running: Running) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot receive signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot receive signals")?;
    drop(sd_notify::notify(false, &[sd_notify::NotifyState::Ready]));
    let mut watchdog_usec = 0;
    let watched = sd_notify::watchdog_enabled(false, &mut watchdog_usec);
    let mut beat = tokio::time::interval(Duration::from_micros(if watched {
        (watchdog_usec / 3).max(100_000)
    } else {
        60_000_000
    }));
    loop {
        let handle = running.handle.clone();
        tokio::select! {
            ended = running.failed() => {
                ended.context("the controller stops: what it decided could not be written, and nobody was told of it")?;
                return Ok(ExitCode::SUCCESS);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = beat.tick() => {
                // The heart beats only while the actor answers: a hung core is a dead controller.
                let answers = tokio::time::timeout(Duration::from_secs(10), handle.call(|_, _| ())).await;
                if watched && matches!(answers, Ok(Ok(()))) {
                    drop(sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]));
                }
            }
        }
    }
    drop(sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]));
    tracing::info!("stopping");
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}
