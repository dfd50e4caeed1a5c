//! Earliest-deadline-first scheduling: weighted turns without randomness, in Envoy's order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug, Clone, Copy)]
struct Entry {
    deadline: f64,
    order: u64,
    index: u32,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The heap gives the greatest first: the earliest deadline, then the one added first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.order.cmp(&self.order))
    }
}

/// Picks indices in proportion to their weights.
#[derive(Debug, Default, Clone)]
pub struct EdfScheduler {
    now: f64,
    order: u64,
    queue: BinaryHeap<Entry>,
}

impl EdfScheduler {
    /// A scheduler over `weights`; indices of weight 0 are left out.
    pub fn new(weights: impl IntoIterator<Item = f64>) -> Self {
        let mut scheduler = EdfScheduler::default();
        for (index, weight) in weights.into_iter().enumerate() {
            if weight > 0.0 {
                scheduler.add(index as u32, weight);
            }
        }
        scheduler
    }

    /// Whether there is nothing to pick.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn add(&mut self, index: u32, weight: f64) {
        self.queue.push(Entry { deadline: self.now + 1.0 / weight, order: self.order, index });
        self.order += 1;
    }

    /// The next index; it goes back in with the weight that `weight` gives it now.
    #[inline]
    pub fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let entry = self.queue.pop()?;
        self.now = entry.deadline;
        self.add(entry.index, weight(entry.index as usize));
        Some(entry.index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights_and_ties_the_order_of_adding() {
        let weights = [1.0, 2.0];
        let mut scheduler = EdfScheduler::new(weights);
        let picks: Vec<_> = (0..8).filter_map(|_| scheduler.pick(|index| weights[index])).collect();
        assert_eq!(picks, [1, 0, 1, 1, 0, 1, 1, 0]);
    }

    #[test]
    fn shares_are_exact_over_a_whole_cycle() {
        let weights = [5.0, 1.0, 2.0, 0.0];
        let mut scheduler = EdfScheduler::new(weights);
        let mut counts = [0; 4];
        for _ in 0..800 {
            counts[scheduler.pick(|index| weights[index]).expect("an entry")] += 1;
        }
        assert_eq!(counts, [500, 100, 200, 0]);
    }
}
