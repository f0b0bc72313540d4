//! The scheduler on paper: text-file cases, and properties under random schedules.
//!
//! A case is a list of commands, each followed by `----` and what must come out. No model runs: a step
//! is planned, then applied as the engine would (tokens computed, one generated where a row asks).

use std::collections::HashMap;
use std::fmt::Write as _;

use hashwatt::engine::block_pool::BlockPool;
use hashwatt::engine::event::Tier;
use hashwatt::engine::scheduler::{Budget, Scheduler, StepPlan};
use hashwatt::engine::sequence::{Rank, Sequence};
use proptest::prelude::*;

const BLOCK: usize = 4;

/// What the scheduler does not know: how much each sequence is to generate.
struct Job {
    id: u64,
    generate: usize,
}

struct Paper {
    scheduler: Scheduler<Job>,
    plan: StepPlan,
    arrivals: u64,
}

impl Paper {
    fn new(blocks: usize) -> Paper {
        let pool = BlockPool::new(blocks, BLOCK);
        Paper { scheduler: Scheduler::new(pool, 64, true), plan: StepPlan::default(), arrivals: 0 }
    }

    fn add(&mut self, id: u64, tokens: &[u32], generate: usize, tier: Tier, salt: u64) {
        self.arrivals += 1;
        let rank = Rank { tier, arrival: self.arrivals };
        let pool = self.scheduler.pool().clone();
        let sequence = Sequence::new(rank, tokens, tokens.len() + generate, salt, &pool);
        self.scheduler.add(sequence, Job { id, generate });
    }

    fn plan(&mut self, budget: Budget) {
        self.scheduler.plan(budget, &mut self.plan);
    }

    /// Does what the engine does after a step; returns the ids that finished.
    fn apply(&mut self) -> Vec<u64> {
        for row in &self.plan.rows {
            let entry = &mut self.scheduler.running_mut()[row.sequence];
            entry.sequence.advance(row.tokens.end);
            if !row.logits.is_empty() {
                let token = 1000 + entry.sequence.tokens.len() as u32;
                entry.sequence.tokens.push(token);
            }
        }
        let mut finished = Vec::new();
        self.scheduler.retain(|e| {
            let done = e.sequence.generated() >= e.payload.generate;
            if done {
                finished.push(e.payload.id);
            }
            !done
        });
        finished
    }

    fn print_plan(&self, out: &mut String) {
        for row in &self.plan.rows {
            let id = self.scheduler.running()[row.sequence].payload.id;
            let logits = if row.logits.is_empty() { "" } else { " + token" };
            writeln!(out, "{id}: {}..{}{logits}", row.tokens.start, row.tokens.end).unwrap();
        }
        if self.plan.preempted > 0 {
            writeln!(out, "preempted {}", self.plan.preempted).unwrap();
        }
        if self.plan.prefix_hits > 0 {
            writeln!(out, "prefix hit {} of {}", self.plan.prefix_hits, self.plan.prefix_queries).unwrap();
        }
    }
}

fn fields(line: &str) -> HashMap<&str, &str> {
    line.split_whitespace().filter_map(|f| f.split_once('=')).collect()
}

fn number(fields: &HashMap<&str, &str>, key: &str, default: usize) -> usize {
    fields.get(key).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{key}={v} is no number")))
}

