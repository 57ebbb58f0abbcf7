"""The changes that Horovod 0.28.1 needs, as data: what becomes what, and why."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One replacement in one source file; `old` must stand there exactly once."""

    path: str
    old: str
    new: str
    why: str


COMMON = (
    Edit(
        path="horovod/tensorflow/CMakeLists.txt",
        old='list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        new="",
        why="its XLA headers have moved; only code compiled by XLA for GPUs would call it",
    ),
    Edit(
        path="horovod/common/gloo/gloo_controller.cc",
        old="global_ranks_.reserve(size_);",
        new="global_ranks_.resize(size_);",
        why="the vector stayed empty, so the stall inspector saw no ranks and never spoke",
    ),
    Edit(
        path="horovod/common/gloo/gloo_context.cc",
        old="""\
  attr device_attr;
  device_attr.iface = gloo_iface_;
  device_attr.ai_family = AF_UNSPEC;
  auto dev = CreateDevice(device_attr);

  global_ctx = global_context.ctx;
""",
        new="""\
  gloo_iface_ = global_context.gloo_iface_;
  attr device_attr;
  device_attr.iface = gloo_iface_;
  device_attr.ai_family = AF_UNSPEC;
  auto dev = CreateDevice(device_attr);

  global_ctx = global_context.ctx;
""",
        why="HOROVOD_GLOO_IFACE was lost in process sets, the global one included",
    ),
    Edit(
        path="CMakeLists.txt",
        old="    add_subdirectory(third_party/gloo)\n",
        new="""\
    if("${CMAKE_CXX_FLAGS}" MATCHES "-mf16c" AND "${CMAKE_CXX_FLAGS}" MATCHES "-mavx")
        add_definitions(-DGLOO_USE_AVX=1)
    endif()
    add_subdirectory(third_party/gloo EXCLUDE_FROM_ALL)
""",
        why="fp16 sums were scalar; and this C++11 gloo is compiled but never linked",
    ),
    Edit(
        path="third_party/gloo/gloo/CMakeLists.txt",
        old='  "${CMAKE_CURRENT_SOURCE_DIR}/gatherv.cc"\n',
        new="""\
  "${CMAKE_CURRENT_SOURCE_DIR}/gatherv.cc"
  "${CMAKE_CURRENT_SOURCE_DIR}/math.cc"
""",
        why="defines the vector fp16 sums that GLOO_USE_AVX declares; the import fails without",
    ),
)

GPU = (
    Edit(
        path="horovod/tensorflow/mpi_ops.cc",
        old="""\
// Forward declaration of AsGpuStreamValue
namespace stream_executor {
namespace gpu {
GpuStreamHandle AsGpuStreamValue(Stream* stream);
} // namespace stream_executor
} // namespace gpu
#if TENSORFLOW_VERSION >= 2011000000
#include "tensorflow/compiler/xla/stream_executor/stream.h"
#else
#include "tensorflow/stream_executor/stream.h"
#endif // TENSORFLOW_VERSION >= 2011000000
""",
        new="""\
#include "tensorflow/compiler/xla/stream_executor/stream.h"
namespace stream_executor {
namespace gpu {
static inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
} // namespace gpu
} // namespace stream_executor
""",
        why="TensorFlow no longer exports the function; the stream itself now gives its handle",
    ),
    Edit(
        path="cmake/Modules/FindNCCL.cmake",
        old='    set(NCCL_LIBNAME "nccl")\n',
        new="    set(NCCL_LIBNAME nccl libnccl.so.2)\n",
        why="the nvidia-nccl wheel holds libnccl.so.2 and no libnccl.so",
    ),
)

EDITS = {"cpu": COMMON, "gpu": COMMON + GPU}
