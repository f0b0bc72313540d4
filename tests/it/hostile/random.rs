//! Numbers that look random, from a seed.

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `most`; 0 where that is none.
    pub fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A number that is at the edge of something.
    pub fn edge(&mut self) -> u64 {
        let near = [0, 1, 2, 4, 7, 8, 15, 31, 32, 64, 255, 256, 1023, 1 << 12, 1 << 16, 1 << 24];
        let far =
            [i32::MAX as u64, u64::from(u32::MAX), 1 << 40, 1 << 60, 1 << 62, i64::MAX as u64, u64::MAX];
        let all = if self.below(3) == 0 { &far[..] } else { &near[..] };
        self.pick(all).wrapping_add([0, 0, 1, u64::MAX][self.below(4)])
    }
}
