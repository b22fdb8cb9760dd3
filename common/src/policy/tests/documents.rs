//! Documents that are refused, and how the refusal reads.

use super::*;

fn mistakes(text: &str) -> String {
    Policy::parse("policy.toml", text).expect_err("mistakes").to_string()
}

const GOOD: &str = r#"
[posture.managed]
disk_encrypted = true

[resource.wiki]
node = "wiki-1"
ports = ["tcp/443"]

[[access]]
name = "staff reads the wiki"
from = ["group:staff"]
to = ["wiki"]
"#;

#[test]
fn a_mistake_is_shown_with_its_line_and_its_likely_meaning() {
    assert_eq!(
        mistakes(&GOOD.replace("ports =", "port =")),
        "error: [resource.wiki] has no `ports`\n   --> policy.toml:5:1\n 5 | [resource.wiki]\n   | ^^^^^^^^^^^^^^^ add what may be opened, such as ports = [\"tcp/443\"]\n\n\
         error: unknown key `port` in [resource.wiki]\n   --> policy.toml:7:1\n 7 | port = [\"tcp/443\"]\n   | ^^^^ did you mean `ports`?"
    );
    assert_eq!(
        mistakes(&GOOD.replace("to = [\"wiki\"]", "to = [\"wikki\"]")),
        "error: there is no resource \"wikki\"\n   --> policy.toml:12:7\n12 | to = [\"wikki\"]\n   |       ^^^^^^^ did you mean \"wiki\"?"
    );
}

/// A rule's condition on a place and a posture from which `from` is excepted.
fn excepted(from: &str, more: &str) -> String {
    format!(
        "when = {{ network = \"192.0.2.0/24\", posture = \"managed\" }}\n[[posture_exception]]\nposture = \"managed\"\nfrom = [\"{from}\"]\nowner = \"it\"\nreason = \"x\"\nexpires = \"2027-01-31\"\n{more}"
    )
}

#[test]
fn a_place_with_something_of_the_device_or_the_person_is_a_condition() {
    let instead = "instead = \"own\"\n[posture.own]\nfirewall = true";
    for text in [excepted("group:others", ""), excepted("user:bob", ""), excepted("user:*", instead)] {
        policy(&format!("{GOOD}{text}\n"));
    }
    policy(&format!("{GOOD}when = {{ network = \"192.0.2.0/24\", mfa_within = \"12h\" }}\n"));
}

