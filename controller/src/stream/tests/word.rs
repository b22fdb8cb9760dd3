//! Claims about the word of one node: what it costs the controller, and what follows of what is not believed.

use std::time::Duration;

use postern_common::{
    limit::{Measure, Usage},
    protocol::{FromNode, MAX_USAGES},
};

use super::{
    behaviour::{POLICY, crowd, seconds},
    world::person,
};
use crate::records::{Quarantined, RevokeTarget};

#[test]
fn who_is_not_believed_hides_no_scan_that_others_see_and_what_is_told_of_a_node_is_what_it_saw() {
    let (mut town, laptops) = crowd(105, 19, POLICY);
    let (one, two, last) = (town.one, town.two, laptops[18]);
    let phone = town.world.laptop("person18-phone", &person("person18", &["staff"]));
    town.world.run(seconds(1));
    let [id, phones] = [last, phone].map(|node| town.world.nodes[node].id());
    for laptop in &laptops[..16] {
        let accused = town.world.nodes[*laptop].id();
        town.scan(one, Some(accused), 0);
    }
    assert_eq!(town.world.core.list_quarantines().len(), 16, "its word counts for no more");
    // A number so great that it is always the greatest of the sum, said again as often as it likes.
    town.refused_by(one, 1, Some(id), 0, 20);
    town.refused_by(two, 5, Some(id), 0, 12);
    assert_eq!(town.world.core.list_quarantines().len(), 16, "without the liar it is no scan");
    town.refused_by(one, 1, Some(id), 0, 20);
    town.refused_by(two, 6, Some(phones), 0, 5);
    town.refused_by(one, 1, Some(id), 0, 20);
    assert_eq!(town.world.core.list_quarantines().len(), 16, "nor does its word make one of what others see");
    town.refused_by(two, 6, Some(phones), 0, 9);
    let held = town.world.core.list_quarantines();
    let held =
        held.iter().find(|held| held.record.target == Quarantined::Device(id)).expect("what others see is a scan");
    assert!(held.record.reason.ends_with("the last fd5a:1:2::99 tcp/26, at files-2"), "{}", held.record.reason);
}

#[test]
fn a_node_that_tells_of_usage_without_end_is_heard_in_portions_and_makes_no_revocation_wait() {
    let (mut town, laptops) = crowd(106, 18, POLICY);
    let (one, laptop) = (town.one, laptops[17]);
    for laptop in &laptops {
        let subject = town.world.nodes[one].peers[&town.world.nodes[*laptop].id()].subject;
        let usage = Usage { subject, ..town.usage(Measure::Upload, 5_000, 0) };
        town.tell(one, usage);
    }
    assert!(town.passes(laptop, "tcp/443"), "of the last it is not believed");
    town.world.run(seconds(10));
    let before = town.world.core.status().counters;
    let subject = town.world.nodes[one].peers[&town.world.nodes[laptop].id()].subject;
    let usage = Usage { subject, ..town.usage(Measure::Upload, 5_000, 0) };
    town.world.core.registry.walked.set(0);
    for _ in 0..1_000 {
        let usages = vec![usage.clone(); MAX_USAGES];
        town.world.send(one, FromNode::Behaviour { process: 1, usages, scans: vec![] });
    }
    town.world.run(seconds(1));
    let after = town.world.core.status().counters;
    let judged = after.behaviour_refused - before.behaviour_refused;
    assert!((64..=96).contains(&judged), "{judged} of 64,000 copies were judged: one for each message that is heard");
    assert!(after.messages_refused - before.messages_refused >= 900, "and the others are counted");
    let walked = town.world.core.registry.walked.get();
    assert!(walked < 10_000, "{walked} records were walked");
    let session = town.world.core.find_session("person17@corp.example").expect("a session");
    town.world.core.revoke(RevokeTarget::Session(session), "lost", "root", town.world.now).expect("revoked");
    town.world.pump();
    town.world.run(Duration::from_millis(100));
    assert!(!town.passes(laptop, "tcp/443"));
    town.world.run(seconds(4));
    let before = town.world.core.status().counters.messages_refused;
    town.tell(one, usage);
    assert_eq!(town.world.core.status().counters.messages_refused, before, "it is heard again a little later");
}
