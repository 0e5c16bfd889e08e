// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/thread_pool.h"

namespace conclave::kernels {

// Which implementation of a block runs. kCpuPlain is the oracle: loops in
// float32, one thread, no tricks. kCpu is the fast twin (Highway, run-time
// dispatch, threads). kCuda runs the blocks of kernels/device_*.h, whose
// operands lie on the GPU: those of this folder that take a Context do not know
// it. Metal comes with its own issue.
enum class Backend : uint8_t { kCpuPlain, kCpu, kCuda };

// Scratch memory of the blocks: a bump allocator that grows to the largest
// step and then stays. Memory is 64-byte aligned and not initialised. Used by
// one thread (the one that calls the blocks).
class Workspace {
 public:
  // Everything allocated during a Scope's life is free again after it.
  class Scope {
   public:
    explicit Scope(Workspace* workspace);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace* workspace_;
    size_t block_;
    size_t used_;
  };

  std::span<float> Floats(size_t count);
  std::span<int32_t> Ints(size_t count);
  size_t allocated_bytes() const;

 private:
  std::byte* Allocate(size_t bytes);
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t size = 0;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0;  // current block
  size_t used_ = 0;   // bytes used of it
};

// What products with quantised weights multiply; kernels/int8.h says which
// weights and how rows are rounded. Everything else is float32.
enum class Activations : uint8_t { kF32, kInt8 };
// "f32", or nothing, and "int8"; InvalidArgument lists them.
absl::StatusOr<Activations> ParseActivations(const std::string& word);

// What a block needs beside its operands. Owned by the caller; one context per
// calling thread.
struct Context {
  Backend backend = Backend::kCpu;
  ThreadPool* pool = nullptr;      // never null
  Workspace* workspace = nullptr;  // never null
  Activations activations = Activations::kF32;
};

// SIMD targets. Names as Highway prints them, any case ("AVX2", "AVX3",
// "EMU128"). The same target gives the same bits; another may not.
std::vector<std::string> SupportedSimdTargets();
std::string ActiveSimdTarget();
// Pins one target for the process; call before the first block runs. Empty:
// the best. InvalidArgument lists the supported ones.
absl::Status PinSimdTarget(const std::string& name);

}  // namespace conclave::kernels
