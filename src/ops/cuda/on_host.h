// CUDA's words for a C++ compiler, to run a kernel's unchanged source without a device.
//
// A block's threads are fibers on one host thread. Between two barriers each runs alone, in an order shuffled
// anew each time, so that a missing __syncthreads or an exchange within a warp that not all lanes reach shows
// as a wrong result or as "stuck". Blocks run one after another, in shuffled order, on shared memory full of
// NaN. This shows a kernel's logic; it knows nothing of memory models, alignment or speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ucontext.h>

using std::isfinite;
using std::max;
using std::min;

#define __device__
#define __forceinline__ inline
#define __restrict__

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Elements: rounded to nearest, ties to even, as the device does.
typedef _Float16 f16;
struct bf16 {
  uint16_t bits;
};
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float widen(f16 x) { return float(x); }
template <typename T> T narrow(float x);
template <> inline f16 narrow<f16>(float x) { return f16(x); }
template <> inline bf16 narrow<bf16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace on_host {

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES = 228 << 10;

enum class Waits { No, ForBlock, ForWarp, Done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  unsigned exchanges; // of its warp, so far
  Index thread;
};

// What lanes hand each other; two sets in turn, so that a fast lane does not overwrite what a slow one reads.
struct Exchange {
  unsigned arrived[2] = {0, 0};
  uint32_t values[2][LANES];
};

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Exchange> warps;
  Fiber *running = nullptr;
  const std::function<void()> *body = nullptr;
  Index block, grid, threads;
  alignas(64) char shared[SHARED_BYTES];
  std::mt19937 random{12345};

  void wait(Waits waits) {
    running->waits = waits;
    swapcontext(&running->context, &scheduler);
  }

  static void enter();

  void run_block(unsigned count) {
    if (fibers.size() < count) fibers.resize(count);
    warps.assign((count + LANES - 1) / LANES, Exchange());
    memset(shared, 0xff, sizeof shared);
    for (unsigned i = 0; i < count; ++i) {
      Fiber &fiber = fibers[i];
      fiber.stack.resize(STACK_BYTES);
      fiber.waits = Waits::No;
      fiber.exchanges = 0;
      fiber.thread = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, (void (*)())enter, 0);
    }
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = i;
    for (;;) {
      std::shuffle(order.begin(), order.end(), random);
      bool ran = false;
      for (unsigned i : order)
        if (fibers[i].waits == Waits::No) {
          ran = true;
          running = &fibers[i];
          swapcontext(&scheduler, &running->context);
        }
      if (ran) continue;
      unsigned done = 0, at_barrier = 0;
      for (unsigned i = 0; i < count; ++i) {
        done += fibers[i].waits == Waits::Done;
        at_barrier += fibers[i].waits == Waits::ForBlock;
      }
      if (done == count) return;
      if (done + at_barrier == count) {
        for (unsigned i = 0; i < count; ++i)
          if (fibers[i].waits == Waits::ForBlock) fibers[i].waits = Waits::No;
        continue;
      }
      fprintf(stderr, "on_host: block (%u, %u) is stuck: lanes wait for others that do not come\n", block.x, block.y);
      abort();
    }
  }

  // Hands over a value and waits until every lane of the warp has done so; the set of values it went to.
  unsigned exchange(unsigned mask, uint32_t value) {
    if (mask != 0xffffffffu) {
      fprintf(stderr, "on_host: exchanges of some lanes only are not known here\n");
      abort();
    }
    const unsigned flat = running - fibers.data(), lane = flat % LANES;
    Exchange &warp = warps[flat / LANES];
    const unsigned set = running->exchanges++ % 2;
    warp.values[set][lane] = value;
    warp.arrived[set] |= 1u << lane;
    if ((warp.arrived[set] & mask) == mask) {
      warp.arrived[set] = 0;
      for (unsigned i = flat - lane; i < std::min<size_t>(fibers.size(), flat - lane + LANES); ++i)
        if (fibers[i].waits == Waits::ForWarp) fibers[i].waits = Waits::No;
    } else {
      wait(Waits::ForWarp);
    }
    return set;
  }

  uint32_t value_of(unsigned set, unsigned lane) const {
    return warps[(running - fibers.data()) / LANES].values[set][lane % LANES];
  }
};

