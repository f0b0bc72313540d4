//! The second half of a layer: one gated network, or experts of which a router picks some for each row.

use candle_core::{Result, Tensor};

use super::{Decoder, Layer, Matrix, Projection};
use crate::model::workspace::{ExpertRoom, Workspace};
use crate::ops::activation::{GateActivation, GateMul};
use crate::ops::exec::Exec;
use crate::ops::experts::{Combine, GateRows, Gating, GroupRows, GroupedLinear, Route};
use crate::ops::linear::Linear;
use crate::ops::weight::Weight;

/// A gated network: `down · (activation(gate · x) × (up · x))`.
#[derive(Clone)]
pub(super) struct Mlp {
    pub gate_up: Projection,
    pub down: Projection,
}

#[derive(Clone)]
pub(super) enum FeedForward {
    Dense(Mlp),
    Experts(Box<Experts>),
}

/// A matrix for every expert; on a device all in one.
#[derive(Clone)]
pub(super) struct Stack {
    pub weights: Vec<Weight>,
    /// f32 `[1, outputs]`; as many as there are matrices, or none.
    pub biases: Vec<Weight>,
}

/// Of each kind of matrix one for every expert.
#[derive(Clone)]
pub(super) struct Experts {
    pub gating: Gating,
    /// `[experts, hidden]`
    pub router: Matrix,
    /// What is side by side in a place's row: gates and ups, or both in one.
    pub gate_up: Vec<Stack>,
    pub down: Stack,
    /// One that every row takes, and the product that σ makes its part of, `[1, hidden]`.
    pub shared: Option<(Mlp, Option<Weight>)>,
}

impl Mlp {
    fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.gate_up.weights().chain(self.down.weights())
    }

    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        self.gate_up.weights_mut().chain(self.down.weights_mut())
    }
}

impl FeedForward {
    /// Every matrix.
    pub fn weights(&self) -> Vec<&Weight> {
        match self {
            FeedForward::Dense(mlp) => mlp.weights().collect(),
            FeedForward::Experts(experts) => {
                let Experts { router, gate_up, down, shared, .. } = &**experts;
                let own = gate_up.iter().chain([down]).flat_map(|stack| &stack.weights);
                let own = own.chain([&router.weight]);
                own.chain(shared.iter().flat_map(|(mlp, gate)| mlp.weights().chain(gate))).collect()
            }
        }
    }

    /// Every matrix, to be replaced.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        match self {
            FeedForward::Dense(mlp) => mlp.weights_mut().collect(),
            FeedForward::Experts(experts) => {
                let Experts { router, gate_up, down, shared, .. } = &mut **experts;
                let own = gate_up.iter_mut().chain([down]).flat_map(|stack| &mut stack.weights);
                let own = own.chain([&mut router.weight]);
                own.chain(shared.iter_mut().flat_map(|(mlp, gate)| mlp.weights_mut().chain(gate))).collect()
            }
        }
    }
}

impl Decoder {
    pub(super) fn feed_forward(&self, layer: &Layer, rows: usize, ws: &Workspace, on: &Exec) -> Result<()> {
        match (&layer.feed_forward, &ws.experts) {
            (FeedForward::Dense(mlp), _) => self.dense(layer, mlp, rows, ws, on),
            (FeedForward::Experts(experts), Some(room)) => {
                self.enter(layer.mlp_norm.as_ref(), rows, ws, on)?;
                self.routed(experts, rows, room, ws, on)?;
                match &experts.shared {
                    Some((mlp, gate)) => self.shared(mlp, gate.as_ref(), rows, room, ws, on),
                    None => Ok(()),
                }
            }
            (FeedForward::Experts(_), None) => candle_core::bail!("the workspace has no room for experts"),
        }
    }

    fn dense(&self, layer: &Layer, mlp: &Mlp, rows: usize, ws: &Workspace, on: &Exec) -> Result<()> {
        let norm = layer.mlp_norm.as_ref();
        // The kernel that does all at once knows the one activation.
        let silu = self.spec.activation == GateActivation::Silu;
        let at_once = self.after(norm, &mlp.gate_up, rows, on).filter(|_| silu);
        if !at_once.map_or(Ok(false), |op| op.silu_mul(&ws.activated, &ws.residual))? {
            self.enter(norm, rows, ws, on)?;
            self.activate(mlp, (&ws.gate_up, &ws.activated), rows, ws, on)?;
        }
        self.add(&mlp.down, layer.mlp_out_norm.as_ref(), ws, &ws.activated, rows, on)
    }

    /// Everything before `down`.
    fn activate(
        &self,
        mlp: &Mlp,
        (gate_up, activated): (&Tensor, &Tensor),
        rows: usize,
        ws: &Workspace,
        on: &Exec,
    ) -> Result<()> {
        mlp.gate_up.product(gate_up, &ws.normed, rows, false, on)?;
        let (activation, width) = (self.spec.activation, activated.dim(1)?);
        activated.inplace_op2(gate_up, &GateMul { activation, rows, width, on })
    }

    fn routed(
        &self,
        experts: &Experts,
        rows: usize,
        room: &ExpertRoom,
        ws: &Workspace,
        on: &Exec,
    ) -> Result<()> {
        let (gating, route) = (experts.gating, &room.route);
        let (hidden, places) = (self.spec.hidden, rows * gating.per_token);
        let Matrix { weight, bias } = &experts.router;
        let router = Linear { weight, bias: bias.as_ref(), rows, column: 0, accumulate: false, on };
        room.logits.inplace_op2(&ws.normed, &router)?;
        route.inplace_op2(&room.logits, &Route { gating, rows, on })?;
        room.grouped.inplace_op2(&ws.normed, &GroupRows { gating, route, rows, width: hidden, on })?;
        let mut column = 0;
        for Stack { weights, biases } in &experts.gate_up {
            let product = GroupedLinear { gating, route, weights, biases, rows, column, on };
            room.gate_up.inplace_op2(&room.grouped, &product)?;
            column += product.outputs();
        }
        let (activation, width) = (self.spec.activation, room.activated.dim(1)?);
        room.activated.inplace_op2(&room.gate_up, &GateMul { activation, rows: places, width, on })?;
        let Stack { weights, biases } = &experts.down;
        let down = GroupedLinear { gating, route, weights, biases, rows, column: 0, on };
        room.out.inplace_op2(&room.activated, &down)?;
        ws.residual.inplace_op2(&room.out, &Combine { gating, route, rows, width: hidden, on })
    }

    /// Adds the expert that every row takes.
    fn shared(
        &self,
        mlp: &Mlp,
        gate: Option<&Weight>,
        rows: usize,
        room: &ExpertRoom,
        ws: &Workspace,
        on: &Exec,
    ) -> Result<()> {
        let Some(shared) = &room.shared else {
            candle_core::bail!("the workspace has no room for shared experts")
        };
        self.activate(mlp, (&shared.gate_up, &shared.activated), rows, ws, on)?;
        if let Some(weight) = gate {
            let product = Linear { weight, bias: None, rows, column: 0, accumulate: false, on };
            shared.gate.inplace_op2(&ws.normed, &product)?;
            // Before the last product, which is linear.
            let width = shared.activated.dim(1)?;
            shared.activated.inplace_op2(&shared.gate, &GateRows { rows, width, on })?;
        }
        mlp.down.product(&ws.residual, &shared.activated, rows, true, on)
    }
}
