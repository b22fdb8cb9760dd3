//! The files that `init` writes.

/// Returns the text of a new `controller.toml`.
///
/// `ipv6` is a freshly drawn ULA /48; `tls` holds the operator's certificate and key, if there are any.
pub fn controller_toml(url: &str, listen: &str, ipv6: &str, tls: Option<(&str, &str)>, places: &Places<'_>) -> String {
    let tls = match tls {
        Some((certificate, key)) => format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"),
        None => "# [tls]\n# certificate = \"tls/chain.pem\"       # leaf first\n# key = \"tls/key.pem\"                 # chmod 600\n".into(),
    };
    let Places { state, keys, policy, socket } = places;
    include_str!("../../../configs/controller.toml")
        .replace("https://ctl.corp.example", url)
        .replace("[\"[::]:443\"]", listen)
        .replace("fd5e:9a41:c07d::/48", ipv6)
        .replace("# [tls]\n# certificate = \"tls/chain.pem\"       # leaf first\n# key = \"tls/key.pem\"                 # chmod 600\n", &tls)
        .replace("\"/var/lib/postern-controller\"", &format!("{state:?}"))
        .replace("key_dir = \"keys\"", &format!("key_dir = {keys:?}"))
        .replace("policy = \"policy.toml\"", &format!("policy = {policy:?}"))
        .replace("\"/run/postern-controller/admin.sock\"", &format!("{socket:?}"))
}

/// Where the new configuration's files lie, as they are written into it.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The folder of the database and the audit log.
    pub state: &'a str,
    /// The folder of keys.
    pub keys: &'a str,
    /// The policy document.
    pub policy: &'a str,
    /// The administration socket.
    pub socket: &'a str,
}

/// Returns the text of a new `policy.toml`: nobody may reach anything.
pub const fn policy_toml() -> &'static str {
    r#"# Who may reach what. Nobody may reach anything that no rule below names.
#
# This file takes effect when the controller first starts, and from then on only by
#     postern-controller policy apply policy.toml
# Check it before with `postern-controller policy check policy.toml`, see what it would change with `policy plan`.
#
# An example; take the signs away to use it:
#
# [resource.wiki]                       # its name for people: wiki.internal
# nodes = ["tag:wiki"]                  # the machines that carry it
# ports = ["tcp/443"]
#
# [[access]]
# name = "everybody in staff reads the wiki"
# from = ["group:staff"]
# to = ["wiki"]
#
# [[test]]                              # checked at every apply
# as = { user = "bob@corp.example", groups = ["contractors"] }
# to = "wiki"
# port = "tcp/443"
# expect = "deny"
"#
}
