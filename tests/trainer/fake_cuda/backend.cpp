// Lets a torch that was built without CUDA put fake tensors on `cuda:0`, backward pass included (see __main__.py).
//
// Fake tensors have shapes and no memory, so no kernel is ever launched. But autograd asks the device's backend for the
// current stream, and torch ends the process where a device has no backend. Here are the two parts that it asks: a
// device guard, and the hooks of the CUDA library. Both know one device with one stream, and do nothing.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

c10::Device only_device() { return c10::Device(c10::DeviceType::CUDA, 0); }

c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, only_device()); }

struct OneDevice final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const override { return only_device(); }
  c10::Device exchangeDevice(c10::Device) const override { return only_device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only_stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only_stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

}  // namespace

namespace at {

struct FakeCudaHooks final : public CUDAHooksInterface {
  explicit FakeCudaHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  Generator getNewGenerator(c10::DeviceIndex) const override { return detail::createCPUGenerator(); }
  const Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const Generator generator = detail::createCPUGenerator();
    return generator;
  }
};

using CUDAHooks = FakeCudaHooks;  // torch looks the hooks up by this name
REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at

static c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, new OneDevice());
