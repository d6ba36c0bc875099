// What torch-sys lacks for a GPU: a stream for each thread, pinned memory, and the way back of what libtorch keeps.
//
// All of it through libtorch's interfaces for any accelerator, which lie in libc10.so: so the plugin needs nothing of CUDA to be
// built or to run on the CPU. An error is left where torch-sys leaves its own.

#include <cstring>
#include <exception>
#include <map>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

extern thread_local char *torch_last_err;

namespace {

template <typename Call> auto guarded(Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception &error) {
    torch_last_err = strdup(error.what());
    return {};
  }
}

c10::impl::VirtualGuardImpl gpu() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

c10::Device at_number(int number) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(number)); }

// Of this thread; from libtorch's pool, to which it never goes back.
c10::Stream stream(int number) {
  thread_local std::map<int, c10::Stream> streams;
  auto known = streams.find(number);
  if (known == streams.end()) {
    known = streams.emplace(number, gpu().getStreamFromGlobalPool(at_number(number))).first;
  }
  return known->second;
}

} // namespace

extern "C" {

// Until it is left, what this thread has computed on the GPU goes through its own stream.
void *sconce_stream_enter(int number) {
  return guarded([=] { return static_cast<void *>(new c10::StreamGuard(stream(number))); });
}

void sconce_stream_leave(void *entered) { delete static_cast<c10::StreamGuard *>(entered); }

// Waits until everything in this thread's stream is done.
int sconce_stream_wait(int number) {
  return guarded([=] {
    gpu().synchronizeStream(stream(number));
    return 1;
  });
}

// A copy on the GPU, by way of pinned memory. The copying goes on in the stream; libtorch keeps the pinned memory for as long.
at::Tensor *sconce_to_gpu(const at::Tensor *from, int number) {
  return guarded([=] {
    auto pinned = at::empty(from->sizes(), from->options().pinned_memory(true));
    pinned.copy_(*from);
    return new at::Tensor(pinned.to(at_number(number), /*non_blocking=*/true));
  });
}

// A copy in pinned memory, which is there once the stream was waited for.
at::Tensor *sconce_to_host(const at::Tensor *from) {
  return guarded([=] {
    auto options = from->options().device(c10::DeviceType::CPU).pinned_memory(true);
    auto pinned = at::empty(from->sizes(), options);
    pinned.copy_(*from, /*non_blocking=*/true);
    return new at::Tensor(pinned);
  });
}

// Gives the GPU back what libtorch keeps of its memory without need.
int sconce_empty_cache() {
  return guarded([] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    return 1;
  });
}
}
