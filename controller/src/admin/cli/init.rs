//! `init`: a new controller's files.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use zeroize::Zeroizing;

use super::Desk;
use crate::{
    admin::{answer::join_link, print},
    config::{self, Config, Places},
    serve::{clock, files, tls},
};

/// Write a configuration, an empty policy and the controller's keys.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern-controller init --url https://ctl.corp.example\n  postern-controller init --dir ./lab --url https://127.0.0.1:8443 --listen 127.0.0.1:8443\n\nNothing that exists is overwritten."
)]
pub(super) struct Init {
    /// The URL under which people and machines will find the controller.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Put everything into this folder (default: /etc/postern-controller, /var/lib/postern-controller and /run/postern-controller).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where to listen; [::] and the URL's port unless given. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<std::net::SocketAddr>,
    /// Your own certificate chain in PEM, leaf first; without it the controller makes an authority of its own.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The private key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(&self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let file = match &self.dir {
            Some(dir) => dir.join("controller.toml"),
            None => desk.file.clone(),
        };
        let dir = file.parent().unwrap_or(Path::new(".")).to_owned();
        let url = self.url()?;
        let listen = if self.listen.is_empty() {
            vec![std::net::SocketAddr::new(
                std::net::Ipv6Addr::UNSPECIFIED.into(),
                url.port_or_known_default().unwrap_or(443),
            )]
        } else {
            self.listen.clone()
        };
        let shown = url.as_str().trim_end_matches('/');
        let text = self.controller_toml(shown, &listen)?;
        // What was written must be what is read: a URL that would not check is refused before anything exists.
        let config = Config::parse(&file, &text)?;
        let (policy, signing) = (config.policy.clone(), config.signing_key());
        for path in [&file, &policy, &signing] {
            anyhow::ensure!(!path.exists(), "{} exists already; nothing was written", path.display());
        }
        if let tls::Source::Given { .. } = &config.tls {
            tls::load(&config.tls, clock::now().wall)?;
        }

        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        files::make_private_folder(&config.key_dir)?;
        files::make_private_folder(&config.state_dir)?;
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut_slice()).context("the kernel's random source does not answer")?;
        files::write_new(&signing, hex::encode(seed.as_slice()).as_bytes(), files::SECRET)?;
        if let tls::Source::Own { dir, .. } = &config.tls
            && !dir.join("ca.key").exists()
        {
            tls::make_authority(dir, url.host_str().unwrap_or("postern"), clock::now().wall)?;
        }
        files::write_new(&policy, config::policy_toml().as_bytes(), files::PUBLIC)?;
        files::write_new(&file, text.as_bytes(), files::PUBLIC)?;

        let pin = tls::load(&config.tls, clock::now().wall)?.pin;
        let link = join_link(&config.url, pin);
        let value = serde_json::json!({ "config": file, "policy": policy, "join_url": link });
        desk.show(&value, |_| {
            print::done(&format!(
                "Wrote {}, {} (nobody may reach anything yet) and the controller's keys in {}.",
                file.display(),
                policy.file_name().unwrap_or_default().to_string_lossy(),
                config.key_dir.display()
            ));
            let named = if file == Path::new(config::DEFAULT_FILE) {
                String::new()
            } else {
                format!(" --config {}", file.display())
            };
            println!("Next: postern-controller serve{named}");
            println!("then: postern-controller user add you@corp.example --admin{named}");
            println!("Machines join with: postern up {link}");
            if let tls::Source::Own { dir, .. } = &config.tls {
                println!("A browser warns until it trusts {}.", dir.join("ca.crt").display());
            }
        });
        Ok(ExitCode::SUCCESS)
    }

    fn url(&self) -> anyhow::Result<url::Url> {
        let text = match &self.url {
            Some(text) => text.clone(),
            None => {
                let host = nix_hostname().context("cannot tell this machine's name: give --url https://HOST")?;
                format!("https://{host}")
            }
        };
        let text = if text.contains("://") { text } else { format!("https://{text}") };
        url::Url::parse(&text).with_context(|| format!("`{text}` is not a URL: write --url https://ctl.corp.example"))
    }

    fn controller_toml(&self, url: &str, listen: &[std::net::SocketAddr]) -> anyhow::Result<String> {
        let mut random = [0u8; 5];
        getrandom::fill(&mut random).context("the kernel's random source does not answer")?;
        let [a, b, c, d, e] = random;
        let ipv6 = format!("fd{a:02x}:{b:02x}{c:02x}:{d:02x}{e:02x}::/48");
        let ipv6 = ipv6.parse::<ipnet::Ipv6Net>().context("the drawn prefix")?.to_string();
        let listen = format!("{:?}", listen.iter().map(ToString::to_string).collect::<Vec<_>>());
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map(|path| path.display().to_string()).context("cannot tell the current folder")
        };
        let tls = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((absolute(certificate)?, absolute(key)?)),
            _ => None,
        };
        let tls = tls.as_ref().map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        let places = if self.dir.is_some() {
            Places { state: "state", keys: "keys", policy: "policy.toml", socket: "run/admin.sock" }
        } else {
            Places {
                state: "/var/lib/postern-controller",
                keys: "keys",
                policy: "policy.toml",
                socket: "/run/postern-controller/admin.sock",
            }
        };
        Ok(config::controller_toml(url, &listen, &ipv6, tls, &places))
    }
}

fn nix_hostname() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    anyhow::ensure!(!name.trim().is_empty() && name.trim() != "(none)", "it has none");
    Ok(name.trim().to_owned())
}
