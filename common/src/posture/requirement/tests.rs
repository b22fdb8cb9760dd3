use super::*;

const NOW: WallTime = WallTime::from_millis(10_000_000);

fn name(text: &str) -> FactName {
    text.parse().expect("a name")
}

fn requirement() -> Requirement {
    Requirement {
        disk_encrypted: Some(true),
        min_linux_kernel: Some("6.1".parse().expect("a version")),
        ..Requirement::default()
    }
}

fn before(age: Duration) -> WallTime {
    WallTime::from_millis(NOW.as_millis() - i64::try_from(age.as_millis()).expect("a short time"))
}

fn report(facts: Facts) -> Option<Report> {
    Some(Report { facts, observed_at: before(Duration::from_secs(50)) })
}

fn words(verdict: &PostureVerdict) -> Vec<&str> {
    verdict.findings.iter().map(|finding| finding.what.as_str()).collect()
}

#[test]
fn what_was_not_said_is_unknown_and_what_is_wrong_is_false() {
    let good = requirement().minimal_facts().0;
    let table = [
        (None, Truth::Unknown),
        (report(good.clone()), Truth::True),
        (report(Facts { disk_encrypted: Some(false), ..good.clone() }), Truth::False),
        (report(Facts { disk_encrypted: None, ..good.clone() }), Truth::Unknown),
        (report(Facts { kernel: Some("5.15".parse().expect("a version")), ..good.clone() }), Truth::False),
        (report(Facts { os: Some(OsKind::Macos), ..good.clone() }), Truth::False),
        (report(Facts { os: None, ..good }), Truth::Unknown),
    ];
    for (report, truth) in table {
        assert_eq!(requirement().evaluate(report.as_ref(), None, NOW).truth, truth, "{report:?}");
    }
}

/// Every fact alone: met, not met, not said.
#[test]
fn each_fact_alone_flips_the_verdict_and_is_named() {
    type Flip = fn(&mut Facts);
    let all = |set: fn(&mut Requirement)| {
        let mut requirement = Requirement::default();
        set(&mut requirement);
        requirement
    };
    let table: [(Requirement, Flip, &str, Flip, &str); 10] = [
        (
            all(|r| r.disk_encrypted = Some(true)),
            |f| f.disk_encrypted = Some(false),
            "disk encryption is off as of 50 s ago, and must be on",
            |f| f.disk_encrypted = None,
            "the device did not say whether disk encryption is on",
        ),
        (
            all(|r| r.firewall = Some(true)),
            |f| f.firewall = Some(false),
            "the firewall is off as of 50 s ago, and must be on",
            |f| f.firewall = None,
            "the device did not say whether the firewall is on",
        ),
        (
            all(|r| r.screen_lock = Some(true)),
            |f| f.screen_lock = Some(false),
            "the screen lock is off as of 50 s ago, and must be on",
            |f| f.screen_lock = None,
            "the device did not say whether the screen lock is on",
        ),
        (
            all(|r| r.secure_boot = Some(true)),
            |f| f.secure_boot = Some(false),
            "Secure Boot is off as of 50 s ago, and must be on",
            |f| f.secure_boot = None,
            "the device did not say whether Secure Boot is on",
        ),
        (
            all(|r| r.distributions = vec!["debian 12".parse().expect("a distribution")]),
            |f| f.distribution = Some("debian 11".parse().expect("a distribution")),
            "its system is debian 11.0, and must be debian 12.0 or newer",
            |f| f.distribution = None,
            "the device did not say which distribution it is",
        ),
        (
            all(|r| r.min_linux_kernel = Some("6.1".parse().expect("a version"))),
            |f| f.kernel = Some("5.15".parse().expect("a version")),
            "its kernel is 5.15, and must be 6.1 or newer",
            |f| f.kernel = None,
            "the device did not say which kernel it runs",
        ),
        (
            all(|r| r.max_security_updates = Some(0)),
            |f| f.security_updates = Some(3),
            "3 security updates wait as of 50 s ago, and at most 0 may",
            |f| f.security_updates = None,
            "the device did not say how many security updates wait",
        ),
        (
            all(|r| r.managed_by = Some("corp".parse().expect("a name"))),
            |f| f.managed_by = Some("other".parse().expect("a name")),
            "it is managed by other, and must be by corp",
            |f| f.managed_by = None,
            "the device did not say that corp manages it",
        ),
        (
            all(|r| r.agents = [name("edr")].into()),
            |f| f.agents = [(name("edr"), false)].into(),
            "endpoint agent edr does not run as of 50 s ago",
            |f| f.agents.clear(),
            "the device did not say whether endpoint agent edr runs",
        ),
        (
            all(|r| r.checks = [name("edr-ok")].into()),
            |f| {
                let failed = CheckResult { passed: false, said: "signatures are old".into(), age_s: 5 };
                f.checks = [(name("edr-ok"), failed)].into();
            },
            "check edr-ok failed (signatures are old) as of 55 s ago",
            |f| f.checks.clear(),
            "the device did not say whether check edr-ok passes",
        ),
    ];
    for (requirement, wrong, said, missing, unsaid) in table {
        let judged = |flip: Flip| {
            let mut facts = requirement.minimal_facts().0;
            flip(&mut facts);
            requirement.evaluate(report(facts).as_ref(), None, NOW)
        };
        let met = judged(|_| {});
        assert_eq!((met.truth, met.findings.len()), (Truth::True, 0), "{requirement:?}");
        let (wrong, missing) = (judged(wrong), judged(missing));
        assert_eq!((wrong.truth, words(&wrong)), (Truth::False, vec![said]));
        assert_eq!((missing.truth, words(&missing)), (Truth::Unknown, vec![unsaid]));
        assert!(wrong.findings.iter().chain(&missing.findings).all(|finding| !finding.fix.is_empty()));
    }
}

