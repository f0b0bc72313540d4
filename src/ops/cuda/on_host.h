// CUDA's words for a C++ compiler, to run a kernel's unchanged source without a device.
//
// A block's threads are fibers on one host thread. Between two barriers each runs alone, in an order shuffled
// anew each time, so that a missing __syncthreads or an exchange within a warp that not all lanes reach shows
// as a wrong result or as "stuck". A few blocks are under way at once, begun in shuffled order, on shared memory
// full of NaN, and now and then a warp falls far behind, so that what blocks tell each other is tried as well.
// This shows a kernel's logic; it knows nothing of memory models or speed.
#pragma once
#undef _FORTIFY_SOURCE // its longjmp knows one stack only

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <setjmp.h>
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
struct fp8 { // e4m3: 4 bits of exponent, 3 of mantissa, NaN at 0x7f and 0xff, no infinity
  uint8_t bits;
};
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float widen(f16 x) { return float(x); }
inline float widen(fp8 x) {
  const int exponent = x.bits >> 3 & 15, mantissa = x.bits & 7;
  const float value = exponent == 15 && mantissa == 7 ? NAN
                      : exponent == 0                 ? ldexpf(mantissa, -9)
                                                      : ldexpf(8 + mantissa, exponent - 10);
  return x.bits & 0x80 ? -value : value;
}
template <typename T> T narrow(float x);
template <> inline f16 narrow<f16>(float x) { return f16(x); }
template <> inline bf16 narrow<bf16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline fp8 narrow<fp8>(float x) {
  if (x != x) return {0x7f};
  const float magnitude = std::min(fabsf(x), 448.0f);
  int exponent;
  frexpf(magnitude, &exponent);
  // Numbers lie this far apart here; nearbyint rounds ties to even.
  const float apart = ldexpf(1.0f, max(exponent - 4, -9));
  const float rounded = nearbyintf(magnitude / apart) * apart;
  uint8_t bits = 0;
  while (bits < 0x7e && widen(fp8{bits}) < rounded) ++bits;
  return {uint8_t(bits | (std::signbit(x) ? 0x80 : 0))};
}

namespace on_host {

constexpr unsigned LANES = 32;
constexpr uint32_t ALL = 0xffffffffu;
constexpr unsigned WORDS = 6; // that a lane hands over at once, at most
constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned AT_ONCE = 3; // blocks under way
constexpr size_t SHARED_BYTES = 228 << 10;

[[noreturn]] inline void stop(const char *why) {
  fprintf(stderr, "on_host: %s\n", why);
  abort();
}

// Sixteen bytes that a thread started to copy, from null to be zeroed, or the end of a group of these.
struct Copy {
  void *to;
  const void *from;
  bool closes;
};

enum class Waits { No, ForBlock, ForWarp, Done };

struct Block;

struct Fiber {
  Block *block;
  unsigned flat; // its number in the block
  Index thread;
  Waits waits;
  unsigned behind;           // turns that it lets pass
  unsigned exchanges;        // of its warp, so far
  bool follows;              // it has called follow()
  std::vector<Copy> copies;  // under way
  std::unique_ptr<char[]> stack;
  jmp_buf place;

  void copy_all_but(unsigned groups) {
    size_t end = copies.size();
    for (unsigned seen = 0; end > 0; --end)
      if (copies[end - 1].closes && seen++ == groups) break;
    for (size_t i = 0; i < end; ++i)
      if (!copies[i].closes) copies[i].from ? memcpy(copies[i].to, copies[i].from, 16) : memset(copies[i].to, 0, 16);
    copies.erase(copies.begin(), copies.begin() + end);
  }
};

// What lanes hand each other; two sets in turn, so that a fast lane does not overwrite what a slow one reads.
struct Exchange {
  unsigned arrived[2] = {0, 0};
  uint32_t values[2][LANES][WORDS];
};

struct Block {
  Index index;
  unsigned count = 0; // threads; 0 while there is no block here
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Exchange> warps;
  alignas(64) char shared[SHARED_BYTES];
};

struct Machine {
  jmp_buf scheduler;
  ucontext_t begin;
  Block blocks[AT_ONCE];
  Fiber *running = nullptr;
  const std::function<void()> *body = nullptr;
  Index grid, threads;
  std::mt19937 random{12345};

  void wait(Waits waits) {
    running->waits = waits;
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
  }

  static void enter();

  // Runs a fiber until it waits.
  void resume(Fiber &fiber) {
    running = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.stack) _longjmp(fiber.place, 1);
    fiber.stack.reset(new char[STACK_BYTES]);
    getcontext(&begin);
    begin.uc_stack.ss_sp = fiber.stack.get();
    begin.uc_stack.ss_size = STACK_BYTES;
    begin.uc_link = nullptr;
    makecontext(&begin, (void (*)())enter, 0);
    setcontext(&begin);
  }

  void start(Block &block, Index index, unsigned count, unsigned shared_bytes) {
    block.index = index;
    block.count = count;
    block.warps.assign((count + LANES - 1) / LANES, Exchange());
    memset(block.shared, 0xff, shared_bytes);
    while (block.fibers.size() < count) block.fibers.emplace_back(new Fiber());
    for (unsigned i = 0; i < count; ++i) {
      Fiber &fiber = *block.fibers[i];
      fiber.block = &block;
      fiber.flat = i;
      fiber.thread = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
      fiber.waits = Waits::No;
      fiber.behind = fiber.exchanges = 0;
      fiber.follows = false;
      fiber.copies.clear();
    }
  }

