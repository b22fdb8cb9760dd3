//! Mistakes in `controller.toml`, one table.

use super::*;

fn example() -> &'static str {
    include_str!("../../../configs/controller.toml")
}

#[test]
fn the_annotated_example_checks_as_it_is_and_with_every_sign_taken_away() {
    Config::parse(Path::new("controller.toml"), example()).unwrap();
    let mut text = String::new();
    for line in example().lines() {
        let uncommented = line.strip_prefix("# ").filter(|rest| rest.starts_with('[') || rest.contains(" = "));
        text.push_str(uncommented.unwrap_or(line));
        text.push('\n');
    }
    let config = Config::parse(Path::new("/etc/x/controller.toml"), &text).map_err(|error| error.to_string()).unwrap();
    assert!(config.oidc.is_some() && config.admin_group.is_some());
    assert!(matches!(config.tls, tls::Source::Given { .. }));
}

#[test]
fn what_init_writes_checks() {
    let places = Places { state: "state", keys: "keys", policy: "policy.toml", socket: "run/admin.sock" };
    let text = controller_toml("https://c.test:8443", "[\"127.0.0.1:8443\"]", "fd12:3456:789a::/48", None, &places);
    let config = Config::parse(Path::new("/x/controller.toml"), &text).unwrap();
    assert_eq!(config.url, "https://c.test:8443");
    assert_eq!(config.listen, ["127.0.0.1:8443".parse().unwrap()]);
    assert_eq!(config.core.overlay_v6.to_string(), "fd12:3456:789a::/48");
    assert_eq!(config.admin_socket, Path::new("/x/run/admin.sock"));
    assert_eq!(config.database(), Path::new("/x/state/controller.db"));
}

#[test]
fn every_mistake_names_its_line_and_what_to_do() {
    for (from, to, expected) in [
        ("listen =", "lisen =", "did you mean `listen`"),
        ("[leases]", "[lease]", "did you mean `leases`"),
        ("shortest = \"30s\"", "shortest = \"1s\"", "out of range"),
        ("shortest = \"30s\"", "shortest = 30", "controller.toml:"),
        ("length = \"12h\"", "length = \"12\"", "has no unit"),
        ("length = \"12h\"", "length = \"12 parsecs\"", "not a"),
        ("\"100.96.0.0/16\"", "\"100.96.0.1/16\"", "did you mean 100.96.0.0/16"),
        ("\"100.96.0.0/16\"", "\"127.0.0.0/16\"", "overlaps 127.0.0.0/8"),
        ("\"100.96.0.0/16\"", "\"0.0.0.0/8\"", "overlaps"),
        ("\"100.96.0.0/16\"", "\"100.96.0.0/33\"", "controller.toml:"),
        ("\"100.96.0.0/16\"", "\"8.8.0.0/16\"", "not private address space"),
        ("\"100.96.0.0/16\"", "\"192.160.0.0/12\"", "not private address space"),
        ("\"fd5e:9a41:c07d::/48\"", "\"2001:db8::/48\"", "unique local"),
        ("\"fd5e:9a41:c07d::/48\"", "\"fd5e:9a41::/32\"", "not a /48"),
        ("https://ctl.corp.example\"", "http://ctl.corp.example\"", "https://"),
        ("https://ctl.corp.example\"", "https://ctl.corp.example/path\"", "no path"),
        ("https://ctl.corp.example\"", "ctl\"", "not a URL"),
        ("[\"[::]:443\"]", "[]", "listens nowhere"),
        ("[\"[::]:443\"]", "[\"443\"]", "controller.toml:"),
        ("domain = \"internal\"", "domain = \"in ternal\"", "not a domain"),
        ("local = true", "local = false", "nobody can sign in"),
        ("url = \"https", "url = https", "controller.toml:"),
        ("[overlay]", "[overlay", "controller.toml:"),
        (
            "[accounts]",
            "[oidc]\nissuer = \"https://CTL.corp.example:443/\"\nclient_id = \"x\"\n\n[accounts]",
            "own URL",
        ),
    ] {
        assert!(example().contains(from), "{from}");
        let text = example().replacen(from, to, 1);
        let error = Config::parse(Path::new("controller.toml"), &text).expect_err(to).to_string();
        assert!(error.contains(expected), "{to}: {error}");
        assert!(error.contains("--> controller.toml"), "{to}: {error}");
    }
}

