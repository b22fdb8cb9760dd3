//! How much of a limited permission each subject has used at this node.
//!
//! ```text
//! document: Permission { limits } --hold--> Meter of (subject, rule, resource): a Count of each limit, for all the subject's devices
//! packet of a metered flow --count--> the Window of each --more than it lets--> passed
//! end of the burst: every peer with that meter: permission shut, flows cut          no round trip, no controller
//! every few seconds: Usage for the controller, which sums over nodes
//! ```
//!
//! Invariants:
//! - What is passed stays shut at this node until the document brings another budget of that limit: neither a renewal, nor a new
//!   session, nor the end of the window opens it, nor what ends another limit of the same permission. Whether it may go on is the
//!   controller's word.
//! - Budgets grow within one life of the controller. One that was restored from a backup begins with older numbers: these are taken
//!   over, and what was counted and passed here stays, so that it hears of it.
//! - A meter outlives the permission for a while: whoever signs out and in again goes on where they were.
//! - Counting looks nothing up and allocates nothing; a flow without a meter costs one comparison.
//!
//! Bounds: a meter for each limited permission of the document, and [`MAX_LEFT`] whose permission has gone; of these the one that
//! was left first is forgotten first. A subject cannot make meters: the controller does.
//!
//! Threat: a subject that spreads what it moves over many flows or devices. All of them count into one meter.

use std::collections::{BTreeSet, HashMap};

use postern_common::{
    grant::Permission,
    id::{ResourceName, RuleName, SubjectId},
    limit::{Limit, Measure, Usage, Window},
    time::{Deadline, Monotonic},
};

/// The most meters that are kept without a permission.
const MAX_LEFT: usize = 4_096;

/// The most meters that are told of at once, and of these the most whose permission is shut: a message to the controller each for a few,
/// and no more than a stream has room for.
const MAX_TOLD: usize = 512;
const MAX_SHUT_TOLD: usize = MAX_TOLD / 2;

/// The place of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeterIndex(u32);

impl MeterIndex {
    /// The place of none: nothing is counted.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    subject: SubjectId,
    rule: RuleName,
    resource: ResourceName,
}

/// What one limit counts.
#[derive(Debug)]
struct Count {
    /// As the document says it now; its budget is the greatest that was said in this life of the controller.
    limit: Limit,
    window: Window,
    state: State,
    /// Whether its budget was said by a former life of the controller.
    former: bool,
}

/// Whether a limit that shuts was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Within,
    Passed,
}

impl Count {
    fn new(limit: Limit) -> Self {
        Self { limit, window: Window::new(limit.within()), state: State::Within, former: false }
    }

    fn shuts(&self) -> bool {
        self.state == State::Passed && self.limit.then.shuts()
    }
}

#[derive(Debug)]
struct Meter {
    key: Key,
    counts: Vec<Count>,
    /// How many permissions it is held by.
    holders: u32,
    /// When the last of them went.
    left: Monotonic,
    /// Whether it was counted, or begun anew, since it was last told of.
    is_news: bool,
}

/// All meters.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    places: Vec<Option<Meter>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Meters that passed a limit and whose permissions are still to be shut.
    passed: Vec<MeterIndex>,
    /// Meters whose permission has gone, the one that was left first before the others.
    left: BTreeSet<(Monotonic, u32)>,
    /// Where telling goes on.
    turn: usize,
}

impl Meters {
    /// Returns the meter of a permission of a subject; [`MeterIndex::NONE`] if it has no limits. [`Meters::let_go`] follows.
    pub(crate) fn hold(&mut self, subject: SubjectId, permission: &Permission<Deadline>, now: Monotonic) -> MeterIndex {
        if permission.limits.is_empty() {
            return MeterIndex::NONE;
        }
        let key = Key { subject, rule: permission.rule.clone(), resource: permission.resource.clone() };
        let place = match self.by_key.get(&key) {
            Some(place) => *place,
            None => self.make(key, now),
        };
        let Some(meter) = self.places[place as usize].as_mut() else { return MeterIndex::NONE };
        if meter.holders == 0 {
            self.left.remove(&(meter.left, place));
        }
        meter.holders += 1;
        meter.set(&permission.limits);
        MeterIndex(place)
    }

