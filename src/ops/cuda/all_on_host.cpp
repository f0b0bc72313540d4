// All kernels as one library of the host: see on_host.h.
#define HASHWATT_ON_HOST
#include "device.cuh"
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
namespace dequantise_kernels {
#include "dequantise.cu"
}
namespace attention_kernels {
#include "attention.cu"
}
extern "C" int hashwatt_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared_bytes,
                               void **arguments) {
  return launch_on_host(name, grid, block, shared_bytes, arguments);
}
