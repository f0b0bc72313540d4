// Sampling, a block a row of logits: as ops/cpu/pick.rs, step by step the same.
//
// Nothing is sorted. What is kept is found by counting into bins: first linear ones by distance from the largest
// entry, then the bytes of the keys within one of those. Masses are fixed-point numbers, so that sums do not
// depend on the order of additions and a draw is the same each time.
#include "rank.cuh"

constexpr u32 SAMPLE_THREADS = 512, SAMPLE_WARPS = SAMPLE_THREADS / WARP;
constexpr u32 NONE = ~0u;
constexpr u32 RESULT_WORDS = 44; // as in ops/sample.rs
constexpr u32 BINS = 256;
constexpr float BINS_PER_NAT = 8.0f;
constexpr float ONE = 1099511627776.0f; // 2^40

struct List {
  u32 begin, len;
};

struct Task {
  float temperature, top_p, ln_min_p, repetition_penalty, presence_penalty, frequency_penalty;
  u32 top_k, score, random[2];
  List seen, bias, banned;
  u32 mask, top;
};

__device__ inline bool adjusts(const Task &task) {
  return task.score == NONE && (task.seen.len > 0 || task.bias.len > 0 || task.banned.len > 0 || task.mask != NONE);
}

// adjusted[row] = logits[row] with penalties, bias, bans and mask, where the row has any.
KERNEL(sample_adjust, float *adjusted, const float *logits, const Task *tasks, const u32 *words, u32 vocab) {
  follow();
  const Task task = tasks[blockIdx.x];
  if (!adjusts(task)) return;
  const float *from = logits + size_t(blockIdx.x) * vocab;
  float *to = adjusted + size_t(blockIdx.x) * vocab;
  for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
    const bool allowed = task.mask == NONE || (words[task.mask + i / 32] >> i % 32 & 1);
    to[i] = allowed ? from[i] : -INFINITY;
  }
  __syncthreads();
  for (u32 n = threadIdx.x; n < task.seen.len; n += SAMPLE_THREADS) {
    const u32 token = words[task.seen.begin + 2 * n], count = words[task.seen.begin + 2 * n + 1];
    if (token >= vocab) continue;
    float x = to[token];
    x = x > 0.0f ? x / task.repetition_penalty : x * task.repetition_penalty;
    if (count > 0) x -= task.frequency_penalty * count + task.presence_penalty;
    to[token] = x;
  }
  __syncthreads();
  for (u32 n = threadIdx.x; n < task.bias.len; n += SAMPLE_THREADS) {
    const u32 token = words[task.bias.begin + 2 * n];
    if (token < vocab) to[token] += __uint_as_float(words[task.bias.begin + 2 * n + 1]);
  }
  __syncthreads();
  for (u32 n = threadIdx.x; n < task.banned.len; n += SAMPLE_THREADS) {
    const u32 token = words[task.banned.begin + n];
    if (token < vocab) to[token] = -INFINITY;
  }
}

// Which entries are kept: those with a larger key, and the first `quota` of those at it.
struct Cut {
  u32 key;
  u64 quota;
};

// What the threads of a block share.
struct Shared {
  u64 bins[BINS];
  u64 sums[SAMPLE_WARPS], ranks[SAMPLE_WARPS];
  u32 equals[SAMPLE_WARPS], flags[SAMPLE_WARPS];
  u64 above;
  u32 bin, token;
};
static_assert(sizeof(Shared) <= 8 * (BINS + 3 * SAMPLE_WARPS + 8), "as ops/sample.rs asks for");

__device__ inline u64 block_largest(u64 x, Shared &shared) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  x = warp_largest(x);
  if (lane == 0) shared.ranks[warp] = x;
  __syncthreads();
  u64 all = 0;
  for (u32 i = 0; i < SAMPLE_WARPS; ++i) all = larger(all, shared.ranks[i]);
  __syncthreads();
  return all;
}

// A row as a draw sees it.
struct Entries {
  const float *row;
  u32 vocab;
  float max, temperature;
  u32 best; // the most likely one

  __device__ u64 mass(float x) const {
    const float share = expf(fmaxf((x - max) / temperature, -87.0f));
    return u64(share * ONE);
  }
  __device__ u32 bin(float x) const { return u32(fminf((max - x) / temperature * BINS_PER_NAT, float(BINS - 1))); }
};

