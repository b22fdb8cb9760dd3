//! Flows and the queues of the TUN.

use super::tests::{HOUR, connect, datagram, segment, simulated};
use crate::{
    packet::{batch::Lane, view::TcpFlags},
    testing::*,
};

#[test]
fn a_flow_stays_on_the_lane_on_which_the_kernel_put_it() {
    let (mut a, mut b) = simulated(HOUR);
    a.sends_on = Lane(200);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(20));
    settle(&mut [&mut a, &mut b], at(20));
    assert_eq!(a.delivered_on, Some(Lane(200)));
    // The kernel forgot the flow in a long silence, and chose again.
    a.sends_on = Lane(7);
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(30));
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(30));
    settle(&mut [&mut a, &mut b], at(30));
    assert_eq!(a.delivered_on, Some(Lane(7)));
}

#[test]
fn flows_that_peers_open_are_spread_over_the_lanes() {
    let (mut a, mut b) = simulated(HOUR);
    let mut lanes = std::collections::BTreeSet::new();
    for port in 0..64 {
        a.local_sends(&datagram((inner(1)[0], 1_000 + port), (inner(2)[0], 53), b"?"), at(10));
        settle(&mut [&mut a, &mut b], at(10));
        lanes.insert(b.delivered_on.map(|lane| lane.0));
    }
    assert_eq!(lanes.len(), 64);
}
