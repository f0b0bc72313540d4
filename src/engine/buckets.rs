//! Which texts an encoder computes together: queued texts in, groups of about one length out.
//!
//! A group is padded to its longest text, so texts are kept in order of length, and a group is a run of neighbours. The
//! requests of a tier take turns to begin a group with their first text, and it grows to both sides while it pads little.
//! So nobody waits for ever, and a full queue has hardly any padding. Knows no model.

use std::ops::RangeInclusive;

use crate::engine::sequence::Rank;

/// A group computes at most one token of padding to so many tokens.
const TOKENS_A_PADDING: usize = 10;

/// A text that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Tokens.
    pub length: usize,
    /// Of its request.
    pub rank: Rank,
    /// Which of its request's texts.
    pub text: usize,
}

/// Tokens that a group computes, padding included.
pub fn computed(group: &[Waiting]) -> usize {
    group.iter().map(|w| w.length).max().unwrap_or(0) * group.len()
}

#[derive(Debug, Default)]
pub struct Buckets {
    /// By length, ascending.
    queue: Vec<Waiting>,
    /// Whose text began the last group.
    last: Option<Rank>,
}

impl Buckets {
    pub fn add(&mut self, texts: impl Iterator<Item = Waiting>) {
        self.queue.extend(texts);
        // Two runs in order: the stable sort merges them.
        self.queue.sort_by_key(|w| w.length);
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Forgets the texts of a request.
    pub fn remove(&mut self, rank: Rank) {
        self.queue.retain(|w| w.rank != rank);
    }

    /// Takes up to `groups` groups that are computed beside each other. They share `tokens` evenly; a text that is
    /// longer than its share is a group by itself, and the last group may go over the sum.
    pub fn take(&mut self, tokens: usize, groups: usize) -> Vec<Vec<Waiting>> {
        let share = tokens.div_ceil(groups.max(1));
        let (mut taken, mut sum) = (Vec::new(), 0);
        while taken.len() < groups.max(1) && sum < tokens {
            let Some(first) = self.first() else { break };
            self.last = Some(self.queue[first].rank);
            let group: Vec<Waiting> = self.queue.drain(self.around(first, share)).collect();
            sum += computed(&group);
            taken.push(group);
        }
        taken
    }

    /// The text that begins the next group: of the best tier, the request behind the one that began the last group. So a
    /// large request holds nobody up for longer than a group.
    fn first(&self) -> Option<usize> {
        let tier = self.queue.iter().map(|w| w.rank.tier).min()?;
        let is_behind = |rank: Rank| self.last.is_some_and(|last| last.tier == tier && rank <= last);
        let order = |w: &Waiting| (w.rank.tier, is_behind(w.rank), w.rank, w.text);
        self.queue.iter().enumerate().min_by_key(|(_, w)| order(w)).map(|(at, _)| at)
    }

    /// The run of neighbours around a text that pads little and computes `most` tokens at most.
    fn around(&self, first: usize, most: usize) -> RangeInclusive<usize> {
        let queue = &self.queue;
        let (mut low, mut high, mut own) = (first, first, queue[first].length);
        loop {
            let texts = high - low + 2;
            // What it would compute with one more text, of which so many are its own.
            let below = low.checked_sub(1).map(|at| (queue[high].length * texts, own + queue[at].length));
            let above = queue.get(high + 1).map(|w| (w.length * texts, own + w.length));
            let fits =
                |(all, own): &(usize, usize)| *all <= most && (all - own) * (TOKENS_A_PADDING + 1) <= *all;
            let padding = |(all, own): (usize, usize)| all - own;
            match (below.filter(fits), above.filter(fits)) {
                (Some(below), above) if above.is_none_or(|above| padding(below) <= padding(above)) => {
                    low -= 1;
                    own = below.1;
                }
                (_, Some(above)) => {
                    high += 1;
                    own = above.1;
                }
                _ => return low..=high,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::Tier;

    fn rank(arrival: u64) -> Rank {
        Rank { tier: Tier::Default, arrival }
    }

    fn buckets(requests: &[&[usize]]) -> Buckets {
        let mut buckets = Buckets::default();
        for (arrival, lengths) in (0..).zip(requests) {
            let waiting =
                |(text, length): (usize, &usize)| Waiting { length: *length, rank: rank(arrival), text };
            buckets.add(lengths.iter().enumerate().map(waiting));
        }
        buckets
    }

    fn lengths(groups: &[Vec<Waiting>]) -> Vec<Vec<usize>> {
        groups.iter().map(|g| g.iter().map(|w| w.length).collect()).collect()
    }

    #[test]
    fn a_group_is_of_about_one_length_and_begins_with_who_came_first() {
        let mut b = buckets(&[&[100], &[8, 9, 96, 98, 400, 101, 50]]);
        assert_eq!(lengths(&b.take(512, 2)), [vec![100, 101], vec![8, 9]]);
        assert_eq!(lengths(&b.take(1000, 1)), [vec![96, 98]]);
        assert_eq!(lengths(&b.take(10, 4)), [vec![400]], "longer than what there is: alone");
        assert_eq!(lengths(&b.take(512, 4)), [vec![50]]);
        assert!(b.is_empty() && b.take(512, 1).is_empty());
    }

    #[test]
    fn requests_take_turns() {
        let mut b = buckets(&[&[500; 9], &[30], &[200, 201]]);
        let began: Vec<u64> =
            std::iter::from_fn(|| b.take(100, 1).first().map(|g| g[0].rank.arrival)).collect();
        assert_eq!(began, [0, 1, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn tiers_come_before_age() {
        let mut b = buckets(&[&[10], &[500]]);
        let priority = Rank { tier: Tier::Priority, arrival: 9 };
        b.add([Waiting { length: 100, rank: priority, text: 0 }].into_iter());
        assert_eq!(lengths(&b.take(100, 1)), [[100]]);
        b.remove(rank(0));
        assert_eq!(lengths(&b.take(100, 1)), [[500]]);
    }

    #[test]
    fn a_full_queue_pads_a_tenth_at_most_and_loses_nothing() {
        // Log-uniform from 8 to 512, from a fixed sequence.
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (8.0 * 64f64.powf((state >> 11) as f64 / (1u64 << 53) as f64)) as usize
        };
        let all: Vec<usize> = (0..512).map(|_| draw()).collect();
        let mut b = buckets(&[&all]);
        let (mut sum, mut own, mut texts) = (0, 0, 0);
        while !b.is_empty() {
            let groups = b.take(512, 2);
            let step: usize = groups.iter().map(|g| computed(g)).sum();
            assert!(step < 512 + 512, "{step} tokens in a step");
            sum += step;
            own += groups.iter().flatten().map(|w| w.length).sum::<usize>();
            texts += groups.iter().flatten().count();
        }
        assert_eq!((texts, own), (512, all.iter().sum()));
        assert!((sum - own) * 10 <= sum, "{} of {sum} tokens are padding", sum - own);
    }
}
