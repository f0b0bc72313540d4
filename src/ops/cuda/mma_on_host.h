// mma.cuh for a C++ compiler: what lanes hand each other goes through on_host.h's exchange, one for each
// instruction; a copy that was started happens when its thread awaits it, and not before.
#pragma once

inline void load_rows(u32 (&to)[4], const void *row, bool transposed) {
  on_host::Machine &m = on_host::machine();
  uint32_t words[2];
  memcpy(words, &row, sizeof row);
  const unsigned lane = m.lane(), set = m.exchange(on_host::ALL, words, 2);
  for (unsigned i = 0; i < 4; ++i) {
    uint16_t two[2];
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned r = transposed ? 2 * (lane % 4) + e : lane / 4, c = transposed ? lane / 4 : 2 * (lane % 4) + e;
      const char *begin;
      memcpy(&begin, m.values_of(set, 8 * i + r), sizeof begin);
      if (uintptr_t(begin) % 16 != 0) on_host::stop("a row of a matrix does not begin at 16 bytes");
      memcpy(&two[e], begin + 2 * c, sizeof two[e]);
    }
    memcpy(&to[i], two, sizeof two);
  }
}
inline void load_matrices(u32 (&to)[4], const void *row) { load_rows(to, row, false); }
inline void load_matrices_transposed(u32 (&to)[4], const void *row) { load_rows(to, row, true); }

template <typename T> inline float element_of(const uint32_t *words, unsigned index) {
  T element;
  memcpy(&element, (const char *)words + index * sizeof element, sizeof element);
  return widen(element);
}

template <typename T> inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  on_host::Machine &m = on_host::machine();
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned lane = m.lane(), set = m.exchange(on_host::ALL, words, 6);
  for (unsigned k = 0; k < 16; ++k)
    for (unsigned n = 0; n < 4; ++n) {
      const unsigned row = lane / 4 + n / 2 * 8, column = 2 * (lane % 4) + n % 2;
      // Register of A: rows from 8 on are the second of two, columns from 8 on the second two.
      const unsigned at = (row / 8 + k / 8 * 2) * 2 + k % 2, bt = (4 + k / 8) * 2 + k % 2;
      c[n] += element_of<T>(m.values_of(set, row % 8 * 4 + k % 8 / 2), at) *
              element_of<T>(m.values_of(set, column * 4 + k % 8 / 2), bt);
    }
}

template <typename T> inline u32 pack(float first, float second) {
  const T both[2] = {narrow<T>(first), narrow<T>(second)};
  u32 word;
  memcpy(&word, both, sizeof word);
  return word;
}

inline void copy_ahead(void *to, const void *from, bool there) {
  if (uintptr_t(to) % 16 != 0 || uintptr_t(from) % 16 != 0) on_host::stop("a copy is not aligned to 16 bytes");
  on_host::machine().running->copies.push_back({to, there ? from : nullptr, false});
}
inline void close_copies() { on_host::machine().running->copies.push_back({nullptr, nullptr, true}); }
template <u32 GROUPS> inline void await_copies() { on_host::machine().running->copy_all_but(GROUPS); }