    fn make(&mut self, key: Key, now: Monotonic) -> u32 {
        let meter = Meter { key: key.clone(), counts: vec![], holders: 0, left: now, is_news: false };
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = Some(meter);
                place
            }
            None => {
                self.places.push(Some(meter));
                (self.places.len() - 1) as u32
            }
        };
        self.by_key.insert(key, place);
        place
    }

    /// Takes back what [`Meters::hold`] gave.
    pub(crate) fn let_go(&mut self, index: MeterIndex, now: Monotonic) {
        let Some(meter) = self.meter_mut(index) else { return };
        meter.holders -= 1;
        if meter.holders > 0 {
            return;
        }
        meter.left = now;
        self.left.insert((now, index.0));
        if self.left.len() > MAX_LEFT
            && let Some((_, place)) = self.left.pop_first()
            && let Some(meter) = self.places[place as usize].take()
        {
            self.by_key.remove(&meter.key);
            self.free.push(place);
        }
    }

    fn meter_mut(&mut self, index: MeterIndex) -> Option<&mut Meter> {
        self.places.get_mut(index.0 as usize)?.as_mut()
    }

    /// Counts what passed.
    pub(crate) fn count(&mut self, index: MeterIndex, measure: Measure, amount: u64, now: Monotonic) {
        let Some(meter) = self.meter_mut(index) else { return };
        meter.is_news = true;
        let mut newly = false;
        for count in meter.counts.iter_mut().filter(|count| count.limit.measure == measure) {
            let more = count.window.add(amount, now) > count.limit.most;
            if more && count.limit.then.shuts() && count.state == State::Within {
                count.state = State::Passed;
                newly = true;
            }
        }
        if newly {
            self.passed.push(index);
        }
    }

    /// Takes note that the controller began another life: the next budgets that it says are taken over, whatever they were.
    pub(crate) fn another_life(&mut self) {
        for meter in self.places.iter_mut().flatten() {
            meter.counts.iter_mut().for_each(|count| count.former = true);
        }
    }

    /// Takes note that everything was told of this life: a limit of a permission that somebody has, and of which nothing new was said, has
    /// the budget that it had.
    pub(crate) fn life_is_told(&mut self) {
        for meter in self.places.iter_mut().flatten().filter(|meter| meter.holders > 0) {
            meter.counts.iter_mut().for_each(|count| count.former = false);
        }
    }

    /// Returns the limit that shuts the permission of a meter, if one was passed; of several the one of which more follows.
    pub(crate) fn shut_by(&self, index: MeterIndex) -> Option<Limit> {
        self.shut_for(index).map(|(_, limit)| limit)
    }

    /// Returns whose permission a meter shuts, if a limit was passed, and that limit.
    pub(crate) fn shut_for(&self, index: MeterIndex) -> Option<(SubjectId, Limit)> {
        let meter = self.places.get(index.0 as usize)?.as_ref()?;
        let worst = meter.counts.iter().filter(|count| count.shuts()).max_by_key(|count| count.limit.then)?;
        Some((meter.key.subject, worst.limit))
    }

    /// Tells whether permissions have to be shut.
    pub(crate) fn has_passed(&self) -> bool {
        !self.passed.is_empty()
    }

    /// Hands over the meters whose permissions have to be shut.
    pub(crate) fn take_passed(&mut self) -> Vec<MeterIndex> {
        std::mem::take(&mut self.passed)
    }

    /// Says how much of every limit was used, of the meters that have something new to say: of [`MAX_TOLD`] at once, those that shut
    /// something first and the others in turn.
    pub(crate) fn usages(&mut self, now: Monotonic) -> Vec<Usage> {
        let mut usages = Vec::new();
        let (count, turn) = (self.places.len(), self.turn);
        let in_turn = (0..count).map(|step| (turn + step) % count);
        let shuts = |meter: &Meter| meter.counts.iter().any(Count::shuts);
        let is_shut = |place: &usize| self.places[*place].as_ref().is_some_and(shuts);
        let (mut order, others): (Vec<usize>, Vec<usize>) = in_turn.partition(is_shut);
        order.truncate(MAX_SHUT_TOLD);
        order.extend(others);
        let mut told = 0;
        for place in order {
            let Some(meter) = self.places[place].as_mut() else { continue };
            if told >= MAX_TOLD {
                break;
            }
            let before = usages.len();
            let is_news = std::mem::take(&mut meter.is_news);
            for count in &mut meter.counts {
                let (mut used, limit) = (count.window.used(now), count.limit);
                // What is shut stays so after the window: the controller has to hear of it, whenever it can.
                if count.shuts() {
                    used = used.max(limit.most.saturating_add(1));
                }
                if !is_news && used == 0 {
                    continue;
                }
                // What is in the window has to be told again as it gets less.
                meter.is_news |= used > 0;
                usages.push(Usage {
                    subject: meter.key.subject,
                    rule: meter.key.rule.clone(),
                    resource: meter.key.resource.clone(),
                    budget: limit.budget,
                    measure: limit.measure,
                    within_ms: limit.within_ms,
                    used,
                });
            }
            if usages.len() > before {
                (told, self.turn) = (told + 1, place + 1);
            }
        }
        usages
    }
}

