//! Products of matrices by cuBLASLt: `[rows, k]` times `[n, k]` transposed, accumulated in f32.
//!
//! cuBLASLt counts by columns, so it is asked for the transposed result: n × rows. What it finds fastest for
//! a shape is asked for once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, bail};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::ops::launch::Product;

/// What cuBLASLt may use beside the matrices; Hopper's kernels ask for most.
const WORKSPACE_BYTES: usize = 32 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    n: usize,
    k: usize,
    dst_stride: usize,
    dtype: DType,
    accumulate: bool,
    bias: bool,
    /// Bytes that the addresses of weight, source and destination are multiples of: an algorithm may want more.
    alignments: [u32; 3],
}

/// What an address is a multiple of, of what cuBLASLt asks for.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

struct Prepared {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    src: sys::cublasLtMatrixLayout_t,
    dst: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// A handle with its workspace and the shapes it has met.
pub struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    prepared: Mutex<HashMap<Key, Prepared>>,
    /// For weights that are dequantised; grows to the largest matrix.
    room: Mutex<Option<CudaSlice<u8>>>,
}

fn cublas(what: &'static str) -> impl Fn(CublasError) -> candle_core::Error {
    move |e| candle_core::Error::Msg(format!("{what}: {e}")).bt()
}

fn element(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        other => bail!("no product of {other:?}"),
    })
}

impl Products {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Products> {
        // SAFETY: only cuBLASLt writes it before it reads it.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) };
        let workspace = workspace
            .map_err(|e| candle_core::Error::Msg(format!("{WORKSPACE_BYTES} bytes for cuBLASLt: {e:?}")))?;
        let handle = result::create_handle().map_err(cublas("cuBLASLt"))?;
        Ok(Products { handle, workspace, prepared: Mutex::default(), room: Mutex::default() })
    }

    /// The address of so many bytes, used by one product at a time.
    ///
    /// # Errors
    /// A device without so much memory.
    pub fn room(&self, bytes: usize, stream: &Arc<CudaStream>) -> Result<u64> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.as_ref().is_none_or(|r| r.len() < bytes) {
            // SAFETY: a kernel writes it before a product reads it.
            let larger = unsafe { stream.alloc::<u8>(bytes) };
            *room = Some(larger.map_err(|e| {
                candle_core::Error::Msg(format!("{bytes} bytes for a dequantised matrix: {e:?}"))
            })?);
        }
        let Some(room) = &*room else { bail!("no room for a dequantised matrix") };
        Ok(room.device_ptr(stream).0)
    }

    fn prepare(&self, key: Key) -> Result<Prepared> {
        let dtype = element(key.dtype)?;
        let f32_type = sys::cudaDataType::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let fail = cublas("preparing a product");
        let layout = |dtype, rows: usize, columns: usize, stride: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, stride as i64).map_err(&fail)
        };
        let description = result::create_matmul_desc(compute, f32_type).map_err(&fail)?;
        let set = |attribute, value: *const c_void, bytes: usize| {
            // SAFETY: the description lives; value points to so many bytes.
            unsafe { result::set_matmul_desc_attribute(description, attribute, value, bytes) }.map_err(&fail)
        };
        // CUBLAS_OP_T
        let transposed = 1i32;
        let transa = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        set(transa, (&raw const transposed).cast(), size_of_val(&transposed))?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE;
            set(attribute, (&raw const epilogue).cast(), size_of_val(&epilogue))?;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE;
            set(attribute, (&raw const f32_type).cast(), size_of_val(&f32_type))?;
        }
        let weight = layout(dtype, key.k, key.n, key.k)?;
        let src = layout(dtype, key.k, key.rows, key.k)?;
        let dst = layout(f32_type, key.n, key.rows, key.dst_stride)?;
        let preference = result::create_matmul_pref().map_err(&fail)?;
        let prefer = |attribute, value: *const c_void, bytes: usize| {
            // SAFETY: the preference lives; value points to so many bytes.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }.map_err(&fail)
        };
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let room = WORKSPACE_BYTES;
        let workspace = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        prefer(workspace, (&raw const room).cast(), size_of_val(&room))?;
        let [of_weight, of_src, of_dst] = key.alignments;
        for (attribute, bytes) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_weight),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_src),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_dst),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_dst),
        ] {
            prefer(attribute, (&raw const bytes).cast(), size_of_val(&bytes))?;
        }
        // SAFETY: all objects live; the preference goes as soon as it has been used.
        let found = unsafe {
            let found = result::get_matmul_algo_heuristic(
                self.handle,
                description,
                weight,
                src,
                dst,
                dst,
                preference,
            );
            let _ = result::destroy_matmul_pref(preference);
            found.map_err(cublas("no algorithm for a product"))?
        };
        Ok(Prepared { description, weight, src, dst, algorithm: found.algo })
    }

    /// # Safety
    /// As [`crate::ops::launch::Launcher::product`].
    pub unsafe fn run(&self, p: &Product, stream: &Arc<CudaStream>) -> Result<()> {
        if p.rows == 0 || p.n == 0 {
            return Ok(());
        }
        if p.src_type != p.weight_type.dtype() {
            bail!("linear: no product of {:?} weights with {:?} activations here", p.weight_type, p.src_type)
        }
        let key = Key {
            rows: p.rows,
            n: p.n,
            k: p.k,
            dst_stride: p.dst_stride,
            dtype: p.src_type,
            accumulate: p.accumulate,
            bias: p.bias != 0,
            alignments: [p.weight, p.src, p.dst].map(alignment),
        };
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(&key) {
            let prepared = self.prepare(key)?;
            all.insert(key, prepared);
        }
        let Some(prepared) = all.get(&key) else { bail!("a product was not prepared") };
        if p.bias != 0 {
            let pointer = p.bias;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            let bytes = size_of_val(&pointer);
            // SAFETY: the description lives as long as the shape is known; the bias is the caller's promise.
            unsafe {
                result::set_matmul_desc_attribute(
                    prepared.description,
                    attribute,
                    (&raw const pointer).cast(),
                    bytes,
                )
            }
            .map_err(cublas("a product's bias"))?;
        }
        let (alpha, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        let (workspace, _guard) = self.workspace.device_ptr(stream);
        // SAFETY: the caller's promise about the addresses; the layouts are those of the product.
        unsafe {
            result::matmul(
                self.handle,
                prepared.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                p.weight as *const c_void,
                prepared.weight,
                p.src as *const c_void,
                prepared.src,
                p.dst as *const c_void,
                prepared.dst,
                p.dst as *mut c_void,
                prepared.dst,
                &prepared.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(cublas("a product"))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        let all = self.prepared.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by `prepare` and `new`, used by nobody any more.
        unsafe {
            for (_, p) in all.drain() {
                for layout in [p.weight, p.src, p.dst] {
                    let _ = result::destroy_matrix_layout(layout);
                }
                let _ = result::destroy_matmul_desc(p.description);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}