#[test]
fn a_public_pool_is_taken_only_where_it_is_meant() {
    let pool = example().replacen("\"100.96.0.0/16\"", "\"203.0.113.0/24\"\npublic_ipv4 = true", 1);
    let config = Config::parse(Path::new("controller.toml"), &pool).expect("meant");
    assert_eq!(config.core.overlay_v4.to_string(), "203.0.113.0/24");
}

#[test]
fn trusted_proxies_are_addresses_or_prefixes_and_never_everybody() {
    let with = |proxies: &str| {
        let text = include_str!("../../../configs/controller.toml")
            .replace("# trusted_proxies = [\"10.0.0.5\", \"10.0.1.0/24\"]", &format!("trusted_proxies = {proxies}"));
        Config::parse(Path::new("controller.toml"), &text)
    };
    let good = with("[\"10.0.0.5\", \"2001:db8::/64\"]").unwrap().trusted_proxies;
    assert!(good.contain("10.0.0.5".parse().unwrap()) && good.contain("2001:db8::9".parse().unwrap()));
    assert!(!good.contain("10.0.0.6".parse().unwrap()));
    for (bad, word) in
        [("[\"0.0.0.0/0\"]", "everybody"), ("[\"::/0\"]", "everybody"), ("[\"proxy.local\"]", "no address")]
    {
        let shown = with(bad).unwrap_err().to_string();
        assert!(shown.contains(word) && shown.contains("trusted_proxies"), "{shown}");
    }
}

/// The example with a provider and a stream of events, which `edit` may change.
fn with_events(edit: impl Fn(String) -> String) -> Result<Config, Diagnostics> {
    let stream = edit(
        "[[events]]\nname = \"corp\"\nissuer = \"https://ssf.corp.example\"\npeople_of = \"https://login.corp.example\"\n\
         delivery = \"push\"\npush_token_file = \"keys/events.token\"\n"
            .into(),
    );
    let oidc = "[oidc]\nissuer = \"https://login.corp.example\"\nclient_id = \"x\"\n\n";
    let text = format!("{}\n{oidc}{stream}", example());
    Config::parse(Path::new("/etc/x/controller.toml"), &text)
}

#[test]
fn a_stream_of_events_is_derived_from_what_is_written() {
    let config = with_events(|stream| stream).map_err(|error| error.to_string()).expect("checks");
    let stream = &config.events[0];
    assert_eq!(stream.audience.as_deref(), Some("https://ctl.corp.example/events/corp"));
    assert_eq!(stream.push_token_file.as_deref(), Some(Path::new("/etc/x/keys/events.token")));
    let own =
        with_events(|stream| stream.replace("people_of", "audience").replace("https://ssf.corp", "https://login.corp"));
    let own = own.map_err(|error| error.to_string()).expect("checks");
    assert_eq!(own.events[0].people_of.as_deref(), Some("https://login.corp.example"));
    let elsewhere = "stream_id = \"s\"\napi_token_file = \"t\"\nverification_url = \"https://other.example/v\"\n";
    let config = with_events(|stream| stream + elsewhere).map_err(|error| error.to_string()).expect("checks");
    assert_eq!(config.events[0].verification_url.as_deref(), Some("https://other.example/v"));
    let guide = include_str!("../../../docs/signals.md");
    let shown = guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let shown: Vec<&str> = shown.filter(|block| block.starts_with("[[events]]")).collect();
    assert_eq!(shown.len(), 2);
    for block in shown {
        with_events(|_| block.to_owned()).map_err(|error| error.to_string()).expect(block);
    }
}

