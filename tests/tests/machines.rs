//! Services that sign in with a token of the platform that they run on: a cluster whose tokens are signed by real keys and served by
//! a real issuer, pods that find them in a file, and everything that may go wrong with them.

use std::{
    cell::RefCell,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use postern_tests::{
    Background, Echo, Signal,
    deployment::{Deployment, Family, Node, PATIENCE, WALL_OFFSET},
    eventually,
    lab::host::Host,
    pki,
    programs::{can_connect, wait_for_tcp_listener},
};
use serde_json::{Value, json};

const POLICY: &str = r#"
[resource.db]
nodes = ["tag:db"]
ports = ["tcp/7000"]

[[access]]
name = "billing reads its database"
from = ["service:billing"]
to = ["db"]
lease = "30s"
"#;

const ISSUER: &str = "https://cluster:6443";
const AUDIENCE: &str = "https://ctl/prod";
const TOKEN_FILE: &str = "/run/secrets/tokens/postern";
const ACCOUNT: &str = "8f2c6a52-0d3e-4a39-9a4c-1d8ae0f0a001";
/// How long a pod's token lives here; a cluster's do for an hour.
const LIFE: i64 = 30;

/// Serves files over TLS: what an API server says of its keys is nothing else.
const SERVER: &str = "import http.server, ssl, os, socket
http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
os.chdir('/run/issuer')
server = http.server.ThreadingHTTPServer(('::', 6443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('/run/pki/cluster.pem', '/run/pki/cluster.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()";

/// The issuer of a cluster.
struct Cluster {
    host: Host,
    key: RefCell<String>,
    _server: Background,
}

impl Cluster {
    fn start(world: &Deployment) -> Result<Self> {
        let host = world.lab.host("cluster")?;
        pki::hand_over(&world.controller, &host, "cluster")?;
        discovery(&host, ISSUER)?;
        host.write("/run/server.py", SERVER)?;
        let server = host.command("python3").arg("/run/server.py").spawn()?;
        wait_for_tcp_listener(&host, 6443, PATIENCE).with_context(|| server.output())?;
        let cluster = Self { host, key: RefCell::default(), _server: server };
        cluster.rotate("one")?;
        Ok(cluster)
    }

    /// Takes a new key into use; the former one is listed no more.
    fn rotate(&self, kid: &str) -> Result<()> {
        new_key(&self.host, kid)?;
        *self.key.borrow_mut() = kid.to_owned();
        Ok(())
    }

    /// Signs a token as the kubelet gets it for a pod; `change` makes it another one.
    fn token(&self, pod: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let mut claims = json!({
            "iss": ISSUER, "aud": [AUDIENCE], "iat": now, "nbf": now, "exp": now + LIFE,
            "sub": "system:serviceaccount:pay:billing", "jti": format!("{pod}-{now}-{}", rand()),
            "kubernetes.io": {"namespace": "pay", "pod": {"name": pod, "uid": format!("uid-of-{pod}")},
                "serviceaccount": {"name": "billing", "uid": ACCOUNT}},
        });
        change(&mut claims);
        let kid = self.key.borrow().clone();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(json!({"alg": "RS256", "kid": kid})), encode(claims));
        self.host.write("/run/signed", &signed)?;
        let sign =
            format!("openssl dgst -sha256 -sign /run/{kid}.key /run/signed | base64 -w0 | tr '+/' '-_' | tr -d =");
        Ok(format!("{signed}.{}", self.host.sh(&sign)?.trim()))
    }

    /// Writes a fresh token where a pod finds it, as the kubelet does: by renaming.
    fn project(&self, pod: &Host) -> Result<String> {
        let token = self.token(pod.name(), |_| {})?;
        put(pod, &token)?;
        Ok(token)
    }
}

/// Writes what an issuer says of itself.
fn discovery(host: &Host, issuer: &str) -> Result<()> {
    let document = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"]});
    host.write("/run/issuer/.well-known/openid-configuration", document.to_string())
}

/// Makes a key, `/run/KID.key`, and lists it alone.
fn new_key(host: &Host, kid: &str) -> Result<()> {
    host.sh(&format!("openssl genrsa -out /run/{kid}.key 2048 2>/dev/null"))?;
    let modulus = host.sh(&format!("openssl rsa -in /run/{kid}.key -noout -modulus"))?;
    let modulus = hex::decode(modulus.trim().trim_start_matches("Modulus="))?;
    let key = json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "e": "AQAB",
        "n": URL_SAFE_NO_PAD.encode(modulus)});
    host.write("/run/issuer/openid/v1/jwks", json!({ "keys": [key] }).to_string())
}

/// A number that no other token of this test has.
fn rand() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn put(pod: &Host, token: &str) -> Result<()> {
    pod.write(format!("{TOKEN_FILE}.new"), token)?;
    pod.sh(&format!("mv {TOKEN_FILE}.new {TOKEN_FILE}")).map(drop)
}

struct Scene {
    world: Deployment,
    cluster: Cluster,
    server: Node,
    _echo: Echo,
    at: IpAddr,
}

/// A controller that takes the cluster's tokens, and a database.
fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start_with(name, |controller, config| {
        pki::make(controller, "cluster")?;
        Ok(config
            + &format!(
                "\n[alerts]\nlog = \"/run/alerts.jsonl\"\n\n[[machine_issuer]]\nname = \"prod\"\nplatform = \"kubernetes\"\n\
                 issuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nca_file = \"/run/pki/ca.pem\"\n\n\
                 [[machine_issuer.match]]\nservice = \"billing\"\nclaims.\"kubernetes.io.namespace\" = \"pay\"\n\
                 claims.\"kubernetes.io.serviceaccount.uid\" = \"{ACCOUNT}\"\n"
            ))
    })?;
    let cluster = Cluster::start(&world)?;
    world.apply_policy(POLICY)?;
    let server = world.server("db", &["db"], None)?;
    let echo = server.echo(&[7000])?;
    let at = server.overlay(Family::V6)?;
    Ok(Scene { world, cluster, server, _echo: echo, at })
}