impl Meter {
    /// Takes limits as the document says them now. What was counted for a limit that stays goes on; another budget begins anew.
    fn set(&mut self, limits: &[Limit]) {
        if self.counts.iter().map(|count| &count.limit).eq(limits) && !self.counts.iter().any(|count| count.former) {
            return;
        }
        let mut before = std::mem::take(&mut self.counts);
        for limit in limits {
            let known =
                before.iter().position(|known| known.limit.is_same(limit)).map(|place| before.swap_remove(place));
            // The documents for two devices of a subject come one after the other, and the older must not bring back what the newer
            // has ended.
            let goes_on = known.filter(|known| known.former || limit.budget <= known.limit.budget);
            let Some(mut count) = goes_on else {
                self.is_news = true;
                self.counts.push(Count::new(*limit));
                continue;
            };
            let budget = if count.former { limit.budget } else { count.limit.budget };
            // A greater amount does not open again what was passed, and what is only watched by now shuts nothing.
            count.limit = Limit { budget, ..*limit };
            count.former = false;
            if !limit.then.shuts() {
                count.state = State::Within;
            }
            self.counts.push(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use postern_common::{
        grant::{Mode, OnDeny},
        id::LeaseId,
        limit::Consequence,
        time::WallTime,
    };

    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    fn limit(measure: Measure, most: u64, seconds: u64, then: Consequence) -> Limit {
        Limit { measure, most, within_ms: seconds * 1_000, then, budget: 0 }
    }

    fn permission(resource: &str, budget: u64, each: &[Limit]) -> Permission<Deadline> {
        Permission {
            rule: "rule".parse().unwrap(),
            resource: resource.parse().unwrap(),
            lease: LeaseId::from_bytes([1; 16]),
            services: vec!["tcp/443".parse().unwrap()],
            until: Deadline { monotonic: Monotonic::NEVER, wall: WallTime::NEVER },
            on_deny: OnDeny::Drop,
            mode: Mode::Enforce,
            limits: each.iter().map(|limit| Limit { budget, ..*limit }).collect(),
        }
    }

    fn subject(number: u16) -> SubjectId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        SubjectId::from_bytes(bytes)
    }

    #[test]
    fn a_passed_limit_stays_passed_until_the_budget_is_another() {
        let mut meters = Meters::default();
        let down = limit(Measure::Download, 1_000, 60, Consequence::Challenge);
        let meter = meters.hold(subject(1), &permission("r", 7, &[down]), at(0));
        meters.count(meter, Measure::Upload, 5_000, at(1));
        meters.count(meter, Measure::Download, 1_000, at(1));
        assert!(!meters.has_passed(), "no more than the limit, and uploads do not count");
        meters.count(meter, Measure::Download, 1, at(2));
        assert_eq!(meters.take_passed(), [meter]);
        meters.count(meter, Measure::Download, 1, at(3));
        assert!(!meters.has_passed(), "it is shut once");
        assert_eq!(meters.usages(at(400))[0].used, 1_001, "and told of until the controller has spoken");
        meters.let_go(meter, at(4));
        let again = meters.hold(subject(1), &permission("r", 7, &[down]), at(500));
        assert_eq!(meters.shut_by(again), Some(Limit { budget: 7, ..down }), "a new session, long after the window");
        let raised = limit(Measure::Download, 9_000, 60, Consequence::Challenge);
        let raised = meters.hold(subject(1), &permission("r", 7, &[raised]), at(501));
        assert!(meters.shut_by(raised).is_some(), "nor does another amount");
        assert_eq!(meters.usages(at(900))[0].used, 9_001, "and the controller hears of it under that amount");
        let fresh = meters.hold(subject(1), &permission("r", 8, &[down]), at(502));
        assert_eq!((fresh, meters.shut_by(fresh)), (meter, None));
        assert_eq!(meters.usages(at(502)).iter().map(|usage| usage.used).sum::<u64>(), 0);
    }

    #[test]
    fn what_ends_one_limit_ends_no_other_of_the_same_permission() {
        let mut meters = Meters::default();
        let challenge = limit(Measure::Download, 1_000, 60, Consequence::Challenge);
        let restrict = limit(Measure::Upload, 1_000, 60, Consequence::Restrict);
        let terminate = limit(Measure::Connections, 1, 60, Consequence::Terminate);
        let of = |budgets: [u64; 3]| {
            let each = [challenge, restrict, terminate].into_iter().zip(budgets);
            let limits = each.map(|(limit, budget)| Limit { budget, ..limit }).collect();
            Permission { limits, ..permission("r", 0, &[]) }
        };
        let meter = meters.hold(subject(1), &of([0, 0, 0]), at(0));
        meters.count(meter, Measure::Upload, 900, at(1));
        meters.count(meter, Measure::Download, 1_001, at(1));
        assert_eq!(meters.shut_by(meter).map(|limit| limit.then), Some(Consequence::Challenge));
        let met = meters.hold(subject(1), &of([8, 0, 0]), at(2));
        assert_eq!((met, meters.shut_by(met)), (meter, None), "the challenge was met");
        let used: Vec<(u64, u64)> = meters.usages(at(2)).iter().map(|usage| (usage.budget, usage.used)).collect();
        assert_eq!(used, [(8, 0), (0, 900), (0, 0)], "and what was uploaded before counts");
        meters.count(meter, Measure::Upload, 101, at(3));
        meters.count(meter, Measure::Connections, 2, at(3));
        meters.count(meter, Measure::Download, 1_001, at(3));
        assert_eq!(meters.shut_by(meter).map(|limit| limit.then), Some(Consequence::Terminate), "the worst of them");
        for (budgets, shut) in [
            ([9, 0, 0], Some(Consequence::Terminate)),
            ([9, 0, 10], Some(Consequence::Restrict)),
            ([0, 0, 0], Some(Consequence::Restrict)),
            ([9, 11, 10], None),
        ] {
            let meter = meters.hold(subject(1), &of(budgets), at(4));
            assert_eq!(meters.shut_by(meter).map(|limit| limit.then), shut, "{budgets:?}");
        }
    }

    #[test]
    fn a_controller_that_was_restored_says_older_budgets_and_hears_of_what_was_passed() {
        let mut meters = Meters::default();
        let down = limit(Measure::Download, 1_000, 60, Consequence::Challenge);
        let hold = |meters: &mut Meters, budget| meters.hold(subject(1), &permission("r", budget, &[down]), at(0));
        let (laptop, _phone) = (hold(&mut meters, 70), hold(&mut meters, 70));
        meters.count(laptop, Measure::Download, 1_001, at(1));
        hold(&mut meters, 7);
        assert_eq!(meters.usages(at(2))[0].budget, 70, "an older document of another device");
        meters.another_life();
        hold(&mut meters, 7);
        hold(&mut meters, 7);
        let told = meters.usages(at(3));
        assert_eq!((told[0].budget, told[0].used), (7, 1_001), "told so that it is believed");
        assert!(meters.shut_by(laptop).is_some());
        hold(&mut meters, 8);
        assert!(meters.shut_by(laptop).is_none(), "and from there on budgets grow again");
        meters.count(laptop, Measure::Download, 1_001, at(4));
        meters.another_life();
        meters.life_is_told();
        hold(&mut meters, 9);
        assert!(meters.shut_by(laptop).is_none(), "nothing new was said of it, so its budget is of this life");
    }

    #[test]
    fn devices_of_a_subject_share_a_meter_and_others_do_not() {
        let mut meters = Meters::default();
        let flows = limit(Measure::Connections, 3, 10, Consequence::Terminate);
        let permission = permission("r", 0, &[flows]);
        let (laptop, phone, other) = (
            meters.hold(subject(1), &permission, at(0)),
            meters.hold(subject(1), &permission, at(0)),
            meters.hold(subject(2), &permission, at(0)),
        );
        assert_eq!(laptop, phone);
        for meter in [laptop, phone, laptop, other, phone] {
            meters.count(meter, Measure::Connections, 1, at(1));
        }
        assert_eq!(meters.take_passed(), [laptop]);
        assert!(meters.shut_by(other).is_none());
        assert!(meters.hold(subject(1), &self::permission("r", 0, &[]), at(0)) == MeterIndex::NONE);
    }

    #[test]
    fn a_watched_limit_shuts_nothing_and_is_told_of() {
        let mut meters = Meters::default();
        let watched = limit(Measure::Download, 10, 10, Consequence::Alert);
        let meter = meters.hold(subject(1), &permission("r", 0, &[watched]), at(0));
        meters.count(meter, Measure::Download, 11, at(1));
        assert!(!meters.has_passed() && meters.shut_by(meter).is_none());
        let usages = meters.usages(at(1));
        assert_eq!((usages[0].used, usages[0].within_ms), (11, 10_000));
        assert_eq!(meters.usages(at(2))[0].used, 11, "what is in the window is told again");
        assert_eq!(meters.usages(at(30))[0].used, 0, "and once more when it is gone");
        assert!(meters.usages(at(31)).is_empty());
    }

    #[test]
    fn many_meters_are_told_of_in_turn_and_what_is_shut_at_once() {
        let mut meters = Meters::default();
        let limit = limit(Measure::Download, 10, 3_600, Consequence::Challenge);
        let each: Vec<MeterIndex> =
            (0..2_000).map(|number| meters.hold(subject(number), &permission("r", 0, &[limit]), at(0))).collect();
        each.iter().for_each(|meter| meters.count(*meter, Measure::Download, 1, at(1)));
        let last = each[1_999];
        meters.count(last, Measure::Download, 10, at(1));
        let mut heard = std::collections::HashSet::new();
        for second in 2..7 {
            let told = meters.usages(at(second));
            assert!(told.len() <= MAX_TOLD);
            assert!(told.iter().any(|usage| usage.used == 11), "what is shut, each time");
            heard.extend(told.into_iter().map(|usage| usage.subject));
        }
        assert_eq!(heard.len(), 2_000);
    }

    #[test]
    fn meters_without_a_permission_are_bounded_and_those_with_one_stay() {
        let mut meters = Meters::default();
        let limit = limit(Measure::Download, 10, 10, Consequence::Challenge);
        let kept = meters.hold(subject(60_000), &permission("r", 0, &[limit]), at(0));
        meters.count(kept, Measure::Download, 11, at(0));
        for number in 0..MAX_LEFT as u16 + 100 {
            let meter = meters.hold(subject(number), &permission("r", 0, &[limit]), at(number.into()));
            meters.let_go(meter, at(number.into()));
        }
        assert_eq!(meters.by_key.len(), MAX_LEFT + 1);
        assert!(meters.places.len() <= MAX_LEFT + 2 && meters.left.len() == MAX_LEFT);
        let knows = |meters: &Meters, number: u16| meters.by_key.keys().any(|key| key.subject == subject(number));
        assert!(
            !knows(&meters, 0) && !knows(&meters, 99) && knows(&meters, 100),
            "the one that was left first goes first"
        );
        let again = meters.hold(subject(100), &permission("r", 0, &[limit]), at(5_000));
        assert_eq!(
            (meters.left.len(), again == MeterIndex::NONE),
            (MAX_LEFT - 1, false),
            "and one that is held does not wait"
        );
        assert!(meters.shut_by(kept).is_some());
    }
}