  // Lets a block go on whose threads all wait at its barrier, or ends it.
  void at_barrier(Block &block) {
    unsigned done = 0, waiting = 0;
    for (unsigned i = 0; i < block.count; ++i) {
      done += block.fibers[i]->waits == Waits::Done;
      waiting += block.fibers[i]->waits == Waits::ForBlock;
    }
    if (done + waiting < block.count) return;
    if (waiting == 0) {
      block.count = 0;
      return;
    }
    for (unsigned i = 0, behind = 0; i < block.count; ++i) {
      // A little, or by as much as another block takes from its beginning to its end.
      if (i % LANES == 0) behind = random() % 128 == 0 ? 300 : random() % 16 == 0 ? 24 : 0;
      Fiber &fiber = *block.fibers[i];
      fiber.behind = behind;
      if (fiber.waits == Waits::ForBlock) fiber.waits = Waits::No;
    }
  }

  void run(const std::vector<Index> &all, unsigned count, unsigned shared_bytes) {
    size_t next = 0;
    std::vector<Fiber *> order;
    bool changed = true;
    for (;;) {
      bool under_way = false, ran = false;
      for (Block &block : blocks) {
        if (block.count != 0) at_barrier(block);
        if (block.count == 0 && next < all.size()) {
          start(block, all[next++], count, shared_bytes);
          changed = true;
        }
        under_way |= block.count != 0;
      }
      if (!under_way) return;
      if (changed) {
        order.clear();
        for (Block &block : blocks)
          for (unsigned i = 0; i < block.count; ++i) order.push_back(block.fibers[i].get());
        changed = false;
      }
      std::shuffle(order.begin(), order.end(), random);
      for (Fiber *fiber : order)
        if (fiber->waits == Waits::No) {
          ran = true;
          if (fiber->behind > 0) --fiber->behind;
          else resume(*fiber);
        }
      if (!ran) stop("a block is stuck: lanes wait for others that do not come");
    }
  }

  unsigned lane() const { return running->flat % LANES; }

  // Hands over some words and waits until every lane of the warp has done so; the set of values they went to.
  unsigned exchange(unsigned mask, const uint32_t *words, unsigned count) {
    if (mask != ALL) stop("exchanges of some lanes only are not known here");
    Block &block = *running->block;
    const unsigned first = running->flat / LANES * LANES;
    Exchange &warp = block.warps[first / LANES];
    const unsigned set = running->exchanges++ % 2;
    memcpy(warp.values[set][lane()], words, count * sizeof *words);
    warp.arrived[set] |= 1u << lane();
    if (warp.arrived[set] == ALL) {
      warp.arrived[set] = 0;
      for (unsigned i = first; i < first + LANES; ++i)
        if (block.fibers[i]->waits == Waits::ForWarp) block.fibers[i]->waits = Waits::No;
    } else {
      wait(Waits::ForWarp);
    }
    return set;
  }
  unsigned exchange(unsigned mask, uint32_t value) { return exchange(mask, &value, 1); }

  const uint32_t *values_of(unsigned set, unsigned lane) const {
    return running->block->warps[running->flat / LANES].values[set][lane % LANES];
  }
};

inline Machine &machine() {
  static thread_local Machine *one = new Machine();
  return *one;
}

inline void Machine::enter() {
  // A fiber is kept for the blocks that follow.
  for (Machine &self = machine();;) {
    (*self.body)();
    if (!self.running->follows) stop("a kernel does not begin with follow()");
    self.wait(Waits::Done);
  }
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
#define blockIdx (on_host::machine().running->block->index)
#define blockDim (on_host::machine().threads)
#define gridDim (on_host::machine().grid)
inline char *shared() { return on_host::machine().running->block->shared; }
inline void __syncthreads() { on_host::machine().wait(on_host::Waits::ForBlock); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { on_host::machine().exchange(mask, 0); }
namespace on_host {
// The value of another lane. `from` tells the lane to read from, by the reader's own.
template <typename T, typename From> T shuffle(unsigned mask, T x, From from) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &x, sizeof x);
  Machine &m = machine();
  const unsigned set = m.exchange(mask, words, sizeof(T) / 4);
  memcpy(&x, m.values_of(set, from(m.lane())), sizeof x);
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
  for (unsigned lane = 0; lane < on_host::LANES; ++lane) votes |= *m.values_of(set, lane) << lane;
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
inline void __threadfence() {} // memory is one here
inline void prefetch(const void *) {}
inline void follow() { on_host::machine().running->follows = true; } // launches follow each other here
inline float quick_exp2(float x) { return exp2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

#define KERNEL(name, ...)                                                                                             \
  void name(__VA_ARGS__);                                                                                             \
  static const bool name##_is_known = on_host::add(#name, name);                                                      \
  void name(__VA_ARGS__)
#define BOUNDED_KERNEL(threads, blocks, name, ...) KERNEL(name, __VA_ARGS__)

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
  m.run(blocks, block[0] * block[1] * block[2], shared_bytes);
  return 0;
}