#[test]
fn every_kind_of_mistake_has_its_place_and_its_help() {
    let replaced = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    };
    let added = |text: &str| format!("{GOOD}{text}\n");
    let test = |rest: &str| added(&format!("[[test]]\n{rest}"));
    for (text, parts) in [
        (replaced("tcp/443", "tcp/443-80"), ["port range 443-80 is upside down", ":7:10", "did you mean 80-443?"]),
        (replaced("tcp/443", "tpc/443"), ["unknown protocol `tpc`", ":7:10", "use tcp/PORT"]),
        (replaced("\"tcp/443\"", "443"), ["expected a text in quotes, found a whole number", ":7:10", "443"]),
        (replaced("[\"tcp/443\"]", "[]"), ["`ports` in [resource.wiki] is empty", ":7:9", "^^"]),
        (replaced("[\"tcp/443\"]", "\"tcp/443\""), ["expected a list", ":7:9", "did you mean [\"tcp/443\"]?"]),
        (replaced("\"tcp/443\"", "\"tcp/443\", \"tcp/443\""), ["`tcp/443` is named twice", ":7:21", "^^^"]),
        (replaced("node = \"wiki-1\"", "nodes = [\"tag:\"]"), ["is not a name", ":6:10", "use 1 to 63 of"]),
        (replaced("node = \"wiki-1\"", "owner = \"x\""), ["has no `node`", ":5:1", "nodes = [\"tag:NAME\"]"]),
        (replaced("node =", "nodes = [\"a\"]\nnode ="), ["has both `node` and `nodes`", ":5:11", "keep one"]),
        (
            replaced("node =", "via = \"gw\"\nnode ="),
            ["`via` in [resource.wiki] is not supported yet", ":6:1", "run the agent"],
        ),
        (replaced("node =", "on_deny = \"rejct\"\nnode ="), ["is not a value of `on_deny`", ":6:11", "\"reject\"?"]),
        (replaced("resource.wiki]", "resource.\"wi ki\"]"), ["`wi ki` is not a name", ":5:11", "use 1 to 63 of"]),
        (replaced("[\"group:staff\"]", "[]"), ["`from` in [[access]] is empty", ":11:8", "^^"]),
        (replaced("[\"wiki\"]", "[]"), ["`to` in [[access]] is empty", ":12:6", "^^"]),
        (replaced("to = [\"wiki\"]", ""), ["[[access]] has no `to`", ":9:1", "add the resources"]),
        (replaced("to = [\"wiki\"]", "to = [\"*\"]"), ["there is no resource \"*\"", ":12:7", "only [[deny]] may"]),
        (replaced("group:staff", "staff"), ["does not say who it names", ":11:9", "\"group:staff\""]),
        (replaced("group:staff", "grup:staff"), ["does not say who it names", ":11:9", "\"group:staff\"?"]),
        (replaced("name = \"staff reads the wiki\"\n", ""), ["[[access]] has no `name`", ":9:1", "add name"]),
        (added("lease = \"2h\""), ["a lease of 2 h is out of bounds", ":13:9", "\"30s\" to \"1h\""]),
        (added("lease = \"10\""), ["`10` has no unit", ":13:9", "\"10m\""]),
        (added("lease = 10"), ["`10` has no unit", ":13:9", "\"10m\""]),
        (added("lease = \"10 parsecs\""), ["is not a duration", ":13:9", "such as"]),
        (
            added("limits = { download = \"2GiB/h\" }"),
            ["`limits` of [[access]] has no `on_exceed`", ":13:10", "\"challenge\""],
        ),
        (added("unless = { posture = \"managed\" }"), ["not supported", ":13:1", "belongs to [[deny]]"]),
        (added("when = {}"), ["`when` of [[access]] is empty", ":13:8", "name a condition"]),
        (added("when = { postur = \"managed\" }"), ["unknown key `postur` in `when`", ":13:10", "`posture`?"]),
        (added("when = { posture = \"manged\" }"), ["there is no posture \"manged\"", ":13:20", "\"managed\"?"]),
        (added("when = { mfa_within = \"0s\" }"), ["within no time", ":13:23", "^^^^"]),
        (added("when = { hours = \"Mon-Fri 7-20 UTC\" }"), ["is not a time of day", ":13:18", "use 00:00 to 24:00"]),
        (added("when = { network = \"10.0.0.1/8\" }"), ["bits after its prefix", ":13:20", "\"10.0.0.0/8\"?"]),
        (added("when = { network = \"lan\" }"), ["is not a network", ":13:20", "192.0.2.0/24"]),
        (added("when = { country = \"Germany\" }"), ["is not a country", ":13:20", "two letters"]),
        (added("when = { asn = \"Telekom\" }"), ["is not an autonomous system", ":13:16", "AS3320"]),
        (added("when = { network = \"192.0.2.0/24\" }"), ["opens by the place alone", ":9:1", "easily borrowed"]),
        (added("when = { country = \"DE\", asn = \"AS3320\" }"), ["opens by the place alone", ":9:1", "borrowed"]),
        (
            added("when = { network = \"192.0.2.0/24\", hours = \"Mon-Sun 00:00-24:00 UTC\" }"),
            ["opens by the place alone", ":9:1", "borrowed"],
        ),
        (added(&excepted("user:*", "")), ["opens by the place alone", ":9:1", "borrowed"]),
        (added(&excepted("group:staff", "")), ["opens by the place alone", ":9:1", "borrowed"]),
        (
            added("when = { network = \"ofice\" }\n[network.office]\nprefixes = [\"192.0.2.0/24\"]"),
            ["is not a network", ":13:20", "\"office\"?"],
        ),
        (added("[network.office]"), ["[network.office] has no `prefixes`", ":13:", "add prefixes"]),
        (added("mode = \"monitor\""), ["has no `monitor_until`", ":9:1", "not watched for ever"]),
        (added("mode = \"watch\""), ["is not a value of `mode`", ":13:8", "\"enforce\" or \"monitor\""]),
        (added("monitor_until = \"2026-12-01\""), ["without a mode", ":13:17", "mode = \"monitor\""]),
        (added("mode = \"monitor\"\nmonitor_until = \"soon\""), ["`soon` is not a date", ":14:17", "RFC 3339"]),
        (added("expires = \"2026-13-01\""), ["is not a date", ":13:11", "write"]),
        (added("starts = 2026-12-02\nexpires = 2026-12-01"), ["not after `starts`", ":14:11", "exchange"]),
        (added("stock_clients = \"yes\""), ["expected true or false, found a text", ":13:17", "^^^^^"]),
        (added("[resource.wiki]\nnode = \"x\""), ["duplicate key", ":13:", "rename one"]),
        (
            added("[[deny]]\nname = \"staff reads the wiki\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]"),
            ["two rules are named", ":14:8", "line 10"],
        ),
        (added("[deny]\nname = \"x\""), ["expected a list of tables, found a table", ":13:1", "[[deny]]"]),
        (added("[[posture]]\ndisk_encrypted = true"), ["duplicate", ":13:", "posture"]),
        (added("[posture.none]"), ["[posture.none] requires nothing", ":13:10", "disk_encrypted"]),
        (
            added("[posture.x]\nos.macos.min = \"1\""),
            ["`macos` in [posture.x.os] is not supported yet", ":14:4", "Linux"],
        ),
        (added("[acess]\nname = \"x\""), ["unknown key `acess`", ":13:2", "`access`?"]),
        (added("[settings]\ntimezone = \"Berlin\""), ["unknown time zone `Berlin`", ":14:12", "Europe/Berlin"]),
        (test("to = \"wiki\"\nexpect = \"deny\""), ["[[test]] has no `as`", ":13:1", "add who asks"]),
        (test("as = { user = \"a\" }\nexpect = \"deny\""), ["[[test]] has no `to`", ":13:1", "the resource"]),
        (test("as = {}\nto = \"wiki\"\nexpect = \"deny\""), ["has no `user`", ":14:6", "or service"]),
        (
            test("as = { user = \"a\", service = \"b\" }\nto = \"wiki\"\nexpect = \"deny\""),
            ["both a user and a service", ":14:6", "keep one"],
        ),
        (
            test("as = { user = \"a\" }\nto = \"wiki\"\nexpect = \"denied\""),
            ["is not a value of `expect`", ":16:10", "\"deny\"?"],
        ),
        (added("name = [\""), ["invalid", ":13:", "^"]),
    ] {
        let shown = mistakes(&text);
        for part in parts {
            assert!(shown.contains(part), "{part:?} is missing in\n{shown}\nof\n{text}");
        }
        assert!(shown.lines().all(|line| !line.ends_with(' ')), "{shown}");
    }
}

