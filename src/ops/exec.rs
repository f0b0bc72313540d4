//! Who runs an operation: a pool of threads and, where there is a device with kernels, its launcher.

use std::sync::Arc;

use candle_core::{Device, Result, bail};

use super::launch::Launcher;
use super::pool::Pool;

/// What there is of CUDA.
pub mod cuda {
    use candle_core::{Result, bail};

    /// From this major capability on cards have programmatic dependent launch, and kernels wait as `follow` in
    /// device.cuh does.
    pub const DEPENDENT_CAPABILITY: i32 = 9;

    /// GPUs that this process may use.
    ///
    /// # Errors
    /// A build without CUDA, a driver that does not start.
    #[cfg(feature = "cuda")]
    pub fn count() -> Result<usize> {
        match cudarc::driver::CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(error) => bail!("CUDA's driver: {error:?}"),
        }
    }

    /// Bytes of a GPU that are free, and all.
    ///
    /// # Errors
    /// As [`count`].
    #[cfg(feature = "cuda")]
    pub fn memory(ordinal: usize) -> Result<(u64, u64)> {
        let context = cudarc::driver::CudaContext::new(ordinal).and_then(|c| c.mem_get_info());
        match context {
            Ok((free, total)) => Ok((free as u64, total as u64)),
            Err(error) => bail!("cuda:{ordinal}: {error:?}"),
        }
    }

    /// Whether a GPU has programmatic dependent launch.
    ///
    /// # Errors
    /// As [`count`].
    pub fn has_dependent_launch(ordinal: usize) -> Result<bool> {
        Ok(capability(ordinal)?.0 >= DEPENDENT_CAPABILITY)
    }

    /// A GPU's compute capability, major and minor; makes no context.
    ///
    /// # Errors
    /// As [`count`].
    #[cfg(feature = "cuda")]
    pub fn capability(ordinal: usize) -> Result<(i32, i32)> {
        use cudarc::driver::result::device;
        use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
        let read = || {
            cudarc::driver::result::init()?;
            let gpu = device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
            // SAFETY: the driver has just named this device.
            let of = |attribute| unsafe { device::get_attribute(gpu, attribute) };
            let major = of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            Ok((major, of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
        };
        read().or_else(|error: cudarc::driver::DriverError| bail!("cuda:{ordinal}: {error:?}"))
    }

    #[cfg(not(feature = "cuda"))]
    pub fn capability(_: usize) -> Result<(i32, i32)> {
        absent()
    }

    #[cfg(not(feature = "cuda"))]
    pub(super) fn absent<T>() -> Result<T> {
        bail!("this build has no CUDA (cargo build --features cuda)")
    }

    /// A GPU's UUID as NVML writes it.
    ///
    /// # Errors
    /// As [`count`].
    #[cfg(feature = "cuda")]
    pub fn uuid(ordinal: usize) -> Result<String> {
        match cudarc::driver::CudaContext::new(ordinal).and_then(|c| c.uuid()) {
            Ok(uuid) => Ok(super::uuid_text(uuid.bytes.map(|b| b as u8))),
            Err(error) => bail!("cuda:{ordinal}: {error:?}"),
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub fn uuid(_: usize) -> Result<String> {
        absent()
    }

    #[cfg(not(feature = "cuda"))]
    pub fn count() -> Result<usize> {
        absent()
    }

    #[cfg(not(feature = "cuda"))]
    pub fn memory(_: usize) -> Result<(u64, u64)> {
        absent()
    }
}

/// Sixteen bytes as "GPU-8-4-4-4-12" hexadecimal digits.
#[cfg(any(feature = "cuda", test))]
fn uuid_text(bytes: [u8; 16]) -> String {
    let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let [a, b, c, d] = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20]];
    format!("GPU-{a}-{b}-{c}-{d}-{}", &digits[20..])
}

/// One device's means. Cheap to clone.
#[derive(Clone)]
pub struct Exec {
    pub pool: Arc<Pool>,
    /// Operations that have a kernel are launched here.
    pub launcher: Option<Arc<dyn Launcher>>,
    /// Where tensors lie.
    pub device: Device,
    /// Operations by kernels give a row the same bits whatever step it is in, prompt or not. (The CPU's do always.)
    pub batch_invariant: bool,
}

impl From<Arc<Pool>> for Exec {
    fn from(pool: Arc<Pool>) -> Exec {
        Exec { pool, launcher: None, device: Device::Cpu, batch_invariant: false }
    }
}

impl Exec {
    /// The processor, with so many threads.
    pub fn cpu(threads: usize) -> Exec {
        Arc::new(Pool::new(threads)).into()
    }

    /// A CUDA device by its number, with a pool for what is left to the host. `dependent`: a kernel's blocks start
    /// before the kernel in front of it has ended (programmatic dependent launch).
    ///
    /// # Errors
    /// A build without CUDA, no such device, one that has no such launches, a driver that does not take the kernels.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize, pool: Arc<Pool>, dependent: bool) -> Result<Exec> {
        let device = candle_core::CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: all tensors of this device are made and used on its one stream.
        unsafe { device.disable_event_tracking() };
        let launcher = Arc::new(super::cuda::Driver::new(&device, dependent)?);
        Ok(Exec { pool, launcher: Some(launcher), device: Device::Cuda(device), batch_invariant: false })
    }

    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_: usize, _: Arc<Pool>, _: bool) -> Result<Exec> {
        cuda::absent()
    }

    /// What launches this operation's kernel.
    ///
    /// # Errors
    /// A tensor on a device and no launcher for it.
    pub fn launcher(&self, operation: &str) -> Result<&dyn Launcher> {
        match &self.launcher {
            Some(launcher) => Ok(&**launcher),
            None => bail!("{operation}: a tensor on a device that nothing here launches kernels on"),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_is_written_as_nvml_does() {
        let bytes = std::array::from_fn(|i| (i * 17) as u8);
        assert_eq!(super::uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
