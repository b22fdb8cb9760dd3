//! Pages of the documentation that are made from the programs. `POSTERN_WRITE_DOCS=1` writes them anew.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use postern_common::reason::DenyReason;
use postern_dataplane::DropReason;

const HEAD: &str = "# Commands

Every command of both programs, made from the programs themselves (`tests/tests/documents.rs`). `--help` says the same of each.
";

#[test]
fn the_page_of_commands_is_what_the_programs_say() -> Result<()> {
    let mut page = HEAD.to_owned();
    for mut program in [postern_node::cli::Cli::command(), postern_controller::admin::cli::command()] {
        program.build();
        write_program(&mut page, &program);
    }
    is_current("docs/commands.md", page)
}

#[test]
fn the_words_of_records_are_those_of_the_source() -> Result<()> {
    let page = "docs/records.md";
    let there = std::fs::read_to_string(file(page))?;
    let mut made = String::new();
    let mut lines = there.lines();
    while let Some(line) = lines.next() {
        let _ = writeln!(made, "{line}");
        let Some(source) = line.strip_prefix("<!-- made from ").and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let (path, name) = source.split_once(": ").context("a file and the name of an enum")?;
        let text = std::fs::read_to_string(file(path)).with_context(|| format!("cannot read {path}"))?;
        let mut variants = variants(&text, name);
        ensure!(!variants.is_empty(), "{path} has no enum {name}");
        // The counters have labels of their own.
        let labels = match name {
            "DropReason" => DropReason::ALL.map(DropReason::label).to_vec(),
            "DenyReason" => DenyReason::ALL.map(DenyReason::label).to_vec(),
            _other => vec![],
        };
        variants.iter_mut().zip(labels).for_each(|(variant, label)| variant.label = label.to_owned());
        let _ = writeln!(made);
        write_variants(&mut made, &variants);
        let _ =
            writeln!(made, "\n{}", lines.by_ref().find(|line| *line == "<!-- end -->").context("an end of the table")?);
    }
    is_current(page, made)
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Compares a page with what was made, or writes it.
fn is_current(page: &str, made: String) -> Result<()> {
    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        std::fs::write(file(page), &made).with_context(|| format!("cannot write {page}"))?;
    }
    let there = std::fs::read_to_string(file(page)).with_context(|| format!("cannot read {page}"))?;
    let differs = made.lines().zip(there.lines()).find(|(new, old)| new != old);
    ensure!(
        made == there,
        "{page} is not what the source says, first at {differs:?}: \
         POSTERN_WRITE_DOCS=1 cargo nextest run -p postern-tests --test documents"
    );
    Ok(())
}

struct Variant {
    label: String,
    meaning: String,
    fields: Vec<String>,
}

/// Reads the variants of an enum with their documentation, as rustfmt writes them.
fn variants(source: &str, name: &str) -> Vec<Variant> {
    let mut found: Vec<Variant> = Vec::new();
    let mut meaning: Vec<&str> = Vec::new();
    for line in
        source.lines().skip_while(|line| *line != format!("pub enum {name} {{")).skip(1).take_while(|l| *l != "}")
    {
        if let Some(doc) = line.strip_prefix("    /// ") {
            meaning.push(doc);
        } else if let Some(field) = line.strip_prefix("        ").filter(|field| field.starts_with(char::is_lowercase))
        {
            let field = field.split(':').next().unwrap_or_default();
            found.last_mut().expect("a field is of a variant").fields.push(format!("`{field}`"));
        } else if let Some(variant) =
            line.strip_prefix("    ").filter(|variant| variant.starts_with(char::is_uppercase))
        {
            let variant: String = variant.chars().take_while(|c| c.is_alphanumeric()).collect();
            let meaning = std::mem::take(&mut meaning).join(" ").replace("[`", "`").replace("`]", "`");
            found.push(Variant { label: snake(&variant), meaning, fields: vec![] });
        }
    }
    found
}

