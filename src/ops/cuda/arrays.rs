//! Small arrays between host and device, without waiting: a step's go over, its results come back.
//!
//! The host's side is pinned, so that copies run beside it; an array is written while the copy before it may
//! still be under way, so the memory is taken in turn.

use std::sync::Arc;

use candle_core::{Result, bail};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use super::driver;

/// Copies that may be under way.
const TURNS: usize = 3;
/// Words at first: a decode step of some hundred sequences.
const FIRST_WORDS: usize = 1 << 16;

/// Memory of the host that the device copies from or to, and when it is through with it.
struct Pinned {
    words: PinnedHostSlice<u32>,
    done: CudaEvent,
}

impl Pinned {
    fn new(stream: &Arc<CudaStream>, words: usize) -> Result<Pinned> {
        let (context, bytes) = (stream.context(), 4 * words);
        // SAFETY: nothing is read before it is written.
        let words = unsafe { context.alloc_pinned_with_flags::<u32>(words, 0) };
        let words = words.map_err(driver(&format!("{bytes} bytes of pinned memory")))?;
        let done = context.new_event(None).map_err(driver("an event"))?;
        Ok(Pinned { words, done })
    }

    fn pointer(&mut self) -> Result<*mut u32> {
        self.words.as_mut_ptr().map_err(driver("pinned memory"))
    }
}

/// Arrays on their way to the device.
#[derive(Default)]
pub struct Arrays {
    host: Vec<Pinned>,
    turn: usize,
    device: Option<CudaSlice<u32>>,
}

impl Arrays {
    /// As [`crate::ops::launch::Launcher::mirror`].
    pub fn put(&mut self, stream: &Arc<CudaStream>, arrays: &[&[u32]], addresses: &mut [u64]) -> Result<()> {
        let length: usize = arrays.iter().map(|a| a.len()).sum();
        if self.device.as_ref().is_none_or(|d| d.len() < length) {
            self.grow(stream, length.max(FIRST_WORDS).next_power_of_two())?;
        }
        let Some(device) = &self.device else { bail!("no memory for a step's arrays") };
        self.turn = (self.turn + 1) % TURNS;
        let host = &mut self.host[self.turn];
        host.done.synchronize().map_err(driver("a step's arrays"))?;
        let (start, _guard) = device.device_ptr(stream);
        let pointer = host.pointer()?;
        let mut at = 0;
        for (array, to) in arrays.iter().zip(addresses) {
            // SAFETY: the pinned memory holds all arrays one after another, as `grow` made it, and the device is
            // through with it.
            unsafe { std::ptr::copy_nonoverlapping(array.as_ptr(), pointer.add(at), array.len()) };
            *to = start + 4 * at as u64;
            at += array.len();
        }
        if length > 0 {
            // SAFETY: both sides hold `length` words; the host's is not written again before `done`.
            unsafe {
                let all = std::slice::from_raw_parts(pointer, length);
                result::memcpy_htod_async(start, all, stream.cu_stream())
                    .map_err(driver("a step's arrays"))?;
            }
        }
        host.done.record(stream).map_err(driver("a step's arrays"))
    }

    fn grow(&mut self, stream: &Arc<CudaStream>, words: usize) -> Result<()> {
        // What was launched may still read the old memory.
        stream.synchronize().map_err(driver("the device"))?;
        self.host = (0..TURNS).map(|_| Pinned::new(stream, words)).collect::<Result<_>>()?;
        // SAFETY: written before anything reads it.
        let device = unsafe { stream.alloc::<u32>(words) };
        self.device = Some(device.map_err(driver(&format!("{} bytes for a step's arrays", 4 * words)))?);
        Ok(())
    }
}

/// Results on their way to the host, one copy at a time.
#[derive(Default)]
pub struct Results {
    host: Option<Pinned>,
    under_way: usize,
}

impl Results {
    /// # Safety
    /// As [`crate::ops::launch::Launcher::fetch`].
    pub unsafe fn fetch(&mut self, stream: &Arc<CudaStream>, from: u64, words: usize) -> Result<()> {
        if self.host.as_ref().is_none_or(|h| h.words.len() < words) {
            self.host = Some(Pinned::new(stream, words.max(FIRST_WORDS).next_power_of_two())?);
        }
        let Some(host) = &mut self.host else { bail!("no memory for results") };
        let pointer = host.pointer()?;
        // A step without samples is waited for all the same.
        if words > 0 {
            // SAFETY: the caller's promise about `from`; the host's memory is large enough, and is read after `done`.
            unsafe {
                let to = std::slice::from_raw_parts_mut(pointer, words);
                result::memcpy_dtoh_async(to, from, stream.cu_stream()).map_err(driver("results"))?;
            }
        }
        self.under_way = words;
        host.done.record(stream).map_err(driver("results"))
    }

    /// As [`crate::ops::launch::Launcher::collect`].
    pub fn collect(&mut self, to: &mut [u32]) -> Result<()> {
        let Some(host) = self.host.as_mut().filter(|_| self.under_way >= to.len()) else {
            bail!("{} words of results were not asked for", to.len())
        };
        host.done.synchronize().map_err(driver("the device"))?;
        let pointer = host.pointer()?;
        // SAFETY: so many words were copied there, and the device is through.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(pointer, to.len()) });
        Ok(())
    }
}