impl Scene {
    /// A pod with a token in its file and an agent that joins by itself.
    fn pod(&self, name: &str) -> Result<Node> {
        let host = self.world.lab.host(name)?;
        self.cluster.project(&host)?;
        self.start(host)
    }

    fn start(&self, host: Host) -> Result<Node> {
        let join = self.world.join_url();
        self.world.adopt(host, &format!("[platform]\ntoken_file = \"{TOKEN_FILE}\"\njoin = \"{join}\"\n"))
    }

    fn opens(&self, pod: &Node, otherwise: &str) -> Result<()> {
        let opened = eventually(PATIENCE, otherwise, || can_connect(&pod.host, self.at, 7000).then_some(()));
        opened.with_context(|| format!("{}\n--- controller\n{}", pod.log(), self.world.controller_log()))
    }

    fn audit(&self, event: &str) -> Result<Vec<Value>> {
        let text = self.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(events.filter(|line| line.to_string().contains(&format!("\"event\":\"{event}\""))).collect())
    }

    fn alerts(&self, kind: &str) -> usize {
        let log = self.world.controller.read("/run/alerts.jsonl").unwrap_or_default();
        log.lines().filter(|line| line.contains(&format!("\"kind\":\"{kind}\""))).count()
    }

    /// A connection on which nobody speaks.
    fn idle(&self, pod: &Node) -> Result<Background> {
        let idle = pod.host.command("socat").args(["-u", &format!("TCP6:[{}]:7000", self.at), "-"]).spawn()?;
        eventually(PATIENCE, "no idle connection", || {
            let sockets = self.server.host.command("ss").args(["-Htn", "state", "established", "( sport = :7000 )"]);
            sockets.run().is_ok_and(|output| !output.stdout.trim().is_empty()).then_some(())
        })?;
        Ok(idle)
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

#[test]
fn a_pod_joins_with_its_token_renews_with_the_next_and_is_cut_when_none_comes() -> Result<()> {
    let scene = scene("machines-pod")?;
    let mut minted = now();
    let pod = scene.pod("billing-x")?;
    scene.opens(&pod, "the pod does not reach its database")?;

    // The kubelet writes another token late in the life of the first, signed by another key: the pod shows it in time. On a busy machine
    // that may have been too late; then it is the next one that has to come in time.
    let mut in_time = None;
    for key in ["two", "three", "four"] {
        let mut idle = scene.idle(&pod)?;
        let ends = minted + LIFE;
        let renewed = scene.audit("platform_renewed")?.len();
        eventually(PATIENCE, "time does not pass", || (now() > ends - 2 * LIFE / 3).then_some(()))?;
        scene.cluster.rotate(key)?;
        minted = now();
        scene.cluster.project(&pod.host)?;
        eventually(PATIENCE, "the pod does not renew", || {
            scene.audit("platform_renewed").ok().filter(|events| events.len() > renewed).map(drop)
        })
        .with_context(|| format!("{}\n--- controller\n{}", pod.log(), scene.world.controller_log()))?;
        if now() < ends {
            // Nothing breaks where the former token would have ended.
            eventually(PATIENCE, "time does not pass", || (now() > ends + 2).then_some(()))?;
            ensure!(idle.is_running(), "cut although it was renewed\n{}", pod.log());
            ensure!(can_connect(&pod.host, scene.at, 7000), "closed although it was renewed\n{}", pod.log());
            in_time = Some(idle);
            break;
        }
    }
    let mut idle = in_time.context("no token was shown in time: the machine is too busy")?;

    let before = scene.audit("platform_signed_in")?.len();
    // Its service account is deleted: no token comes any more, and at the end of the last one every door is shut.
    let limit = Duration::from_secs(u64::try_from(LIFE)? + 15);
    eventually(limit, "a connection outlives the last token", || (!idle.is_running()).then_some(()))?;
    ensure!(now() >= minted + LIFE - 1, "cut {} s after the last token came", now() - minted);
    ensure!(!can_connect(&pod.host, scene.at, 7000), "a new connection without a token");
    let status = pod.command().arg("status").run()?.text();
    ensure!(status.contains("cannot sign in by its platform") && status.contains("token"), "{status}");

    // It is made again: the pod is back by itself.
    scene.cluster.project(&pod.host)?;
    eventually(PATIENCE, "the pod does not come back", || can_connect(&pod.host, scene.at, 7000).then_some(()))
        .with_context(|| pod.log())?;
    ensure!(scene.audit("platform_signed_in")?.len() == before + 1, "{:?}", scene.audit("platform_signed_in"));
    ensure!(!pod.log().contains("eyJ") && !scene.world.controller_log().contains("eyJ"), "a token was logged");
    Ok(())
}

#[test]
fn stolen_and_forged_tokens_open_nothing_and_are_recorded() -> Result<()> {
    let scene = scene("machines-stolen")?;
    let host = scene.world.lab.host("billing-x")?;
    let token = scene.cluster.token("billing-x", |claims| claims["exp"] = json!(now() + 600))?;
    put(&host, &token)?;
    let pod = scene.start(host)?;
    scene.opens(&pod, "the pod does not reach its database")?;

    let thief = scene.world.lab.host("thief")?;
    put(&thief, &token)?;
    let thief = scene.start(thief)?;
    let refused = |reason: &str| {
        eventually(PATIENCE, &format!("nothing is refused because of: {reason}"), || {
            let events = scene.audit("platform_refused").ok()?;
            events.iter().any(|event| event.to_string().contains(reason)).then_some(())
        })
        .with_context(|| format!("{:?}\n{}", scene.audit("platform_refused"), thief.log()))
    };
    refused("another machine has shown this token before")?;
    eventually(PATIENCE, "no alert of the stolen token", || (scene.alerts("token_replayed") == 1).then_some(()))?;
    let status = thief.command().arg("status").run()?.text();
    ensure!(status.contains("another machine has shown this token before"), "{status}");

    // Other pods of the cluster, and tokens that were asked for by others.
    type Forgery = (&'static str, fn(&mut Value));
    let forgeries: [Forgery; 3] = [
        ("fits no match", |claims| claims["kubernetes.io"]["serviceaccount"]["uid"] = json!("another")),
        ("another audience", |claims| claims["aud"] = json!(["https://kubernetes.default.svc"])),
        ("from the future", |claims| claims["iat"] = json!(now() + 3_600)),
    ];
    for (reason, change) in forgeries {
        put(&thief.host, &scene.cluster.token("thief", change)?)?;
        thief.stop(Signal::Terminate)?;
        thief.start()?;
        refused(reason)?;
    }
    ensure!(!can_connect(&thief.host, scene.at, 7000), "a thief reaches the database");
    ensure!(scene.audit("platform_signed_in")?.len() == 1, "{:?}", scene.audit("platform_signed_in"));
    // Nothing of this touched the pod.
    ensure!(can_connect(&pod.host, scene.at, 7000), "{}", pod.log());
    Ok(())
}

#[test]
fn a_clock_that_jumps_opens_nothing_to_a_token_that_has_ended() -> Result<()> {
    let scene = scene("machines-clock")?;
    let pod = scene.pod("billing-x")?;
    scene.opens(&pod, "the pod does not reach its database")?;
    for offset in [-3_600_000i64, 3_600_000] {
        let fresh = scene.cluster.project(&pod.host)?;
        scene.world.controller.write(WALL_OFFSET, offset.to_string())?;
        // No fresh token is taken while the clock is wrong: one from the future, or one that is over.
        eventually(2 * PATIENCE, "a door is open without a live token", || {
            (!can_connect(&pod.host, scene.at, 7000)).then_some(())
        })?;
        eventually(PATIENCE, "time does not pass", || ended(&fresh).filter(|ended| now() > *ended + 1).map(drop))?;
        ensure!(!can_connect(&pod.host, scene.at, 7000), "a token opens after its end with the clock at {offset} ms");
        scene.world.controller.write(WALL_OFFSET, "0")?;
        scene.cluster.project(&pod.host)?;
        eventually(PATIENCE, "access does not come back when the clock is right", || {
            can_connect(&pod.host, scene.at, 7000).then_some(())
        })
        .with_context(|| format!("{}\n--- controller\n{}", pod.log(), scene.world.controller_log()))?;
    }
    Ok(())
}

/// Reads when a token ends.
fn ended(token: &str) -> Option<i64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Value>(&claims).ok()?["exp"].as_i64()
}

/// How long a token of a job lives here; GitHub's do for five minutes.
const JOB_LIFE: i64 = 16;
/// The bearer token by which a job asks for tokens of its own.
const JOB: &str = "a-token-of-the-job";

/// The token service of GitHub Actions, and the issuer's keys: a fresh token for each question, for the audience that it names, by the
/// claims in `/run/claims.json`, until the job is over.
const GITHUB: &str = "import base64, http.server, json, os, socket, ssl, subprocess, time, urllib.parse
http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
os.chdir('/run/issuer')
def part(value):
    return base64.urlsafe_b64encode(value).rstrip(b'=')
class Issuer(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        if url.path != '/token':
            return super().do_GET()
        if self.headers['Authorization'] != 'Bearer a-token-of-the-job' or os.path.exists('/run/job-is-over'):
            return self.send_error(401)
        now = int(time.time())
        claims = json.load(open('/run/claims.json'))
        claims.update(aud=urllib.parse.parse_qs(url.query)['audience'][0], iat=now, nbf=now, exp=now + 16, jti=str(time.time_ns()))
        signed = part(json.dumps({'alg': 'RS256', 'kid': 'one'}).encode()) + b'.' + part(json.dumps(claims).encode())
        sign = ['openssl', 'dgst', '-sha256', '-sign', '/run/one.key']
        signature = subprocess.run(sign, input=signed, capture_output=True, check=True).stdout
        answer = json.dumps({'value': (signed + b'.' + part(signature)).decode()}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
server = http.server.ThreadingHTTPServer(('::', 6443), Issuer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('/run/pki/github.pem', '/run/pki/github.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()";

/// A job of GitHub Actions has its service's access while it runs, with a token for each quarter of a minute; another repository's has none.
#[test]
fn a_job_of_github_reaches_what_its_service_may_for_as_long_as_it_runs() -> Result<()> {
    let world = Deployment::start_with("machines-github", |controller, config| {
        pki::make(controller, "github")?;
        Ok(config
            + "\n[[machine_issuer]]\nname = \"github\"\nplatform = \"github\"\nissuer = \"https://github:6443\"\n\
               audience = \"https://ctl/github\"\nca_file = \"/run/pki/ca.pem\"\n\n[[machine_issuer.match]]\nservice = \"billing\"\n\
               claims.repository_id = \"74190812\"\nclaims.environment = \"production\"\n")
    })?;
    world.apply_policy(POLICY)?;
    let server = world.server("db", &["db"], None)?;
    let _echo = server.echo(&[7000])?;
    let at = server.overlay(Family::V6)?;

    let github = world.lab.host("github")?;
    pki::hand_over(&world.controller, &github, "github")?;
    discovery(&github, "https://github:6443")?;
    new_key(&github, "one")?;
    let claims = json!({"iss": "https://github:6443", "sub": "repo:corp/app:environment:production", "repository_id": "74190812",
        "environment": "production", "run_id": "4711", "run_attempt": "1"});
    github.write("/run/claims.json", claims.to_string())?;
    github.write("/run/github.py", GITHUB)?;
    let issuer = github.command("python3").arg("/run/github.py").spawn()?;
    wait_for_tcp_listener(&github, 6443, PATIENCE).with_context(|| issuer.output())?;

    let host = world.lab.host("runner")?;
    host.write("/run/roots.pem", world.controller.read(pki::AUTHORITY)?)?;
    let node_toml = format!("[platform]\ngithub_audience = \"https://ctl/github\"\njoin = \"{}\"\n", world.join_url());
    let job = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://github:6443/token?api-version=2.0"),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", JOB),
        ("SSL_CERT_FILE", "/run/roots.pem"), // what vouches for GitHub
    ];
    let runner = world.adopt_with(host, &node_toml, &job)?;
    let mut rows =
        runner.chatter(at, 7000).with_context(|| format!("{}\n{}", issuer.output(), world.controller_log()))?;
    let first = now();
    // Each token is taken once: another one came before the first had ended.
    eventually(PATIENCE, "time does not pass", || (now() > first + JOB_LIFE + 2).then_some(()))?;
    rows.goes_on("its first token has ended")?;

    github.sh("touch /run/job-is-over")?;
    rows.is_cut_within(Duration::from_secs(35), "no token any more")?;
    let told = eventually(PATIENCE, "the runner does not say why", || {
        runner.command().arg("status").run().ok().map(|output| output.text()).filter(|text| text.contains("GitHub"))
    })?;
    ensure!(told.contains("GitHub gives no token: it answers 401"), "{told}");
    ensure!(!can_connect(&runner.host, at, 7000), "open without a token");
    let said = world.ctl(&["audit", "tail", "-n", "200"])?;
    ensure!(!said.contains(JOB) && !runner.log().contains(JOB), "the job's token is in a log");

    // A job of another repository, with the same names everywhere.
    let mut other = claims;
    other["repository_id"] = json!("74190813");
    github.write("/run/claims.json", other.to_string())?;
    github.sh("rm /run/job-is-over")?;
    eventually(PATIENCE, "the other repository is not refused", || {
        let audit = world.controller.sh("cat /etc/postern-controller/state/audit/*").ok()?;
        audit.contains("fits no match: repository_id is another").then_some(())
    })
    .with_context(|| runner.log())?;
    ensure!(!can_connect(&runner.host, at, 7000), "another repository's job gets in");
    Ok(())
}