#[test]
fn all_mistakes_of_a_document_are_shown_in_their_order() {
    let text =
        GOOD.replace("tcp/443", "tcp/0").replace("group:staff", "staff").replace("to = [\"wiki\"]", "to = [\"wika\"]");
    let mistakes = Policy::parse("policy.toml", &text).expect_err("mistakes");
    let places: Vec<usize> = mistakes.iter().filter_map(|m| m.span.as_ref().map(|span| span.start)).collect();
    assert_eq!(places.len(), 3, "{mistakes}");
    assert!(places.is_sorted(), "{mistakes}");
}

#[test]
fn a_resource_that_cannot_be_read_is_one_mistake_and_not_one_for_each_rule_that_names_it() {
    let text = GOOD.replace("[resource.wiki]\nnode = \"wiki-1\"\nports = [\"tcp/443\"]", "resource.wiki = 1");
    let text = text.replacen("[posture.managed]\ndisk_encrypted = true", "", 1);
    assert_eq!(mistakes(&text).matches("error:").count(), 1, "{}", mistakes(&text));
}

#[test]
fn a_failing_test_refuses_the_document_and_says_why_it_fails() {
    let text = format!(
        "{GOOD}[[test]]\nas = {{ user = \"eve\", groups = [\"staff\"] }}\nto = \"wiki\"\nport = \"tcp/443\"\nexpect = \"deny\"\n"
    );
    assert_eq!(
        mistakes(&text),
        "error: eve -> wiki tcp/443 is allowed, and the test expects that it is denied\n   --> policy.toml:17:10\n17 | expect = \"deny\"\n   |          ^^^^^^ rule \"staff reads the wiki\" allows it (policy.toml:9)"
    );
    let text = format!("{GOOD}[[test]]\nas = {{ user = \"eve\" }}\nto = \"wiki\"\nexpect = \"allow\"\n");
    assert!(mistakes(&text).contains("no rule opens wiki to eve"), "{}", mistakes(&text));
}

