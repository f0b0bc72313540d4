//! Adding up what the ranks of a group have computed of the same rows, so that each has the sum.
//!
//! The seam of tensor parallelism: a [`Rank`] is one device's end of its group. Here the ranks are threads of a
//! process and their rows lie in its memory; NCCL will be another end. The sum is made in the order of the ranks,
//! whoever comes first, so it has the same bits every time. A rank that is dropped ends the group: the others get an
//! error and do not wait for ever.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};

use super::storage;

#[derive(Default)]
struct State {
    /// Each rank's rows, for the sum under way.
    parts: Vec<Vec<f32>>,
    handed_over: usize,
    taken: usize,
    sum: Vec<f32>,
    /// A rank is gone.
    broken: bool,
}

struct Group {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// One member of a group.
pub struct Rank {
    index: usize,
    group: Arc<Group>,
}

impl Rank {
    /// The ranks of a new group.
    pub fn group(ranks: usize) -> Vec<Rank> {
        let state = State { parts: vec![Vec::new(); ranks], ..State::default() };
        let group = Arc::new(Group { ranks, state: Mutex::new(state), changed: Condvar::new() });
        (0..ranks).map(|index| Rank { index, group: group.clone() }).collect()
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn ranks(&self) -> usize {
        self.group.ranks
    }

    /// Ends the group: who waits for this rank, or will, gets an error.
    pub fn leave(&self) {
        self.group.state.lock().unwrap_or_else(PoisonError::into_inner).broken = true;
        self.group.changed.notify_all();
    }

    /// Replaces `rows` by the sum of what all ranks call this with. Waits for them.
    fn sum(&self, rows: &mut [f32]) -> Result<()> {
        let group = &*self.group;
        let lock = group.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Until everyone has taken the sum before.
        let whole = |s: &State| s.broken || s.handed_over < group.ranks;
        let wait = |lock, until: &dyn Fn(&State) -> bool| {
            group.changed.wait_while(lock, |s| !until(s)).unwrap_or_else(PoisonError::into_inner)
        };
        let mut state = wait(lock, &whole);
        if state.broken {
            bail!("all_reduce: a rank of the group is gone")
        }
        let own = &mut state.parts[self.index];
        own.clear();
        own.extend_from_slice(rows);
        state.handed_over += 1;
        if state.handed_over == group.ranks {
            let State { parts, sum, .. } = &mut *state;
            if parts.iter().any(|p| p.len() != rows.len()) {
                let lengths: Vec<_> = parts.iter().map(Vec::len).collect();
                state.broken = true;
                // What another rank must not take for this one.
                state.sum.clear();
                group.changed.notify_all();
                bail!("all_reduce: ranks with {lengths:?} numbers each")
            }
            sum.clone_from(&parts[0]);
            for part in &parts[1..] {
                sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
            state.taken = 0;
            group.changed.notify_all();
        }
        let mut state = wait(state, &|s| s.broken || s.handed_over == group.ranks);
        if state.handed_over < group.ranks || state.sum.len() != rows.len() {
            bail!("all_reduce: a rank of the group is gone")
        }
        rows.copy_from_slice(&state.sum);
        state.taken += 1;
        if state.taken == group.ranks {
            state.handed_over = 0;
            group.changed.notify_all();
        }
        Ok(())
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The first `rows` rows of dst, f32 `[capacity, width]`, become their sum over all ranks.
pub struct AllReduce<'a> {
    pub rank: &'a Rank,
    pub rows: usize,
}

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, dl: &Layout) -> Result<()> {
        let (_, width) = dl.shape().dims2()?;
        let dst = storage::write_f32(dst, dl, self.name())?;
        match dst.get_mut(..self.rows * width) {
            Some(rows) => self.rank.sum(rows),
            None => bail!("all_reduce: {} rows of {width} in {} numbers", self.rows, dst.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// What each rank has after `times` sums of its own rows.
    fn run(ranks: usize, times: usize, leaves: Option<usize>) -> Vec<Result<Vec<f32>>> {
        let threads = Rank::group(ranks).into_iter().map(|rank| {
            std::thread::spawn(move || {
                let i = rank.index() as f32;
                let rows = Tensor::new(&[[1e8f32, i], [-1e8 * i, 0.1]], &Device::Cpu)?;
                for n in 0..times {
                    if leaves == Some(rank.index()) && n == 1 {
                        return Ok(Vec::new());
                    }
                    rows.inplace_op1(&AllReduce { rank: &rank, rows: 1 })?;
                }
                rows.flatten_all()?.to_vec1()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|t| t.join().expect("no rank panics")).collect()
    }

    #[test]
    fn all_ranks_have_the_sum_and_rows_beyond_stay() {
        for (rank, got) in run(3, 1, None).into_iter().enumerate() {
            assert_eq!(got.unwrap(), [3e8, 3.0, -1e8 * rank as f32, 0.1]);
        }
        // Sums follow each other without mixing: 3 × 3 × 3.
        assert!(run(3, 3, None).into_iter().all(|r| r.unwrap()[1] == 27.0));
    }

    #[test]
    fn a_rank_that_leaves_is_an_error_for_the_others() {
        let all = run(3, 3, Some(1));
        assert!(all[1].is_ok());
        for rank in [0, 2] {
            assert!(all[rank].as_ref().unwrap_err().to_string().contains("gone"));
        }
    }

    #[test]
    fn ranks_must_agree_on_the_rows() {
        let mut group = Rank::group(2).into_iter();
        let (a, b) = (group.next().unwrap(), group.next().unwrap());
        // The sum before is as long as one of the two: it must not pass for the new one.
        let other = std::thread::spawn(move || {
            a.sum(&mut [1.0]).unwrap();
            a.sum(&mut [1.0, 2.0]).map_err(|e| e.to_string())
        });
        b.sum(&mut [1.0]).unwrap();
        let here = b.sum(&mut [1.0]).map_err(|e| e.to_string());
        let there = other.join().unwrap();
        assert!(here.is_err() && there.is_err(), "{here:?} {there:?}");
    }
}
