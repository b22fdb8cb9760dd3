use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    listen: String,
    #[serde(default)]
    session: Session,
    #[serde(default)]
    probe: Vec<Probe>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Session {
    lifetime: HumanDuration,
    buffer: ByteSize,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {
    port: u16,
}

fn mistakes(text: &str) -> String {
    from_toml::<Config>("controller.toml", text).expect_err("mistakes").to_string()
}

#[test]
fn every_unknown_key_is_shown_with_its_table_and_its_likely_meaning() {
    let text = "listen = \"x\"\nlissten = 1\n\n[session]\nlifetimes = \"1h\"\n\n[[probe]]\nport = 1\nzzz = 2\n";
    assert_eq!(
        mistakes(text),
        "error: unknown key `lissten` here\n   --> controller.toml:2:1\n 2 | lissten = 1\n   | ^^^^^^^ did you mean `listen`?\n\n\
         error: unknown key `lifetimes` in [session]\n   --> controller.toml:5:1\n 5 | lifetimes = \"1h\"\n   | ^^^^^^^^^ did you mean `lifetime`?\n\n\
         error: unknown key `zzz` in [probe]\n   --> controller.toml:9:1\n 9 | zzz = 2\n   | ^^^ known here: port"
    );
}

#[test]
fn a_value_that_does_not_fit_is_shown_under_carets() {
    assert_eq!(
        mistakes("listen = \"x\"\nsession = { lifetime = \"12\" }"),
        "error: `12` has no unit\n   --> controller.toml:2:24\n 2 | session = { lifetime = \"12\" }\n   |                        ^^^^ did you mean \"12s\", \"12m\" or \"12h\"?"
    );
    assert!(mistakes("listen = \"x\"\nsession.buffer = 12").contains("`12` has no unit"), "a bare number too");
    assert!(mistakes("listen = \"x\"\nsession.buffer = true").contains("expected a size with its unit"));
    assert!(mistakes("").contains("missing field `listen`"));
}

#[test]
fn good_files_are_read() {
    let config: Config =
        from_toml("c", "listen = \"x\"\n[session]\nlifetime = \"12h\"\nbuffer = \"2MiB\"").expect("reads");
    assert_eq!(config.session.lifetime.get().as_secs(), 43_200);
    assert_eq!(config.session.buffer.get(), 2 << 20);
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    let shown = mistakes("listen = \"x\"\n[session\nlifetime = \"1h\"\n");
    assert!(shown.contains("--> controller.toml:2:"), "{shown}");
    let shown = mistakes("listen = \"x\"\nlisten = \"y\"\n");
    assert!(shown.contains("duplicate key") && shown.contains("--> controller.toml:2:1"), "{shown}");
}

#[test]
fn a_file_cannot_write_to_the_terminal() {
    let shown = mistakes("listen = \"x\"\n\"\u{202e}key\" = \"\\u001b[2J\" # \u{1b}[31m\n");
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown:?}");
}

#[test]
fn tabs_wide_lines_and_ends_of_files_do_not_confuse_the_carets() {
    let text = format!("listen = \"{}\"\n\tzzz = 1", "x".repeat(500));
    assert!(mistakes(&text).contains("\n 2 | \tzzz = 1\n   | \t^^^ "));
    let text = format!("session = {{ buffer = \"{}\" }}", "é".repeat(300));
    assert!(mistakes(&text).lines().all(|line| line.chars().count() < 160), "{}", mistakes(&text));
    assert!(mistakes("listen = ").contains("--> controller.toml:1:"));
    let mut diagnostics = Diagnostics::new("f", "é");
    diagnostics.push(Diagnostic::at(1..900, "in the middle of a character, and beyond the end"));
    assert!(diagnostics.to_string().contains("--> f:1:1"));
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let shown = decode("policy.toml", b"a = 1\nb = \"\xff\"").expect_err("no text").to_string();
    assert!(shown.contains("--> policy.toml:2:6"), "{shown}");
}

#[test]
fn what_is_beyond_the_bound_is_counted() {
    let mut diagnostics = Diagnostics::new("f", "");
    for _ in 0..MAX_DIAGNOSTICS + 3 {
        diagnostics.push(Diagnostic::whole("wrong"));
    }
    assert_eq!(diagnostics.omitted(), 3);
    assert!(diagnostics.to_string().ends_with("and 3 more"));
}

#[test]
fn a_suggestion_is_made_only_when_one_is_near() {
    assert_eq!(did_you_mean("port", ["ports", "nodes"]), Some("ports"));
    assert_eq!(did_you_mean("xyz", ["ports", "nodes"]), None);
}

#[test]
fn a_table_that_stands_twice_is_one_mistake_and_others_beside_it_are_not_hidden() {
    let text = "[a]\nx = 1\ny = 1\n[a]\nx = 1\ny = 1\n[b]\nz = 1\nz = 2\n";
    let shown = parse_tree("p.toml", text).expect_err("duplicates").to_string();
    assert_eq!(shown.matches("duplicate key").count(), 2, "{shown}");
    assert!(shown.contains("duplicate key `a`") && shown.contains("p.toml:4:2"), "{shown}");
    assert!(shown.contains("duplicate key `z`") && shown.contains("p.toml:9:1"), "{shown}");
}

#[test]
fn a_name_that_somebody_chose_is_one_word_of_a_command() {
    for (name, word) in [
        ("alice@corp.example", "alice@corp.example"),
        ("service:payroll", "service:payroll"),
        ("Alice Example", "'Alice Example'"),
        ("x; rm -rf /", "'x; rm -rf /'"),
        ("o'brien", r"'o'\''brien'"),
        ("", "''"),
    ] {
        assert_eq!(shell_word(name), word);
    }
}