/// Turns `SignedIn` into `signed_in`, as serde does.
fn snake(variant: &str) -> String {
    let mut snake = String::new();
    for (at, c) in variant.char_indices() {
        if c.is_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn write_variants(page: &mut String, variants: &[Variant]) {
    let with_fields = variants.iter().any(|variant| !variant.fields.is_empty());
    let _ = writeln!(
        page,
        "{}",
        if with_fields {
            "| word | meaning | with |\n| --- | --- | --- |"
        } else {
            "| word | meaning |\n| --- | --- |"
        }
    );
    for Variant { label, meaning, fields } in variants {
        let meaning = meaning.replace('|', "\\|");
        let _ = match with_fields {
            true => writeln!(page, "| `{label}` | {meaning} | {} |", fields.join(", ")),
            false => writeln!(page, "| `{label}` | {meaning} |"),
        };
    }
}

fn write_program(page: &mut String, program: &clap::Command) {
    let _ = writeln!(page, "\n## {}\n\n{}\n", program.get_name(), about(program));
    let everywhere: Vec<_> = program.get_arguments().filter(|arg| arg.is_global_set()).collect();
    let _ = writeln!(page, "With every command:\n");
    everywhere.into_iter().for_each(|arg| write_argument(page, arg));
    program.get_subcommands().for_each(|command| write_command(page, command, program.get_name()));
}

fn write_command(page: &mut String, command: &clap::Command, above: &str) {
    if command.is_hide_set() {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let _ = writeln!(page, "\n### {name}\n\n{}", about(command));
    if command.get_subcommands().next().is_some() {
        return command.get_subcommands().for_each(|command| write_command(page, command, &name));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    let examples = command.get_after_help().map(|help| format!("\n\n{help}")).unwrap_or_default();
    let _ = writeln!(page, "\n```text\n{usage}{examples}\n```");
    let own = command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set());
    let own: Vec<_> = own.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect();
    if !own.is_empty() {
        let _ = writeln!(page);
    }
    own.into_iter().for_each(|arg| write_argument(page, arg));
}

fn about(command: &clap::Command) -> String {
    sentence(command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default())
}

fn sentence(text: String) -> String {
    let text = text.trim().to_owned();
    if text.is_empty() || text.ends_with('.') { text } else { format!("{text}.") }
}

fn write_argument(page: &mut String, arg: &clap::Arg) {
    let value = arg.get_num_args().is_some_and(|values| values.takes_values());
    let values: Vec<String> = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let names = match (arg.get_long(), value) {
        (Some(long), true) => format!("{short}--{long} {}", values.join(" ")),
        (Some(long), false) => format!("{short}--{long}"),
        (None, _) => values.join(" "),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, default) = match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), Some(default.trim_end_matches(']').to_owned())),
        None => (help, None),
    };
    let mut facts = vec![sentence(help)];
    facts.extend(default.map(|default| format!("Default: {default}.")));
    let possible = arg.get_possible_values();
    let possible: Vec<_> =
        possible.iter().filter(|value| !value.is_hide_set()).map(|v| format!("`{}`", v.get_name())).collect();
    if value && !possible.is_empty() {
        facts.push(format!("One of {}.", possible.join(", ")));
    }
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if value && !defaults.is_empty() {
        facts.push(format!("Default: {}.", defaults.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        facts.push(format!("Environment: `{}`.", variable.to_string_lossy()));
    }
    let _ = writeln!(page, "- `{names}`: {}", facts.join(" "));
}

/// What an example of a part of `controller.toml` needs around it.
const CONTROLLER: &str = r#"
[overlay]
ipv6 = "fd5e:9a41:c07d::/48"
ipv4 = "100.96.0.0/16"
"#;
const PROVIDER: &str = "[oidc]\nissuer = \"https://login.corp.example\"\nclient_id = \"postern\"\n";

#[test]
fn every_example_in_the_documentation_is_read_by_its_program() -> Result<()> {
    let mut read = 0;
    let guides = std::fs::read_dir(file("docs"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    for guide in
        guides.into_iter().chain([file("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let text = std::fs::read_to_string(&guide)?;
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            // Some stand in a list, indented; and nobody prints a whole pin.
            let block: String =
                block.lines().map(|line| format!("{}\n", line.trim_start().replace("#k=4f9a...", ""))).collect();
            check_example(&block).map_err(|error| anyhow::anyhow!("{}: {error}\nin\n{block}", guide.display()))?;
            read += 1;
        }
    }
    ensure!(read > 25, "only {read} examples were found");
    Ok(())
}

fn check_example(block: &str) -> Result<(), String> {
    let begins = |words: &[&str]| words.iter().any(|word| block.starts_with(word));
    if begins(&["[plain_network]", "[ceiling]", "[platform]", "[posture.agents."]) {
        let read = postern_node::config::NodeConfig::parse(std::path::Path::new("node.toml"), block);
        return read.map(drop).map_err(|error| error.to_string());
    }
    if begins(&["[alerts]", "[oidc]", "[oidc.scim]", "[[events]]", "[[machine_issuer]]", "[keys]", "trusted_proxies"]) {
        let (before, block) = if block.starts_with('[') { ("", block.to_owned()) } else { (block, String::new()) };
        let block = match block.strip_prefix("[oidc]\n") {
            Some(rest) if block.contains("issuer") => format!("[oidc]\n{rest}"),
            Some(rest) => format!("{PROVIDER}{rest}"),
            None => format!("{PROVIDER}{block}"),
        };
        let text = format!(
            "url = \"https://ctl.corp.example\"\nlisten = [\"[::]:443\"]\nstate_dir = \"s\"\nkey_dir = \"keys\"\n\
             policy = \"policy.toml\"\n{before}\n{CONTROLLER}\n{block}"
        );
        let read = postern_controller::config::Config::parse(std::path::Path::new("/etc/x/controller.toml"), &text);
        return read.map(drop).map_err(|error| error.to_string());
    }
    let whole = with_resources(block)?;
    postern_common::policy::Policy::parse("policy.toml", &whole).map(drop).map_err(|error| error.to_string())
}

/// Adds the resources that an example of a rule names and does not show.
fn with_resources(block: &str) -> Result<String, String> {
    let document: toml::Table = block.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let shown = document.get("resource").and_then(toml::Value::as_table);
    let rules = ["access", "deny"].into_iter().filter_map(|kind| document.get(kind)?.as_array()).flatten();
    let named = rules.filter_map(|rule| rule.get("to")?.as_array()).flatten().filter_map(toml::Value::as_str);
    let missing = named.filter(|name| *name != "*" && shown.is_none_or(|shown| !shown.contains_key(*name)));
    let missing: std::collections::BTreeSet<&str> = missing.collect();
    let mut whole = block.to_owned();
    for name in missing {
        let _ = write!(whole, "\n[resource.{name}]\nnode = \"{name}-1\"\nports = [\"tcp/443\"]\n");
    }
    Ok(whole)
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() -> Result<()> {
    let mut pages = vec![file("README.md"), file("CONTRIBUTING.md"), file("SECURITY.md"), file("CHANGELOG.md")];
    for folder in ["docs", "docs/decisions"] {
        pages.extend(std::fs::read_dir(file(folder))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
    }
    let mut followed = 0;
    for page in pages.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(&page)?;
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.contains(char::is_whitespace)) {
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = match path {
                "" => page.clone(),
                path => page.parent().context("a folder")?.join(path),
            };
            ensure!(target.exists(), "{}: {link} leads to no file", page.display());
            if let Some(anchor) = anchor {
                let there = std::fs::read_to_string(&target)?;
                let headings = there.lines().filter(|line| line.starts_with('#')).map(slug);
                ensure!(
                    headings.into_iter().any(|slug| slug == anchor),
                    "{}: {link} leads to no heading",
                    page.display()
                );
            }
            followed += 1;
        }
    }
    ensure!(followed > 60, "only {followed} links were found");
    Ok(())
}

/// Names a heading as links do.
fn slug(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
