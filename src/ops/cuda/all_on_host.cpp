// All kernels as one library of the host: see on_host.h.
#define HASHWATT_ON_HOST
#include "attention.cuh"
#include "mma.cuh"
#include "rank.cuh"
namespace gather_kernels {
#include "gather.cu"
}
namespace rms_norm_kernels {
#include "rms_norm.cu"
}
namespace activation_kernels {
#include "activation.cu"
}
namespace rope_kernels {
#include "rope.cu"
}
namespace attention_split_kernels {
#include "attention_split.cu"
}
namespace attention_prefill_kernels {
#include "attention_prefill.cu"
}
namespace gemv_kernels {
#include "gemv.cu"
}
namespace blocks_kernels {
#include "blocks.cu"
}
namespace experts_kernels {
#include "experts.cu"
}
namespace grouped_kernels {
#include "grouped.cu"
}
namespace sample_kernels {
#include "sample.cu"
}
namespace dequantise_kernels {
#include "dequantise.cu"
}
extern "C" int hashwatt_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared_bytes,
                               void **arguments) {
  return launch_on_host(name, grid, block, shared_bytes, arguments);
}