/// Runs one command of a case; what it prints.
fn command(paper: &mut Option<Paper>, line: &str) -> String {
    let f = fields(line);
    let mut out = String::new();
    let verb = line.split_whitespace().next().unwrap();
    if verb == "blocks" {
        *paper = Some(Paper::new(number(&f, "n", 8)));
        return out;
    }
    let paper = paper.as_mut().expect("a case begins with `blocks`");
    match verb {
        "add" => {
            let id = number(&f, "id", 0) as u64;
            // `like=ID` begins with the prompt of another.
            let like = number(&f, "like", id as usize) as u32;
            let tokens: Vec<u32> = (0..number(&f, "prompt", 1) as u32).map(|t| like * 10_000 + t).collect();
            let tier = match f.get("tier").copied() {
                Some("priority") => Tier::Priority,
                Some("flex") => Tier::Flex,
                _ => Tier::Default,
            };
            paper.add(id, &tokens, number(&f, "generate", 1), tier, number(&f, "salt", 0) as u64);
        }
        "cancel" => {
            let id = number(&f, "id", 0) as u64;
            paper.scheduler.retain(|e| e.payload.id != id);
        }
        "step" => {
            for _ in 0..number(&f, "times", 1) {
                let tokens = number(&f, "tokens", 64);
                paper.plan(Budget {
                    sequences: number(&f, "sequences", 8),
                    tokens,
                    logit_rows: number(&f, "logits", 8),
                });
                paper.print_plan(&mut out);
                for id in paper.apply() {
                    writeln!(out, "finished {id}").unwrap();
                }
            }
        }
        "state" => {
            let running: Vec<u64> = paper.scheduler.running().iter().map(|e| e.payload.id).collect();
            let held = paper.scheduler.pool().borrow().held();
            writeln!(out, "running {running:?} waiting {} blocks held {held}", paper.scheduler.waiting())
                .unwrap();
        }
        other => panic!("unknown command `{other}`"),
    }
    out
}

/// The case file as it reads when every output is what comes out now.
fn replay(text: &str) -> String {
    let (mut paper, mut out) = (None, String::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let got = command(&mut paper, line);
        if lines.next_if(|l| *l == "----").is_some() {
            while lines.next_if(|l| !l.trim().is_empty()).is_some() {}
            write!(out, "----\n{got}").unwrap();
        } else {
            assert_eq!(got, "", "`{line}` prints something and expects nothing");
        }
    }
    out
}