// By the first warp: the first bin with which `target` is reached, in shared.bin, and what lies before it in
// shared.above, on top of `above`. NONE when it is not reached. Bins count from the last down if so said.
__device__ inline void reach(Shared &shared, u64 target, u64 above, bool down) {
  if (threadIdx.x >= WARP) return;
  const u32 lane = threadIdx.x;
  constexpr u32 EACH = BINS / WARP;
  u64 sum = 0;
  for (u32 i = 0; i < EACH; ++i) sum += shared.bins[down ? BINS - 1 - (lane * EACH + i) : lane * EACH + i];
  u64 before = sum;
  for (u32 step = 1; step < WARP; step *= 2) {
    const u64 other = __shfl_up_sync(ALL_LANES, before, step);
    if (lane >= step) before += other;
  }
  before = before - sum + above;
  const bool here = before < target && before + sum >= target;
  const u32 votes = __ballot_sync(ALL_LANES, here);
  if (here)
    for (u32 i = 0; i < EACH; ++i) {
      const u32 bin = down ? BINS - 1 - (lane * EACH + i) : lane * EACH + i;
      if (before + shared.bins[bin] >= target) {
        shared.bin = bin;
        shared.above = before;
        break;
      }
      before += shared.bins[bin];
    }
  if (votes == 0 && lane == 0) shared.bin = NONE;
}

// The fewest of the largest entries of a cut whose weights reach `target`; the cut where they all do not.
template <typename Weight>
__device__ Cut narrow(const Entries &entries, Cut cut, u64 target, Shared &shared, Weight weight) {
  u32 found = 0, bin = NONE;
  u64 above = 0;
  // First the linear bins, then the four bytes of the keys in one of them.
  for (int shift = 32; shift >= 0; shift -= 8) {
    for (u32 i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) shared.bins[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < entries.vocab; i += SAMPLE_THREADS) {
      const float x = entries.row[i];
      const u32 key = key_of(x);
      if (key < cut.key) continue;
      const u32 own = entries.bin(x);
      if (shift == 32)
        atomicAdd(&shared.bins[own], weight(x));
      else if (own == bin && u64(key) >> (shift + 8) == found)
        atomicAdd(&shared.bins[key >> shift & 255], weight(x));
    }
    __syncthreads();
    reach(shared, target, above, shift < 32);
    __syncthreads();
    const u32 reached = shared.bin;
    above = shared.above;
    if (reached == NONE) return cut;
    if (shift == 32)
      bin = reached;
    else
      found = found << 8 | reached;
  }
  const u64 each = weight(of_key(found));
  u64 quota = (target - above + (each > 0 ? each - 1 : 0)) / (each > 0 ? each : 1);
  if (found == cut.key && cut.quota < quota) quota = cut.quota;
  return {found, quota};
}

// Each warp owns successive entries.
__device__ inline u32 segment(u32 vocab) { return (vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS * WARP; }

// Mass of what a cut keeps; by warp, and how many equals it has, in `shared`.
__device__ u64 total(const Entries &entries, Cut cut, Shared &shared) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, length = segment(entries.vocab);
  u64 sum = 0;
  u32 equals = 0;
  const u32 end = min((warp + 1) * length, entries.vocab);
  for (u32 i = warp * length + lane; i < end; i += WARP) {
    const float x = entries.row[i];
    const u32 key = key_of(x);
    if (key > cut.key) sum += entries.mass(x);
    equals += key == cut.key;
  }
  for (int step = WARP / 2; step > 0; step /= 2) {
    sum += __shfl_xor_sync(ALL_LANES, sum, step);
    equals += __shfl_xor_sync(ALL_LANES, equals, step);
  }
  if (lane == 0) {
    shared.sums[warp] = sum;
    shared.equals[warp] = equals;
  }
  __syncthreads();
  u64 all = 0, of_equals = 0;
  for (u32 i = 0; i < SAMPLE_WARPS; ++i) {
    all += shared.sums[i];
    of_equals += shared.equals[i];
  }
  return all + (of_equals < cut.quota ? of_equals : cut.quota) * entries.mass(of_key(cut.key));
}

