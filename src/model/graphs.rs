//! Captured decode steps, one for each of some sizes: a step of fewer rows is filled up with rows of no sequence.
//!
//! A graph replays launches with the addresses and sizes they had. So it stands for its number of rows, and for
//! the places where a step's arrays lay; what the arrays hold may change. Knows nothing of models.

use std::collections::BTreeMap;

use super::input::StepInput;
use crate::ops::launch::{Captured, Nodes};

struct Graph {
    captured: Box<dyn Captured>,
    addresses: [u64; 8],
}

/// By number of rows.
#[derive(Default)]
pub struct Graphs(BTreeMap<usize, Graph>);

/// What was captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphReport {
    /// Rows of each graph, ascending.
    pub sizes: Vec<usize>,
    /// Of the smallest.
    pub nodes: Nodes,
    /// Over all graphs.
    pub memory_nodes: usize,
}

impl Graphs {
    /// Sizes worth a graph: close together where a row more is felt.
    pub fn sizes(most: usize) -> Vec<usize> {
        let mut sizes: Vec<usize> = [1, 2, 4].into_iter().chain((8..=256).step_by(8)).collect();
        sizes.extend((272..=512).step_by(16));
        sizes.retain(|rows| *rows < most);
        sizes.push(most.clamp(1, 512));
        sizes.dedup();
        sizes
    }

    pub fn add(&mut self, rows: usize, addresses: [u64; 8], captured: Box<dyn Captured>) {
        self.0.insert(rows, Graph { captured, addresses });
    }

    /// Rows of the graph that a step fits into, if there is one.
    pub fn size_for(&self, input: &StepInput) -> Option<usize> {
        let rows = self.0.range(input.rows()..).next().map(|(rows, _)| *rows);
        rows.filter(|_| input.is_decode())
    }

    /// The graph of that size, if the arrays lie where it has them.
    pub fn get(&self, rows: usize, addresses: &[u64; 8]) -> Option<&dyn Captured> {
        self.0.get(&rows).filter(|g| g.addresses == *addresses).map(|g| &*g.captured)
    }

    pub fn report(&self) -> GraphReport {
        GraphReport {
            sizes: self.0.keys().copied().collect(),
            nodes: self.0.values().next().map(|g| g.captured.nodes()).unwrap_or_default(),
            memory_nodes: self.0.values().map(|g| g.captured.nodes().memory).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Graphs;

    #[test]
    fn sizes_end_with_the_largest_step() {
        assert_eq!(Graphs::sizes(1), [1]);
        assert_eq!(Graphs::sizes(3), [1, 2, 3]);
        assert_eq!(Graphs::sizes(20), [1, 2, 4, 8, 16, 20]);
        assert_eq!(Graphs::sizes(4096).last(), Some(&512));
    }
}