inline Machine &machine() {
  static thread_local Machine *one = new Machine();
  return *one;
}

inline void Machine::enter() {
  Machine &self = machine();
  (*self.body)();
  self.running->waits = Waits::Done;
  swapcontext(&self.running->context, &self.scheduler);
}

using Entry = std::function<void(void **)>;
inline std::map<std::string, Entry> &entries() {
  static std::map<std::string, Entry> all;
  return all;
}

template <typename... A, size_t... I> Entry entry(void (*kernel)(A...), std::index_sequence<I...>) {
  return [kernel](void **arguments) { kernel(*(A *)arguments[I]...); };
}
template <typename... A> bool add(const char *name, void (*kernel)(A...)) {
  entries()[name] = entry(kernel, std::index_sequence_for<A...>());
  return true;
}

} // namespace on_host

#define threadIdx (on_host::machine().running->thread)
#define blockIdx (on_host::machine().block)
#define blockDim (on_host::machine().threads)
#define gridDim (on_host::machine().grid)
inline char *shared() { return on_host::machine().shared; }
inline void __syncthreads() { on_host::machine().wait(on_host::Waits::ForBlock); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { on_host::machine().exchange(mask, 0); }
namespace on_host {
// The value of another lane, word by word. `from` tells the lane to read from, by the reader's own.
template <typename T, typename From> T shuffle(unsigned mask, T x, From from) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &x, sizeof x);
  Machine &m = machine();
  const unsigned lane = (m.running - m.fibers.data()) % LANES;
  for (uint32_t &word : words) {
    const unsigned set = m.exchange(mask, word);
    word = m.value_of(set, from(lane));
  }
  memcpy(&x, words, sizeof x);
  return x;
}
} // namespace on_host
template <typename T> T __shfl_xor_sync(unsigned mask, T x, int with) {
  return on_host::shuffle(mask, x, [=](unsigned lane) { return lane ^ with; });
}
template <typename T> T __shfl_sync(unsigned mask, T x, unsigned from) {
  return on_host::shuffle(mask, x, [=](unsigned) { return from; });
}
template <typename T> T __shfl_up_sync(unsigned mask, T x, unsigned by) {
  return on_host::shuffle(mask, x, [=](unsigned lane) { return lane < by ? lane : lane - by; });
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
  on_host::Machine &m = on_host::machine();
  const unsigned set = m.exchange(mask, yes != 0);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < on_host::LANES; ++lane) votes |= m.value_of(set, lane) << lane;
  return votes;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
// Fibers run one at a time, and give way at exchanges and barriers alone.
template <typename T> T atomicAdd(T *place, T x) {
  const T before = *place;
  *place = before + x;
  return before;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

#define KERNEL(name, ...)                                                                                             \
  void name(__VA_ARGS__);                                                                                             \
  static const bool name##_is_known = on_host::add(#name, name);                                                      \
  void name(__VA_ARGS__)

// As cuLaunchKernel; 1 where there is no such kernel, 2 where it asks for more than a device has.
extern "C" inline int launch_on_host(const char *name, const unsigned *grid, const unsigned *block, unsigned shared_bytes,
                                     void **arguments) {
  using namespace on_host;
  auto found = entries().find(name);
  if (found == entries().end()) return 1;
  if (shared_bytes > SHARED_BYTES || block[0] * block[1] * block[2] > 1024) return 2;
  Machine &m = machine();
  m.grid = {grid[0], grid[1], grid[2]};
  m.threads = {block[0], block[1], block[2]};
  const std::function<void()> body = [&] { found->second(arguments); };
  m.body = &body;
  std::vector<Index> blocks;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) blocks.push_back({x, y, z});
  std::shuffle(blocks.begin(), blocks.end(), m.random);
  for (Index block_index : blocks) {
    m.block = block_index;
    m.run_block(block[0] * block[1] * block[2]);
  }
  return 0;
}
