//! How a cache lies in memory, for attention: numbers that kernels read where they are, or rows of Q8, of which a tile
//! at a time is made into f32 first.
//!
//! What is made of a row depends on that row alone, so a Q8 cache is, to every kernel, the f32 cache of the numbers
//! that its rows stand for: the same bits come out.

use std::mem::MaybeUninit;

use super::Isa;
use super::attention::{BLOCK, CacheElement, MAX_HEAD_DIM, TILE};
use super::q8::{self, SCALE_BYTES};

/// A layer's cache as it is stored, `[blocks, 2, kv_heads, BLOCK, width]`.
pub trait Cache: Copy + Send + Sync {
    type Element: CacheElement;
    /// Where a tile's keys or values are made into what kernels read; nothing where they are stored as that.
    type Room;

    /// The n-th `[BLOCK, dim]` of all, made in the b-th part of the room if it is to be made.
    ///
    /// # Safety
    /// The machine has `isa`; the room is one, of which this part is no longer read; dim is at most
    /// [`MAX_HEAD_DIM`] and b below `TILE_BLOCKS`.
    unsafe fn read(
        self,
        isa: Isa,
        n: usize,
        dim: usize,
        room: *mut Self::Room,
        b: usize,
    ) -> *const Self::Element;

    /// What is worth fetching before it is read; null where nothing is.
    fn ahead(self, n: usize, dim: usize) -> *const Self::Element;
}

impl<T: CacheElement> Cache for &[T] {
    type Element = T;
    type Room = ();

    unsafe fn read(self, _isa: Isa, n: usize, dim: usize, _room: *mut (), _b: usize) -> *const T {
        self.ahead(n, dim)
    }

    fn ahead(self, n: usize, dim: usize) -> *const T {
        let size = BLOCK * dim;
        self[n * size..(n + 1) * size].as_ptr()
    }
}

/// Rows of `ops::cpu::q8`, each with its scale.
#[derive(Clone, Copy)]
pub struct Q8<'a>(pub &'a [u8]);

impl Cache for Q8<'_> {
    type Element = f32;
    type Room = [MaybeUninit<f32>; TILE * MAX_HEAD_DIM];

    unsafe fn read(self, isa: Isa, n: usize, dim: usize, room: *mut Self::Room, b: usize) -> *const f32 {
        let width = dim + SCALE_BYTES;
        let rows = &self.0[n * BLOCK * width..(n + 1) * BLOCK * width];
        // SAFETY: the b-th of a tile's blocks has its part of the room, which is large enough for the largest heads, and
        // nobody reads it now.
        let to = unsafe {
            let part = room.cast::<MaybeUninit<f32>>().add(b * BLOCK * dim);
            std::slice::from_raw_parts_mut(part, BLOCK * dim)
        };
        for (row, to) in rows.chunks_exact(width).zip(to.chunks_exact_mut(dim)) {
            // SAFETY: the caller's machine has the instruction set.
            unsafe { q8::widen(isa, row, to) }
        }
        to.as_ptr().cast()
    }

    /// Rows follow each other, a block is a page or so: what the hardware foresees will do.
    fn ahead(self, _n: usize, _dim: usize) -> *const f32 {
        std::ptr::null()
    }
}
