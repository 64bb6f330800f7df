//! Judges what the members of a group did with the queues between them. promise: one-owner, at-least-once, fifo.

use crate::member::Delivery;
use std::collections::BTreeMap;

/// What one member did.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In its order.
    pub seen: Vec<Delivery>,
    /// It did not give its queues back.
    pub was_killed: bool,
}

/// In what order a queue's messages are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By offset, the next when the one before has ended.
    OneByOne,
    /// Several at once.
    Any,
}

/// A broker that was killed.
#[derive(Debug, Clone)]
pub struct Outage {
    /// Its name.
    pub broker: String,
    /// When, on the clock of [`Delivery`].
    pub begun_ns: u64,
}

/// Messages that a group was given again, by what had happened in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again {
    /// The member that had it was killed.
    pub after_a_kill: u64,
    /// The queue's broker was killed.
    pub after_the_outage: u64,
    /// The member gave the queue back.
    pub after_a_hand_over: u64,
}

/// Looks at every queue. An error says where two members were at work on it at once, where messages were left out, or where one
/// came twice for no reason.
pub fn judge(members: &[History], order: Order, outage: &Outage) -> Result<Again, String> {
    let mut queues: BTreeMap<(&str, u32), Vec<(usize, &Delivery)>> = BTreeMap::new();
    for (member, history) in members.iter().enumerate() {
        for delivery in &history.seen {
            let (broker, queue, _) = &delivery.place;
            queues.entry((broker, *queue)).or_default().push((member, delivery));
        }
    }
    let mut again = Again::default();
    for ((broker, queue), mut deliveries) in queues {
        deliveries.sort_by_key(|(_, delivery)| delivery.begun_ns);
        let at = |text: String| format!("{broker}/{queue}: {text}");
        one_owner(&deliveries).map_err(at)?;
        if order == Order::OneByOne {
            nothing_left_out(&deliveries).map_err(at)?;
        }
        let outage_ns = (outage.broker == broker).then_some(outage.begun_ns);
        count_again(members, &deliveries, outage_ns, &mut again).map_err(at)?;
    }
    Ok(again)
}

/// While one member's listener runs, no other's begins.
fn one_owner(deliveries: &[(usize, &Delivery)]) -> Result<(), String> {
    let mut busy_until: BTreeMap<usize, u64> = BTreeMap::new();
    for (member, delivery) in deliveries {
        let mut others = busy_until.iter().filter(|(other, _)| *other != member);
        if let Some((other, _)) = others.find(|(_, until)| **until > delivery.begun_ns) {
            return Err(format!("{other} was at work when {member} was given {delivery:?}"));
        }
        let until = busy_until.entry(*member).or_default();
        *until = (*until).max(delivery.ended_ns.unwrap_or(delivery.begun_ns));
    }
    Ok(())
}

/// Whoever comes next goes on where the one before was, or further back.
fn nothing_left_out(deliveries: &[(usize, &Delivery)]) -> Result<(), String> {
    let mut next = 0;
    for (member, delivery) in deliveries {
        let (_, _, offset) = delivery.place;
        if offset > next {
            return Err(format!("{member} was given {offset}, and {next} was left out"));
        }
        next = offset + 1;
    }
    Ok(())
}

fn count_again(
    members: &[History],
    deliveries: &[(usize, &Delivery)],
    outage_ns: Option<u64>,
    again: &mut Again,
) -> Result<(), String> {
    let mut given: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, (member, delivery)) in deliveries.iter().enumerate() {
        let (_, _, offset) = delivery.place;
        let Some(before) = given.insert(offset, at) else { continue };
        let (had_by, had) = deliveries[before];
        let away = outage_ns.is_some_and(|at| (had.begun_ns..delivery.begun_ns).contains(&at));
        let changed_hands = deliveries[before..at].iter().any(|(other, _)| other != member);
        match () {
            () if away => again.after_the_outage += 1,
            () if members[had_by].was_killed => again.after_a_kill += 1,
            () if changed_hands => again.after_a_hand_over += 1,
            () => return Err(format!("{member} was given {offset} twice")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member's deliveries: offset, from, until (0: it never ended).
    fn member(seen: &[(u64, u64, u64)]) -> History {
        let delivery = |&(offset, begun_ns, until): &(u64, u64, u64)| Delivery {
            place: ("a".into(), 0, offset),
            body: String::new(),
            begun_ns,
            ended_ns: (until > 0).then_some(until),
        };
        History { seen: seen.iter().map(delivery).collect(), was_killed: false }
    }

    fn judged(members: &[History]) -> Result<Again, String> {
        judge(members, Order::OneByOne, &Outage { broker: "a".into(), begun_ns: 1000 })
    }

    #[test]
    fn a_clean_hand_over_is_good() {
        let members =
            [member(&[(0, 1, 2), (1, 2, 3), (4, 9, 10)]), member(&[(2, 3, 5), (3, 6, 8)])];
        assert_eq!(judged(&members), Ok(Again::default()));
    }

    #[test]
    fn two_at_work_are_found() {
        let found = judged(&[member(&[(0, 1, 5)]), member(&[(1, 4, 6)])]).unwrap_err();
        assert!(found.contains("a/0: 0 was at work when 1"), "{found}");
        // Whatever came in between.
        let members = [member(&[(0, 1, 9), (1, 2, 3)]), member(&[(2, 4, 6)])];
        let found = judge(&members, Order::Any, &Outage { broker: "b".into(), begun_ns: 0 });
        assert!(found.unwrap_err().contains("at work"));
    }

    #[test]
    fn what_was_left_out_is_found() {
        let found = judged(&[member(&[(0, 1, 2)]), member(&[(2, 3, 4)])]).unwrap_err();
        assert!(found.contains("1 was left out"), "{found}");
    }

    #[test]
    fn what_came_again_is_counted_by_its_reason() {
        let mut killed = member(&[(0, 1, 2), (1, 3, 0)]);
        killed.was_killed = true;
        let expected = Again { after_a_kill: 1, ..Again::default() };
        assert_eq!(judged(&[killed, member(&[(1, 5, 6)])]), Ok(expected));
        let expected = Again { after_a_hand_over: 1, ..Again::default() };
        assert_eq!(judged(&[member(&[(0, 1, 2)]), member(&[(0, 5, 6)])]), Ok(expected));
        let expected = Again { after_the_outage: 1, ..Again::default() };
        assert_eq!(judged(&[member(&[(0, 1, 2), (0, 1001, 1002)])]), Ok(expected));
        let found = judged(&[member(&[(0, 1, 2), (0, 5, 6)])]).unwrap_err();
        assert!(found.contains("0 was given 0 twice"), "{found}");
    }
}