/// `UPDATE_CASES=1 cargo test` writes what comes out into the files; read the diff before committing.
#[test]
#[allow(clippy::disallowed_methods)] // the one switch of this test
fn cases() {
    for file in ["scheduling.txt", "preemption.txt", "prefix.txt"] {
        let path = format!("{}/tests/it/cases/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let now = replay(&text);
        if std::env::var("UPDATE_CASES").is_ok() {
            std::fs::write(&path, &now).unwrap();
        } else {
            for (i, (want, got)) in text.lines().zip(now.lines()).enumerate() {
                assert_eq!(got, want, "{file}:{}", i + 1);
            }
            assert_eq!(text.lines().count(), now.lines().count(), "{file} ends differently");
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Add { prompt: usize, generate: usize, family: u32, tier: usize, salt: u64 },
    Cancel(usize),
    Step { tokens: usize, sequences: usize, logit_rows: usize },
}

#[test]
fn guesses_take_nothing_from_anyone() {
    for (blocks, tokens, logit_rows, rows) in [
        (400, 20, 64, 20),
        (400, 64, 14, 14),
        // Of logits, or of tokens, there are as many as sequences.
        (400, 64, 12, 12),
        (400, 12, 64, 12),
        // Two blocks each, and one that each may want next.
        (36, 64, 64, 12),
        (400, 512, 512, 12 + 12 * 6),
    ] {
        let mut paper = Paper::new(blocks);
        let all = Budget { sequences: 12, tokens: 512, logit_rows: 512 };
        (0..12).for_each(|id| paper.add(id, &[id as u32; 7], 40, Tier::Default, id));
        paper.plan(all);
        paper.apply();
        for entry in paper.scheduler.running_mut() {
            assert_eq!((entry.sequence.uncomputed(), entry.sequence.tokens.len()), (1, 8));
            entry.sequence.guesses = vec![5; 6];
        }
        paper.plan(Budget { tokens, logit_rows, ..all });
        let what = format!("{blocks} blocks, {tokens} tokens, {logit_rows} rows of logits");
        assert_eq!((paper.plan.rows.len(), paper.plan.preempted), (12, 0), "{what}");
        assert_eq!((paper.plan.tokens(), paper.plan.logit_rows()), (rows, rows), "{what}");
        for row in &paper.plan.rows {
            let sequence = &paper.scheduler.running()[row.sequence].sequence;
            assert!(row.tokens.end <= 8 + sequence.guesses.len() && row.tokens.start == 7, "{what}: {row:?}");
            assert!(sequence.table.capacity() >= row.tokens.end, "{what}: {row:?}");
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1..40usize, 1..12usize, 0..3u32, 0..3usize, 0..2u64).prop_map(
            |(prompt, generate, family, tier, salt)| Action::Add { prompt, generate, family, tier, salt }),
        1 => (0..20usize).prop_map(Action::Cancel),
        6 => (1..40usize, 1..9usize, 1..9usize).prop_map(
            |(tokens, sequences, logit_rows)| Action::Step { tokens, sequences, logit_rows }),
    ]
}

/// Everything that must hold between a plan and its end.
fn check_plan(paper: &Paper, budget: Budget) {
    let plan = &paper.plan;
    assert!(plan.tokens() <= budget.tokens && plan.logit_rows() <= budget.logit_rows);
    assert!(plan.rows.len() <= budget.sequences);
    let running = paper.scheduler.running();
    assert!(running.windows(2).all(|w| w[0].sequence.rank < w[1].sequence.rank), "sorted by rank");
    let mut planned = std::collections::HashSet::new();
    for row in &plan.rows {
        assert!(planned.insert(row.sequence), "a sequence is planned once");
        let s = &running[row.sequence].sequence;
        assert!(row.tokens.start == s.computed && row.tokens.start < row.tokens.end);
        assert!(row.tokens.end <= s.tokens.len() && row.tokens.end <= s.table.capacity());
        assert_eq!(row.logits.len(), usize::from(row.tokens.end == s.tokens.len()));
    }
    check_blocks(paper);
}

/// No block in two sequences unless it is full, findable, and the same tokens for both.
fn check_blocks(paper: &Paper) {
    let mut seen: HashMap<u32, (usize, Vec<u32>)> = HashMap::new();
    let pool = paper.scheduler.pool().borrow();
    for entry in paper.scheduler.running() {
        let s = &entry.sequence;
        for (i, block) in s.table.blocks().iter().enumerate() {
            let start = i * BLOCK;
            let content = s.tokens.get(..start + BLOCK).unwrap_or(&[]).to_vec();
            if let Some((count, other)) = seen.get_mut(block) {
                *count += 1;
                assert!(pool.is_cached(*block), "a shared block is full and findable");
                assert!(!content.is_empty() && *other == content, "a shared block has one content");
            } else {
                seen.insert(*block, (1, content));
            }
        }
    }
    for (block, (count, _)) in &seen {
        assert_eq!(pool.holders(*block) as usize, *count, "holders are counted");
    }
    assert_eq!(pool.held(), seen.len(), "every held block has an owner");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_keeps_the_books(actions in prop::collection::vec(action(), 1..120), blocks in 14..40usize) {
        let mut paper = Paper::new(blocks);
        let mut open: Vec<u64> = Vec::new();
        let mut next_id = 0;
        for action in actions {
            match action {
                Action::Add { prompt, generate, family, tier, salt } => {
                    next_id += 1;
                    let tokens: Vec<u32> = (0..prompt as u32).map(|t| family * 10_000 + t).collect();
                    let tier = [Tier::Priority, Tier::Default, Tier::Flex][tier];
                    paper.add(next_id, &tokens, generate, tier, salt);
                    open.push(next_id);
                }
                Action::Cancel(n) if !open.is_empty() => {
                    let id = open.swap_remove(n % open.len());
                    paper.scheduler.retain(|e| e.payload.id != id);
                    check_blocks(&paper);
                }
                Action::Cancel(_) => {}
                Action::Step { tokens, sequences, logit_rows } => {
                    let budget = Budget { sequences, tokens, logit_rows };
                    paper.plan(budget);
                    check_plan(&paper, budget);
                    let done = paper.apply();
                    open.retain(|id| !done.contains(id));
                }
            }
        }
        // Nobody starves: everything that is left finishes, in a bounded number of steps.
        let budget = Budget { sequences: 4, tokens: 16, logit_rows: 4 };
        for _ in 0..20_000 {
            if paper.scheduler.is_empty() {
                break;
            }
            paper.plan(budget);
            prop_assert!(!paper.plan.rows.is_empty(), "something waits and nothing can run");
            check_plan(&paper, budget);
            paper.apply();
        }
        prop_assert!(paper.scheduler.is_empty(), "a sequence starved");
        prop_assert_eq!(paper.scheduler.pool().borrow().held(), 0);
    }
}