// The entry of a cut at which the cumulative mass passes random / 2^64 of all.
__device__ u32 draw(const Task &task, const Entries &entries, Shared &shared) {
  if (entries.max == -INFINITY) return 0;
  const float lowest = -3.402823466e38f; // what is forbidden is -infinity
  Cut cut = {key_of(fmaxf(entries.max + task.temperature * task.ln_min_p, lowest)), ~0ull};
  if (task.top_k > 0) cut = narrow(entries, cut, task.top_k, shared, [](float) { return u64(1); });
  if (task.top_p < 1.0f) {
    const u64 target = u64(double(total(entries, cut, shared)) * double(task.top_p));
    cut = narrow(entries, cut, target > 0 ? target : 1, shared, [&](float x) { return entries.mass(x); });
  }
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u64 random = u64(task.random[0]) | u64(task.random[1]) << 32;
  u64 left = __umul64hi(random, total(entries, cut, shared));
  // The warp whose entries it falls among, and how many equals come before those.
  const u64 mass_of_equal = entries.mass(of_key(cut.key));
  u64 quota = cut.quota;
  u32 owner = 0;
  for (; owner < SAMPLE_WARPS - 1; ++owner) {
    const u64 equals = shared.equals[owner] < quota ? shared.equals[owner] : quota;
    const u64 mass = shared.sums[owner] + equals * mass_of_equal;
    if (left < mass) break;
    left -= mass;
    quota -= equals;
  }
  if (warp == owner) {
    const u32 length = segment(entries.vocab), begin = warp * length;
    u32 chosen = NONE;
    for (u32 first = begin; first < begin + length && chosen == NONE; first += WARP) {
      const u32 i = first + lane;
      const float x = i < entries.vocab ? entries.row[i] : -INFINITY;
      const u32 key = key_of(x);
      const u32 equals = __ballot_sync(ALL_LANES, key == cut.key);
      const bool kept = key > cut.key || (key == cut.key && u64(__popc(equals & ((1u << lane) - 1))) < quota);
      const u64 own = kept ? entries.mass(x) : 0;
      u64 reached = own;
      for (u32 step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_up_sync(ALL_LANES, reached, step);
        if (lane >= step) reached += other;
      }
      const u32 passed = __ballot_sync(ALL_LANES, reached > left);
      if (passed != 0) {
        chosen = first + __ffs(passed) - 1;
      } else {
        left -= __shfl_sync(ALL_LANES, reached, WARP - 1);
        const u64 taken = __popc(equals);
        quota -= taken < quota ? taken : quota;
      }
    }
    // Where no entry has a mass (an adjusted logit that is not finite), the most likely one.
    if (lane == 0) shared.token = chosen < entries.vocab ? chosen : entries.best;
  }
  __syncthreads();
  return shared.token;
}

// Log-probabilities of the token and of the most likely ones, under the raw logits.
__device__ void logprobs(u32 *out, const float *row, u32 vocab, float max, u32 token, u32 top, Shared &shared) {
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) sum += expf(row[i] - max);
  const float log_sum = logf(block_sum(sum, (float *)shared.flags));
  if (threadIdx.x == 0) out[2] = __float_as_uint(row[token] - max - log_sum);
  const u32 count = min(top, vocab);
  u64 last = ~0ull;
  for (u32 n = 0; n < count; ++n) {
    u64 best = 0;
    for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
      const u64 rank = rank_of(row[i], i);
      if (rank < last) best = larger(best, rank);
    }
    last = block_largest(best, shared);
    if (threadIdx.x == 0) {
      out[4 + 2 * n] = ~u32(last);
      out[5 + 2 * n] = __float_as_uint(of_key(u32(last >> 32)) - max - log_sum);
    }
  }
  if (threadIdx.x == 0) out[3] = count;
}

// results[row] = [token, whether the logits were finite, log-probability, alternatives, (token, log-probability)...].
KERNEL(sample_pick, u32 *results, const float *logits, const float *adjusted, const Task *tasks, const u32 *words,
       u32 vocab) {
  follow();
  Shared &shared_block = *(Shared *)shared();
  const Task task = tasks[blockIdx.x];
  const float *raw = logits + size_t(blockIdx.x) * vocab;
  const float *row = adjusts(task) ? adjusted + size_t(blockIdx.x) * vocab : raw;
  u32 *out = results + size_t(blockIdx.x) * RESULT_WORDS;
  u64 best = 0, best_raw = 0;
  for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
    const float x = raw[i];
    // Larger than the rank of any number.
    best_raw = larger(best_raw, isfinite(x) ? rank_of(x, i) : ~0ull);
    best = larger(best, rank_of(row[i], i));
  }
  best_raw = block_largest(best_raw, shared_block);
  best = block_largest(best, shared_block);
  const bool finite = best_raw != ~0ull;
  u32 token = ~u32(best);
  if (task.score != NONE) {
    token = task.score;
  } else if (finite && task.temperature > 0.0f) {
    const Entries entries = {row, vocab, of_key(u32(best >> 32)), task.temperature, ~u32(best)};
    token = draw(task, entries, shared_block);
  }
  if (threadIdx.x < 4) out[threadIdx.x] = finite && threadIdx.x == 0 ? token : finite && threadIdx.x == 1;
  if (finite && task.top != NONE)
    logprobs(out, raw, vocab, of_key(u32(best_raw >> 32)), token, task.top, shared_block);
}
