//! A captured step as a CUDA graph: replayed by one launch, and walked to see what it consists of.

use std::sync::Arc;

use candle_core::{Result, bail};
use cudarc::driver::{CudaGraph, CudaStream, sys};

use super::driver;
use crate::ops::launch::{Captured, Nodes};

struct Graph {
    graph: CudaGraph,
    nodes: Nodes,
}

// SAFETY: a graph is launched by one thread at a time, which binds the context; the driver's handles may move.
unsafe impl Send for Graph {}

/// Ends a capture of this stream.
///
/// # Errors
/// Something was launched that cannot be captured.
pub fn end_capture(stream: &Arc<CudaStream>) -> Result<Box<dyn Captured>> {
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    match stream.end_capture(flags).map_err(driver("capturing a step"))? {
        Some(graph) => {
            graph.upload().map_err(driver("a captured step"))?;
            let nodes = walk(graph.cu_graph())?;
            Ok(Box::new(Graph { graph, nodes }))
        }
        None => bail!("nothing was captured"),
    }
}

fn walk(graph: sys::CUgraph) -> Result<Nodes> {
    use sys::CUgraphNodeType as Type;
    let mut count = 0usize;
    // SAFETY: the graph lives; without a place for nodes only their number is told.
    unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut count) }
        .result()
        .map_err(driver("a captured step"))?;
    let mut all: Vec<sys::CUgraphNode> = vec![std::ptr::null_mut(); count];
    // SAFETY: there is room for `count`.
    unsafe { sys::cuGraphGetNodes(graph, all.as_mut_ptr(), &raw mut count) }
        .result()
        .map_err(driver("a captured step"))?;
    let mut nodes = Nodes::default();
    for node in all {
        let mut kind = Type::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: a node of the graph.
        unsafe { sys::cuGraphNodeGetType(node, &raw mut kind) }
            .result()
            .map_err(driver("a captured step"))?;
        match kind {
            Type::CU_GRAPH_NODE_TYPE_KERNEL => nodes.kernels += 1,
            Type::CU_GRAPH_NODE_TYPE_MEMCPY
            | Type::CU_GRAPH_NODE_TYPE_MEMSET
            | Type::CU_GRAPH_NODE_TYPE_MEM_ALLOC
            | Type::CU_GRAPH_NODE_TYPE_MEM_FREE => nodes.memory += 1,
            _ => nodes.other += 1,
        }
    }
    Ok(nodes)
}

impl Captured for Graph {
    unsafe fn replay(&self) -> Result<()> {
        self.graph.launch().map_err(driver("a captured step"))
    }

    fn nodes(&self) -> Nodes {
        self.nodes
    }
}
