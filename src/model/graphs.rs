//! Captured decode steps, one for each of some sizes: a step of fewer rows is filled up with rows of no sequence.
//!
//! A graph replays launches with the addresses and sizes they had. So it stands for its number of rows and of
//! attention's tiles, and for the places where a step's arrays lay; what the arrays hold may change. Knows nothing
//! of models.

use std::collections::{BTreeMap, BTreeSet};

use super::input::StepInput;
use crate::ops::launch::{Captured, Nodes};
use crate::ops::paged_attention::kernels::SPLIT_TILES;

struct Graph {
    captured: Box<dyn Captured>,
    addresses: [u64; 8],
}

/// Rows, and tiles of attention.
pub type Size = (usize, usize);

/// By size.
#[derive(Default)]
pub struct Graphs {
    all: BTreeMap<Size, Graph>,
    /// Words that the arrays of a captured step may have.
    words: usize,
}

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
    /// None yet, of steps whose arrays have so many words at most.
    pub fn of_words(words: usize) -> Graphs {
        Graphs { words, ..Graphs::default() }
    }

    pub fn words(&self) -> usize {
        self.words
    }

    /// Sizes worth a graph: close together where a row more is felt.
    pub fn sizes(most: usize) -> Vec<usize> {
        let mut sizes: Vec<usize> = [1, 2, 4].into_iter().chain((8..=256).step_by(8)).collect();
        sizes.extend((272..=512).step_by(16));
        sizes.retain(|rows| *rows < most);
        sizes.push(most.clamp(1, 512));
        sizes.dedup();
        sizes
    }

    /// Numbers of tiles worth a graph of that many rows: a row is a tile a chunk of its context, 1 to 64. A block
    /// too many costs a nanosecond or so.
    pub fn tile_sizes(rows: usize) -> Vec<usize> {
        let most = SPLIT_TILES.max(rows);
        let mut sizes: Vec<usize> = [1, 4, 16, 64].map(|chunks| most.min(rows * chunks)).into();
        sizes.dedup();
        sizes
    }

    pub fn add(&mut self, size: Size, addresses: [u64; 8], captured: Box<dyn Captured>) {
        self.all.insert(size, Graph { captured, addresses });
    }

    /// Rows of the graph that a step fits into, if there is one.
    pub fn size_for(&self, input: &StepInput) -> Option<usize> {
        let rows = self.all.range((input.rows(), 0)..).next().map(|(size, _)| size.0);
        rows.filter(|_| input.is_decode())
    }

    /// Tiles of the graph of so many rows that these fit into, if there is one.
    pub fn tiles_for(&self, rows: usize, tiles: usize) -> Option<usize> {
        self.all.range((rows, tiles)..=(rows, usize::MAX)).next().map(|(size, _)| size.1)
    }

    pub fn has(&self, size: Size) -> bool {
        self.all.contains_key(&size)
    }

    /// The graph of that size, if the arrays lie where it has them.
    pub fn get(&self, size: Size, addresses: &[u64; 8]) -> Option<&dyn Captured> {
        self.all.get(&size).filter(|g| g.addresses == *addresses).map(|g| &*g.captured)
    }

    pub fn report(&self) -> GraphReport {
        GraphReport {
            sizes: self.all.keys().map(|size| size.0).collect::<BTreeSet<_>>().into_iter().collect(),
            nodes: self.all.values().next().map(|g| g.captured.nodes()).unwrap_or_default(),
            memory_nodes: self.all.values().map(|g| g.captured.nodes().memory).sum(),
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

    #[test]
    fn a_graph_has_a_tile_a_row_at_least_and_no_more_than_one_launch_takes() {
        assert_eq!(Graphs::tile_sizes(1), [1, 4, 16, 64]);
        assert_eq!(Graphs::tile_sizes(32), [32, 128, 512, 2048]);
        assert_eq!(Graphs::tile_sizes(512), [512, 2048]);
    }
}