#[test]
fn every_mistake_in_a_stream_of_events_says_what_to_do() {
    let push = "delivery = \"push\"\npush_token_file = \"keys/events.token\"\n";
    for (from, to, expected) in [
        ("name = \"corp\"", "name = \"Corp/x\"", "small letters"),
        ("issuer = \"https", "issuer = \"http", "must begin with https://"),
        ("issuer", "isuer", "did you mean `issuer`"),
        ("people_of = \"https://login.corp.example\"\n", "", "people_of = \"https://login.corp.example\""),
        ("people_of = \"https://login", "people_of = \"https://logon", "letter for letter"),
        ("people_of = \"https://login", "people_of = \"https://ctl", "local accounts"),
        (push, "delivery = \"push\"\n", "needs `push_token_file`"),
        (push, "delivery = \"poll\"\n", "needs `poll_url`"),
        (push, "delivery = \"poll\"\npoll_url = \"http://a\"\n", "`poll_url` must begin with https://"),
        (push, "delivery = \"carrier pigeon\"\n", "controller.toml:"),
        ("delivery = \"push\"", "poll_url = \"https://a\"\ndelivery = \"push\"", "leave it out"),
        ("delivery = \"push\"", "delivery = \"poll\"\npoll_url = \"https://a\"", "`api_token_file` is what"),
        ("delivery", "stream_id = \"s\"\ndelivery", "needs `api_token_file`"),
        (
            "delivery",
            "stream_id = \"s\"\nverification_url = \"http://a/v\"\ndelivery",
            "`verification_url` must begin with",
        ),
        (
            "delivery",
            "stream_id = \"s\"\nverification_url = \"http://127.0.0.1/v\"\ndelivery",
            "`verification_url` must begin",
        ),
        ("delivery", "verification_url = \"a.example/v\"\ndelivery", "`verification_url` must begin with"),
        ("delivery", "verification_url = \"https://a/v\"\ndelivery", "`verification_url` needs `stream_id`"),
        ("delivery", "silent_after = \"1s\"\ndelivery", "at least \"10s\""),
        ("delivery", "max_age = \"1y\"\ndelivery", "controller.toml:"),
        ("delivery", "max_age = \"60d\"\ndelivery", "`max_age` is"),
        ("delivery", "poll_interval = \"10ms\"\ndelivery", "`poll_interval` is"),
    ] {
        let error = with_events(|stream| {
            assert!(stream.contains(from), "{from}");
            stream.replacen(from, to, 1)
        });
        let error = error.expect_err(to).to_string();
        assert!(error.contains(expected) && error.contains("--> /etc/x/controller.toml"), "{to}: {error}");
    }
    let twice = with_events(|stream| format!("{stream}\n{stream}")).expect_err("two of one name").to_string();
    assert!(twice.contains("one name"), "{twice}");
    let (other, own) = ("name = \"other\"\naudience = \"https://ctl.corp.example/events/corp\"", "name = \"corp\"");
    let both = with_events(|stream| format!("{stream}\n{}", stream.replace(own, other)));
    let both = both.expect_err("one audience").to_string();
    assert!(both.contains("one `issuer` and one `audience`"), "{both}");
    with_events(|stream| format!("{stream}\n{}", stream.replace(own, "name = \"other\""))).expect("an audience each");
}

#[test]
fn a_name_that_others_can_get_is_no_name_for_provisioning() {
    let with = |issuer: &str, scim: &str| {
        let oidc = format!("[oidc]\nissuer = \"{issuer}\"\nclient_id = \"postern\"\n[oidc.scim]\n{scim}\n");
        Config::parse(Path::new("controller.toml"), &format!("{}\n{oidc}", example()))
            .map_err(|error| error.to_string())
    };
    for (issuer, scim, expected) in [
        ("https://idp.example", "claim = \"email\"", "somebody else can get it"),
        ("https://idp.example", "claim = \"UPN\"", "somebody else can get it"),
        ("https://idp.example", "claim = \"email\"\nclaim_is_permanent = true", "somebody else can get it"),
        ("https://idp.example", "claim = \"employee\"", "claim_is_permanent = true"),
        ("https://idp.example", "silent_after = \"5m\"", "at least"),
        ("https://idp.example", "claim = \"\"", "the name of a claim"),
        ("https://idp.example", "match = \"emails\"", "emails"),
        ("https://idp.example", "groups = \"scm\"", "scm"),
        ("https://idp.example", "require = true", "did you mean `required`"),
        ("https://login.microsoftonline.com/1/v2.0", "", "claim = \"oid\""),
    ] {
        let said = with(issuer, scim).expect_err("a mistake");
        assert!(said.contains(expected), "{scim}: {said}");
    }
    let permanent = "match = \"userName\"\nclaim = \"employee\"\nclaim_is_permanent = true\nrequired = true";
    let config = with("https://idp.example/", permanent).unwrap();
    let scim = config.core.scim.unwrap();
    assert_eq!((scim.issuer.as_str(), scim.claim.as_str()), ("https://idp.example", "employee"));
}