#[test]
fn a_report_becomes_unknown_when_it_is_too_old() {
    let report = report(requirement().minimal_facts().0);
    let verdict = requirement().evaluate(report.as_ref(), None, NOW);
    assert_eq!(verdict.until, WallTime::from_millis(NOW.as_millis() - 50_000 + 900_000));
    let late = requirement().evaluate(report.as_ref(), None, verdict.until);
    assert_eq!((late.truth, words(&late)), (Truth::Unknown, vec!["its posture is 15 min old, and 15 min is accepted"]));
}

#[test]
fn a_report_from_the_future_counts_for_nothing() {
    let facts = requirement().minimal_facts().0;
    let report = Report { facts, observed_at: NOW.saturating_add(Duration::from_secs(3_600)) };
    let verdict = requirement().evaluate(Some(&report), None, NOW);
    assert_eq!((verdict.truth, words(&verdict)), (Truth::Unknown, vec!["its posture claims to lie in the future"]));
}

#[test]
fn a_check_is_as_old_as_its_run_and_not_as_the_report() {
    let requirement =
        Requirement { checks: [name("edr-ok")].into(), max_age: Duration::from_secs(120), ..Requirement::default() };
    let judged = |age_s| {
        let checks = [(name("edr-ok"), CheckResult { passed: true, said: String::new(), age_s })].into();
        requirement.evaluate(report(Facts { checks, ..Facts::default() }).as_ref(), None, NOW)
    };
    let young = judged(20);
    assert_eq!((young.truth, young.until), (Truth::True, NOW.saturating_add(Duration::from_secs(50))));
    assert_eq!(judged(70).truth, Truth::Unknown, "70 s before a report of 50 s ago");
    assert_eq!(judged(u32::MAX).truth, Truth::Unknown);
}

#[test]
fn what_must_be_attested_is_not_taken_from_the_device() {
    let requirement = Requirement { attested: [FactKind::DiskEncrypted].into(), ..requirement() };
    let (own, attested) = requirement.minimal_facts();
    assert_eq!((own.disk_encrypted, attested.disk_encrypted), (None, Some(true)));
    let claims = Facts { disk_encrypted: Some(true), ..own };
    let verdict = |attested: Option<&Report>| requirement.evaluate(report(claims.clone()).as_ref(), attested, NOW);
    let unsaid = verdict(None);
    assert_eq!(
        (unsaid.truth, words(&unsaid)),
        (Truth::Unknown, vec!["no device management has vouched for this device"])
    );
    let said = Report { facts: attested, observed_at: before(Duration::from_secs(3_600)) };
    assert_eq!(verdict(Some(&said)).truth, Truth::True);
    let not = Report { facts: Facts { disk_encrypted: Some(false), ..Facts::default() }, ..said.clone() };
    assert_eq!(verdict(Some(&not)).truth, Truth::False, "whatever the device claims");
    let old = Report { observed_at: before(DEFAULT_ATTESTED_AGE), ..said };
    assert_eq!(verdict(Some(&old)).truth, Truth::Unknown);
}
