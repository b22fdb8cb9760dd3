//! Checks of single settings, each with what would be right.

use super::*;

/// Checks the URL and returns its host, for the certificate.
pub(super) fn check_url(url: &Spanned<String>, wrong: &mut Diagnostics) -> String {
    let parsed = match url::Url::parse(url.get_ref()) {
        Ok(parsed) => parsed,
        Err(error) => {
            wrong.push(
                Diagnostic::at(url.span(), format!("this is not a URL: {error}"))
                    .help("write it as people type it: \"https://ctl.corp.example\""),
            );
            return String::new();
        }
    };
    if parsed.scheme() != "https" {
        wrong.push(Diagnostic::at(url.span(), "the URL must begin with https://"));
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() || parsed.fragment().is_some() {
        wrong.push(
            Diagnostic::at(url.span(), "the URL must have no path")
                .help("pages and streams have paths of their own; write just https://HOST or https://HOST:PORT"),
        );
    }
    match parsed.host() {
        Some(url::Host::Domain(name)) => name.to_owned(),
        Some(url::Host::Ipv4(address)) => IpAddr::from(address).to_string(),
        Some(url::Host::Ipv6(address)) => IpAddr::from(address).to_string(),
        None => {
            wrong.push(Diagnostic::at(url.span(), "the URL names no host"));
            String::new()
        }
    }
}

pub(super) fn check_overlay(overlay: &Overlay, wrong: &mut Diagnostics) {
    let v6 = overlay.ipv6.get_ref();
    let ula: Ipv6Net = "fc00::/7".parse().expect("a constant prefix");
    if v6.prefix_len() != 48 || !ula.contains(v6) {
        wrong.push(
            Diagnostic::at(overlay.ipv6.span(), format!("{v6} is not a /48 of unique local addresses"))
                .help("`postern-controller init` draws one: fdXX:XXXX:XXXX::/48 (RFC 4193)"),
        );
    }
    if v6.trunc() != *v6 {
        wrong.push(
            Diagnostic::at(overlay.ipv6.span(), "bits are set behind the prefix")
                .help(format!("did you mean {}?", v6.trunc())),
        );
    }
    let v4 = overlay.ipv4.get_ref();
    if v4.trunc() != *v4 {
        wrong.push(
            Diagnostic::at(overlay.ipv4.span(), "bits are set behind the prefix")
                .help(format!("did you mean {}?", v4.trunc())),
        );
    }
    if !(8..=28).contains(&v4.prefix_len()) {
        wrong.push(
            Diagnostic::at(overlay.ipv4.span(), format!("a /{} is no useful pool", v4.prefix_len()))
                .help("use /8 to /28"),
        );
    }
    if !overlay.public_ipv4 && !private_space().iter().any(|space| space.contains(&IpNet::V4(*v4))) {
        wrong.push(
            Diagnostic::at(overlay.ipv4.span(), format!("{v4} is not private address space: every node would refuse it"))
                .help("use addresses such as 100.96.0.0/16; if these are yours to use, `public_ipv4 = true` here and `overlay` under [ceiling] in every node.toml"),
        );
    }
    for (bad, what) in [
        ("127.0.0.0/8", "the machine's own addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("0.0.0.0/8", "addresses that mean 'this network'"),
    ] {
        let bad: Ipv4Net = bad.parse().expect("a constant prefix");
        if bad.contains(v4) || v4.contains(&bad) {
            wrong.push(
                Diagnostic::at(overlay.ipv4.span(), format!("the pool {v4} overlaps {bad}, {what}"))
                    .help("use private addresses that your networks do not use, such as 100.96.0.0/16"),
            );
        }
    }
    let domain = overlay.domain.get_ref();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    if domain.len() > 128 || !domain.split('.').all(label) {
        wrong.push(
            Diagnostic::at(overlay.domain.span(), format!("`{domain}` is not a domain"))
                .help("use small letters, digits, `-` and dots between labels: internal"),
        );
    }
}

pub(super) fn check_proxies(written: &[Spanned<String>], wrong: &mut Diagnostics) -> Vec<IpNet> {
    let mut prefixes = Vec::new();
    for text in written {
        let prefix = text.get_ref().parse::<IpAddr>().map(IpNet::from).or_else(|_| text.get_ref().parse::<IpNet>());
        match prefix {
            Ok(prefix) if prefix.prefix_len() == 0 => wrong.push(
                Diagnostic::at(text.span(), "this would let everybody choose the address that they come from")
                    .help("write the addresses of the proxies alone"),
            ),
            Ok(prefix) => prefixes.push(prefix.trunc()),
            Err(_) => wrong.push(
                Diagnostic::at(
                    text.span(),
                    format!("`{}` is no address and no prefix", diagnostics::printable(text.get_ref())),
                )
                .help("write an address such as \"10.0.0.5\" or a prefix such as \"10.0.0.0/24\""),
            ),
        }
    }
    prefixes
}

pub(super) fn check_durations(written: &Written, wrong: &mut Diagnostics) {
    let mut bounded = |value: &Spanned<HumanDuration>, least: u64, most: u64| {
        let seconds = value.get_ref().get().as_secs();
        if !(least..=most).contains(&seconds) {
            let show = |seconds| HumanDuration::new(Duration::from_secs(seconds)).to_toml();
            wrong.push(Diagnostic::at(value.span(), format!("{} is out of range", value.get_ref())).help(format!(
                "use {} to {}",
                show(least),
                show(most)
            )));
        }
    };
    bounded(&written.leases.shortest, 30, 3_600);
    bounded(&written.leases.longest, 30, 3_600);
    bounded(&written.sessions.length, 60, 30 * 86_400);
    bounded(&written.sessions.join_code, 60, 3_600);
    bounded(&written.sessions.stock_limit, 60, 24 * 3_600);
    bounded(&written.keys.deadline, 3_600, 90 * 86_400);
    if written.leases.shortest.get_ref().get() > written.leases.longest.get_ref().get() {
        wrong.push(Diagnostic::at(written.leases.shortest.span(), "the shortest lease is longer than the longest"));
    }
}