#[test]
fn a_test_without_a_time_claims_something_of_every_time() {
    let by_day = GOOD.replace("to = [\"wiki\"]", "to = [\"wiki\"]\nwhen = { hours = \"Mon-Fri 07:00-20:00 UTC\" }");
    let test = |expect: &str, at: &str| {
        let text = format!(
            "{by_day}[[test]]\nas = {{ user = \"eve\", groups = [\"staff\"] }}\nto = \"wiki\"\nexpect = \"{expect}\"\n{at}\n"
        );
        Policy::parse("policy.toml", &text).is_ok()
    };
    assert!(test("allow", "") && !test("deny", ""));
    assert!(test("deny", "at = \"2026-11-23 03:00\"") && !test("allow", "at = \"2026-11-23 03:00\""));
    let denied_by_night = format!(
        "{GOOD}[[deny]]\nname = \"night\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]\nwhen = {{ hours = \"Mon-Sun 00:00-06:00 UTC\" }}\n\
         [[test]]\nas = {{ user = \"eve\", groups = [\"staff\"] }}\nto = \"wiki\"\nexpect = \"deny\"\n"
    );
    assert!(mistakes(&denied_by_night).contains("is allowed"), "there are times at which it is");
}

#[test]
fn a_test_sees_unknown_groups_and_watched_rules_as_they_are() {
    let watched = GOOD.replace(
        "to = [\"wiki\"]",
        "to = [\"wiki\"]\nwhen = { posture = \"managed\" }\nmode = \"monitor\"\nmonitor_until = 2027-01-01",
    );
    let test = |who: &str, expect: &str| {
        let text = format!("{watched}[[test]]\nas = {who}\nto = \"wiki\"\nexpect = \"{expect}\"\n");
        Policy::parse("policy.toml", &text).map_err(|mistakes| mistakes.to_string())
    };
    for (who, expect) in [
        ("{ user = \"a\", groups = [\"staff\"] }", "would-deny"),
        ("{ user = \"a\", groups = [\"staff\"], posture = \"managed\" }", "allow"),
        ("{ user = \"a\", groups = \"unknown\", posture = [\"managed\"] }", "deny"),
        ("{ user = \"oidc/a\", tags = [\"tag:x\"], address = \"192.0.2.1\" }", "deny"),
        ("{ service = \"staff\" }", "deny"),
    ] {
        test(who, expect).unwrap_or_else(|mistakes| panic!("{who}: {mistakes}"));
    }
    assert!(test("{ user = \"a\", groups = [\"staff\"] }", "deny").is_err(), "it passes while it is watched");
}

#[test]
fn a_resource_that_is_open_in_part_is_neither_allowed_nor_denied() {
    let text = format!(
        "{GOOD}[resource.more]\nnode = \"wiki-1\"\nports = [\"tcp/443\", \"tcp/80\"]\n[[test]]\nas = {{ user = \"a\", groups = [\"staff\"] }}\nto = \"more\"\n"
    );
    // A rule for `wiki` opens one of the two ports of `more`, whatever it is called.
    for expect in ["allow", "deny"] {
        let shown = mistakes(&format!("{text}expect = \"{expect}\"\n"));
        assert!(shown.contains("is allowed in part"), "{shown}");
    }
}

#[test]
fn an_empty_document_gives_nobody_anything() {
    assert_eq!(given(&policy(""), &person("root", &["admins"], MONDAY)), [""; 0]);
    assert_eq!(given(&Policy::empty(), &person("root", &["admins"], MONDAY)), [""; 0]);
}

#[test]
fn the_annotated_example_is_a_good_document() {
    let text = include_str!("../../../../configs/policy.toml");
    let policy = policy(text);
    assert!(policy.run_tests().len() >= 4);
    assert!(policy.run_tests().iter().all(|outcome| outcome.failure.is_none()));
}

#[test]
fn every_document_in_the_guide_and_the_readme_is_a_good_one() {
    let texts = [
        include_str!("../../../../docs/policy.md"),
        include_str!("../../../../docs/posture.md"),
        include_str!("../../../../README.md"),
    ];
    for (text, least) in texts.into_iter().zip([3, 3, 1]) {
        let blocks: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(blocks.len() >= least);
        let of_nodes = |block: &&str| block.starts_with("[posture.agents.");
        for block in blocks.into_iter().filter(|block| !of_nodes(block)) {
            policy(block);
        }
    }
}
